//! What a ring places where.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dynamo_core::ring::{Placement, Ring, RingError, RingParts};
use dynamo_core::types::{KeyHash, PartitionId, digest_u64};

use super::support::{
    CLUSTER, Random, loads, matrix, member, members_in, naive_preference_list, spreads, tokens,
};

/// Replicas in min(n, Z) zones and at most ceil(n/Z) in one, unless the other zones lack members: then exactly as
/// many more as are lacking.
pub(crate) fn assert_zone_rule(ring: &Ring, sizes: &[usize], n: usize) {
    let zone_max = n.div_ceil(sizes.len());
    let lacking = n.saturating_sub(sizes.iter().map(|size| zone_max.min(*size)).sum());
    let placement = Placement::new(Arc::new(ring.clone()));
    for partition in (0..ring.partitions()).map(PartitionId) {
        let primaries = placement.primaries(partition);
        // D29: distinct nodes.
        assert_eq!(
            primaries.iter().collect::<BTreeSet<_>>().len(),
            n,
            "{sizes:?} n={n} {partition:?}"
        );
        let mut in_zone = BTreeMap::new();
        for primary in primaries {
            *in_zone
                .entry(&ring.members()[usize::from(*primary)].zone)
                .or_insert(0) += 1;
        }
        assert_eq!(
            in_zone.len(),
            n.min(sizes.len()),
            "zones of {sizes:?} n={n} {partition:?}"
        );
        let beyond: usize = in_zone
            .values()
            .map(|count: &usize| count.saturating_sub(zone_max))
            .sum();
        assert_eq!(beyond, lacking, "zone maximum of {sizes:?} n={n} {partition:?}");
    }
    let violated = if lacking > 0 { ring.partitions() } else { 0 };
    assert_eq!(
        placement.zone_violations(),
        violated,
        "reported for {sizes:?} n={n}"
    );
}

#[test]
fn d30_zone_rule_holds_for_every_partition_of_the_whole_matrix() {
    let mut rings = 0;
    let mut partitions = 0;
    for sizes in matrix() {
        let members = members_in(&sizes);
        for n in 1..=members.len().min(5) {
            let ring = Ring::bootstrap(CLUSTER, members.clone(), 64, n as u32).unwrap();
            assert_zone_rule(&ring, &sizes, n);
            rings += 1;
            partitions += ring.partitions();
        }
    }
    println!("{rings} rings, {partitions} partitions");
    assert_eq!(matrix().len(), 154);
    assert_eq!(rings, 749);
}

#[test]
fn d30_zone_rule_does_not_depend_on_the_order_of_tokens() {
    let mut random = Random::new(30);
    for sizes in matrix() {
        let members = members_in(&sizes);
        for n in 1..=members.len().min(5) {
            let mut owners: Vec<u16> = (0..64u16).map(|p| p % members.len() as u16).collect();
            for end in (1..owners.len()).rev() {
                owners.swap(end, random.below(end + 1));
            }
            let parts = RingParts {
                cluster_id: CLUSTER,
                epoch: 1,
                factor: n as u32,
                members: members.clone(),
                owners,
            };
            assert_zone_rule(&Ring::new(parts).unwrap(), &sizes, n);
        }
    }
}

#[test]
fn d30_three_replicas_over_two_zones_are_two_and_one() {
    let ring = Ring::bootstrap(CLUSTER, members_in(&[3, 3]), 256, 3).unwrap();
    for partition in (0..256).map(PartitionId) {
        let primaries = ring.preference_list(partition).primaries;
        let in_first = primaries
            .iter()
            .filter(|index| ring.members()[**index].zone.as_str() == "z0")
            .count();
        assert!(in_first == 1 || in_first == 2);
    }
}

