//! Changes of rings of up to 100 members: what each must keep, and how little it moves, beside a slow oracle.

use super::least_moves::{least_moves, targets};
use super::placement::assert_zone_rule;
use super::support::{CLUSTER, Random, loads, member, moves, replica_sets, tokens};
use dynamo_core::ring::{Member, Ring, RingParts};

const MEMBERS_MAX: usize = 100;
const FACTORS: [usize; 3] = [2, 3, 5];
/// Up to here every number of members has its turn with every factor and number of zones.
const SMALL: usize = 10;
/// Beyond, one in so many, another one for each factor and number of zones, so that every number has its turn.
const STEP: usize = 18;

/// Most that a change may move, over the least, if it moves more than one token brings beyond it.
const RATIO_MAX: f64 = 1.10;
/// The same for up to `SMALL` members, where a zone's second member may come, so that every partition needs a copy in
/// the zone from then on. Walks then pass the same nodes in another order; which no order of the tokens avoids, as
/// `d20_a_zone_that_becomes_full_costs_more_than_a_choice_of_members` shows for all rings of 8 partitions.
const RATIO_MAX_SMALL: f64 = 1.60;
/// The same where a weight changes, so that nearly every member gives or gets a token.
const RATIO_MAX_WEIGHTS: f64 = 1.35;

/// What the changes of a test came to.
#[derive(Default)]
struct Tally {
    changes: usize,
    moves: usize,
    least: usize,
    /// Largest ratio of the two, among changes that exceed the least by more than one token brings.
    worst: f64,
    uneven: f64,
}

impl Tally {
    /// Makes a change and checks what it must keep, and that it moves at most so much over the least.
    fn change_within(&mut self, ratio_max: f64, ring: &mut Ring, members: Vec<Member>) {
        let next = ring.with_members(members).unwrap();
        assert_tokens(&next);
        assert_zone_rule_of(&next);
        let (moves, least) = (moves(ring, &next), least_moves(ring, &next));
        let ratio = moves as f64 / least.max(1) as f64;
        let far = moves > least + next.factor() as usize;
        let what = format!(
            "N={} {} -> {} members: moved {moves}, least {least}",
            next.factor(),
            ring.members().len(),
            next.members().len()
        );
        assert!(!far || ratio <= ratio_max, "{what}");
        let uneven = unevenness(&next);
        assert!(uneven <= 1.25, "{what}: {uneven:.2} tolerances from the targets");
        self.changes += 1;
        self.moves += moves;
        self.least += least;
        self.worst = self.worst.max(if far { ratio } else { 1.0 });
        self.uneven = self.uneven.max(uneven);
        *ring = next;
    }

    fn change(&mut self, ring: &mut Ring, members: Vec<Member>) {
        let small = ring.members().len().min(members.len()) < SMALL;
        let ratio_max = if small { RATIO_MAX_SMALL } else { RATIO_MAX };
        self.change_within(ratio_max, ring, members);
    }

    fn judge(&self, what: &str, ratio_max: f64) {
        let ratio = self.moves as f64 / self.least as f64;
        println!(
            "{what}: {} changes moved {} replica-partitions, least {}: ratio {ratio:.4}, worst {:.3}; at most {:.2} \
             tolerances from the targets",
            self.changes, self.moves, self.least, self.worst, self.uneven
        );
        assert!(ratio <= ratio_max, "{what}: ratio {ratio:.4}");
    }
}

/// The floor or ceiling of each share; no member here is due less than one token.
fn assert_tokens(ring: &Ring) {
    let total: u32 = ring.members().iter().map(|member| member.weight).sum();
    for (member, tokens) in ring.members().iter().zip(tokens(ring)) {
        let parts = ring.partitions() * member.weight;
        assert!(
            (parts / total..=parts.div_ceil(total)).contains(&tokens),
            "{member:?} owns {tokens} of {} tokens among {}",
            ring.partitions(),
            ring.members().len()
        );
    }
}

fn assert_zone_rule_of(ring: &Ring) {
    let mut zones: Vec<_> = ring.members().iter().map(|member| &member.zone).collect();
    zones.sort();
    let sizes: Vec<usize> = zones.chunk_by(|a, b| a == b).map(<[_]>::len).collect();
    assert_zone_rule(ring, &sizes, ring.factor() as usize);
}

