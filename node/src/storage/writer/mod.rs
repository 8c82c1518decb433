//! The single writer: the only place that changes data, one group at a time, many writes per sync.
//!
//! ```text
//!   coordinate ─▶ ┌───────┐    for each operation: read the record (or take it from the group), coordinate or merge
//!   merge, swap ▶ │ queue │ ─▶ ├─▶ prepared: the dot may leave before its own sync (a lost one is never given again,
//!   meta, look ─▶ └───────┘    │   the next life of the data is another incarnation)
//!                  bounded     one batch of the group, one write, one sync ─▶ committed{durable}, all waiters
//! ```
//!
//! Writes of one key take effect in the order of their submission; those of one group see each other. Nothing is
//! acknowledged before its batch is written, and as durable not before a sync that began after that. An error of a
//! write or a sync ends the writer for good: see rule 6 of [`Store`]. An error while *reading* a record fails only the
//! operation that needed it. Whose turn it is to write, a thread's or a task's: `serve.rs`.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use dynamo_core::{
    replica::{Minter, SiblingCaps},
    version::{Dot, KeyState},
};
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::oneshot};

use super::{Batch, Space, Store, StoreError, keys::Place};
use crate::durable::Renewal;

mod committer;

mod error;

mod follow;

mod group;

mod mint;

mod operation;

mod queue;

mod room;

mod serve;

pub use error::WriteError;
pub use follow::{Before, Follower, RecordChange};
pub use mint::Mint;
pub use operation::{Expected, Intent, Swap};
pub use queue::{GROUP_BYTES_MAX, GROUP_OPERATIONS_MAX, QUEUE_BYTES_MAX, QUEUE_OPERATIONS_MAX};
pub use room::free_bytes_min;
pub(crate) use room::has_room;

use committer::Committer;
use operation::{Announced, Answer, Operation, Outcome};
use queue::Queue;
use serve::{Here, Seat, Task};

/// When a write counts as accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Once it is synced.
    Every,
    /// Once it is in the write-ahead log, which is synced when the oldest unsynced write is this old.
    Interval(Duration),
    /// As `Interval`, but a write that this node coordinates counts only once it is synced, so that of its N replicas
    /// one is durable. Paper: §6.1.
    OneOfN(Duration),
}

/// How a writer works.
#[derive(Debug, Clone, Copy)]
pub struct WriterOptions {
    /// When a write counts as accepted.
    pub durability: Durability,
    /// Beyond these a coordinated write that would add a sibling is refused.
    pub caps: SiblingCaps,
    /// Bytes of the disk that stay free: below, whatever brings data is refused with [`WriteError::DiskFull`], while
    /// reads and removals go on. None: [`free_bytes_min`] of the disk's size. 0: never refused.
    pub free_bytes_min: Option<u64>,
}

/// The handle to the writer; clones are the same writer. When the last one is dropped the writer carries out what
/// waits, and ends.
#[derive(Clone)]
pub struct Writer {
    handle: Arc<Inner>,
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
    /// Operations refused because the disk was nearly full.
    pub disk_full: u64,
    /// Operations refused because the records had all the room that they may have.
    pub budget_spent: u64,
    /// Damaged records that were replaced.
    pub repaired: u64,
    /// Operations that wait now.
    pub queued: u64,
}

