//! I/O: everything a reconcile decides upon, read live from the API server and the nodes, as plain data.

use std::{collections::BTreeMap, fmt::Debug, net::IpAddr, sync::Arc};

use dynamo_core::{ring::Placement, types::ClusterId};
use dynamo_proto::admin as pb;
use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{Node, PersistentVolumeClaim, Pod, PodCondition},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Api, Client, Resource, ResourceExt as _, api::ListParams};
use serde::de::DeserializeOwned;

use super::{names, volumes};
use crate::{
    admin::{Admin, NodeReport},
    crd::{DynamoCluster, Quantity},
};

/// What was read. `None` and missing entries mean "not there when asked", which is never a reason to delete.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The k8s nodes; `None` if the operator may not list them.
    pub k8s_nodes: Option<Vec<K8sNode>>,
    /// The StatefulSets that this very DynamoCluster controls, by name.
    pub stateful_sets: BTreeMap<String, StatefulSetFacts>,
    /// The pods that those StatefulSets control, by name.
    pub pods: BTreeMap<String, PodFacts>,
    /// Claims with the cluster's labels, whoever made them, by name.
    pub claims: BTreeMap<String, ClaimFacts>,
    /// What the pods' nodes said, by pod. An error is no statement about the node.
    pub answers: BTreeMap<String, Result<NodeReport, String>>,
    /// The largest ring that a node told.
    pub ring: Option<Arc<Placement>>,
    /// Where a change of the ring stands, as the nodes told that have a ring, by pod.
    pub changes: BTreeMap<String, Result<pb::TransitionResponse, String>>,
    /// What the change that is wanted would come to, if one is; asked last, of one node.
    pub preview: Option<Result<Preview, String>>,
    /// When.
    pub at: Timestamp,
}

/// What a node says that a change of the ring would come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Preview {
    /// Who said it.
    pub member: String,
    /// What was asked for.
    pub target: pb::RingTarget,
    /// What it comes to.
    pub plan: pb::PlanResponse,
}

/// A k8s node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct K8sNode {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// `kubectl cordon` was here.
    pub cordoned: bool,
    /// Taints that keep pods away (NoSchedule, NoExecute): key, value, effect.
    pub taints: Vec<(String, String, String)>,
}

/// A StatefulSet of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatefulSetFacts {
    /// Which StatefulSet of this name.
    pub uid: String,
    /// Its version.
    pub resource_version: String,
    /// Its zone; empty without zones.
    pub zone: String,
    /// Its members.
    pub members: u32,
    /// Weight of each.
    pub weight: u32,
    /// The cluster id it was made for.
    pub cluster_id: Option<String>,
    /// Size in its claim template, which cannot be changed.
    pub claim_size: Option<Quantity>,
    /// Hash of its pod template, as the operator noted it.
    pub template_hash: Option<String>,
    /// Kubernetes' controller has seen the newest template.
    pub current: bool,
    /// Labels of the k8s nodes that its pods may run on.
    pub node_selector: BTreeMap<String, String>,
}

/// A pod of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Which pod of this name.
    pub uid: String,
    /// Its version.
    pub resource_version: String,
    /// Its address, once it has one.
    pub ip: Option<IpAddr>,
    /// Where it runs, once that is decided.
    pub k8s_node: Option<String>,
    /// What its k8s node or the scheduler says about its container.
    pub container: Container,
    /// Its readiness probe succeeds.
    pub ready: bool,
    /// It is being deleted.
    pub deleting: bool,
    /// Hash of the template that it was made from.
    pub template_hash: Option<String>,
    /// Somebody wants its data away from it.
    pub evacuate: bool,
    /// Since when the scheduler has found no k8s node for it.
    pub unscheduled_since: Option<Timestamp>,
}

/// What Kubernetes says about a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Container {
    /// It runs.
    Running,
    /// It does not, positively; with the reason.
    Stopped(String),
    /// Nobody said.
    #[default]
    Unknown,
}

/// A persistent volume claim.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClaimFacts {
    /// Which claim of this name.
    pub uid: String,
    /// Its version.
    pub resource_version: String,
    /// The cluster id it was made for.
    pub cluster_id: Option<String>,
    /// The StatefulSet it was made for.
    pub stateful_set: Option<String>,
    /// Its zone; empty without zones.
    pub zone: String,
    /// Size asked for.
    pub size: Option<Quantity>,
    /// Its owners.
    pub owners: Vec<OwnerReference>,
    /// It is being deleted.
    pub deleting: bool,
    /// Its member left the ring: the data on it are nobody's any more.
    pub left: bool,
    /// Its volume.
    pub volume: Option<String>,
    /// Its volume is lost, positively; with the reason.
    pub lost: Option<String>,
}