#[test]
fn d28_lists_equal_those_of_a_naive_walk_and_name_every_member_once() {
    let mut compared = 0;
    for sizes in [
        vec![1],
        vec![5],
        vec![4, 2],
        vec![1, 7],
        vec![3, 3, 3],
        vec![5, 2, 1],
        vec![2, 2, 2, 2],
        vec![6, 1, 1, 1],
    ] {
        let members = members_in(&sizes);
        for factor in 1..=members.len().min(7) as u32 {
            let ring = Ring::bootstrap(CLUSTER, members.clone(), 32, factor).unwrap();
            let placement = Placement::new(Arc::new(ring.clone()));
            for partition in 0..ring.partitions() {
                // A bucket may have fewer replicas than the ring's factor.
                for n in 1..=factor {
                    let list = ring.preference_list_for(PartitionId(partition), n);
                    let naive = naive_preference_list(&ring, partition, n as usize);
                    assert_eq!(
                        (&list.primaries, &list.fallbacks),
                        (&naive.0, &naive.1),
                        "{sizes:?} n={n} p={partition}"
                    );
                    let all: BTreeSet<_> = list.primaries.iter().chain(&list.fallbacks).collect();
                    assert_eq!(all.len(), members.len());
                    assert_eq!(list.primaries.len() + list.fallbacks.len(), members.len());
                    compared += 1;
                }
                let list = ring.preference_list(PartitionId(partition));
                let fast: Vec<usize> = placement
                    .primaries(PartitionId(partition))
                    .iter()
                    .map(|index| usize::from(*index))
                    .collect();
                assert_eq!(fast, list.primaries);
                assert_eq!(
                    list.primaries[0],
                    ring.owner(PartitionId(partition)),
                    "the owner comes first"
                );
            }
        }
    }
    println!("{compared} lists");
    assert!(compared > 4000);
}

#[test]
fn lists_for_more_replicas_than_members_name_all_members() {
    let ring = Ring::bootstrap(CLUSTER, members_in(&[2, 1]), 16, 3).unwrap();
    let list = ring.preference_list_for(PartitionId(5), 7);
    assert_eq!(list.primaries.len(), 3);
    assert!(list.fallbacks.is_empty());
}

#[test]
fn d21_every_member_owns_the_floor_or_ceiling_of_its_share() {
    for partitions in [16, 64, 256] {
        for sizes in matrix() {
            let count: usize = sizes.iter().sum();
            if partitions != 64 && count % 4 != 3 {
                continue;
            }
            let factor = count.min(3) as u32;
            let ring = Ring::bootstrap(CLUSTER, members_in(&sizes), partitions, factor).unwrap();
            let floor = partitions / count as u32;
            let ceilings = (partitions % count as u32) as usize;
            let tokens = tokens(&ring);
            assert_eq!(
                tokens.iter().filter(|tokens| **tokens == floor + 1).count(),
                ceilings,
                "{sizes:?}"
            );
            assert_eq!(
                tokens.iter().filter(|tokens| **tokens == floor).count(),
                count - ceilings,
                "{sizes:?}"
            );
        }
    }
}

#[test]
fn d22_tokens_follow_weights_to_within_one() {
    let mut random = Random::new(22);
    for round in 0..60 {
        let count = 1 + random.below(12);
        let members: Vec<_> = (0..count)
            .map(|number| member(number, number % 3, 1 + random.below(5) as u32))
            .collect();
        let total: u32 = members.iter().map(|member| member.weight).sum();
        let ring = Ring::bootstrap(CLUSTER, members.clone(), 256, count.min(3) as u32).unwrap();
        for (member, tokens) in members.iter().zip(tokens(&ring)) {
            let floor = 256 * member.weight / total;
            assert!(
                tokens == floor || tokens == floor + 1,
                "round {round}: {member:?} owns {tokens}, floor {floor}"
            );
        }
    }
    // The row's own words: weight 2 owns twice as many, give or take one.
    let ring = Ring::bootstrap(
        CLUSTER,
        vec![member(0, 0, 1), member(1, 0, 2), member(2, 0, 1)],
        256,
        1,
    )
    .unwrap();
    assert_eq!(tokens(&ring), [64, 128, 64]);
}

