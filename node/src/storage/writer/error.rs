//! Why writes fail.

use dynamo_core::{crdt::TypedRefused, replica::UpdateRefused};

use super::{QUEUE_BYTES_MAX, QUEUE_OPERATIONS_MAX};
use crate::storage::StoreError;

/// Why a write failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The queue is full: nothing was done.
    #[error(
        "{QUEUE_OPERATIONS_MAX} writes or {} MiB wait for the disk already; try again later, or another node",
        QUEUE_BYTES_MAX >> 20
    )]
    Overloaded,
    /// The disk is nearly full: nothing was done. Ends by itself once there is room again.
    #[error(
        "the disk has {free_bytes} bytes left and writes need {free_bytes_min}; give it more room, delete data, or \
         add nodes"
    )]
    DiskFull {
        /// What is left.
        free_bytes: u64,
        /// What must be left for a write to be taken.
        free_bytes_min: u64,
    },
    /// What this store may hold is spent: nothing was done.
    #[error("the hints on this node take all the room that they may; another node has to keep this one")]
    BudgetSpent,
    /// The record does not admit the write: nothing was done.
    #[error(transparent)]
    Refused(UpdateRefused),
    /// The operation on a data type is not admitted: nothing was done.
    #[error(transparent)]
    TypedRefused(TypedRefused),
    /// The record could not be read, so it cannot be changed: nothing was done. Not the same as an absent record.
    #[error("reading before writing: {0}")]
    Read(StoreError),
    /// The store failed, now or earlier; the write may or may not be on disk. The node must be started again.
    #[error("the store has failed and the node must be started again: {0}")]
    Storage(StoreError),
    /// The writer was stopped: nothing was done.
    #[error("the node is stopping")]
    Stopped,
    /// A batch of named records tried to change something else: nothing was done.
    #[error("a batch of meta records changes space {0}, which belongs to the writer")]
    WrongSpace(&'static str),
}
