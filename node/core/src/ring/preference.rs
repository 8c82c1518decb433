//! Who holds a partition: the first N nodes of a clockwise walk that spreads them over zones.
//!
//! With Z zones among the members, the walk from a partition picks in three passes:
//! 1. the first node of each zone not met before, until min(N, Z) are picked;
//! 2. again from the start, nodes not picked whose zone holds fewer than ceil(N/Z), until N are picked;
//! 3. again from the start, any node not picked, until N are picked.
//!
//! The list is in the order of picking. So replicas lie in min(N, Z) zones and no zone has more than ceil(N/Z) of
//! them, unless the other zones lack members: this holds for *every* ring in which each member owns a token, whatever
//! the tokens' order. The fallbacks are all other nodes in walk order. Paper: §4.3, §4.6.

use std::collections::BTreeMap;

use super::{Member, Ring};
use crate::types::PartitionId;

/// The nodes responsible for a partition, as indexes into the ring's members; every member is in it once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreferenceList {
    /// The N nodes that hold the partition, best first; the first is the partition's owner.
    pub primaries: Vec<usize>,
    /// All others, in the order in which they would stand in.
    pub fallbacks: Vec<usize>,
}

impl Ring {
    /// The preference list of a partition with the ring's own factor. Cost: one walk around the ring.
    pub fn preference_list(&self, partition: PartitionId) -> PreferenceList {
        self.preference_list_for(partition, self.factor())
    }

    /// The preference list of a partition for `n` replicas; more than there are members count as all of them.
    pub fn preference_list_for(&self, partition: PartitionId, n: u32) -> PreferenceList {
        let zones = zone_indexes(self.members());
        let spread = Spread::new(&zones, &vec![true; zones.len()], n as usize);
        let start = self.position(partition);
        let mut picks = Picks::default();
        spread.walk(self.owners(), start, &mut picks);
        let primaries: Vec<usize> = picks.in_order().map(usize::from).collect();

        let mut taken = vec![false; self.members().len()];
        for primary in &primaries {
            taken[*primary] = true;
        }
        let mut fallbacks = Vec::with_capacity(taken.len() - primaries.len());
        let (before, from) = self.owners().split_at(start);
        for owner in from.iter().chain(before) {
            let owner = usize::from(*owner);
            if !std::mem::replace(&mut taken[owner], true) {
                fallbacks.push(owner);
            }
        }
        PreferenceList { primaries, fallbacks }
    }
}

/// A token without an owner, met only while tokens are being claimed: walks step over it.
pub(super) const NOBODY: u16 = u16::MAX;

/// The zone of each member, as a number.
pub(super) fn zone_indexes(members: &[Member]) -> Vec<u16> {
    let mut numbers = BTreeMap::new();
    for member in members {
        let next = numbers.len() as u16;
        numbers.entry(&member.zone).or_insert(next);
    }
    members.iter().map(|member| numbers[&member.zone]).collect()
}

/// How many nodes each pass picks, which depends on the numbers of members alone.
///
/// Knowing them, one walk does the work of the three passes: a zone's first node precedes its others, and pass 3
/// picks anything only if pass 2 has filled every zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spread {
    zones: Vec<u16>,
    /// ceil(N/Z).
    zone_max: usize,
    first_count: usize,
    fill_count: usize,
    rest_count: usize,
}

/// What a walk has picked, by pass.
#[derive(Debug, Default)]
pub(super) struct Picks {
    firsts: Vec<u16>,
    fills: Vec<u16>,
    rest: Vec<u16>,
}

impl Spread {
    /// For members in these zones, of which only the present ones own tokens.
    pub(super) fn new(zones: &[u16], present: &[bool], n: usize) -> Self {
        let mut sizes = BTreeMap::new();
        for (zone, _) in zones.iter().zip(present).filter(|(_, present)| **present) {
            *sizes.entry(*zone).or_insert(0usize) += 1;
        }
        let n = n.min(sizes.values().sum());
        let zone_max = n.div_ceil(sizes.len().max(1));
        let first_count = n.min(sizes.len());
        let fill_room: usize = sizes
            .values()
            .map(|size| zone_max.min(*size).saturating_sub(1))
            .sum();
        let fill_count = fill_room.min(n - first_count);
        let rest_count = n - first_count - fill_count;
        Self {
            zones: zones.to_vec(),
            zone_max,
            first_count,
            fill_count,
            rest_count,
        }
    }

    /// How many nodes a walk picks.
    pub(super) fn count(&self) -> usize {
        self.first_count + self.fill_count + self.rest_count
    }

    /// Picks the primaries of the partition `start`; returns how many tokens it has looked at.
    ///
    /// A later start never ends earlier: whether a stretch of tokens suffices depends on the set of its owners and
    /// stays true of a longer one.
    pub(super) fn walk(&self, owners: &[u16], start: usize, picks: &mut Picks) -> usize {
        picks.clear();
        let count = self.count();
        let (before, from) = owners.split_at(start);
        for (distance, owner) in from.iter().chain(before).enumerate() {
            if picks.len() == count {
                return distance;
            }
            if *owner != NOBODY && !picks.contains(*owner) {
                self.offer(*owner, picks);
            }
        }
        owners.len()
    }

    fn offer(&self, owner: u16, picks: &mut Picks) {
        let zone = self.zones[usize::from(owner)];
        let held = picks
            .in_order()
            .filter(|pick| self.zones[usize::from(*pick)] == zone)
            .count();
        if held == 0 {
            picks.firsts.push(owner);
        } else if held < self.zone_max {
            if picks.fills.len() < self.fill_count {
                picks.fills.push(owner);
            }
        } else if picks.rest.len() < self.rest_count {
            picks.rest.push(owner);
        }
    }
}

impl Picks {
    /// The primaries, best first.
    pub(super) fn in_order(&self) -> impl Iterator<Item = u16> {
        self.firsts.iter().chain(&self.fills).chain(&self.rest).copied()
    }

    fn len(&self) -> usize {
        self.firsts.len() + self.fills.len() + self.rest.len()
    }

    fn contains(&self, owner: u16) -> bool {
        self.in_order().any(|pick| pick == owner)
    }

    fn clear(&mut self) {
        self.firsts.clear();
        self.fills.clear();
        self.rest.clear();
    }
}
