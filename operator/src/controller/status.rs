//! Pure: what the DynamoCluster's status says after a pass, and which events tell of what changed.

use std::collections::{BTreeMap, BTreeSet};

use dynamo_core::ring::Placement;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::EventType;

mod change;

use super::{
    apply::{ApplyError, Done},
    change::Change,
    layout::LayoutError,
    members::{MemberState, MemberView},
    names,
    observe::Preview,
    plan::{Plan, Stance},
    validate::{ValidateError, ValidatedCluster},
};
use crate::{
    admin::NodeReport,
    crd::{
        DynamoCluster, DynamoClusterStatus, NodeStatus, RingStatus, ZoneStatus,
        conditions::{self, Finding, Truth, shortened},
    },
    ring,
};

/// An event about a DynamoCluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Normal or Warning.
    pub type_: EventType,
    /// One word for programs.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

/// The status of a cluster that nothing can be built from. What was known of members stays, for nobody looked.
pub fn invalid(source: &DynamoCluster, error: &ValidateError, now: Timestamp) -> DynamoClusterStatus {
    let old = source.status.clone().unwrap_or_default();
    let generation = source.metadata.generation;
    let message = error.to_string();
    let (reason, stalled) = match error {
        ValidateError::Spec(_) => ("InvalidSpec", true),
        ValidateError::Layout(LayoutError::NoNode { .. }) => ("NoNode", false),
        ValidateError::Layout(LayoutError::Forbidden) => ("ZonesUnknown", true),
        ValidateError::Layout(LayoutError::Annotation { .. }) | ValidateError::ClusterId(_) => {
            ("BadAnnotation", true)
        }
        ValidateError::Layout(LayoutError::Volumes { .. }) | ValidateError::SeveralIds(_) => {
            ("ForeignVolume", true)
        }
    };
    let truth = |holds: bool| if holds { Truth::True } else { Truth::False };
    let unseen = "members were not looked at";
    let findings = [
        Finding::new(conditions::READY, Truth::False, reason, message.clone()),
        Finding::new(conditions::RECONCILING, truth(!stalled), reason, message.clone()),
        Finding::new(conditions::STALLED, truth(stalled), reason, message),
        Finding::new(
            conditions::QUORUM_AVAILABLE,
            Truth::Unknown,
            "NotObserved",
            unseen,
        ),
        Finding::new(conditions::RING_BALANCED, Truth::Unknown, "NotObserved", unseen),
    ];
    DynamoClusterStatus {
        observed_generation: generation,
        conditions: findings
            .map(|f| conditions::condition(&old.conditions, f, generation, now))
            .into(),
        ..old
    }
}

/// The status of a cluster after a pass.
pub fn status(
    source: &DynamoCluster,
    cluster: &ValidatedCluster,
    plan: &Plan<'_>,
    preview: Option<&Preview>,
    error: Option<&ApplyError>,
    now: Timestamp,
) -> DynamoClusterStatus {
    let old = source.status.clone().unwrap_or_default();
    let generation = source.metadata.generation;
    let valid = |member: &&MemberView| member.state == MemberState::Valid && member.counts();
    let stance = match (
        error.and_then(|error| Some((error.stalls()?, error.to_string()))),
        &plan.stance,
    ) {
        (Some((reason, message)), _) => &Stance::Stalled(reason, message),
        (None, stance @ (Stance::Stalled(..) | Stance::Paused)) => stance,
        (None, stance) => match &plan.blocked {
            Some((reason, message)) => &Stance::Stalled(reason, message.clone()),
            None => stance,
        },
    };
    let quorum = quorum(cluster, plan, &old);
    let findings = [
        ready(cluster, plan, stance, &quorum),
        reconciling(stance, error),
        stalled(stance),
        quorum,
        balanced(cluster, plan),
    ];
    DynamoClusterStatus {
        observed_generation: generation,
        members: count(plan.members.iter().filter(|member| member.pod.is_some()).count()),
        ready_members: count(plan.members.iter().filter(valid).count()),
        selector: Some(names::selector_text(&names::selector(&cluster.name))),
        // Of a cluster that changes its zones, the id stays written.
        cluster_id: names::cluster_id_of(source).map(|id| id.to_string()),
        version: release(plan).or(old.version),
        endpoint: Some(format!(
            "{}.{}.svc:7700",
            names::client_service(&cluster.name),
            cluster.namespace
        )),
        transition: change::transition(&cluster.rings, old.transition.as_ref(), now),
        plan: change::plan_status(plan, cluster, preview, old.plan.as_ref()),
        ring: plan.ring.as_deref().map(ring_status).or(old.ring),
        hints: reports(plan).fold(0, |sum, report| {
            sum.saturating_add(i64::try_from(report.hints).unwrap_or(i64::MAX))
        }),
        suspect_partitions: count(
            reports(plan)
                .map(|report| report.partitions_suspect as usize)
                .sum(),
        ),
        zones: cluster
            .zones
            .iter()
            .map(|zone| zone_status(&zone.layout, plan))
            .collect(),
        nodes: plan
            .members
            .iter()
            .map(|member| node_status(member, plan.ring.as_deref()))
            .collect(),
        conditions: findings
            .map(|f| conditions::condition(&old.conditions, f, generation, now))
            .into(),
    }
}

