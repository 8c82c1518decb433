//! Pure: which zones a cluster has, and how many members in each. Discovered zones are decided once, remembered, and never
//! decided again because a k8s node went away; named ones are as the spec says, and a zone that it no longer names stays
//! until all that is in it has gone.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt as _;
use serde::{Deserialize, Serialize};

use super::{
    names,
    observe::{K8sNode, Observed},
    rings::Rings,
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
    /// How many members it shall have.
    #[serde(skip)]
    pub members: u32,
    /// Weight of each.
    #[serde(skip)]
    pub weight: u32,
    /// It is to go, once its members have left the ring.
    #[serde(skip)]
    pub leaving: bool,
}

/// The zones of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// In order; those that are to go come last.
    pub zones: Vec<ZoneLayout>,
    /// The same zones and StatefulSets are written on the DynamoCluster.
    pub remembered: bool,
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

/// Finds the layout: the zones that are remembered, or those of the StatefulSets, or of volumes left by an earlier cluster
/// of the same name, or as the spec or the k8s nodes say; and over them the members that the spec asks for.
///
/// # Errors
/// If what was found cannot be used, or there is nothing to decide upon.
pub fn layout(cluster: &DynamoCluster, observed: &Observed, rings: &Rings) -> Result<Layout, LayoutError> {
    let remembered = remembered(cluster)?;
    let known = match &remembered {
        Some(zones) => zones.clone(),
        None if !observed.stateful_sets.is_empty() => of_stateful_sets(observed),
        None => of_claims(observed),
    };
    if remembered.is_none() && observed.stateful_sets.is_empty() && !known.is_empty() {
        fits(cluster, &known, observed)?;
    }
    let mut zones = wanted(cluster, observed, &known)?;
    for zone in known {
        let wanted = zones
            .iter()
            .any(|wanted| wanted.stateful_set == zone.stateful_set);
        if !wanted && in_use(&zone, observed, rings) {
            zones.push(ZoneLayout {
                members: 0,
                leaving: true,
                ..zone
            });
        }
    }
    let names = |zones: &[ZoneLayout]| -> BTreeSet<(String, String)> {
        let name = |zone: &ZoneLayout| (zone.zone.clone(), zone.stateful_set.clone());
        zones.iter().map(name).collect()
    };
    Ok(Layout {
        remembered: remembered.is_some_and(|remembered| names(&remembered) == names(&zones)),
        zones,
    })
}

fn remembered(cluster: &DynamoCluster) -> Result<Option<Vec<ZoneLayout>>, LayoutError> {
    let Some(text) = cluster.annotations().get(names::LAYOUT) else {
        return Ok(None);
    };
    let bad = |why: String| LayoutError::Annotation { why };
    let zones: Vec<ZoneLayout> = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    if zones.is_empty() {
        return Err(bad("it names no zone".into()));
    }
    Ok(Some(zones))
}

/// The zones that the spec names, or else those that are known, or else those that are found; with their members.
fn wanted(
    cluster: &DynamoCluster,
    observed: &Observed,
    known: &[ZoneLayout],
) -> Result<Vec<ZoneLayout>, LayoutError> {
    let set = |zone: &str| {
        let known = known.iter().find(|known| known.zone == zone);
        known.map_or_else(
            || names::stateful_set(&cluster.name_any(), zone),
            |known| known.stateful_set.clone(),
        )
    };
    let zones: Vec<(String, u32)> = match &cluster.spec.zones {
        Some(zones) => zones
            .iter()
            .map(|zone| (zone.name.clone(), u32::try_from(zone.weight).unwrap_or(1)))
            .collect(),
        None if !known.is_empty() => known.iter().map(|zone| (zone.zone.clone(), 1)).collect(),
        None => {
            let nodes = observed.k8s_nodes.as_deref().ok_or(LayoutError::Forbidden)?;
            let zones = discover(cluster, nodes)?.into_iter();
            // Members that are fewer than zones leave the last ones out.
            let members = usize::try_from(cluster.spec.members).unwrap_or(0);
            zones.take(members.max(1)).map(|zone| (zone, 1)).collect()
        }
    };
    let layout = zones.into_iter().map(|(zone, weight)| ZoneLayout {
        stateful_set: set(&zone),
        members: 0,
        leaving: false,
        zone,
        weight,
    });
    let mut layout: Vec<_> = layout.collect();
    spread(&mut layout, cluster.spec.members, observed);
    Ok(layout)
}

/// Members over zones as evenly as can be. What is left over goes to zones that have one more already, and then to the first
/// ones: zones that change places in a list move no data.
fn spread(zones: &mut [ZoneLayout], members: i32, observed: &Observed) {
    let members = u32::try_from(members).unwrap_or(0);
    let count = u32::try_from(zones.len()).unwrap_or(1).max(1);
    let each = members / count;
    let mut order: Vec<&mut ZoneLayout> = zones.iter_mut().collect();
    order.sort_by_key(|zone| {
        let set = observed.stateful_sets.get(&zone.stateful_set);
        set.is_none_or(|set| set.members <= each)
    });
    for (zone, index) in order.into_iter().zip(0..) {
        zone.members = each + u32::from(index < members % count);
    }
}

/// Something of a zone is still there, or could be: nobody said that it is not.
fn in_use(zone: &ZoneLayout, observed: &Observed, rings: &Rings) -> bool {
    let own = |member: &String| names::ordinal(&zone.stateful_set, member).is_some();
    observed.stateful_sets.contains_key(&zone.stateful_set)
        || observed.pods.keys().any(own)
        || rings.listed().any(own)
        || !rings.settled
}

fn of_stateful_sets(observed: &Observed) -> Vec<ZoneLayout> {
    let zone = |(name, set): (&String, &super::observe::StatefulSetFacts)| ZoneLayout {
        zone: set.zone.clone(),
        stateful_set: name.clone(),
        members: set.members,
        weight: set.weight,
        leaving: false,
    };
    let mut zones: Vec<ZoneLayout> = observed.stateful_sets.iter().map(zone).collect();
    // As zones are discovered: the first ones have more members.
    zones.sort_by(|a, b| a.zone.cmp(&b.zone));
    zones
}

/// Zones of volumes. Those of members that left are not counted: nobody wants what is on them.
fn of_claims(observed: &Observed) -> Vec<ZoneLayout> {
    let mut zones = BTreeMap::<String, ZoneLayout>::new();
    let claims = observed
        .claims
        .iter()
        .filter(|(_, claim)| !claim.deleting && !claim.left);
    for (name, claim) in claims {
        let Some(set) = &claim.stateful_set else { continue };
        let ordinal = name
            .strip_prefix(&names::claim(""))
            .and_then(|member| names::ordinal(set, member));
        let Some(ordinal) = ordinal else { continue };
        let zone = zones.entry(claim.zone.clone()).or_insert_with(|| ZoneLayout {
            zone: claim.zone.clone(),
            stateful_set: set.clone(),
            members: 0,
            weight: 1,
            leaving: false,
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
