//! What only the inside can show: shares, prices, the bound on time, and a slow oracle.

use super::super::preference::{NOBODY, Picks, Spread, zone_indexes};
use super::super::{Member, Ring, RingParts};
use super::layout::Layout;
use super::shares::{PARTS, replica_targets, tokens};
use super::{claim_counted, steps_max};
use crate::types::{ClusterId, MemberId, Zone};

fn member(number: usize, zone: usize, weight: u32) -> Member {
    Member {
        id: MemberId::new(format!("m{number:05}")).unwrap(),
        zone: Zone::new(format!("z{zone:04}")).unwrap(),
        weight,
    }
}

fn members_in(sizes: &[usize]) -> Vec<Member> {
    let spots = sizes
        .iter()
        .enumerate()
        .flat_map(|(zone, size)| vec![zone; *size]);
    spots
        .enumerate()
        .map(|(number, zone)| member(number, zone, 1))
        .collect()
}

fn ring(members: &[Member], factor: u32, owners: Vec<u16>) -> Ring {
    Ring::new(RingParts {
        cluster_id: ClusterId([1; 16]),
        epoch: 1,
        factor,
        members: members.to_vec(),
        owners,
    })
    .unwrap()
}

#[test]
fn d21_shares_go_by_largest_remainder() {
    let check = |weights: &[u32], partitions, held: &[u32], expected: &[u32]| {
        let members: Vec<Member> = weights
            .iter()
            .enumerate()
            .map(|(n, weight)| member(n, 0, *weight))
            .collect();
        let shares = tokens(&members, partitions, held);
        assert!(
            shares
                .iter()
                .all(|share| (share.floor..=share.ceiling).contains(&share.want))
        );
        let want: Vec<u32> = shares.iter().map(|share| share.want).collect();
        assert_eq!(want, expected, "{weights:?} of {partitions}, {held:?} held");
    };
    check(&[1], 8, &[0], &[8]);
    check(&[1, 1, 1], 8, &[0, 0, 0], &[3, 3, 2]);
    // Equal remainders: who holds more keeps more.
    check(&[1, 1, 1], 8, &[2, 3, 3], &[2, 3, 3]);
    check(&[1, 2, 1], 8, &[0, 0, 0], &[2, 4, 2]);
    check(&[3, 3, 1], 8, &[0, 0, 0], &[4, 3, 1]);
    // Shares below one are one, and the rest is shared anew.
    check(&[100, 1, 1, 1], 8, &[0; 4], &[5, 1, 1, 1]);
    check(&[100, 50, 1, 1, 1, 1, 1, 1], 8, &[0; 8], &[1; 8]);
}

#[test]
fn d30_targets_respect_the_zone_rule() {
    let check = |members: Vec<Member>, factor, expected: &[i64]| {
        let zones = zone_indexes(&members);
        let targets = replica_targets(&members, &zones, 240, factor);
        let rounded: Vec<i64> = targets
            .iter()
            .map(|target| (target + PARTS / 2) / PARTS)
            .collect();
        assert_eq!(rounded, expected);
        let sum = 240 * i64::from(factor) * PARTS;
        assert!(
            (targets.iter().sum::<i64>() - sum).abs() <= i64::from(targets.len() as u32),
            "{targets:?}"
        );
    };
    check(members_in(&[4]), 3, &[180; 4]);
    check(members_in(&[2, 2, 2]), 3, &[120; 6]);
    // A zone per replica: each zone holds everything once.
    check(members_in(&[3, 2, 1]), 3, &[80, 80, 80, 120, 120, 240]);
    // 3 over 2 zones: at least one copy, at most two.
    check(members_in(&[1, 5]), 3, &[240, 96, 96, 96, 96, 96]);
    check(members_in(&[2, 3]), 3, &[144; 5]);
    // More zones than replicas: at most one copy in each.
    check(members_in(&[4, 1, 1]), 2, &[60, 60, 60, 60, 120, 120]);
    // The first zone must make up for what the second lacks.
    check(members_in(&[3, 1]), 4, &[240; 4]);
    // Weights, within a full zone too.
    check(
        vec![member(0, 0, 1), member(1, 0, 2), member(2, 1, 1)],
        2,
        &[80, 160, 240],
    );
    check(
        vec![member(0, 0, 1), member(1, 0, 1), member(2, 0, 100)],
        2,
        &[120, 120, 240],
    );
}

