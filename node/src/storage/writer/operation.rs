//! What can be asked of a writer, and how it answers.

use std::sync::Arc;

use bytes::Bytes;
use dynamo_core::{
    crdt::{DataType, TypedUpdate},
    replica::{Minter, Update},
    version::{Content, Dot, KeyState},
};
use tokio::sync::oneshot;

use super::{Committed, Shared, WriteError};
use crate::storage::{Batch, Store, keys::Place};

/// The record that a [`Swap`] is meant for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// [`KeyState::digest`] of its state.
    pub digest: u64,
    /// Its mark; none: whatever its mark, or lack of one.
    pub mark: Option<Bytes>,
}

/// A change of a record that must not have changed meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// Marks it durably as one about to be reaped, which takes it out of the trees; replaces an older mark. The next
    /// merge or coordinated write clears the mark, also one that changes nothing else.
    Mark(Bytes),
    /// Takes the mark away.
    Unmark,
    /// Puts another state in its place, as truncation does; clears the mark.
    Replace(KeyState),
    /// Removes it with its epoch entry and its mark.
    Delete,
}

/// A client's write, as the bucket's policy has it carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Intent {
    /// Concurrent values are kept side by side.
    Siblings(Update),
    /// The value written last wins.
    Lww {
        /// The write.
        update: Update,
        /// Milliseconds since 1970.
        wall_ms: u64,
    },
    /// An operation on a value of a data type.
    Typed {
        /// What the bucket holds.
        data_type: DataType,
        /// The operation.
        update: TypedUpdate,
    },
}

impl From<Update> for Intent {
    fn from(update: Update) -> Self {
        Self::Siblings(update)
    }
}

impl Intent {
    /// What it takes in the queue.
    fn bytes(&self) -> usize {
        match self {
            Self::Siblings(update) | Self::Lww { update, .. } => match &update.content {
                Content::Value(value) => value.len(),
                Content::Tombstone => 0,
            },
            Self::Typed { update, .. } => update.operation.bytes(),
        }
    }
}

pub(super) enum Operation {
    Coordinate {
        place: Place,
        intent: Intent,
        sync: bool,
        prepared: oneshot::Sender<Preparation>,
    },
    Merge {
        place: Place,
        delta: KeyState,
        sync: bool,
        done: Done,
    },
    Swap {
        place: Place,
        expected: Expected,
        swap: Swap,
        sync: bool,
        swapped: oneshot::Sender<Swapped>,
    },
    Repair {
        place: Place,
        state: Option<KeyState>,
        done: Done,
    },
    Meta {
        batch: Batch,
        sync: bool,
        minter: Option<Minter>,
        done: Done,
    },
    Look(Look),
}

/// Runs on the writer's thread and answers by itself.
pub(super) type Look = Box<dyn FnOnce(&dyn Store) + Send>;

pub(super) type Done = oneshot::Sender<Result<Committed, WriteError>>;
pub(super) type Outcome = oneshot::Receiver<Result<Committed, WriteError>>;
pub(super) type Preparation = Result<(Announced, Outcome), WriteError>;
/// None: the record is another one.
pub(super) type Swapped = Result<Option<Outcome>, WriteError>;

pub(super) struct Announced {
    pub(super) dot: Dot,
    pub(super) delta: KeyState,
    pub(super) replayed: bool,
}

/// What an operation takes in memory beside its key and values, roughly.
const OPERATION_BYTES: usize = 512;

impl Operation {
    /// What it takes in the queue.
    pub(super) fn bytes(&self) -> usize {
        let content = match self {
            Self::Coordinate { place, intent, .. } => place.as_bytes().len() + intent.bytes(),
            Self::Merge { place, delta, .. } => place.as_bytes().len() + values_bytes(delta),
            Self::Swap { place, swap, .. } => {
                let swap = match swap {
                    Swap::Mark(mark) => mark.len(),
                    Swap::Replace(state) => values_bytes(state),
                    Swap::Unmark | Swap::Delete => 0,
                };
                place.as_bytes().len() + swap
            }
            Self::Repair { place, state, .. } => {
                place.as_bytes().len() + state.as_ref().map_or(0, values_bytes)
            }
            Self::Meta { batch, .. } => batch.bytes(),
            Self::Look(_) => 0,
        };
        OPERATION_BYTES + content
    }
}

fn values_bytes(state: &KeyState) -> usize {
    let values = state.siblings().values();
    values.map(|sibling| sibling.value().map_or(0, Bytes::len)).sum()
}

/// An answer that is still to come; the writer drops its end when it fails.
pub(super) struct Answer {
    pub(super) committed: Outcome,
    pub(super) shared: Arc<Shared>,
}

impl Answer {
    pub(super) async fn wait(self) -> Result<Committed, WriteError> {
        self.committed
            .await
            .unwrap_or_else(|_| Err(self.shared.queue.why_closed()))
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answer")
    }
}
