//! The administrators' half of a change of the ring: plan, commit, and where it stands. Paper: §4.8.1, §4.9.

use std::{collections::BTreeSet, sync::Arc};

use dynamo_core::{
    membership::RingVersion,
    ring::{Member, Plan, Ring, Target, WEIGHT_MAX, plan},
    transition::Transition,
    types::{MemberId, Zone},
};
use dynamo_proto::admin::{
    CommitRequest, CommitResponse, MemberChange, PlanResponse, RingTarget, TargetMember, TransitionResponse,
};

use super::{
    convert,
    status::{Failure, Reason},
};
use crate::{
    background::transition::step_name,
    node::{Node, Placed},
    tasks,
};

/// A change, worked out, and what it begins from.
struct Planned {
    plan: Plan,
    dead: BTreeSet<MemberId>,
    newest: RingVersion,
    /// The newest ring is as asked for.
    unchanged: bool,
}

/// # Errors
/// INVALID_ARGUMENT if the target is no ring; FAILED_PRECONDITION if it names a member that has not joined.
pub(super) async fn planned(
    node: &Arc<Node>,
    placed: &Arc<Placed>,
    target: RingTarget,
) -> Result<PlanResponse, Failure> {
    let planned = work_out(node, placed, target).await?;
    let before = placed.placement().ring();
    let plan = &planned.plan;
    let zone = |id: &MemberId| {
        let of = |ring: &Ring| Some(ring.members()[ring.index_of(id)?].zone.to_string());
        of(&plan.ring).or_else(|| of(before)).unwrap_or_default()
    };
    let members = plan.shares.iter().map(|(id, share)| MemberChange {
        member_id: id.to_string(),
        zone: zone(id),
        weight_before: share.weight.0,
        weight_after: share.weight.1,
        tokens_before: share.tokens.0,
        tokens_after: share.tokens.1,
        partitions_before: share.partitions.0,
        partitions_after: share.partitions.1,
        gets: share.gets,
    });
    Ok(PlanResponse {
        expected_epoch: planned.newest.epoch,
        ring: Some(convert::ring(&plan.ring, |member| node.client_address(member))),
        members: members.collect(),
        moves: plan.moves,
        moves_min: plan.moves_min,
        bytes: bytes_per_partition(node, placed) * u64::from(plan.moves),
        zone_violations_before: plan.zone_violations.0,
        zone_violations_after: plan.zone_violations.1,
        unchanged: planned.unchanged,
        warnings: warnings(node, &planned),
    })
}

/// # Errors
/// As [`planned`]; FAILED_PRECONDITION if the plan is stale or this node may not propose now.
pub(super) async fn commit(
    node: &Arc<Node>,
    placed: &Arc<Placed>,
    request: CommitRequest,
) -> Result<CommitResponse, Failure> {
    let target = request.target.unwrap_or_default();
    let planned = work_out(node, placed, target).await?;
    let stale = |message: String| Failure::new(Reason::StalePlan, message);
    let newest = planned.newest;
    if planned.unchanged {
        return Ok(CommitResponse {
            epoch: newest.epoch,
            hash: newest.hash,
            proposed: false,
        });
    }
    if request.expected_epoch != newest.epoch {
        return Err(stale(format!(
            "the plan begins from epoch {}, but the newest ring has epoch {}; plan again, look at it, and commit that",
            request.expected_epoch, newest.epoch
        )));
    }
    let ring = planned.plan.ring;
    if request.expected_hash != 0 && request.expected_hash != ring.hash() {
        return Err(stale(format!(
            "the target comes to ring {:016x} by now, not to {:016x}; plan again, look at it, and commit that",
            ring.hash(),
            request.expected_hash
        )));
    }
    if node.is_unconfirmed() || node.is_suspect_anywhere() {
        return Err(stale(
            "this node's store is not whole, so it may have forgotten other rings; ask another member"
                .to_owned(),
        ));
    }
    if node
        .membership()
        .declare_dead(node.writer(), &planned.dead)
        .await?
    {
        tell_all(node).await;
        return Err(stale(
            "members read from the newest ring already, so that no other may be proposed; it does not wait for the dead any more: \
             ask again when it serves"
                .to_owned(),
        ));
    }
    tracing::info!(
        epoch = ring.epoch(),
        hash = format!("{:016x}", ring.hash()),
        members = ring.members().len(),
        partitions = ring.partitions(),
        moves = planned.plan.moves,
        dead = ?planned.dead,
        "a ring is proposed"
    );
    let (epoch, hash) = ring.version();
    node.membership()
        .propose(node.writer(), ring, planned.dead)
        .await?;
    tell_all(node).await;
    Ok(CommitResponse {
        epoch,
        hash,
        proposed: true,
    })
}

