//! What a coordinator does with an operation, and a reader with siblings.

use bytes::Bytes;

use super::leaf::Writer;
use super::operation::{DataType, Operation, OperationError};
use super::value::{Value, View};
use crate::replica::{Coordinated, EpochEntry, Minter, merge, next_entry};
use crate::types::OpId;
use crate::version::{Content, Dot, KeyState, Seen, Sibling, Stamp};
use crate::wire::DecodeError;

/// Bytes by which a removal may lengthen a value that is too long already.
const REMOVAL_BYTES: usize = 1 << 10;

/// A client's operation, as the coordinator carries it out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TypedUpdate {
    /// What to do.
    pub operation: Operation,
    /// What the client has seen: all that a removal removes. `None`: the client sent no context.
    pub context: Option<Seen>,
    /// What the client repeats when it retries.
    pub op_id: Option<OpId>,
    /// Taken from this node's clock; orders assignments to registers.
    pub stamp: Stamp,
    /// Milliseconds since 1970.
    pub expires_at_ms: Option<u64>,
    /// Milliseconds since 1970: what has expired by then is not built upon.
    pub wall_ms: u64,
    /// Longest value that an operation may make, in bytes; removals may make longer ones. A counter alone takes up to
    /// 6 KiB per node that coordinates its writes, for the op ids that it remembers.
    pub value_bytes_max: usize,
}

/// Why an operation was not applied. Nothing changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TypedRefused {
    /// Not an operation of this bucket, or one that breaks a limit.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// Nobody can remove what he has not seen.
    #[error("a removal needs a context; get the key, and pass the context that the get returns")]
    ContextMissing,
    /// The sum would not fit into 64 bits.
    #[error("the counter would leave the range of 64 bits; use several counters")]
    Overflow,
    /// The value would become too long.
    #[error(
        "the value would have {bytes} bytes, it may have at most {bytes_max}; remove something or use more keys"
    )]
    TooLong {
        /// Bytes that the value would have.
        bytes: usize,
        /// The limit in effect.
        bytes_max: usize,
    },
    /// What is stored is no value of this type.
    #[error("the stored value cannot be read as a {data_type}: {error}")]
    Damaged {
        /// The bucket's type.
        data_type: DataType,
        /// What is wrong with it.
        error: DecodeError,
    },
}

/// What a reader of a typed key gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Read {
    /// The value.
    pub view: View,
    /// What the reader has seen: the context of the reply.
    pub context: Seen,
}

/// Applies a client's operation to a record of a bucket of `data_type`; see [the module](super).
///
/// The rules of [`replica::coordinate`](crate::replica::coordinate) hold for `entry`, `minter` and what comes back. The
/// delta supersedes all that this node had seen. There is no limit of siblings: a typed write leaves one. If `replayed`,
/// the delta is the whole record: the first attempt may be anywhere in it.
///
/// # Errors
/// If the operation breaks a rule, or the stored value is damaged.
pub fn coordinate(
    data_type: DataType,
    stored: Option<&KeyState>,
    entry: Option<&EpochEntry>,
    minter: &mut Minter,
    update: TypedUpdate,
) -> Result<Coordinated, TypedRefused> {
    update.operation.check(data_type)?;
    if update.operation.removes() && update.context.is_none() {
        return Err(TypedRefused::ContextMissing);
    }
    let nothing = KeyState::new();
    let record = stored.unwrap_or(&nothing);
    let mut value = resolve(data_type, record, update.wall_ms)
        .map_err(|error| TypedRefused::Damaged { data_type, error })?;
    if let Some(dot) = update.op_id.and_then(|op_id| value.write_of(&op_id)) {
        return Ok(Coordinated {
            state: record.clone(),
            entry: None,
            delta: record.clone(),
            dot,
            replayed: true,
        });
    }
    value.settle();
    value.know(record.seen());
    let context = update.context.unwrap_or_default();
    // A node goes on counting only where it still holds what it counted last.
    let entry = entry.filter(|entry| record.seen().contains(&last_dot(entry)));
    let entry = next_entry(entry, minter, |actor| {
        value.counter_max(actor).max(context.counter_max(actor))
    });
    let dot = last_dot(&entry);
    let writer = Writer {
        dot,
        stamp: update.stamp,
        remember: update.op_id.is_some(),
        context: &context,
    };
    value
        .apply(&update.operation, &writer, update.op_id)
        .map_err(|_| TypedRefused::Overflow)?;
    let content = value.encode();
    let allowance = if update.operation.removes() {
        bytes_of(record) + REMOVAL_BYTES
    } else {
        0
    };
    if content.len() > update.value_bytes_max.max(allowance) {
        return Err(TypedRefused::TooLong {
            bytes: content.len(),
            bytes_max: update.value_bytes_max,
        });
    }
    let sibling = Sibling {
        stamp: update.stamp,
        expires_at_ms: update.expires_at_ms,
        // Remembered in the value, where it outlives the sibling.
        op_id: None,
        content: Content::Value(content),
    };
    let delta = KeyState::from_write(record.seen(), dot, sibling);
    Ok(Coordinated {
        state: merge(stored.cloned(), &delta).state,
        entry: Some(entry),
        delta,
        dot,
        replayed: false,
    })
}

/// The context of a typed write's reply: what the request covered, and the new write if that covers all that the write
/// was built upon. Else the client reads before it can remove: the new sibling holds things that the client has not
/// seen, and a context that names it would remove them with it.
#[must_use]
pub fn reply_context(request: &Seen, done: &Coordinated) -> Seen {
    let mut seen = request.clone();
    seen.insert(done.dot);
    if seen.descends(done.delta.seen()) {
        seen
    } else {
        request.clone()
    }
}

/// What a reader at `wall_ms` gets from a record; `None`: the key is not found.
///
/// # Errors
/// If a live sibling is no value of `data_type`.
pub fn read(data_type: DataType, state: &KeyState, wall_ms: u64) -> Result<Option<Read>, DecodeError> {
    if state.is_deleted(wall_ms) {
        return Ok(None);
    }
    let value = resolve(data_type, state, wall_ms)?;
    let mut context = state.context_seen();
    context.union(value.seen());
    let view = value.view();
    Ok(Some(Read { view, context }))
}

/// The merged value of all siblings that are live at `wall_ms`.
///
/// # Errors
/// If one of them is no value of `data_type`.
pub fn resolve(data_type: DataType, state: &KeyState, wall_ms: u64) -> Result<Value, DecodeError> {
    let mut merged = Value::new(data_type);
    for sibling in state.siblings().values().filter(|one| one.is_live(wall_ms)) {
        if let Some(bytes) = sibling.value() {
            merged.merge(&Value::decode(bytes.clone(), data_type)?);
        }
    }
    Ok(merged)
}

/// Bytes of all values in a record.
fn bytes_of(record: &KeyState) -> usize {
    let values = record.siblings().values().filter_map(Sibling::value);
    values.map(Bytes::len).sum()
}

/// The last write that an entry counts.
fn last_dot(entry: &EpochEntry) -> Dot {
    Dot {
        actor: entry.actor,
        counter: entry.counter,
    }
}
