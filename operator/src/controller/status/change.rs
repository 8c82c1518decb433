//! What the status and the events say about changes of the ring.

use jiff::Timestamp;
use kube::runtime::events::EventType;

use super::{Note, count};
use crate::{
    controller::{
        change::{Change, plan_hash},
        observe::Preview,
        plan::Plan,
        rings::Rings,
        validate::ValidatedCluster,
    },
    crd::{
        DynamoClusterStatus, PlanStatus, PlannedMember, Rebalance, TransitionStatus, conditions::shortened,
    },
};

/// The change that is under way; its time is that of the first look at this ring.
pub(super) fn transition(
    rings: &Rings,
    old: Option<&TransitionStatus>,
    now: Timestamp,
) -> Option<TransitionStatus> {
    let change = rings.change.as_ref()?;
    let epoch = i64::try_from(change.ring.epoch).unwrap_or(i64::MAX);
    let seen = old.filter(|old| old.epoch == epoch);
    let second = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let progress = match change.step.as_str() {
        "synced" => format!("{} {}/{}", change.step, change.pulled, change.pulls),
        step => step.to_owned(),
    };
    Some(TransitionStatus {
        epoch,
        step: change.step.clone(),
        waits_for: change.waits_for.iter().take(200).cloned().collect(),
        pulls: i64::try_from(change.pulls).unwrap_or(i64::MAX),
        pulled: i64::try_from(change.pulled).unwrap_or(i64::MAX),
        progress,
        since: seen.map_or_else(|| second.to_string(), |old| old.since.clone()),
    })
}

/// The plan that waits for a person's word; as it was, while no node can be asked.
pub(super) fn plan_status(
    plan: &Plan<'_>,
    cluster: &ValidatedCluster,
    preview: Option<&Preview>,
    old: Option<&PlanStatus>,
) -> Option<PlanStatus> {
    let manual = cluster.spec.rebalance == Rebalance::Manual && matches!(plan.change, Change::Ask(_));
    let Some(preview) = preview.filter(|_| manual) else {
        return old.filter(|_| manual).cloned();
    };
    let told = Some(&preview.plan).filter(|told| !told.unchanged)?;
    let ring = told.ring.as_ref()?;
    let members = told.members.iter().take(200).map(|member| PlannedMember {
        name: member.member_id.clone(),
        owned_before: count(member.tokens_before as usize),
        owned_after: count(member.tokens_after as usize),
        gets: count(member.gets as usize),
    });
    let warnings = told.warnings.iter().take(16);
    Some(PlanStatus {
        epoch: i64::try_from(ring.epoch).unwrap_or(i64::MAX),
        hash: plan_hash(told),
        partitions: count(ring.owners.len()),
        moves: i64::from(told.moves),
        minimum_moves: i64::from(told.moves_min),
        bytes: i64::try_from(told.bytes).unwrap_or(i64::MAX),
        zone_violations_before: i64::from(told.zone_violations_before),
        zone_violations_after: i64::from(told.zone_violations_after),
        members: members.collect(),
        warnings: warnings.map(|warning| shortened(warning.clone(), 256)).collect(),
    })
}

/// A change that was under way is not any more.
pub(super) fn ended(old: &DynamoClusterStatus, new: &DynamoClusterStatus) -> Option<Note> {
    let was = old.transition.as_ref()?;
    let ring = new.ring.as_ref().filter(|_| new.transition.is_none())?;
    // Nobody told: that is no end.
    let told = new.nodes.iter().any(|node| node.state == "Valid");
    told.then(|| Note {
        type_: EventType::Normal,
        reason: "RingChangeCompleted",
        message: format!(
            "ring {} serves, of {} members; the change that led to it was seen first at {}",
            ring.epoch,
            new.nodes.iter().filter(|node| node.owned > 0).count(),
            was.since
        ),
    })
}
