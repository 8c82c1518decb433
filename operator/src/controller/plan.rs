//! Pure: from what is wanted and what was observed to one safe next [`Step`], and why.
//!
//! A missing, failed or empty answer is never a reason to do anything that cannot be undone: it is a reason to wait.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use dynamo_core::ring::Placement;
use dynamo_proto::admin as pb;

use super::{
    build::Desired,
    change::{self, Change},
    layout,
    members::{MemberState, MemberView, members},
    names,
    observe::{Container, Observed, template_hash},
    validate::ValidatedCluster,
};
use crate::{
    crd::{DynamoCluster, conditions::shortened},
    ring,
};

mod steps;

/// What to do now.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// At most one thing that disturbs nodes.
    pub step: Step,
    /// Where the cluster stands.
    pub stance: Stance,
    /// Every planned member, in order.
    pub members: Vec<MemberView<'a>>,
    /// The ring, if it is this cluster's.
    pub ring: Option<Arc<Placement>>,
    /// What is to become of the ring.
    pub change: Change,
    /// What keeps the spec from being followed until a person does something, though all else goes on: a reason for programs,
    /// and a message for people.
    pub blocked: Option<(&'static str, String)>,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Write the cluster's id and zones on the DynamoCluster. Nothing else exists before.
    Found,
    /// Mint the first ring.
    Bootstrap(Order<pb::BootstrapRequest>),
    /// Give nodes their identity.
    Join(Vec<Order<pb::JoinRequest>>),
    /// Delete a pod, to have it made again from the newest template.
    Restart {
        /// Its name.
        pod: String,
        /// Which pod of this name.
        uid: String,
        /// Which version of it the decision was made upon.
        resource_version: String,
        /// Why now.
        why: String,
    },
    /// Propose a ring, to the first of these nodes that takes it.
    Commit {
        /// Members and addresses, the one that planned it first.
        nodes: Vec<(String, IpAddr)>,
        /// What.
        request: pb::CommitRequest,
        /// What it comes to.
        why: String,
    },
    /// Delete a claim and then its pod, to have both made again, empty.
    Replace(Replacement),
    /// Delete the StatefulSet of a zone that nothing is left in.
    RemoveZone {
        /// Its name.
        stateful_set: String,
        /// Which StatefulSet of this name.
        uid: String,
        /// Which version of it the decision was made upon.
        resource_version: String,
    },
}

/// A member that is to begin empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// Which member.
    pub member: String,
    /// UID and version of its claim, if that is still to be deleted.
    pub claim: Option<(String, String)>,
    /// UID and version of its pod, if that is still to be deleted.
    pub pod: Option<(String, String)>,
    /// Its volume was lost; else it was evacuated.
    pub lost: bool,
    /// Why now.
    pub why: String,
}

/// A request to one node.
#[derive(Clone, Debug, PartialEq)]
pub struct Order<R> {
    /// Which member.
    pub member: String,
    /// Its zone.
    pub zone: String,
    /// Where.
    pub node: IpAddr,
    /// What.
    pub request: R,
}

/// Where a cluster stands, with a reason for programs and a message for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stance {
    /// As it should be.
    Steady,
    /// On its way.
    Progressing(&'static str, String),
    /// Stuck until a person does something.
    Stalled(&'static str, String),
    /// As the spec says: hands off.
    Paused,
}

impl Stance {
    /// Objects may be written: not while a person has to look first.
    pub fn writes_objects(&self) -> bool {
        matches!(self, Self::Steady | Self::Progressing(..))
    }
}

/// Plans the next step.
pub fn plan<'a>(
    cluster: &'a ValidatedCluster,
    desired: &Desired,
    observed: &'a Observed,
    source: &DynamoCluster,
) -> Plan<'a> {
    let members = members(cluster, observed);
    let ring = ring_of(cluster, observed);
    let change = change::change(cluster, observed, &members, ring.as_deref());
    let planner = Planner {
        cluster,
        desired,
        observed,
        source,
        members: &members,
        ring: ring.as_deref(),
        change: &change,
    };
    let (step, stance) = planner.plan();
    let blocked = planner.blocked();
    Plan {
        step,
        stance,
        members,
        ring,
        change,
        blocked,
    }
}

