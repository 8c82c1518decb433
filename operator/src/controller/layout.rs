//! Pure: which zones a cluster has, decided once, remembered, and never decided again because a k8s node went away.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt as _;
use serde::{Deserialize, Serialize};

use super::{
    names,
    observe::{K8sNode, Observed},
};
use crate::crd::{DynamoCluster, TaintEffect, Toleration, TolerationOperator};

/// One zone of a cluster and its StatefulSet. Written as JSON into an annotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ZoneLayout {
    /// Its name; empty for the one zone of a cluster without zones.
    pub zone: String,
    /// The StatefulSet of its members.
    pub stateful_set: String,
    /// How many members it has.
    pub members: u32,
    /// Weight of each.
    pub weight: u32,
}

/// Where a layout was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// On the DynamoCluster.
    Remembered(Vec<ZoneLayout>),
    /// On objects of the cluster, or decided now: still to be remembered.
    New(Vec<ZoneLayout>),
}

/// Why there is no layout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The annotation is not what the operator writes.
    #[error(
        "annotation {annotation} of the DynamoCluster cannot be read ({why}): restore it, or remove it to have it rebuilt from the StatefulSets",
        annotation = names::LAYOUT
    )]
    Annotation {
        /// What is wrong.
        why: String,
    },
    /// Zones have to be discovered, and the operator may not look.
    #[error(
        "cannot discover zones, for the operator may not list k8s nodes: name them in spec.zones, or install the chart with rbac.nodes=true"
    )]
    Forbidden,
    /// Nothing a member could run on.
    #[error("no k8s node can run a member: {why}")]
    NoNode {
        /// What excludes them.
        why: String,
    },
    /// Volumes of an earlier cluster of the same name do not fit.
    #[error(
        "volumes of an earlier cluster of this name hold {found}, but the spec asks for {wanted}: ask for the same to take them over, or delete the claims ({claims}) to begin empty"
    )]
    Volumes {
        /// Of the volumes.
        found: String,
        /// Of the spec.
        wanted: String,
        /// Names, the first few.
        claims: String,
    },
}

/// Finds the layout: remembered, then of the StatefulSets, then of volumes left by an earlier cluster of the same name,
/// then as the spec or the k8s nodes say.
///
/// # Errors
/// If what was found cannot be used, or there is nothing to decide upon.
pub fn layout(cluster: &DynamoCluster, observed: &Observed) -> Result<Layout, LayoutError> {
    if let Some(text) = cluster.annotations().get(names::LAYOUT) {
        let bad = |why: String| LayoutError::Annotation { why };
        let zones: Vec<ZoneLayout> = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
        let members: u32 = zones.iter().map(|zone| zone.members).sum();
        if i64::from(members) != i64::from(cluster.spec.members) {
            return Err(bad(format!(
                "it has {members} members, spec.members is {}",
                cluster.spec.members
            )));
        }
        return Ok(Layout::Remembered(zones));
    }
    if !observed.stateful_sets.is_empty() {
        return Ok(Layout::New(of_stateful_sets(observed)));
    }
    let decided = decide(cluster, observed.k8s_nodes.as_deref());
    let found = of_claims(observed);
    if found.is_empty() {
        return decided.map(Layout::New);
    }
    fits(cluster, &found, observed)?;
    Ok(Layout::New(with_weights(cluster, found)))
}

fn of_stateful_sets(observed: &Observed) -> Vec<ZoneLayout> {
    let zone = |(name, set): (&String, &super::observe::StatefulSetFacts)| ZoneLayout {
        zone: set.zone.clone(),
        stateful_set: name.clone(),
        members: set.members,
        weight: set.weight,
    };
    observed.stateful_sets.iter().map(zone).collect()
}

fn of_claims(observed: &Observed) -> Vec<ZoneLayout> {
    let mut zones = BTreeMap::<String, ZoneLayout>::new();
    for (name, claim) in observed.claims.iter().filter(|(_, claim)| !claim.deleting) {
        let Some(set) = &claim.stateful_set else { continue };
        let ordinal = name
            .strip_prefix(&names::claim(&format!("{set}-")))
            .and_then(|n| n.parse::<u32>().ok());
        let Some(ordinal) = ordinal else { continue };
        let zone = zones.entry(set.clone()).or_insert_with(|| ZoneLayout {
            zone: claim.zone.clone(),
            stateful_set: set.clone(),
            members: 0,
            weight: 1,
        });
        zone.members = zone.members.max(ordinal + 1);
    }
    zones.into_values().collect()
}

/// Volumes are taken over only by a spec that asks for the same members in the same zones.
fn fits(cluster: &DynamoCluster, found: &[ZoneLayout], observed: &Observed) -> Result<(), LayoutError> {
    let count: u32 = found.iter().map(|zone| zone.members).sum();
    let zones: BTreeSet<&str> = found.iter().map(|zone| zone.zone.as_str()).collect();
    let wanted: Option<BTreeSet<&str>> = cluster
        .spec
        .zones
        .as_ref()
        .map(|zones| zones.iter().map(|zone| zone.name.as_str()).collect());
    if i64::from(count) == i64::from(cluster.spec.members) && wanted.as_ref().is_none_or(|w| *w == zones) {
        return Ok(());
    }
    let of = |members: i64, zones: Option<&BTreeSet<&str>>| match zones {
        Some(zones) if zones.iter().any(|zone| !zone.is_empty()) => {
            let names: Vec<&str> = zones.iter().copied().collect();
            format!("{members} members in zones {}", names.join(", "))
        }
        _ => format!("{members} members"),
    };
    Err(LayoutError::Volumes {
        found: of(i64::from(count), Some(&zones)),
        wanted: of(i64::from(cluster.spec.members), wanted.as_ref()),
        claims: observed
            .claims
            .keys()
            .take(3)
            .cloned()
            .collect::<Vec<_>>()
            .join(", "),
    })
}