/// What to tell about a pass: what was done, and what is otherwise than in the status before. Nothing for a steady
/// cluster.
pub fn notes(source: &DynamoCluster, new: &DynamoClusterStatus, done: &[Done]) -> Vec<Note> {
    let old = source.status.clone().unwrap_or_default();
    let mut notes: Vec<Note> = done.iter().map(|done| told(done, new)).collect();
    notes.extend(change::ended(&old, new));
    notes.extend(shared_hosts(&old, new));
    let find = conditions::find;
    if let Some(condition) = find(&new.conditions, conditions::QUORUM_AVAILABLE) {
        let before = find(&old.conditions, conditions::QUORUM_AVAILABLE).map(|c| c.status.as_str());
        match (before, condition.status.as_str()) {
            (Some("True" | "Unknown"), "False") => notes.push(warning("QuorumLost", condition)),
            (Some("False"), "True") => notes.push(normal("QuorumRestored", condition)),
            _ => {}
        }
    }
    if let Some(ready) = find(&new.conditions, conditions::READY) {
        let before = find(&old.conditions, conditions::READY);
        let news = before.is_none_or(|b| b.status != ready.status || b.reason != ready.reason);
        let stalled = find(&new.conditions, conditions::STALLED).filter(|stalled| stalled.status == "True");
        // Done things and quorums have told their own story.
        let known = notes.iter().any(|note| note.reason == ready.reason)
            || matches!(
                ready.reason.as_str(),
                "Founding" | "Bootstrapping" | "Joining" | "QuorumLost" | "ProposingRing" | "RingChanging"
            );
        match stalled {
            Some(stalled) if news => notes.push(warning(static_reason(&stalled.reason), stalled)),
            None if news && !known => {
                let reason = static_reason(&ready.reason);
                let quiet = matches!(
                    reason,
                    "AllMembersValid"
                        | "WaitingForPods"
                        | "RollingRestart"
                        | "Paused"
                        | "RemovingPods"
                        | "RingSpreading"
                );
                notes.push(if quiet {
                    normal(reason, ready)
                } else {
                    warning(reason, ready)
                });
            }
            _ => {}
        }
    }
    notes
}

fn told(done: &Done, status: &DynamoClusterStatus) -> Note {
    let (reason, message) = match done {
        Done::Founded => {
            let zones: Vec<String> = status
                .zones
                .iter()
                .map(|zone| format!("{} ({})", zone.name, zone.members))
                .collect();
            ("Founded", format!("members by zone: {}", zones.join(", ")))
        }
        Done::Bootstrapped(member) => ("Bootstrapped", format!("{member} minted the first ring")),
        Done::Joined(member, zone) if zone.is_empty() => ("NodeJoined", format!("{member} joined")),
        Done::Joined(member, zone) => ("NodeJoined", format!("{member} joined in zone {zone}")),
        Done::Restarted(_, why) => ("RollingRestart", why.clone()),
        Done::Grown(claim, size) => ("StorageExpanding", format!("claim {claim} asks for {size}")),
        Done::Committed(member, epoch, what) => (
            "RingChangeStarted",
            format!("{member} proposed ring {epoch}: {what}"),
        ),
        Done::Scaled(set, before, now) if now < before => (
            "PodsRemoved",
            format!("{set} has {now} pods instead of {before}: the members of the others have left the ring"),
        ),
        Done::Scaled(set, before, now) => ("PodsAdded", format!("{set} has {now} pods instead of {before}")),
        Done::Replaced(_, lost, why) => (if *lost { "VolumeReplaced" } else { "Evacuated" }, why.clone()),
        Done::ZoneRemoved(set) => (
            "ZoneRemoved",
            format!("StatefulSet {set} is deleted: its members have left the ring; their volumes stay"),
        ),
    };
    Note {
        type_: EventType::Normal,
        reason,
        message,
    }
}

