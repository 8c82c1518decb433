//! Pure: which change of the ring is wanted, if any, and what forbids it. Computed anew on every pass from the spec and from
//! what was observed, so that a spec that changes in the middle of a change is followed at once.

use std::collections::BTreeSet;

use dynamo_core::ring::Placement;
use dynamo_proto::admin as pb;

use super::{
    members::{MemberState, MemberView},
    names,
    observe::{Observed, Preview},
    validate::ValidatedCluster,
};
use crate::crd::{Rebalance, ZonePolicy, conditions::shortened};

/// What is to become of the ring.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Nothing: it is as wanted, or there is none yet.
    None,
    /// Something, but not yet: a reason for programs, and for people what is waited for.
    Wait(&'static str, String),
    /// Something that would do harm: nothing moves until a person does something.
    Blocked(&'static str, String),
    /// This, by the word of a node on what it comes to.
    Ask(pb::RingTarget),
}

/// Part of a volume that data may fill, in hundredths: the rest is for what a store needs besides, and for growth.
const FILL_MAX: u128 = 80;
/// A message names at most this many members.
const NAMED_MAX: usize = 5;

/// What is wanted of the ring.
pub fn change(
    cluster: &ValidatedCluster,
    observed: &Observed,
    members: &[MemberView<'_>],
    ring: Option<&Placement>,
) -> Change {
    let Some(ring) = ring else {
        return Change::None;
    };
    let wish = Wish {
        cluster,
        observed,
        members,
        ring,
    };
    wish.change()
}

/// Members whose data somebody wants away from them, and whose pod is still the one that was named.
pub fn evacuating<'a>(
    members: &'a [MemberView<'_>],
    observed: &Observed,
) -> impl Iterator<Item = &'a MemberView<'a>> {
    let named: BTreeSet<&String> = observed
        .pods
        .iter()
        .filter(|(_, pod)| pod.evacuate && !pod.deleting)
        .map(|(name, _)| name)
        .collect();
    members
        .iter()
        .filter(move |member| member.wanted && named.contains(&member.id))
}

struct Wish<'a> {
    cluster: &'a ValidatedCluster,
    observed: &'a Observed,
    members: &'a [MemberView<'a>],
    ring: &'a Placement,
}

