//! Takes a group of operations, works out what it changes, commits it, answers.

use std::{
    collections::btree_map::Entry,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use dynamo_core::{
    crdt,
    replica::{self, Coordinated},
    version::KeyState,
};
use tokio::sync::oneshot;

use super::{
    Committed, Durability, Shared, WriteError, WriterOptions,
    follow::{Before, Follower},
    group::{Epoch, Group, Ready, Record},
    mint::Mint,
    operation::{Announced, Expected, Intent, Operation, Preparation, Swap, Swapped},
    room::Room,
};
use crate::{
    clock,
    storage::{Cached, Space, Store, StoreError, keys::Place, records},
};

pub(super) struct Committer {
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
    /// Batches written without a sync.
    unsynced_batches: u64,
    /// Prepared by who must not wait for a disk, and not written.
    left: Option<Ready>,
}

/// What is to become of a group that was to be carried out without the disk.
pub(super) enum AtOnce {
    Done,
    /// These remain, and perhaps a batch that is ready to be written: for who may wait.
    HandOver(Vec<Operation>),
}

/// A sync that is due, to be made while others write.
pub(super) struct DueSync {
    pub(super) store: Arc<dyn Store>,
    pub(super) covers: Covered,
}

/// What a sync that begins now covers.
#[derive(Clone, Copy)]
pub(super) struct Covered {
    sequence: u64,
    unsynced_batches: u64,
    at_ms: u64,
}

/// What is looked for is not in memory, or is damaged: who may wait for the disk finds out.
struct NotAtHand;

impl From<StoreError> for NotAtHand {
    fn from(_: StoreError) -> Self {
        Self
    }
}

impl Committer {
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
            unsynced_batches: 0,
            left: None,
        }
    }

    /// How long the oldest unsynced write may still wait.
    pub(super) fn wait(&self) -> Option<Duration> {
        let since = self.unsynced_since_ms?;
        let interval = match self.options.durability {
            Durability::Every => return Some(Duration::ZERO),
            Durability::Interval(interval) | Durability::OneOfN(interval) => interval,
        };
        Some(interval.saturating_sub(Duration::from_millis(clock::monotonic_ms().saturating_sub(since))))
    }

    /// A sync, if it is time for one, or at once.
    pub(super) fn due_sync(&self, now: bool) -> Option<DueSync> {
        let wait = self.wait()?;
        (now || wait.is_zero()).then(|| DueSync {
            store: Arc::clone(&self.store),
            covers: self.covered(),
        })
    }

    fn covered(&self) -> Covered {
        Covered {
            sequence: self.store.sequence(),
            unsynced_batches: self.unsynced_batches,
            at_ms: clock::monotonic_ms(),
        }
    }

    /// A sync that began then has been made.
    pub(super) fn synced(&mut self, covers: Covered) {
        let newer = self.unsynced_batches > covers.unsynced_batches;
        self.unsynced_since_ms = newer.then_some(covers.at_ms);
        self.shared.tally.syncs.fetch_add(1, Relaxed);
        self.shared.synced.store(covers.sequence, Relaxed);
    }

    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        if self.unsynced_since_ms.is_some() {
            self.store.sync()?;
            self.synced(self.covered());
        }
        Ok(())
    }

    /// Carries out a group; waits for the disk, where that is needed.
    pub(super) fn commit(&mut self, operations: Vec<Operation>) -> Result<(), StoreError> {
        let mut group = Group::default();
        self.prepare_all(operations, &mut group)?;
        self.finish(group)
    }

    fn prepare_all(&mut self, operations: Vec<Operation>, group: &mut Group) -> Result<(), StoreError> {
        for operation in operations {
            self.prepare(operation, group)?;
            group.operations += 1;
        }
        Ok(())
    }

    fn finish(&mut self, group: Group) -> Result<(), StoreError> {
        if group.operations == 0 {
            return Ok(());
        }
        self.complete(group.ready())
    }

    /// Writes what a group that was carried out without the disk could not write.
    pub(super) fn complete_left(&mut self) -> Result<(), StoreError> {
        self.left.take().map_or(Ok(()), |ready| self.complete(ready))
    }

    fn complete(&mut self, mut ready: Ready) -> Result<(), StoreError> {
        let result = self.write(&mut ready);
        self.conclude(ready, result)
    }

    /// Writes a group's changes, and syncs if the mode or one of the group demands it.
    fn write(&mut self, ready: &mut Ready) -> Result<(), StoreError> {
        let sync = ready.sync || self.options.durability == Durability::Every;
        if ready.batch.is_empty() {
            return if sync { self.sync() } else { Ok(()) };
        }
        let batch = std::mem::take(&mut ready.batch);
        let bytes = batch.bytes();
        self.store.write(batch, sync)?;
        self.wrote(ready, bytes);
        if sync {
            self.synced(self.covered());
        }
        Ok(())
    }

    fn wrote(&mut self, ready: &Ready, bytes: usize) {
        self.marks = self.marks.saturating_add_signed(ready.more_marks);
        self.room.wrote(bytes);
        self.shared.tally.bytes.fetch_add(bytes as u64, Relaxed);
        self.unsynced_batches += 1;
        self.unsynced_since_ms.get_or_insert_with(clock::monotonic_ms);
        if let Some(follower) = &self.follower {
            follower.committed(&ready.changes);
        }
    }

    /// Answers a group's waiters.
    fn conclude(&self, ready: Ready, result: Result<(), StoreError>) -> Result<(), StoreError> {
        if let Err(error) = result {
            // Before the group's waiters are dropped, who then ask for the reason.
            self.shared.queue.fail(error.clone());
            return Err(error);
        }
        let tally = &self.shared.tally;
        tally.groups.fetch_add(1, Relaxed);
        tally.operations.fetch_add(ready.operations, Relaxed);
        let committed = Committed {
            durable: self.unsynced_since_ms.is_none(),
        };
        for waiter in ready.waiters {
            let _ = waiter.send(Ok(committed));
        }
        Ok(())
    }

    /// Carries out a group where nobody may wait for a disk. Whether anything is unsynced for the first time is in
    /// [`Committer::wait`].
    pub(super) fn commit_at_once(&mut self, operations: Vec<Operation>) -> Result<AtOnce, StoreError> {
        let mut group = Group::default();
        if !operations
            .iter()
            .all(|operation| self.at_hand(operation, &mut group))
        {
            return Ok(AtOnce::HandOver(operations));
        }
        self.prepare_all(operations, &mut group)?;
        let ready = group.ready();
        if ready.batch.is_empty() {
            return self.conclude(ready, Ok(())).map(|()| AtOnce::Done);
        }
        let result = match self.store.write_at_once(&ready.batch) {
            Ok(true) => {
                self.wrote(&ready, ready.batch.bytes());
                Ok(())
            }
            Ok(false) => {
                self.left = Some(ready);
                return Ok(AtOnce::HandOver(Vec::new()));
            }
            Err(error) => Err(error),
        };
        self.conclude(ready, result).map(|()| AtOnce::Done)
    }

    /// Whether an operation needs no disk: nothing of it is synced, and all that it reads is in memory, and now in the group.
    fn at_hand(&self, operation: &Operation, group: &mut Group) -> bool {
        let (place, coordinated) = match operation {
            Operation::Coordinate {
                place, sync: false, ..
            } => (place, true),
            Operation::Merge {
                place, sync: false, ..
            } => (place, false),
            _ => return false,
        };
        let look = |space| match self.store.get_cached(space, place.as_bytes()) {
            Ok(Cached::Known(value)) => Ok(value),
            Ok(Cached::OnDisk) | Err(_) => Err(NotAtHand),
        };
        let record = match group.records.entry(place.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) => match self.read(place, look) {
                Ok(record) => vacant.insert(record),
                Err(NotAtHand) => return false,
            },
        };
        !coordinated || read_epoch(place, record, look).is_ok()
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
        read_epoch(place, record, |space| self.store.get(space, place.as_bytes()))
            .map_err(|error| self.read_failed(error))?;
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
                let record = self.read(place, |space| self.store.get(space, place.as_bytes()));
                Ok(vacant.insert(record.map_err(|error| self.read_failed(error))?))
            }
        }
    }

    fn read<E: From<StoreError>>(
        &self,
        place: &Place,
        look: impl Fn(Space) -> Result<Option<Bytes>, E>,
    ) -> Result<Record, E> {
        let stored = look(Space::Data)?;
        let state = stored.clone().map(|value| records::decode(place, value));
        let mark = if self.marks > 0 { look(Space::Marks)? } else { None };
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

/// Reads a record's epoch entry, unless its group has it already.
fn read_epoch<E: From<StoreError>>(
    place: &Place,
    record: &mut Record,
    look: impl Fn(Space) -> Result<Option<Bytes>, E>,
) -> Result<(), E> {
    if matches!(record.epoch, Epoch::NotRead) {
        let stored = look(Space::Epochs)?;
        let entry = stored.map(|value| records::decode_epoch(place, value));
        record.epoch = Epoch::Stored(entry.transpose()?);
    }
    Ok(())
}