/// Why the cluster could not be observed.
#[derive(Debug, thiserror::Error)]
#[error("cannot list {what}: {source}")]
pub struct ObserveError {
    pub(super) what: &'static str,
    pub(super) source: Box<kube::Error>,
}

/// Reads everything about a cluster.
///
/// # Errors
/// If the API server does not answer. Nodes that do not are in the result.
pub async fn observe<A: Admin>(
    client: &Client,
    admin: &A,
    cluster: &DynamoCluster,
) -> Result<Observed, ObserveError> {
    let (name, namespace) = (cluster.name_any(), cluster.namespace().unwrap_or_default());
    let uid = cluster.uid().unwrap_or_default();
    let labels = names::selector_text(&names::labels(&name));
    let (sets, pods, claims, k8s_nodes) = tokio::try_join!(
        list::<StatefulSet>(client, &namespace, &labels, "StatefulSets"),
        list::<Pod>(client, &namespace, &labels, "pods"),
        list::<PersistentVolumeClaim>(client, &namespace, &labels, "volume claims"),
        list_k8s_nodes(client),
    )?;
    let controlled: Vec<&StatefulSet> = sets.iter().filter(|set| controller(*set) == Some(&uid)).collect();
    let set_uids: Vec<&str> = controlled
        .iter()
        .filter_map(|set| set.metadata.uid.as_deref())
        .collect();
    let pods: BTreeMap<String, PodFacts> = pods
        .iter()
        .filter(|pod| controller(*pod).is_some_and(|uid| set_uids.contains(&uid)))
        .map(|pod| (pod.name_any(), pod_facts(pod)))
        .collect();
    let answers = ask(admin, &pods).await;
    let cluster_id = names::cluster_id_of(cluster);
    let (ring, changes) = tokio::join!(
        ask_ring(admin, &pods, &answers, cluster_id),
        ask_changes(admin, &pods, &answers, cluster_id),
    );
    let mut claims: BTreeMap<String, ClaimFacts> = claims
        .iter()
        .map(|claim| (claim.name_any(), claim_facts(claim)))
        .collect();
    volumes::find_lost(client, &pods, &mut claims, k8s_nodes.as_deref()).await?;
    Ok(Observed {
        k8s_nodes,
        stateful_sets: controlled
            .into_iter()
            .map(|set| (set.name_any(), stateful_set_facts(set)))
            .collect(),
        pods,
        claims,
        answers,
        ring,
        changes,
        preview: None,
        at: Timestamp::UNIX_EPOCH,
    })
}

async fn list<K>(
    client: &Client,
    namespace: &str,
    labels: &str,
    what: &'static str,
) -> Result<Vec<K>, ObserveError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let api = Api::<K>::namespaced(client.clone(), namespace);
    let list = api.list(&ListParams::default().labels(labels)).await;
    Ok(list
        .map_err(|source| ObserveError {
            what,
            source: Box::new(source),
        })?
        .items)
}

async fn list_k8s_nodes(client: &Client) -> Result<Option<Vec<K8sNode>>, ObserveError> {
    match Api::<Node>::all(client.clone())
        .list(&ListParams::default())
        .await
    {
        Ok(list) => Ok(Some(list.items.iter().map(k8s_node).collect())),
        Err(kube::Error::Api(status)) if status.is_forbidden() => Ok(None),
        Err(source) => Err(ObserveError {
            what: "k8s nodes",
            source: Box::new(source),
        }),
    }
}

async fn ask<A: Admin>(
    admin: &A,
    pods: &BTreeMap<String, PodFacts>,
) -> BTreeMap<String, Result<NodeReport, String>> {
    let calls = pods.iter().filter_map(|(name, pod)| {
        let ip = pod
            .ip
            .filter(|_| !matches!(pod.container, Container::Stopped(_)))?;
        Some(async move {
            (
                name.clone(),
                admin.status(ip).await.map_err(|error| error.to_string()),
            )
        })
    });
    futures::future::join_all(calls).await.into_iter().collect()
}