#[test]
fn prices_are_what_working_out_everything_anew_shows() {
    for (sizes, factor) in [
        (&[5][..], 3),
        (&[3, 3], 3),
        (&[4, 1, 2], 2),
        (&[1, 6], 2),
        (&[3, 1], 4),
    ] {
        let members = members_in(sizes);
        let (owners, _) = claim_counted(&members, 32, factor, None).unwrap();
        let count = members.len() as u32;
        let before = (0..32 * factor).map(|slot| (slot % count) as u16).collect();
        let mut layout = Layout::new(&members, factor, owners.clone(), Some(before));
        let cost = |layout: &Layout| layout.cost();
        let mut random = 1u64;
        for _ in 0..300 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (a, b) = ((random >> 33) as usize % 32, (random >> 43) as usize % 32);
            if layout.owner(a) == layout.owner(b) {
                continue;
            }
            let change = [(a, layout.owner(b)), (b, layout.owner(a))];
            let before = cost(&layout);
            let price = layout.price(&change);
            assert_eq!(cost(&layout), before, "asking for a price changes nothing");
            layout.change(&change);
            assert_eq!(cost(&layout) - before, price);
            layout.walk_everywhere();
            assert_eq!(cost(&layout) - before, price, "as seen by walking everywhere");
        }
    }
}

#[test]
fn time_is_bounded_whatever_the_members() {
    let worst_walks = |partitions: u64| 4 * partitions * partitions;
    for (sizes, partitions, factor) in [
        (vec![6], 256, 3),
        (vec![2, 2, 2], 256, 3),
        (vec![250, 1, 1], 256, 3),
        (vec![1; 256], 256, 3),
        (vec![255, 1], 256, 7),
        (vec![60, 60], 1024, 5),
    ] {
        let members = members_in(&sizes);
        let (owners, steps) = claim_counted(&members, partitions, factor, None).unwrap();
        let bound = steps_max(partitions) + worst_walks(u64::from(partitions));
        println!(
            "Q={partitions} N={factor} {} members in {} zones: {steps} steps",
            members.len(),
            sizes.len()
        );
        assert!(steps <= bound, "{sizes:?}: {steps} of {bound}");
        // Half of the members leave.
        let old = ring(&members, factor, owners);
        let fewer: Vec<Member> = members.into_iter().step_by(2).collect();
        let (_, steps) = claim_counted(&fewer, partitions, factor, Some(&old)).unwrap();
        println!("    half of them left: {steps} steps");
        assert!(steps <= bound, "{sizes:?} halved: {steps} of {bound}");
    }
}

#[test]
fn hurried_claims_are_valid() {
    let members = members_in(&[200, 1, 3]);
    let (owners, _) = claim_counted(&members[..100], 256, 3, None).unwrap();
    let mut owners: Vec<u16> = owners
        .into_iter()
        .map(|owner| if owner < 50 { owner } else { NOBODY })
        .collect();
    owners[0] = 0;
    let mut layout = Layout::new(&members, 3, owners, Some(vec![NOBODY; 3 * 256]));
    super::search::give_first_tokens(&mut layout);
    // No steps at all: everything is given away unpriced.
    super::search::hand_over(&mut layout, 0);
    super::search::improve(&mut layout, 0);
    assert!((0..layout.members()).all(|member| layout.lacking(member) == 0));
    let (owners, _) = layout.finish();
    assert_eq!(ring(&members, 3, owners).partitions(), 256);
}

/// Replica sets as bit masks, straight from the walk.
fn sets(members: &[Member], factor: u32, owners: &[u16], picks: &mut Picks) -> Vec<u32> {
    let zones = zone_indexes(members);
    let spread = Spread::new(&zones, &vec![true; zones.len()], factor as usize);
    let mut set = |partition| {
        spread.walk(owners, partition, picks);
        picks.in_order().fold(0, |set, member| set | 1 << member)
    };
    (0..owners.len()).map(&mut set).collect()
}

/// (sum of squared differences between loads and targets in whole replica-partitions · `PARTS`², moves).
fn judge(targets: &[i64], before: Option<&[u32]>, sets: &[u32]) -> (i64, u32) {
    let load = |member: usize| sets.iter().map(|set| i64::from(set >> member & 1)).sum::<i64>() * PARTS;
    let uneven = targets
        .iter()
        .enumerate()
        .map(|(member, target)| (load(member) - target).pow(2))
        .sum();
    let moves = before.map_or(0, |before| {
        sets.iter()
            .zip(before)
            .map(|(set, old)| (set & !old).count_ones())
            .sum()
    });
    (uneven, moves)
}

/// Every ring of 8 partitions with these shares, judged.
fn all_rings(members: &[Member], factor: u32, before: Option<&[u32]>, mut visit: impl FnMut((i64, u32))) {
    let zones = zone_indexes(members);
    let targets = replica_targets(members, &zones, 8, factor);
    let (low, high) = (8 / members.len() as u32, 8u32.div_ceil(members.len() as u32));
    let mut picks = Picks::default();
    let mut owners = [0u16; 8];
    for number in 0..members.len().pow(8) {
        let mut rest = number;
        let mut counts = [0u32; 8];
        for owner in &mut owners {
            *owner = (rest % members.len()) as u16;
            counts[usize::from(*owner)] += 1;
            rest /= members.len();
        }
        if counts[..members.len()]
            .iter()
            .all(|count| (low..=high).contains(count))
        {
            visit(judge(
                &targets,
                before,
                &sets(members, factor, &owners, &mut picks),
            ));
        }
    }
}