/// Goes by what this node has just put down, and tells all others.
async fn tell_all(node: &Arc<Node>) {
    node.ring_changed();
    tasks::tell_all(node).await;
    node.catch_up();
}

/// Where a change stands.
///
/// # Errors
/// FAILED_PRECONDITION before the first ring.
pub(super) fn transition(node: &Node) -> Result<TransitionResponse, Failure> {
    let transition = known(node)?;
    let names = |ring: &Ring| {
        ring.members()
            .iter()
            .map(|member| member.id.to_string())
            .collect()
    };
    let base = transition.base();
    let mut response = TransitionResponse {
        base_epoch: base.epoch(),
        base_hash: base.hash(),
        base_members: names(base),
        strays: node.with_strays(|strays| strays.count()) as u32,
        kept_members: transition
            .kept_members()
            .iter()
            .map(ToString::to_string)
            .collect(),
        ..TransitionResponse::default()
    };
    if let Some(next) = transition.next() {
        response.next_epoch = next.ring.epoch();
        response.next_hash = next.ring.hash();
        response.next_members = names(&next.ring);
        response.dead = next.dead.iter().map(ToString::to_string).collect();
        let (progress, remaining_ms) = node.pull_progress();
        response.remaining_ms = remaining_ms;
        response.pulls = progress.partitions as u32;
        response.pulled = progress.done as u32;
    }
    if let Some((step, members)) = transition.waits_for() {
        step_name(step).clone_into(&mut response.step);
        response.waits_for = members.into_iter().map(ToString::to_string).collect();
    }
    Ok(response)
}

fn known(node: &Node) -> Result<Transition, Failure> {
    let no_ring = || {
        Failure::new(
            Reason::NoRing,
            "this node knows no ring yet; ask a member of the cluster",
        )
    };
    node.membership().transition().ok_or_else(no_ring)
}

async fn work_out(node: &Arc<Node>, placed: &Arc<Placed>, target: RingTarget) -> Result<Planned, Failure> {
    let transition = known(node)?;
    let newest = transition.newest();
    let newest_ring = transition.next().map_or(transition.base(), |next| &next.ring);
    let dead = dead(&transition, &target)?;
    let target = read(node, newest_ring, transition.base(), target)?;
    let mut wanted = target.members.clone();
    wanted.sort_by(|a, b| a.id.cmp(&b.id));
    let known_dead = transition
        .next()
        .map(|next| next.dead.clone())
        .unwrap_or_default();
    let unchanged = wanted == newest_ring.members()
        && target.partitions == newest_ring.partitions()
        && (dead.is_empty() || dead == known_dead);
    let placed = Arc::clone(placed);
    let epoch = newest.epoch + 1;
    let worked_out = tokio::task::spawn_blocking(move || plan(placed.placement(), epoch, &target)).await;
    let plan = worked_out
        .map_err(|error| Failure::new(Reason::Storage, format!("working out the ring: {error}")))?
        .map_err(|error| Failure::invalid(error.to_string()))?;
    Ok(Planned {
        plan,
        dead,
        newest,
        unchanged,
    })
}

