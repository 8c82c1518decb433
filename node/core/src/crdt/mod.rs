//! Values that merge by themselves: counter, set, map, flag, register. Paper: §4.4 (semantic reconciliation); row D53.
//!
//! A bucket whose [conflict policy](crate::bucket::Conflict) is a data type holds values that clients never see as
//! bytes and never send: they send [operations](Operation) and get [views](View). Inside, a value is a sibling like
//! any other. Replicas store, send, compare and merge it by its dot and know nothing of types; two places do:
//!
//! ```text
//!   typed write, at one coordinator                       typed read, of any merged record
//!     stored siblings ──merge──▶ value                      siblings ──merge──▶ value ──▶ view, context
//!     value ──operation, under the next dot──▶ value'
//!     record: {dot: value'}, having seen all that it had
//! ```
//!
//! # A typed write
//! [`coordinate`] merges the values of all siblings that the node holds and that are live, applies the operation, and
//! writes one sibling under a new dot, whose causal context is *everything the record here has seen*: so it supersedes
//! what went into it, and nothing else. What the client has seen never supersedes anything (an increment that this
//! node has not heard of would be lost with it). It only says what a removal removes: the marks of the writes that the
//! context covers. What the context covers and this node has not heard of yet is kept as a claim, and removed when it
//! comes. A removal without a context is refused. So an add beats a removal that did not know it, and an enable beats
//! a disable. The reply's context names the new write only if the request's covers all that it was built upon
//! ([`reply_context`]): a sibling stands for all that went into it, and a client must not remove what it has not seen.
//!
//! From this follows what the tests check. *Every write whose dot a record has seen has its effect in the merged value
//! of the record's siblings*, unless a removal or delete that knew it took it back: the write's sibling is there, or
//! was superseded by one that contains it. Merging is idempotent, so reading concurrent siblings counts nothing twice.
//!
//! # Counting once
//! * An actor's total is changed only by the node that owns the actor, and only while the record holds the actor's
//!   last write. Otherwise (the record was lost, or restored from a copy) a new epoch begins, and the old total stays
//!   for ever as the others know it. So a lost store never takes a total back.
//! * An increment with an op id is kept apart from the totals as long as the op id is remembered. A coordinator that
//!   remembers it answers a retry with the first write and applies nothing. One that has not heard of the first
//!   attempt applies it under a second dot; wherever the two meet, the smaller dot counts and the other is taken out.
//! * Of each actor the op ids of its latest [`OP_IDS_MAX`] writes of a key are remembered (fewer, but at least 16, where
//!   more than 8 actors have written with op ids). A retry counts once if both attempts
//!   meet in one record before that many other writes with op ids were made by the actor of one of them. Beyond this
//!   window it counts twice. Increments without op ids are counted as often as they are sent.
//! * Sets, flags and registers need no taking out: a retry at a coordinator that has not heard of the first attempt is
//!   one more, concurrent, add or assignment.
//!
//! # What else to know
//! * A delete is a tombstone with a context, as in other buckets. An update that is concurrent with it keeps the value,
//!   and with it all that the updating node held.
//! * An increment that is concurrent with the removal of its field brings back, beside itself, what its own
//!   coordinator had added to the field before; of other coordinators' nothing.
//! * An expired value is as good as deleted: the next write begins with an empty one.
//! * Values are not truncated with the record's clock, and each life of a node adds an actor to the counters it
//!   changes. A reader's context holds what the value has seen as well as what the record has, so that removals work
//!   after a truncation.
//! * The bytes of a record that was written before its bucket got a type are no value: reads and writes of it fail.

mod counter;
mod leaf;
mod operation;
mod store;
mod value;
mod write;

pub use operation::{
    DataType, ELEMENT_BYTES_MAX, FIELD_BYTES_MAX, Field, FieldOperation, LeafOperation, LeafType,
    OPERATION_PARTS_MAX, Operation, OperationError,
};
pub use value::{OP_IDS_MAX, Value, View};
pub use write::{Read, TypedRefused, TypedUpdate, coordinate, read, reply_context, resolve};
