//! What the operator last saw.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator last saw.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DynamoClusterStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Members that have a pod.
    #[serde(default)]
    pub members: i32,
    /// Members that serve their ranges.
    #[serde(default)]
    pub ready_members: i32,
    /// Selects the pods of the cluster; for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Name of the cluster for ever, a UUID; it is in every node's volume too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Release that the nodes run; several while they differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where clients in the k8s cluster connect to, host:port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The ring, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring: Option<RingStatus>,
    /// Hints that the members keep for each other; those of members that do not answer are not counted.
    #[serde(default)]
    pub hints: i64,
    /// Partitions that members hold but do not answer reads for, since their stores are not whole, summed over the members
    /// that answer.
    #[serde(default)]
    pub suspect_partitions: i32,
    /// The zones, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub zones: Vec<ZoneStatus>,
    /// The members, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub nodes: Vec<NodeStatus>,
    /// Ready, Reconciling, Stalled, QuorumAvailable and RingBalanced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// The ring as the nodes agree on it.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RingStatus {
    /// Its epoch: 1 for the first ring, one more with each change of membership.
    pub epoch: i64,
    /// Its hash, 16 hexadecimal digits.
    pub hash: String,
    /// Q: ranges of the hash space.
    pub partitions: i32,
    /// Fewest partitions that a member owns.
    pub min_owned: i32,
    /// Most partitions that a member owns.
    pub max_owned: i32,
}

/// A zone and its StatefulSet.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ZoneStatus {
    /// Name of the zone; "-" for a cluster without zones.
    pub name: String,
    /// StatefulSet of its members.
    pub stateful_set: String,
    /// Members that there should be.
    pub members: i32,
    /// Members that serve their ranges.
    pub ready_members: i32,
}

/// A member as the operator last saw it.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Its member id, which is its pod's name.
    pub name: String,
    /// Its zone; empty without zones.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// The k8s node that its pod is on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub k8s_node: String,
    /// Absent, Pending, Silent, Unassigned, Joining, Valid, Draining, Foreign or Misplaced.
    pub state: String,
    /// Partitions that it owns.
    #[serde(default)]
    pub owned: i32,
    /// Why it is not Valid.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}
