//! What one node keeps on disk: a small ordered key-value [`Store`], and the one writer that changes it.
//!
//! ```text
//!   request ──▶ writer (queue, one at a time, group commit) ──▶ Store ◀── reads, scans (any thread)
//!                 reads, coordinates or merges, seals         rocks: RocksDB, one write-ahead log
//!                                                             memory: its twin, for tests
//!                                                             buffered: either, behind a buffer in memory
//! ```
//!
//! A node has two of each: the store of its own data, and one of [`hints`] that it keeps for others.
//!
//! Modules in reading order: [`keys`] and [`format`](mod@format), the only files that know byte layouts; [`records`],
//! reading key states; [`rocks`], [`memory`] and [`buffered`]; [`run`], many records at once; [`writer`]; [`hints`]; [`trees`], which follow what is
//! written; [`set_aside`], for stores that can no longer be used, and [`salvage`], which reads them again.

use std::{
    ops::{Bound, RangeBounds},
    sync::Arc,
};

use bytes::Bytes;

pub mod keys;

pub mod format;

pub mod records;

pub mod rocks;

pub mod memory;

pub mod run;

pub mod buffered;

pub mod writer;

pub mod hints;

pub mod trees;

pub(crate) mod follower;

pub mod set_aside;

pub mod salvage;

#[cfg(test)]
pub(crate) mod conformance;

pub use hints::HintStore;
pub use keys::DataKey;
pub use rocks::RocksStore;
pub use run::Run;
pub use writer::Writer;

/// An ordered key-value store with one write-ahead log. Paper: §5 (the pluggable persistence component).
///
/// Methods block for as long as the disk does. Rules that every implementation keeps, and `conformance` tests:
///
/// 1. A batch is atomic over all its spaces: readers and a restart see all of it or nothing.
/// 2. Batches take effect in the order in which `write` was called; a read that begins after a `write` returned sees it.
/// 3. What a crash leaves is a *prefix* of that order: never a later batch without an earlier one.
/// 4. When `write(.., sync: true)` or `sync()` returns, every batch written before it, and itself, survives the loss of
///    power. A batch written without sync survives the death of the process, not the loss of power.
/// 5. What a store holds when it has been opened is durable, so that nothing read is ever less durable than its reader
///    was told.
/// 6. After an error of `write` or `sync` nothing is known about that batch or about unsynced ones before it. The caller
///    never tries again: it acknowledges nothing, and the process ends and opens the store anew.
/// 7. An error of a read is never "not there".
pub trait Store: Send + Sync + 'static {
    /// The value of a key, or none.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Like [`Store::get`] without touching the disk, so that it may be called from an async task.
    fn get_cached(&self, space: Space, key: &[u8]) -> Result<Cached, StoreError>;

    /// Writes a batch; with `sync`, makes it and everything before it durable.
    fn write(&self, batch: Batch, sync: bool) -> Result<(), StoreError>;

    /// Like an unsynced [`Store::write`] that does not wait until flushes or compactions have caught up, so that it may be
    /// called from an async task. False: it would have to, and nothing was done.
    fn write_at_once(&self, _batch: &Batch) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// Makes everything written so far durable. Others may write meanwhile.
    fn sync(&self) -> Result<(), StoreError>;

    /// One page of a range, in ascending order of keys, as of one moment.
    fn scan(&self, space: Space, range: KeyRange<'_>, limit: ScanLimit) -> Result<Page, StoreError>;

    /// Writes records of [`Space::Data`], with keys in strictly ascending order, to a synced file beside the store. None:
    /// there are no records, or this kind of store has no files.
    fn write_run(
        &self,
        _records: &mut dyn Iterator<Item = (Bytes, Bytes)>,
    ) -> Result<Option<Run>, StoreError> {
        Ok(None)
    }

    /// Adds a run's records, all of them or none, durably. Records that the store has between the run's ends stay as they are:
    /// gives their keys. None, and nothing is done, if that is more than [`run::KEPT_MAX`]. Nobody may write meanwhile.
    fn take_in(&self, _run: &Run) -> Result<Option<Vec<Bytes>>, StoreError> {
        Ok(None)
    }

    /// Rough sizes of [`Space::Data`].
    fn estimate(&self) -> Result<Estimate, StoreError>;

    /// What the store itself has counted since it was opened; zeros from one that does not count.
    fn counters(&self) -> StoreCounters {
        StoreCounters::default()
    }

    /// What the store says about its own condition; cheap enough to ask some times a second.
    fn health(&self) -> Result<Health, StoreError>;

    /// How many changes have been written in the life of this store, over all its openings. Two openings of one store
    /// compare: one that finds less than an earlier one knew to be synced has lost some of it. A change counts once, and
    /// a batch's changes are counted when its `write` has returned.
    fn sequence(&self) -> u64;

    /// Whether a call may wait for a disk, so that an async task must leave it to a thread. A store that never does is used
    /// where it is asked, by its writer, too, so that nothing depends on how threads take turns; what it holds is synced at
    /// once.
    fn blocks(&self) -> bool {
        true
    }
}

/// Works with a store on behalf of an async task: on a thread for such work if the store may wait for a disk.
///
/// # Errors
/// If that thread ended early.
pub(crate) async fn aside<T: Send + 'static>(
    blocks: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    if blocks {
        tokio::task::spawn_blocking(work).await
    } else {
        Ok(work())
    }
}

