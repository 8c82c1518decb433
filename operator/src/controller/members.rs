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
}

impl MemberView<'_> {
    /// Epoch and hash of its ring, if it has one.
    pub fn ring(&self) -> Option<(u64, u64)> {
        self.report
            .filter(|report| report.ring_epoch > 0)
            .map(|report| (report.ring_epoch, report.ring_hash))
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
