//! Hints: writes that this node keeps for others until they can take them. Paper: §4.6.
//!
//! A second store with a writer of its own, so that hints neither fill a node's own data nor wait behind it. One owner's
//! hints are one range. A hint is a record like any other: what came for the same owner and key is merged, and a fallback
//! that coordinates a write itself keeps the epoch of that record beside it.
//!
//! ```text
//!   hint, coordinate ──▶ writer ──▶ store of hints ◀── read: all owners' hints for a key, merged
//!                                                  ◀── scan, one owner's, to deliver; remove_if it is still the same
//! ```
//!
//! The room is bounded: beyond it hints are declined, which is no error but a fact that the coordinator works with;
//! anti-entropy then brings what no hint did.

use std::{
    collections::BTreeMap,
    ops::{Bound, RangeInclusive},
    sync::Arc,
};

use bytes::Bytes;
use dynamo_core::{
    types::{MemberId, digest_u64},
    version::KeyState,
};
use parking_lot::Mutex;

use super::{
    Cached, DataKey, Health, ScanLimit, Space, Store, StoreError,
    keys::{HintRange, Place},
    look, records,
    writer::{
        Before, Committed, Expected, Failure, Follower, Intent, Mint, Prepared, RecordChange, Swap,
        WriteError, Writer, WriterCounters, WriterOptions,
    },
};

/// The hints on this node; clones are the same store.
#[derive(Clone)]
pub struct HintStore {
    store: Arc<dyn Store>,
    writer: Writer,
    ledger: Arc<Ledger>,
}

/// Hints of one owner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HintCount {
    /// Keys.
    pub records: u64,
    /// Bytes of keys and states.
    pub bytes: u64,
}

/// Why a hint was not kept, or one not found or removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HintError {
    /// The room for hints is spent: nothing was done, and another node may have room.
    #[error("{0}")]
    Declined(WriteError),
    /// As for any other write.
    #[error("keeping a hint: {0}")]
    Write(WriteError),
}

impl HintError {
    /// The writer's own word.
    pub fn into_write(self) -> WriteError {
        match self {
            Self::Declined(error) | Self::Write(error) => error,
        }
    }
}

/// Why the hints cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HintStartError {
    /// They cannot be counted.
    #[error("counting the hints on disk: {0}")]
    Count(#[from] StoreError),
    /// The operating system gives no thread.
    #[error("starting the writer of hints: {0}")]
    Thread(#[from] std::io::Error),
}

/// A hint that waits for its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// For which key.
    pub key: DataKey,
    /// What the owner is to merge.
    pub state: KeyState,
    /// [`KeyState::digest`] of the state, for [`HintStore::remove_if`].
    pub digest: u64,
}

/// A page of an owner's hints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// Ascending.
    pub entries: Vec<Hint>,
    /// Hints whose bytes are damaged: they can only be given up, by [`HintStore::remove_corrupt`].
    pub damaged: Vec<DataKey>,
    /// Where the next page begins: behind this key. None: there is none.
    pub next: Option<DataKey>,
}

impl HintStore {
    /// Takes an open store of hints into use: counts what is there (reads all of it once, and so blocks), and starts its
    /// writer, which shares the node's `mint`. At most `bytes_max` bytes of keys and states are kept.
    ///
    /// # Errors
    /// If the store cannot be read, or holds something else than hints.
    pub fn start(
        store: Arc<dyn Store>,
        mint: Mint,
        options: WriterOptions,
        bytes_max: u64,
    ) -> Result<(Self, Failure), HintStartError> {
        let ledger = Arc::new(Ledger {
            bytes_max,
            counts: Mutex::new(count(&*store)?),
        });
        let follower: Arc<dyn Follower> = Arc::clone(&ledger) as _;
        let (writer, failure) = Writer::start_with(Arc::clone(&store), mint, options, Some(follower))?;
        let hints = Self {
            store,
            writer,
            ledger,
        };
        Ok((hints, failure))
    }

    /// Keeps a write for its owner, merged with what is kept already.
    ///
    /// # Errors
    /// `Declined` if there is no room; else see [`WriteError`].
    pub async fn hint(
        &self,
        owner: &MemberId,
        key: &DataKey,
        delta: KeyState,
        sync: bool,
    ) -> Result<Committed, HintError> {
        Ok(self.writer.merge(Place::hint(owner, key), delta, sync).await?)
    }

