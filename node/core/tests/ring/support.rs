//! Members, rings and an independent reading of the placement rules.

use std::collections::BTreeMap;

use dynamo_core::ring::{Member, Ring};
use dynamo_core::types::{ClusterId, MemberId, PartitionId, Zone};

pub(crate) const CLUSTER: ClusterId = ClusterId([7; 16]);

/// A random sequence that a seed replays.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_F491_4F6C_DD1D) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, count: usize) -> usize {
        ((self.next() >> 16) % count as u64) as usize
    }
}

/// Member `m0007` in zone `z2`, say.
pub(crate) fn member(number: usize, zone: usize, weight: u32) -> Member {
    Member {
        id: MemberId::new(format!("m{number:04}")).unwrap(),
        zone: Zone::new(format!("z{zone}")).unwrap(),
        weight,
    }
}

/// As many members of weight 1 in each zone; ids alternate between the zones as far as they reach.
pub(crate) fn members_in(sizes: &[usize]) -> Vec<Member> {
    let rows = 0..sizes.iter().copied().max().unwrap_or(0);
    let spots = rows.flat_map(|row| (0..sizes.len()).filter(move |zone| sizes[*zone] > row));
    spots
        .enumerate()
        .map(|(number, zone)| member(number, zone, 1))
        .collect()
}

/// All ways to write `total` as `parts` descending numbers from 1 to `max`.
pub(crate) fn spreads(total: usize, parts: usize, max: usize) -> Vec<Vec<usize>> {
    if parts == 0 {
        return if total == 0 { vec![Vec::new()] } else { Vec::new() };
    }
    let firsts = (1..=max.min(total)).rev();
    let with_first = |first| {
        let rest = spreads(total - first, parts - 1, first);
        rest.into_iter().map(move |rest| [vec![first], rest].concat())
    };
    firsts.flat_map(with_first).collect()
}

/// The spreads of 1..=12 members over 1..=4 zones, up to the names of zones.
pub(crate) fn matrix() -> Vec<Vec<usize>> {
    let zones_and_members = (1..=4).flat_map(|zones| (zones..=12).map(move |members| (zones, members)));
    zones_and_members
        .flat_map(|(zones, members)| spreads(members, zones, members))
        .collect()
}

/// The three passes word for word: each restarts at the partition and picks one node after the other.
pub(crate) fn naive_preference_list(ring: &Ring, partition: u32, n: usize) -> (Vec<usize>, Vec<usize>) {
    let walk: Vec<usize> = (0..ring.partitions())
        .map(|step| ring.owner(PartitionId((partition + step) % ring.partitions())))
        .collect();
    let zone = |member: usize| &ring.members()[member].zone;
    let mut zones: Vec<_> = ring.members().iter().map(|member| &member.zone).collect();
    zones.sort();
    zones.dedup();
    let mut picked: Vec<usize> = Vec::new();
    for node in &walk {
        if picked.len() < n.min(zones.len()) && !picked.iter().any(|other| zone(*other) == zone(*node)) {
            picked.push(*node);
        }
    }
    for node in &walk {
        let in_zone = picked.iter().filter(|other| zone(**other) == zone(*node)).count();
        if picked.len() < n && !picked.contains(node) && in_zone < n.div_ceil(zones.len()) {
            picked.push(*node);
        }
    }
    for node in &walk {
        if picked.len() < n && !picked.contains(node) {
            picked.push(*node);
        }
    }
    let mut fallbacks: Vec<usize> = Vec::new();
    for node in &walk {
        if !picked.contains(node) && !fallbacks.contains(node) {
            fallbacks.push(*node);
        }
    }
    (picked, fallbacks)
}

/// Replica-partitions of every member, counted from the preference lists.
pub(crate) fn loads(ring: &Ring) -> BTreeMap<MemberId, usize> {
    let mut loads: BTreeMap<_, usize> = ring
        .members()
        .iter()
        .map(|member| (member.id.clone(), 0))
        .collect();
    for id in replica_sets(ring).into_iter().flatten() {
        *loads.get_mut(&id).unwrap() += 1;
    }
    loads
}

/// Who holds each partition.
pub(crate) fn replica_sets(ring: &Ring) -> Vec<Vec<MemberId>> {
    let id = |index: usize| ring.members()[index].id.clone();
    (0..ring.partitions())
        .map(|p| {
            ring.preference_list(PartitionId(p))
                .primaries
                .into_iter()
                .map(id)
                .collect()
        })
        .collect()
}

/// Tokens of every member, in the ring's order.
pub(crate) fn tokens(ring: &Ring) -> Vec<u32> {
    let mut tokens = vec![0; ring.members().len()];
    for owner in ring.owners() {
        tokens[usize::from(*owner)] += 1;
    }
    tokens
}

/// Replica-partitions that a change brings to nodes which did not hold them.
pub(crate) fn moves(old: &Ring, new: &Ring) -> usize {
    let pairs = replica_sets(old).into_iter().zip(replica_sets(new));
    pairs
        .map(|(old, new)| new.iter().filter(|member| !old.contains(member)).count())
        .sum()
}
