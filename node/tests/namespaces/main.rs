//! Real node processes in network namespaces: killed, paused, cut off from each other, robbed of their disks. They have fault
//! hooks (feature `faults`) for what the operating system cannot do. The tests' names begin with the scenario's number; the list
//! is in `docs/testing.md`. Root is needed, and the programs `ip`, `iptables`, `nsenter` and `unshare`.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod network;

#[path = "../../local/tests/support/mod.rs"]
mod support;

mod world;

mod splits;

mod crashes;

mod disks;

mod hints;

mod identity;

mod load;
