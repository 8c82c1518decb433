//! What clients ask of data types. Nothing else reaches a value: no client ever sends one as bytes.

use bytes::Bytes;

use super::store::Key;
use crate::wire::{DecodeError, Reader, put_bytes};

/// Longest name of a field, in bytes.
pub const FIELD_BYTES_MAX: usize = 1 << 10;
/// Longest element of a set, in bytes.
pub const ELEMENT_BYTES_MAX: usize = 64 << 10;
/// Most elements, or most fields, that one write can name.
pub const OPERATION_PARTS_MAX: usize = 1_000;

/// What the values of a bucket are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataType {
    /// One value.
    Leaf(LeafType),
    /// Named values.
    Map,
}

/// What a value or a field can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeafType {
    /// A sum of 64 bits, with a sign.
    Counter,
    /// Byte strings, each at most once.
    Set,
    /// On or off.
    Flag,
    /// One byte string.
    Register,
}

/// A field of a map: fields of one name and different types are different fields.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Field {
    /// What it holds.
    pub leaf_type: LeafType,
    /// 1..=[`FIELD_BYTES_MAX`] bytes.
    pub name: Bytes,
}

/// One typed write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Of a bucket of counters, sets, flags or registers.
    Leaf(LeafOperation),
    /// Of a bucket of maps: all of it at once, 1..=[`OPERATION_PARTS_MAX`] parts, in order.
    Map(Vec<FieldOperation>),
}

/// A change to one value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeafOperation {
    /// Adds to a counter; negative amounts take away.
    Increment(i64),
    /// Adds elements to a set, each of up to [`ELEMENT_BYTES_MAX`] bytes.
    Add(Vec<Bytes>),
    /// Removes elements from a set, as far as the context has seen them added.
    Remove(Vec<Bytes>),
    /// Switches a flag on.
    Enable,
    /// Switches a flag off, as far as the context has seen it switched on.
    Disable,
    /// Sets a register.
    Assign(Bytes),
}

/// A change to a map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FieldOperation {
    /// Changes the field of this name and of the operation's type; makes it if there is none.
    Update {
        /// See [`Field::name`].
        name: Bytes,
        /// The change.
        operation: LeafOperation,
    },
    /// Removes a field, as far as the context has seen what it holds.
    Remove(Field),
}

/// An operation that breaks a rule, wherever it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OperationError {
    /// Not an operation of this bucket's type.
    #[error("the bucket holds values of type {0}; use an operation of that type")]
    WrongType(DataType),
    /// A name is empty or too long.
    #[error("a field's name has {0} bytes, it must have 1..={max}", max = FIELD_BYTES_MAX)]
    FieldName(usize),
    /// An element is too long.
    #[error("an element has {0} bytes, {max} at most are accepted", max = ELEMENT_BYTES_MAX)]
    Element(usize),
    /// Nothing to do, or too much.
    #[error("the operation has {0} elements or fields, it must have 1..={max}", max = OPERATION_PARTS_MAX)]
    Parts(usize),
}

impl std::fmt::Display for DataType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Leaf(LeafType::Counter) => "counter",
            Self::Leaf(LeafType::Set) => "set",
            Self::Leaf(LeafType::Flag) => "flag",
            Self::Leaf(LeafType::Register) => "register",
            Self::Map => "map",
        })
    }
}

impl Operation {
    /// Checks the operation for a bucket of `data_type`.
    ///
    /// # Errors
    /// If it is of another type, or breaks a limit.
    pub fn check(&self, data_type: DataType) -> Result<(), OperationError> {
        match (self, data_type) {
            (Self::Leaf(operation), DataType::Leaf(leaf_type)) if operation.leaf_type() == leaf_type => {
                operation.check()
            }
            (Self::Map(parts), DataType::Map) => {
                check_parts(parts.len())?;
                parts.iter().try_for_each(FieldOperation::check)
            }
            _ => Err(OperationError::WrongType(data_type)),
        }
    }

    /// True if some part removes, and so needs a context.
    pub fn removes(&self) -> bool {
        match self {
            Self::Leaf(operation) => operation.removes(),
            Self::Map(parts) => parts.iter().any(|part| match part {
                FieldOperation::Update { operation, .. } => operation.removes(),
                FieldOperation::Remove(_) => true,
            }),
        }
    }
}

impl LeafOperation {
    /// What it changes.
    pub fn leaf_type(&self) -> LeafType {
        match self {
            Self::Increment(_) => LeafType::Counter,
            Self::Add(_) | Self::Remove(_) => LeafType::Set,
            Self::Enable | Self::Disable => LeafType::Flag,
            Self::Assign(_) => LeafType::Register,
        }
    }

    /// True if it removes, and so needs a context.
    pub fn removes(&self) -> bool {
        matches!(self, Self::Remove(_) | Self::Disable)
    }

    fn check(&self) -> Result<(), OperationError> {
        if let Self::Add(elements) | Self::Remove(elements) = self {
            check_parts(elements.len())?;
            if let Some(long) = elements.iter().find(|element| element.len() > ELEMENT_BYTES_MAX) {
                return Err(OperationError::Element(long.len()));
            }
        }
        Ok(())
    }
}

impl FieldOperation {
    fn check(&self) -> Result<(), OperationError> {
        let name = match self {
            Self::Update { name, operation } => {
                operation.check()?;
                name
            }
            Self::Remove(field) => &field.name,
        };
        if (1..=FIELD_BYTES_MAX).contains(&name.len()) {
            Ok(())
        } else {
            Err(OperationError::FieldName(name.len()))
        }
    }
}

impl LeafType {
    const ALL: [Self; 4] = [Self::Counter, Self::Set, Self::Flag, Self::Register];
    const MAP_BYTE: u8 = 4;
}

impl DataType {
    pub(super) fn byte(self) -> u8 {
        match self {
            Self::Leaf(leaf_type) => leaf_type as u8,
            Self::Map => LeafType::MAP_BYTE,
        }
    }
}

impl Key for Field {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.leaf_type as u8);
        put_bytes(out, &self.name);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let leaf_type = LeafType::ALL
            .get(usize::from(reader.byte()?))
            .ok_or(DecodeError::Invalid("type of a field"))?;
        Ok(Self {
            leaf_type: *leaf_type,
            name: reader.bytes()?,
        })
    }
}

fn check_parts(count: usize) -> Result<(), OperationError> {
    if (1..=OPERATION_PARTS_MAX).contains(&count) {
        Ok(())
    } else {
        Err(OperationError::Parts(count))
    }
}
