//! Laws of the values themselves, and their bytes.

use dynamo_core::crdt::{
    DataType, FieldOperation, LeafOperation, LeafType, Operation, TypedUpdate, Value, resolve,
};
use dynamo_core::version::{Seen, Stamp};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

use super::replicas::{Replica, bytes, field, op_id, update};

const TYPES: [DataType; 5] = [
    DataType::Leaf(LeafType::Counter),
    DataType::Leaf(LeafType::Set),
    DataType::Leaf(LeafType::Flag),
    DataType::Leaf(LeafType::Register),
    DataType::Map,
];

#[derive(Debug, Clone)]
struct Written {
    node: usize,
    /// Picks the operation.
    choice: u8,
    /// The context is what this node shows, which may not be the one that writes.
    context_of: usize,
    op_id: Option<u64>,
    /// Which other nodes hear of it.
    reaches: u8,
}

fn leaf(leaf_type: LeafType, choice: u8) -> LeafOperation {
    let element = vec![bytes(["x", "y"][usize::from(choice / 2) % 2])];
    match (leaf_type, choice % 2) {
        (LeafType::Counter, _) => LeafOperation::Increment(i64::from(choice) - 100),
        (LeafType::Set, 0) => LeafOperation::Add(element),
        (LeafType::Set, _) => LeafOperation::Remove(element),
        (LeafType::Flag, 0) => LeafOperation::Enable,
        (LeafType::Flag, _) => LeafOperation::Disable,
        (LeafType::Register, _) => LeafOperation::Assign(bytes(&choice.to_string())),
    }
}

fn operation(data_type: DataType, choice: u8) -> Operation {
    let leaf_type = [
        LeafType::Counter,
        LeafType::Set,
        LeafType::Flag,
        LeafType::Register,
    ];
    match data_type {
        DataType::Leaf(leaf_type) => Operation::Leaf(leaf(leaf_type, choice)),
        DataType::Map => {
            let leaf_type = leaf_type[usize::from(choice / 4) % 4];
            let name = ["a", "b"][usize::from(choice / 16) % 2];
            Operation::Map(vec![if choice.is_multiple_of(5) {
                FieldOperation::Remove(field(leaf_type, name))
            } else {
                let (name, operation) = (bytes(name), leaf(leaf_type, choice));
                FieldOperation::Update { name, operation }
            }])
        }
    }
}

/// The values of four nodes after some writes that reached some of them.
fn values(data_type: DataType, writes: &[Written]) -> Vec<Value> {
    let mut nodes: Vec<Replica> = (0..4).map(|node| Replica::new(data_type, node)).collect();
    for (stamp, written) in writes.iter().enumerate() {
        let state = nodes[written.context_of].state();
        let context: Seen = state.context_seen();
        let request = TypedUpdate {
            context: Some(context),
            op_id: written.op_id.map(op_id),
            stamp: Stamp(stamp as u64),
            ..update(operation(data_type, written.choice))
        };
        let done = nodes[written.node].update(request).unwrap();
        for (_, other) in nodes
            .iter_mut()
            .enumerate()
            .filter(|(node, _)| written.reaches & (1 << node) != 0)
        {
            other.merge(&done.delta);
        }
    }
    nodes
        .iter()
        .map(|node| resolve(data_type, &node.state(), 0).unwrap())
        .collect()
}

fn written() -> impl Strategy<Value = Written> {
    (
        0..4usize,
        any::<u8>(),
        0..4usize,
        prop::option::of(0..6u64),
        0..16u8,
    )
        .prop_map(|(node, choice, context_of, op_id, reaches)| Written {
            node,
            choice,
            context_of,
            op_id,
            reaches,
        })
}

fn merged(a: &Value, b: &Value) -> Value {
    let mut merged = a.clone();
    merged.merge(b);
    merged
}

proptest! {
    #![proptest_config(Config {
        cases: if cfg!(debug_assertions) { 300 } else { 6_000 },
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0xc0_0002),
        ..Config::default()
    })]

    #[test]
    fn merging_values_is_idempotent_commutative_and_associative(
        choice in 0..TYPES.len(), writes in prop::collection::vec(written(), 1..24),
    ) {
        let values = values(TYPES[choice], &writes);
        let [a, b, c, d] = values.as_slice() else { unreachable!() };
        for (a, b, c) in [(a, b, c), (b, c, d), (d, a, b), (c, d, a)] {
            prop_assert_eq!(&merged(a, a), a);
            prop_assert_eq!(merged(a, b), merged(b, a));
            let (left, right) = (merged(&merged(a, b), c), merged(a, &merged(b, c)));
            prop_assert_eq!(left.encode(), right.encode());
            prop_assert_eq!(left.view(), right.view());
            prop_assert_eq!(&merged(a, &Value::new(TYPES[choice])), a);
            prop_assert!(left.seen().descends(a.seen()));
        }
    }

    #[test]
    fn values_are_read_as_they_were_written(
        choice in 0..TYPES.len(), writes in prop::collection::vec(written(), 1..24),
    ) {
        for value in values(TYPES[choice], &writes) {
            let bytes = value.encode();
            for data_type in TYPES {
                let decoded = Value::decode(bytes.clone(), data_type);
                if data_type == TYPES[choice] {
                    prop_assert_eq!(decoded.as_ref(), Ok(&value));
                } else {
                    prop_assert!(decoded.is_err());
                }
            }
        }
    }
}
