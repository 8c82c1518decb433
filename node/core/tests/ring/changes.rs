//! What moves when members come, go and change.

use dynamo_core::ring::{Member, Ring, RingError, claim};

use super::support::{CLUSTER, Random, loads, member, members_in, moves, tokens};

/// No change can move less: newcomers receive all they hold, and what leavers held is received by others.
fn newcomers_or_leavers(old: &Ring, new: &Ring) -> usize {
    let absent = |from: &Ring, ring: &Ring| -> usize {
        loads(from)
            .into_iter()
            .filter(|(id, _)| ring.index_of(id).is_none())
            .map(|(_, load)| load)
            .sum()
    };
    absent(new, old).max(absent(old, new))
}

#[test]
fn d20_a_fifth_member_takes_its_share_from_the_four_and_nothing_else_moves() {
    let old = Ring::bootstrap(CLUSTER, members_in(&[4]), 256, 3).unwrap();
    let new = old.with_members(members_in(&[5])).unwrap();
    let moved = moves(&old, &new);
    let between_old = moved - newcomers_or_leavers(&old, &new);
    println!("4 -> 5: {moved} replica-partitions moved, {between_old} of them between old members");
    assert!(moved as f64 <= 1.05 * 3.0 * 256.0 / 5.0);
    assert!(between_old <= 2);
    assert_eq!(new.partitions(), 256, "D23: Q unchanged by scaling");
}

#[test]
fn d21_replicas_stay_even_through_changes() {
    let mut members = members_in(&[3, 3]);
    let mut ring = Ring::bootstrap(CLUSTER, members.clone(), 256, 3).unwrap();
    for number in 6..12 {
        members.push(member(number, number % 2, 1));
        ring = ring.with_members(members.clone()).unwrap();
        let loads = loads(&ring);
        let mean = 768.0 / loads.len() as f64;
        let max = *loads.values().max().unwrap() as f64;
        assert!(
            max <= mean * 1.04 + 1.0,
            "{} members: most {max}, mean {mean}",
            members.len()
        );
    }
}

#[test]
fn d22_a_change_of_weight_moves_only_the_difference() {
    let mut members = members_in(&[2, 2, 2]);
    let old = Ring::bootstrap(CLUSTER, members.clone(), 256, 3).unwrap();
    members[0].weight = 2;
    let new = old.with_members(members.clone()).unwrap();
    let grown = loads(&new)[&members[0].id] - loads(&old)[&members[0].id];
    let moved = moves(&old, &new);
    println!("weight 1 -> 2: gained {grown}, moved {moved}");
    assert!(grown >= 35, "two thirds of the zone instead of half");
    assert!(
        moved as f64 <= 1.25 * grown as f64,
        "gained {grown}, moved {moved}"
    );
    assert!((73..=74).contains(&tokens(&new)[0]), "two sevenths of the tokens");
}

#[test]
fn the_same_members_keep_the_same_ring() {
    let members = members_in(&[3, 2]);
    let ring = Ring::bootstrap(CLUSTER, members.clone(), 64, 3).unwrap();
    assert_eq!(claim(&members, 64, 3, Some(&ring)).unwrap(), ring.owners());
}

#[test]
fn claims_are_deterministic_and_do_not_depend_on_the_order_of_members() {
    let mut random = Random::new(1);
    let mut shuffled = members_in(&[4, 3, 2]);
    let old = Ring::bootstrap(CLUSTER, members_in(&[3, 2, 2]), 128, 3).unwrap();
    let expected = (
        claim(&shuffled, 128, 3, None).unwrap(),
        claim(&shuffled, 128, 3, Some(&old)).unwrap(),
    );
    for _ in 0..3 {
        for end in (1..shuffled.len()).rev() {
            shuffled.swap(end, random.below(end + 1));
        }
        assert_eq!(claim(&shuffled, 128, 3, None).unwrap(), expected.0);
        assert_eq!(claim(&shuffled, 128, 3, Some(&old)).unwrap(), expected.1);
        let by_ring = Ring::bootstrap(CLUSTER, shuffled.clone(), 128, 3).unwrap();
        assert_eq!(
            by_ring,
            Ring::bootstrap(CLUSTER, members_in(&[4, 3, 2]), 128, 3).unwrap()
        );
    }
}

#[test]
fn the_number_of_partitions_does_not_change_with_the_members() {
    let ring = Ring::bootstrap(CLUSTER, members_in(&[3]), 64, 3).unwrap();
    let refused = claim(&members_in(&[4]), 128, 3, Some(&ring));
    assert_eq!(
        refused,
        Err(RingError::PartitionsChanged {
            previous: 64,
            partitions: 128
        })
    );
}

#[test]
fn members_may_be_replaced_all_at_once() {
    let ring = Ring::bootstrap(CLUSTER, members_in(&[3]), 64, 3).unwrap();
    let others: Vec<Member> = (10..15).map(|number| member(number, number % 2, 1)).collect();
    let new = ring.with_members(others).unwrap();
    assert_eq!(moves(&ring, &new), 3 * 64);
    assert_eq!(tokens(&new).iter().sum::<u32>(), 64);
}
