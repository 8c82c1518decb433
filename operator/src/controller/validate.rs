//! Pure: the DynamoCluster and what was observed become a [`ValidatedCluster`], the only input of the steps after.
//!
//! The API server has refused bad specs by the rules of the CRD already. They are checked again, for the CRD that is
//! installed may be another release's.

use std::collections::BTreeMap;

use dynamo_core::{ring::MEMBERS_MAX, types::ClusterId};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource as _, ResourceExt as _};

use super::{
    layout::{self, LayoutError, ZoneLayout},
    names,
    observe::Observed,
    rings::Rings,
};
use crate::crd::{DynamoCluster, DynamoClusterSpec, Quantity};

/// A cluster that can be built.
#[derive(Clone, Debug)]
pub struct ValidatedCluster {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// What makes objects go with it.
    pub owner: OwnerReference,
    /// What it should be.
    pub spec: DynamoClusterSpec,
    /// Its id: decided, but not yet written down unless `founded`.
    pub cluster_id: ClusterId,
    /// Its zones: decided, but not yet written down unless `founded`.
    pub zones: Vec<ValidatedZone>,
    /// Id and zones are written on the DynamoCluster. Nothing is created before that.
    pub founded: bool,
    /// R.
    pub read_quorum: u32,
    /// W.
    pub write_quorum: u32,
    /// Image of the nodes.
    pub image: String,
    /// What its members say about rings.
    pub rings: Rings,
}

/// A zone that can be built.
#[derive(Clone, Debug)]
pub struct ValidatedZone {
    /// Its place in the layout, with the members that it shall have.
    pub layout: ZoneLayout,
    /// How many pods it has to have now: also those of members that have not left yet.
    pub pods: u32,
    /// Labels of the k8s nodes that its members may run on.
    pub node_selector: BTreeMap<String, String>,
    /// Size in its claim template: that of the StatefulSet, which cannot be changed, if there is one.
    pub claim_size: Quantity,
}

/// A member as planned.
#[derive(Clone, Copy, Debug)]
pub struct PlannedMember<'a> {
    /// Its zone.
    pub zone: &'a ValidatedZone,
    /// Its number in the zone's StatefulSet.
    pub ordinal: u32,
    /// The spec asks for it; else it is to leave.
    pub wanted: bool,
}

/// What the operator brings along.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// Image of the nodes for clusters that name none.
    pub image: String,
}

/// Why a cluster cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValidateError {
    /// The spec breaks rules, all of them named.
    #[error("the spec is invalid: {}", .0.join("; "))]
    Spec(Vec<String>),
    /// There is no layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The annotation is no UUID.
    #[error(
        "annotation {annotation} is {0:?} but must be a UUID: restore the id that the volumes carry",
        annotation = names::CLUSTER_ID
    )]
    ClusterId(String),
    /// Left volumes belong to several clusters.
    #[error(
        "volumes with this cluster's names belong to several earlier clusters ({0}): set annotation {annotation} to the one to take over, or delete the claims",
        annotation = names::CLUSTER_ID
    )]
    SeveralIds(String),
}

impl ValidatedCluster {
    /// Every member that has to have a pod, in the order of zones and ordinals.
    pub fn members(&self) -> impl Iterator<Item = PlannedMember<'_>> {
        self.zones.iter().flat_map(|zone| {
            (0..zone.pods).map(move |ordinal| PlannedMember {
                zone,
                ordinal,
                wanted: ordinal < zone.layout.members,
            })
        })
    }

    /// How many valid primaries a partition needs to serve both gets and puts.
    pub fn quorum_needed(&self) -> u32 {
        self.read_quorum.max(self.write_quorum)
    }

    /// Zones are those of the k8s nodes' labels, and not named by the spec.
    pub fn zones_discovered(&self) -> bool {
        self.spec.zones.is_none()
    }

    /// host:port of a member's peer service.
    pub fn peer_address(&self, member_id: &str) -> String {
        format!("{}:7701", names::host(&self.name, &self.namespace, member_id))
    }
}

impl PlannedMember<'_> {
    /// Its identity, which is its pod's name.
    pub fn id(&self) -> String {
        names::member_id(&self.zone.layout.stateful_set, self.ordinal)
    }
}

/// Checks a cluster.
///
/// # Errors
/// If nothing can be built from it. Nothing is changed then.
pub fn validate(
    cluster: &DynamoCluster,
    observed: &Observed,
    defaults: &Defaults,
) -> Result<ValidatedCluster, ValidateError> {
    let spec = &cluster.spec;
    let faults = faults(spec);
    if !faults.is_empty() {
        return Err(ValidateError::Spec(faults));
    }
    let cluster_id = cluster_id(cluster, observed);
    let rings = cluster_id
        .as_ref()
        .map_or_else(|_| Rings::default(), |id| Rings::of(observed, *id));
    let layout = layout::layout(cluster, observed, &rings)?;
    let majority = spec.replication.factor / 2 + 1;
    let quorum = |quorum: Option<i32>| u32::try_from(quorum.unwrap_or(majority)).unwrap_or(1);
    Ok(ValidatedCluster {
        name: cluster.name_any(),
        namespace: cluster.namespace().unwrap_or_default(),
        owner: cluster.controller_owner_ref(&()).unwrap_or_default(),
        cluster_id: cluster_id?,
        zones: layout
            .zones
            .into_iter()
            .map(|zone| validated_zone(spec, observed, &rings, zone))
            .collect(),
        founded: layout.remembered && cluster.annotations().contains_key(names::CLUSTER_ID),
        read_quorum: quorum(spec.replication.read_quorum),
        write_quorum: quorum(spec.replication.write_quorum),
        image: spec.image.clone().unwrap_or_else(|| defaults.image.clone()),
        spec: spec.clone(),
        rings,
    })
}