fn normal(reason: &'static str, condition: &Condition) -> Note {
    Note {
        type_: EventType::Normal,
        reason,
        message: condition.message.clone(),
    }
}

fn warning(reason: &'static str, condition: &Condition) -> Note {
    Note {
        type_: EventType::Warning,
        reason,
        message: condition.message.clone(),
    }
}

/// Reasons come from this crate's literals by way of a string; events want the literal.
fn static_reason(reason: &str) -> &'static str {
    const REASONS: [&str; 34] = [
        "AllMembersValid",
        "BadAnnotation",
        "Bootstrapping",
        "Evacuated",
        "EvacuationBlocked",
        "ForeignVolume",
        "Founding",
        "InvalidSpec",
        "Joining",
        "MembersNotValid",
        "NameTaken",
        "NodeRefused",
        "NoNode",
        "Paused",
        "ProposingRing",
        "QuorumLost",
        "RemovingPods",
        "RemovingZone",
        "ReplacingVolume",
        "RingChanging",
        "RingLost",
        "RingMismatch",
        "RingSpreading",
        "RingUnknown",
        "RollingRestart",
        "ScaleDownBlocked",
        "VolumeLost",
        "VolumeNotChanged",
        "VolumesLost",
        "WaitingForApproval",
        "WaitingForPods",
        "ZoneEmpty",
        "ZoneMismatch",
        "ZonesUnknown",
    ];
    REASONS
        .into_iter()
        .find(|known| *known == reason)
        .unwrap_or("StatusChanged")
}

/// Members that share a k8s node, told when they come to.
fn shared_hosts(old: &DynamoClusterStatus, new: &DynamoClusterStatus) -> Option<Note> {
    let shared = |status: &DynamoClusterStatus| {
        let mut by_host = BTreeMap::<String, Vec<String>>::new();
        for node in status.nodes.iter().filter(|node| !node.k8s_node.is_empty()) {
            by_host
                .entry(node.k8s_node.clone())
                .or_default()
                .push(node.name.clone());
        }
        by_host.retain(|_, members| members.len() > 1);
        by_host
    };
    let (before, now) = (shared(old), shared(new));
    if now.is_empty() || now == before {
        return None;
    }
    let text: Vec<String> = now
        .iter()
        .take(5)
        .map(|(host, members)| format!("{} on {host}", members.join(", ")))
        .collect();
    let message = format!(
        "members share a k8s node and would fail with it: {}",
        text.join("; ")
    );
    Some(Note {
        type_: EventType::Warning,
        reason: "SharedHost",
        message: shortened(message, 900),
    })
}

