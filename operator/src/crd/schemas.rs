//! Schemas of maps with bounds, which derived ones lack.

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