    /// Coordinates a client's write as a fallback, and keeps it for its owner; see [`Writer::coordinate`]. The node's own
    /// record of the key, if it has one, has no part in it.
    ///
    /// # Errors
    /// `Declined` if there is no room; else see [`WriteError`].
    pub async fn coordinate(
        &self,
        owner: &MemberId,
        key: &DataKey,
        intent: impl Into<Intent>,
        sync: bool,
    ) -> Result<Prepared, HintError> {
        let place = Place::hint(owner, key);
        Ok(self.writer.coordinate(place, intent, sync).await?)
    }

    /// What is kept for a key, for whichever owners, merged; none if nothing is.
    ///
    /// # Errors
    /// If a hint cannot be read: that is never the same as none.
    pub async fn read(&self, key: &DataKey) -> Result<Option<KeyState>, StoreError> {
        let mut merged = None;
        for owner in self.owners().into_keys() {
            if let Some(state) = self.read_for(&owner, key).await? {
                merged.get_or_insert_with(KeyState::new).merge(&state);
            }
        }
        Ok(merged)
    }

    /// What is kept for a key on behalf of one owner; none if nothing is.
    ///
    /// # Errors
    /// As [`HintStore::read`].
    pub async fn read_for(&self, owner: &MemberId, key: &DataKey) -> Result<Option<KeyState>, StoreError> {
        let place = Place::hint(owner, key);
        let value = match self.store.get_cached(Space::Data, place.as_bytes())? {
            Cached::Known(value) => value,
            Cached::OnDisk => {
                let key = place.as_bytes().clone();
                look(&self.store, READING, move |store| store.get(Space::Data, &key)).await?
            }
        };
        value.map(|value| records::decode(&place, value)).transpose()
    }

    /// True while none is kept for anybody.
    pub fn is_empty(&self) -> bool {
        self.ledger.counts.lock().is_empty()
    }

    /// For whom hints are kept, and how many.
    pub fn owners(&self) -> BTreeMap<MemberId, HintCount> {
        self.ledger.counts.lock().clone()
    }

    /// One page of an owner's hints, those behind a key of an earlier page.
    ///
    /// # Errors
    /// If the store cannot read them.
    pub async fn scan(
        &self,
        owner: &MemberId,
        after: Option<&DataKey>,
        limit: ScanLimit,
    ) -> Result<Hints, StoreError> {
        let range = HintRange::of(owner, after);
        look(&self.store, READING, move |store| page(store, &range, limit)).await
    }

    /// Whether any hint is kept for a key in a range of hashes, such as a partition, whoever its owner.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn any_in(&self, hashes: &RangeInclusive<u64>) -> Result<bool, StoreError> {
        let owners: Vec<_> = self.owners().into_keys().collect();
        let hashes = hashes.clone();
        look(&self.store, READING, move |store| {
            for owner in owners {
                let range = HintRange::hashes(&owner, &hashes);
                if !store.scan(Space::Data, range.as_range(), ONE)?.entries.is_empty() {
                    return Ok(true);
                }
            }
            Ok(false)
        })
        .await
    }

    /// Removes a hint that its owner has acknowledged, if it is still the one that was delivered: one that grew since
    /// stays, and false is returned. Durable when it returns, so that no loss of power brings back a hint after the node
    /// said that it has none.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn remove_if(&self, owner: &MemberId, key: &DataKey, digest: u64) -> Result<bool, HintError> {
        let expected = Expected { digest, mark: None };
        let place = Place::hint(owner, key);
        let removed = self.writer.swap(place, expected, Swap::Delete, true).await?;
        Ok(removed.is_some())
    }

    /// Gives up a hint whose bytes are damaged; one that can be read stays.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn remove_corrupt(&self, owner: &MemberId, key: &DataKey) -> Result<(), HintError> {
        self.writer.remove_corrupt(Place::hint(owner, key)).await?;
        Ok(())
    }

    /// The store behind it.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Numbers of the writer; `budget_spent` counts the hints declined.
    pub fn counters(&self) -> WriterCounters {
        self.writer.counters()
    }

    /// What the store says of its condition.
    ///
    /// # Errors
    /// If it cannot say.
    pub async fn health(&self) -> Result<Health, StoreError> {
        look(&self.store, READING, Store::health).await
    }

    /// Refuses further hints, writes and syncs those that wait, and leaves the mint to the node's other writer; see
    /// [`Writer::close`].
    ///
    /// # Errors
    /// If the store failed, now or earlier, or was stopped already.
    pub async fn stop(&self) -> Result<(), WriteError> {
        self.writer.close().await
    }
}