impl Writer {
    /// Starts a writer that nobody follows, with a mint of its own.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub fn start(
        store: Arc<dyn Store>,
        minter: Minter,
        options: WriterOptions,
    ) -> io::Result<(Self, Failure)> {
        Self::start_with(store, Mint::new(minter), options, None)
    }

    /// Starts the writer. It has a thread of its own if the store may wait for a disk; in a tokio runtime and with
    /// [`Durability::Interval`] also a task there, which writes what needs no disk. `mint` continues the epochs of this
    /// life of the data; all writers of a node share it. `follower` learns of every record that changes.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub fn start_with(
        store: Arc<dyn Store>,
        mint: Mint,
        options: WriterOptions,
        follower: Option<Arc<dyn Follower>>,
    ) -> io::Result<(Self, Failure)> {
        let (failed_in, failed) = oneshot::channel();
        let (ended_in, ended) = oneshot::channel();
        let blocks = store.blocks();
        let runtime = Handle::try_current().ok();
        let runtime = runtime.filter(|_| blocks && matches!(options.durability, Durability::Interval(_)));
        let shared = Arc::new(Shared {
            queue: Queue::new(runtime.is_some()),
            tally: Tally::default(),
            synced: AtomicU64::default(),
            failed: Mutex::new(Some(failed_in)),
        });
        let committer = Committer::new(store, mint.clone(), options, follower, Arc::clone(&shared));
        let seat = Seat::new(committer, Arc::clone(&shared));
        let runs = if blocks {
            let seat = Arc::new(seat);
            let for_thread = Arc::clone(&seat);
            let joined = std::thread::Builder::new()
                .name("dynamo-writer".to_owned())
                .spawn(move || serve::thread(&for_thread, ended_in))?;
            if let Some(runtime) = runtime {
                runtime.spawn(Task(seat).serve());
            }
            Runs::Apart(Mutex::new(Some(joined)))
        } else {
            let ended = Mutex::new(Some(ended_in));
            Runs::Here(Box::new(Here { seat, ended }))
        };
        let handle = Arc::new(Inner {
            shared,
            mint,
            ended: Mutex::new(Some(ended)),
            runs,
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
    pub async fn coordinate(
        &self,
        place: impl Into<Place>,
        intent: impl Into<Intent>,
        sync: bool,
    ) -> Result<Prepared, WriteError> {
        let (prepared, answer) = oneshot::channel();
        self.push(Operation::Coordinate {
            place: place.into(),
            intent: intent.into(),
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
    pub async fn merge(
        &self,
        place: impl Into<Place>,
        delta: KeyState,
        sync: bool,
    ) -> Result<Committed, WriteError> {
        let (done, answer) = oneshot::channel();
        self.push(Operation::Merge {
            place: place.into(),
            delta,
            sync,
            done,
        })?;
        self.answer(answer).wait().await
    }

    /// Changes a record that is still the one that was seen. None: it is another one by now, or gone, and nothing was
    /// done. Taken also when the disk is full.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn swap(
        &self,
        place: impl Into<Place>,
        expected: Expected,
        swap: Swap,
        sync: bool,
    ) -> Result<Option<Committed>, WriteError> {
        let (swapped, answer) = oneshot::channel();
        self.push(Operation::Swap {
            place: place.into(),
            expected,
            swap,
            sync,
            swapped,
        })?;
        let outcome = answer
            .await
            .map_err(|_| self.handle.shared.queue.why_closed())??;
        match outcome {
            Some(committed) => self.answer(committed).wait().await.map(Some),
            None => Ok(None),
        }
    }

    /// Puts what other replicas hold in the place of a record whose stored bytes fail their checksum; durable when it
    /// returns. A record that can be read takes the state as a merge. Paper: §4.7 (a replica is repaired from others).
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn replace_corrupt(
        &self,
        place: impl Into<Place>,
        state: KeyState,
    ) -> Result<Committed, WriteError> {
        self.repair(place.into(), Some(state)).await
    }

    /// Removes a record if its stored bytes fail their checksum. Only for what no other node can repair, as a hint.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn remove_corrupt(&self, place: impl Into<Place>) -> Result<Committed, WriteError> {
        self.repair(place.into(), None).await
    }

    /// Runs `look` on the writer's thread: it finds the store as all groups so far have left it, and no write takes
    /// effect meanwhile. For short looks only; all writes wait for it.
    ///
    /// # Errors
    /// `Overloaded`, or the writer has stopped or failed.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&dyn Store) -> T + Send + 'static,
    ) -> Result<T, WriteError> {
        let (found, answer) = oneshot::channel();
        self.push(Operation::Look(Box::new(move |store| {
            let _ = found.send(look(store));
        })))?;
        answer.await.map_err(|_| self.handle.shared.queue.why_closed())
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
    /// next epoch a clean stop persists. The mint gives nothing more, to no writer; those that share it are closed
    /// before, because their stores must be synced, too, before the stop is called clean.
    ///
    /// # Errors
    /// If the store failed, now or earlier, or the writer was stopped already.
    pub async fn stop(&self) -> Result<Minter, WriteError> {
        self.close().await?;
        self.handle.mint.end().ok_or(WriteError::Stopped)
    }

    /// Like [`Writer::stop`], but leaves the mint to the others.
    ///
    /// # Errors
    /// As [`Writer::stop`].
    pub async fn close(&self) -> Result<(), WriteError> {
        let queue = &self.handle.shared.queue;
        queue.close();
        self.handle.serve();
        let ended = self.handle.ended.lock().take();
        match ended {
            Some(ended) => ended.await.map_err(|_| queue.why_closed()),
            None => Err(queue.why_closed()),
        }
    }

    /// The store's [`Store::sequence`] at the last sync: everything up to it survives the loss of power.
    pub fn synced(&self) -> u64 {
        self.handle.shared.synced.load(Relaxed)
    }

    /// Numbers since the start.
    pub fn counters(&self) -> WriterCounters {
        let Shared { queue, tally, .. } = &*self.handle.shared;
        WriterCounters {
            groups: tally.groups.load(Relaxed),
            operations: tally.operations.load(Relaxed),
            bytes: tally.bytes.load(Relaxed),
            syncs: tally.syncs.load(Relaxed),
            unchanged: tally.unchanged.load(Relaxed),
            read_errors: tally.read_errors.load(Relaxed),
            disk_full: tally.disk_full.load(Relaxed),
            budget_spent: tally.budget_spent.load(Relaxed),
            repaired: tally.repaired.load(Relaxed),
            queued: queue.length() as u64,
        }
    }

    async fn repair(&self, place: Place, state: Option<KeyState>) -> Result<Committed, WriteError> {
        let (done, answer) = oneshot::channel();
        self.push(Operation::Repair { place, state, done })?;
        self.answer(answer).wait().await
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
        self.handle.shared.queue.push(operation)?;
        self.handle.serve();
        Ok(())
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

struct Inner {
    shared: Arc<Shared>,
    mint: Mint,
    ended: Mutex<Option<oneshot::Receiver<()>>>,
    runs: Runs,
}

/// Who carries out what waits.
enum Runs {
    /// A thread.
    Apart(Mutex<Option<JoinHandle<()>>>),
    /// Whoever submits it.
    Here(Box<Here>),
}

impl Inner {
    fn serve(&self) {
        if let Runs::Here(here) = &self.runs {
            here.serve();
        }
    }
}

impl Drop for Inner {
    /// Waits for the thread, and so for its last sync: a process must not end while the store closes.
    fn drop(&mut self) {
        self.shared.queue.close();
        self.serve();
        if let Runs::Apart(thread) = &self.runs
            && let Some(thread) = thread.lock().take()
        {
            // It has told of its panic by the failure.
            let _ = thread.join();
        }
    }
}

/// What handles and the committer share.
struct Shared {
    queue: Queue,
    tally: Tally,
    synced: AtomicU64,
    failed: Mutex<Option<oneshot::Sender<StoreError>>>,
}

impl Shared {
    /// The writer ends.
    fn fail(&self, error: StoreError) {
        self.queue.fail(error.clone());
        if let Some(failed) = self.failed.lock().take() {
            let _ = failed.send(error);
        }
    }
}

#[derive(Default)]
struct Tally {
    groups: AtomicU64,
    operations: AtomicU64,
    bytes: AtomicU64,
    syncs: AtomicU64,
    unchanged: AtomicU64,
    read_errors: AtomicU64,
    disk_full: AtomicU64,
    budget_spent: AtomicU64,
    repaired: AtomicU64,
}

#[cfg(test)]
mod tests;
