//! What follows a node's data: its trees, and when something last arrived for records that may be removed.

use std::sync::Arc;

use dynamo_core::{reap::QuietTable, version::KeyState};
use parking_lot::Mutex;

use super::{
    keys::Place,
    trees::PartitionTrees,
    writer::{Follower, RecordChange},
};
use crate::clock;

/// Follows the store of a node's own data.
pub(crate) struct DataFollower {
    trees: Arc<PartitionTrees>,
    quiet: Arc<Mutex<QuietTable>>,
    actors_max: usize,
}

impl DataFollower {
    /// `actors_max` as in [`may_go`].
    pub(crate) fn new(trees: Arc<PartitionTrees>, quiet: Arc<Mutex<QuietTable>>, actors_max: usize) -> Self {
        Self {
            trees,
            quiet,
            actors_max,
        }
    }
}

/// Whether a record is, or by the passing of time becomes, one that may be removed, or shortened since its history names more than
/// `actors_max` writers.
pub(crate) fn may_go(state: &KeyState, actors_max: usize) -> bool {
    let mut siblings = state.siblings().values();
    siblings.any(|sibling| sibling.value().is_none() || sibling.expires_at_ms.is_some())
        || state.seen().actors().len() > actors_max
}

impl Follower for DataFollower {
    fn arrived(&self, place: &Place, state: &KeyState) {
        if may_go(state, self.actors_max) {
            self.quiet.lock().touch(place.as_bytes(), clock::monotonic_ms());
        }
    }

    fn committed(&self, changes: &[RecordChange]) {
        self.trees.committed(changes);
    }
}
