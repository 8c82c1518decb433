//! The real shell, that is tonic, HTTP/2 and the node's own tasks and timers, on a simulated network and clock: a second
//! of silence costs nothing, and the same seed is the same run. Nodes keep their data in memory; see `harness`.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod harness;

mod trace;

mod cancellation;

mod deadlines;

mod drain;

mod limits;

mod reconnect;

mod seeds;