fn with_weights(cluster: &DynamoCluster, mut zones: Vec<ZoneLayout>) -> Vec<ZoneLayout> {
    for named in cluster.spec.zones.iter().flatten() {
        for zone in zones.iter_mut().filter(|zone| zone.zone == named.name) {
            zone.weight = u32::try_from(named.weight).unwrap_or(1);
        }
    }
    zones
}

fn decide(cluster: &DynamoCluster, nodes: Option<&[K8sNode]>) -> Result<Vec<ZoneLayout>, LayoutError> {
    let zones: Vec<(String, u32)> = match &cluster.spec.zones {
        Some(zones) => zones
            .iter()
            .map(|zone| (zone.name.clone(), u32::try_from(zone.weight).unwrap_or(1)))
            .collect(),
        None => discover(cluster, nodes.ok_or(LayoutError::Forbidden)?)?
            .into_iter()
            .map(|zone| (zone, 1))
            .collect(),
    };
    Ok(spread(
        &cluster.name_any(),
        u32::try_from(cluster.spec.members).unwrap_or(0),
        zones,
    ))
}

/// `members` over `zones`, as evenly as can be, the first ones getting what is left over. Zones that would stay empty are
/// left out.
fn spread(cluster: &str, members: u32, zones: Vec<(String, u32)>) -> Vec<ZoneLayout> {
    let count = u32::try_from(zones.len()).unwrap_or(1).max(1);
    let layout = zones
        .into_iter()
        .zip(0..)
        .map(|((zone, weight), index)| ZoneLayout {
            stateful_set: names::stateful_set(cluster, &zone),
            members: members / count + u32::from(index < members % count),
            zone,
            weight,
        });
    layout.filter(|zone| zone.members > 0).collect()
}

/// The zones in the labels of the k8s nodes that could run a member, in order; the empty one alone if none has a label.
fn discover(cluster: &DynamoCluster, nodes: &[K8sNode]) -> Result<Vec<String>, LayoutError> {
    let eligible = eligible(cluster, nodes);
    if eligible.is_empty() {
        let why = format!(
            "all {} are cordoned, tainted, control plane or lack the labels of placement.nodeSelector",
            nodes.len()
        );
        return Err(LayoutError::NoNode { why });
    }
    let zones: BTreeSet<&String> = eligible
        .iter()
        .filter_map(|node| node.labels.get(names::TOPOLOGY_ZONE))
        .collect();
    let zones: Vec<String> = zones
        .into_iter()
        .filter(|zone| !zone.is_empty())
        .cloned()
        .collect();
    Ok(if zones.is_empty() {
        vec![String::new()]
    } else {
        zones
    })
}

/// The k8s nodes that could run a member, whether they are ready at the moment or not: a zone that reboots is a zone.
/// Those of the control plane count only if there are no others.
pub fn eligible<'a>(cluster: &DynamoCluster, nodes: &'a [K8sNode]) -> Vec<&'a K8sNode> {
    let placement = &cluster.spec.placement;
    let fits = |node: &&K8sNode| {
        let tolerated = |(key, value, effect): &(String, String, String)| {
            passing(key)
                || placement
                    .tolerations
                    .iter()
                    .any(|t| tolerates(t, key, value, effect))
        };
        let selected = placement
            .node_selector
            .iter()
            .all(|(key, value)| node.labels.get(key) == Some(value));
        !node.cordoned && selected && node.taints.iter().all(tolerated)
    };
    let control_plane = |node: &K8sNode| node.labels.contains_key("node-role.kubernetes.io/control-plane");
    let (control, workers): (Vec<_>, Vec<_>) =
        nodes.iter().filter(fits).partition(|node| control_plane(node));
    if workers.is_empty() { control } else { workers }
}

/// Taints that Kubernetes itself puts on a k8s node in trouble, and takes off again.
fn passing(key: &str) -> bool {
    key.starts_with("node.kubernetes.io/") && key != "node.kubernetes.io/unschedulable"
}

fn tolerates(toleration: &Toleration, key: &str, value: &str, effect: &str) -> bool {
    let effect_fits = toleration.effect.is_none_or(|tolerated| {
        effect
            == match tolerated {
                TaintEffect::NoSchedule => "NoSchedule",
                TaintEffect::PreferNoSchedule => "PreferNoSchedule",
                TaintEffect::NoExecute => "NoExecute",
            }
    });
    let value_fits = toleration.operator == Some(TolerationOperator::Exists)
        || toleration.value.as_deref().unwrap_or_default() == value;
    effect_fits && value_fits && toleration.key.as_deref().is_none_or(|tolerated| tolerated == key)
}
