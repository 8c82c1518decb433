//! The in-memory twin of the RocksDB store: same rules, and a power cord that tests can pull.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    Batch, Cached, Change, Estimate, Health, KeyRange, Page, ScanLimit, Space, Store, StoreError, inside,
};

/// A [`Store`] in memory. A clone is another handle to the same store.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    state: std::sync::Arc<Mutex<State>>,
    immediate: bool,
}

#[derive(Debug, Default)]
struct State {
    written: Contents,
    durable: Contents,
    unsynced: VecDeque<Batch>,
    /// Changes of all that is written.
    sequence: u64,
}

type Contents = BTreeMap<(Space, Bytes), Bytes>;

impl MemoryStore {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty one that says that it never waits: see [`Store::blocks`].
    pub fn immediate() -> Self {
        Self {
            immediate: true,
            ..Self::default()
        }
    }

    /// Loses all that was not synced, as the loss of power may.
    pub fn crash(&self) {
        self.crash_keeping(0);
    }

    /// Loses all that was not synced but its first `kept` batches, and returns how many there were: the loss of power
    /// leaves a prefix of the log.
    pub fn crash_keeping(&self, kept: usize) -> usize {
        let mut state = self.state.lock();
        let count = state.unsynced.len();
        let lost = state.unsynced.iter().skip(kept);
        let lost: usize = lost.map(|batch| batch.changes().len()).sum();
        state.sequence -= lost as u64;
        state.unsynced.truncate(kept);
        state.sync();
        state.written = state.durable.clone();
        count
    }

    /// Batches that a crash would lose now.
    pub fn unsynced(&self) -> usize {
        self.state.lock().unsynced.len()
    }
}

impl State {
    fn sync(&mut self) {
        while let Some(batch) = self.unsynced.pop_front() {
            apply(&mut self.durable, batch.changes());
        }
    }
}

fn apply(contents: &mut Contents, changes: &[Change]) {
    for change in changes {
        let place = (change.space, change.key.clone());
        match &change.value {
            Some(value) => contents.insert(place, value.clone()),
            None => contents.remove(&place),
        };
    }
}

impl Store for MemoryStore {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let place = (space, Bytes::copy_from_slice(key));
        Ok(self.state.lock().written.get(&place).cloned())
    }

    fn get_cached(&self, space: Space, key: &[u8]) -> Result<Cached, StoreError> {
        self.get(space, key).map(Cached::Known)
    }

    fn write(&self, batch: Batch, sync: bool) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        apply(&mut state.written, batch.changes());
        state.sequence += batch.changes().len() as u64;
        state.unsynced.push_back(batch);
        if sync {
            state.sync();
        }
        Ok(())
    }

    fn write_at_once(&self, batch: &Batch) -> Result<bool, StoreError> {
        self.write(batch.clone(), false).map(|()| true)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.state.lock().sync();
        Ok(())
    }

    fn scan(&self, space: Space, range: KeyRange<'_>, limit: ScanLimit) -> Result<Page, StoreError> {
        let state = self.state.lock();
        let start = match range.0 {
            Bound::Included(key) | Bound::Excluded(key) => Bytes::copy_from_slice(key),
            Bound::Unbounded => Bytes::new(),
        };
        let mut page = Page {
            entries: Vec::new(),
            done: true,
        };
        let mut bytes = 0;
        let from_start = state
            .written
            .range((space, start)..)
            .take_while(|((place, _), _)| *place == space);
        for ((_, key), value) in from_start.filter(|((_, key), _)| inside(&range, key)) {
            if !page.entries.is_empty() && (page.entries.len() >= limit.entries || bytes >= limit.bytes) {
                page.done = false;
                break;
            }
            bytes += key.len() + value.len();
            page.entries.push((key.clone(), value.clone()));
        }
        Ok(page)
    }

    fn estimate(&self) -> Result<Estimate, StoreError> {
        let state = self.state.lock();
        let data = state
            .written
            .range((Space::Data, Bytes::new())..(Space::Epochs, Bytes::new()));
        Ok(data.fold(Estimate::default(), |sum, ((_, key), value)| Estimate {
            keys: sum.keys + 1,
            bytes: sum.bytes + (key.len() + value.len()) as u64,
        }))
    }

    fn health(&self) -> Result<Health, StoreError> {
        Ok(Health::default())
    }

    fn sequence(&self) -> u64 {
        self.state.lock().sequence
    }

    fn blocks(&self) -> bool {
        !self.immediate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(key: &'static [u8]) -> Batch {
        let mut batch = Batch::new();
        batch.put(Space::Data, key, &b"v"[..]);
        batch
    }

    #[test]
    fn a_crash_loses_what_was_not_synced_and_leaves_a_prefix() {
        let store = MemoryStore::new();
        store.write(batch(b"a"), true).unwrap();
        store.write(batch(b"b"), false).unwrap();
        store.write(batch(b"c"), false).unwrap();
        assert_eq!(store.unsynced(), 2);
        assert!(
            store.get(Space::Data, b"c").unwrap().is_some(),
            "read before it is synced"
        );
        assert_eq!(store.crash_keeping(1), 2);
        assert!(store.get(Space::Data, b"a").unwrap().is_some());
        assert!(store.get(Space::Data, b"b").unwrap().is_some());
        assert!(store.get(Space::Data, b"c").unwrap().is_none());

        store.write(batch(b"d"), false).unwrap();
        store.write(batch(b"e"), true).unwrap();
        store.crash();
        assert!(
            store.get(Space::Data, b"d").unwrap().is_some(),
            "an earlier write is synced with a later one"
        );
    }
}
