//! The API: kind `DynamoCluster` of group `dynamo.rs`, version `v1alpha1`.
//!
//! Types only. What a field is when left out stands in [`defaults`], conditions in [`conditions`], the generated
//! `CustomResourceDefinition` in [`definition`]. A doc comment of a field is what `kubectl explain` prints.
#![allow(
    clippy::struct_field_names,
    reason = "they are named as the node's own settings"
)]
#![allow(
    unreachable_pub,
    reason = "the derive makes a public twin of each type inside a function"
)]

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use quantity::Quantity;
pub use status::{
    DynamoClusterStatus, NodeStatus, PlanStatus, PlannedMember, RingStatus, TransitionStatus, ZoneStatus,
};

pub mod conditions;
pub mod defaults;
pub mod definition;
pub mod quantity;
mod schemas;
mod status;

/// What a Dynamo cluster should be.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "dynamo.rs",
    version = "v1alpha1",
    kind = "DynamoCluster",
    namespaced,
    derive = "PartialEq",
    status = "DynamoClusterStatus",
    shortname = "dync",
    category = "all",
    category = "dynamo",
    doc = "A Dynamo cluster: storage nodes that form one ring, spread over zones (SOSP 2007).",
    scale(
        spec_replicas_path = ".spec.members",
        status_replicas_path = ".status.members",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "integer",
        description = "Members that serve their ranges.",
        json_path = ".status.readyMembers"
    ),
    printcolumn(
        name = "Members",
        type_ = "integer",
        description = "Members that there should be.",
        json_path = ".spec.members"
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        description = "Why the cluster is ready or not.",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#
    ),
    printcolumn(
        name = "Epoch",
        type_ = "integer",
        description = "Epoch of the ring.",
        json_path = ".status.ring.epoch"
    ),
    printcolumn(
        name = "Progress",
        type_ = "string",
        description = "How far a change of the ring is; empty while there is none.",
        json_path = ".status.transition.progress"
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        description = "Release that the nodes run.",
        json_path = ".status.version"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Factor",
        type_ = "integer",
        description = "N: replicas of every key.",
        json_path = ".spec.replication.factor",
        priority = "1"
    ),
    printcolumn(
        name = "Partitions",
        type_ = "integer",
        description = "Q: ranges of the ring.",
        json_path = ".spec.ring.partitions",
        priority = "1"
    ),
    printcolumn(
        name = "Quorum",
        type_ = "string",
        description = "Whether every partition has a quorum.",
        json_path = r#".status.conditions[?(@.type=="QuorumAvailable")].status"#,
        priority = "1"
    ),
    printcolumn(
        name = "Endpoint",
        type_ = "string",
        description = "Where clients connect to.",
        json_path = ".status.endpoint",
        priority = "1"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        description = "The same as Status in a sentence.",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = "1"
    ),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$')").message(
        "metadata.name must be 1 to 40 characters of a-z, 0-9 and '-', starting with a letter: Services and pods are named after it"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.members >= self.replication.factor").message(
        "members must be at least replication.factor, for every key is kept by that many distinct members: raise members or lower replication.factor"
    ).field_path(".members"),
    validation = Rule::new("self.ring.partitions >= self.members").message(
        "ring.partitions must be at least members, for every member owns at least one partition: raise ring.partitions"
    ).field_path(".ring.partitions"),
    validation = Rule::new("!has(self.zones) || size(self.zones) <= self.members").message(
        "zones must not outnumber members, for every zone holds at least one: raise members or name fewer zones"
    ).field_path(".zones"),
    validation = Rule::new("has(self.zones) || !has(oldSelf.zones)").message(
        "zones cannot be left out once they are named: change the list, and data move to the zones that it names"
    ).field_path(".zones"),
)]
pub struct DynamoClusterSpec {
    /// How many nodes form the ring, 1 to 100, spread evenly over the zones. It can be changed at any time, also while an
    /// earlier change is under way: data move, and pods go once their data are elsewhere. Their volumes stay.
    #[serde(default = "defaults::members")]
    #[schemars(range(min = 1, max = 100))]
    pub members: i32,
    /// The zones that members are spread over, one StatefulSet each. Left out: the zones that the labels
    /// topology.kubernetes.io/zone of the cluster's k8s nodes show at creation, remembered from then on. A zone that is taken
    /// off the list is emptied before its pods go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub zones: Option<Vec<Zone>>,
    /// How many replicas every key has, and how many of them a request needs.
    #[serde(default)]
    pub replication: Replication,
    /// How the ring is divided.
    #[serde(default)]
    pub ring: Ring,
    /// When a change of the ring begins. Automatic: as soon as the spec asks for it. Manual: once approvedPlan is the hash
    /// that status.plan shows.
    #[serde(default)]
    pub rebalance: Rebalance,
    /// With rebalance: Manual, the hash of the plan that may begin: 16 hexadecimal digits, as in status.plan. It approves that
    /// ring and no later one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(
        validation = Rule::new("self.matches('^[0-9a-f]{16}$')").message("approvedPlan must be the 16 hexadecimal digits that status.plan.hash shows")
    )]
    pub approved_plan: Option<String>,
    /// The volume of every node.
    #[serde(default)]
    pub storage: Storage,
    /// When a write counts as accepted by a node.
    #[serde(default)]
    pub durability: Durability,
    /// What nodes keep for members that cannot be reached.
    #[serde(default)]
    pub hints: Hints,
    /// How replicas are compared behind the foreground.
    #[serde(default)]
    pub anti_entropy: AntiEntropy,
    /// When what was deleted leaves the disks.
    #[serde(default)]
    pub reaping: Reaping,
    /// Image of the nodes. Left out: that of the operator's release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-zA-Z0-9][a-zA-Z0-9._:/@-]*$')").message("image must be a reference such as registry.example.net/dynamo-node:0.1.0")
    )]
    pub image: Option<String>,
    /// When the kubelet pulls the image. Left out: Kubernetes' own rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,
    /// CPU and memory of every node.
    #[serde(default)]
    pub resources: Resources,
    /// Which k8s nodes may run a member.
    #[serde(default)]
    pub placement: Placement,
    /// Bounds that every node keeps.
    #[serde(default)]
    pub limits: Limits,
    /// The least severe log lines that nodes write.
    #[serde(default)]
    pub log_level: LogLevel,
    /// True: the operator observes and reports, but changes nothing.
    #[serde(default)]
    pub paused: bool,
    /// Annotations to add to every pod, at most 32. Those of the operator win.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schemas::annotations")]
    pub pod_annotations: BTreeMap<String, String>,
    /// Labels to add to every pod, at most 32. Those of the operator win.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schemas::labels")]
    pub pod_labels: BTreeMap<String, String>,
}