fn ready(cluster: &ValidatedCluster, plan: &Plan<'_>, stance: &Stance, quorum: &Finding) -> Finding {
    let wanted = || plan.members.iter().filter(|member| member.wanted);
    let total = wanted().count();
    let valid = wanted()
        .filter(|member| member.state == MemberState::Valid)
        .count();
    let rings: BTreeSet<_> = wanted().map(MemberView::ring).collect();
    let as_wanted = plan.change == Change::None && cluster.rings.change.is_none();
    let finding = |truth, reason, message: String| Finding::new(conditions::READY, truth, reason, message);
    if let Stance::Stalled(reason, message) = stance {
        return finding(Truth::False, reason, message.clone());
    }
    let told = plan.ring.as_ref().map(|ring| ring.ring().version());
    let agreed = rings.len() == 1 && told.is_some() && rings.contains(&told);
    if valid == total && agreed && as_wanted && quorum.truth == Truth::True {
        return finding(
            Truth::True,
            "AllMembersValid",
            format!("{valid} of {total} members serve"),
        );
    }
    match stance {
        _ if quorum.truth == Truth::False => finding(Truth::False, "QuorumLost", quorum.message.clone()),
        Stance::Progressing(reason, message) => finding(Truth::False, reason, message.clone()),
        Stance::Paused => finding(
            Truth::False,
            "Paused",
            format!("{valid} of {total} members serve, and spec.paused keeps the operator from acting"),
        ),
        Stance::Steady | Stance::Stalled(..) => finding(
            Truth::False,
            "MembersNotValid",
            format!("{valid} of {total} members serve"),
        ),
    }
}

fn reconciling(stance: &Stance, error: Option<&ApplyError>) -> Finding {
    let finding =
        |truth, reason, message: String| Finding::new(conditions::RECONCILING, truth, reason, message);
    match (stance, error) {
        (Stance::Stalled(reason, message), _) => finding(Truth::False, reason, message.clone()),
        (_, Some(error)) => finding(Truth::True, "Retrying", error.to_string()),
        (Stance::Progressing(reason, message), None) => finding(Truth::True, reason, message.clone()),
        (Stance::Paused, None) => finding(Truth::False, "Paused", "spec.paused is true".into()),
        (Stance::Steady, None) => finding(Truth::False, "Steady", "as the spec asks".into()),
    }
}

fn stalled(stance: &Stance) -> Finding {
    match stance {
        Stance::Stalled(reason, message) => {
            Finding::new(conditions::STALLED, Truth::True, reason, message.clone())
        }
        _ => Finding::new(
            conditions::STALLED,
            Truth::False,
            "NotStalled",
            "no person is needed",
        ),
    }
}

fn quorum(cluster: &ValidatedCluster, plan: &Plan<'_>, old: &DynamoClusterStatus) -> Finding {
    let finding =
        |truth, reason, message: String| Finding::new(conditions::QUORUM_AVAILABLE, truth, reason, message);
    let down = || {
        let down = plan
            .members
            .iter()
            .filter(|member| member.counts() && member.state != MemberState::Valid);
        let labels: Vec<String> = down
            .map(|m| format!("{} {}", m.label(), m.state.as_str()))
            .collect();
        shortened(labels.join(", "), 700)
    };
    let Some(placement) = plan.ring.as_deref() else {
        return match &old.ring {
            None => finding(Truth::Unknown, "NoRing", "there is no ring yet".into()),
            Some(_) => finding(
                Truth::Unknown,
                "RingUnknown",
                format!("no member tells the ring: {}", down()),
            ),
        };
    };
    let needed = cluster.quorum_needed();
    let serves = |id: &str| {
        plan.members
            .iter()
            .any(|member| member.id == id && member.state == MemberState::Valid)
    };
    // While the first members join, nothing that was there is lost.
    let comes = |id: &str| {
        let comes = [MemberState::Valid, MemberState::Unassigned, MemberState::Joining];
        let member = plan.members.iter().find(|member| member.id == id);
        member.is_some_and(|member| comes.contains(&member.state))
    };
    let known = conditions::find(&old.conditions, conditions::QUORUM_AVAILABLE)
        .is_some_and(|condition| condition.status != Truth::Unknown.as_str());
    let total = placement.ring().partitions();
    match ring::partitions_without_quorum(placement, needed, serves) {
        lost @ 1.. if !known && ring::partitions_without_quorum(placement, needed, comes) == 0 => finding(
            Truth::Unknown,
            "Joining",
            format!(
                "{lost} of {total} partitions wait for members to join: {}",
                down()
            ),
        ),
        0 => finding(
            Truth::True,
            "EveryPartitionHasQuorum",
            format!("{total} of {total} partitions have {needed} valid primaries or more"),
        ),
        lost => finding(
            Truth::False,
            "QuorumLost",
            format!(
                "{lost} of {total} partitions have fewer than {needed} valid primaries: {}",
                down()
            ),
        ),
    }
}

