//! The single writer of a store, as `node/src/storage/writer` is: a queue, groups, one batch and one sync for each.
//!
//! One writer for records, one for hints. A coordinated write has its dot, and may leave, before its group is on disk.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use dynamo_core::bucket::Conflict;
use dynamo_core::coordinator::{Ack, FailureKind, ReplicaFailure};
use dynamo_core::crdt::{self, TypedUpdate};
use dynamo_core::reap::visible_to_exchange;
use dynamo_core::replica::{self, EpochEntry, Minter, SiblingCaps, Update};
use dynamo_core::types::Incarnation;
use dynamo_core::version::{Actor, KeyState, Seen};

use super::{Exit, Live};
use crate::buggify::Site;
use crate::disk::{Batch, DiskError, Place, Value};
use crate::invariants::{self, i17_last_write_wins};
use crate::keys::KeyIx;
use crate::knobs::Durability;
use crate::messages::NodeIx;
use crate::mistakes::Mistake;
use crate::shared::Timer;

/// Operations of one group at most.
const GROUP_MAX: usize = 64;
/// Operations that wait at most; the real shell's number.
pub const QUEUE_MAX: usize = 4096;
/// Siblings beyond which a write that adds one is refused.
pub const SIBLING_CAPS: SiblingCaps = SiblingCaps {
    siblings: 100,
    bytes: 8 << 20,
};

