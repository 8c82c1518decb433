//! Versions of a key: who wrote what, and which value supersedes which. Paper: §4.4.
//!
//! Differs from the paper's vector clocks: each value carries a [`Dot`], the name of the one write that made it, and
//! a record carries [`Seen`], the set of all writes it knows of. A value is superseded when somebody's `Seen` covers
//! its dot while the value itself is gone. So interleaved writers leave as many siblings as there are unresolved
//! values, never more, and merging needs no clock.
//!
//! ```text
//!   Actor = (incarnation, epoch)    who writes: one life of a node's data, one epoch of one record
//!   Dot   = (actor, counter)        one write
//!   Seen  = set of dots             what is known: live, or overwritten by somebody who knew it
//!   KeyState = Seen + dot -> value  the record: what is stored, sent and merged
//!   Context  = Seen, sealed         what a client passes back: what it has seen
//! ```

mod codec;
mod context;
mod dot;
mod hlc;
mod seen;
mod sibling;
mod state;
mod truncate;

pub use codec::STATE_FORMAT_VERSION;
pub(crate) use codec::{open_frame, put_actor, put_seen, read_actor, read_seen, seal_frame};
pub use context::{CONTEXT_BYTES_MAX, Context, ContextError};
pub use dot::{Actor, COUNTER_MAX, Dot};
pub use hlc::{Hlc, STAMP_AHEAD_MS_MAX, Stamp};
pub use seen::{Run, Seen, SeenEntry};
pub use sibling::{Content, Sibling};
pub use state::KeyState;
pub use truncate::truncated;
