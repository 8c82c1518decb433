//! Suspect stores: what they must not do before they are whole, and when they are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dynamo_core::entropy::{ExchangeReport, Mode};
use dynamo_core::recovery::{Recovery, RecoveryProgress};
use dynamo_core::ring::{Member, Placement, Ring};
use dynamo_core::types::{ClusterId, MemberId, PartitionId, Zone};

use super::support::{PARTITION, Replica, equal_pair, exchange, keys, member};

const START_MS: u64 = 1000;
const DEADLINE_MS: u64 = 30_000;
const EARLIEST_MS: u64 = START_MS + DEADLINE_MS;
const COMPLETE: ExchangeReport = ExchangeReport {
    keys_pulled: 0,
    keys_pushed: 0,
    hashes_compared: 1,
    keys_compared: 0,
    finished: true,
    complete: true,
};
const INCOMPLETE: ExchangeReport = ExchangeReport {
    complete: false,
    ..COMPLETE
};

fn others(n: u32) -> BTreeSet<MemberId> {
    (1..n).map(|number| member(&format!("m{number}"))).collect()
}

/// One partition of `n` replicas.
fn recovery(n: u32, lowest_w: u32) -> Recovery {
    let mut recovery = Recovery::begin(START_MS, DEADLINE_MS);
    recovery.set_partitions(BTreeMap::from([(PARTITION, others(n))]), lowest_w);
    recovery
}

/// Takes and completes exchanges until the partition is whole; how many it took.
fn heal(recovery: &mut Recovery, random: u64) -> u32 {
    let mut count = 0;
    while !recovery.answers_reads(PARTITION) {
        let (partition, source) = recovery.next(EARLIEST_MS, &|_| true, random).unwrap();
        assert!(recovery.ended(partition, &source, EARLIEST_MS, &COMPLETE));
        count += 1;
    }
    count
}

/// By hand: N, W, sources.
#[test]
fn a_partition_is_whole_after_min_n_minus_1_n_minus_w_plus_1_sources() {
    let table = [
        (1, 1, 0),
        (2, 1, 1),
        (2, 2, 1),
        (3, 1, 2),
        (3, 2, 2),
        (3, 3, 1),
        (4, 2, 3),
        (4, 3, 2),
        (4, 4, 1),
        (5, 1, 4),
        (5, 2, 4),
        (5, 3, 3),
        (5, 4, 2),
        (5, 5, 1),
    ];
    for (n, w, sources) in table {
        for random in 0..20 {
            let mut recovery = recovery(n, w);
            assert_eq!(recovery.is_whole(), sources == 0, "N = {n}, W = {w}");
            assert_eq!(recovery.progress().exchanges_left, sources as usize);
            assert_eq!(heal(&mut recovery, random), sources, "N = {n}, W = {w}");
            assert!(recovery.is_whole());
            assert_eq!(recovery.next(EARLIEST_MS, &|_| true, random), None);
        }
    }
}

/// Why so many: among them is one of any W that acknowledged a write, this node's lost disk included; unless it alone
/// acknowledged it.
#[test]
fn the_sources_meet_every_acknowledged_write() {
    for n in 1..=5u32 {
        for w in 1..=n {
            let needed = recovery(n, w).progress().exchanges_left as u32;
            // Bit 0 is this node.
            let sets = || (0..1u32 << n).filter(|set| set.count_ones() == w && *set != 1);
            let pulled = (0..1u32 << n).filter(|set| set & 1 == 0 && set.count_ones() == needed);
            for pulled in pulled {
                assert!(sets().all(|acked| acked & pulled != 0), "N = {n}, W = {w}");
            }
            // One source less may miss a write.
            let fewer = (0..1u32 << n).filter(|set| set & 1 == 0 && set.count_ones() + 1 == needed);
            for fewer in fewer {
                assert!(
                    sets().any(|acked| acked & fewer == 0),
                    "N = {n}, W = {w}: more than needed"
                );
            }
        }
    }
}

