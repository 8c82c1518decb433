//! The single writer: the only place that changes data, on a thread of its own, many writes per sync.
//!
//! ```text
//!   coordinate ─▶ ┌───────┐    for each operation: read the record (or take it from the group), coordinate or merge
//!   merge ──────▶ │ queue │ ─▶ ├─▶ prepared: the dot may leave before its own sync (a lost one is never given again,
//!   meta ───────▶ └───────┘    │   the next life of the data is another incarnation)
//!                  bounded     one batch of the group, one write, one sync ─▶ committed{durable}, all waiters
//! ```
//!
//! Writes of one key take effect in the order of their submission; those of one group see each other. Nothing is
//! acknowledged before its batch is written, and as durable not before a sync that began after that. An error of a
//! write or a sync ends the writer for good: see rule 6 of [`Store`]. An error while *reading* a record fails only the
//! operation that needed it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use dynamo_core::{
    replica::{Minter, Update, UpdateRefused},
    version::{Content, Dot, KeyState},
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Batch, DataKey, Space, Store, StoreError};
use crate::durable::Renewal;

mod group;

mod queue;

pub use queue::{GROUP_BYTES_MAX, GROUP_OPERATIONS_MAX, QUEUE_BYTES_MAX, QUEUE_OPERATIONS_MAX};

use queue::Queue;

/// When a write counts as accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Once it is synced.
    Every,
    /// Once it is in the write-ahead log, which is synced when the oldest unsynced write is this old.
    Interval(Duration),
}

/// How a writer works.
#[derive(Debug, Clone, Copy)]
pub struct WriterOptions {
    /// When a write counts as accepted.
    pub durability: Durability,
    /// Siblings beyond which a coordinated write that would add one is refused.
    pub siblings_max: usize,
}

/// The handle to the writer; clones are the same writer. When the last one is dropped the writer carries out what
/// waits, and ends.
#[derive(Clone)]
pub struct Writer {
    handle: Arc<Handle>,
}

/// A write that has its dot, before it is committed.
#[derive(Debug)]
pub struct Prepared {
    /// The name of the write; of the first one if this repeats an operation.
    pub dot: Dot,
    /// What the other replicas are to merge; may be sent at once.
    pub delta: KeyState,
    /// The record has this operation already; nothing new is stored.
    pub replayed: bool,
    answer: Answer,
}

/// A write that is in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// It survives the loss of power.
    pub durable: bool,
}

/// Why a write failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The queue is full: nothing was done.
    #[error(
        "{QUEUE_OPERATIONS_MAX} writes or {} MiB wait for the disk already; try again later, or another node",
        QUEUE_BYTES_MAX >> 20
    )]
    Overloaded,
    /// The record does not admit the write: nothing was done.
    #[error(transparent)]
    Refused(UpdateRefused),
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

/// Resolves when the store has failed.
#[derive(Debug)]
pub struct Failure {
    failed: oneshot::Receiver<StoreError>,
}

/// Numbers since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriterCounters {
    /// Groups committed; the mean size of a group is `operations / groups`.
    pub groups: u64,
    /// Operations committed.
    pub operations: u64,
    /// Bytes of keys and values written.
    pub bytes: u64,
    /// Syncs of the write-ahead log.
    pub syncs: u64,
    /// Operations that changed nothing: repeated writes, merges of what was known.
    pub unchanged: u64,
    /// Operations failed because their record could not be read.
    pub read_errors: u64,
    /// Operations that wait now.
    pub queued: u64,
}

