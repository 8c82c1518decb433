//! What clients do to values of data types: few elements and fields, so that they meet.

use bytes::Bytes;
use dynamo_core::crdt::{DataType, Field, FieldOperation, LeafOperation, LeafType, Operation};

use crate::rng::Rng;

const ELEMENTS: u64 = 4;

/// An operation of a write of that number; `seen`: its client has read the key and may remove what it saw.
pub fn draw(rng: &mut Rng, data_type: DataType, number: u32, seen: bool) -> Operation {
    match data_type {
        DataType::Leaf(leaf_type) => Operation::Leaf(leaf(rng, leaf_type, number, seen)),
        DataType::Map => {
            let first = rng.below(4);
            let parts = (first..=first + rng.below(3)).map(|place| part(rng, place % 4, number, seen));
            Operation::Map(parts.collect())
        }
    }
}

/// A field of each type. Counters are not removed: what a removal leaves of one depends on who added what where.
fn part(rng: &mut Rng, place: u64, number: u32, seen: bool) -> FieldOperation {
    let leaf_type = [
        LeafType::Counter,
        LeafType::Set,
        LeafType::Flag,
        LeafType::Register,
    ][place as usize];
    let name = Bytes::from_static(b"field");
    if seen && leaf_type != LeafType::Counter && rng.per_mille(250) {
        return FieldOperation::Remove(Field { leaf_type, name });
    }
    let operation = leaf(rng, leaf_type, number, seen);
    FieldOperation::Update { name, operation }
}

fn leaf(rng: &mut Rng, leaf_type: LeafType, number: u32, seen: bool) -> LeafOperation {
    let removes = seen && rng.coin();
    match leaf_type {
        LeafType::Counter => LeafOperation::Increment(rng.between(1, 1000).cast_signed() - 200),
        LeafType::Set => {
            let mut elements: Vec<u64> = (0..ELEMENTS).filter(|_| rng.coin()).collect();
            if elements.is_empty() {
                elements.push(rng.below(ELEMENTS));
            }
            let elements = elements
                .into_iter()
                .map(|one| Bytes::copy_from_slice(&one.to_be_bytes()))
                .collect();
            if removes {
                LeafOperation::Remove(elements)
            } else {
                LeafOperation::Add(elements)
            }
        }
        LeafType::Flag if removes => LeafOperation::Disable,
        LeafType::Flag => LeafOperation::Enable,
        LeafType::Register => LeafOperation::Assign(Bytes::copy_from_slice(&number.to_be_bytes())),
    }
}
