//! Whole clusters of the real machines of `dynamo-core` in one thread, from one seed.
//!
//! ```text
//!   seed ─▶ knobs, plan of faults
//!             │
//!   world ◀───┘  one queue of events, in simulated time
//!     ├ clients ── ask ──▶ node ◀── network ──▶ node        the core's machines, driven as the real shell does
//!     │                     └ disks, clock                  what a crash leaves of them
//!     ├ nemesis: faults     atlas: what may be destroyed
//!     └ ledger: the truth ─▶ invariants: what must hold     trace: chain of hashes, readable lines
//! ```
//!
//! Nothing here reads a clock or a random number of the system, or depends on the order of a hash map: a seed is a
//! reproduction. `docs/simulation.md` says how to use it.
//!
//! Modules in reading order: [`knobs`], [`nemesis`], [`world`], [`node`], [`clients`], [`ledger`], [`invariants`].

pub mod atlas;
pub mod buggify;
pub mod clients;
pub mod clock;
pub mod disk;
pub mod invariants;
pub mod keys;
pub mod knobs;
pub mod ledger;
pub mod messages;
pub mod mistakes;
pub mod model;
pub mod nemesis;
pub mod network;
pub mod node;
pub mod operations;
pub mod queue;
pub mod rng;
pub mod shared;
pub mod shrink;
pub mod totals;
pub mod trace;
pub mod world;

pub use knobs::Knobs;
pub use mistakes::Mistake;
pub use world::{Options, Report, run};
