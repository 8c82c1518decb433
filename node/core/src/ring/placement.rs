//! A ring with the primaries of all its partitions worked out, for look-ups on every request.

use std::sync::Arc;

use super::preference::{Picks, PreferenceList, Spread, zone_indexes};
use super::{Member, Ring};
use crate::types::{KeyHash, PartitionId};

/// What follows from a ring: computed once, 2·N·Q bytes, then read without a walk.
#[derive(Clone, Debug)]
pub struct Placement {
    ring: Arc<Ring>,
    /// `factor` members for each partition.
    primaries: Vec<u16>,
    tokens: Vec<u32>,
    replica_partitions: Vec<u32>,
    zone_violations: u32,
}

impl Placement {
    /// Walks from every partition.
    pub fn new(ring: Arc<Ring>) -> Self {
        let zones = zone_indexes(ring.members());
        let spread = Spread::new(&zones, &vec![true; zones.len()], ring.factor() as usize);
        let rule = ZoneRule::new(ring.members(), ring.factor() as usize);
        let mut primaries = Vec::with_capacity(ring.owners().len() * spread.count());
        let mut tokens = vec![0; zones.len()];
        let mut replica_partitions = vec![0; zones.len()];
        let mut zone_violations = 0;
        let mut picks = Picks::default();
        for (partition, owner) in ring.owners().iter().enumerate() {
            tokens[usize::from(*owner)] += 1;
            spread.walk(ring.owners(), partition, &mut picks);
            let begin = primaries.len();
            primaries.extend(picks.in_order());
            for primary in &primaries[begin..] {
                replica_partitions[usize::from(*primary)] += 1;
            }
            zone_violations += u32::from(!rule.holds(&zones, &primaries[begin..]));
        }
        Self {
            ring,
            primaries,
            tokens,
            replica_partitions,
            zone_violations,
        }
    }

    /// The ring it was computed from.
    pub fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    /// The N members that hold a partition, best first, as indexes into the ring's members.
    pub fn primaries(&self, partition: PartitionId) -> &[u16] {
        let n = self.ring.factor() as usize;
        let begin = self.ring.position(partition) * n;
        &self.primaries[begin..begin + n]
    }

    /// The N members that hold a key, best first, as indexes into the ring's members.
    pub fn primaries_of(&self, hash: KeyHash) -> &[u16] {
        self.primaries(self.ring.partition_of(hash))
    }

    /// Primaries and fallbacks of a partition. Cost: one walk around the ring, for the fallbacks.
    pub fn preference_list(&self, partition: PartitionId) -> PreferenceList {
        self.ring.preference_list(partition)
    }

    /// Whether a member is one of a partition's primaries.
    pub fn holds(&self, partition: PartitionId, member: usize) -> bool {
        self.primaries(partition)
            .iter()
            .any(|primary| usize::from(*primary) == member)
    }

    /// The partitions of which a member is a primary, clockwise.
    pub fn partitions_of(&self, member: usize) -> impl Iterator<Item = PartitionId> {
        (0..self.ring.partitions())
            .map(PartitionId)
            .filter(move |partition| self.holds(*partition, member))
    }

    /// Partitions whose token the member owns.
    pub fn tokens(&self, member: usize) -> u32 {
        self.tokens[member]
    }

    /// Partitions of which the member is a primary: what fills its disk.
    pub fn replica_partitions(&self, member: usize) -> u32 {
        self.replica_partitions[member]
    }

    /// Partitions whose primaries break the zone rule, for want of members in some zone; 0 if there are enough.
    pub fn zone_violations(&self) -> u32 {
        self.zone_violations
    }
}

/// Replicas lie in min(N, Z) zones, and no zone has more than ceil(N/Z) of them.
struct ZoneRule {
    zones_min: usize,
    zone_max: usize,
}

impl ZoneRule {
    fn new(members: &[Member], n: usize) -> Self {
        let mut zones: Vec<_> = members.iter().map(|member| &member.zone).collect();
        zones.sort();
        zones.dedup();
        Self {
            zones_min: n.min(zones.len()),
            zone_max: n.div_ceil(zones.len()),
        }
    }

    fn holds(&self, zones: &[u16], primaries: &[u16]) -> bool {
        let mut found: Vec<u16> = primaries
            .iter()
            .map(|primary| zones[usize::from(*primary)])
            .collect();
        found.sort_unstable();
        let groups = || found.chunk_by(|a, b| a == b);
        groups().count() >= self.zones_min && groups().all(|group| group.len() <= self.zone_max)
    }
}