fn balanced(cluster: &ValidatedCluster, plan: &Plan<'_>) -> Finding {
    let finding =
        |truth, reason, message: String| Finding::new(conditions::RING_BALANCED, truth, reason, message);
    let Some(placement) = plan.ring.as_deref() else {
        return finding(Truth::Unknown, "NoRing", "no member tells a ring".into());
    };
    if let Some(change) = &cluster.rings.change {
        let message = format!(
            "ring {} is proposed and waits for the step {}",
            change.ring.epoch, change.step
        );
        return finding(Truth::False, "RingChanging", message);
    }
    if plan.change != Change::None {
        return finding(
            Truth::False,
            "ChangeWanted",
            "the spec asks for another ring, which is still to be proposed".into(),
        );
    }
    let ring = placement.ring();
    let weights: u32 = ring.members().iter().map(|member| member.weight).sum();
    let off = ring.members().iter().enumerate().find_map(|(index, member)| {
        let share = u64::from(ring.partitions()) * u64::from(member.weight);
        let (floor, owned) = (
            share / u64::from(weights.max(1)),
            u64::from(placement.tokens(index)),
        );
        let fair = owned == floor || owned == share.div_ceil(u64::from(weights.max(1)));
        (!fair).then(|| format!("{} owns {owned} partitions of a fair share of {floor}", member.id))
    });
    match (off, placement.zone_violations()) {
        (Some(off), _) => finding(Truth::False, "UnevenShares", off),
        (None, 0) => finding(
            Truth::True,
            "EvenShares",
            "every member owns its share, every key is spread over zones".into(),
        ),
        (None, count) => finding(
            Truth::False,
            "ZonesTooSmall",
            format!("{count} partitions have replicas that share a zone more than they must"),
        ),
    }
}

/// What the members said that are this cluster's.
fn reports<'a>(plan: &'a Plan<'_>) -> impl Iterator<Item = &'a NodeReport> {
    plan.members.iter().filter_map(|member| member.report)
}

fn release(plan: &Plan<'_>) -> Option<String> {
    let releases: BTreeSet<&str> = reports(plan)
        .map(|report| report.release.as_str())
        .filter(|release| !release.is_empty())
        .collect();
    let text = releases.into_iter().collect::<Vec<_>>().join(", ");
    (!text.is_empty()).then_some(text)
}

fn ring_status(placement: &Placement) -> RingStatus {
    let ring = placement.ring();
    let tokens = || (0..ring.members().len()).map(|index| placement.tokens(index));
    RingStatus {
        epoch: i64::try_from(ring.epoch()).unwrap_or(i64::MAX),
        hash: format!("{:016x}", ring.hash()),
        partitions: count(ring.partitions() as usize),
        min_owned: count(tokens().min().unwrap_or(0) as usize),
        max_owned: count(tokens().max().unwrap_or(0) as usize),
    }
}

fn zone_status(layout: &super::layout::ZoneLayout, plan: &Plan<'_>) -> ZoneStatus {
    let of_zone = |member: &&MemberView| {
        member.stateful_set == layout.stateful_set && member.state == MemberState::Valid
    };
    ZoneStatus {
        name: if layout.zone.is_empty() {
            "-".into()
        } else {
            layout.zone.clone()
        },
        stateful_set: layout.stateful_set.clone(),
        members: count(layout.members as usize),
        ready_members: count(plan.members.iter().filter(of_zone).count()),
    }
}

fn node_status(member: &MemberView<'_>, ring: Option<&Placement>) -> NodeStatus {
    let owned = ring.and_then(|placement| {
        let index = placement
            .ring()
            .members()
            .iter()
            .position(|m| m.id.as_str() == member.id)?;
        Some(placement.tokens(index))
    });
    NodeStatus {
        name: member.id.clone(),
        zone: member.zone.into(),
        k8s_node: member
            .pod
            .and_then(|pod| pod.k8s_node.clone())
            .unwrap_or_default(),
        state: member.word().into(),
        owned: count(owned.unwrap_or(0) as usize),
        message: shortened(member.message.clone(), 256),
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