/// A failure domain.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Zone {
    /// Name of the zone; also the value of the label topology.kubernetes.io/zone of its k8s nodes, unless nodeSelector
    /// says otherwise.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$')").message("a zone's name must be 1 to 63 characters of A-Z, a-z, 0-9, '_', '.' and '-', beginning and ending with a letter or digit, as a label's value")
    )]
    pub name: String,
    /// Labels of the k8s nodes of the zone, at most 32. Left out: topology.kubernetes.io/zone with the zone's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schemas::labels")]
    pub node_selector: BTreeMap<String, String>,
    /// Share of the ring of each of the zone's members relative to the others, 1 to 100. A change moves the difference.
    #[serde(default = "defaults::weight")]
    #[schemars(range(min = 1, max = 100))]
    pub weight: i32,
}

/// N, R and W of the paper.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.readQuorum) || self.readQuorum <= self.factor").message(
        "replication.readQuorum must be 1 to replication.factor: more replicas cannot answer than there are"
    ).field_path(".readQuorum"),
    validation = Rule::new("!has(self.writeQuorum) || self.writeQuorum <= self.factor").message(
        "replication.writeQuorum must be 1 to replication.factor: more replicas cannot accept than there are"
    ).field_path(".writeQuorum"),
)]
pub struct Replication {
    /// N: how many members keep each key, 1 to 7. Cannot be changed after creation.
    #[serde(default = "defaults::factor")]
    #[schemars(range(min = 1, max = 7))]
    #[x_kube(
        validation = Rule::new("self == oldSelf").message("replication.factor is immutable: create another cluster and import the data there")
    )]
    pub factor: i32,
    /// R: how many replicas must answer a get that names no number itself, 1 to factor. Left out: a majority of factor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 7))]
    pub read_quorum: Option<i32>,
    /// W: how many replicas must accept a put that names no number itself, 1 to factor. Left out: a majority of factor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 7))]
    pub write_quorum: Option<i32>,
    /// What a change of the ring may do to the spread of replicas over zones. BestEffort: what the members that are asked for
    /// come to. Require: a change that would leave replicas of a key closer together than now is refused.
    #[serde(default)]
    pub zone_policy: ZonePolicy,
}

