//! What is stored, in versions: every write is one, and all of them are kept.

use std::{collections::BTreeMap, sync::Arc};

use dynamo_operator::crd::DynamoCluster;
use serde_json::{Map, Value, json};

use super::{
    fields::{self, Owners},
    kinds::Kind,
    request::Labels,
};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Key {
    /// Of this kind, and of this namespace if one is named.
    fn within(&self, kind: Kind, namespace: &str) -> bool {
        self.kind == kind && (namespace.is_empty() || self.namespace == namespace)
    }
}

#[derive(Clone, Debug)]
struct Object {
    value: Arc<Stored>,
    owners: Owners,
}

/// One version of an object, and the same as it is sent.
#[derive(Debug)]
struct Stored {
    json: Value,
    text: String,
}

/// One write.
#[derive(Clone, Debug)]
struct Change {
    version: u64,
    key: Key,
    before: Option<Arc<Stored>>,
    after: Option<Arc<Stored>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Store {
    objects: BTreeMap<Key, Object>,
    /// The newest of them is this version.
    changes: Vec<Change>,
    version: u64,
    uids: u64,
}

/// Why something was not done.
#[derive(Debug)]
pub struct Refusal {
    /// HTTP's.
    pub code: u16,
    reason: &'static str,
    message: String,
}

impl Refusal {
    pub(super) fn new(code: u16, reason: &'static str, message: String) -> Self {
        Self {
            code,
            reason,
            message,
        }
    }

    fn not_found(key: &Key) -> Self {
        Self::new(
            404,
            "NotFound",
            format!("{} {:?} not found", key.kind.plural, key.name),
        )
    }

    fn conflict(key: &Key, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {:?}: {why}",
            key.kind.plural, key.name
        );
        Self::new(409, "Conflict", message)
    }

    pub(super) fn status(&self) -> String {
        json!({
            "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
            "reason": self.reason, "message": self.message, "code": self.code,
        })
        .to_string()
    }
}

/// What is sent.
type Answer = Result<String, Refusal>;

impl Store {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// What was until now, nobody reads any more.
    pub(super) fn forget(&mut self) {
        self.changes.clear();
    }

    fn changed(&mut self, key: Key, before: Option<Arc<Stored>>, after: Option<Arc<Stored>>) {
        self.changes.push(Change {
            version: self.version,
            key,
            before,
            after,
        });
    }

    pub(super) fn get(&self, key: &Key, old: usize) -> Answer {
        let own = |change: &&Change| change.key == *key;
        let undone = self.changes.iter().rev().filter(own).take(old).last();
        let found = match undone {
            Some(change) => change.before.as_ref(),
            None => self.objects.get(key).map(|object| &object.value),
        };
        let text = found.map(|stored| stored.text.clone());
        text.ok_or_else(|| Refusal::not_found(key))
    }

    pub(super) fn list(&self, kind: Kind, namespace: &str, labels: &Labels, old: usize) -> String {
        let own = self.objects.iter().filter(|(key, _)| key.within(kind, namespace));
        let mut found: BTreeMap<&Key, &Arc<Stored>> = own.map(|(key, object)| (key, &object.value)).collect();
        let changes = self.changes.iter().rev();
        for change in changes
            .filter(|change| change.key.within(kind, namespace))
            .take(old)
        {
            match &change.before {
                Some(value) => found.insert(&change.key, value),
                None => found.remove(&change.key),
            };
        }
        let items = found.into_values().filter(|stored| has(&stored.json, labels));
        let items: Vec<&str> = items.map(|stored| stored.text.as_str()).collect();
        format!(
            r#"{{"apiVersion":"{}","kind":"{}List","metadata":{{"resourceVersion":"{}"}},"items":[{}]}}"#,
            kind.api_version,
            kind.name,
            self.version(),
            items.join(",")
        )
    }

