//! Who is in the cluster, as one node knows it and tells others.
//!
//! ```text
//!   every second:  Gossip ─▶ target ─▶ digest ──────────────▶ answer ─┐
//!                                       merge ◀── delta, wanted ◀─────┘
//!                                       delta_for(wanted) ──▶ merge
//!   every reply:   Detector: who answers this node, and nobody else's business
//! ```
//!
//! Modules in reading order: [`entry`], what a member says about itself; [`log`], the rings so far; [`policies`],
//! settings that travel along; [`message`], what two nodes tell each other; [`view`], all that one node knows, with
//! the ring; [`history`], how a volume put back in time shows; [`gossip`], whom to talk to; [`detector`], who answers,
//! and how fast; [`admission`], whose data are taken. Paper: §4.8.
//!
//! Membership changes only by an administrator's word, which mints a ring of a larger epoch; gossip carries it. A
//! crash changes nothing here (§4.8.1).

mod codec;

mod displaced;

pub mod entry;

pub mod log;

pub mod policies;

pub mod message;

pub mod view;

pub mod history;

pub mod gossip;

pub mod detector;

pub use detector::{Detector, Pace, Silence};
pub use entry::{EntryError, MemberEntry};
pub use gossip::{Gossip, Target};
pub use history::{Announcer, Claim, Life, SelfHistory};
pub use log::LogEntry;
pub use message::{Answer, Delta, Digest, MemberDigest, RingVersion, Wanted};
pub use policies::{PoliciesDigest, Policy, PolicyError};
pub use view::{Changes, Refusal, View};