impl Wish<'_> {
    fn change(&self) -> Change {
        let (target, too_few) = self.target();
        let base = self.base();
        let as_base = target.len() == base.len() && target.iter().all(|member| base.contains(member));
        let partitions = self.partitions(as_base);
        let changing = self.cluster.rings.change.is_some();
        if as_base && partitions == 0 && !changing {
            return too_few.map_or(Change::None, |why| Change::Blocked("EvacuationBlocked", why));
        }
        if let Some(held) = self.held(&target) {
            return held;
        }
        Change::Ask(pb::RingTarget {
            members: target,
            dead: Vec::new(),
            partitions,
        })
    }

    /// What keeps a change from being asked for: what passes by itself first, then what a person has to settle.
    fn held(&self, target: &[pb::TargetMember]) -> Option<Change> {
        let rings = &self.cluster.rings;
        let Some(base) = rings.base.as_ref() else {
            let why = self
                .observed
                .changes
                .values()
                .find_map(|told| told.as_ref().err());
            let message = format!(
                "the ring is to change, but no member tells where changes stand{}; members of a release that cannot change rings have to be restarted with a newer image first",
                why.map_or_else(String::new, |why| format!(" ({why})"))
            );
            return Some(Change::Wait("RingUnknown", message));
        };
        if (base.epoch, base.hash) != self.ring.ring().version() {
            let message = "members still learn the newest ring".to_owned();
            return Some(Change::Wait("RingSpreading", message));
        }
        if let Some(waiting) = self.newcomers(target) {
            return Some(waiting);
        }
        let ids: BTreeSet<&str> = target.iter().map(|member| member.member_id.as_str()).collect();
        let newest = rings.newest().into_iter().flatten().map(String::as_str);
        // What has been looked at when it began is not looked at again: data move meanwhile. And going back is always right.
        let begun = rings.change.is_some()
            && (newest.eq(ids.iter().copied()) || base.members.iter().map(String::as_str).eq(ids));
        if begun {
            return None;
        }
        self.too_few_zones(target)
            .or_else(|| self.too_small_volumes(target))
            .or_else(|| self.somebody_down())
    }

    /// Everybody who is wanted, but for those whose data are wanted away as far as enough others are left; and whom that
    /// leaves out.
    fn target(&self) -> (Vec<pb::TargetMember>, Option<String>) {
        let factor = usize::try_from(self.cluster.spec.replication.factor).unwrap_or(0);
        let wanted: Vec<&MemberView> = self.members.iter().filter(|member| member.wanted).collect();
        let spare = wanted.len().saturating_sub(factor);
        let leaving: Vec<&str> = evacuating(self.members, self.observed)
            .map(|member| member.id.as_str())
            .collect();
        let (go, stay) = leaving.split_at(leaving.len().min(spare));
        let target = wanted
            .iter()
            .filter(|member| !go.contains(&member.id.as_str()))
            .map(|member| pb::TargetMember {
                member_id: member.id.clone(),
                zone: member.zone.to_owned(),
                weight: self.weight(&member.id),
                replaces: String::new(),
            });
        let why = (!stay.is_empty()).then(|| {
            format!(
                "{} cannot be evacuated: {} members are needed for {factor} replicas of every key, and {} are asked for. Raise spec.members by {}, or remove annotation {} from the pod",
                named(stay.iter().copied()),
                factor + 1,
                wanted.len(),
                stay.len(),
                names::EVACUATE
            )
        });
        (target.collect(), why)
    }

    fn weight(&self, member: &str) -> u32 {
        let mut planned = self.cluster.members();
        planned
            .find(|planned| planned.id() == member)
            .map_or(1, |planned| planned.zone.layout.weight)
    }

    fn base(&self) -> Vec<pb::TargetMember> {
        let members = self.ring.ring().members().iter();
        members
            .map(|member| pb::TargetMember {
                member_id: member.id.as_str().into(),
                zone: member.zone.as_str().into(),
                weight: member.weight,
                replaces: String::new(),
            })
            .collect()
    }

    /// Q is doubled, and doubled again, while the members stay the same.
    fn partitions(&self, as_base: bool) -> u32 {
        let now = self.ring.ring().partitions();
        let wanted = u32::try_from(self.cluster.spec.ring.partitions).unwrap_or(0);
        if as_base && wanted >= now * 2 { now * 2 } else { 0 }
    }

    /// New members have to run and to know who they are, all of them: one change moves less than several.
    fn newcomers(&self, target: &[pb::TargetMember]) -> Option<Change> {
        let ready = |member: &MemberView| {
            matches!(member.state, MemberState::Joining | MemberState::Valid) && member.report.is_some()
        };
        let missing: Vec<String> = self
            .members
            .iter()
            .filter(|member| target.iter().any(|wanted| wanted.member_id == member.id))
            .filter(|member| !member.listed && !ready(member))
            .map(|member| format!("{}: {}", member.label(), member.message))
            .collect();
        if missing.is_empty() {
            return None;
        }
        let message = format!(
            "the ring changes once all new members run and have joined; waiting for {}",
            named(missing.iter().map(String::as_str))
        );
        Some(Change::Wait("WaitingForPods", shortened(message, 900)))
    }

    fn too_few_zones(&self, target: &[pb::TargetMember]) -> Option<Change> {
        let zones = |zones: BTreeSet<&str>| zones.into_iter().filter(|zone| !zone.is_empty()).count();
        let ring = self.ring.ring();
        let now = zones(ring.members().iter().map(|member| member.zone.as_str()).collect());
        let then = zones(target.iter().map(|member| member.zone.as_str()).collect());
        let factor = ring.factor() as usize;
        let require = self.cluster.spec.replication.zone_policy == ZonePolicy::Require;
        (require && then < now.min(factor)).then(|| {
            let message = format!(
                "the members that stay are in {then} zones, but {} are needed to keep the {factor} replicas of every key as far apart as now. Nothing moves. Keep members in more zones, or set spec.replication.zonePolicy to BestEffort",
                now.min(factor)
            );
            Change::Blocked("ScaleDownBlocked", message)
        })
    }

    /// Those that stay must have room for what those that go hold.
    fn too_small_volumes(&self, target: &[pb::TargetMember]) -> Option<Change> {
        let stays = |id: &str| target.iter().any(|member| member.member_id == id);
        let ring = self.ring.ring();
        if ring.members().iter().all(|member| stays(member.id.as_str())) {
            return None;
        }
        let total: u64 = self
            .members
            .iter()
            .filter(|member| member.serves)
            .filter_map(|member| member.report)
            .fold(0, |sum, report| sum.saturating_add(report.data_bytes));
        let weights: u64 = target.iter().map(|member| u64::from(member.weight)).sum();
        let full = target.iter().find_map(|member| {
            let share = u128::from(total) * u128::from(member.weight) / u128::from(weights.max(1));
            let share = u64::try_from(share).unwrap_or(u64::MAX);
            let volume = self.volume(&member.member_id);
            (share > room(volume)).then_some((&member.member_id, share, volume))
        })?;
        let (member, share, volume) = full;
        let message = format!(
            "{} of {} members are to leave, and {member} would have to hold about {} of a volume of {}, of which {} are for data. Nothing moves. Keep more members, raise storage.size, or delete data",
            ring.members().iter().filter(|m| !stays(m.id.as_str())).count(),
            ring.members().len(),
            bytes(share),
            bytes(volume),
            bytes(room(volume)),
        );
        Some(Change::Blocked("ScaleDownBlocked", message))
    }

    /// Bytes of a member's volume: what its claim asks for, which may still grow to what the spec says.
    fn volume(&self, member: &str) -> u64 {
        let claim = self.observed.claims.get(&names::claim(member));
        let size = claim.and_then(|claim| claim.size.as_ref());
        let size = size.unwrap_or(&self.cluster.spec.storage.size);
        u64::try_from(size.milli().unwrap_or(0) / 1000).unwrap_or(u64::MAX)
    }

    /// A change that begins while a member is down would only wait for it, with every write going to two rings.
    fn somebody_down(&self) -> Option<Change> {
        if self.cluster.rings.change.is_some() {
            return None;
        }
        let down: Vec<String> = self
            .members
            .iter()
            .filter(|member| member.serves && member.state != MemberState::Valid)
            .map(|member| format!("{}: {}", member.label(), member.message))
            .collect();
        if down.is_empty() {
            return None;
        }
        let message = format!(
            "the ring changes once all its members serve; waiting for {}",
            named(down.iter().map(String::as_str))
        );
        Some(Change::Wait("MembersNotValid", shortened(message, 900)))
    }
}

