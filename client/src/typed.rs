//! Values of data types as a read returns them. Paper: §4.4, reconciliation by what the data means.

use bytes::Bytes;
use dynamo_proto::v1;

/// The merged value of a key in a bucket of a data type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Typed {
    /// The sum of all increments.
    Counter(i64),
    /// Its members, ascending.
    Set(Vec<Bytes>),
    /// Enabled or not.
    Flag(bool),
    /// The value written last.
    Register(Bytes),
    /// Fields by name, ascending.
    Map(Vec<(Bytes, Typed)>),
}

impl Typed {
    /// The number, if it is a counter.
    pub fn counter(&self) -> Option<i64> {
        match self {
            Self::Counter(number) => Some(*number),
            _ => None,
        }
    }

    /// The members, if it is a set.
    pub fn set(&self) -> Option<&[Bytes]> {
        match self {
            Self::Set(members) => Some(members),
            _ => None,
        }
    }

    /// Whether it is enabled, if it is a flag.
    pub fn flag(&self) -> Option<bool> {
        match self {
            Self::Flag(enabled) => Some(*enabled),
            _ => None,
        }
    }

    /// The value, if it is a register.
    pub fn register(&self) -> Option<&Bytes> {
        match self {
            Self::Register(value) => Some(value),
            _ => None,
        }
    }

    /// The fields, if it is a map.
    pub fn map(&self) -> Option<&[(Bytes, Self)]> {
        match self {
            Self::Map(fields) => Some(fields),
            _ => None,
        }
    }

    /// The value of one field, if it is a map that has it.
    pub fn field(&self, name: impl AsRef<[u8]>) -> Option<&Self> {
        let (_, value) = self.map()?.iter().find(|(field, _)| field == name.as_ref())?;
        Some(value)
    }

    /// None for a type that this release does not know. A map's fields of such types are left out.
    pub(crate) fn decode(value: v1::TypedValue) -> Option<Self> {
        use v1::typed_value::Value;
        Some(match value.value? {
            Value::Counter(number) => Self::Counter(number),
            Value::Set(set) => Self::Set(set.members),
            Value::Flag(enabled) => Self::Flag(enabled),
            Value::Register(register) => Self::Register(register.value),
            Value::Map(map) => {
                let fields = map.fields.into_iter();
                Self::Map(
                    fields
                        .filter_map(|field| Some((field.name, Self::decode(field.value?)?)))
                        .collect(),
                )
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::typed_value::Value;

    fn wire(value: Value) -> v1::TypedValue {
        v1::TypedValue { value: Some(value) }
    }

    #[test]
    fn d53_d54_values_are_read_by_type_and_unknown_ones_are_left_out() {
        let field = |name: &'static str, value| v1::MapField {
            name: name.into(),
            value,
        };
        let map = v1::MapValue {
            fields: vec![
                field("hits", Some(wire(Value::Counter(-3)))),
                field("later", Some(v1::TypedValue { value: None })),
                field("none", None),
                field("on", Some(wire(Value::Flag(true)))),
            ],
        };
        let map = Typed::decode(wire(Value::Map(map))).unwrap();
        assert_eq!(map.map().map(<[_]>::len), Some(2));
        assert_eq!(map.field("hits").and_then(Typed::counter), Some(-3));
        assert_eq!(map.field("on").and_then(Typed::flag), Some(true));
        assert_eq!((map.field("later"), map.counter(), map.set()), (None, None, None));
        assert_eq!(Typed::decode(v1::TypedValue { value: None }), None);
    }
}
