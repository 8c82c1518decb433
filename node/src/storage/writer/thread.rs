//! The writer's thread: takes a group of operations, works out what it changes, commits it, answers.

use std::{
    collections::btree_map::Entry,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use dynamo_core::{
    crdt,
    replica::{self, Coordinated},
    version::KeyState,
};
use tokio::sync::oneshot;

use super::{
    Committed, Durability, Shared, WriteError, WriterOptions,
    follow::{Before, Follower},
    group::{Epoch, Group, Record},
    mint::Mint,
    operation::{Announced, Expected, Intent, Operation, Preparation, Swap, Swapped},
    queue::Taken,
    room::Room,
};
use crate::{
    clock,
    storage::{Space, Store, StoreError, keys::Place, records},
};

pub(super) struct Thread {
    store: Arc<dyn Store>,
    mint: Mint,
    options: WriterOptions,
    follower: Option<Arc<dyn Follower>>,
    shared: Arc<Shared>,
    room: Room,
    /// Records that are marked, at least; mostly there are none, and so none to be looked for.
    marks: u64,
    /// When the oldest write was made that no sync covers.
    unsynced_since_ms: Option<u64>,
}

/// Runs until the queue is closed and empty, or the store fails.
pub(super) fn run(mut thread: Thread, failed: oneshot::Sender<StoreError>, ended: oneshot::Sender<()>) {
    let mut verdict = Verdict {
        shared: Arc::clone(&thread.shared),
        failed: Some(failed),
    };
    match thread.serve() {
        Ok(()) => {
            verdict.failed = None;
            // Whoever waits for the end may open the store again.
            drop(thread);
            let _ = ended.send(());
        }
        Err(error) => verdict.reach(error),
    }
}

/// A writer without a thread: whoever submits an operation carries it out.
pub(super) struct Here {
    /// None: it has ended.
    thread: Option<Thread>,
    verdict: Verdict,
    ended: Option<oneshot::Sender<()>>,
}

impl Here {
    pub(super) fn new(
        thread: Thread,
        failed: oneshot::Sender<StoreError>,
        ended: oneshot::Sender<()>,
    ) -> Self {
        let verdict = Verdict {
            shared: Arc::clone(&thread.shared),
            failed: Some(failed),
        };
        Self {
            thread: Some(thread),
            verdict,
            ended: Some(ended),
        }
    }

    /// Carries out all that waits.
    pub(super) fn serve(&mut self) {
        let Some(thread) = &mut self.thread else { return };
        match thread.serve_waiting() {
            Ok(false) => return,
            Ok(true) => self.verdict.failed = None,
            Err(error) => self.verdict.reach(error),
        }
        self.thread = None;
        if let (None, Some(ended)) = (&self.verdict.failed, self.ended.take()) {
            let _ = ended.send(());
        }
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
        mint: Mint,
        options: WriterOptions,
        follower: Option<Arc<dyn Follower>>,
        shared: Arc<Shared>,
    ) -> Self {
        let marks = records::count_marks(&*store).unwrap_or(u64::MAX);
        // What a store holds when it has been opened is durable.
        shared.synced.store(store.sequence(), Relaxed);
        Self {
            store,
            mint,
            room: Room::new(options.free_bytes_min),
            marks,
            options,
            follower,
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

    /// Like [`Thread::serve`] for what waits now; true once the queue is closed.
    fn serve_waiting(&mut self) -> Result<bool, StoreError> {
        loop {
            match self.shared.queue.take(Some(Duration::ZERO)) {
                Taken::Group(operations) => self.commit(operations)?,
                Taken::TimedOut => return self.sync().map(|()| false),
                Taken::Closed => return self.sync().map(|()| true),
            }
        }
    }

    /// How long the oldest unsynced write may still wait.
    fn wait(&self) -> Option<Duration> {
        let since = self.unsynced_since_ms?;
        let interval = match self.options.durability {
            Durability::Every => return Some(Duration::ZERO),
            Durability::Interval(interval) | Durability::OneOfN(interval) => interval,
        };
        Some(interval.saturating_sub(Duration::from_millis(clock::monotonic_ms().saturating_sub(since))))
    }

    fn commit(&mut self, operations: Vec<Operation>) -> Result<(), StoreError> {
        let mut group = Group::default();
        for operation in operations {
            self.prepare(operation, &mut group)?;
            group.operations += 1;
        }
        self.finish(group)
    }

    fn finish(&mut self, mut group: Group) -> Result<(), StoreError> {
        if group.operations == 0 {
            return Ok(());
        }
        let result = self.write(&mut group);
        if let Err(error) = &result {
            // Before the group's waiters are dropped, who then ask for the reason.
            self.shared.queue.fail(error.clone());
            return result;
        }
        let tally = &self.shared.tally;
        tally.groups.fetch_add(1, Relaxed);
        tally.operations.fetch_add(group.operations, Relaxed);
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
        let more_marks = group.more_marks();
        let (batch, changes) = group.changes();
        let sync = group.sync
            || self.options.durability == Durability::Every
            || self.wait().is_some_and(|wait| wait.is_zero());
        if batch.is_empty() {
            return if sync { self.sync() } else { Ok(()) };
        }
        let bytes = batch.bytes();
        self.store.write(batch, sync)?;
        self.marks = self.marks.saturating_add_signed(more_marks);
        self.room.wrote(bytes);
        self.shared.tally.bytes.fetch_add(bytes as u64, Relaxed);
        if sync {
            self.synced();
        } else {
            self.unsynced_since_ms.get_or_insert_with(clock::monotonic_ms);
        }
        if let Some(follower) = &self.follower {
            follower.committed(&changes);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        if self.unsynced_since_ms.is_some() {
            self.store.sync()?;
            self.synced();
        }
        Ok(())
    }

    /// Nobody else writes: all that is counted is synced.
    fn synced(&mut self) {
        self.unsynced_since_ms = None;
        self.shared.tally.syncs.fetch_add(1, Relaxed);
        self.shared.synced.store(self.store.sequence(), Relaxed);
    }

    fn prepare(&mut self, operation: Operation, group: &mut Group) -> Result<(), StoreError> {
        let bytes = operation.bytes() as u64;
        match operation {
            Operation::Coordinate {
                place,
                intent,
                sync,
                prepared,
            } => {
                let preparation = self
                    .admit(bytes, group)
                    .and_then(|()| self.coordinate(&place, intent, group));
                let sync = sync || matches!(self.options.durability, Durability::OneOfN(_));
                group.sync |= sync && preparation.is_ok();
                // A request that is gone no longer listens; its write goes on.
                let _ = prepared.send(preparation);
            }
            Operation::Merge {
                place,
                delta,
                sync,
                done,
            } => {
                let merged = self
                    .admit(bytes, group)
                    .and_then(|()| self.merge(&place, &delta, group));
                group.finish(merged, sync, done);
            }
            Operation::Swap {
                place,
                expected,
                swap,
                sync,
                swapped,
            } => {
                let result = self.swap(&place, &expected, swap, group);
                group.sync |= sync && matches!(result, Ok(Some(_)));
                let _ = swapped.send(result);
            }
            Operation::Repair { place, state, done } => {
                let repaired = self
                    .admit(bytes, group)
                    .and_then(|()| self.repair(&place, state, group));
                group.finish(repaired, true, done);
            }
            Operation::Meta {
                batch,
                sync,
                minter,
                done,
            } => {
                group.meta.append(batch);
                group.finish(Ok(()), sync, done);
                if let Some(minter) = minter {
                    self.mint.renew(minter);
                }
            }
            Operation::Look(look) => {
                // It finds all that was submitted before it.
                self.finish(std::mem::take(group))?;
                look(&*self.store);
            }
        }
        Ok(())
    }

    /// Whether there is room for so many bytes more.
    fn admit(&mut self, bytes: u64, group: &mut Group) -> Result<(), WriteError> {
        let tally = &self.shared.tally;
        if let Err(full) = self.room.check(&*self.store) {
            tally.disk_full.fetch_add(1, Relaxed);
            return Err(full);
        }
        let growth = group.growth + bytes;
        if self
            .follower
            .as_ref()
            .is_some_and(|follower| !follower.admits(growth))
        {
            tally.budget_spent.fetch_add(1, Relaxed);
            return Err(WriteError::BudgetSpent);
        }
        group.growth = growth;
        Ok(())
    }

    fn coordinate(&self, place: &Place, intent: Intent, group: &mut Group) -> Preparation {
        let record = self.record(place, group)?;
        if matches!(record.epoch, Epoch::NotRead) {
            let stored = records::read_epoch(&*self.store, place).map_err(|error| self.read_failed(error))?;
            record.epoch = Epoch::Stored(stored);
        }
        let (state, entry) = (record.state.as_ref(), record.epoch.entry());
        let caps = self.options.caps;
        let coordinated = self
            .mint
            .with(|minter| match intent {
                Intent::Siblings(update) => {
                    replica::coordinate(state, entry, minter, update, caps).map_err(WriteError::Refused)
                }
                Intent::Lww { update, wall_ms } => {
                    replica::coordinate_lww(state, entry, minter, update, wall_ms)
                        .map_err(WriteError::Refused)
                }
                Intent::Typed { data_type, update } => {
                    crdt::coordinate(data_type, state, entry, minter, update)
                        .map_err(WriteError::TypedRefused)
                }
            })
            .ok_or(WriteError::Stopped)??;
        let Coordinated {
            state,
            entry,
            dot,
            delta,
            replayed,
        } = coordinated;
        record.mark = None;
        match entry {
            Some(entry) => {
                record.set(Some(state));
                record.epoch = Epoch::Given(entry);
            }
            None => self.count_unchanged(),
        }
        self.arrived(place, record.state.as_ref());
        let (done, committed) = oneshot::channel();
        group.waiters.push(done);
        Ok((Announced { dot, delta, replayed }, committed))
    }

    fn merge(&self, place: &Place, delta: &KeyState, group: &mut Group) -> Result<(), WriteError> {
        let record = self.record(place, group)?;
        let merged = replica::merge(record.state.take(), delta);
        record.state = Some(merged.state);
        record.changed |= merged.changed;
        record.mark = None;
        self.arrived(place, record.state.as_ref());
        if !merged.changed {
            self.count_unchanged();
        }
        Ok(())
    }

    fn arrived(&self, place: &Place, state: Option<&KeyState>) {
        if let (Some(follower), Some(state)) = (&self.follower, state) {
            follower.arrived(place, state);
        }
    }

    fn swap(&self, place: &Place, expected: &Expected, swap: Swap, group: &mut Group) -> Swapped {
        let record = self.record(place, group)?;
        if !record.is(expected) {
            return Ok(None);
        }
        record.swap(swap);
        let (done, committed) = oneshot::channel();
        group.waiters.push(done);
        Ok(Some(committed))
    }

    /// Replaces a damaged record, or merges into one that is not.
    fn repair(&self, place: &Place, state: Option<KeyState>, group: &mut Group) -> Result<(), WriteError> {
        let found = self.record(place, group).map(drop);
        match (found, state) {
            (Ok(()), Some(state)) => self.merge(place, &state, group),
            (Ok(()), None) => Ok(()),
            (Err(WriteError::Read(StoreError::Damaged { .. })), state) => {
                let stored = self.store.get(Space::Data, place.as_bytes());
                let stored = stored.map_or(Before::Unreadable, Before::Known);
                let mark = records::read_mark(&*self.store, place).ok().flatten();
                let mut record = Record::new(stored, None, mark);
                // A count that is no longer known is not counted on: a new epoch begins.
                if state.is_none() || records::read_epoch(&*self.store, place).is_err() {
                    record.epoch = Epoch::Removed;
                }
                record.set(state);
                group.records.insert(place.clone(), record);
                self.shared.tally.repaired.fetch_add(1, Relaxed);
                Ok(())
            }
            (Err(error), _) => Err(error),
        }
    }

    /// The record as the group has left it so far; read from the store at its first use.
    fn record<'a>(&self, place: &Place, group: &'a mut Group) -> Result<&'a mut Record, WriteError> {
        match group.records.entry(place.clone()) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(vacant) => {
                let record = self.read(place).map_err(|error| self.read_failed(error))?;
                Ok(vacant.insert(record))
            }
        }
    }

    fn read(&self, place: &Place) -> Result<Record, StoreError> {
        let stored = self.store.get(Space::Data, place.as_bytes())?;
        let state = stored.clone().map(|value| records::decode(place, value));
        let mark = if self.marks > 0 {
            records::read_mark(&*self.store, place)?
        } else {
            None
        };
        Ok(Record::new(Before::Known(stored), state.transpose()?, mark))
    }

    fn read_failed(&self, error: StoreError) -> WriteError {
        self.shared.tally.read_errors.fetch_add(1, Relaxed);
        WriteError::Read(error)
    }

    fn count_unchanged(&self) {
        self.shared.tally.unchanged.fetch_add(1, Relaxed);
    }
}
