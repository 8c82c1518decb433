//! Who is in the cluster, as one node knows it and tells others.
//!
//! ```text
//!   every second:  Gossip ─▶ target ─▶ digest ──────────────▶ answer ─┐
//!                                       merge ◀── delta, wanted ◀─────┘
//!                                       delta_for(wanted) ──▶ merge
//!   every reply:   Detector: who answers this node, and nobody else's business
//! ```
//!
//! Modules in reading order: [`entry`], what a member says about itself; [`view`], all that one node knows, with the
//! ring; [`gossip`], whom to talk to; [`detector`], who answers. Paper: §4.8.
//!
//! Membership changes only by an administrator's word, which mints a ring of a larger epoch; gossip carries it. A
//! crash changes nothing here (§4.8.1).

mod codec;

pub mod entry;

pub mod view;

pub mod gossip;

pub mod detector;

pub use detector::{Detector, Silence};
pub use entry::{EntryError, MemberEntry};
pub use gossip::{Gossip, Target};
pub use view::{
    Answer, Changes, Delta, Digest, LogEntry, MemberDigest, Refusal, RingVersion, SelfHistory, View, Wanted,
};