/// A request that counted the lost disk's answer may be under way until then.
#[test]
fn nothing_counts_that_began_before_the_longest_deadline_is_over() {
    let mut recovery = recovery(3, 2);
    assert_eq!(recovery.earliest_ms(), EARLIEST_MS);
    assert_eq!(recovery.next(EARLIEST_MS - 1, &|_| true, 7), None);
    for source in others(3) {
        assert!(!recovery.ended(PARTITION, &source, EARLIEST_MS - 1, &COMPLETE));
    }
    assert!(!recovery.answers_reads(PARTITION) && !recovery.is_whole());
    heal(&mut recovery, 3);
}

#[test]
fn a_suspect_or_unreachable_member_is_no_source() {
    let mut recovery = recovery(3, 2);
    let (good, suspect) = (member("m1"), member("m2"));
    for random in 0..20 {
        let (partition, source) = recovery
            .next(EARLIEST_MS, &|member| *member == good, random)
            .unwrap();
        assert_eq!(source, good);
        // Whoever was thought to be good and turned out suspect makes no exchange complete.
        assert!(!recovery.ended(partition, &suspect, EARLIEST_MS, &INCOMPLETE));
        assert!(!recovery.ended(partition, &good, EARLIEST_MS, &INCOMPLETE));
    }
    assert_eq!(recovery.progress().exchanges_left, 2);
    let stranger = member("m9");
    assert!(
        !recovery.ended(PARTITION, &stranger, EARLIEST_MS, &COMPLETE),
        "no primary"
    );
    assert!(recovery.ended(PARTITION, &good, EARLIEST_MS, &COMPLETE));
    assert!(recovery.ended(PARTITION, &good, EARLIEST_MS, &COMPLETE), "again");
    assert!(
        !recovery.answers_reads(PARTITION),
        "the same source twice is one source"
    );
    assert_eq!(recovery.next(EARLIEST_MS, &|member| *member == good, 0), None);
    assert_eq!(
        recovery.next(EARLIEST_MS, &|_| true, 0),
        Some((PARTITION, suspect))
    );
}

#[test]
fn exchanges_are_chosen_at_random_one_of_a_partition_at_a_time() {
    let partitions = || (0..4).map(|id| (PartitionId(id), others(3))).collect();
    let mut firsts = BTreeSet::new();
    for random in 0..200 {
        let mut recovery = Recovery::begin(START_MS, DEADLINE_MS);
        recovery.set_partitions(partitions(), 2);
        let mut seen = BTreeSet::new();
        firsts.insert(recovery.next(EARLIEST_MS, &|_| true, random).unwrap());
        for _ in 0..3 {
            let (partition, _) = recovery.next(EARLIEST_MS, &|_| true, random).unwrap();
            assert!(seen.insert(partition), "{partition:?} twice at once");
        }
        assert_eq!(recovery.next(EARLIEST_MS, &|_| true, random), None);
    }
    assert_eq!(firsts.len(), 8, "every partition with every source");
}

#[test]
fn partitions_become_whole_one_by_one() {
    let mut recovery = Recovery::begin(START_MS, DEADLINE_MS);
    assert!(
        !recovery.is_whole() && !recovery.answers_reads(PARTITION),
        "before the ring is known"
    );
    let (one, two, foreign) = (PartitionId(1), PartitionId(2), PartitionId(3));
    recovery.set_partitions([one, two].map(|id| (id, others(3))).into(), 3);
    assert!(recovery.ended(one, &member("m2"), EARLIEST_MS, &COMPLETE));
    assert!(recovery.answers_reads(one) && !recovery.answers_reads(two));
    assert!(
        !recovery.answers_reads(foreign),
        "as a fallback it is suspect as long as anything is"
    );
    let progress = RecoveryProgress {
        partitions: 2,
        whole: 1,
        exchanges_left: 1,
    };
    assert_eq!(recovery.progress(), progress);
    assert!(
        recovery.accept_loss(two),
        "the administrator's word, reported as possible loss"
    );
    assert!(!recovery.accept_loss(two) && !recovery.accept_loss(one));
    assert!(recovery.is_whole());
    assert!(
        !recovery.answers_reads(foreign),
        "another ring may make it hold that, and nothing of it was pulled"
    );
}