/// What a change of the ring may do to the spread of replicas over zones.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ZonePolicy {
    /// What the members that are asked for come to.
    #[default]
    BestEffort,
    /// A change that would leave replicas of a key closer together than now is refused.
    Require,
}

/// When a change of the ring begins.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rebalance {
    /// As soon as the spec asks for it.
    #[default]
    Automatic,
    /// Once its plan is approved.
    Manual,
}

/// How the hash space is divided.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ring {
    /// Q: equal ranges of the hash space that members own, a power of two, 8 to 16384 and at least members. It can be doubled,
    /// which moves no data, and not be lowered.
    #[serde(default = "defaults::partitions")]
    #[schemars(range(min = 8, max = 16384))]
    #[x_kube(
        validation = Rule::new("self in [8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]").message("ring.partitions must be a power of two: 8, 16, 32, ... 16384"),
        validation = Rule::new("self == oldSelf || self == oldSelf * 2").message("ring.partitions can be doubled, once at a time, and not be lowered: every partition is cut in two, and nothing moves")
    )]
    pub partitions: i32,
}

/// The volume of every node.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)").message(
        "storage.storageClassName is immutable: a volume cannot change its class"
    ).field_path(".storageClassName"),
)]
pub struct Storage {
    /// Size of each node's volume, such as 100Gi; at least 64Mi. It can grow where the storage class allows it, never
    /// shrink.
    #[serde(default = "defaults::size")]
    #[x_kube(
        validation = Rule::new("isQuantity(string(self)) && quantity(string(self)).compareTo(quantity('64Mi')) >= 0").message("storage.size must be a quantity of at least 64Mi, such as 100Gi"),
        validation = Rule::new("!isQuantity(string(self)) || !isQuantity(string(oldSelf)) || quantity(string(self)).compareTo(quantity(string(oldSelf))) >= 0").message("storage.size can only grow: a volume cannot shrink")
    )]
    pub size: Quantity,
    /// Storage class of the volumes. Left out: the default class. Cannot be changed after creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// What becomes of the volumes when the DynamoCluster is deleted. Retain: they stay, and a DynamoCluster of the same
    /// name takes them over. Delete: they are deleted with it, data included.
    #[serde(default)]
    pub when_deleted: WhenDeleted,
    /// What becomes of a member whose volume is lost with its k8s node, or is gone. Replace: it gets an empty one, and its data
    /// back from the other members. Keep: it waits for a person.
    #[serde(default)]
    pub when_lost: WhenLost,
    /// Seconds that a pod must have found no k8s node before its volume is taken for lost, 10 to 86400. A k8s node may come
    /// back under its name until then.
    #[serde(default = "defaults::lost_after_seconds")]
    #[schemars(range(min = 10, max = 86_400))]
    pub lost_after_seconds: i32,
}

