//! The wire format only grows: every field, enum value and method that a release had keeps its number, type and name.
//!
//! `proto/golden/` has one list per release. `UPDATE_GOLDEN=1 cargo test -p dynamo-proto` writes that of this release; the
//! lists of earlier ones are never edited.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::{collections::BTreeSet, fs, path::Path};

use prost::Message as _;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};

fn message_lines(prefix: &str, message: &DescriptorProto, lines: &mut BTreeSet<String>) {
    let name = format!("{prefix}.{}", message.name());
    for field in &message.field {
        let kind = if field.type_name().is_empty() {
            format!("{:?}", field.r#type())
        } else {
            field.type_name().to_owned()
        };
        let (number, label) = (field.number(), field.label());
        lines.insert(format!(
            "message {name} {number} {} {kind} {label:?}",
            field.name()
        ));
    }
    for nested in &message.nested_type {
        message_lines(&name, nested, lines);
    }
    for nested in &message.enum_type {
        enum_lines(&name, nested, lines);
    }
}

fn enum_lines(prefix: &str, of: &EnumDescriptorProto, lines: &mut BTreeSet<String>) {
    for value in &of.value {
        lines.insert(format!(
            "enum {prefix}.{} {} {}",
            of.name(),
            value.number(),
            value.name()
        ));
    }
}

fn surface() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(dynamo_proto::DESCRIPTORS).unwrap();
    let mut lines = BTreeSet::new();
    for file in set.file {
        let package = file.package().to_owned();
        for message in &file.message_type {
            message_lines(&package, message, &mut lines);
        }
        for of in &file.enum_type {
            enum_lines(&package, of, &mut lines);
        }
        for service in &file.service {
            for method in &service.method {
                let stream = if method.server_streaming() { "stream " } else { "" };
                lines.insert(format!(
                    "method {package}.{}.{} {} -> {stream}{}",
                    service.name(),
                    method.name(),
                    method.input_type(),
                    method.output_type()
                ));
            }
        }
    }
    lines
}

#[test]
fn what_a_release_spoke_is_still_spoken() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let now = surface();
    let this_release = folder.join(format!("{}.txt", env!("CARGO_PKG_VERSION")));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let text: Vec<&str> = now.iter().map(String::as_str).collect();
        fs::write(&this_release, text.join("\n") + "\n").unwrap();
    }
    assert!(
        this_release.exists(),
        "{} is missing: UPDATE_GOLDEN=1 writes it",
        this_release.display()
    );
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let lines = fs::read_to_string(&path).unwrap();
        assert!(
            lines.lines().count() > 100,
            "{} lists a whole release",
            path.display()
        );
        for line in lines.lines() {
            assert!(
                now.contains(line),
                "{} had, and now is gone or changed: {line}",
                path.display()
            );
        }
    }
}