    /// What a watch tells of the writes after one version and up to another.
    pub(super) fn events(
        &self,
        kind: Kind,
        namespace: &str,
        labels: &Labels,
        since: u64,
        now: u64,
    ) -> Vec<Value> {
        let first = self.changes.partition_point(|change| change.version <= since);
        let changes = self.changes[first..]
            .iter()
            .take_while(|change| change.version <= now);
        let event = |change: &Change| {
            let shown =
                |stored: &Option<Arc<Stored>>| stored.clone().filter(|stored| has(&stored.json, labels));
            let (type_, mut object) = match (shown(&change.before), shown(&change.after)) {
                (None, Some(object)) => ("ADDED", object.json.clone()),
                (Some(_), Some(object)) => ("MODIFIED", object.json.clone()),
                (Some(object), None) => ("DELETED", object.json.clone()),
                (None, None) => return None,
            };
            object["metadata"]["resourceVersion"] = json!(change.version.to_string());
            Some(json!({"type": type_, "object": object}))
        };
        changes
            .filter(|change| change.key.within(kind, namespace))
            .filter_map(event)
            .collect()
    }

    pub(super) fn create(&mut self, kind: Kind, namespace: &str, mut object: Value) -> Answer {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let key = Key {
            kind,
            namespace: namespace.to_owned(),
            name,
        };
        if self.objects.contains_key(&key) {
            let message = format!("{} {:?} already exists", kind.plural, key.name);
            return Err(Refusal::new(409, "AlreadyExists", message));
        }
        if kind.status {
            take(&mut object, "status");
        }
        Ok(self.put_new(key, object, Owners::new()))
    }

    fn put_new(&mut self, key: Key, mut object: Value, owners: Owners) -> String {
        self.uids += 1;
        let metadata = &mut object["metadata"];
        if !key.namespace.is_empty() {
            metadata["namespace"] = json!(key.namespace);
        }
        metadata["uid"] = json!(format!("00000000-0000-4000-8000-{:012}", self.uids));
        metadata["creationTimestamp"] = json!("2020-01-01T00:00:00Z");
        if key.kind.counts {
            metadata["generation"] = json!(1);
        }
        if key.kind.name == "PersistentVolumeClaim" {
            metadata["finalizers"] = json!(["kubernetes.io/pvc-protection"]);
        }
        self.put(key, object, owners)
    }

