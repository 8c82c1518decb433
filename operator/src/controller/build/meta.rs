//! What all objects carry.

use std::collections::BTreeMap;

use dynamo_core::types::digest_u64;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt as _};
use serde::Serialize;

use crate::controller::{names, validate::ValidatedCluster};

/// Metadata of an object that goes when the DynamoCluster goes.
pub(super) fn owned(cluster: &ValidatedCluster, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace.clone()),
        labels: Some(names::labels(&cluster.name)),
        owner_references: Some(vec![cluster.owner.clone()]),
        ..ObjectMeta::default()
    }
}

/// 16 hexadecimal digits that change with any part of `value`.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn hash_of(value: &impl Serialize) -> Result<String, serde_json::Error> {
    // Through `Value`, whose maps are ordered.
    let bytes = serde_json::to_vec(&serde_json::to_value(value)?)?;
    Ok(format!("{:016x}", digest_u64(&bytes)))
}

/// Notes on an object what it was written as, so that a field that is left out later is noticed.
pub(super) fn annotate_hash<K: Resource + Serialize>(object: &mut K) -> Result<(), serde_json::Error> {
    let hash = hash_of(object)?;
    object.annotations_mut().insert(names::DESIRED_HASH.into(), hash);
    Ok(())
}

/// `base` and what the operator adds to it, which wins.
pub(super) fn with<const N: usize>(
    mut base: BTreeMap<String, String>,
    added: [(&str, String); N],
) -> BTreeMap<String, String> {
    base.extend(added.map(|(key, value)| (key.to_owned(), value)));
    base
}
