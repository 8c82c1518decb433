//! Anti-entropy: what two replicas of a partition differ in, found with little traffic and made equal. Paper: §4.7.
//!
//! ```text
//!   writer ── every changed record ──▶ Trees: one Tree per partition, sums of record hashes
//!   Schedule ── (partition, peer) ──▶ Exchange: root ▶ branches ▶ leaves ▶ keys ▶ pull, merge, push
//! ```
//!
//! [`tree`] says what is hashed, [`trees`] keeps a node's trees while records change, [`exchange`] compares two of
//! them and repairs both sides, [`schedule`] says which replicas are compared next. Differs from the paper: an inner
//! node is the sum of its leaves, so that a write updates its tree in place.

pub mod exchange;
mod lists;
pub mod schedule;
pub mod tree;
pub mod trees;

pub use exchange::{
    Exchange, ExchangeEffect, ExchangeEvent, ExchangeReport, KeyPage, KeySummary, Mode, PullResult,
    PushResult, has_news_for,
};
pub use schedule::{Due, Schedule};
pub use tree::{Tree, TreeShape, record_hash};
pub use trees::{TreeState, Trees};