/// The ring, if it is this cluster's.
pub fn ring_of(cluster: &ValidatedCluster, observed: &Observed) -> Option<Arc<Placement>> {
    let ring = observed.ring.clone();
    ring.filter(|ring| ring.ring().cluster_id() == cluster.cluster_id)
}

/// Whom to ask for a change of the ring: members of it that answer, those that serve first.
pub fn proposers(members: &[MemberView<'_>]) -> Vec<(String, IpAddr)> {
    let mut able: Vec<&MemberView> = members
        .iter()
        .filter(|member| member.serves && member.report.is_some())
        .filter(|member| matches!(member.state, MemberState::Valid | MemberState::Joining))
        .collect();
    able.sort_by_key(|member| (member.state != MemberState::Valid, !member.wanted));
    able.iter()
        .filter_map(|member| Some((member.id.clone(), member.pod?.ip?)))
        .collect()
}

struct Planner<'a> {
    cluster: &'a ValidatedCluster,
    desired: &'a Desired,
    observed: &'a Observed,
    source: &'a DynamoCluster,
    members: &'a [MemberView<'a>],
    ring: Option<&'a Placement>,
    change: &'a Change,
}

/// A message names at most this many members.
const NAMED_MAX: usize = 5;

impl Planner<'_> {
    fn plan(&self) -> (Step, Stance) {
        if self.cluster.spec.paused {
            return (Step::Rest, Stance::Paused);
        }
        if !self.cluster.founded {
            let message = "the cluster's id and zones are being written down".to_owned();
            return (Step::Found, Stance::Progressing("Founding", message));
        }
        if let Some(stalled) = self.foreign().or_else(|| self.ring_mismatch()) {
            return (Step::Rest, stalled);
        }
        let live_ring = self.members.iter().any(|member| member.ring().is_some());
        let known_ring = self
            .source
            .status
            .as_ref()
            .is_some_and(|status| status.ring.is_some());
        match (live_ring, known_ring) {
            (false, false) => self.bootstrap(),
            (false, true) => self.without_ring(),
            (true, _) => self
                .join()
                .or_else(|| self.restart_stopped())
                .or_else(|| self.replace())
                .or_else(|| self.commit())
                .or_else(|| self.remove_zone())
                .or_else(|| self.restart())
                .unwrap_or_else(|| self.rest()),
        }
    }

    fn in_state(&self, state: MemberState) -> impl Iterator<Item = &MemberView<'_>> {
        self.members.iter().filter(move |member| member.state == state)
    }

    fn foreign(&self) -> Option<Stance> {
        let foreign = self.in_state(MemberState::Foreign).next()?;
        let message = format!(
            "{}: {}, and this cluster is {}. Nothing is changed. To take that data back, set annotation {} to that id on a new DynamoCluster; to begin empty, delete claim {} and pod {}",
            foreign.label(),
            foreign.message,
            self.cluster.cluster_id,
            names::CLUSTER_ID,
            names::claim(&foreign.id),
            foreign.id
        );
        Some(Stance::Stalled("ForeignVolume", message))
    }

    fn ring_mismatch(&self) -> Option<Stance> {
        let ring = self.ring?.ring();
        let known = |id: &str| {
            let mut zones = self.cluster.zones.iter();
            zones.any(|zone| names::ordinal(&zone.layout.stateful_set, id).is_some())
        };
        let listed = ring.members().iter().map(|member| member.id.as_str());
        let unknown: Vec<&str> = listed.filter(|id| !known(id)).collect();
        if unknown.is_empty() {
            return None;
        }
        let message = format!(
            "the ring lists members of zones that this DynamoCluster does not know ({}). Nothing is changed. Restore annotation {} as it was, or remove it to have it rebuilt from the StatefulSets",
            unknown.join(", "),
            names::LAYOUT
        );
        Some(Stance::Stalled("RingMismatch", shortened(message, 900)))
    }

    /// No ring anywhere, and none was ever seen: the first one is minted, once every member's node runs, answers, and
    /// says itself that it has none.
    fn bootstrap(&self) -> (Step, Stance) {
        if let Some(restart) = self.restart_stopped() {
            return restart;
        }
        let ringless = |member: &&MemberView| {
            matches!(member.state, MemberState::Unassigned | MemberState::Joining) && member.report.is_some()
        };
        if self.members.iter().filter(ringless).count() < self.members.len() {
            return (Step::Rest, self.waiting());
        }
        let first = self
            .in_state(MemberState::Unassigned)
            .filter(|member| member.wanted)
            .find_map(|member| Some((member, member.pod?.ip?)));
        let Some((first, node)) = first else {
            let message = "every node has joined this cluster, but none has a ring; the one that had it lost its volume. Delete the claim and pod of one member to have it minted again".into();
            return (Step::Rest, Stance::Stalled("RingLost", message));
        };
        let spec = &self.cluster.spec;
        let order = Order {
            member: first.id.clone(),
            zone: first.zone.into(),
            node,
            request: pb::BootstrapRequest {
                cluster_id: self.cluster.cluster_id.0.to_vec().into(),
                member_id: first.id.clone(),
                members: self
                    .cluster
                    .members()
                    .filter(|member| member.wanted)
                    .map(|member| self.pb_member(member))
                    .collect(),
                partitions: u32::try_from(spec.ring.partitions).unwrap_or(0),
                factor: u32::try_from(spec.replication.factor).unwrap_or(0),
            },
        };
        let message = format!("{} mints the first ring", first.label());
        (
            Step::Bootstrap(order),
            Stance::Progressing("Bootstrapping", message),
        )
    }

    fn pb_member(&self, planned: super::validate::PlannedMember<'_>) -> pb::Member {
        let id = planned.id();
        pb::Member {
            peer_address: self.cluster.peer_address(&id),
            member_id: id,
            zone: planned.zone.layout.zone.clone(),
            weight: planned.zone.layout.weight,
        }
    }

    /// There was a ring, and now nobody tells it. Unless everybody positively says to be empty, that is silence.
    fn without_ring(&self) -> (Step, Stance) {
        if let Some(restart) = self.restart_stopped() {
            return restart;
        }
        if self.in_state(MemberState::Unassigned).count() == self.members.len() {
            let message = "the cluster had a ring, but every volume is empty now. Nothing is changed, for a new ring would hide the loss. Restore the volumes, or delete the DynamoCluster and its claims to begin empty".into();
            return (Step::Rest, Stance::Stalled("VolumesLost", message));
        }
        (Step::Rest, self.waiting())
    }

    /// Unassigned nodes beside a ring: new ones, and those whose volume was lost. They get the identity that the ring
    /// lists.
    fn join(&self) -> Option<(Step, Stance)> {
        let unassigned: Vec<&MemberView> = self
            .in_state(MemberState::Unassigned)
            .filter(|member| member.counts())
            .collect();
        if unassigned.is_empty() {
            return None;
        }
        let mut orders = Vec::new();
        let mut held = Vec::new();
        for member in unassigned {
            match (self.zone_confirmed(member), member.pod.and_then(|pod| pod.ip)) {
                (Ok(()), Some(node)) => orders.push(self.join_order(member, node)),
                (Err(why), _) => held.push(why),
                (Ok(()), None) => {}
            }
        }
        if orders.is_empty() {
            return Some((Step::Rest, Stance::Progressing("ZoneMismatch", held.join("; "))));
        }
        let named: Vec<&str> = orders
            .iter()
            .map(|order| order.member.as_str())
            .take(NAMED_MAX)
            .collect();
        let message = format!("{} joining: {}", orders.len(), named.join(", "));
        Some((Step::Join(orders), Stance::Progressing("Joining", message)))
    }

    fn join_order(&self, member: &MemberView, node: IpAddr) -> Order<pb::JoinRequest> {
        let weight = self.cluster.members().find(|planned| planned.id() == member.id);
        let others = self
            .members
            .iter()
            .filter(|other| other.id != member.id && other.ring().is_some());
        Order {
            member: member.id.clone(),
            zone: member.zone.into(),
            node,
            request: pb::JoinRequest {
                cluster_id: self.cluster.cluster_id.0.to_vec().into(),
                member_id: member.id.clone(),
                zone: member.zone.into(),
                weight: weight.map_or(1, |planned| planned.zone.layout.weight),
                seeds: others
                    .take(16)
                    .map(|other| self.cluster.peer_address(&other.id))
                    .collect(),
            },
        }
    }

    /// With discovered zones, the label of the k8s node a pod runs on must be its zone before the node learns it: a zone
    /// on disk is for ever.
    fn zone_confirmed(&self, member: &MemberView) -> Result<(), String> {
        if !self.cluster.zones_discovered() || member.zone.is_empty() {
            return Ok(());
        }
        let name = member
            .pod
            .and_then(|pod| pod.k8s_node.as_deref())
            .unwrap_or_default();
        let node = self
            .observed
            .k8s_nodes
            .iter()
            .flatten()
            .find(|node| node.name == name);
        match node.map(|node| node.labels.get(names::TOPOLOGY_ZONE).map_or("", String::as_str)) {
            Some(zone) if zone == member.zone => Ok(()),
            Some(zone) => Err(format!(
                "{} runs on k8s node {name}, whose label {} is {zone:?} now: restore the label, or delete the pod",
                member.label(),
                names::TOPOLOGY_ZONE
            )),
            None => Err(format!(
                "{} runs on k8s node {name:?}, whose zone cannot be read",
                member.label()
            )),
        }
    }

    /// Outdated pods that run, one at a time, while all others are valid; and not while the ring changes, which would have to
    /// wait for each of them.
    fn restart(&self) -> Option<(Step, Stance)> {
        if self.cluster.rings.change.is_some() {
            return None;
        }
        let outdated: Vec<&MemberView> = self
            .members
            .iter()
            .filter(|member| member.serves && self.outdated(member))
            .collect();
        let next = *outdated.first()?;
        if !self.all_valid() {
            return None;
        }
        // With R or W equal to N no restart keeps the quorum: then it is announced instead.
        let needed = self.cluster.quorum_needed();
        let lost = self
            .ring
            .map(|ring| ring::partitions_without_quorum(ring, needed, |id| id != next.id))?;
        let cost = match lost {
            0 => "every partition keeps its quorum".to_owned(),
            lost if needed == self.ring.map_or(0, |ring| ring.ring().factor()) => {
                format!("{lost} partitions lose their quorum meanwhile, for a request needs all replicas")
            }
            _ => return None,
        };
        Some(Self::restart_step(
            next,
            &format!("{} to go; {cost}", outdated.len()),
        ))
    }

    /// A pod whose container does not run, by the word of Kubernetes, loses nothing by being made again; and a bad image
    /// is never left otherwise.
    fn restart_stopped(&self) -> Option<(Step, Stance)> {
        let stopped = |member: &&MemberView| matches!(member.pod, Some(pod) if matches!(pod.container, Container::Stopped(_)));
        let next = self
            .members
            .iter()
            .filter(stopped)
            .find(|member| self.outdated(member))?;
        Some(Self::restart_step(next, "it does not run"))
    }

    fn restart_step(member: &MemberView, why: &str) -> (Step, Stance) {
        let Some(pod) = member.pod else {
            return (Step::Rest, Stance::Steady);
        };
        let message = format!(
            "{} restarts with the newest image and configuration: {why}",
            member.label()
        );
        let step = Step::Restart {
            pod: member.id.clone(),
            uid: pod.uid.clone(),
            resource_version: pod.resource_version.clone(),
            why: message.clone(),
        };
        (step, Stance::Progressing("RollingRestart", message))
    }

    /// Made from another template than the one that Kubernetes would use now.
    fn outdated(&self, member: &MemberView) -> bool {
        let Some(pod) = member.pod.filter(|pod| !pod.deleting) else {
            return false;
        };
        let Some(set) = self.observed.stateful_sets.get(member.stateful_set) else {
            return false;
        };
        let wanted = self.desired.stateful_sets.iter();
        let mut wanted = wanted.filter(|set| set.metadata.name.as_deref() == Some(member.stateful_set));
        let Some(wanted) = wanted.find_map(template_hash) else {
            return false;
        };
        set.current
            && set.template_hash.as_ref() == Some(&wanted)
            && pod.template_hash.as_ref() != Some(&wanted)
    }

    /// StatefulSets are being written from which pods will then be made anew.
    fn templates_change(&self) -> bool {
        self.desired.stateful_sets.iter().any(|wanted| {
            let name = wanted.metadata.name.as_deref().unwrap_or_default();
            let found = self.observed.stateful_sets.get(name);
            found.is_some_and(|found| found.template_hash != template_hash(wanted) || !found.current)
        })
    }

    /// Whom the ring lists: those who are still to come hold nobody up.
    fn all_valid(&self) -> bool {
        let serving = || self.members.iter().filter(|member| member.serves);
        let rings: BTreeSet<Option<(u64, u64)>> = serving().map(MemberView::ring).collect();
        let ready = |member: &MemberView| {
            member.state == MemberState::Valid && member.pod.is_some_and(|pod| pod.ready && !pod.deleting)
        };
        rings.len() == 1 && serving().all(ready)
    }

    fn rest(&self) -> (Step, Stance) {
        if let Some(stance) = self.changing() {
            return (Step::Rest, stance);
        }
        let counted = || self.members.iter().filter(|member| member.counts());
        // New members wait for a change that something keeps from being proposed, which is said elsewhere.
        let comes = |member: &MemberView| member.state == MemberState::Joining && !member.listed;
        let valid = counted()
            .all(|member| member.state == MemberState::Valid || comes(member) || self.evacuated(member));
        let rings: BTreeSet<_> = counted()
            .filter(|member| member.serves)
            .map(MemberView::ring)
            .collect();
        let outdated = self.members.iter().any(|member| self.outdated(member)) || self.templates_change();
        let stance = match (valid, rings.len() <= 1, outdated) {
            (false, ..) => self.waiting(),
            (true, false, _) => {
                Stance::Progressing("RingSpreading", "members still learn the newest ring".into())
            }
            (true, true, true) => Stance::Progressing(
                "RollingRestart",
                "waits until a pod can be restarted safely".into(),
            ),
            (true, true, false) => self.leftovers(),
        };
        (Step::Rest, stance)
    }

    /// Whom is waited for, worst first.
    fn waiting(&self) -> Stance {
        let mut waited: Vec<&MemberView> = self
            .members
            .iter()
            .filter(|member| member.counts() && member.state != MemberState::Valid)
            .collect();
        waited.sort_by_key(|member| member.state);
        let total = waited.len();
        let texts: Vec<String> = waited
            .iter()
            .take(NAMED_MAX)
            .map(|m| format!("{}: {}", m.label(), m.message))
            .collect();
        let more = if total > NAMED_MAX {
            format!("; and {} more", total - NAMED_MAX)
        } else {
            String::new()
        };
        let message = shortened(format!("waiting for {}{more}", texts.join("; ")), 900);
        let Some(worst) = waited.first() else {
            return Stance::Progressing("WaitingForPods", message);
        };
        if let Some(empty) = self.empty_zone(worst) {
            return Stance::Progressing("ZoneEmpty", format!("{empty}; {message}"));
        }
        let reason = match worst.state {
            MemberState::Absent | MemberState::Pending | MemberState::Draining => "WaitingForPods",
            _ => "MembersNotValid",
        };
        Stance::Progressing(reason, message)
    }

    fn empty_zone(&self, member: &MemberView) -> Option<String> {
        let pending = matches!(member.state, MemberState::Absent | MemberState::Pending);
        let unscheduled = member.pod.is_none_or(|pod| pod.k8s_node.is_none());
        let zone = self
            .cluster
            .zones
            .iter()
            .find(|zone| zone.layout.zone == member.zone)?;
        let nodes = layout::eligible(self.source, self.observed.k8s_nodes.as_deref()?);
        let fits = |node: &&super::observe::K8sNode| {
            zone.node_selector
                .iter()
                .all(|(key, value)| node.labels.get(key) == Some(value))
        };
        let empty = pending && unscheduled && !member.zone.is_empty() && !nodes.iter().any(fits);
        empty.then(|| format!("no k8s node of zone {} can run a member now", member.zone))
    }
}
