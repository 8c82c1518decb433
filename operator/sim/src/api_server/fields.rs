//! How objects are changed: merge patches (RFC 7386), and server-side apply with the fields that each manager owns.
//!
//! Lists belong to whoever applied them as a whole: of the lists that the API server merges item by item, none here has two
//! managers.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// A field, by the keys on the way to it.
type Path = Vec<String>;
/// What each manager has applied and nobody has changed since.
pub(super) type Owners = BTreeMap<String, BTreeSet<Path>>;

/// Who the object is and which version it was: nobody's fields.
const IDENTITY: [&str; 8] = [
    "apiVersion",
    "kind",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "metadata.resourceVersion",
    "metadata.creationTimestamp",
    "metadata.generation",
];

/// Merges a patch: null takes away, all else but objects takes the place of what was there.
pub(crate) fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let fields = object.as_object_mut().unwrap();
    for (key, change) in changes {
        if change.is_null() {
            fields.remove(key);
        } else {
            merge(fields.entry(key.clone()).or_insert(Value::Null), change);
        }
    }
}

/// Applies what a manager wants: all that it says, without what it said before and nobody else wants.
pub(super) fn apply(object: &mut Value, owners: &mut Owners, manager: &str, wanted: &Value) {
    let mut says = BTreeSet::new();
    leaves(wanted, &mut Vec::new(), &mut says);
    let before = owners.remove(manager).unwrap_or_default();
    for path in before.difference(&says) {
        let kept = owners
            .values()
            .flatten()
            .chain(&says)
            .any(|other| other.starts_with(path) || path.starts_with(other));
        if !kept {
            remove(object, path);
        }
    }
    for path in &says {
        let value = find(wanted, path).cloned().unwrap();
        for fields in owners.values_mut().filter(|_| find(object, path) != Some(&value)) {
            fields.remove(path);
        }
        set(object, path, value);
    }
    owners.insert(manager.to_owned(), says);
}

/// Whoever changes a field in another way takes it from those who have applied it.
pub(super) fn disown(owners: &mut Owners, before: &Value, after: &Value) {
    for fields in owners.values_mut() {
        fields.retain(|path| find(before, path) == find(after, path));
    }
}

fn leaves(value: &Value, path: &mut Path, found: &mut BTreeSet<Path>) {
    if IDENTITY.contains(&path.join(".").as_str()) {
        return;
    }
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, field) in fields {
                path.push(key.clone());
                leaves(field, path, found);
                path.pop();
            }
        }
        // A null that is applied is as good as not said.
        Value::Null => {}
        _ => drop(found.insert(path.clone())),
    }
}

fn find<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| value.get(key))
}

fn set(object: &mut Value, path: &[String], value: Value) {
    let mut place = object;
    for key in path {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        place = place
            .as_object_mut()
            .unwrap()
            .entry(key.clone())
            .or_insert(Value::Null);
    }
    *place = value;
}

/// Takes a field away, and what it was the last of.
fn remove(object: &mut Value, path: &[String]) {
    let (Some((first, rest)), Some(fields)) = (path.split_first(), object.as_object_mut()) else {
        return;
    };
    if rest.is_empty() {
        fields.remove(first);
        return;
    }
    if let Some(field) = fields.get_mut(first) {
        remove(field, rest);
        if field.as_object().is_some_and(Map::is_empty) {
            fields.remove(first);
        }
    }
}
