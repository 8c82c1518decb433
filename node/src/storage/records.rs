//! Reading key states: what a `Get` of this node sees, and what a listing pages through.
//!
//! A record is stored as it travels, in [`KeyState::encode`]'s frame with its format version and checksum.

use std::{collections::BTreeSet, ops::Bound};

use bytes::Bytes;
use dynamo_core::{replica::EpochEntry, version::KeyState, wire::DecodeError};

use super::{
    ScanLimit, Space, Store, StoreError,
    keys::{DataKey, HashRange, KeyError, Place},
};

/// Marks are counted so many at a time.
const MARKS_PER_PAGE: usize = 1024;

/// A page of records.
#[derive(Debug, Clone)]
pub struct Records {
    /// Keys and states, ascending.
    pub entries: Vec<(DataKey, KeyState)>,
    /// The range holds nothing after the last entry.
    pub done: bool,
}

/// The state of a key, or none if this node holds nothing for it. May block on the disk.
///
/// # Errors
/// If the record cannot be read or is damaged: that is never the same as none.
pub fn read(store: &dyn Store, key: &DataKey) -> Result<Option<KeyState>, StoreError> {
    store
        .get(Space::Data, key.as_bytes())?
        .map(|value| decode(&key.into(), value))
        .transpose()
}

/// Whether there is a record in a range. May block on the disk.
///
/// # Errors
/// If the store cannot be read.
pub fn any(store: &dyn Store, range: &HashRange) -> Result<bool, StoreError> {
    let one = ScanLimit { entries: 1, bytes: 1 };
    Ok(!scan(store, range, one)?.entries.is_empty())
}

/// A key state out of its stored bytes.
///
/// # Errors
/// `Damaged` if they are not what was written.
pub fn decode(place: &Place, value: Bytes) -> Result<KeyState, StoreError> {
    KeyState::decode(value).map_err(|error| damaged("record", place, &error))
}

/// The epoch entry of a record, if this node ever coordinated it.
///
/// # Errors
/// As [`read`].
pub fn read_epoch(store: &dyn Store, place: &Place) -> Result<Option<EpochEntry>, StoreError> {
    let stored = store.get(Space::Epochs, place.as_bytes())?;
    stored.map(|value| decode_epoch(place, value)).transpose()
}

/// An epoch entry out of its stored bytes.
///
/// # Errors
/// `Damaged` if they are not what was written.
pub(crate) fn decode_epoch(place: &Place, value: Bytes) -> Result<EpochEntry, StoreError> {
    EpochEntry::decode(value).map_err(|error| damaged("epoch", place, &error))
}

/// The mark of a record that is about to be reaped.
///
/// # Errors
/// As [`read`].
pub fn read_mark(store: &dyn Store, place: &Place) -> Result<Option<Bytes>, StoreError> {
    store.get(Space::Marks, place.as_bytes())
}

/// How many records are marked.
///
/// # Errors
/// If the store cannot be read.
pub fn count_marks(store: &dyn Store) -> Result<u64, StoreError> {
    let limit = ScanLimit {
        entries: MARKS_PER_PAGE,
        bytes: usize::MAX,
    };
    let (mut count, mut from) = (0, Bound::Unbounded);
    loop {
        let page = store.scan(
            Space::Marks,
            (from.as_ref().map(Bytes::as_ref), Bound::Unbounded),
            limit,
        )?;
        count += page.entries.len() as u64;
        match page.entries.into_iter().last() {
            Some((key, _)) if !page.done => from = Bound::Excluded(key),
            _ => return Ok(count),
        }
    }
}

/// A page of records as they are stored.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// Data keys and encoded states, ascending, without those that are marked for reaping.
    pub records: Vec<(Bytes, Bytes)>,
    /// Where the next page begins: behind this data key. None: there is none.
    pub next: Option<Bytes>,
}

/// One page of a range, of which nothing is decoded. May block on the disk.
///
/// # Errors
/// If the store cannot be read.
pub fn stored(store: &dyn Store, range: &HashRange, limit: ScanLimit) -> Result<Stored, StoreError> {
    let page = store.scan(Space::Data, range.as_range(), limit)?;
    let next = page
        .entries
        .last()
        .filter(|_| !page.done)
        .map(|(key, _)| key.clone());
    let mut records = page.entries;
    if let (Some((first, _)), Some((last, _))) = (records.first(), records.last()) {
        let same = (Bound::Included(first.as_ref()), Bound::Included(last.as_ref()));
        // No more than there are records.
        let all = ScanLimit {
            entries: usize::MAX,
            bytes: usize::MAX,
        };
        let marks = store.scan(Space::Marks, same, all)?;
        let marked: BTreeSet<Bytes> = marks.entries.into_iter().map(|(key, _)| key).collect();
        records.retain(|(key, _)| !marked.contains(key));
    }
    Ok(Stored { records, next })
}

/// One page of a range. May block on the disk.
///
/// # Errors
/// If any of its records cannot be read or is damaged.
pub fn scan(store: &dyn Store, range: &HashRange, limit: ScanLimit) -> Result<Records, StoreError> {
    let page = store.scan(Space::Data, range.as_range(), limit)?;
    let record = |(key, value): (Bytes, Bytes)| {
        let key = DataKey::parse(key).map_err(|error| not_a_key(&error))?;
        let state = decode(&(&key).into(), value)?;
        Ok((key, state))
    };
    let entries = page
        .entries
        .into_iter()
        .map(record)
        .collect::<Result<_, StoreError>>()?;
    Ok(Records {
        entries,
        done: page.done,
    })
}

fn not_a_key(error: &KeyError) -> StoreError {
    StoreError::Damaged {
        attempted: "listing records".to_owned(),
        reason: error.to_string(),
    }
}

fn damaged(what: &str, place: &Place, error: &DecodeError) -> StoreError {
    StoreError::Damaged {
        attempted: format!("reading the {what} of the key with hash {}", place.hash()),
        reason: error.to_string(),
    }
}
