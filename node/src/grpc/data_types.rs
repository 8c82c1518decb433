//! Operations on values of data types, and the values, between the client protocol and the core. Paper: §4.4.

use dynamo_core::crdt::{Field, FieldOperation, LeafOperation, LeafType, Operation, View};
use dynamo_proto::v1::{
    FieldUpdate, MapField, MapValue, RegisterValue, SetUpdate, SetValue, TypedValue, UpdateRequest,
    field_update, typed_value::Value, update_request,
};

use super::status::Failure;

/// What a client asks for; the core checks that it fits the bucket.
///
/// # Errors
/// INVALID_ARGUMENT if there is no operation, or a set is to be added to and removed from at once.
pub(crate) fn operation(request: &UpdateRequest) -> Result<Operation, Failure> {
    use update_request::Operation as Asked;
    let Some(asked) = request.operation.clone() else {
        return Err(Failure::invalid("an update must hold an operation"));
    };
    Ok(match asked {
        Asked::Increment(by) => Operation::Leaf(LeafOperation::Increment(by)),
        Asked::Set(set) => Operation::Leaf(set_operation(set)?),
        Asked::Flag(on) => Operation::Leaf(flag_operation(on)),
        Asked::Register(value) => Operation::Leaf(LeafOperation::Assign(value)),
        Asked::Map(map) => {
            let mut operations = Vec::new();
            for field in map.fields {
                operations.extend(field_operations(field)?);
            }
            Operation::Map(operations)
        }
    })
}

/// A merged value, for a client.
pub(crate) fn typed_value(view: View) -> TypedValue {
    let value = match view {
        View::Counter(sum) => Value::Counter(sum),
        View::Set(members) => Value::Set(SetValue { members }),
        View::Flag(on) => Value::Flag(on),
        View::Register(value) => Value::Register(RegisterValue {
            value: value.unwrap_or_default(),
        }),
        View::Map(fields) => Value::Map(MapValue {
            fields: fields.into_iter().map(map_field).collect(),
        }),
    };
    TypedValue { value: Some(value) }
}

fn map_field((field, view): (Field, View)) -> MapField {
    MapField {
        name: field.name,
        value: Some(typed_value(view)),
    }
}

fn set_operation(set: SetUpdate) -> Result<LeafOperation, Failure> {
    match (set.add.is_empty(), set.remove.is_empty()) {
        (false, true) => Ok(LeafOperation::Add(set.add)),
        (true, false) => Ok(LeafOperation::Remove(set.remove)),
        _ => Err(Failure::invalid(
            "an update of a set must hold members to add, or members to remove; send two updates for both",
        )),
    }
}

fn flag_operation(on: bool) -> LeafOperation {
    if on {
        LeafOperation::Enable
    } else {
        LeafOperation::Disable
    }
}

/// What is asked of one field; fields of one name and different types are different ones, and a removal means all.
fn field_operations(update: FieldUpdate) -> Result<Vec<FieldOperation>, Failure> {
    use field_update::Operation as Asked;
    let name = update.name;
    let operations = match update.operation {
        Some(Asked::Increment(by)) => vec![LeafOperation::Increment(by)],
        Some(Asked::Set(set)) => both(set),
        Some(Asked::Flag(on)) => vec![flag_operation(on)],
        Some(Asked::Register(value)) => vec![LeafOperation::Assign(value)],
        Some(Asked::Remove(true)) => {
            let remove = |leaf_type| {
                let name = name.clone();
                FieldOperation::Remove(Field { leaf_type, name })
            };
            return Ok(LEAF_TYPES.map(remove).to_vec());
        }
        Some(Asked::Remove(false)) | None => {
            return Err(Failure::invalid("an update of a field must hold an operation"));
        }
    };
    let update = |operation| FieldOperation::Update {
        name: name.clone(),
        operation,
    };
    Ok(operations.into_iter().map(update).collect())
}

const LEAF_TYPES: [LeafType; 4] = [
    LeafType::Counter,
    LeafType::Set,
    LeafType::Flag,
    LeafType::Register,
];

fn both(set: SetUpdate) -> Vec<LeafOperation> {
    let SetUpdate { add, remove } = set;
    let add = (!add.is_empty()).then(|| LeafOperation::Add(add));
    let remove = (!remove.is_empty()).then(|| LeafOperation::Remove(remove));
    remove.into_iter().chain(add).collect()
}