fn dead(transition: &Transition, target: &RingTarget) -> Result<BTreeSet<MemberId>, Failure> {
    let mut dead = BTreeSet::new();
    for id in &target.dead {
        let member = MemberId::new(id).map_err(|error| Failure::invalid(error.to_string()))?;
        if target.members.iter().any(|listed| listed.member_id == *id) {
            let message = format!("{id} cannot be both a member of the target and dead");
            return Err(Failure::invalid(message));
        }
        if !transition.lists(&member) {
            return Err(Failure::invalid(format!(
                "{id} is said to be dead, but it is no member now"
            )));
        }
        dead.insert(member);
    }
    Ok(dead)
}

/// Fills in what was left out, and checks that every new member is there.
fn read(node: &Node, newest: &Ring, base: &Ring, target: RingTarget) -> Result<Target, Failure> {
    let mut read = Target {
        partitions: match target.partitions {
            0 => newest.partitions(),
            partitions => partitions,
        },
        ..Target::default()
    };
    for asked in target.members {
        let id = MemberId::new(&asked.member_id).map_err(|error| Failure::invalid(error.to_string()))?;
        let listed = |ring: &Ring| ring.index_of(&id).map(|index| ring.members()[index].clone());
        let now = listed(newest).or_else(|| listed(base));
        read.members.push(member(node, &id, &asked, now.as_ref())?);
        if !asked.replaces.is_empty() {
            let old = MemberId::new(&asked.replaces).map_err(|error| Failure::invalid(error.to_string()))?;
            read.replaces.insert(id, old);
        }
    }
    Ok(read)
}

fn member(node: &Node, id: &MemberId, asked: &TargetMember, now: Option<&Member>) -> Result<Member, Failure> {
    if asked.weight > WEIGHT_MAX {
        let message = format!(
            "the weight of {id} is {} but must be 1..={WEIGHT_MAX}",
            asked.weight
        );
        return Err(Failure::invalid(message));
    }
    let said = node.membership().entry(id).map(|entry| entry.zone);
    let zone = match (asked.zone.as_str(), now, &said) {
        ("", Some(now), _) => now.zone.clone(),
        ("", None, Some(said)) => said.clone(),
        (asked, ..) => Zone::new(asked).map_err(|error| Failure::invalid(error.to_string()))?,
    };
    match said {
        None if now.is_none() => Err(Failure::new(
            Reason::StalePlan,
            format!(
                "{id} has not joined, as far as this node has heard: let it join first, or ask again in a moment"
            ),
        )),
        Some(said) if now.is_none() && said != zone => Err(Failure::invalid(format!(
            "{id} says that it is in zone {:?}, not in {:?}",
            said.as_str(),
            zone.as_str()
        ))),
        _ => Ok(Member {
            id: id.clone(),
            zone,
            weight: match asked.weight {
                0 => now.map_or(1, |now| now.weight),
                weight => weight,
            },
        }),
    }
}

fn bytes_per_partition(node: &Node, placed: &Placed) -> u64 {
    let placement = placed.placement();
    let index = placement.ring().index_of(placed.me());
    let held = index.map_or(0, |index| placement.replica_partitions(index));
    node.store().estimate().unwrap_or_default().bytes / u64::from(held.max(1))
}

fn warnings(node: &Node, planned: &Planned) -> Vec<String> {
    let mut warnings = Vec::new();
    for dead in &planned.dead {
        warnings.push(format!("{dead} is declared dead: what only it held is lost"));
    }
    let (before, after) = planned.plan.zone_violations;
    if after > before {
        warnings.push(format!(
            "{after} partitions will not be spread over as many zones as possible ({before} now): some zone has too few members"
        ));
    }
    let me = node.membership().me().map(|me| me.member);
    for id in planned.plan.shares.keys() {
        if Some(id) != me.as_ref() && !planned.dead.contains(id) && !node.peers().reachable(id) {
            warnings.push(format!("{id} cannot be reached: the change will wait for it"));
        }
    }
    warnings
}
