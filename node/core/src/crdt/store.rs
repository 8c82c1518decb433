//! What the data types are made of: marks under the dots of the writes that made them.
//!
//! Beside what a store holds stands the set of dots that its value has seen. A dot that was seen and has no mark any
//! more is gone; one that was not seen is still to come. So a store that has never heard of a write differs from one
//! whose write was removed, without tombstones. (Almeida, Shoker, Baquero: Delta state replicated data types, 2016.)

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bytes::Bytes;

use crate::types::OpId;
use crate::version::{Actor, Dot, Seen, Stamp};
use crate::wire::{DecodeError, Reader, put_bytes, put_varint};

/// Marks by dot, all of them in the value's `seen`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct DotMap<M>(BTreeMap<Dot, M>);

/// Stores by key; none of them is empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Keyed<K, S>(BTreeMap<K, S>);

/// What a register was set to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Assigned {
    pub(super) stamp: Stamp,
    pub(super) value: Bytes,
}

/// Anything that lives and dies by dots.
pub(super) trait Store: Sized + Clone {
    /// Keeps what both have, and what one has and the other has never seen.
    fn join(&mut self, seen: &Seen, other: &Self, other_seen: &Seen);
    /// Drops every mark whose dot is in `claims`.
    fn drop_covered(&mut self, claims: &Seen);
    /// True if no mark is left.
    fn is_empty(&self) -> bool;
    /// Appends the encoding.
    fn put(&self, out: &mut Vec<u8>, places: &Places);
}

/// What stands under a dot. The order breaks the tie between two marks under one dot, which only damage can make.
pub(super) trait Mark: Clone + Ord {
    const BYTES_MIN: usize;
    fn put(&self, out: &mut Vec<u8>);
    fn read(reader: &mut Reader) -> Result<Self, DecodeError>;
}

/// What stores are filed under.
pub(super) trait Key: Clone + Ord {
    fn put(&self, out: &mut Vec<u8>);
    fn read(reader: &mut Reader) -> Result<Self, DecodeError>;
}

/// The dots of a value, by which its marks are written in a few bytes each: place of the actor, counter.
pub(super) struct Places<'a> {
    seen: &'a Seen,
    actors: Vec<Actor>,
}

impl<'a> Places<'a> {
    pub(super) fn new(seen: &'a Seen) -> Self {
        Self {
            seen,
            actors: seen.actors().collect(),
        }
    }

    fn put(&self, out: &mut Vec<u8>, dot: Dot) {
        let place = self.actors.binary_search(&dot.actor).unwrap_or_default();
        put_varint(out, place as u64);
        put_varint(out, dot.counter);
    }

    fn read(&self, reader: &mut Reader) -> Result<Dot, DecodeError> {
        let place = usize::try_from(reader.varint()?).map_err(|_| DecodeError::Invalid("actor of a mark"))?;
        let dot = Dot {
            actor: *self
                .actors
                .get(place)
                .ok_or(DecodeError::Invalid("actor of a mark"))?,
            counter: reader.varint()?,
        };
        if self.seen.contains(&dot) {
            Ok(dot)
        } else {
            Err(DecodeError::Invalid("mark that was not seen"))
        }
    }
}

impl<M> Default for DotMap<M> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<M: Mark> DotMap<M> {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Dot, &M)> {
        self.0.iter()
    }

    pub(super) fn get(&self, dot: &Dot) -> Option<&M> {
        self.0.get(dot)
    }

    pub(super) fn insert(&mut self, dot: Dot, mark: M) {
        self.0.insert(dot, mark);
    }

    pub(super) fn remove(&mut self, dot: &Dot) -> Option<M> {
        self.0.remove(dot)
    }

    /// Drops all marks for one.
    pub(super) fn replace(&mut self, dot: Dot, mark: M) {
        self.0 = BTreeMap::from([(dot, mark)]);
    }

    pub(super) fn read(reader: &mut Reader, places: &Places) -> Result<Self, DecodeError> {
        let mut marks: BTreeMap<Dot, M> = BTreeMap::new();
        for _ in 0..reader.count(2 + M::BYTES_MIN)? {
            let dot = places.read(reader)?;
            if marks.last_key_value().is_some_and(|(last, _)| *last >= dot) {
                return Err(DecodeError::Invalid("order of marks"));
            }
            marks.insert(dot, M::read(reader)?);
        }
        Ok(Self(marks))
    }
}

