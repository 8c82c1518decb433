//! The generated `CustomResourceDefinition`: equal to the committed copies, fully described, bounded, and without names
//! that kubectl and Helm would read as booleans.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::path::{Path, PathBuf};

use dynamo_operator::crd::{
    DynamoCluster,
    definition::{YAML_BOOLEANS, definition, definition_yaml},
};
use serde_json::{Value, json};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn schema() -> Value {
    definition().unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// Calls `visit` with the path and the schema of every field, list item and map value below `schema`.
fn walk(path: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), field, visit);
    }
    for (suffix, key) in [("[]", "items"), ("{}", "additionalProperties")] {
        if schema[key].is_object() {
            walk(&format!("{path}{suffix}"), &schema[key], visit);
        }
    }
}

#[test]
fn committed_copies_are_what_the_types_generate() {
    let generated = definition_yaml().unwrap();
    for file in [
        "crds/dynamoclusters.yaml",
        "charts/dynamo-operator/files/crds/dynamoclusters.yaml",
    ] {
        let committed = std::fs::read_to_string(repository().join(file)).unwrap();
        assert!(
            committed == generated,
            "{file} is not what operator/src/crd generates: run `cargo crds`"
        );
    }
}

#[test]
fn every_field_is_described() {
    let mut bare = Vec::new();
    walk("", &schema(), &mut |path, schema| {
        let described = schema["description"].as_str().is_some_and(|text| text.len() > 10);
        // The API server describes these itself.
        if !described && !path.is_empty() && !path.starts_with(".metadata") {
            bare.push(path.to_owned());
        }
    });
    assert!(bare.is_empty(), "without a description: {bare:?}");
}

#[test]
fn every_list_map_string_and_number_of_the_spec_is_bounded() {
    let mut unbounded = Vec::new();
    walk(".spec", &schema()["properties"]["spec"], &mut |path, schema| {
        let has = |key: &str| !schema[key].is_null();
        let bounded = match schema["type"].as_str() {
            Some("array") => has("maxItems") && has("x-kubernetes-list-type"),
            Some("object") => has("properties") || has("maxProperties"),
            Some("string") => has("maxLength") || has("enum"),
            Some("integer") => has("minimum") && has("maximum"),
            Some("boolean") => true,
            _ => has("x-kubernetes-int-or-string") && has("maxLength") && has("pattern"),
        };
        if !bounded {
            unbounded.push(path.to_owned());
        }
    });
    assert!(unbounded.is_empty(), "without bounds: {unbounded:?}");
}

#[test]
fn every_rule_has_a_message_that_says_more_than_the_rule() {
    let mut rules = 0;
    walk(".spec", &schema()["properties"]["spec"], &mut |path, schema| {
        for rule in schema["x-kubernetes-validations"]
            .as_array()
            .into_iter()
            .flatten()
        {
            rules += 1;
            let message = rule["message"].as_str().unwrap_or_default();
            assert!(message.len() > 30, "{path}: {rule}");
        }
    });
    assert!(rules >= 20, "{rules} rules");
}

#[test]
fn no_name_or_value_is_a_boolean_to_yaml_1_1() {
    fn check(path: &str, text: &str) {
        assert!(
            !YAML_BOOLEANS.contains(&text.to_ascii_lowercase().as_str()),
            "{path}: {text:?}"
        );
    }
    walk("", &schema(), &mut |path, schema| {
        for name in schema["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| name)
        {
            check(path, name);
        }
        for value in schema["enum"].as_array().into_iter().flatten() {
            check(path, value.as_str().unwrap());
        }
        if let Some(default) = schema["default"].as_str() {
            check(path, default);
        }
    });
    let values =
        std::fs::read_to_string(repository().join("charts/dynamo-operator/values.schema.json")).unwrap();
    walk(
        "values",
        &serde_json::from_str(&values).unwrap(),
        &mut |path, schema| {
            for name in schema["properties"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, _)| name)
            {
                check(path, name);
            }
            for value in schema["enum"].as_array().into_iter().flatten() {
                check(path, value.as_str().unwrap());
            }
        },
    );
    let definition = definition().unwrap();
    for column in definition["spec"]["versions"][0]["additionalPrinterColumns"]
        .as_array()
        .unwrap()
    {
        check("columns", column["name"].as_str().unwrap());
    }
}

#[test]
fn names_scale_and_columns_are_what_users_type() {
    let definition = definition().unwrap();
    let version = &definition["spec"]["versions"][0];
    assert_eq!(definition["metadata"]["name"], "dynamoclusters.dynamo.rs");
    assert_eq!(definition["spec"]["names"]["shortNames"], json!(["dync"]));
    assert_eq!(
        definition["spec"]["names"]["categories"],
        json!(["all", "dynamo"])
    );
    assert_eq!(
        version["subresources"]["scale"],
        json!({
            "specReplicasPath": ".spec.members",
            "statusReplicasPath": ".status.members",
            "labelSelectorPath": ".status.selector",
        })
    );
    let columns = version["additionalPrinterColumns"].as_array().unwrap();
    let narrow: Vec<&str> = columns
        .iter()
        .filter(|column| column["priority"].is_null())
        .map(|column| column["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        narrow,
        [
            "Ready", "Members", "Status", "Epoch", "Progress", "Version", "Age"
        ]
    );
}

#[test]
fn the_sample_is_ten_lines_and_the_smallest_spec_is_empty() {
    let sample = std::fs::read_to_string(repository().join("operator/samples/dynamocluster.yaml")).unwrap();
    assert!(sample.lines().count() <= 10, "{} lines", sample.lines().count());
    let sample: DynamoCluster = serde_yaml::from_str(&sample).unwrap();
    let empty: DynamoCluster = serde_json::from_value(json!({
        "apiVersion": "dynamo.rs/v1alpha1", "kind": "DynamoCluster", "metadata": {"name": "demo"}, "spec": {},
    }))
    .unwrap();
    assert_eq!(
        sample.spec, empty.spec,
        "the sample says aloud what the defaults are"
    );
    assert_eq!(empty.spec.members, 3);
}
