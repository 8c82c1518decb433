//! Nodes that hold one record, without networks in between.

use bytes::Bytes;
use dynamo_core::crdt::{
    self, DataType, Field, FieldOperation, LeafOperation, LeafType, Operation, Read, TypedRefused,
    TypedUpdate, View,
};
use dynamo_core::replica::{Coordinated, EpochEntry, Minter};
use dynamo_core::types::{Incarnation, OpId};
use dynamo_core::version::{KeyState, Seen, Stamp};

pub(crate) const COUNTER: DataType = DataType::Leaf(LeafType::Counter);
pub(crate) const SET: DataType = DataType::Leaf(LeafType::Set);
pub(crate) const FLAG: DataType = DataType::Leaf(LeafType::Flag);
pub(crate) const REGISTER: DataType = DataType::Leaf(LeafType::Register);

/// One node's copy.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) data_type: DataType,
    pub(crate) record: Option<KeyState>,
    pub(crate) entry: Option<EpochEntry>,
    pub(crate) minter: Minter,
}

impl Replica {
    pub(crate) fn new(data_type: DataType, incarnation: u64) -> Self {
        Self {
            data_type,
            record: None,
            entry: None,
            minter: minter(incarnation),
        }
    }

    /// Coordinates and stores.
    pub(crate) fn update(&mut self, update: TypedUpdate) -> Result<Coordinated, TypedRefused> {
        let done = crdt::coordinate(
            self.data_type,
            self.record.as_ref(),
            self.entry.as_ref(),
            &mut self.minter,
            update,
        )?;
        assert_eq!(done.replayed, done.entry.is_none());
        self.entry = done.entry.or(self.entry);
        self.record = Some(done.state.clone());
        Ok(done)
    }

    /// A write that must succeed; with a context or without.
    pub(crate) fn write(&mut self, operation: Operation, context: Option<&Seen>) -> Coordinated {
        self.update(TypedUpdate {
            context: context.cloned(),
            ..update(operation)
        })
        .unwrap()
    }

    pub(crate) fn merge(&mut self, state: &KeyState) {
        self.record.get_or_insert_default().merge(state);
    }

    pub(crate) fn state(&self) -> KeyState {
        self.record.clone().unwrap_or_default()
    }

    pub(crate) fn read(&self) -> Read {
        crdt::read(self.data_type, &self.state(), 0).unwrap().unwrap()
    }

    pub(crate) fn view(&self) -> View {
        self.read().view
    }
}

pub(crate) fn minter(incarnation: u64) -> Minter {
    let incarnation = Incarnation {
        generation: 1,
        id: incarnation,
    };
    Minter::new(incarnation, 0)
}

/// So many nodes.
pub(crate) fn cluster<const NODES: usize>(data_type: DataType) -> [Replica; NODES] {
    std::array::from_fn(|index| Replica::new(data_type, 1 + index as u64))
}

/// Everybody hears everything.
pub(crate) fn heal(nodes: &mut [Replica]) {
    let mut all = KeyState::new();
    for node in nodes.iter() {
        all.merge(&node.state());
    }
    for node in nodes {
        node.merge(&all);
    }
}

pub(crate) fn update(operation: Operation) -> TypedUpdate {
    TypedUpdate {
        operation,
        context: None,
        op_id: None,
        stamp: Stamp(1),
        expires_at_ms: None,
        wall_ms: 0,
        value_bytes_max: 1 << 20,
    }
}

pub(crate) fn op_id(number: u64) -> OpId {
    u128::from(number).to_be_bytes()
}

pub(crate) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(crate) fn increment(amount: i64) -> Operation {
    Operation::Leaf(LeafOperation::Increment(amount))
}

pub(crate) fn add(element: &str) -> Operation {
    Operation::Leaf(LeafOperation::Add(vec![bytes(element)]))
}

pub(crate) fn remove(element: &str) -> Operation {
    Operation::Leaf(LeafOperation::Remove(vec![bytes(element)]))
}

/// A change to one field of a map.
pub(crate) fn in_field(name: &str, operation: LeafOperation) -> Operation {
    Operation::Map(vec![FieldOperation::Update {
        name: bytes(name),
        operation,
    }])
}

pub(crate) fn field(leaf_type: LeafType, name: &str) -> Field {
    Field {
        leaf_type,
        name: bytes(name),
    }
}

pub(crate) fn set_of(elements: &[&str]) -> View {
    View::Set(elements.iter().map(|element| bytes(element)).collect())
}