/// What becomes of a member whose volume is lost.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhenLost {
    /// It gets an empty one, and its data back from the other members.
    #[default]
    Replace,
    /// It waits for a person.
    Keep,
}

/// What becomes of the volumes when the DynamoCluster is deleted.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhenDeleted {
    /// They stay, and a DynamoCluster of the same name takes them over.
    #[default]
    Retain,
    /// They are deleted with it, data included.
    Delete,
}

/// When a write counts as accepted by a node.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Durability {
    /// every: synced to disk, many writes per sync. oneOfN: synced on the node that coordinates the write, as interval
    /// on the others; lost only if all lose power and that one its disk. interval: in the write-ahead log, which is synced
    /// on a timer; the last interval is lost if all replicas lose power at once. buffered: in memory, written and synced on
    /// a timer; acknowledged writes of the last interval are lost if as many nodes as writeQuorum are killed within it.
    #[serde(default)]
    pub mode: DurabilityMode,
    /// Milliseconds between syncs in every mode but every, 1 to 60000.
    #[serde(default = "defaults::interval_ms")]
    #[schemars(range(min = 1, max = 60000))]
    pub interval_ms: i32,
}

/// When a write counts as accepted by a node.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DurabilityMode {
    /// Synced to disk.
    #[default]
    Every,
    /// In the write-ahead log.
    Interval,
    /// Synced to disk on the node that coordinates the write, in the write-ahead log on the others.
    OneOfN,
    /// In memory.
    Buffered,
}

/// What nodes keep for members that cannot be reached. Paper: §4.6.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hints {
    /// Bytes of hints on each node, 0 to 1099511627776. Beyond, hints are declined, and anti-entropy brings what they would
    /// have. 0: nodes keep none.
    #[serde(default = "defaults::hints_bytes_max")]
    #[schemars(range(min = 0, max = 1_099_511_627_776_i64))]
    pub bytes_max: i64,
    /// Seconds between two looks for hints that can be delivered, 1 to 3600. A member that answers again gets its hints at
    /// once.
    #[serde(default = "defaults::hints_interval_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    pub interval_seconds: i32,
}

/// How replicas are compared behind the foreground. Paper: §4.7.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AntiEntropy {
    /// Seconds in which each partition is compared with one of its other replicas, 1 to 86400: with all of them in
    /// factor - 1 intervals.
    #[serde(default = "defaults::anti_entropy_interval_seconds")]
    #[schemars(range(min = 1, max = 86_400))]
    pub interval_seconds: i32,
}

/// When what was deleted leaves the disks.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reaping {
    /// Seconds between two looks for tombstones that can go, 1 to 86400.
    #[serde(default = "defaults::reaping_interval_seconds")]
    #[schemars(range(min = 1, max = 86_400))]
    pub interval_seconds: i32,
    /// Seconds that all replicas of a tombstone must have been left alone before it goes, 1 to 2592000. Longer than any
    /// request, pause of a process or message under way can last: below 60 for tests only.
    #[serde(default = "defaults::reaping_grace_seconds")]
    #[schemars(range(min = 1, max = 2_592_000))]
    pub grace_seconds: i32,
}

/// When the kubelet pulls the image.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImagePullPolicy {
    /// At each start.
    Always,
    /// If the k8s node lacks it.
    IfNotPresent,
    /// Never.
    Never,
}

/// CPU and memory of every node.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.limits.cpu) || !has(self.requests.cpu) || quantity(string(self.limits.cpu)).compareTo(quantity(string(self.requests.cpu))) >= 0").message(
        "resources.limits.cpu must be at least resources.requests.cpu: raise the limit or lower the request"
    ).field_path(".limits"),
    validation = Rule::new("!has(self.limits.memory) || !has(self.requests.memory) || quantity(string(self.limits.memory)).compareTo(quantity(string(self.requests.memory))) >= 0").message(
        "resources.limits.memory must be at least resources.requests.memory: raise the limit or lower the request"
    ).field_path(".limits"),
)]
pub struct Resources {
    /// What the scheduler sets aside.
    #[serde(default = "defaults::requests")]
    pub requests: ResourceAmounts,
    /// What a node may use at most.
    #[serde(default)]
    pub limits: ResourceAmounts,
}

