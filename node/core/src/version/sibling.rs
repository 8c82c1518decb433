//! One value among a key's causally unrelated ones.

use bytes::Bytes;

use super::hlc::Stamp;
use crate::types::OpId;

/// What a write wrote, beside the dot that names it.
///
/// The order of siblings means nothing to users; it breaks the tie between two different values under one dot, which
/// only damage outside this code can make, the same way on every node.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Sibling {
    /// When the coordinator accepted the write, by its clock. Orders nothing in buckets that keep siblings.
    pub stamp: Stamp,
    /// Milliseconds since 1970 from which the value counts as deleted.
    pub expires_at_ms: Option<u64>,
    /// What the client repeats when it retries.
    pub op_id: Option<OpId>,
    /// The value, or that there is none.
    pub content: Content,
}

/// A value, or the mark of a delete.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Content {
    /// A delete: it supersedes like a value, and shows as nothing.
    Tombstone,
    /// Bytes that only clients understand.
    Value(Bytes),
}

impl Sibling {
    /// The value; `None` for a tombstone.
    pub fn value(&self) -> Option<&Bytes> {
        match &self.content {
            Content::Value(value) => Some(value),
            Content::Tombstone => None,
        }
    }

    /// True from the expiry on: the value counts as deleted, on every node alike, though nothing is written then.
    pub fn is_expired(&self, wall_ms: u64) -> bool {
        self.expires_at_ms
            .is_some_and(|expires_at_ms| expires_at_ms <= wall_ms)
    }

    /// True if a reader at `wall_ms` sees a value: neither a tombstone nor expired.
    pub fn is_live(&self, wall_ms: u64) -> bool {
        self.value().is_some() && !self.is_expired(wall_ms)
    }

    /// True if both are the same operation: a write and its retry, which two coordinators have given two dots.
    ///
    /// The content counts too. A client that uses one op id for two different values by mistake keeps both.
    pub fn same_operation(&self, other: &Self) -> bool {
        self.op_id.is_some() && self.op_id == other.op_id && self.content == other.content
    }
}
