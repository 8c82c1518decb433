//! Names of objects, labels and annotations. Member ids are pod names, so these are part of what clusters live on.

use std::collections::BTreeMap;

use dynamo_core::types::{ClusterId, digest_u64};
use kube::ResourceExt as _;

use crate::crd::DynamoCluster;

/// Who writes objects, in `metadata.managedFields`.
pub const FIELD_MANAGER: &str = "dynamo-operator";
/// Who writes statuses.
pub const STATUS_FIELD_MANAGER: &str = "dynamo-operator-status";

/// On the DynamoCluster, its StatefulSets and its claims: the cluster's id, a UUID.
pub const CLUSTER_ID: &str = "dynamo.rs/cluster-id";
/// On the DynamoCluster: its zones and their StatefulSets, as JSON.
pub const LAYOUT: &str = "dynamo.rs/layout";
/// On StatefulSets, pods and claims: the zone. Label values cannot be empty: left out without zones.
pub const ZONE: &str = "dynamo.rs/zone";
/// On pods and claims, as label: the StatefulSet they belong to.
pub const STATEFUL_SET: &str = "dynamo.rs/stateful-set";
/// On StatefulSets: weight of each member.
pub const WEIGHT: &str = "dynamo.rs/weight";
/// On every object: hash of what the operator last wrote.
pub const DESIRED_HASH: &str = "dynamo.rs/desired-hash";
/// On pods: hash of the template they were made from.
pub const TEMPLATE_HASH: &str = "dynamo.rs/template-hash";
/// On a pod, by an administrator: "true" to have its data moved to other members, and the pod and its claim made anew.
pub const EVACUATE: &str = "dynamo.rs/evacuate";
/// On a claim: its member left the ring. A note for who finds it, and for a DynamoCluster of the same name.
pub const LEFT: &str = "dynamo.rs/left";
/// On pods: hash of the configuration file.
pub const CONFIG_HASH: &str = "dynamo.rs/config-hash";

/// The well-known label of a k8s node's zone.
pub const TOPOLOGY_ZONE: &str = "topology.kubernetes.io/zone";
/// The well-known label of a k8s node's name.
pub const HOSTNAME: &str = "kubernetes.io/hostname";
/// Name of the container.
pub const CONTAINER: &str = "node";
/// Name of the volume claim template.
pub const CLAIM: &str = "data";

/// A StatefulSet's name may have this many characters: its pods carry it with 11 more in a label of 63.
const STATEFUL_SET_CHARS_MAX: usize = 52;

/// The id that is written on a DynamoCluster; `None` before its creation has been decided, or if it is no UUID.
pub fn cluster_id_of(cluster: &DynamoCluster) -> Option<ClusterId> {
    parse_cluster_id(cluster.annotations().get(CLUSTER_ID)?)
}

/// Reads a cluster id as [`ClusterId`] prints it.
pub fn parse_cluster_id(text: &str) -> Option<ClusterId> {
    uuid::Uuid::parse_str(text)
        .ok()
        .filter(|id| !id.is_nil())
        .map(|id| ClusterId(id.into_bytes()))
}

/// The headless Service, which names pods.
pub fn nodes_service(cluster: &str) -> String {
    format!("{cluster}-nodes")
}

/// The Service for clients.
pub fn client_service(cluster: &str) -> String {
    format!("{cluster}-client")
}

/// The ConfigMap.
pub fn config_map(cluster: &str) -> String {
    format!("{cluster}-config")
}

/// The ServiceAccount.
pub fn service_account(cluster: &str) -> String {
    format!("{cluster}-node")
}

/// The member id of a StatefulSet's nth member, which is its pod's name.
pub fn member_id(stateful_set: &str, ordinal: u32) -> String {
    format!("{stateful_set}-{ordinal}")
}

/// The claim of a member.
pub fn claim(member_id: &str) -> String {
    format!("{CLAIM}-{member_id}")
}

/// The number of a member in its StatefulSet, if it is one of that set.
pub fn ordinal(stateful_set: &str, member_id: &str) -> Option<u32> {
    let number = member_id.strip_prefix(stateful_set)?.strip_prefix('-')?;
    let ordinal = number.parse().ok()?;
    // "+1" and "01" are no pod's.
    (member_id == self::member_id(stateful_set, ordinal)).then_some(ordinal)
}

/// DNS name of a member, resolvable from every namespace.
pub fn host(cluster: &str, namespace: &str, member_id: &str) -> String {
    format!("{member_id}.{}.{namespace}.svc", nodes_service(cluster))
}

/// Labels that select every pod of a cluster.
pub fn selector(cluster: &str) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "dynamo"),
        ("app.kubernetes.io/instance", cluster),
        ("app.kubernetes.io/component", "node"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// Labels of every object of a cluster.
pub fn labels(cluster: &str) -> BTreeMap<String, String> {
    let mut labels = selector(cluster);
    labels.insert("app.kubernetes.io/managed-by".into(), FIELD_MANAGER.into());
    labels
}

/// A label selector in the API's words.
pub fn selector_text(labels: &BTreeMap<String, String>) -> String {
    labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

/// The StatefulSet of a zone: `<cluster>-<zone>`, or `<cluster>` without zones. A zone's name that is no DNS label, or is
/// too long, is changed and gets a hash, so that two zones never share one.
pub fn stateful_set(cluster: &str, zone: &str) -> String {
    if zone.is_empty() {
        return cluster.into();
    }
    let room = STATEFUL_SET_CHARS_MAX.saturating_sub(cluster.len() + 1);
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    // A name that ends as hashed ones do is hashed too: nobody can choose a zone that takes another's name.
    if zone.len() <= room && zone.chars().all(plain) && !looks_hashed(zone) {
        return format!("{cluster}-{zone}");
    }
    let hash = format!("{:06x}", digest_u64(zone.as_bytes()) >> 40);
    let lower = zone.to_ascii_lowercase().replace(|c| !plain(c), "-");
    let kept: String = lower.chars().take(room.saturating_sub(hash.len() + 1)).collect();
    match kept.trim_end_matches('-') {
        "" => format!("{cluster}-{hash}"),
        kept => format!("{cluster}-{kept}-{hash}"),
    }
}

fn looks_hashed(zone: &str) -> bool {
    let tail = zone.rsplit_once('-').map_or(zone, |(_, tail)| tail);
    tail.len() == 6
        && tail
            .chars()
            .all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stateful_sets_of_zones_have_valid_distinct_names() {
        assert_eq!(stateful_set("demo", ""), "demo");
        assert_eq!(stateful_set("demo", "eu-west-1a"), "demo-eu-west-1a");
        let long = "x".repeat(63);
        let cluster = "c".repeat(40);
        let zones = [
            "a",
            "A",
            "a.b",
            "a_b",
            "a-b",
            "europe-west-4a",
            "europe-west-4b",
            "___",
            &long,
        ];
        let names: std::collections::BTreeSet<String> =
            zones.iter().map(|zone| stateful_set(&cluster, zone)).collect();
        assert_eq!(names.len(), zones.len(), "{names:?}");
        for name in names {
            assert!(name.len() <= STATEFUL_SET_CHARS_MAX, "{name}");
            assert!(
                name.chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'),
                "{name}"
            );
            assert!(!name.ends_with('-'), "{name}");
        }
        // A zone named like the hashed name of another does not take its place.
        let hashed = stateful_set("demo", "A");
        assert_ne!(
            stateful_set("demo", hashed.strip_prefix("demo-").unwrap()),
            hashed
        );
    }
}
