//! The writer's thread: takes a group of operations, works out what it changes, commits it, answers.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use dynamo_core::{
    replica::{self, Coordinated, EpochEntry, Minter, Update},
    version::KeyState,
};
use tokio::sync::oneshot;

use super::{
    Announced, Committed, Done, Durability, Operation, Preparation, Shared, WriteError, WriterOptions,
    queue::Taken,
};
use crate::{
    clock,
    storage::{Batch, DataKey, Space, Store, StoreError, records},
};

pub(super) struct Thread {
    store: Arc<dyn Store>,
    minter: Minter,
    options: WriterOptions,
    shared: Arc<Shared>,
    /// When the oldest write was made that no sync covers.
    unsynced_since_ms: Option<u64>,
}

/// Runs until the queue is closed and empty, or the store fails.
pub(super) fn run(mut thread: Thread, failed: oneshot::Sender<StoreError>, ended: oneshot::Sender<Minter>) {
    let mut verdict = Verdict {
        shared: Arc::clone(&thread.shared),
        failed: Some(failed),
    };
    match thread.serve() {
        Ok(()) => {
            verdict.failed = None;
            let Thread { store, minter, .. } = thread;
            // Whoever waits for the end may open the store again.
            drop(store);
            let _ = ended.send(minter);
        }
        Err(error) => verdict.reach(error),
    }
}

/// Reports the failure, also if the thread panics.
struct Verdict {
    shared: Arc<Shared>,
    failed: Option<oneshot::Sender<StoreError>>,
}

impl Verdict {
    fn reach(&mut self, error: StoreError) {
        self.shared.queue.fail(error.clone());
        if let Some(failed) = self.failed.take() {
            let _ = failed.send(error);
        }
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        if self.failed.is_some() {
            let (attempted, reason) = ("writing".to_owned(), "the writer's thread panicked".to_owned());
            self.reach(StoreError::Io { attempted, reason });
        }
    }
}