/// Amounts of CPU and memory.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.cpu) || (isQuantity(string(self.cpu)) && quantity(string(self.cpu)).isGreaterThan(quantity('0')))").message(
        "cpu must be a quantity above 0, such as 500m or 2"
    ).field_path(".cpu"),
    validation = Rule::new("!has(self.memory) || (isQuantity(string(self.memory)) && quantity(string(self.memory)).isGreaterThan(quantity('0')))").message(
        "memory must be a quantity above 0, such as 512Mi"
    ).field_path(".memory"),
)]
pub struct ResourceAmounts {
    /// Processors, such as 500m or 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Bytes of memory, such as 512Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
}

/// Which k8s nodes may run a member.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Whether two members may share a k8s node. Required: never, a member waits for a k8s node of its own. Preferred:
    /// only if there is no other room.
    #[serde(default)]
    pub host_anti_affinity: HostAntiAffinity,
    /// Taints that members tolerate, at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub tolerations: Vec<Toleration>,
    /// Labels that a k8s node must have besides those of its zone, at most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schemas::labels")]
    pub node_selector: BTreeMap<String, String>,
}

/// Whether two members may share a k8s node.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostAntiAffinity {
    /// Never.
    Required,
    /// If there is no other room.
    #[default]
    Preferred,
}

/// A taint that members tolerate, as in a pod.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.key) || (has(self.operator) && self.operator == 'Exists')").message(
        "a toleration without a key must have operator Exists: it then tolerates every taint"
    ).field_path(".key"),
    validation = Rule::new("!has(self.operator) || self.operator != 'Exists' || !has(self.value)").message(
        "a toleration with operator Exists takes no value: leave value out"
    ).field_path(".value"),
    validation = Rule::new("!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')").message(
        "tolerationSeconds needs effect NoExecute: only that one evicts"
    ).field_path(".tolerationSeconds"),
)]
pub struct Toleration {
    /// Key of the taint. Left out: every key, with operator Exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 316))]
    pub key: Option<String>,
    /// Exists: any value. Equal: the value below. Left out: Equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<TolerationOperator>,
    /// Value of the taint with operator Equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// Effect of the taint. Left out: every effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
    /// Seconds that a member stays when the taint comes, 0 to 86400. Left out: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86400))]
    pub toleration_seconds: Option<i64>,
}

/// How a taint's value is compared.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TolerationOperator {
    /// Any value.
    Exists,
    /// The value given.
    Equal,
}

/// What a taint does.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaintEffect {
    /// New pods stay away.
    NoSchedule,
    /// New pods go elsewhere if they can.
    PreferNoSchedule,
    /// Running pods are evicted too.
    NoExecute,
}

/// Bounds that every node keeps.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Bytes of a value, 1 to 16777216.
    #[serde(default = "defaults::value_bytes_max")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub value_bytes_max: i32,
    /// Open connections per port, 1 to 100000.
    #[serde(default = "defaults::connections_max")]
    #[schemars(range(min = 1, max = 100_000))]
    pub connections_max: i32,
    /// Requests served at once at most, 1 to 100000; more are refused with RESOURCE_EXHAUSTED. Fewer while they take too long.
    #[serde(default = "defaults::requests_in_flight_max")]
    #[schemars(range(min = 1, max = 100_000))]
    pub requests_in_flight_max: i32,
}

/// The least severe log lines that nodes write.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// What developers ask for.
    Debug,
    /// What administrators ask for.
    #[default]
    Info,
    /// What should not be.
    Warn,
    /// What failed.
    Error,
}