/// A store that no ring lists has nothing to get back, but as soon as one does.
#[test]
fn a_ring_that_lists_it_only_later_is_recovered_too() {
    let mut recovery = Recovery::begin(START_MS, DEADLINE_MS);
    recovery.set_partitions(BTreeMap::new(), 2);
    assert!(recovery.is_whole() && !recovery.answers_reads(PARTITION));
    recovery.set_partitions([(PARTITION, others(3))].into(), 2);
    assert!(!recovery.is_whole() && !recovery.answers_reads(PARTITION));
    heal(&mut recovery, 3);
    assert!(recovery.is_whole());
}

#[test]
fn a_ring_that_changes_keeps_what_still_counts() {
    let set = |names: &[&str]| names.iter().map(|name| member(name)).collect::<BTreeSet<_>>();
    let (one, two, three) = (PartitionId(1), PartitionId(2), PartitionId(3));
    let mut recovery = Recovery::begin(START_MS, DEADLINE_MS);
    recovery.set_partitions([one, two].map(|id| (id, set(&["a", "b"]))).into(), 2);
    for source in ["a", "b"] {
        recovery.ended(one, &member(source), EARLIEST_MS, &COMPLETE);
    }
    recovery.ended(two, &member("a"), EARLIEST_MS, &COMPLETE);
    // `a` gives its place to `c`; a third partition comes.
    recovery.set_partitions([one, two, three].map(|id| (id, set(&["b", "c"]))).into(), 2);
    assert!(recovery.answers_reads(one), "whole once, whole for good");
    assert!(recovery.ended(two, &member("b"), EARLIEST_MS, &COMPLETE));
    assert!(
        !recovery.answers_reads(two),
        "what came from a former primary does not count"
    );
    assert!(recovery.ended(two, &member("c"), EARLIEST_MS, &COMPLETE));
    assert!(recovery.answers_reads(two) && !recovery.answers_reads(three));
    recovery.set_partitions([(one, set(&["b", "c"]))].into(), 2);
    assert!(recovery.is_whole(), "what it is no primary of is others' to know");
}

#[test]
fn it_takes_its_partitions_from_the_ring() {
    let zone = Zone::new("").unwrap();
    let members = ["a", "b", "c", "d"].map(|name| Member {
        id: member(name),
        zone: zone.clone(),
        weight: 1,
    });
    let ring = Ring::bootstrap(ClusterId([1; 16]), members.into(), 16, 3).unwrap();
    let placement = Placement::new(Arc::new(ring));
    let mut recovery = Recovery::begin(START_MS, DEADLINE_MS);
    recovery.place(&placement, &member("b"), 2, &BTreeSet::new());
    assert_eq!(
        recovery.progress().partitions,
        placement.replica_partitions(1) as usize
    );
    assert_eq!(
        recovery.progress().exchanges_left,
        2 * recovery.progress().partitions
    );
    let mut random = 0;
    while let Some((partition, source)) = recovery.next(EARLIEST_MS, &|_| true, random) {
        let source_index = placement.ring().index_of(&source).unwrap();
        assert!(source != member("b"));
        assert!(placement.holds(partition, 1) && placement.holds(partition, source_index));
        recovery.ended(partition, &source, EARLIEST_MS, &COMPLETE);
        random += 7;
    }
    assert!(recovery.is_whole());
}

