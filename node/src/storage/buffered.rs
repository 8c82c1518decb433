//! A [`Store`] behind a buffer in memory: writes return before they are in the log. Paper: §6.1 (the object buffer).
//!
//! ```text
//!   write, unsynced ─▶ buffer ──────────── sync, a synced write, or BYTES_MAX reached ──────────▶ inner store
//!   reads, pages ────▶ buffer, then inner store
//! ```
//!
//! Gives up one promise of [`Store`], the second half of rule 4: a batch that was written without sync is lost with the
//! *process*, not only with the power. What is lost is always the tail of what was written: the buffer goes into the
//! inner store as one batch. Whoever calls [`Store::sync`] on a timer, as the writer does, bounds the loss by its period.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::{
    Batch, Cached, Estimate, Health, KeyRange, Page, Run, ScanLimit, Space, Store, StoreCounters, StoreError,
    inside,
};

/// A store whose unsynced writes wait in memory.
#[derive(Debug)]
pub struct BufferedStore<S> {
    inner: S,
    /// Bytes of keys and values beyond which the buffer is written to the log.
    bytes_max: usize,
    buffer: RwLock<Buffer>,
    /// Held by whoever writes, so that the buffer need not be while the disk is busy: readers go on.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Buffer {
    /// In the order in which they were written.
    batch: Batch,
    /// What the batch comes to: the last value of each key, none if it was deleted.
    latest: BTreeMap<(Space, Bytes), Option<Bytes>>,
}

impl<S: Store> BufferedStore<S> {
    /// Puts a buffer of so many bytes before a store.
    pub fn new(inner: S, bytes_max: usize) -> Self {
        Self {
            inner,
            bytes_max,
            buffer: RwLock::default(),
            writing: Mutex::default(),
        }
    }

    /// Bytes of keys and values that a kill would lose now.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.read().batch.bytes()
    }

    /// Writes the buffer as one batch. Meanwhile its content is in the buffer or in both places, never in none, and
    /// nothing newer is in the inner store: a reader never sees half a batch. After an error the buffer stays.
    fn flush(&self, sync: bool) -> Result<(), StoreError> {
        let batch = self.buffer.read().batch.clone();
        self.inner.write(batch, sync)?;
        *self.buffer.write() = Buffer::default();
        Ok(())
    }
}

impl Buffer {
    /// What it says of a key; `OnDisk` if nothing.
    fn get(&self, space: Space, key: &[u8]) -> Cached {
        if self.latest.is_empty() {
            return Cached::OnDisk;
        }
        let place = (space, Bytes::copy_from_slice(key));
        self.latest
            .get(&place)
            .map_or(Cached::OnDisk, |value| Cached::Known(value.clone()))
    }

    fn add(&mut self, batch: Batch) {
        for change in batch.changes() {
            let place = (change.space, change.key.clone());
            self.latest.insert(place, change.value.clone());
        }
        self.batch.append(batch);
    }
}

impl<S: Store> Store for BufferedStore<S> {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let buffered = self.buffer.read().get(space, key);
        match buffered {
            Cached::Known(value) => Ok(value),
            // If the buffer is flushed now, the inner store has more than was asked for: what was written since.
            Cached::OnDisk => self.inner.get(space, key),
        }
    }

    fn get_cached(&self, space: Space, key: &[u8]) -> Result<Cached, StoreError> {
        let buffered = self.buffer.read().get(space, key);
        match buffered {
            Cached::Known(value) => Ok(Cached::Known(value)),
            Cached::OnDisk => self.inner.get_cached(space, key),
        }
    }

    fn write(&self, batch: Batch, sync: bool) -> Result<(), StoreError> {
        let _writing = self.writing.lock();
        let full = {
            let mut buffer = self.buffer.write();
            buffer.add(batch);
            buffer.batch.bytes() > self.bytes_max
        };
        if sync || full { self.flush(sync) } else { Ok(()) }
    }

    fn write_at_once(&self, batch: &Batch) -> Result<bool, StoreError> {
        let Some(_writing) = self.writing.try_lock() else {
            return Ok(false);
        };
        let mut buffer = self.buffer.write();
        let fits = buffer.batch.bytes() + batch.bytes() <= self.bytes_max;
        if fits {
            buffer.add(batch.clone());
        }
        Ok(fits)
    }

    fn sync(&self) -> Result<(), StoreError> {
        let _writing = self.writing.lock();
        if self.buffer.read().batch.is_empty() {
            self.inner.sync()
        } else {
            self.flush(true)
        }
    }

    fn scan(&self, space: Space, range: KeyRange<'_>, limit: ScanLimit) -> Result<Page, StoreError> {
        // Held over the whole page: a flush and a later batch in between could show one half of that batch.
        let buffer = self.buffer.read();
        if buffer.latest.is_empty() {
            return self.inner.scan(space, range, limit);
        }
        let start = match range.0 {
            Bound::Included(key) | Bound::Excluded(key) => Bytes::copy_from_slice(key),
            Bound::Unbounded => Bytes::new(),
        };
        let buffered = buffer
            .latest
            .range((space, start)..)
            .skip_while(|((_, key), _)| !inside(&range, key))
            .take_while(|((place, key), _)| *place == space && inside(&range, key));
        let mut buffered = buffered.map(|((_, key), value)| (key, value)).peekable();
        let mut inner = Pages::new(&self.inner, space, range, limit);
        let mut page = Page {
            entries: Vec::new(),
            done: true,
        };
        let mut bytes = 0;
        loop {
            let from_inner = inner.peek()?;
            let from_buffer = buffered.peek().copied();
            let entry = match (from_inner, from_buffer) {
                (None, None) => break,
                (Some(inner), Some((key, _))) if inner < key => None,
                (Some(_), None) => None,
                (same, Some(buffered)) => Some((same == Some(buffered.0), buffered)),
            };
            let (key, value) = match entry {
                None => match inner.take() {
                    Some(entry) => entry,
                    None => break,
                },
                Some((covered, (key, value))) => {
                    if covered {
                        inner.take();
                    }
                    buffered.next();
                    let Some(value) = value else { continue };
                    (key.clone(), value.clone())
                }
            };
            if !page.entries.is_empty() && (page.entries.len() >= limit.entries || bytes >= limit.bytes) {
                page.done = false;
                break;
            }
            bytes += key.len() + value.len();
            page.entries.push((key, value));
        }
        Ok(page)
    }

    fn write_run(
        &self,
        records: &mut dyn Iterator<Item = (Bytes, Bytes)>,
    ) -> Result<Option<Run>, StoreError> {
        self.inner.write_run(records)
    }

    fn take_in(&self, run: &Run) -> Result<Option<Vec<Bytes>>, StoreError> {
        // The inner store must know what is to stay.
        self.sync()?;
        self.inner.take_in(run)
    }

    fn estimate(&self) -> Result<Estimate, StoreError> {
        let mut estimate = self.inner.estimate()?;
        let buffer = self.buffer.read();
        for ((space, key), value) in &buffer.latest {
            if let (Space::Data, Some(value)) = (space, value) {
                estimate.keys += 1;
                estimate.bytes += (key.len() + value.len()) as u64;
            }
        }
        Ok(estimate)
    }

    /// What is only in the buffer has not come to the store.
    fn counters(&self) -> StoreCounters {
        self.inner.counters()
    }

    fn health(&self) -> Result<Health, StoreError> {
        let mut health = self.inner.health()?;
        health.memory_bytes += self.buffered_bytes() as u64;
        Ok(health)
    }

    fn sequence(&self) -> u64 {
        let _writing = self.writing.lock();
        self.inner.sequence() + self.buffer.read().batch.changes().len() as u64
    }
}