#[test]
fn d23_partitions_are_equal_ranges_that_tile_the_hash_space() {
    for partitions in (3..=14).map(|bits| 1u32 << bits) {
        let ring = Ring::bootstrap(CLUSTER, members_in(&[1]), partitions, 1).unwrap();
        let mut next = Some(0u64);
        for partition in (0..partitions).map(PartitionId) {
            let range = ring.range(partition);
            assert_eq!(Some(*range.start()), next);
            assert_eq!(range.end() - range.start(), u64::MAX / u64::from(partitions));
            assert_eq!(ring.partition_of(KeyHash(*range.start())), partition);
            assert_eq!(ring.partition_of(KeyHash(*range.end())), partition);
            next = range.end().checked_add(1);
        }
        assert_eq!(next, None, "the last range ends where the hash space does");
    }
}

#[test]
fn d19_key_hashes_and_partitions_equal_the_documented_vectors() {
    // Well-known: SHA-256("") and SHA-256("abc").
    assert_eq!(digest_u64(b""), 0xe3b0_c442_98fc_1c14);
    assert_eq!(digest_u64(b"abc"), 0xba78_16bf_8f01_cfea);
    let rings = [8, 256, 16_384].map(|q| Ring::bootstrap(CLUSTER, members_in(&[1]), q, 1).unwrap());
    let mut checked = 0;
    for line in include_str!("../../testdata/ring/key_hash.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
    {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let bucket = String::from_utf8(unhex(fields[0])).unwrap();
        let hash = KeyHash::of(&bucket, &unhex(fields[1]));
        assert_eq!(hash.to_string(), fields[2], "{line}");
        for (ring, partition) in rings.iter().zip(&fields[3..]) {
            assert_eq!(ring.partition_of(hash).0.to_string(), *partition, "{line}");
        }
        checked += 1;
    }
    assert_eq!(checked, 9);
}

fn unhex(text: &str) -> Vec<u8> {
    let text = text.trim_matches('-');
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// Largest share of replica-partitions over the mean.
fn imbalance(ring: &Ring) -> f64 {
    let loads = loads(ring);
    let mean = loads.values().sum::<usize>() as f64 / loads.len() as f64;
    *loads.values().max().unwrap() as f64 / mean
}

#[test]
fn d27_tokens_and_replicas_are_even() {
    let mut worst: f64 = 1.0;
    for count in 3..=12usize {
        for zones in (1..=4).filter(|zones| count.is_multiple_of(*zones)) {
            let ring = Ring::bootstrap(CLUSTER, members_in(&vec![count / zones; zones]), 256, 3).unwrap();
            let mean = 256.0 / count as f64;
            let tokens_max = f64::from(*tokens(&ring).iter().max().unwrap());
            assert!(
                tokens_max / mean <= 1.0 + count as f64 / 256.0,
                "D27 for {count} members"
            );
            let imbalance = imbalance(&ring);
            println!("members={count} zones={zones} replicas max/mean={imbalance:.4}");
            worst = worst.max(imbalance);
        }
    }
    assert!(worst <= 1.03, "replica-partitions max/mean {worst}");
}

#[test]
fn d27_uneven_zones_fill_as_the_zone_rule_allows() {
    // One member alone in its zone must hold a copy of everything; the others share the rest evenly.
    let ring = Ring::bootstrap(CLUSTER, members_in(&[5, 1]), 256, 2).unwrap();
    let loads: Vec<usize> = loads(&ring).into_values().collect();
    assert_eq!(loads.iter().max(), Some(&256));
    let others: Vec<usize> = loads.into_iter().filter(|load| *load < 256).collect();
    assert_eq!(others.len(), 5);
    assert!(others.iter().all(|load| (49..=53).contains(load)), "{others:?}");
}

#[test]
fn bootstrap_refuses_what_cannot_work() {
    let boot =
        |members, partitions, factor| Ring::bootstrap(CLUSTER, members, partitions, factor).unwrap_err();
    let three = || members_in(&[3]);
    for partitions in [0, 1, 4, 100, 255, 32_768, u32::MAX] {
        assert_eq!(boot(three(), partitions, 3), RingError::Partitions(partitions));
    }
    assert_eq!(boot(Vec::new(), 8, 1), RingError::Members(0));
    assert_eq!(boot(members_in(&[4097]), 16_384, 1), RingError::Members(4097));
    assert_eq!(
        boot(members_in(&[9]), 8, 1),
        RingError::TooFewPartitions {
            members: 9,
            partitions: 8
        }
    );
    for factor in [0, 4, 8] {
        assert_eq!(boot(three(), 8, factor), RingError::Factor { factor, members: 3 });
    }
    let twice = member(1, 0, 1);
    assert_eq!(
        boot(vec![twice.clone(), twice.clone()], 8, 1),
        RingError::Duplicate(twice.id)
    );
    for weight in [0, 101] {
        let odd = member(0, 0, weight);
        assert_eq!(
            boot(vec![odd.clone()], 8, 1),
            RingError::Weight {
                member: odd.id,
                weight
            }
        );
    }
    let message = boot(three(), 8, 4).to_string();
    assert_eq!(
        message,
        "a replication factor of 4 is not possible with 3 members: use 1 to 3"
    );
}

#[test]
fn rings_of_foreign_parts_are_checked() {
    let parts = |change: fn(&mut RingParts)| {
        let mut parts = RingParts {
            cluster_id: CLUSTER,
            epoch: 1,
            factor: 1,
            members: members_in(&[2]),
            owners: vec![0, 1, 0, 1, 0, 1, 0, 1],
        };
        change(&mut parts);
        Ring::new(parts)
    };
    assert!(parts(|_| {}).is_ok());
    assert_eq!(parts(|p| p.epoch = 0), Err(RingError::Epoch));
    assert_eq!(parts(|p| p.epoch = 1 << 63), Err(RingError::Epoch));
    assert_eq!(parts(|p| p.owners[3] = 2), Err(RingError::Owner(3)));
    assert_eq!(parts(|p| p.owners.truncate(7)), Err(RingError::Partitions(7)));
    assert!(matches!(parts(|p| p.owners.fill(0)), Err(RingError::NoToken(_))));
    assert!(matches!(
        parts(|p| p.members.reverse()),
        Err(RingError::Unordered(_))
    ));
}

#[test]
fn a_member_for_each_partition_is_possible() {
    let ring = Ring::bootstrap(CLUSTER, members_in(&[8]), 8, 7).unwrap();
    assert_eq!(tokens(&ring), [1; 8]);
    // A heavy member leaves one token to every light one.
    let mut members = members_in(&[8]);
    members[0].weight = 100;
    assert_eq!(
        tokens(&Ring::bootstrap(CLUSTER, members, 16, 1).unwrap()),
        [9, 1, 1, 1, 1, 1, 1, 1]
    );
}

#[test]
fn look_ups_agree_with_each_other() {
    let ring = Ring::bootstrap(CLUSTER, members_in(&[2, 2, 1]), 128, 3).unwrap();
    let placement = Placement::new(Arc::new(ring.clone()));
    for (index, listed) in ring.members().iter().enumerate() {
        assert_eq!(ring.index_of(&listed.id), Some(index));
        let held: Vec<PartitionId> = placement.partitions_of(index).collect();
        assert_eq!(held.len(), placement.replica_partitions(index) as usize);
        assert!(held.iter().all(|partition| placement.holds(*partition, index)));
        assert_eq!(placement.tokens(index), tokens(&ring)[index]);
    }
    assert_eq!(ring.index_of(&member(99, 0, 1).id), None);
    for key in 0..100u32 {
        let hash = KeyHash::of("default", &key.to_be_bytes());
        let partition = ring.partition_of(hash);
        assert!(ring.range(partition).contains(&hash.0));
        assert_eq!(placement.primaries_of(hash), placement.primaries(partition));
    }
}

#[test]
fn spreads_are_what_the_matrix_needs() {
    assert_eq!(spreads(5, 3, 5), [vec![3, 1, 1], vec![2, 2, 1]]);
}