impl Thread {
    pub(super) fn new(
        store: Arc<dyn Store>,
        minter: Minter,
        options: WriterOptions,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            store,
            minter,
            options,
            shared,
            unsynced_since_ms: None,
        }
    }

    fn serve(&mut self) -> Result<(), StoreError> {
        loop {
            match self.shared.queue.take(self.wait()) {
                Taken::Group(operations) => self.commit(operations)?,
                Taken::TimedOut => self.sync()?,
                Taken::Closed => return self.sync(),
            }
        }
    }

    /// How long the oldest unsynced write may still wait.
    fn wait(&self) -> Option<Duration> {
        let since = self.unsynced_since_ms?;
        let Durability::Interval(interval) = self.options.durability else {
            return Some(Duration::ZERO);
        };
        Some(interval.saturating_sub(Duration::from_millis(clock::monotonic_ms().saturating_sub(since))))
    }

    fn commit(&mut self, operations: Vec<Operation>) -> Result<(), StoreError> {
        let count = operations.len() as u64;
        let mut group = Group::default();
        for operation in operations {
            self.prepare(operation, &mut group);
        }
        let result = self.write(&mut group);
        if let Err(error) = &result {
            // Before the group's waiters are dropped, who then ask for the reason.
            self.shared.queue.fail(error.clone());
            return result;
        }
        let tally = &self.shared.tally;
        tally.groups.fetch_add(1, Relaxed);
        tally.operations.fetch_add(count, Relaxed);
        let committed = Committed {
            durable: self.unsynced_since_ms.is_none(),
        };
        for waiter in group.waiters {
            let _ = waiter.send(Ok(committed));
        }
        Ok(())
    }

    /// Writes the group's changes, and syncs if the mode, one of the group, or time demands it.
    fn write(&mut self, group: &mut Group) -> Result<(), StoreError> {
        let batch = group.changes();
        let sync = group.sync
            || self.options.durability == Durability::Every
            || self.wait().is_some_and(|wait| wait.is_zero());
        if batch.is_empty() {
            return if sync { self.sync() } else { Ok(()) };
        }
        let tally = &self.shared.tally;
        tally.bytes.fetch_add(batch.bytes() as u64, Relaxed);
        self.store.write(batch, sync)?;
        if sync {
            tally.syncs.fetch_add(1, Relaxed);
            self.unsynced_since_ms = None;
        } else {
            self.unsynced_since_ms.get_or_insert_with(clock::monotonic_ms);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        if self.unsynced_since_ms.is_some() {
            self.store.sync()?;
            self.shared.tally.syncs.fetch_add(1, Relaxed);
            self.unsynced_since_ms = None;
        }
        Ok(())
    }

    fn prepare(&mut self, operation: Operation, group: &mut Group) {
        match operation {
            Operation::Coordinate {
                key,
                update,
                sync,
                prepared,
            } => {
                let preparation = self.coordinate(&key, update, group);
                group.sync |= sync && preparation.is_ok();
                // A request that is gone no longer listens; its write goes on.
                let _ = prepared.send(preparation);
            }
            Operation::Merge {
                key,
                delta,
                sync,
                done,
            } => match self.merge(&key, &delta, group) {
                Ok(()) => {
                    group.sync |= sync;
                    group.waiters.push(done);
                }
                Err(error) => drop(done.send(Err(error))),
            },
            Operation::Meta {
                batch,
                sync,
                minter,
                done,
            } => {
                group.meta.append(batch);
                group.sync |= sync;
                group.waiters.push(done);
                if let Some(minter) = minter {
                    self.minter = minter;
                }
            }
        }
    }

    fn coordinate(&mut self, key: &DataKey, update: Update, group: &mut Group) -> Preparation {
        let record = self.record(key, group)?;
        if matches!(record.epoch, Epoch::NotRead) {
            let stored = records::read_epoch(&*self.store, key).map_err(|error| self.read_failed(error))?;
            record.epoch = Epoch::Stored(stored);
        }
        let (state, entry) = (record.state.as_ref(), record.epoch.entry());
        let siblings_max = self.options.siblings_max;
        let coordinated = replica::coordinate(state, entry, &mut self.minter, update, siblings_max)
            .map_err(WriteError::Refused)?;
        let Coordinated {
            state,
            entry,
            dot,
            delta,
            replayed,
        } = coordinated;
        match entry {
            Some(entry) => {
                record.state = Some(state);
                record.state_changed = true;
                record.epoch = Epoch::Given(entry);
            }
            None => self.count_unchanged(),
        }
        let (done, committed) = oneshot::channel();
        group.waiters.push(done);
        Ok((Announced { dot, delta, replayed }, committed))
    }

    fn merge(&self, key: &DataKey, delta: &KeyState, group: &mut Group) -> Result<(), WriteError> {
        let record = self.record(key, group)?;
        let merged = replica::merge(record.state.take(), delta);
        record.state = Some(merged.state);
        record.state_changed |= merged.changed;
        if !merged.changed {
            self.count_unchanged();
        }
        Ok(())
    }

    /// The record as the group has left it so far; read from the store at its first use.
    fn record<'a>(&self, key: &DataKey, group: &'a mut Group) -> Result<&'a mut Record, WriteError> {
        match group.records.entry(key.clone()) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => {
                let state = records::read(&*self.store, key).map_err(|error| self.read_failed(error))?;
                Ok(place.insert(Record {
                    state,
                    ..Record::default()
                }))
            }
        }
    }

    fn read_failed(&self, error: StoreError) -> WriteError {
        self.shared.tally.read_errors.fetch_add(1, Relaxed);
        WriteError::Read(error)
    }

    fn count_unchanged(&self) {
        self.shared.tally.unchanged.fetch_add(1, Relaxed);
    }
}

/// What a group of operations has come to so far.
#[derive(Default)]
struct Group {
    records: BTreeMap<DataKey, Record>,
    meta: Batch,
    sync: bool,
    waiters: Vec<Done>,
}

/// One record within a group.
#[derive(Default)]
struct Record {
    state: Option<KeyState>,
    state_changed: bool,
    epoch: Epoch,
}

/// A record's epoch entry within a group.
#[derive(Default)]
enum Epoch {
    /// Merges do not need it.
    #[default]
    NotRead,
    /// As the store has it, or has none.
    Stored(Option<EpochEntry>),
    /// By this group, which is to store it.
    Given(EpochEntry),
}

impl Epoch {
    fn entry(&self) -> Option<&EpochEntry> {
        match self {
            Self::NotRead | Self::Stored(None) => None,
            Self::Stored(Some(entry)) | Self::Given(entry) => Some(entry),
        }
    }
}

impl Group {
    /// Everything that changed, as one batch: a record and its epoch entry are never apart.
    fn changes(&mut self) -> Batch {
        let mut batch = std::mem::take(&mut self.meta);
        for (key, record) in &self.records {
            if let (true, Some(state)) = (record.state_changed, &record.state) {
                batch.put(Space::Data, key.as_bytes().clone(), state.encode());
            }
            if let Epoch::Given(entry) = &record.epoch {
                batch.put(Space::Epochs, key.as_bytes().clone(), entry.encode());
            }
        }
        batch
    }
}
