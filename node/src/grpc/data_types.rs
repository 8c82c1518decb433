//! Operations on values of data types, and the values, between the client protocol and the core. Paper: §4.4.

use bytes::Bytes;
use dynamo_core::crdt::{Field, FieldOperation, LeafOperation, LeafType, Operation, View};
use dynamo_proto::v1::{
    FieldUpdate, MapField, MapValue, RegisterValue, SetUpdate, SetValue, TypedValue, UpdateRequest, field_update,
    typed_value::Value, update_request,
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
            let fields = map.fields.into_iter().map(field_operation);
            Operation::Map(fields.collect::<Result<_, _>>()?)
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

fn field_operation(update: FieldUpdate) -> Result<FieldOperation, Failure> {
    use field_update::Operation as Asked;
    let name = update.name;
    let Some(asked) = update.operation else {
        return Err(Failure::invalid("an update of a field must hold an operation"));
    };
    let operation = match asked {
        Asked::Increment(by) => LeafOperation::Increment(by),
        Asked::Set(set) => set_operation(set)?,
        Asked::Flag(on) => flag_operation(on),
        Asked::Register(value) => LeafOperation::Assign(value),
        Asked::Remove(leaf_type) => return removal(name, leaf_type),
    };
    Ok(FieldOperation::Update { name, operation })
}

fn removal(name: Bytes, leaf_type: i32) -> Result<FieldOperation, Failure> {
    use field_update::FieldType;
    let leaf_type = match FieldType::try_from(leaf_type).unwrap_or_default() {
        FieldType::Counter => LeafType::Counter,
        FieldType::Set => LeafType::Set,
        FieldType::Flag => LeafType::Flag,
        FieldType::Register => LeafType::Register,
        FieldType::Unspecified => {
            return Err(Failure::invalid("the removal of a field must name the field's type"));
        }
    };
    Ok(FieldOperation::Remove(Field { leaf_type, name }))
}