fn faults(spec: &DynamoClusterSpec) -> Vec<String> {
    let mut faults = Vec::new();
    let mut rule = |holds: bool, text: String| {
        if !holds {
            faults.push(text);
        }
    };
    let factor = spec.replication.factor;
    rule(
        (1..=7).contains(&factor),
        format!("replication.factor is {factor} but must be 1 to 7"),
    );
    let members_max = i32::try_from(MEMBERS_MAX).unwrap_or(i32::MAX).min(100);
    rule(
        (factor..=members_max).contains(&spec.members),
        format!(
            "members is {} but must be at least replication.factor ({factor}) and at most {members_max}",
            spec.members
        ),
    );
    for (name, quorum) in [
        ("readQuorum", spec.replication.read_quorum),
        ("writeQuorum", spec.replication.write_quorum),
    ] {
        if let Some(quorum) = quorum {
            rule(
                (1..=factor).contains(&quorum),
                format!("replication.{name} is {quorum} but must be 1 to replication.factor ({factor})"),
            );
        }
    }
    let partitions = spec.ring.partitions;
    rule(
        (8..=16384).contains(&partitions) && partitions.count_ones() == 1 && partitions >= spec.members,
        format!(
            "ring.partitions is {partitions} but must be a power of two, 8 to 16384 and at least members"
        ),
    );
    rule(
        spec.storage
            .size
            .compare(&"64Mi".into())
            .is_some_and(std::cmp::Ordering::is_ge),
        format!(
            "storage.size is {:?} but must be a quantity of at least 64Mi",
            spec.storage.size.0
        ),
    );
    let zones = spec.zones.as_deref().unwrap_or_default();
    let names: std::collections::BTreeSet<&str> = zones.iter().map(|zone| zone.name.as_str()).collect();
    rule(
        names.len() == zones.len(),
        "zones must have distinct names".into(),
    );
    rule(
        zones.len() <= usize::try_from(spec.members).unwrap_or(0),
        format!(
            "zones are {} but must not outnumber members ({})",
            zones.len(),
            spec.members
        ),
    );
    faults
}

/// Written down; else that of the StatefulSets; else that of volumes left by an earlier cluster of the same name; else
/// the DynamoCluster's own UID, upon which two operators agree without a word.
fn cluster_id(cluster: &DynamoCluster, observed: &Observed) -> Result<ClusterId, ValidateError> {
    if let Some(text) = cluster.annotations().get(names::CLUSTER_ID) {
        return names::parse_cluster_id(text).ok_or_else(|| ValidateError::ClusterId(text.clone()));
    }
    let of_sets = observed
        .stateful_sets
        .values()
        .filter_map(|set| set.cluster_id.as_deref());
    let of_claims = observed.claims.values().filter(|claim| !claim.deleting);
    let of_claims = of_claims.filter_map(|claim| claim.cluster_id.as_deref());
    for mut ids in [of_sets.collect::<Vec<_>>(), of_claims.collect()] {
        ids.sort_unstable();
        ids.dedup();
        match ids.as_slice() {
            [] => {}
            [id] => {
                return names::parse_cluster_id(id).ok_or_else(|| ValidateError::ClusterId((*id).into()));
            }
            several => return Err(ValidateError::SeveralIds(several.join(", "))),
        }
    }
    let uid = cluster.uid().unwrap_or_default();
    names::parse_cluster_id(&uid).ok_or(ValidateError::ClusterId(uid))
}

fn validated_zone(
    spec: &DynamoClusterSpec,
    observed: &Observed,
    rings: &Rings,
    layout: ZoneLayout,
) -> ValidatedZone {
    let named = spec.zones.iter().flatten().find(|zone| zone.name == layout.zone);
    let own = match named {
        Some(zone) if !zone.node_selector.is_empty() => zone.node_selector.clone(),
        _ if layout.zone.is_empty() => BTreeMap::new(),
        _ => [(names::TOPOLOGY_ZONE.to_owned(), layout.zone.clone())].into(),
    };
    let mut node_selector = spec.placement.node_selector.clone();
    node_selector.extend(own);
    let set = observed.stateful_sets.get(&layout.stateful_set);
    // What the spec said of a zone that it no longer names, the StatefulSet still knows.
    if let Some(set) = set.filter(|_| layout.leaving) {
        node_selector.clone_from(&set.node_selector);
    }
    let claim_size = set
        .and_then(|set| set.claim_size.clone())
        .unwrap_or_else(|| spec.storage.size.clone());
    ValidatedZone {
        pods: pods(observed, rings, &layout),
        layout,
        node_selector,
        claim_size,
    }
}

/// How many pods a zone has to have: those that are wanted, and all up to the last that may not go yet. A StatefulSet ends
/// its highest ones first.
fn pods(observed: &Observed, rings: &Rings, zone: &ZoneLayout) -> u32 {
    let set = observed.stateful_sets.get(&zone.stateful_set);
    let listed = rings
        .listed()
        .filter_map(|member| Some(names::ordinal(&zone.stateful_set, member)? + 1));
    let there = listed.chain(set.map(|set| set.members)).max().unwrap_or(0);
    let stays = |ordinal: &u32| !may_go(observed, rings, &names::member_id(&zone.stateful_set, *ordinal));
    let last = (zone.members..there).rev().find(stays);
    last.map_or(zone.members, |last| last + 1)
}

/// A member may go when no ring lists it, by the word of those that stay, and it keeps nothing for others.
pub fn may_go(observed: &Observed, rings: &Rings, member: &str) -> bool {
    let report = observed
        .answers
        .get(member)
        .and_then(|answer| answer.as_ref().ok());
    let keeps = report.is_some_and(|report| report.member_id == member && report.hints > 0);
    rings.released(member) && !keeps
}