/// The largest ring of the cluster, asked of those who say they have it until one of them tells it.
async fn ask_ring<A: Admin>(
    admin: &A,
    pods: &BTreeMap<String, PodFacts>,
    answers: &BTreeMap<String, Result<NodeReport, String>>,
    cluster_id: Option<ClusterId>,
) -> Option<Arc<Placement>> {
    let mut holders: Vec<(&String, &NodeReport)> = answers
        .iter()
        .filter_map(|(name, answer)| Some((name, answer.as_ref().ok()?)))
        .filter(|(_, report)| report.ring_epoch > 0 && report.cluster_id == cluster_id)
        .collect();
    holders.sort_by_key(|(_, report)| std::cmp::Reverse((report.ring_epoch, report.ring_hash)));
    for (name, _) in holders.into_iter().take(3) {
        let Some(ip) = pods.get(name).and_then(|pod| pod.ip) else {
            continue;
        };
        match admin.ring(ip).await {
            Ok(ring) => return Some(ring),
            Err(error) => tracing::info!(pod = name, %error, "a node did not tell its ring"),
        }
    }
    None
}

/// Where a change stands, asked of all who say that they have a ring of the cluster.
async fn ask_changes<A: Admin>(
    admin: &A,
    pods: &BTreeMap<String, PodFacts>,
    answers: &BTreeMap<String, Result<NodeReport, String>>,
    cluster_id: Option<ClusterId>,
) -> BTreeMap<String, Result<pb::TransitionResponse, String>> {
    let holders = answers
        .iter()
        .filter_map(|(name, answer)| Some((name, answer.as_ref().ok()?)))
        .filter(|(_, report)| report.ring_epoch > 0 && report.cluster_id == cluster_id);
    let calls = holders.filter_map(|(name, _)| {
        let ip = pods.get(name)?.ip?;
        Some(async move {
            (
                name.clone(),
                admin.transition(ip).await.map_err(|error| error.to_string()),
            )
        })
    });
    futures::future::join_all(calls).await.into_iter().collect()
}

/// A question about one plan goes to at most this many nodes.
const PLAN_TRIES: usize = 3;

/// Asks one node after the other what a change would come to, until one says it.
pub async fn preview<A: Admin>(
    admin: &A,
    nodes: &[(String, IpAddr)],
    target: &pb::RingTarget,
) -> Result<Preview, String> {
    let mut why = Vec::new();
    for (member, ip) in nodes.iter().take(PLAN_TRIES) {
        match admin.plan(*ip, target.clone()).await {
            Ok(plan) => {
                return Ok(Preview {
                    member: member.clone(),
                    target: target.clone(),
                    plan,
                });
            }
            Err(error) => why.push(format!("{member}: {error}")),
        }
    }
    Err(if why.is_empty() {
        "no member of the ring answers".into()
    } else {
        why.join("; ")
    })
}

/// UID of the object that controls another.
pub fn controller<K: Resource>(object: &K) -> Option<&str> {
    let owners = object.meta().owner_references.as_deref().unwrap_or_default();
    owners
        .iter()
        .find(|owner| owner.controller == Some(true))
        .map(|owner| owner.uid.as_str())
}

fn k8s_node(node: &Node) -> K8sNode {
    let spec = node.spec.clone().unwrap_or_default();
    let taints = spec.taints.unwrap_or_default().into_iter();
    K8sNode {
        name: node.name_any(),
        labels: node.labels().clone(),
        cordoned: spec.unschedulable == Some(true),
        taints: taints
            .filter(|taint| taint.effect != "PreferNoSchedule")
            .map(|taint| (taint.key, taint.value.unwrap_or_default(), taint.effect))
            .collect(),
    }
}

fn stateful_set_facts(set: &StatefulSet) -> StatefulSetFacts {
    let annotation = |key: &str| set.annotations().get(key).cloned();
    let spec = set.spec.clone().unwrap_or_default();
    let claim = spec.volume_claim_templates.unwrap_or_default().into_iter().next();
    StatefulSetFacts {
        uid: set.uid().unwrap_or_default(),
        resource_version: set.resource_version().unwrap_or_default(),
        zone: annotation(names::ZONE).unwrap_or_default(),
        members: u32::try_from(spec.replicas.unwrap_or(0)).unwrap_or(0),
        weight: annotation(names::WEIGHT)
            .and_then(|weight| weight.parse().ok())
            .unwrap_or(1),
        cluster_id: annotation(names::CLUSTER_ID),
        claim_size: claim.as_ref().and_then(claim_size),
        template_hash: template_hash(set),
        current: set.status.as_ref().and_then(|status| status.observed_generation) == set.metadata.generation,
        node_selector: spec
            .template
            .spec
            .and_then(|pod| pod.node_selector)
            .unwrap_or_default(),
    }
}