/// The largest difference between what a member holds and its target, less one for rounding, in tolerances: 4 % of
/// the mean, or what one token brings if that is more.
fn unevenness(ring: &Ring) -> f64 {
    let factor = f64::from(ring.factor());
    let mean = f64::from(ring.partitions()) * factor / ring.members().len() as f64;
    let tolerance = (mean * 0.04).max(factor);
    let mut loads = vec![0.0; ring.members().len()];
    for id in replica_sets(ring).iter().flatten() {
        loads[ring.index_of(id).unwrap()] += 1.0;
    }
    let differences = loads
        .iter()
        .zip(targets(ring))
        .map(|(load, target)| f64::abs(load - target));
    (differences.fold(0.0, f64::max) - 1.0).max(0.0) / tolerance
}

/// Members whose numbers go round the zones; 0 zones stand for one.
fn spread(numbers: impl Iterator<Item = usize>, zones: usize) -> Vec<Member> {
    numbers
        .map(|number| member(number, number % zones.max(1), 1))
        .collect()
}

fn check_zones(zones: usize, turn: usize) {
    let mut tally = Tally::default();
    for (index, factor) in FACTORS.into_iter().enumerate() {
        let fewest = factor.max(zones);
        let mut random = Random::new((zones * 10 + factor) as u64);
        // One joins after the other, then a random one leaves after the other.
        let mut members = spread(0..fewest, zones);
        let mut ring = Ring::bootstrap(CLUSTER, members.clone(), 256, factor as u32).unwrap();
        for number in fewest..SMALL {
            members.extend(spread(number..=number, zones));
            tally.change(&mut ring, members.clone());
        }
        while members.len() > factor {
            members.remove(random.below(members.len()));
            tally.change(&mut ring, members.clone());
        }
        // Many join at once; then one leaves, one joins, and one takes the place of another.
        let mut number = MEMBERS_MAX;
        for size in (SMALL + 1 + turn * FACTORS.len() + index..=MEMBERS_MAX).step_by(STEP) {
            let joining = number..number + size - members.len();
            number = joining.end;
            members.extend(spread(joining, zones));
            tally.change(&mut ring, members.clone());
            members.remove(random.below(members.len()));
            tally.change(&mut ring, members.clone());
            members.extend(spread(number..=number, zones));
            number += 1;
            tally.change(&mut ring, members.clone());
        }
    }
    tally.judge(&format!("{zones} zones"), 1.02);
}

#[test]
fn d20_any_number_of_members_without_zones() {
    check_zones(0, 0);
}

#[test]
fn d20_any_number_of_members_in_two_zones() {
    check_zones(2, 1);
}

#[test]
fn d20_any_number_of_members_in_three_zones() {
    check_zones(3, 2);
}

#[test]
fn d20_any_number_of_members_in_four_zones() {
    check_zones(4, 3);
}

#[test]
fn d20_any_number_of_members_in_five_zones() {
    check_zones(5, 4);
}

#[test]
fn d20_any_number_of_members_in_seven_zones() {
    check_zones(7, 5);
}

/// The members of all zones but one, and of that zone too.
fn with_and_without_a_zone(size: usize, zones: usize) -> (Vec<Member>, Vec<Member>) {
    let all = spread(0..size, zones);
    let without = all
        .iter()
        .filter(|member| member.zone.as_str() != "z0")
        .cloned()
        .collect();
    (all, without)
}

#[test]
fn d20_a_zone_comes_and_goes_at_once() {
    let mut tally = Tally::default();
    for factor in FACTORS {
        for zones in [2, 3, 4, 5, 7] {
            let (all, without) = with_and_without_a_zone(6 * zones, zones);
            let mut ring = Ring::bootstrap(CLUSTER, all.clone(), 256, factor as u32).unwrap();
            tally.change(&mut ring, without);
            tally.change(&mut ring, all);
        }
    }
    tally.judge("zones come and go", 1.01);
}

#[test]
fn d20_many_leave_at_once() {
    let mut tally = Tally::default();
    for factor in FACTORS {
        for zones in [0, 3, 4, 7] {
            let mut random = Random::new((factor + zones) as u64);
            let mut members = spread(0..60, zones);
            let mut ring = Ring::bootstrap(CLUSTER, members.clone(), 1024, factor as u32).unwrap();
            for leaving in [2, 8, 30] {
                for _ in 0..leaving {
                    members.remove(random.below(members.len()));
                }
                tally.change(&mut ring, members.clone());
            }
        }
    }
    tally.judge("many leave", 1.01);
}

