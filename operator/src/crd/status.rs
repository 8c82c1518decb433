//! What the operator last saw.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schemas;

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
    /// The change of the ring that is under way, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transition: Option<TransitionStatus>,
    /// With rebalance: Manual, the change of the ring that waits for approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanStatus>,
    /// Hints that the members keep for each other; those of members that do not answer are not counted.
    #[serde(default)]
    pub hints: i64,
    /// Partitions that members hold but do not answer reads for, since their stores are not whole, summed over the members
    /// that answer.
    #[serde(default)]
    pub suspect_partitions: i32,
    /// The zones, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub zones: Vec<ZoneStatus>,
    /// The members, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
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

/// A change of the ring that is under way.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TransitionStatus {
    /// Epoch of the proposed ring.
    pub epoch: i64,
    /// The step that is waited for: known (all members know the ring), synced (its data are where it wants them) or reading
    /// (all members read from it).
    pub step: String,
    /// Members whose step that is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schemas::member_ids")]
    pub waits_for: Vec<String>,
    /// Partitions that members have to pull, summed over those that answer.
    pub pulls: i64,
    /// Of these, those that are there.
    pub pulled: i64,
    /// Step and partitions in a word.
    pub progress: String,
    /// When the operator saw it first, in UTC.
    pub since: String,
}

/// A change of the ring that could begin.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanStatus {
    /// Epoch that the ring would have.
    pub epoch: i64,
    /// Hash that the ring would have; what spec.approvedPlan has to be.
    pub hash: String,
    /// Q that the ring would have.
    pub partitions: i32,
    /// Replica-partitions that move.
    pub moves: i64,
    /// The fewest that any ring with these shares would move.
    pub minimum_moves: i64,
    /// Estimated bytes that move.
    pub bytes: i64,
    /// Partitions whose replicas share a zone more than they must, now.
    pub zone_violations_before: i64,
    /// The same afterwards.
    pub zone_violations_after: i64,
    /// Each member before or after.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub members: Vec<PlannedMember>,
    /// What to know before it begins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schemas::sentences")]
    pub warnings: Vec<String>,
}

/// A member in a plan.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedMember {
    /// Its member id.
    pub name: String,
    /// Partitions that it owns now; 0 for a new member.
    pub owned_before: i32,
    /// Partitions that it would own; 0 for one that goes.
    pub owned_after: i32,
    /// Replica-partitions that it gets and did not hold.
    pub gets: i32,
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
    /// Absent, Pending, Silent, Unassigned, Joining, Valid, Draining, Foreign or Misplaced; Leaving or Left, if the spec does
    /// not ask for it any more.
    pub state: String,
    /// Partitions that it owns.
    #[serde(default)]
    pub owned: i32,
    /// Why it is not Valid.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}
