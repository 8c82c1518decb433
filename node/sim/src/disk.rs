//! One node's disk: what programs read, and how much of it the loss of power takes back. Paper: §5, §7 of the store's rules.
//!
//! ```text
//!   write ──▶ visible map ──▶ log of batches, with what they replaced ──▶ sync: forgotten, for it is durable now
//!   loss of power: undo from the newest batch back to a random place: what is left is a prefix
//! ```
//!
//! A torn last record is a batch that is not in the prefix: the log's checksum ends it there. The death of the process
//! alone undoes nothing but the batch that was being written.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use dynamo_core::replica::EpochEntry;
use dynamo_core::version::KeyState;

use crate::keys::KeyIx;
use crate::rng::Rng;

/// What a record is stored under.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// A key's state.
    Data(KeyIx),
    /// The node's own epoch entry for a key.
    Epoch(KeyIx),
    /// The mark of a reaping for a key.
    Mark(KeyIx),
    /// A named record.
    Meta(&'static str),
    /// A hint for that member, of that key.
    Hint(usize, KeyIx),
}

/// What is stored.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// A key's state. Shared, never changed in place.
    State(Rc<KeyState>),
    /// An epoch entry.
    Epoch(EpochEntry),
    /// Bytes in the core's own encoding.
    Bytes(Bytes),
}

/// Why the disk did not do what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskError {
    /// The record's checksum is wrong.
    Corrupt,
    /// The device reports an error.
    Read,
}

/// Records that are written as one.
#[derive(Clone, Default, Debug)]
pub struct Batch {
    /// `None` deletes.
    pub changes: Vec<(Place, Option<Value>)>,
}

/// A disk with its contents.
#[derive(Clone, Default, Debug)]
pub struct Disk {
    visible: BTreeMap<Place, Value>,
    /// Batches that no sync covers, oldest first, each with what it replaced.
    unsynced: VecDeque<Vec<(Place, Option<Value>)>>,
    /// Records whose bytes are damaged.
    corrupt: BTreeSet<Place>,
    /// Batches written since the disk was new.
    pub sequence: u64,
    /// Every read fails.
    pub read_errors: bool,
    /// The next sync fails.
    pub fail_sync: bool,
    /// No room: the node refuses writes at its watermark.
    pub full: bool,
    /// What each sync takes in addition.
    pub slow_us: u64,
    /// Until then nothing gets done.
    pub stalled_until_us: u64,
}

impl Batch {
    /// Adds a record.
    pub fn put(&mut self, place: Place, value: Value) {
        self.changes.push((place, Some(value)));
    }

    /// Removes a record.
    pub fn delete(&mut self, place: Place) {
        self.changes.push((place, None));
    }
}

impl Disk {
    /// Reads a record; an error is never "not there".
    pub fn get(&self, place: Place) -> Result<Option<&Value>, DiskError> {
        if self.read_errors && matches!(place, Place::Data(_)) {
            return Err(DiskError::Read);
        }
        if self.corrupt.contains(&place) {
            return Err(DiskError::Corrupt);
        }
        Ok(self.visible.get(&place))
    }

    /// A key's state.
    pub fn state(&self, place: Place) -> Result<Option<Rc<KeyState>>, DiskError> {
        Ok(match self.get(place)? {
            Some(Value::State(state)) => Some(Rc::clone(state)),
            _ => None,
        })
    }

    /// A key's state past all faults: for the oracle.
    pub fn peek(&self, place: Place) -> Option<&Rc<KeyState>> {
        match self.visible.get(&place) {
            Some(Value::State(state)) if !self.corrupt.contains(&place) => Some(state),
            _ => None,
        }
    }

    /// Bytes of a named record.
    pub fn bytes(&self, name: &'static str) -> Option<Bytes> {
        match self.visible.get(&Place::Meta(name)) {
            Some(Value::Bytes(bytes)) => Some(bytes.clone()),
            _ => None,
        }
    }

    /// All records, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Place, &Value)> {
        self.visible.iter()
    }

    /// The records of a range of places.
    pub fn range(&self, first: Place, end: Place) -> impl Iterator<Item = (&Place, &Value)> {
        self.visible.range(first..end)
    }

    /// True if a record is damaged.
    pub fn is_corrupt(&self, place: Place) -> bool {
        self.corrupt.contains(&place)
    }

    /// The damaged records.
    pub fn corrupted(&self) -> impl Iterator<Item = &Place> {
        self.corrupt.iter()
    }

    /// Writes a batch; it is visible at once and durable with the next [`sync`](Self::sync).
    pub fn write(&mut self, batch: Batch) {
        let mut undo = Vec::with_capacity(batch.changes.len());
        for (place, value) in batch.changes {
            self.corrupt.remove(&place);
            let before = match value {
                Some(value) => self.visible.insert(place, value),
                None => self.visible.remove(&place),
            };
            undo.push((place, before));
        }
        self.unsynced.push_back(undo);
        self.sequence += 1;
    }

    /// Makes everything written so far durable.
    pub fn sync(&mut self) {
        self.unsynced.clear();
    }

    /// Batches that the loss of power cannot take.
    pub fn synced(&self) -> u64 {
        self.sequence - self.unsynced.len() as u64
    }

    /// Batches that the loss of power may take.
    pub fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    /// The power is lost: of the unsynced batches a random prefix is left. Returns how many are gone.
    pub fn lose_power(&mut self, rng: &mut Rng) -> usize {
        let kept = rng.index(self.unsynced.len() + 1);
        let mut gone = 0;
        while self.unsynced.len() > kept {
            if let Some(undo) = self.unsynced.pop_back() {
                gone += 1;
                self.sequence -= 1;
                for (place, before) in undo.into_iter().rev() {
                    match before {
                        Some(value) => self.visible.insert(place, value),
                        None => self.visible.remove(&place),
                    };
                }
            }
        }
        self.sync();
        gone
    }

    /// A copy of what is durable now.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        let mut copy = self.clone();
        for undo in std::mem::take(&mut copy.unsynced).into_iter().rev() {
            copy.sequence -= 1;
            for (place, before) in undo.into_iter().rev() {
                match before {
                    Some(value) => copy.visible.insert(place, value),
                    None => copy.visible.remove(&place),
                };
            }
        }
        copy
    }

    /// Damages a record, if it is there.
    pub fn corrupt(&mut self, place: Place) -> bool {
        let found = self.visible.contains_key(&place);
        if found {
            self.corrupt.insert(place);
        }
        found
    }
}
