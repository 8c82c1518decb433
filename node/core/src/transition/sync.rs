//! What a member has to pull before it holds all that the next ring makes it hold. Paper: §4.9, §6.2.
//!
//! A new holder of a partition pulls it from its *predecessor*, the member that it is [paired](super::slots) with: whatever
//! was acknowledged is at W slots, and what its slot had, the predecessor has. Where the administrator has declared the
//! predecessor dead, now or before the base came to serve, it pulls from all others that are left: from the old holders, and from those
//! by a superseded ring or by one that is kept, who may have got what has died since. What only the dead held is lost.
//!
//! Buckets may have fewer replicas than the ring, and these are the first ones of the same preference list. So a member that
//! moves up in the list is a new holder too, of the buckets with that few replicas.

use std::collections::{BTreeMap, BTreeSet};

use super::layouts::primaries;
use super::queue::Queue;
use super::{Layouts, slots};
use crate::membership::RingVersion;
use crate::ring::{PARTITIONS_MAX, Placement};
use crate::types::{KeyHash, MemberId, PartitionId};

/// What has been pulled for one ring, and what is left. Exchanges may only begin once [`may_sync`](super::Transition::may_sync)
/// is true: what is written later reaches the new holder by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sync {
    ring: RingVersion,
    /// Of each partition, numbered as in the base ring, the members that are still to be pulled from.
    left: Queue,
    partitions: usize,
}

/// How far a member has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SyncProgress {
    /// Partitions that the next ring makes it pull.
    pub partitions: usize,
    /// Of these, partitions that are here.
    pub done: usize,
}

impl SyncProgress {
    /// Milliseconds until everything is here at the pace of the `elapsed_ms` since the first exchange began; `None` until a
    /// twentieth is here.
    pub fn remaining_ms(self, elapsed_ms: u64) -> Option<u64> {
        let (done, left) = (self.done as u64, (self.partitions - self.done) as u64);
        if left == 0 {
            return Some(0);
        }
        (done > 0 && self.done * 20 >= self.partitions).then(|| elapsed_ms.saturating_mul(left) / done)
    }
}

impl Sync {
    /// What `me` has to pull for the newest ring; `None` while no ring is to follow.
    pub fn new(layouts: &Layouts, me: &MemberId) -> Option<Self> {
        let next = layouts.next()?;
        let base = layouts.base();
        let partitions = (0..base.ring().partitions().min(PARTITIONS_MAX)).map(PartitionId);
        let left: BTreeMap<_, _> = partitions
            .map(|partition| (partition, sources(layouts, base, next, partition, me)))
            .filter(|(_, sources)| !sources.is_empty())
            .collect();
        Some(Self {
            ring: RingVersion::from(next.ring().as_ref()),
            partitions: left.len(),
            left: Queue::new(left),
        })
    }

    /// For which ring.
    pub fn ring(&self) -> RingVersion {
        self.ring
    }

    /// The pull-only exchange to begin now: of a random partition that is not here, with a random one of those that it is to be
    /// pulled from and that are a `source`: reachable, as far as is known.
    ///
    /// Whoever takes it says by [`ended`](Self::ended) what became of it; until then its partition is not given out again.
    pub fn next(
        &mut self,
        source: &dyn Fn(&MemberId) -> bool,
        random: u64,
    ) -> Option<(PartitionId, MemberId)> {
        self.left.next(source, random)
    }

    /// An exchange is over. `complete` as in the [report](crate::entropy::ExchangeReport::complete), which it never is with a
    /// suspect source; and what is here is on disk.
    pub fn ended(&mut self, partition: PartitionId, source: &MemberId, complete: bool) {
        if self.left.ended(partition, source, complete) {
            self.left.forget(partition);
        }
    }

    /// The partitions that are not here yet, ascending.
    pub fn open(&self) -> impl Iterator<Item = PartitionId> {
        self.left.open()
    }

    /// Everything is here.
    pub fn is_done(&self) -> bool {
        self.left.open().next().is_none()
    }

    /// How far it has come.
    pub fn progress(&self) -> SyncProgress {
        SyncProgress {
            partitions: self.partitions,
            done: self.partitions - self.left.open().count(),
        }
    }
}

fn sources(
    layouts: &Layouts,
    base: &Placement,
    next: &Placement,
    partition: PartitionId,
    me: &MemberId,
) -> BTreeSet<MemberId> {
    let dead = layouts.dead();
    let hash = KeyHash(*base.ring().range(partition).start());
    let lists = |n| {
        let of = |placement| primaries(placement, hash, n).cloned().collect::<Vec<_>>();
        (of(base), of(next))
    };
    let mut sources = BTreeSet::new();
    for n in 1..=base.ring().factor() {
        let (old, new) = lists(n);
        if old.contains(me) || !new.contains(me) {
            continue;
        }
        let paired = slots(&[old.clone(), new])
            .into_iter()
            .find(|slot| slot.members.contains(me));
        let predecessor =
            paired.and_then(|slot| slot.members.into_iter().find(|member| old.contains(member)));
        if let Some(predecessor) = predecessor.filter(|member| layouts.is_complete(member)) {
            sources.insert(predecessor);
        } else {
            let superseded = layouts.superseded();
            let others = superseded.flat_map(|placement| primaries(placement, hash, n));
            let left = old.iter().chain(others);
            let others = left.filter(|member| *member != me && !dead.contains(*member));
            sources.extend(others.cloned());
        }
    }
    sources
}
