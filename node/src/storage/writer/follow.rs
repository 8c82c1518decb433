//! Who hears of every record that changes.

use bytes::Bytes;
use dynamo_core::version::KeyState;

use crate::storage::keys::Place;

/// Follows a store: learns of every change after it was written, from who wrote it, in the order of the log.
pub trait Follower: Send + Sync {
    /// Whether records may grow by so many bytes; a bound, not an exact sum.
    fn admits(&self, _bytes: u64) -> bool {
        true
    }

    /// Something has arrived for this record, be it what it had already; this is its state now.
    fn arrived(&self, _place: &Place, _state: &KeyState) {}

    /// These records have changed; each is named once.
    fn committed(&self, changes: &[RecordChange]);
}

/// What became of one record. One that is marked for reaping counts as absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordChange {
    /// Which.
    pub place: Place,
    /// Its encoded state before.
    pub before: Before,
    /// Its encoded state now.
    pub after: Option<Bytes>,
}

/// What a record was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Before {
    /// These bytes, or absent.
    Known(Option<Bytes>),
    /// Damaged on disk, so that nobody can tell.
    Unreadable,
}
