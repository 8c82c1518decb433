//! The generated `CustomResourceDefinition`, as JSON and as the committed YAML.

use kube::CustomResourceExt as _;
use serde_json::Value;

use super::DynamoCluster;

/// Why the definition could not be written down.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// As JSON.
    #[error("cannot turn the CustomResourceDefinition into JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// As YAML.
    #[error("cannot turn the CustomResourceDefinition into YAML: {0}")]
    Yaml(#[from] serde_yaml::Error),
}

/// Names that YAML 1.1 reads as booleans, in lower case. kubectl and Helm read YAML 1.1.
pub const YAML_BOOLEANS: [&str; 8] = ["y", "n", "yes", "no", "on", "off", "true", "false"];

/// The definition of `DynamoCluster`.
pub fn definition() -> Result<Value, DefinitionError> {
    let mut crd = serde_json::to_value(DynamoCluster::crd())?;
    tidy(&mut crd);
    Ok(crd)
}

/// The text of `crds/dynamoclusters.yaml`.
pub fn definition_yaml() -> Result<String, DefinitionError> {
    let yaml = serde_yaml::to_string(&definition()?)?;
    Ok(format!(
        "# Generated from operator/src/crd by `cargo crds`. Do not edit.\n{yaml}"
    ))
}

/// An explicit `null` would pass rules that ask `has(..)`; without `nullable` the API server prunes it. Formats of
/// unsigned integers are not OpenAPI's and draw warnings.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("nullable");
            if map
                .get("format")
                .and_then(Value::as_str)
                .is_some_and(|format| format.starts_with("uint"))
            {
                map.remove("format");
            }
            for (key, value) in map.iter_mut() {
                match value {
                    // Lines of a doc comment are one paragraph to kubectl explain.
                    Value::String(text) if key == "description" => *text = text.replace('\n', " "),
                    // Bounds come as floats.
                    Value::Number(number) => {
                        if let Some(whole) = number.as_f64().filter(|number| number.fract() == 0.0) {
                            *value = Value::from(whole as i64);
                        }
                    }
                    _ => tidy(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(tidy),
        _ => {}
    }
}
