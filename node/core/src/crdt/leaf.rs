//! Counter, set, flag and register: what a bucket's values, or the fields of a map, can be.

use bytes::Bytes;

use super::counter::{Counter, Overflow};
use super::operation::{LeafOperation, LeafType};
use super::store::{Assigned, DotMap, Keyed, Places, Store};
use super::value::View;
use crate::version::{Dot, Seen, Stamp};
use crate::wire::{DecodeError, Reader};

/// One value that is no map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Leaf {
    Counter(Counter),
    /// Elements with the dots of the writes that added them. An add beats a removal that has not seen it.
    Set(Keyed<Bytes, DotMap<()>>),
    /// The dots of the writes that enabled it. An enable beats a disable that has not seen it.
    Flag(DotMap<()>),
    /// An assignment replaces all that its coordinator knows; of concurrent ones the largest (stamp, dot) shows.
    Register(DotMap<Assigned>),
}

/// Who writes, and what is remembered of it.
pub(super) struct Writer<'a> {
    pub(super) dot: Dot,
    pub(super) stamp: Stamp,
    /// The write has an op id.
    pub(super) remember: bool,
    /// What the client has seen: all that a removal removes.
    pub(super) context: &'a Seen,
}

impl Leaf {
    pub(super) fn new(leaf_type: LeafType) -> Self {
        match leaf_type {
            LeafType::Counter => Self::Counter(Counter::default()),
            LeafType::Set => Self::Set(Keyed::default()),
            LeafType::Flag => Self::Flag(DotMap::default()),
            LeafType::Register => Self::Register(DotMap::default()),
        }
    }

    pub(super) fn leaf_type(&self) -> LeafType {
        match self {
            Self::Counter(_) => LeafType::Counter,
            Self::Set(_) => LeafType::Set,
            Self::Flag(_) => LeafType::Flag,
            Self::Register(_) => LeafType::Register,
        }
    }

    /// Applies an operation of this type; one of another type changes nothing.
    pub(super) fn apply(&mut self, operation: &LeafOperation, writer: &Writer) -> Result<(), Overflow> {
        match (self, operation) {
            (Self::Counter(counter), LeafOperation::Increment(amount)) => {
                counter.add(writer.dot, *amount, writer.remember)?;
            }
            (Self::Set(elements), LeafOperation::Add(added)) => {
                for element in added {
                    elements.change(element, DotMap::default(), |dots| dots.replace(writer.dot, ()));
                }
            }
            (Self::Set(elements), LeafOperation::Remove(removed)) => {
                for element in removed {
                    elements.drop_covered_of(element, writer.context);
                }
            }
            (Self::Flag(dots), LeafOperation::Enable) => dots.replace(writer.dot, ()),
            (Self::Flag(dots), LeafOperation::Disable) => dots.drop_covered(writer.context),
            (Self::Register(assigned), LeafOperation::Assign(value)) => {
                let (stamp, value) = (writer.stamp, value.clone());
                assigned.replace(writer.dot, Assigned { stamp, value });
            }
            _ => {}
        }
        Ok(())
    }

    /// Drops what a removal elsewhere has claimed: of one element, or of all.
    pub(super) fn drop_claimed(&mut self, element: Option<&Bytes>, claims: &Seen) {
        match (self, element) {
            (Self::Set(elements), Some(element)) => elements.drop_covered_of(element, claims),
            (_, Some(_)) => {}
            (leaf, None) => leaf.drop_covered(claims),
        }
    }

    pub(super) fn counter_mut(&mut self) -> Option<&mut Counter> {
        match self {
            Self::Counter(counter) => Some(counter),
            _ => None,
        }
    }

    pub(super) fn view(&self) -> View {
        match self {
            Self::Counter(counter) => View::Counter(counter.value()),
            Self::Set(elements) => View::Set(elements.iter().map(|(element, _)| element.clone()).collect()),
            Self::Flag(dots) => View::Flag(!dots.is_empty()),
            Self::Register(assigned) => {
                let last = assigned.iter().max_by_key(|(dot, one)| (one.stamp, **dot));
                View::Register(last.map(|(_, one)| one.value.clone()))
            }
        }
    }

    pub(super) fn read(
        reader: &mut Reader,
        leaf_type: LeafType,
        places: &Places,
    ) -> Result<Self, DecodeError> {
        Ok(match leaf_type {
            LeafType::Counter => Self::Counter(Counter::read(reader, places)?),
            LeafType::Set => Self::Set(Keyed::read(reader, |reader, _| DotMap::read(reader, places))?),
            LeafType::Flag => Self::Flag(DotMap::read(reader, places)?),
            LeafType::Register => Self::Register(DotMap::read(reader, places)?),
        })
    }
}

impl Store for Leaf {
    fn join(&mut self, seen: &Seen, other: &Self, other_seen: &Seen) {
        match (self, other) {
            (Self::Counter(ours), Self::Counter(theirs)) => ours.join(seen, theirs, other_seen),
            (Self::Set(ours), Self::Set(theirs)) => ours.join(seen, theirs, other_seen),
            (Self::Flag(ours), Self::Flag(theirs)) => ours.join(seen, theirs, other_seen),
            (Self::Register(ours), Self::Register(theirs)) => ours.join(seen, theirs, other_seen),
            // A decoder reads one type, and a field's name holds its type.
            _ => {}
        }
    }

    fn drop_covered(&mut self, claims: &Seen) {
        match self {
            Self::Counter(counter) => counter.drop_covered(claims),
            Self::Set(elements) => elements.drop_covered(claims),
            Self::Flag(dots) => dots.drop_covered(claims),
            Self::Register(assigned) => assigned.drop_covered(claims),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Counter(counter) => counter.is_empty(),
            Self::Set(elements) => elements.is_empty(),
            Self::Flag(dots) => dots.is_empty(),
            Self::Register(assigned) => assigned.is_empty(),
        }
    }

    fn put(&self, out: &mut Vec<u8>, places: &Places) {
        match self {
            Self::Counter(counter) => counter.put(out, places),
            Self::Set(elements) => elements.put(out, places),
            Self::Flag(dots) => dots.put(out, places),
            Self::Register(assigned) => assigned.put(out, places),
        }
    }
}