/// A restart in the middle loses nothing of it, and waits for the requests of its own past again.
#[test]
fn a_recovery_survives_a_restart() {
    let partitions = || (0..3).map(|id| (PartitionId(id), others(3))).collect();
    let mut recovery = Recovery::begin(START_MS, DEADLINE_MS);
    recovery.set_partitions(partitions(), 2);
    let (zero, one, two) = (PartitionId(0), PartitionId(1), PartitionId(2));
    for source in others(3) {
        recovery.ended(zero, &source, EARLIEST_MS, &COMPLETE);
    }
    recovery.ended(one, &member("m1"), EARLIEST_MS, &COMPLETE);
    // Under way when the process ends.
    recovery.next(EARLIEST_MS, &|_| true, 0).unwrap();

    let bytes = recovery.encode();
    let mut restarted = Recovery::decode(bytes.clone(), 500, DEADLINE_MS).unwrap();
    assert_eq!(restarted.encode(), bytes);
    assert!(!restarted.is_whole());
    restarted.set_partitions(partitions(), 2);
    assert_eq!(restarted.progress(), recovery.progress());
    assert!(restarted.answers_reads(zero) && !restarted.answers_reads(one) && !restarted.answers_reads(two));
    assert_eq!(restarted.next(500 + DEADLINE_MS - 1, &|_| true, 0), None);
    assert!(!restarted.ended(one, &member("m2"), 500, &COMPLETE));
    assert!(restarted.ended(one, &member("m2"), 500 + DEADLINE_MS, &COMPLETE));
    assert!(restarted.answers_reads(one));
}

#[test]
fn damaged_bytes_are_no_recovery() {
    let mut recovery = recovery(3, 2);
    recovery.ended(PARTITION, &member("m1"), EARLIEST_MS, &COMPLETE);
    let bytes = recovery.encode();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Recovery::decode(damaged.into(), 0, 0).is_err(), "bit {bit}");
    }
    for length in 0..bytes.len() {
        assert!(
            Recovery::decode(bytes.slice(..length), 0, 0).is_err(),
            "{length} bytes"
        );
    }
}

/// With real exchanges: the write that the lost disk and one other acknowledged is back when reads are answered.
#[test]
fn an_emptied_replica_gets_back_what_it_acknowledged() {
    let all = keys(400);
    // A write of each kind: {A, B} and {A, C} with W = 2; A loses its disk.
    let (mut b, mut c) = equal_pair(&all[..200]);
    for (number, key) in all[200..].iter().enumerate() {
        let holder = if number % 2 == 0 { &mut b } else { &mut c };
        holder.put(key, "acknowledged");
    }
    let mut a = Replica::new(9);
    a.suspect = true;
    let mut recovery = recovery(3, 2);
    let mut sources = BTreeMap::from([(member("m1"), b), (member("m2"), c)]);
    while let Some((partition, source)) = recovery.next(EARLIEST_MS, &|_| true, 1) {
        assert!(!recovery.answers_reads(PARTITION));
        let peer = sources.get_mut(&source).unwrap();
        let before = peer.records.clone();
        let traffic = exchange(&mut a, peer, Mode::PullOnly);
        assert_eq!(peer.records, before);
        recovery.ended(partition, &source, EARLIEST_MS, &traffic.report);
    }
    assert!(recovery.answers_reads(PARTITION));
    for key in &all {
        assert!(a.records.contains_key(key));
    }
}

/// What only they held is lost; of what others hold too, nothing may be missed, so no fewer of the others are asked.
#[test]
fn nobody_waits_for_the_dead() {
    let zone = Zone::new("").unwrap();
    let members = ["a", "b", "c", "d", "e"].map(|name| Member {
        id: member(name),
        zone: zone.clone(),
        weight: 1,
    });
    let left = |w: u32, dead: &[&str]| {
        let ring = Ring::bootstrap(ClusterId([1; 16]), members.clone().into(), 8, 5).unwrap();
        let dead = dead.iter().map(|name| member(name)).collect();
        let mut recovery = Recovery::begin(START_MS, DEADLINE_MS);
        recovery.place(&Placement::new(Arc::new(ring)), &member("b"), w, &dead);
        recovery.progress().exchanges_left / 8
    };
    // Each of N = 5; another one of any W: N - W + 1, or all that are left.
    assert_eq!((left(3, &[]), left(3, &["a"]), left(3, &["a", "c"])), (3, 3, 2));
    assert_eq!((left(5, &[]), left(5, &["a"]), left(2, &["a"])), (1, 1, 3));
    assert_eq!(left(3, &["a", "c", "d", "e"]), 0);
}