    /// Stores a new version, unless nothing differs.
    fn put(&mut self, key: Key, mut object: Value, owners: Owners) -> String {
        object["apiVersion"] = json!(key.kind.api_version);
        object["kind"] = json!(key.kind.name);
        with_defaults(key.kind, &mut object);
        let before = self.objects.get(&key).map(|object| object.value.clone());
        if let Some(before) = &before {
            if key.kind.counts && before.json["spec"] != object["spec"] {
                let generation = before.json["metadata"]["generation"].as_u64().unwrap();
                object["metadata"]["generation"] = json!(generation + 1);
            }
            if before.json == object {
                self.objects.get_mut(&key).unwrap().owners = owners;
                return before.text.clone();
            }
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let gone = ends(&object);
        let text = object.to_string();
        let value = Arc::new(Stored {
            json: object,
            text: text.clone(),
        });
        let after = (!gone).then(|| value.clone());
        self.changed(key.clone(), before, after);
        if gone {
            self.objects.remove(&key);
        } else {
            self.objects.insert(key, Object { value, owners });
        }
        text
    }

    pub(super) fn apply(&mut self, key: &Key, status: bool, manager: &str, wanted: &Value) -> Answer {
        let mut wanted = wanted.clone();
        let Some(found) = self.objects.get(key) else {
            if status {
                return Err(Refusal::not_found(key));
            }
            if !wanted["metadata"]["uid"].is_null() || !wanted["metadata"]["resourceVersion"].is_null() {
                return Err(Refusal::conflict(
                    key,
                    "the object was named by uid or version, and there is none",
                ));
            }
            take(&mut wanted, "status");
            let (mut object, mut owners) = (json!({"metadata": {"name": key.name}}), Owners::new());
            fields::apply(&mut object, &mut owners, manager, &wanted);
            return Ok(self.put_new(key.clone(), object, owners));
        };
        check(key, status, &found.value.json, &wanted["metadata"])?;
        only(key.kind, status, &mut wanted);
        let (mut object, mut owners) = (found.value.json.clone(), found.owners.clone());
        fields::apply(&mut object, &mut owners, manager, &wanted);
        Ok(self.put(key.clone(), object, owners))
    }

    pub(super) fn merge(&mut self, key: &Key, status: bool, patch: &Value) -> Answer {
        let found = self.objects.get(key).ok_or_else(|| Refusal::not_found(key))?;
        check(key, status, &found.value.json, &patch["metadata"])?;
        let mut patch = patch.clone();
        only(key.kind, status, &mut patch);
        let (mut object, mut owners) = (found.value.json.clone(), found.owners.clone());
        fields::merge(&mut object, &patch);
        for field in ["annotations", "labels"] {
            if object["metadata"][field].as_object().is_some_and(Map::is_empty) {
                take(&mut object["metadata"], field);
            }
        }
        fields::disown(&mut owners, &found.value.json, &object);
        Ok(self.put(key.clone(), object, owners))
    }

    pub(super) fn delete(&mut self, key: &Key, options: &Value) -> Answer {
        let found = self.objects.get(key).ok_or_else(|| Refusal::not_found(key))?;
        let decided = &options["preconditions"];
        check_version(key, &found.value.json, decided)?;
        if !same_uid(&found.value.json, decided) {
            return Err(Refusal::conflict(key, "it is another one"));
        }
        let mut object = found.value.json.clone();
        // A pod that has a k8s node is ended there first.
        let graceful = key.kind.name == "Pod"
            && !object["spec"]["nodeName"].is_null()
            && options["gracePeriodSeconds"].as_u64() != Some(0);
        let held = object["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|list| !list.is_empty());
        if graceful || held {
            object["metadata"]["deletionTimestamp"] = json!("2020-01-01T00:00:00Z");
            object["metadata"]["deletionGracePeriodSeconds"] = json!(if graceful { 30 } else { 0 });
            let owners = found.owners.clone();
            return Ok(self.put(key.clone(), object, owners));
        }
        let before = Some(found.value.clone());
        self.objects.remove(key);
        self.version += 1;
        self.changed(key.clone(), before, None);
        Ok(json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success"}).to_string())
    }
}

/// It was to be deleted, and nothing holds it any more.
fn ends(object: &Value) -> bool {
    let metadata = &object["metadata"];
    let held = metadata["finalizers"]
        .as_array()
        .is_some_and(|list| !list.is_empty());
    let graceful = metadata["deletionGracePeriodSeconds"].as_u64() != Some(0);
    !metadata["deletionTimestamp"].is_null() && !held && !graceful
}

/// Every label of the selector.
fn has(object: &Value, labels: &Labels) -> bool {
    let own = &object["metadata"]["labels"];
    labels.iter().all(|(key, value)| own[key].as_str() == Some(value))
}

/// Which version somebody has decided upon.
fn check_version(key: &Key, found: &Value, decided: &Value) -> Result<(), Refusal> {
    let (live, decided) = (&found["metadata"]["resourceVersion"], &decided["resourceVersion"]);
    if decided.is_null() || decided == live {
        return Ok(());
    }
    Err(Refusal::conflict(key, &format!("its version is {live} now")))
}

/// Which object somebody has decided upon. A write of the status says so in vain.
fn same_uid(found: &Value, decided: &Value) -> bool {
    decided["uid"].is_null() || decided["uid"] == found["metadata"]["uid"]
}

fn check(key: &Key, status: bool, found: &Value, decided: &Value) -> Result<(), Refusal> {
    check_version(key, found, decided)?;
    if status || same_uid(found, decided) {
        return Ok(());
    }
    let message = format!("{} {:?}: metadata.uid: field is immutable", key.kind, key.name);
    Err(Refusal::new(422, "Invalid", message))
}

/// A write of the status changes nothing else, and another no status.
fn only(kind: Kind, status: bool, written: &mut Value) {
    if let Some(metadata) = written.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in ["uid", "resourceVersion"] {
            metadata.remove(field);
        }
    }
    if status {
        *written = json!({"status": written["status"]});
    } else if kind.status {
        take(written, "status");
    }
}

fn take(object: &mut Value, field: &str) {
    object.as_object_mut().unwrap().remove(field);
}

/// What the API server fills in from the CRD: the defaults of the types, which a test holds to be the same.
fn with_defaults(kind: Kind, object: &mut Value) {
    if kind.name == "DynamoCluster" {
        let typed: DynamoCluster = serde_json::from_value(object.clone()).unwrap();
        object["spec"] = serde_json::to_value(&typed.spec).unwrap();
    }
}
