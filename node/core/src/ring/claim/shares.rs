//! What each member should get: tokens exactly, replica-partitions as a target.

use super::Member;

/// How many tokens a member gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TokenShare {
    /// What it gets unless another has reason to stand in its place; over all members these sum to Q.
    pub(super) want: u32,
    /// The floor of its share, at least 1.
    pub(super) floor: u32,
    /// The ceiling of its share.
    pub(super) ceiling: u32,
}

/// Tokens per member: the floor or ceiling of the weighted share, by largest remainder.
///
/// Equal remainders go to who holds more tokens already, then to the smaller id. A member whose share is below one
/// token gets one; the others share what is left by weight.
pub(super) fn tokens(members: &[Member], partitions: u32, held: &[u32]) -> Vec<TokenShare> {
    let mut shares = vec![
        TokenShare {
            want: 1,
            floor: 1,
            ceiling: 1
        };
        members.len()
    ];
    let mut sharing: Vec<usize> = (0..members.len()).collect();
    let mut left = u64::from(partitions);
    let mut weight = sum_of_weights(members, &sharing);
    loop {
        let light = |index: &usize| u64::from(members[*index].weight) * left < weight;
        let rest: Vec<usize> = sharing.iter().copied().filter(|index| !light(index)).collect();
        if rest.len() == sharing.len() {
            break;
        }
        left -= (sharing.len() - rest.len()) as u64;
        sharing = rest;
        weight = sum_of_weights(members, &sharing);
    }
    let mut beyond = left;
    for index in &sharing {
        let parts = u64::from(members[*index].weight) * left;
        let (floor, ceiling) = ((parts / weight) as u32, parts.div_ceil(weight) as u32);
        shares[*index] = TokenShare {
            want: floor,
            floor,
            ceiling,
        };
        beyond -= u64::from(floor);
    }
    let remainder = |index: &usize| u64::from(members[*index].weight) * left % weight;
    sharing.sort_by_key(|index| (remainder(index), held[*index], members.len() - index));
    for index in sharing.iter().rev().take(beyond as usize) {
        shares[*index].want += 1;
    }
    shares
}

fn sum_of_weights(members: &[Member], of: &[usize]) -> u64 {
    of.iter().map(|index| u64::from(members[*index].weight)).sum()
}

/// Fractions of a replica-partition are counted in this many parts.
pub(super) const PARTS: i64 = 64;
/// Fixed-point places of the water level below.
const LEVEL_SHIFT: u32 = 24;

/// Replica-partitions that each member should hold, in [`PARTS`], summing to about `factor · partitions`.
///
/// By weight, as far as the zone rule allows: what is poured over the members rises to one level per unit of weight,
/// but no member holds a partition twice, no zone holds fewer or more copies of each than the rule gives it, and
/// within a zone that is so held back, the members share by weight again.
pub(super) fn replica_targets(members: &[Member], zones: &[u16], partitions: u32, factor: u32) -> Vec<i64> {
    let full = i64::from(partitions) * PARTS;
    let bounds = zone_bounds(zones, i64::from(factor));
    let fill = |zone: u16, level: i64| -> i64 {
        let members = members.iter().zip(zones).filter(|(_, z)| **z == zone);
        members
            .map(|(member, _)| share(member.weight, level).min(full))
            .sum()
    };
    let zone_total = |zone: usize, level: i64| {
        let (low, high) = bounds[zone];
        fill(zone as u16, level).clamp(low * full, high * full)
    };
    let total = |level| (0..bounds.len()).map(|zone| zone_total(zone, level)).sum::<i64>();
    let level = level_for(i64::from(factor) * full, full, total);
    let levels: Vec<i64> = (0..bounds.len())
        .map(|zone| level_for(zone_total(zone, level), full, |level| fill(zone as u16, level)))
        .collect();
    members
        .iter()
        .zip(zones)
        .map(|(member, zone)| share(member.weight, levels[usize::from(*zone)]).min(full))
        .collect()
}

fn share(weight: u32, level: i64) -> i64 {
    (i64::from(weight) * level) >> LEVEL_SHIFT
}

/// The lowest level that reaches the amount; at the highest, even a member of weight 1 is full.
fn level_for(amount: i64, full: i64, total: impl Fn(i64) -> i64) -> i64 {
    let (mut low, mut high) = (0, (full + 1) << LEVEL_SHIFT);
    while low < high {
        let middle = low + (high - low) / 2;
        if total(middle) >= amount {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// Fewest and most copies of one partition in each zone, by the three passes of the preference list.
fn zone_bounds(zones: &[u16], factor: i64) -> Vec<(i64, i64)> {
    let mut sizes = vec![0i64; zones.iter().max().map_or(0, |zone| usize::from(*zone) + 1)];
    for zone in zones {
        sizes[usize::from(*zone)] += 1;
    }
    let count = i64::from(sizes.len() as u32);
    if factor < count {
        return vec![(0, 1); sizes.len()];
    }
    let zone_max = (factor + count - 1) / count;
    let room: i64 = sizes.iter().map(|size| zone_max.min(*size)).sum();
    let bound = |size: &i64| {
        if room >= factor {
            (1, zone_max.min(*size))
        } else {
            (zone_max.min(*size), *size)
        }
    };
    sizes.iter().map(bound).collect()
}