#[test]
fn d20_one_of_a_hundred_with_more_partitions() {
    let mut tally = Tally::default();
    for factor in FACTORS {
        for zones in [0, 2, 3, 4, 5, 7] {
            let mut members = spread(0..MEMBERS_MAX, zones);
            let mut ring = Ring::bootstrap(CLUSTER, members.clone(), 1024, factor as u32).unwrap();
            members.remove(37);
            tally.change(&mut ring, members.clone());
            members.extend(spread(MEMBERS_MAX..=MEMBERS_MAX, zones));
            tally.change(&mut ring, members);
        }
    }
    tally.judge("one of a hundred", 1.01);
}

#[test]
fn d22_weights_change_one_after_the_other() {
    let mut tally = Tally::default();
    for factor in FACTORS {
        for zones in [0, 2, 3, 4, 7] {
            let mut random = Random::new((factor * zones) as u64 + 1);
            let mut members = spread(0..20, zones);
            let mut ring = Ring::bootstrap(CLUSTER, members.clone(), 256, factor as u32).unwrap();
            for _ in 0..5 {
                let index = random.below(members.len());
                members[index].weight = 1 + (members[index].weight + 1) % 4;
                tally.change_within(RATIO_MAX_WEIGHTS, &mut ring, members.clone());
            }
        }
    }
    tally.judge("weights change", 1.05);
}

#[test]
fn d20_a_member_in_the_place_of_another_moves_what_that_one_held() {
    for factor in FACTORS {
        for zones in [0, 2, 3, 4, 5, 7] {
            for size in [8, 33] {
                let mut members = spread(0..size, zones);
                let old = Ring::bootstrap(CLUSTER, members.clone(), 256, factor as u32).unwrap();
                let leaver = members[5].id.clone();
                members[5].id = member(99, 0, 1).id;
                let new = old.with_members(members).unwrap();
                let held = replica_sets(&old)
                    .iter()
                    .flatten()
                    .filter(|id| **id == leaver)
                    .count();
                assert_eq!(
                    moves(&old, &new),
                    held,
                    "{size} members, {zones} zones, N={factor}"
                );
            }
        }
    }
}

/// All ways to give `left` more tokens to members so that each has one or two at the end.
fn deals(owners: &mut Vec<u16>, members: u16, left: usize, visit: &mut impl FnMut(&[u16])) {
    let held = |owners: &[u16], member: u16| owners.iter().filter(|owner| **owner == member).count();
    if left == 0 {
        if (0..members).all(|member| held(owners, member) > 0) {
            visit(owners);
        }
        return;
    }
    for member in 0..members {
        if held(owners, member) < 2 {
            owners.push(member);
            deals(owners, members, left - 1, visit);
            owners.pop();
        }
    }
}

#[test]
fn d20_a_zone_that_becomes_full_costs_more_than_a_choice_of_members() {
    let mut members = spread(0..4, 4);
    let old = Ring::bootstrap(CLUSTER, members.clone(), 8, 3).unwrap();
    members.extend(spread(4..=4, 4));
    let (mut evenest, mut ratio_min, mut rings) = (f64::MAX, f64::MAX, 0);
    deals(&mut Vec::new(), 5, 8, &mut |owners| {
        let parts = RingParts {
            cluster_id: CLUSTER,
            epoch: 2,
            factor: 3,
            members: members.clone(),
            owners: owners.to_vec(),
        };
        let new = Ring::new(parts).unwrap();
        let targets = targets(&new);
        let square = |(load, target): (usize, f64)| (load as f64 - target).powi(2);
        let uneven: f64 = loads(&new).into_values().zip(targets).map(square).sum();
        if uneven > evenest + 1e-6 {
            return;
        }
        if uneven < evenest - 1e-6 {
            (evenest, ratio_min, rings) = (uneven, f64::MAX, 0);
        }
        let ratio = moves(&old, &new) as f64 / least_moves(&old, &new) as f64;
        ratio_min = ratio_min.min(ratio);
        rings += 1;
    });
    println!(
        "{rings} rings are as even as any: the one that moves least exceeds a choice of members by {ratio_min:.3}"
    );
    assert!(ratio_min > RATIO_MAX);
}