impl<M: Mark> Store for DotMap<M> {
    fn join(&mut self, seen: &Seen, other: &Self, other_seen: &Seen) {
        self.0
            .retain(|dot, _| other.0.contains_key(dot) || !other_seen.contains(dot));
        for (dot, theirs) in &other.0 {
            match self.0.entry(*dot) {
                Entry::Vacant(entry) => {
                    if !seen.contains(dot) {
                        entry.insert(theirs.clone());
                    }
                }
                Entry::Occupied(mut entry) => {
                    if theirs > entry.get() {
                        entry.insert(theirs.clone());
                    }
                }
            }
        }
    }

    fn drop_covered(&mut self, claims: &Seen) {
        self.0.retain(|dot, _| !claims.contains(dot));
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn put(&self, out: &mut Vec<u8>, places: &Places) {
        put_varint(out, self.0.len() as u64);
        for (dot, mark) in &self.0 {
            places.put(out, *dot);
            mark.put(out);
        }
    }
}

impl<K, S> Default for Keyed<K, S> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Key, S: Store> Keyed<K, S> {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &S)> {
        self.0.iter()
    }

    /// Changes the store of a key, which is `empty` if there is none. An empty one is dropped afterwards.
    pub(super) fn change<R>(&mut self, key: &K, empty: S, change: impl FnOnce(&mut S) -> R) -> R {
        let store = self.0.entry(key.clone()).or_insert(empty);
        let result = change(store);
        if store.is_empty() {
            self.0.remove(key);
        }
        result
    }

    /// The stores, to be changed in ways that do not empty them.
    pub(super) fn stores_mut(&mut self) -> impl Iterator<Item = &mut S> {
        self.0.values_mut()
    }

    /// Drops what has become empty.
    pub(super) fn prune(&mut self) {
        self.0.retain(|_, store| !store.is_empty());
    }

    /// Drops the covered marks of one key.
    pub(super) fn drop_covered_of(&mut self, key: &K, claims: &Seen) {
        if let Some(store) = self.0.get_mut(key) {
            store.drop_covered(claims);
            if store.is_empty() {
                self.0.remove(key);
            }
        }
    }

    pub(super) fn read(
        reader: &mut Reader,
        read_store: impl Fn(&mut Reader, &K) -> Result<S, DecodeError>,
    ) -> Result<Self, DecodeError> {
        let mut stores: BTreeMap<K, S> = BTreeMap::new();
        for _ in 0..reader.count(2)? {
            let key = K::read(reader)?;
            if stores.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(DecodeError::Invalid("order of elements"));
            }
            let store = read_store(reader, &key)?;
            if store.is_empty() {
                return Err(DecodeError::Invalid("element without marks"));
            }
            stores.insert(key, store);
        }
        Ok(Self(stores))
    }
}

impl<K: Key, S: Store> Store for Keyed<K, S> {
    fn join(&mut self, seen: &Seen, other: &Self, other_seen: &Seen) {
        for (key, ours) in &mut self.0 {
            match other.0.get(key) {
                Some(theirs) => ours.join(seen, theirs, other_seen),
                None => ours.drop_covered(other_seen),
            }
        }
        for (key, theirs) in &other.0 {
            if let Entry::Vacant(entry) = self.0.entry(key.clone()) {
                let mut theirs = theirs.clone();
                theirs.drop_covered(seen);
                entry.insert(theirs);
            }
        }
        self.prune();
    }

    fn drop_covered(&mut self, claims: &Seen) {
        self.stores_mut().for_each(|store| store.drop_covered(claims));
        self.prune();
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn put(&self, out: &mut Vec<u8>, places: &Places) {
        put_varint(out, self.0.len() as u64);
        for (key, store) in &self.0 {
            key.put(out);
            store.put(out, places);
        }
    }
}

impl Mark for () {
    const BYTES_MIN: usize = 0;

    fn put(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut Reader) -> Result<Self, DecodeError> {
        Ok(())
    }
}

impl Mark for i64 {
    const BYTES_MIN: usize = 1;

    /// Zigzag: small amounts of either sign are short.
    fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, ((self << 1) ^ (self >> 63)) as u64);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let zigzag = reader.varint()?;
        Ok((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed())
    }
}

impl Mark for OpId {
    const BYTES_MIN: usize = 16;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        reader.array()
    }
}

impl Mark for Assigned {
    const BYTES_MIN: usize = 9;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.stamp.0.to_be_bytes());
        put_bytes(out, &self.value);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            stamp: Stamp(reader.fixed_u64()?),
            value: reader.bytes()?,
        })
    }
}

impl Key for Bytes {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(out, self);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        reader.bytes()
    }
}
