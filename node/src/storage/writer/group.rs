//! What a group of operations comes to: records as they will be, and one batch of all that changed.

use std::collections::BTreeMap;

use bytes::Bytes;
use dynamo_core::{replica::EpochEntry, version::KeyState};

use super::{
    WriteError,
    follow::{Before, RecordChange},
    operation::{Done, Expected, Swap},
};
use crate::storage::{Batch, Space, keys::Place};

/// What a group of operations has come to so far.
#[derive(Default)]
pub(super) struct Group {
    pub(super) records: BTreeMap<Place, Record>,
    pub(super) meta: Batch,
    pub(super) sync: bool,
    pub(super) operations: u64,
    pub(super) waiters: Vec<Done>,
    /// Bytes that its operations bring.
    pub(super) growth: u64,
}

/// A group of which nothing is left to be worked out.
pub(super) struct Ready {
    pub(super) batch: Batch,
    /// What a follower is to be told once the batch is written.
    pub(super) changes: Vec<RecordChange>,
    /// How many more records are marked than before.
    pub(super) more_marks: i64,
    pub(super) sync: bool,
    pub(super) operations: u64,
    pub(super) waiters: Vec<Done>,
}

/// One record within a group.
pub(super) struct Record {
    /// Its bytes in the store.
    stored: Before,
    /// As the group has left it so far.
    pub(super) state: Option<KeyState>,
    pub(super) changed: bool,
    pub(super) epoch: Epoch,
    stored_mark: Option<Bytes>,
    pub(super) mark: Option<Bytes>,
}

/// A record's epoch entry within a group.
pub(super) enum Epoch {
    /// Merges do not need it.
    NotRead,
    /// As the store has it, or has none.
    Stored(Option<EpochEntry>),
    /// By this group, which is to store it.
    Given(EpochEntry),
    /// By this group, with its record.
    Removed,
}

impl Epoch {
    pub(super) fn entry(&self) -> Option<&EpochEntry> {
        match self {
            Self::NotRead | Self::Removed | Self::Stored(None) => None,
            Self::Stored(Some(entry)) | Self::Given(entry) => Some(entry),
        }
    }
}

impl Record {
    /// As the store has it.
    pub(super) fn new(stored: Before, state: Option<KeyState>, mark: Option<Bytes>) -> Self {
        Self {
            stored,
            state,
            changed: false,
            epoch: Epoch::NotRead,
            stored_mark: mark.clone(),
            mark,
        }
    }

    /// Whether it is the one that was meant.
    pub(super) fn is(&self, expected: &Expected) -> bool {
        let Expected { digest, mark } = expected;
        self.state.as_ref().map(KeyState::digest) == Some(*digest) && (mark.is_none() || self.mark == *mark)
    }

    pub(super) fn swap(&mut self, swap: Swap) {
        match swap {
            Swap::Mark(mark) => self.mark = Some(mark),
            Swap::Unmark => self.mark = None,
            Swap::Replace(state) => self.set(Some(state)),
            Swap::Delete => {
                self.set(None);
                self.epoch = Epoch::Removed;
            }
        }
    }

    /// Puts another state in its place, and clears the mark.
    pub(super) fn set(&mut self, state: Option<KeyState>) {
        self.state = state;
        self.changed = true;
        self.mark = None;
    }
}

impl Group {
    /// Answers an operation that failed, or lets it wait for the commit.
    pub(super) fn finish(&mut self, result: Result<(), WriteError>, sync: bool, done: Done) {
        match result {
            Ok(()) => {
                self.sync |= sync;
                self.waiters.push(done);
            }
            Err(error) => drop(done.send(Err(error))),
        }
    }

    /// Everything that changed, as one batch: a record, its epoch entry and its mark are never apart.
    pub(super) fn ready(self) -> Ready {
        let more_marks =
            |record: &Record| i64::from(record.mark.is_some()) - i64::from(record.stored_mark.is_some());
        let mut ready = Ready {
            more_marks: self.records.values().map(more_marks).sum(),
            batch: self.meta,
            changes: Vec::new(),
            sync: self.sync,
            operations: self.operations,
            waiters: self.waiters,
        };
        for (place, record) in self.records {
            record.write(place, &mut ready.batch, &mut ready.changes);
        }
        ready
    }
}

impl Record {
    fn write(self, place: Place, batch: &mut Batch, changes: &mut Vec<RecordChange>) {
        let key = place.as_bytes().clone();
        match self.epoch {
            Epoch::NotRead | Epoch::Stored(_) => {}
            Epoch::Given(entry) => batch.put(Space::Epochs, key.clone(), entry.encode()),
            Epoch::Removed => batch.delete(Space::Epochs, key.clone()),
        }
        if self.mark != self.stored_mark {
            match &self.mark {
                Some(mark) => batch.put(Space::Marks, key.clone(), mark.clone()),
                None => batch.delete(Space::Marks, key.clone()),
            }
        }
        let mut after = match &self.stored {
            Before::Known(stored) => stored.clone(),
            Before::Unreadable => None,
        };
        if self.changed {
            after = self.state.as_ref().map(KeyState::encode);
            match &after {
                Some(state) => batch.put(Space::Data, key, state.clone()),
                None => batch.delete(Space::Data, key),
            }
        }
        let before = if self.stored_mark.is_some() {
            Before::Known(None)
        } else {
            self.stored
        };
        let after = after.filter(|_| self.mark.is_none());
        if !matches!(&before, Before::Known(known) if *known == after) {
            changes.push(RecordChange { place, before, after });
        }
    }
}
