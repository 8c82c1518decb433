//! Who owns which token: the one place where a ring's owners are decided.
//!
//! The claim is a pure function of the members (in any order), Q, N and the previous ring, so every node and the
//! operator compute the same. Preference lists keep replicas apart by themselves, whatever the order of the tokens
//! (see `preference`); the claim is about *how much* each member holds and *how little* moves:
//!
//! 1. **Shares.** Every member gets the floor or the ceiling of its weighted share of the Q tokens, by largest
//!    remainder ([`shares`]). This is exact. What it should hold in replica-partitions, which fill disks, follows from
//!    weights and the zone rule and is a target.
//! 2. **Start.** The previous ring's owners stay; tokens of members that have left are nobody's. Without a previous
//!    ring the tokens are dealt in turns, zone by zone and member by member ([`deal`]).
//! 3. **First tokens.** If walks pick differently because some zone or member cannot be found at all yet, each
//!    newcomer gets one token, so that from here on prices are those of the final ring.
//! 4. **Hand over.** Tokens that are nobody's go to members that lack some, then tokens of members that have too many:
//!    each time the token and member with the lowest price. The price of a change is the growth of
//!    `Σ (held − target)²` over the members' replica-partitions, with more for what is beyond a tolerance (4 % of the
//!    mean, or what one token brings if that is more), plus a fixed price for each replica-partition that lies
//!    elsewhere than in the previous ring: within the tolerance, nothing moves for the sake of evenness. It is exact:
//!    every preference list that the change affects is walked again ([`layout`]).
//! 5. **Improve** ([`search`]). A token goes to another member, if both keep the floor or ceiling of their shares, or
//!    two tokens swap their owners. A changed ring is near a good one: tries are where tokens have moved, only what
//!    costs nothing is kept, and from a dead end a few changes at any price lead out (iterated local search). A first
//!    ring is far from one: a try is kept if its price is below a limit that sinks to zero (threshold accepting, a
//!    form of simulated annealing). Seeds are fixed. The search ends early once no ring could cost less ([`bound`]).
//! 6. **Bound.** Time is counted in tokens looked at; once [`steps_max`] are spent, what is left to hand over is handed
//!    over unpriced, and the result is valid though less even.
//!
//! How much a change moves is measured against the least that any choice of members could move which keeps the zone
//! rule and gives every member as much as it has in the new ring (`tests/ring/least_moves.rs`): 1 to 2 % more over
//! sequences of changes. What no order of the tokens avoids is in ADR 13.
//!
//! A claim for the same members returns the previous ring's owners. Paper: §6.2 (strategy 3: Q/S tokens per node,
//! stolen on joining and given back on leaving), §4.2 (weights).

use std::collections::BTreeMap;

use super::preference::{NOBODY, Picks, Spread, zone_indexes};
use super::{Member, Ring, RingError, check_shape, sorted};
use layout::Layout;

mod bound;
mod layout;
mod search;
mod shares;

#[cfg(test)]
mod tests;

/// The owner of each of the `partitions` tokens, as indexes into the members sorted by id.
///
/// Every member gets at least one token, and exactly the floor or ceiling of its share by weight. Deterministic on
/// all platforms. Cost: bounded; with 256 partitions up to about 0.2 s of CPU, with 16384 about 1 s for a member more or
/// less and 2 to 5 s for a first ring or a zone less (`examples/claim_time.rs`).
///
/// # Errors
/// If the partitions, the factor or a member is out of range, a member is listed twice, or the previous ring has
/// another number of partitions.
pub fn claim(
    members: &[Member],
    partitions: u32,
    factor: u32,
    previous: Option<&Ring>,
) -> Result<Vec<u16>, RingError> {
    claim_counted(members, partitions, factor, previous).map(|(owners, _)| owners)
}

/// Steps after which a claim stops improving; it may end a few walks around the ring later.
pub(super) fn steps_max(partitions: u32) -> u64 {
    (1 << 24) + (u64::from(partitions) << 13)
}