#[test]
fn first_rings_are_as_even_as_any() {
    for (sizes, factor) in [
        (&[3][..], 2),
        (&[4], 3),
        (&[5], 2),
        (&[2, 2], 2),
        (&[2, 1], 2),
        (&[3, 2], 3),
        (&[2, 2, 1], 2),
    ] {
        let members = members_in(sizes);
        let (owners, _) = claim_counted(&members, 8, factor, None).unwrap();
        let targets = replica_targets(&members, &zone_indexes(&members), 8, factor);
        let claimed = judge(
            &targets,
            None,
            &sets(&members, factor, &owners, &mut Picks::default()),
        )
        .0;
        let mut best = i64::MAX;
        all_rings(&members, factor, None, |(uneven, _)| best = best.min(uneven));
        println!("zones {sizes:?} N={factor}: uneven by {claimed}, best {best}");
        assert_eq!(claimed, best, "zones {sizes:?} N={factor}");
    }
}

#[test]
fn d20_no_ring_as_even_moves_less() {
    for (old_sizes, new_sizes, factor) in [
        (&[3][..], &[4][..], 2),
        (&[4], &[5], 2),
        (&[4], &[5], 3),
        (&[5], &[4], 3),
        (&[2, 2], &[2, 3], 2),
        (&[3, 2], &[2, 2], 3),
        (&[2, 1, 1], &[2, 2, 1], 2),
        (&[2, 2, 1], &[2, 1, 1], 2),
        (&[2, 1, 1, 1], &[1, 1, 1, 1], 2),
        (&[1, 1, 1, 1], &[2, 1, 1, 1], 3),
    ] {
        // Ids must not shift when a zone grows: number the members by zone.
        let named = |sizes: &[usize]| -> Vec<Member> {
            let spots = sizes
                .iter()
                .enumerate()
                .flat_map(|(zone, size)| (0..*size).map(move |row| (zone, row)));
            spots
                .map(|(zone, row)| member(zone * 100 + row, zone, 1))
                .collect()
        };
        let (old_members, members) = (named(old_sizes), named(new_sizes));
        let (old_owners, _) = claim_counted(&old_members, 8, factor, None).unwrap();
        let old = ring(&old_members, factor, old_owners);
        let mut picks = Picks::default();
        let rename = |set: &u32| {
            let stays = |index: &usize| set >> *index & 1 == 1;
            let index = |index: usize| {
                members
                    .iter()
                    .position(|member| member.id == old_members[index].id)
            };
            (0..old_members.len())
                .filter(stays)
                .filter_map(index)
                .fold(0u32, |set, index| set | 1 << index)
        };
        let before: Vec<u32> = sets(&old_members, factor, old.owners(), &mut picks)
            .iter()
            .map(rename)
            .collect();

        let (owners, _) = claim_counted(&members, 8, factor, Some(&old)).unwrap();
        let targets = replica_targets(&members, &zone_indexes(&members), 8, factor);
        let (uneven, moves) = judge(
            &targets,
            Some(&before),
            &sets(&members, factor, &owners, &mut picks),
        );
        let mut least = u32::MAX;
        all_rings(&members, factor, Some(&before), |(other_uneven, other_moves)| {
            if other_uneven <= uneven {
                least = least.min(other_moves);
            }
        });
        println!("{old_sizes:?} -> {new_sizes:?} N={factor}: moves {moves}, least {least} at that evenness");
        assert_eq!(moves, least, "{old_sizes:?} -> {new_sizes:?} N={factor}");
    }
}

#[test]
fn replicas_are_near_their_targets_in_uneven_zones() {
    let mut worst = 0.0f64;
    for sizes in [
        &[1, 5][..],
        &[2, 4],
        &[1, 2, 3],
        &[4, 1, 1],
        &[5, 3, 1],
        &[1, 1, 1, 6],
        &[4, 3, 2, 1],
        &[7, 2],
    ] {
        for factor in 1..=5 {
            let members = members_in(sizes);
            let (owners, _) = claim_counted(&members, 256, factor, None).unwrap();
            let sets = sets(&members, factor, &owners, &mut Picks::default());
            let targets = replica_targets(&members, &zone_indexes(&members), 256, factor);
            for (index, target) in targets.iter().enumerate() {
                let load = sets.iter().filter(|set| *set >> index & 1 == 1).count() as f64;
                let target = *target as f64 / PARTS as f64;
                let off = (load - target).abs();
                assert!(
                    factor == 1 || off <= 2.0 + target * 0.03,
                    "{sizes:?} N={factor}: {load} for {target}"
                );
                worst = worst.max(off / target);
            }
        }
    }
    println!("worst difference from target: {:.1} %", worst * 100.0);
}
