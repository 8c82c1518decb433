//! What a change of the ring would come to: the ring, and what moves. Paper: §4.9, §6.2.
//!
//! A plan begins from the *base* ring, whose members hold the data, also where it takes the place of a ring that was proposed
//! and not reached: going back moves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Member, PARTITIONS_MAX, Placement, Ring, RingError, RingParts};
use crate::types::{MemberId, PartitionId};

/// What the ring shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// All members that it shall have, in any order.
    pub members: Vec<Member>,
    /// New members that take the tokens of members that go, as they are: new by old.
    pub replaces: BTreeMap<MemberId, MemberId>,
    /// Q: as now, or twice that.
    pub partitions: u32,
}

/// A change, worked out.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The ring that it ends in.
    pub ring: Arc<Ring>,
    /// What each member has before and after, ascending by id.
    pub shares: BTreeMap<MemberId, ShareChange>,
    /// Replica-partitions that members get which they did not hold.
    pub moves: u32,
    /// The fewest that any ring with these shares would move.
    pub moves_min: u32,
    /// Partitions that break the zone rule, before and after.
    pub zone_violations: (u32, u32),
}

/// One member, before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShareChange {
    /// 0: not a member.
    pub weight: (u32, u32),
    /// Partitions whose token it owns.
    pub tokens: (u32, u32),
    /// Partitions of which it is a primary.
    pub partitions: (u32, u32),
    /// Of the latter, those that it did not hold.
    pub gets: u32,
}

/// Why a target is no ring.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The members make no ring.
    #[error("these members make no ring: {0}")]
    Ring(#[from] RingError),
    /// Q is neither the present one nor twice that.
    #[error("a ring of {now} partitions can be changed to one of {} and to no other number, not to {asked}", now * 2)]
    Partitions {
        /// Q of the base ring.
        now: u32,
        /// What was asked for.
        asked: u32,
    },
    /// Q and the members cannot change at once.
    #[error(
        "the number of partitions cannot change together with the members: commit one change after the other"
    )]
    TwoChanges,
    /// A replacement names a member that is not there, or that stays.
    #[error(
        "{new} cannot take the tokens of {old}: {old} must be a member now and not afterwards, and {new} the reverse"
    )]
    Replaces {
        /// Who is to take them.
        new: MemberId,
        /// Whose.
        old: MemberId,
    },
    /// Tokens pass only between equals.
    #[error("{new} cannot take the tokens of {old}: both must be in one zone and have one weight")]
    Unequal {
        /// Who is to take them.
        new: MemberId,
        /// Whose.
        old: MemberId,
    },
}

impl Ring {
    /// The ring of twice as many partitions in which every key has the preference list that it has now, so that nothing moves.
    ///
    /// # Errors
    /// If there are too many partitions then.
    pub fn doubled(&self, epoch: u64) -> Result<Self, RingError> {
        if self.partitions() >= PARTITIONS_MAX {
            return Err(RingError::Partitions(self.partitions() * 2));
        }
        let owners = self.owners().iter().flat_map(|owner| [*owner, *owner]);
        Self::new(RingParts {
            epoch,
            owners: owners.collect(),
            ..self.parts.clone()
        })
    }

    /// As it is, but for some members whose tokens others have: new by old.
    fn renamed(&self, epoch: u64, old_by_new: &BTreeMap<MemberId, MemberId>) -> Result<Self, RingError> {
        let new_by_old: BTreeMap<_, _> = old_by_new.iter().map(|(new, old)| (old, new)).collect();
        let named = |member: &Member| Member {
            id: new_by_old.get(&member.id).map_or(&member.id, |new| *new).clone(),
            ..member.clone()
        };
        let mut members: Vec<(usize, Member)> = self.members().iter().map(named).enumerate().collect();
        members.sort_by(|a, b| a.1.id.cmp(&b.1.id));
        let mut place = vec![0; members.len()];
        for (now, (before, _)) in members.iter().enumerate() {
            place[*before] = now as u16;
        }
        Self::new(RingParts {
            epoch,
            members: members.into_iter().map(|(_, member)| member).collect(),
            owners: self
                .owners()
                .iter()
                .map(|owner| place[usize::from(*owner)])
                .collect(),
            ..self.parts.clone()
        })
    }