/// The entries of a range of the inner store, read page by page as they are needed.
struct Pages<'a, S> {
    store: &'a S,
    space: Space,
    range: KeyRange<'a>,
    limit: ScanLimit,
    last: Option<Bytes>,
    read: VecDeque<(Bytes, Bytes)>,
    done: bool,
}

impl<'a, S: Store> Pages<'a, S> {
    fn new(store: &'a S, space: Space, range: KeyRange<'a>, limit: ScanLimit) -> Self {
        Self {
            store,
            space,
            range,
            limit,
            last: None,
            read: VecDeque::new(),
            done: false,
        }
    }

    fn peek(&mut self) -> Result<Option<&Bytes>, StoreError> {
        if self.read.is_empty() && !self.done {
            let lower = self
                .last
                .as_ref()
                .map_or(self.range.0, |last| Bound::Excluded(last.as_ref()));
            let page = self.store.scan(self.space, (lower, self.range.1), self.limit)?;
            self.done = page.done;
            self.read = page.entries.into();
        }
        Ok(self.read.front().map(|(key, _)| key))
    }

    fn take(&mut self) -> Option<(Bytes, Bytes)> {
        let entry = self.read.pop_front()?;
        self.last = Some(entry.0.clone());
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::memory::MemoryStore, *};

    fn put(store: &dyn Store, key: &'static str, sync: bool) {
        let mut batch = Batch::new();
        batch.put(Space::Data, key.as_bytes(), &b"value"[..]);
        store.write(batch, sync).unwrap();
    }

    fn has(store: &dyn Store, key: &str) -> bool {
        store.get(Space::Data, key.as_bytes()).unwrap().is_some()
    }

    /// D42: a get sees what is not yet in the log; a kill loses that and nothing else.
    #[test]
    fn unsynced_writes_wait_in_memory_and_are_read_from_there() {
        let inner = MemoryStore::new();
        let store = BufferedStore::new(inner.clone(), 1000);
        put(&store, "a", false);
        put(&store, "b", false);
        assert!(has(&store, "a") && !has(&inner, "a"));
        assert_eq!(
            (store.buffered_bytes(), store.sequence(), inner.sequence()),
            (12, 2, 0)
        );
        store.sync().unwrap();
        assert_eq!(
            (store.buffered_bytes(), store.sequence(), inner.sequence()),
            (0, 2, 2)
        );
        assert_eq!((has(&inner, "a"), inner.unsynced()), (true, 0));
        put(&store, "c", false);
        assert!(has(&store, "c") && !has(&inner, "c"));
    }

    /// D34: what asks for a sync gets it, with everything before it.
    #[test]
    fn a_synced_write_takes_the_buffer_along() {
        let inner = MemoryStore::new();
        let store = BufferedStore::new(inner.clone(), 1000);
        put(&store, "a", false);
        put(&store, "b", true);
        inner.crash();
        assert!(has(&inner, "a") && has(&inner, "b"));
        assert_eq!(store.buffered_bytes(), 0);
    }

    #[test]
    fn a_full_buffer_is_written_to_the_log() {
        let inner = MemoryStore::new();
        let store = BufferedStore::new(inner.clone(), 12);
        put(&store, "a", false);
        put(&store, "b", false);
        assert!(!has(&inner, "a"));
        put(&store, "c", false);
        assert!(has(&inner, "a") && has(&inner, "c"));
        assert_eq!((store.buffered_bytes(), inner.unsynced()), (0, 1));
    }
}
