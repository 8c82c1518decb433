//! Pure: how each planned member is, from its pod and from what its node said.

use super::{
    observe::{Container, Observed, PodFacts},
    validate::ValidatedCluster,
};
use crate::admin::{NodeReport, NodeState};

/// How a member is. Only `Valid` is a statement that it serves; everything that is not known is not that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberState {
    /// It has no pod.
    Absent,
    /// Its container does not run.
    Pending,
    /// Its node did not answer, or its address answers for somebody else.
    Silent,
    /// Its node has no identity.
    Unassigned,
    /// Its node waits for a ring, or to be whole.
    Joining,
    /// Its node serves its ranges.
    Valid,
    /// Its node or pod is stopping.
    Draining,
    /// Its volume belongs to another cluster.
    Foreign,
    /// Its volume has another zone.
    Misplaced,
}

impl MemberState {
    /// As status shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "Absent",
            Self::Pending => "Pending",
            Self::Silent => "Silent",
            Self::Unassigned => "Unassigned",
            Self::Joining => "Joining",
            Self::Valid => "Valid",
            Self::Draining => "Draining",
            Self::Foreign => "Foreign",
            Self::Misplaced => "Misplaced",
        }
    }
}

/// A member.
#[derive(Clone, Debug)]
pub struct MemberView<'a> {
    /// Its identity and its pod's name.
    pub id: String,
    /// Its zone.
    pub zone: &'a str,
    /// Its StatefulSet.
    pub stateful_set: &'a str,
    /// How it is.
    pub state: MemberState,
    /// Why it is not Valid.
    pub message: String,
    /// Its pod.
    pub pod: Option<&'a PodFacts>,
    /// What its node said, if it is this member's and this cluster's, or unassigned.
    pub report: Option<&'a NodeReport>,
    /// The spec asks for it; else it is to leave.
    pub wanted: bool,
    /// The base ring lists it.
    pub serves: bool,
    /// The base ring or a proposed one lists it.
    pub listed: bool,
}

impl MemberView<'_> {
    /// Epoch and hash of its ring, if it has one.
    pub fn ring(&self) -> Option<(u64, u64)> {
        self.report
            .filter(|report| report.ring_epoch > 0)
            .map(|report| (report.ring_epoch, report.ring_hash))
    }

    /// The cluster is not what it should be without it: it is wanted, or has not left yet.
    pub fn counts(&self) -> bool {
        self.wanted || self.listed
    }

    /// Its state in one word, for people.
    pub fn word(&self) -> &'static str {
        match self.state {
            MemberState::Valid if !self.wanted => "Leaving",
            MemberState::Joining if !self.wanted && self.listed => "Leaving",
            MemberState::Joining if !self.wanted => "Left",
            state => state.as_str(),
        }
    }

    /// `demo-a-0 (zone a)`.
    pub fn label(&self) -> String {
        if self.zone.is_empty() {
            self.id.clone()
        } else {
            format!("{} (zone {})", self.id, self.zone)
        }
    }
}

/// Every planned member, in order.
pub fn members<'a>(cluster: &'a ValidatedCluster, observed: &'a Observed) -> Vec<MemberView<'a>> {
    cluster
        .members()
        .map(|planned| {
            let id = planned.id();
            let zone = planned.zone.layout.zone.as_str();
            let pod = observed.pods.get(&id);
            let (state, message, report) = state(cluster, observed, &id, zone);
            MemberView {
                stateful_set: &planned.zone.layout.stateful_set,
                wanted: planned.wanted,
                serves: serves(cluster, observed, &id),
                // While nobody says whom the ring lists, everybody may be.
                listed: cluster.rings.lists(&id) || cluster.rings.base.is_none(),
                id,
                zone,
                state,
                message,
                pod,
                report,
            }
        })
        .collect()
}

/// By the word of the members; or by the ring itself, while none of them tells where changes stand, as those of a release that
/// knows of none.
fn serves(cluster: &ValidatedCluster, observed: &Observed, id: &str) -> bool {
    if cluster.rings.base.is_some() {
        return cluster.rings.serves(id);
    }
    let ring = observed.ring.as_ref().map(|placement| placement.ring());
    ring.is_some_and(|ring| ring.members().iter().any(|member| member.id.as_str() == id))
}

type Found<'a> = (MemberState, String, Option<&'a NodeReport>);

fn state<'a>(cluster: &ValidatedCluster, observed: &'a Observed, id: &str, zone: &str) -> Found<'a> {
    let Some(pod) = observed.pods.get(id) else {
        return (MemberState::Absent, "it has no pod yet".into(), None);
    };
    if let Container::Stopped(why) = &pod.container {
        return (
            MemberState::Pending,
            format!("its container does not run: {why}"),
            None,
        );
    }
    match observed.answers.get(id) {
        None => (MemberState::Pending, "its pod has no address yet".into(), None),
        Some(Err(why)) => (MemberState::Silent, why.clone(), None),
        Some(Ok(report)) => said(cluster, pod, report, id, zone),
    }
}

fn said<'a>(
    cluster: &ValidatedCluster,
    pod: &PodFacts,
    report: &'a NodeReport,
    id: &str,
    zone: &str,
) -> Found<'a> {
    let Some(found) = report.cluster_id else {
        return (
            MemberState::Unassigned,
            "its volume is empty".into(),
            Some(report),
        );
    };
    if found != cluster.cluster_id {
        return (
            MemberState::Foreign,
            format!("its volume belongs to cluster {found}"),
            None,
        );
    }
    if report.member_id != id {
        return (
            MemberState::Silent,
            format!("its address answers as member {}", report.member_id),
            None,
        );
    }
    if report.zone != zone {
        let why = format!(
            "its volume says zone {:?}, its StatefulSet zone {zone:?}",
            report.zone
        );
        return (MemberState::Misplaced, why, None);
    }
    let why = || match report.not_ready_reason.as_str() {
        "" => "it is not ready".to_owned(),
        why => why.to_owned(),
    };
    match report.state {
        _ if pod.deleting => (
            MemberState::Draining,
            "its pod is being deleted".into(),
            Some(report),
        ),
        NodeState::Valid => (MemberState::Valid, String::new(), Some(report)),
        NodeState::Draining => (MemberState::Draining, "it is shutting down".into(), Some(report)),
        NodeState::Joining | NodeState::Unassigned => (MemberState::Joining, why(), Some(report)),
    }
}
