//! One node of the model, and the rings that it may be told of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dynamo_core::membership::RingVersion;
use dynamo_core::ring::{Member, Ring, RingParts};
use dynamo_core::transition::{Told, Transition, slots};
use dynamo_core::types::{ClusterId, Incarnation, MemberId, PartitionId, Zone};

use super::{Mistake, Op, Value};

/// N of every ring.
pub(crate) const N: usize = 3;
/// W of every write.
pub(crate) const W: usize = 2;
const HERE: PartitionId = PartitionId(0);

/// What a coordinator, or one who pulls, waits for.
pub(crate) enum Running {
    Write {
        id: u32,
        slots: Vec<Vec<usize>>,
        acks: BTreeSet<usize>,
        tag: RingVersion,
    },
    Read {
        promised: Value,
        answers: BTreeMap<usize, Value>,
        tag: RingVersion,
    },
    Pull {
        version: RingVersion,
        for_base: bool,
    },
    Gossip,
}

pub(crate) struct Node {
    pub(crate) id: MemberId,
    pub(crate) life: Incarnation,
    pub(crate) began: u64,
    pub(crate) deaf_until: u64,
    pub(crate) transition: Option<Transition>,
    pub(crate) lives: BTreeMap<MemberId, Incarnation>,
    pub(crate) value: Value,
    pub(crate) suspect: bool,
    /// Whom it has pulled from, for a ring: as its new holder, or as a suspect one of the base.
    pub(crate) pulled: BTreeMap<(RingVersion, bool), BTreeSet<usize>>,
    pub(crate) running: BTreeMap<Op, Running>,
}

pub(crate) fn name(node: usize) -> MemberId {
    MemberId::new(format!("m{node}")).unwrap()
}

pub(crate) fn number(member: &MemberId) -> usize {
    member.as_str()[1..].parse().unwrap()
}

pub(crate) fn version(ring: &Ring) -> RingVersion {
    RingVersion::from(ring)
}

/// Who holds the partition.
pub(crate) fn list(ring: &Ring) -> Vec<usize> {
    let primaries = ring.preference_list(HERE).primaries;
    primaries
        .into_iter()
        .map(|index| number(&ring.members()[index].id))
        .collect()
}

/// A ring with these members; the first three hold the partition.
pub(crate) fn ring(epoch: u64, order: &[usize]) -> Ring {
    let mut members = order.to_vec();
    members.sort_unstable();
    let member = |node: &usize| Member {
        id: name(*node),
        zone: Zone::new("").unwrap(),
        weight: 1,
    };
    let index = |node: usize| members.iter().position(|member| *member == node).unwrap() as u16;
    let parts = RingParts {
        cluster_id: ClusterId([7; 16]),
        epoch,
        factor: N as u32,
        members: members.iter().map(member).collect(),
        owners: (0..8)
            .map(|partition| index(order[partition % order.len()]))
            .collect(),
    };
    Ring::new(parts).unwrap()
}

impl Running {
    /// The newest ring when it began, if the mark `known` waits for it.
    pub(crate) fn tag(&self) -> Option<RingVersion> {
        match self {
            Self::Write { tag, .. } | Self::Read { tag, .. } => Some(*tag),
            Self::Pull { .. } | Self::Gossip => None,
        }
    }
}

impl Node {
    pub(crate) fn hear(&mut self, told: Told, lives: BTreeMap<MemberId, Incarnation>, mistake: Mistake) {
        for (member, life) in lives {
            let known = self.lives.entry(member).or_insert(life);
            *known = life.max(*known);
        }
        let forgetful = mistake != Mistake::ForgetsThatItForgot;
        let it = self.transition.get_or_insert_with(|| {
            Transition::new(self.id.clone(), self.life, Arc::clone(&told.base), forgetful)
        });
        for (member, life) in &self.lives {
            it.lives(member, *life);
        }
        it.hear(told);
    }

    /// A suspect store is whole once it has pulled from all other holders, or holds nothing; and nobody can have retired the base
    /// ring without its word.
    pub(crate) fn settle(&mut self) {
        let Some(it) = &self.transition else { return };
        let holds = list(it.base()).contains(&number(&self.id));
        let pulled = self.pulled.get(&(version(it.base()), true));
        let whole = !holds || pulled.is_some_and(|from| from.len() >= N - 1);
        let pulled_for = self.has_pulled_for_next().then(|| it.newest());
        self.suspect &= !(whole && it.may_be_trusted(pulled_for));
    }

    /// The next ring, if everything that it makes this node hold is here.
    pub(crate) fn synced(&self) -> Option<RingVersion> {
        let next = self.transition.as_ref()?.next()?;
        (!self.suspect && self.has_pulled_for_next()).then(|| next.version())
    }

    /// With its predecessor, or with so many of the base ring's holders that one of them has whatever was acknowledged.
    pub(crate) fn has_pulled_for_next(&self) -> bool {
        let Some(it) = &self.transition else { return false };
        let Some(next) = it.next() else { return true };
        let me = number(&self.id);
        let (old, new) = (list(it.base()), list(&next.ring));
        if old.contains(&me) || !new.contains(&me) {
            return true;
        }
        let names = |list: Vec<usize>| list.into_iter().map(name).collect();
        let lists = [names(old.clone()), names(new)];
        let paired = slots(&lists)
            .into_iter()
            .find(|slot| slot.members.contains(&self.id));
        let predecessor = paired.and_then(|slot| slot.members.first().map(number));
        let Some(from) = self.pulled.get(&(next.version(), false)) else {
            return false;
        };
        from.iter().any(|from| Some(*from) == predecessor)
            || from.iter().filter(|from| old.contains(from)).count() > N - W
    }
}