    fn at_epoch(&self, epoch: u64) -> Result<Self, RingError> {
        Self::new(RingParts {
            epoch,
            ..self.parts.clone()
        })
    }
}

/// Works out the ring of `epoch` that `target` comes to, from the base ring.
///
/// # Errors
/// If the target is no ring.
pub fn plan(base: &Placement, epoch: u64, target: &Target) -> Result<Plan, PlanError> {
    let before = base.ring();
    let same_members = sorted(&target.members) == before.members();
    let ring = if target.partitions == before.partitions() {
        next(before, epoch, target)?
    } else if target.partitions != before.partitions() * 2 {
        return Err(PlanError::Partitions {
            now: before.partitions(),
            asked: target.partitions,
        });
    } else if same_members {
        before.doubled(epoch)?
    } else {
        return Err(PlanError::TwoChanges);
    };
    Ok(summed_up(base, &Placement::new(Arc::new(ring))))
}

fn next(before: &Ring, epoch: u64, target: &Target) -> Result<Ring, PlanError> {
    let listed = |member: &MemberId| target.members.iter().find(|listed| listed.id == *member);
    let was = |member: &MemberId| before.index_of(member).map(|index| &before.members()[index]);
    let mut taken = BTreeSet::new();
    for (new, old) in &target.replaces {
        let (new, old) = (new.clone(), old.clone());
        match (listed(&new), was(&old)) {
            (Some(after), Some(then))
                if was(&new).is_none() && listed(&old).is_none() && taken.insert(old.clone()) =>
            {
                if (&after.zone, after.weight) != (&then.zone, then.weight) {
                    return Err(PlanError::Unequal { new, old });
                }
            }
            _ => return Err(PlanError::Replaces { new, old }),
        }
    }
    // Replaced first, so that the claim finds the tokens where they shall be.
    let renamed = before.renamed(before.epoch(), &target.replaces)?;
    let ring = if sorted(&target.members) == renamed.members() {
        renamed.at_epoch(epoch)?
    } else {
        renamed.with_members(target.members.clone())?.at_epoch(epoch)?
    };
    Ok(ring)
}

fn sorted(members: &[Member]) -> Vec<Member> {
    super::sorted(members.to_vec())
}

fn summed_up(base: &Placement, next: &Placement) -> Plan {
    let mut shares: BTreeMap<MemberId, ShareChange> = BTreeMap::new();
    for (index, member) in base.ring().members().iter().enumerate() {
        let share = shares.entry(member.id.clone()).or_default();
        share.weight.0 = member.weight;
        share.tokens.0 = base.tokens(index);
        share.partitions.0 = base.replica_partitions(index);
    }
    // A partition of the base ring is this many of the next.
    let parts = next.ring().partitions() / base.ring().partitions().max(1);
    for (index, member) in next.ring().members().iter().enumerate() {
        let before = base.ring().index_of(&member.id);
        let held = |partition: PartitionId| {
            let then = PartitionId(partition.0 / parts.max(1));
            before.is_some_and(|before| base.holds(then, before))
        };
        let share = shares.entry(member.id.clone()).or_default();
        share.weight.1 = member.weight;
        share.tokens.1 = next.tokens(index);
        share.partitions.1 = next.replica_partitions(index);
        share.gets = next
            .partitions_of(index)
            .filter(|partition| !held(*partition))
            .count() as u32;
    }
    let grows = |share: &ShareChange| share.partitions.1.saturating_sub(share.partitions.0 * parts);
    Plan {
        moves: shares.values().map(|share| share.gets).sum(),
        moves_min: shares.values().map(grows).sum(),
        zone_violations: (base.zone_violations(), next.zone_violations()),
        ring: Arc::clone(next.ring()),
        shares,
    }
}