impl Writer {
    /// Starts the writer's thread. `minter` continues the epochs of this life of the data.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub fn start(
        store: Arc<dyn Store>,
        minter: Minter,
        options: WriterOptions,
    ) -> io::Result<(Self, Failure)> {
        let shared = Arc::new(Shared::default());
        let (failed_in, failed) = oneshot::channel();
        let (ended_in, ended) = oneshot::channel();
        let thread = group::Thread::new(store, minter, options, Arc::clone(&shared));
        std::thread::Builder::new()
            .name("dynamo-writer".to_owned())
            .spawn(move || group::run(thread, failed_in, ended_in))?;
        let handle = Arc::new(Handle {
            shared,
            ended: Mutex::new(Some(ended)),
        });
        Ok((Self { handle }, Failure { failed }))
    }

    /// Coordinates a client's write: gives it a dot, and stores the record and its epoch entry as one. With `sync`, it
    /// is durable when committed, in every mode of durability.
    ///
    /// Dropping the future does not take the write back.
    ///
    /// # Errors
    /// See [`WriteError`]. After an error nothing of this write has been stored or may be sent, but for `Storage`.
    pub async fn coordinate(&self, key: DataKey, update: Update, sync: bool) -> Result<Prepared, WriteError> {
        let (prepared, answer) = oneshot::channel();
        self.push(Operation::Coordinate {
            key,
            update,
            sync,
            prepared,
        })?;
        let (announced, committed) = answer
            .await
            .map_err(|_| self.handle.shared.queue.why_closed())??;
        let Announced { dot, delta, replayed } = announced;
        Ok(Prepared {
            dot,
            delta,
            replayed,
            answer: self.answer(committed),
        })
    }

    /// Merges what another node sent. Never refused for its content. Answers truthfully about durability also if it
    /// changed nothing: then the write that it repeats may still wait for its sync.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn merge(&self, key: DataKey, delta: KeyState, sync: bool) -> Result<Committed, WriteError> {
        let (done, answer) = oneshot::channel();
        self.push(Operation::Merge {
            key,
            delta,
            sync,
            done,
        })?;
        self.answer(answer).wait().await
    }

    /// Writes named records of [`Space::Meta`].
    ///
    /// # Errors
    /// If the batch changes another space; see [`WriteError`].
    pub async fn meta(&self, batch: Batch, sync: bool) -> Result<Committed, WriteError> {
        self.named(batch, sync, None).await
    }

    /// Begins another life of the data: stores it, and gives its epochs to every write submitted later. Durable when it
    /// returns.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn renew(&self, renewal: &Renewal) -> Result<(), WriteError> {
        self.named(renewal.batch(), true, Some(renewal.minter()))
            .await
            .map(drop)
    }

    /// Refuses further writes, carries out those that wait, syncs, lets go of the store, and returns the minter, whose
    /// next epoch a clean stop persists.
    ///
    /// # Errors
    /// If the store failed, now or earlier, or the writer was stopped already.
    pub async fn stop(&self) -> Result<Minter, WriteError> {
        let queue = &self.handle.shared.queue;
        queue.close();
        let ended = self.handle.ended.lock().take();
        match ended {
            Some(ended) => ended.await.map_err(|_| queue.why_closed()),
            None => Err(queue.why_closed()),
        }
    }

    /// Numbers since the start.
    pub fn counters(&self) -> WriterCounters {
        let Shared { queue, tally } = &*self.handle.shared;
        WriterCounters {
            groups: tally.groups.load(Relaxed),
            operations: tally.operations.load(Relaxed),
            bytes: tally.bytes.load(Relaxed),
            syncs: tally.syncs.load(Relaxed),
            unchanged: tally.unchanged.load(Relaxed),
            read_errors: tally.read_errors.load(Relaxed),
            queued: queue.length() as u64,
        }
    }

    async fn named(&self, batch: Batch, sync: bool, minter: Option<Minter>) -> Result<Committed, WriteError> {
        if let Some(change) = batch.changes().iter().find(|change| change.space != Space::Meta) {
            return Err(WriteError::WrongSpace(change.space.name()));
        }
        let (done, answer) = oneshot::channel();
        self.push(Operation::Meta {
            batch,
            sync,
            minter,
            done,
        })?;
        self.answer(answer).wait().await
    }

    fn push(&self, operation: Operation) -> Result<(), WriteError> {
        self.handle.shared.queue.push(operation)
    }

    fn answer(&self, committed: Outcome) -> Answer {
        Answer {
            committed,
            shared: Arc::clone(&self.handle.shared),
        }
    }
}

impl Prepared {
    /// Waits until the write is in the store, and says whether it is durable.
    ///
    /// # Errors
    /// If the store failed: then the write may or may not be on disk, and must not be acknowledged.
    pub async fn committed(self) -> Result<Committed, WriteError> {
        self.answer.wait().await
    }
}

impl Failure {
    /// Waits until the store fails; for ever if it does not. The process then ends, to open the store anew.
    pub async fn failed(&mut self) -> StoreError {
        match (&mut self.failed).await {
            Ok(error) => error,
            Err(_) => std::future::pending().await,
        }
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

struct Handle {
    shared: Arc<Shared>,
    ended: Mutex<Option<oneshot::Receiver<Minter>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

/// What handles and the thread share.
#[derive(Default)]
struct Shared {
    queue: Queue,
    tally: Tally,
}

#[derive(Default)]
struct Tally {
    groups: AtomicU64,
    operations: AtomicU64,
    bytes: AtomicU64,
    syncs: AtomicU64,
    unchanged: AtomicU64,
    read_errors: AtomicU64,
}

/// An answer that is still to come; the writer's thread drops its end when it fails.
struct Answer {
    committed: Outcome,
    shared: Arc<Shared>,
}

impl Answer {
    async fn wait(self) -> Result<Committed, WriteError> {
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

enum Operation {
    Coordinate {
        key: DataKey,
        update: Update,
        sync: bool,
        prepared: oneshot::Sender<Preparation>,
    },
    Merge {
        key: DataKey,
        delta: KeyState,
        sync: bool,
        done: Done,
    },
    Meta {
        batch: Batch,
        sync: bool,
        minter: Option<Minter>,
        done: Done,
    },
}

type Done = oneshot::Sender<Result<Committed, WriteError>>;
type Outcome = oneshot::Receiver<Result<Committed, WriteError>>;
type Preparation = Result<(Announced, Outcome), WriteError>;

struct Announced {
    dot: Dot,
    delta: KeyState,
    replayed: bool,
}

/// What an operation takes in memory beside its key and values, roughly.
const OPERATION_BYTES: usize = 512;

impl Operation {
    fn bytes(&self) -> usize {
        OPERATION_BYTES
            + match self {
                Self::Coordinate { key, update, .. } => {
                    let value = match &update.content {
                        Content::Value(value) => value.len(),
                        Content::Tombstone => 0,
                    };
                    key.as_bytes().len() + value
                }
                Self::Merge { key, delta, .. } => {
                    let siblings = delta.siblings().values();
                    let values = siblings.map(|sibling| sibling.value().map_or(0, bytes::Bytes::len));
                    key.as_bytes().len() + values.sum::<usize>()
                }
                Self::Meta { batch, .. } => batch.bytes(),
            }
    }
}

#[cfg(test)]
mod tests;