impl From<WriteError> for HintError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::BudgetSpent => Self::Declined(error),
            error => Self::Write(error),
        }
    }
}

/// How many hints there are of each owner: right after every commit.
struct Ledger {
    bytes_max: u64,
    counts: Mutex<BTreeMap<MemberId, HintCount>>,
}

impl Follower for Ledger {
    fn admits(&self, bytes: u64) -> bool {
        let kept: u64 = self.counts.lock().values().map(|count| count.bytes).sum();
        kept + bytes <= self.bytes_max
    }

    fn committed(&self, changes: &[RecordChange]) {
        let mut counts = self.counts.lock();
        for RecordChange { place, before, after } in changes {
            let Ok((owner, _)) = Place::parse_hint(place.as_bytes()) else {
                continue;
            };
            let before = match before {
                Before::Known(before) => before.as_ref(),
                // Counted when it could be read; the next start counts anew.
                Before::Unreadable => None,
            };
            let count = counts.entry(owner.clone()).or_default();
            if let Some(state) = before {
                count.remove(place.as_bytes(), state);
            }
            if let Some(state) = after {
                count.add(place.as_bytes(), state);
            }
            if count.records == 0 {
                counts.remove(&owner);
            }
        }
    }
}

impl HintCount {
    fn add(&mut self, key: &Bytes, state: &Bytes) {
        self.records += 1;
        self.bytes += (key.len() + state.len()) as u64;
    }

    fn remove(&mut self, key: &Bytes, state: &Bytes) {
        self.records = self.records.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub((key.len() + state.len()) as u64);
    }
}

impl std::fmt::Debug for HintStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HintStore")
            .field("writer", &self.writer)
            .finish_non_exhaustive()
    }
}

/// What was attempted, for messages.
const READING: &str = "reading hints";
const ONE: ScanLimit = ScanLimit {
    entries: 1,
    bytes: usize::MAX,
};
/// Hints that are read at once to be counted.
const COUNT_PAGE: ScanLimit = ScanLimit {
    entries: 1024,
    bytes: 4 << 20,
};

fn count(store: &dyn Store) -> Result<BTreeMap<MemberId, HintCount>, StoreError> {
    let mut counts = BTreeMap::<MemberId, HintCount>::new();
    let mut after: Option<Bytes> = None;
    loop {
        let lower = after
            .as_ref()
            .map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_ref()));
        let page = store.scan(Space::Data, (lower, Bound::Unbounded), COUNT_PAGE)?;
        for (key, state) in &page.entries {
            let (owner, _) = Place::parse_hint(key).map_err(|error| StoreError::Damaged {
                attempted: "counting hints".to_owned(),
                reason: error.to_string(),
            })?;
            counts.entry(owner).or_default().add(key, state);
        }
        after = page.entries.last().map(|(key, _)| key.clone());
        if page.done || after.is_none() {
            return Ok(counts);
        }
    }
}

fn page(store: &dyn Store, range: &HintRange, limit: ScanLimit) -> Result<Hints, StoreError> {
    let page = store.scan(Space::Data, range.as_range(), limit)?;
    let mut hints = Hints::default();
    let mut last = None;
    for (bytes, value) in page.entries {
        let (_, key) = Place::parse_hint(&bytes).map_err(|error| StoreError::Damaged {
            attempted: "listing hints".to_owned(),
            reason: error.to_string(),
        })?;
        last = Some(key.clone());
        let digest = digest_u64(&value);
        match KeyState::decode(value) {
            Ok(state) => hints.entries.push(Hint { key, state, digest }),
            Err(_) => hints.damaged.push(key),
        }
    }
    hints.next = last.filter(|_| !page.done);
    Ok(hints)
}

#[cfg(test)]
mod tests;