/// Hash of a StatefulSet's pod template, as the operator noted it.
pub fn template_hash(set: &StatefulSet) -> Option<String> {
    let metadata = set.spec.as_ref()?.template.metadata.as_ref()?;
    metadata.annotations.as_ref()?.get(names::TEMPLATE_HASH).cloned()
}

fn claim_size(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    let requests = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
    requests
        .get("storage")
        .map(|quantity| Quantity(quantity.0.clone()))
}

fn claim_facts(claim: &PersistentVolumeClaim) -> ClaimFacts {
    ClaimFacts {
        uid: claim.uid().unwrap_or_default(),
        resource_version: claim.resource_version().unwrap_or_default(),
        cluster_id: claim.annotations().get(names::CLUSTER_ID).cloned(),
        stateful_set: claim.labels().get(names::STATEFUL_SET).cloned(),
        zone: claim.annotations().get(names::ZONE).cloned().unwrap_or_default(),
        size: claim_size(claim),
        owners: claim.owner_references().to_vec(),
        deleting: claim.metadata.deletion_timestamp.is_some(),
        left: claim.annotations().contains_key(names::LEFT),
        volume: claim
            .spec
            .as_ref()
            .and_then(|spec| spec.volume_name.clone())
            .filter(|name| !name.is_empty()),
        // The controller of volumes says so for ever, once the volume of a bound claim is gone.
        lost: claim
            .status
            .as_ref()
            .filter(|status| status.phase.as_deref() == Some("Lost"))
            .map(|_| "Kubernetes says that its claim is Lost".into()),
    }
}

fn pod_facts(pod: &Pod) -> PodFacts {
    let status = pod.status.clone().unwrap_or_default();
    let ready = status
        .conditions
        .iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    PodFacts {
        uid: pod.uid().unwrap_or_default(),
        resource_version: pod.resource_version().unwrap_or_default(),
        ip: status.pod_ip.as_deref().and_then(|ip| ip.parse().ok()),
        k8s_node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        container: container(pod),
        ready,
        deleting: pod.metadata.deletion_timestamp.is_some(),
        template_hash: pod.annotations().get(names::TEMPLATE_HASH).cloned(),
        evacuate: pod.annotations().get(names::EVACUATE).map(String::as_str) == Some("true"),
        unscheduled_since: unscheduled(pod).map(|condition| {
            let since = condition
                .last_transition_time
                .as_ref()
                .or(pod.metadata.creation_timestamp.as_ref());
            since.map_or(Timestamp::MAX, |time| time.0)
        }),
    }
}

/// What the scheduler says about a pod for which it finds no k8s node.
fn unscheduled(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|c| c.type_ == "PodScheduled" && c.status == "False")
}

fn container(pod: &Pod) -> Container {
    let Some(status) = &pod.status else {
        return Container::Unknown;
    };
    let own = status
        .container_statuses
        .iter()
        .flatten()
        .find(|status| status.name == names::CONTAINER);
    let with = |reason: Option<&String>, message: Option<&String>| {
        let parts: Vec<&str> = [reason, message]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        parts.join(": ")
    };
    if let Some(state) = own.and_then(|own| own.state.as_ref()) {
        if state.running.is_some() {
            return Container::Running;
        }
        if let Some(waiting) = &state.waiting {
            return Container::Stopped(with(waiting.reason.as_ref(), waiting.message.as_ref()));
        }
        if let Some(ended) = &state.terminated {
            let why = with(ended.reason.as_ref(), ended.message.as_ref());
            return Container::Stopped(format!("exit code {}: {why}", ended.exit_code));
        }
    }
    // Before the kubelet has it, the scheduler speaks: which k8s nodes do not fit, which claim is not bound.
    match unscheduled(pod) {
        Some(condition) => Container::Stopped(with(condition.reason.as_ref(), condition.message.as_ref())),
        None => Container::Unknown,
    }
}