/// What is done when a write has ended.
pub type Done = Box<dyn FnOnce(&mut Live<'_>, Result<Ack, ReplicaFailure>)>;

/// A change that waits for its turn. It reads and writes through the [`Group`].
pub type Prepare = Box<dyn FnOnce(&mut Live<'_>, &mut Group) -> Result<(), ReplicaFailure>>;

/// What a client's write does to the record.
pub enum Intent {
    /// A value or a tombstone.
    Plain(Update),
    /// An operation on a value of a data type.
    Typed(TypedUpdate),
}

type Announcement = Box<dyn FnOnce(&mut Live<'_>)>;

struct Operation {
    prepare: Prepare,
    sync: bool,
    done: Done,
}

/// The queue and the group under way.
#[derive(Default)]
pub struct Writer {
    queue: VecDeque<Operation>,
    under_way: Option<Group>,
    /// States that are written and not synced, for the ledger.
    unsynced: Vec<(KeyIx, Rc<KeyState>)>,
}

/// Changes that become one batch.
#[derive(Default)]
pub struct Group {
    changes: BTreeMap<Place, Option<Value>>,
    sync: bool,
    waiters: Vec<Done>,
    /// What the group makes durable, for the ledger: also what was here already.
    brought: Vec<(KeyIx, Rc<KeyState>)>,
    /// What exchanges saw of the records before.
    before: Vec<(KeyIx, Option<Rc<KeyState>>)>,
    /// What happens once the group is on its way to the disk.
    announcements: Vec<Announcement>,
}

impl Writer {
    /// Takes what is on its way to the disk, for a crash to decide about.
    pub fn take_under_way(&mut self) -> Option<Batch> {
        let group = self.under_way.take()?;
        Some(Batch {
            changes: group.changes.into_iter().collect(),
        })
    }

    /// Operations that wait for their group.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Nothing waits.
    pub fn idle(&self) -> bool {
        self.queue.is_empty() && self.under_way.is_none()
    }
}

impl Group {
    /// Changes a record.
    pub fn set(&mut self, place: Place, value: Option<Value>) {
        self.changes.insert(place, value);
    }

    /// The group stores that state of a key, for the ledger.
    pub fn brings(&mut self, key: KeyIx, state: Rc<KeyState>) {
        self.brought.push((key, state));
    }

    /// Something to do as soon as the group is on its way.
    pub fn announce(&mut self, what: impl FnOnce(&mut Live<'_>) + 'static) {
        self.announcements.push(Box::new(what));
    }

    /// The group's answer is given after a sync.
    pub fn demand_sync(&mut self) {
        self.sync = true;
    }
}

impl Live<'_> {
    /// A record as the group has left it.
    pub fn in_group(&self, group: &Group, place: Place) -> Result<Option<Value>, DiskError> {
        if let Some(changed) = group.changes.get(&place) {
            return Ok(changed.clone());
        }
        let disk = if matches!(place, Place::Hint(..)) {
            &*self.hints
        } else {
            &*self.disk
        };
        Ok(disk.get(place)?.cloned())
    }

    /// A state as the group has left it.
    pub fn state_in_group(&self, group: &Group, place: Place) -> Result<Option<Rc<KeyState>>, DiskError> {
        match self.in_group(group, place) {
            Ok(Some(Value::State(state))) => Ok(Some(state)),
            Ok(_) => Ok(None),
            Err(_) if self.sh.knobs.mistake == Some(Mistake::ReadErrorIsAbsent) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Queues a change of the records (0) or the hints (1).
    pub fn enqueue(
        &mut self,
        writer: usize,
        sync: bool,
        prepare: impl FnOnce(&mut Live<'_>, &mut Group) -> Result<(), ReplicaFailure> + 'static,
        done: impl FnOnce(&mut Live<'_>, Result<Ack, ReplicaFailure>) + 'static,
    ) {
        self.p.writers[writer].queue.push_back(Operation {
            prepare: Box::new(prepare),
            sync,
            done: Box::new(done),
        });
        self.begin_group(writer);
    }

    /// Merges a state into the record, or into the hint for `hint_for`.
    pub fn merge(
        &mut self,
        key: KeyIx,
        state: Rc<KeyState>,
        hint_for: Option<NodeIx>,
        sync: bool,
        done: impl FnOnce(&mut Live<'_>, Result<Ack, ReplicaFailure>) + 'static,
    ) {
        let writer = usize::from(hint_for.is_some());
        let hint_for = hint_for.map(|owner| self.hint_owner(owner));
        self.enqueue(
            writer,
            sync,
            move |live, group| match hint_for {
                None => live.merge_record(group, key, &state),
                Some(owner) => live.merge_hint(group, owner, key, &state),
            },
            done,
        );
    }

    /// Ends a write that the node's own records took. While the store may yet be set aside as an old copy, the write is
    /// also kept as a hint for the node itself, if there is room.
    pub fn keep_for_itself(
        &mut self,
        key: KeyIx,
        delta: Rc<KeyState>,
        result: Result<Ack, ReplicaFailure>,
        done: impl FnOnce(&mut Live<'_>, Result<Ack, ReplicaFailure>) + 'static,
    ) {
        let Some(ack) = result.ok().filter(|_| self.doubtful()) else {
            done(self, result);
            return;
        };
        self.merge(key, delta, Some(self.me), true, move |live, kept| {
            done(
                live,
                match kept {
                    Ok(kept) => Ok(Ack {
                        durable: ack.durable && kept.durable,
                    }),
                    Err(failure) if failure.kind == FailureKind::Storage => Err(ReplicaFailure {
                        sent: true,
                        ..failure
                    }),
                    Err(_) => Ok(ack),
                },
            );
        });
    }

    /// Gives a write its dot; `prepared` is called before the write is on disk.
    pub fn coordinate(
        &mut self,
        key: KeyIx,
        intent: Intent,
        hint_for: Option<NodeIx>,
        sync: bool,
        prepared: impl FnOnce(&mut Live<'_>, replica::Coordinated) + 'static,
        done: impl FnOnce(&mut Live<'_>, Result<Ack, ReplicaFailure>) + 'static,
    ) {
        let writer = usize::from(hint_for.is_some());
        let hint_for = hint_for.map(|owner| self.hint_owner(owner));
        self.enqueue(
            writer,
            sync,
            move |live, group| {
                let coordinated = live.give_dot(group, key, intent, hint_for)?;
                group.announce(move |live| prepared(live, coordinated));
                Ok(())
            },
            done,
        );
    }

    fn give_dot(
        &mut self,
        group: &mut Group,
        key: KeyIx,
        intent: Intent,
        hint_for: Option<NodeIx>,
    ) -> Result<replica::Coordinated, ReplicaFailure> {
        self.admit(hint_for)?;
        let place = hint_for.map_or(Place::Data(key), |owner| Place::Hint(owner, key));
        if let Some(owner) = hint_for {
            self.within_budget(group, owner, key)?;
        }
        let stored = self
            .state_in_group(group, place)
            .map_err(|error| self.unreadable(key, error))?;
        let mut entry = match self.in_group(group, Place::Epoch(key)) {
            Ok(Some(Value::Epoch(entry))) => Some(entry),
            _ => None,
        };
        let stored = stored.as_deref();
        let refused = ReplicaFailure {
            sent: false,
            kind: FailureKind::Overloaded,
        };
        let mut plain = None;
        if self.sh.knobs.mistake == Some(Mistake::PlainCounters) {
            let (minter, known) = plain_counter(self.me, stored);
            plain = Some(minter);
            entry = Some(known);
        }
        let (entry, minter) = (entry.as_ref(), plain.as_mut().unwrap_or(&mut self.p.minter));
        let conflict = self.sh.keys.get(key).conflict;
        let wall_ms = self.clock.wall_ms(self.sh.now_us);
        let coordinated = match (intent, conflict.data_type()) {
            (Intent::Plain(update), _) if conflict == Conflict::Lww => {
                let done = replica::coordinate_lww(stored, entry, minter, update, wall_ms);
                if let Ok(done) = &done
                    && !done.replayed
                {
                    i17_last_write_wins::check_hidden(self.sh, stored, &done.delta, wall_ms);
                }
                done.map_err(|_| refused)?
            }
            (Intent::Plain(update), _) => replica::coordinate(stored, entry, minter, update, SIBLING_CAPS)
                .map_err(|_| {
                    self.sh.stats.capped += 1;
                    self.sh.stats.capped_keys |= 1_u64.checked_shl(key).unwrap_or(0);
                    refused
                })?,
            (Intent::Typed(update), Some(data_type)) => {
                crdt::coordinate(data_type, stored, entry, minter, update).map_err(|why| {
                    self.sh
                        .violated("I16", format!("key {key} refuses an operation: {why}"));
                    refused
                })?
            }
            (Intent::Typed(_), None) => return Err(refused),
        };
        self.touch(key);
        group.brings(key, Rc::new(coordinated.delta.clone()));
        if let Some(entry) = coordinated.entry {
            self.store_entry(group, key, entry, hint_for.is_some());
            group.set(place, Some(Value::State(Rc::new(coordinated.state.clone()))));
            if hint_for.is_none() {
                self.clear_mark(group, key);
            }
        }
        Ok(coordinated)
    }

    /// The entry lies with the records, whatever store the write goes to. It needs no sync of its own: after an unclean
    /// stop its incarnation is over.
    fn store_entry(&mut self, group: &mut Group, key: KeyIx, entry: EpochEntry, elsewhere: bool) {
        if elsewhere {
            let mut batch = Batch::default();
            batch.put(Place::Epoch(key), Value::Epoch(entry));
            self.disk.write(batch);
        } else {
            group.set(Place::Epoch(key), Some(Value::Epoch(entry)));
        }
    }

    fn merge_record(
        &mut self,
        group: &mut Group,
        key: KeyIx,
        state: &Rc<KeyState>,
    ) -> Result<(), ReplicaFailure> {
        self.admit(None)?;
        let place = Place::Data(key);
        let stored = self
            .state_in_group(group, place)
            .map_err(|error| self.unreadable(key, error))?;
        self.touch(key);
        self.clear_mark(group, key);
        group.brings(key, Rc::clone(state));
        if self.sh.knobs.mistake == Some(Mistake::IgnoreSeenInMerge) {
            let both = stored.iter().chain([state]).flat_map(|state| state.siblings());
            let mut union = KeyState::new();
            for (dot, sibling) in both {
                union.merge(&KeyState::from_write(&Seen::new(), *dot, sibling.clone()));
            }
            group.set(place, Some(Value::State(Rc::new(union))));
            return Ok(());
        }
        let overwrite = self.sh.knobs.mistake == Some(Mistake::OverwriteInsteadOfMerge);
        let mut merged = stored
            .as_deref()
            .filter(|_| !overwrite)
            .cloned()
            .unwrap_or_default();
        if merged.merge(state) || stored.is_none() {
            group.set(place, Some(Value::State(Rc::new(merged))));
        }
        Ok(())
    }

    fn merge_hint(
        &mut self,
        group: &mut Group,
        owner: NodeIx,
        key: KeyIx,
        state: &Rc<KeyState>,
    ) -> Result<(), ReplicaFailure> {
        self.admit(Some(owner))?;
        self.within_budget(group, owner, key)?;
        let place = Place::Hint(owner, key);
        let stored = self
            .state_in_group(group, place)
            .map_err(|error| self.unreadable(key, error))?;
        group.brings(key, Rc::clone(state));
        let merged = replica::merge(stored.as_deref().cloned(), state);
        if merged.changed {
            self.sh.stats.hints_kept += 1;
            group.set(place, Some(Value::State(Rc::new(merged.state))));
        }
        Ok(())
    }

    fn within_budget(&mut self, group: &Group, owner: NodeIx, key: KeyIx) -> Result<(), ReplicaFailure> {
        let place = Place::Hint(owner, key);
        let coming = group
            .changes
            .iter()
            .filter(|(place, value)| value.is_some() && self.hints.peek(**place).is_none());
        let held = self.hints.iter().count() + coming.count();
        let spent = self.sh.buggify.fires(Site::SpentHintBudget);
        if (held < self.sh.knobs.hints_max && !spent) || self.hints.peek(place).is_some() {
            return Ok(());
        }
        self.sh.stats.hints_declined += 1;
        Err(ReplicaFailure {
            sent: false,
            kind: FailureKind::Declined,
        })
    }

    fn admit(&mut self, hint_for: Option<NodeIx>) -> Result<(), ReplicaFailure> {
        let index = usize::from(hint_for.is_some());
        let queue_max = if self.sh.buggify.fires(Site::FullQueue) {
            1
        } else {
            QUEUE_MAX
        };
        let crowded = self.p.writers[index].queue.len() >= queue_max;
        let full = crowded
            || if hint_for.is_some() {
                self.hints.full
            } else {
                self.disk.full
            };
        if full {
            return Err(ReplicaFailure {
                sent: false,
                kind: FailureKind::Overloaded,
            });
        }
        Ok(())
    }

    fn unreadable(&mut self, key: KeyIx, error: DiskError) -> ReplicaFailure {
        if error == DiskError::Corrupt {
            self.refetch(key);
        }
        ReplicaFailure {
            sent: false,
            kind: FailureKind::Storage,
        }
    }

    fn touch(&mut self, key: KeyIx) {
        let position = self.sh.keys.get(key).position.as_bytes().clone();
        let now_ms = self.now_ms();
        self.p.quiet.touch(&position, now_ms);
    }

    fn clear_mark(&mut self, group: &mut Group, key: KeyIx) {
        if matches!(self.in_group(group, Place::Mark(key)), Ok(Some(_))) {
            group.set(Place::Mark(key), None);
        }
    }

    fn begin_group(&mut self, index: usize) {
        if self.p.writers[index].under_way.is_some() || self.p.writers[index].queue.is_empty() {
            return;
        }
        let most = if self.sh.buggify.fires(Site::TinyGroup) {
            1
        } else {
            GROUP_MAX
        };
        let waiting = self.p.writers[index].queue.len().min(most);
        let operations: Vec<Operation> = self.p.writers[index].queue.drain(..waiting).collect();
        let mut group = Group {
            sync: self.sh.knobs.durability == Durability::Every || index == 1,
            ..Group::default()
        };
        let mut failed = Vec::new();
        for Operation { prepare, sync, done } in operations {
            match prepare(self, &mut group) {
                Ok(()) => {
                    group.sync |= sync;
                    group.waiters.push(done);
                }
                Err(failure) => failed.push((done, failure)),
            }
        }
        let announcements = std::mem::take(&mut group.announcements);
        let sync = group.sync;
        let early = if self.sh.knobs.mistake == Some(Mistake::AckBeforeSync) {
            std::mem::take(&mut group.waiters)
        } else {
            Vec::new()
        };
        if index == 0 {
            group.before = self.before(&group);
        }
        self.p.writers[index].under_way = Some(group);
        let disk = if index == 1 { &*self.hints } else { &*self.disk };
        let begins_us = self.sh.now_us.max(disk.stalled_until_us);
        let takes_us = if sync { self.sh.knobs.sync_us } else { 20 };
        let slow_us = if sync { disk.slow_us } else { 0 };
        let at_us = begins_us + slow_us + takes_us / 2 + self.sh.rng_disk.below(takes_us);
        let (node, boot) = (self.me, self.p.boot);
        let timer = Timer::Written(index == 1);
        self.sh
            .queue
            .push(at_us, crate::shared::Event::Timer { node, boot, timer });
        for announcement in announcements {
            announcement(self);
        }
        for (done, failure) in failed {
            done(self, Err(failure));
        }
        for done in early {
            done(self, Ok(Ack { durable: true }));
        }
    }

    /// The group under way has reached the disk.
    pub fn written(&mut self, index: usize) {
        let Some(group) = self.p.writers[index].under_way.take() else {
            return;
        };
        let doubtful = self.doubtful();
        let disk = if index == 1 {
            &mut *self.hints
        } else {
            &mut *self.disk
        };
        let failing = disk.fail_sync && group.sync;
        if failing {
            disk.fail_sync = false;
            if self.sh.knobs.mistake != Some(Mistake::IgnoreFailedSync) {
                // Nothing is known about the batch; the process ends and opens the store anew.
                self.p.writers[index].under_way = Some(group);
                self.p.exit = Some(Exit::SyncFailed);
                return;
            }
        }
        let before = group.before;
        let batch = Batch {
            changes: group.changes.into_iter().collect(),
        };
        let disk = if index == 1 {
            &mut *self.hints
        } else {
            &mut *self.disk
        };
        // What a doubtful store holds is shown to nobody.
        for (place, value) in batch.changes.iter().filter(|_| !doubtful) {
            if let (Place::Data(key) | Place::Hint(_, key), Some(Value::State(state))) = (place, value) {
                invariants::on_record(self.sh, *key, state, self.me);
            }
        }
        if !batch.changes.is_empty() {
            disk.write(batch);
        }
        if group.sync && !failing {
            disk.sync();
        }
        let durable = disk.unsynced() == 0;
        self.p.writers[index].unsynced.extend(group.brought);
        if durable {
            self.note_synced(index);
        } else if let Durability::Interval(interval_ms) = self.sh.knobs.durability {
            self.timer(interval_ms, Timer::Sync);
        }
        self.update_trees(before);
        for done in group.waiters {
            done(
                self,
                Ok(Ack {
                    durable: durable || failing,
                }),
            );
        }
        self.begin_group(index);
    }

    /// The interval of a durability mode is over.
    pub fn sync_round(&mut self) {
        self.disk.sync();
        self.hints.sync();
        self.note_synced(0);
        self.note_synced(1);
    }

    /// Writes everything that waits, for a clean stop.
    pub fn drain(&mut self) {
        for _ in 0..1000 {
            let busy = (0..2).find(|index| !self.p.writers[*index].idle());
            match busy {
                Some(index) if self.p.writers[index].under_way.is_some() => self.written(index),
                Some(index) => self.begin_group(index),
                None => return,
            }
            if self.p.exit.is_some() {
                return;
            }
        }
    }

    /// Another life of the data, from the next write on.
    pub fn renew(&mut self, minter: Minter) {
        self.p.incarnation = minter.incarnation();
        self.p.minter = minter;
    }

    fn note_synced(&mut self, index: usize) {
        for (key, state) in std::mem::take(&mut self.p.writers[index].unsynced) {
            self.sh.ledger.synced(key, &state, self.me);
        }
    }

    /// What exchanges see of the records that a group changes, before it does.
    fn before(&self, group: &Group) -> Vec<(KeyIx, Option<Rc<KeyState>>)> {
        let mut keys: Vec<KeyIx> = group
            .changes
            .keys()
            .filter_map(|place| match place {
                Place::Data(key) | Place::Mark(key) => Some(*key),
                _ => None,
            })
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys.into_iter()
            .map(|key| (key, self.exchanged_state(key)))
            .collect()
    }

    /// A record as exchanges see it.
    pub fn exchanged_state(&self, key: KeyIx) -> Option<Rc<KeyState>> {
        let mark = self.mark_of(key);
        let state = self.disk.peek(Place::Data(key))?;
        visible_to_exchange(mark.as_ref()).then(|| Rc::clone(state))
    }

    fn update_trees(&mut self, before: Vec<(KeyIx, Option<Rc<KeyState>>)>) {
        for (key, old) in before {
            let new = self.exchanged_state(key);
            let same = match (&old, &new) {
                (Some(old), Some(new)) => Rc::ptr_eq(old, new),
                (None, None) => true,
                _ => false,
            };
            if !same {
                let position = &self.sh.keys.get(key).position;
                let (old, new) = (old.map(|state| state.encode()), new.map(|state| state.encode()));
                self.p.trees.changed(position, old.as_deref(), new.as_deref());
            }
        }
    }
}

/// The mistake: a node's name is for ever the same, and it counts on from what the record knows of it.
fn plain_counter(me: NodeIx, stored: Option<&KeyState>) -> (Minter, EpochEntry) {
    let id = me as u64 + 1;
    let actor = Actor {
        incarnation: id,
        epoch: 1,
    };
    let counter = stored.map_or(0, |stored| stored.seen().counter_max(actor));
    let minter = Minter::new(Incarnation { generation: 1, id }, 1);
    (minter, EpochEntry { actor, counter })
}