/// The owners, and the steps that finding them took.
fn claim_counted(
    members: &[Member],
    partitions: u32,
    factor: u32,
    previous: Option<&Ring>,
) -> Result<(Vec<u16>, u64), RingError> {
    check_shape(members, partitions, factor)?;
    let members = sorted(members.to_vec());
    if let Some(pair) = members.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(RingError::Duplicate(pair[0].id.clone()));
    }
    let mut layout = match previous {
        None => Layout::new(&members, factor, deal(&members, partitions), None),
        Some(ring) if ring.partitions() != partitions => {
            return Err(RingError::PartitionsChanged {
                previous: ring.partitions(),
                partitions,
            });
        }
        Some(ring) if ring.members() == members && ring.factor() == factor => {
            return Ok((ring.owners().to_vec(), 0));
        }
        Some(ring) => {
            let (owners, before) = carry_over(ring, &members, factor);
            Layout::new(&members, factor, owners, Some(before))
        }
    };
    search::give_first_tokens(&mut layout);
    search::hand_over(&mut layout, steps_max(partitions) / 2);
    search::improve(&mut layout, steps_max(partitions));
    Ok(layout.finish())
}

/// The previous ring's owners and primaries, in terms of the new members; `NOBODY` for those that have left.
fn carry_over(ring: &Ring, members: &[Member], factor: u32) -> (Vec<u16>, Vec<u16>) {
    let index: BTreeMap<_, _> = members.iter().map(|member| &member.id).zip(0u16..).collect();
    let renamed: Vec<u16> = ring
        .members()
        .iter()
        .map(|member| index.get(&member.id).copied().unwrap_or(NOBODY))
        .collect();
    let rename = |owner: u16| renamed[usize::from(owner)];
    let zones = zone_indexes(ring.members());
    let n = factor as usize;
    let spread = Spread::new(&zones, &vec![true; zones.len()], n);
    let mut picks = Picks::default();
    let mut before = Vec::with_capacity(ring.owners().len() * n);
    for partition in 0..ring.owners().len() {
        spread.walk(ring.owners(), partition, &mut picks);
        before.extend(picks.in_order().map(rename));
        before.resize((partition + 1) * n, NOBODY);
    }
    (ring.owners().iter().copied().map(rename).collect(), before)
}

/// Deals all tokens in turns: the zone that lags most behind its share is next, and in it the member that does.
fn deal(members: &[Member], partitions: u32) -> Vec<u16> {
    let shares = shares::tokens(members, partitions, &vec![0; members.len()]);
    let want: Vec<i64> = shares.iter().map(|share| i64::from(share.want)).collect();
    let zones: Vec<usize> = zone_indexes(members).into_iter().map(usize::from).collect();
    let mut in_zone = vec![Vec::new(); zones.iter().max().map_or(0, |zone| zone + 1)];
    for (member, zone) in zones.iter().enumerate() {
        in_zone[*zone].push(member);
    }
    let zone_want: Vec<i64> = in_zone
        .iter()
        .map(|members| members.iter().map(|member| want[*member]).sum())
        .collect();
    let mut zone_lag = vec![0; in_zone.len()];
    let mut lag = vec![0; members.len()];
    let all_zones: Vec<usize> = (0..in_zone.len()).collect();
    let turn = |_| {
        let zone = next_in_turn(&all_zones, &zone_want, i64::from(partitions), &mut zone_lag);
        next_in_turn(&in_zone[zone], &want, zone_want[zone], &mut lag) as u16
    };
    (0..partitions).map(turn).collect()
}

/// Lets everyone's lag grow by what it wants of `total`; whose is largest, the first of equals, is served.
fn next_in_turn(among: &[usize], want: &[i64], total: i64, lag: &mut [i64]) -> usize {
    for index in among {
        lag[*index] += want[*index];
    }
    let next = among
        .iter()
        .copied()
        .rev()
        .max_by_key(|index| lag[*index])
        .unwrap_or(0);
    lag[next] -= total;
    next
}