/// Bytes of a volume that data may fill.
fn room(volume: u64) -> u64 {
    u64::try_from(u128::from(volume) * FILL_MAX / 100).unwrap_or(u64::MAX)
}

/// What stands against a change, now that it is known what it comes to.
pub fn objection(cluster: &ValidatedCluster, preview: &Preview) -> Option<(&'static str, String)> {
    let plan = &preview.plan;
    let (before, after) = (plan.zone_violations_before, plan.zone_violations_after);
    let begun = cluster.rings.change.is_some();
    if cluster.spec.replication.zone_policy == ZonePolicy::Require && after > before && !begun {
        let message = format!(
            "{after} partitions would have replicas that share a zone more than they must, and {before} have now. Nothing moves. Ask for other members or zones, or set spec.replication.zonePolicy to BestEffort"
        );
        return Some(("ScaleDownBlocked", message));
    }
    let hash = plan_hash(plan);
    if cluster.spec.rebalance == Rebalance::Manual && cluster.spec.approved_plan.as_ref() != Some(&hash) {
        let message = format!(
            "{}. spec.rebalance is Manual, so nothing moves until spec.approvedPlan is {hash:?}: kubectl patch dync/{} --type merge -p '{{\"spec\":{{\"approvedPlan\":\"{hash}\"}}}}'",
            summary(plan),
            cluster.name
        );
        return Some(("WaitingForApproval", message));
    }
    None
}

/// What an administrator approves: the hash of the planned ring.
pub fn plan_hash(plan: &pb::PlanResponse) -> String {
    let hash = plan.ring.as_ref().map_or(0, |ring| ring.hash);
    format!("{hash:016x}")
}

/// What a change comes to, in a sentence.
pub fn summary(plan: &pb::PlanResponse) -> String {
    let epoch = plan.ring.as_ref().map_or(0, |ring| ring.epoch);
    let count =
        |of: fn(&pb::MemberChange) -> u32| plan.members.iter().filter(|member| of(member) > 0).count();
    format!(
        "ring {epoch} has {} members instead of {}; {} replica-partitions move (at least {}), about {}",
        count(|member| member.weight_after),
        count(|member| member.weight_before),
        plan.moves,
        plan.moves_min,
        bytes(plan.bytes)
    )
}

/// The first few of them.
pub fn named<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let all: Vec<&str> = texts.collect();
    let first = all.iter().take(NAMED_MAX).copied().collect::<Vec<_>>().join("; ");
    match all.len().saturating_sub(NAMED_MAX) {
        0 => first,
        more => format!("{first}; and {more} more"),
    }
}

/// `1.5 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut whole = bytes;
    while whole >= 1024 && unit + 1 < UNITS.len() {
        whole /= 1024;
        unit += 1;
    }
    let tenths = u128::from(bytes) * 10 / (1_u128 << (10 * unit));
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}
