//! Schemas of maps with bounds and of lists whose items are described, which derived ones lack.

use schemars::{Schema, SchemaGenerator, json_schema};

/// At most 32 labels.
pub(super) fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {
            "type": "string",
            "description": "Value of the label that the key names.",
            "maxLength": 63,
        },
    })
}

/// At most 32 annotations.
pub(super) fn annotations(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {
            "type": "string",
            "description": "Value of the annotation that the key names.",
            "maxLength": 1024,
        },
    })
}

/// At most 200 members.
pub(super) fn member_ids(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 200,
        "x-kubernetes-list-type": "atomic",
        "items": {"type": "string", "description": "Member id, which is the name of its pod."},
    })
}

/// At most 16 sentences.
pub(super) fn sentences(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "atomic",
        "items": {"type": "string", "description": "A sentence for people."},
    })
}