/// Looks at a store on behalf of an async task; see [`aside`].
///
/// # Errors
/// If the store cannot be read.
pub(crate) async fn look<T: Send + 'static>(
    store: &Arc<dyn Store>,
    attempted: &str,
    look: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (blocks, store) = (store.blocks(), Arc::clone(store));
    aside(blocks, move || look(&*store))
        .await
        .unwrap_or_else(|error| {
            Err(StoreError::Io {
                attempted: attempted.to_owned(),
                reason: format!("the task ended early: {error}"),
            })
        })
}

/// A key space of its own, in the same log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// Key states, by data key.
    Data,
    /// The epoch entry of a record, by the same data key; never leaves this node.
    Epochs,
    /// A few named records: format, identity, incarnation, gossip view.
    Meta,
    /// Marks of records that are about to be reaped, by the same data key.
    Marks,
}

impl Space {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Data, Self::Epochs, Self::Meta, Self::Marks];

    /// A word for messages and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Epochs => "epochs",
            Self::Meta => "meta",
            Self::Marks => "marks",
        }
    }
}

/// What a look without the disk found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cached {
    /// The value, or for certain none.
    Known(Option<Bytes>),
    /// Only [`Store::get`] can tell.
    OnDisk,
}

/// Puts and deletes that take effect together, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    changes: Vec<Change>,
    bytes: usize,
}

/// One entry of a [`Batch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub space: Space,
    /// Which key.
    pub key: Bytes,
    /// The new value; none deletes.
    pub value: Option<Bytes>,
}

impl Batch {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key.
    pub fn put(&mut self, space: Space, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.push(Change {
            space,
            key: key.into(),
            value: Some(value.into()),
        });
    }

    /// Removes a key; one that is not there is fine.
    pub fn delete(&mut self, space: Space, key: impl Into<Bytes>) {
        self.push(Change {
            space,
            key: key.into(),
            value: None,
        });
    }

    /// Adds all changes of another batch after its own.
    pub fn append(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.changes.extend(other.changes);
    }

    /// The changes in order.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn push(&mut self, change: Change) {
        self.bytes += change.key.len() + change.value.as_ref().map_or(0, Bytes::len);
        self.changes.push(change);
    }
}

/// Ends of a range of keys.
pub type KeyRange<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

fn inside(range: &KeyRange<'_>, key: &[u8]) -> bool {
    RangeBounds::<[u8]>::contains(range, key)
}

/// Where a page ends: at whichever comes first, but never before its first entry.
#[derive(Debug, Clone, Copy)]
pub struct ScanLimit {
    /// Entries at most, at least 1.
    pub entries: usize,
    /// No further entry once keys and values have this many bytes.
    pub bytes: usize,
}

/// Entries of a range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Keys and values, ascending.
    pub entries: Vec<(Bytes, Bytes)>,
    /// The range holds nothing after the last entry.
    pub done: bool,
}

/// Rough sizes, of what is on disk and in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Keys.
    pub keys: u64,
    /// Bytes of keys and values, compressed as they are stored.
    pub bytes: u64,
}

/// What a store has counted since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreCounters {
    /// Keys looked up, found or not.
    pub reads: u64,
    /// Bytes of the values that were found.
    pub read_bytes: u64,
    /// Batches written.
    pub batches: u64,
    /// Keys put or deleted.
    pub changes: u64,
    /// Bytes written to the write-ahead log.
    pub log_bytes: u64,
    /// Syncs of the write-ahead log.
    pub log_syncs: u64,
}

/// What a store says about itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Health {
    /// Failed flushes and compactions since it was opened. Any is a reason to end the process and open it anew.
    pub background_errors: u64,
    /// Writes wait because flushes or compactions lag too far behind.
    pub writes_stopped: bool,
    /// Writes are slowed to this many bytes per second; 0: not slowed.
    pub delayed_write_bytes_per_s: u64,
    /// Bytes that the store's caches and write buffers hold in memory.
    pub memory_bytes: u64,
    /// The disk below it; none where there is none, as in memory.
    pub disk: Option<Disk>,
}

/// Room on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Bytes that this process may still write.
    pub free_bytes: u64,
    /// Bytes of the whole file system.
    pub total_bytes: u64,
}

impl Health {
    /// Whether the store has failed for good, as after an error of a write.
    pub fn failed(&self) -> bool {
        self.background_errors > 0
    }
}

/// Why an operation on an open store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The operating system or the store refused.
    #[error("{attempted}: {reason}")]
    Io {
        /// What was to be done, on which space and record.
        attempted: String,
        /// In the words of the store.
        reason: String,
    },
    /// Bytes were read and are not those that were written.
    #[error(
        "{attempted}: the stored bytes are damaged ({reason}); the record must come from another replica"
    )]
    Damaged {
        /// What was to be done, on which space and record.
        attempted: String,
        /// Which check failed.
        reason: String,
    },
    /// The record was written by a newer release.
    #[error(
        "{attempted}: it has format version {found}, this release knows up to {known}; start the release that wrote it"
    )]
    NewerFormat {
        /// What was to be done, on which space and record.
        attempted: String,
        /// The version found.
        found: u8,
        /// The newest version known.
        known: u8,
    },
}

impl StoreError {
    /// A static word for a metric's label.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::Damaged { .. } => "damaged",
            Self::NewerFormat { .. } => "newer_format",
        }
    }
}
