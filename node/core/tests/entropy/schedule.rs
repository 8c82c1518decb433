//! Who exchanges what with whom, and when. D39.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dynamo_core::entropy::{Due, Schedule};
use dynamo_core::ring::{Member, Placement, Ring};
use dynamo_core::types::{ClusterId, MemberId, PartitionId, Zone};

use super::support::{Random, member};

const INTERVAL_MS: u64 = 60_000;
const Q: u32 = 16;

type Pairs = BTreeMap<(MemberId, PartitionId), Vec<u64>>;

fn placement(members: usize, n: u32) -> Placement {
    let members = (0..members).map(|number| Member {
        id: member(&format!("m{number}")),
        zone: Zone::new("").unwrap(),
        weight: 1,
    });
    let ring = Ring::bootstrap(ClusterId([1; 16]), members.collect(), Q, n).unwrap();
    Placement::new(Arc::new(ring))
}

/// Runs what is due from one moment to another, each exchange for a random while, and notes when each began.
struct Run {
    schedule: Schedule,
    random: Random,
    began: Pairs,
    /// By the moment that they end.
    running: BTreeSet<(u64, u64, MemberId, PartitionId)>,
    down: BTreeSet<MemberId>,
}

impl Run {
    fn new(schedule: Schedule, seed: u64) -> Self {
        Self {
            schedule,
            random: Random::new(seed),
            began: Pairs::new(),
            running: BTreeSet::new(),
            down: BTreeSet::new(),
        }
    }

    fn until(&mut self, from_ms: u64, to_ms: u64) {
        for now_ms in (from_ms..to_ms).step_by(100) {
            while let Some((ends_ms, began_ms, peer, partition)) = self.running.first().cloned()
                && ends_ms <= now_ms
            {
                self.running.pop_first();
                let due = Due { partition, peer };
                self.schedule
                    .ended(&due, began_ms, true, now_ms, self.random.next());
                assert_eq!(self.schedule.last_ms(partition, &due.peer), Some(began_ms));
            }
            while let Some(Due { partition, peer }) =
                self.schedule.next(now_ms, &|member| !self.down.contains(member))
            {
                assert!(!self.down.contains(&peer));
                let twice = self.running.iter().any(|(.., other)| *other == partition);
                assert!(!twice, "two exchanges of {partition:?} at once");
                let began = self.began.entry((peer.clone(), partition)).or_default();
                began.push(now_ms);
                let ends_ms = now_ms + 100 + self.random.below(2000) as u64;
                self.running.insert((ends_ms, now_ms, peer, partition));
            }
        }
    }
}

/// D39: each pair at least once per interval × (N - 1), whatever the random numbers.
#[test]
fn d39_each_pair_is_exchanged_once_per_interval_times_n_minus_1() {
    for n in 1..=5u32 {
        let placement = placement(6, n);
        let me = member("m2");
        for seed in 0..8 {
            let mut schedule = Schedule::new(INTERVAL_MS);
            schedule.place(&placement, &me, 1000, seed);
            let period_ms = INTERVAL_MS * u64::from(n.max(2) - 1);
            assert_eq!(schedule.period_ms(), period_ms);
            let end_ms = 1000 + 8 * period_ms;
            let mut run = Run::new(schedule, seed);
            run.until(1000, end_ms);

            let held = placement.replica_partitions(2);
            let pairs: Vec<_> = run.schedule.pairs().collect();
            assert_eq!(pairs.len(), (held * (n - 1)) as usize, "N = {n}");
            assert_eq!(run.began.len(), pairs.len(), "N = {n}: no pair is left out");
            assert_eq!(run.schedule.overdue(end_ms), 0, "N = {n}, seed {seed}");
            for (pair, began) in &run.began {
                assert!(pair.0 != me && placement.holds(pair.1, 2));
                let mut last_ms = 1000;
                for began_ms in began.iter().copied().chain([end_ms]) {
                    let gap_ms = began_ms - last_ms;
                    assert!(
                        gap_ms <= period_ms,
                        "N = {n}, seed {seed}: {pair:?} waited {gap_ms} ms"
                    );
                    last_ms = began_ms;
                }
                assert!(
                    began.len() <= 8 * 2,
                    "N = {n}: not much more often than asked for"
                );
            }
        }
    }
}

/// Paper §4.7 has it in the background, at random: nodes that start together do not do everything together.
#[test]
fn d39_exchanges_are_spread_and_in_random_order() {
    let placement = placement(6, 3);
    let order = |seed| {
        let mut schedule = Schedule::new(INTERVAL_MS);
        schedule.place(&placement, &member("m0"), 0, seed);
        let mut run = Run::new(schedule, seed);
        run.until(0, 2 * INTERVAL_MS);
        let began = run.began.iter();
        let mut all: Vec<_> = began
            .flat_map(|(pair, began)| began.iter().map(move |ms| (*ms, pair.clone())))
            .collect();
        all.sort();
        all
    };
    let (one, two) = (order(1), order(2));
    let pairs = |all: &[(u64, (MemberId, PartitionId))]| -> Vec<_> {
        all.iter().map(|(_, pair)| pair.clone()).collect()
    };
    assert_ne!(pairs(&one), pairs(&two));
    assert_eq!(pairs(&one), pairs(&order(1)), "a seed repeats");
    let at_once = one.iter().filter(|(ms, _)| *ms < 2 * INTERVAL_MS / 16).count();
    assert!(
        at_once * 2 < placement.replica_partitions(0) as usize * 2,
        "{at_once} at the start"
    );
}

#[test]
fn d39_an_unreachable_peer_holds_nobody_up_and_comes_first_when_it_is_back() {
    let placement = placement(4, 3);
    let mut schedule = Schedule::new(INTERVAL_MS);
    schedule.place(&placement, &member("m0"), 0, 9);
    let period_ms = schedule.period_ms();
    let mut run = Run::new(schedule, 9);
    let down = member("m1");
    run.down.insert(down.clone());
    run.until(0, 4 * period_ms);
    let of_down = run.schedule.pairs().filter(|(peer, ..)| **peer == down).count();
    assert!(of_down > 0);
    assert_eq!(run.schedule.overdue(4 * period_ms), of_down);
    run.down.clear();
    // One exchange of a partition at a time, each of two seconds at most.
    run.until(4 * period_ms, 4 * period_ms + 10_000);
    assert_eq!(run.schedule.overdue(4 * period_ms + 10_000), 0);
}

#[test]
fn pausing_stops_exchanges_and_resuming_makes_up_for_them() {
    let mut schedule = Schedule::new(INTERVAL_MS);
    schedule.place(&placement(3, 3), &member("m0"), 0, 4);
    let period_ms = schedule.period_ms();
    let mut run = Run::new(schedule, 4);
    run.until(0, period_ms);
    run.schedule.pause();
    assert!(run.schedule.is_paused());
    let began = |run: &Run| run.began.values().map(Vec::len).sum::<usize>();
    let before = began(&run);
    run.until(period_ms, 5 * period_ms);
    assert_eq!(began(&run), before, "nothing begins");
    assert!(run.schedule.overdue(5 * period_ms) > 0);
    run.schedule.resume();
    run.until(5 * period_ms, 5 * period_ms + 10_000);
    assert_eq!(run.schedule.overdue(5 * period_ms + 10_000), 0);
}

/// An exchange that ended unfinished counts for nothing and is tried again soon, but not at once.
#[test]
fn an_unfinished_exchange_is_tried_again_soon() {
    let (me, peer, partition) = (member("m0"), member("m1"), PartitionId(3));
    let pairs = BTreeSet::from([(peer.clone(), partition)]);
    for random in 0..50 {
        let mut schedule = Schedule::new(INTERVAL_MS);
        schedule.set_pairs(&pairs, 2, 0, random);
        let due = schedule.next(INTERVAL_MS, &|member| *member != me).unwrap();
        assert_eq!((&due.peer, due.partition), (&peer, partition));
        assert_eq!(
            schedule.next(10 * INTERVAL_MS, &|_| true),
            None,
            "it is under way"
        );
        schedule.ended(&due, INTERVAL_MS, false, INTERVAL_MS + 50, random);
        assert_eq!(schedule.last_ms(partition, &peer), None);
        assert_eq!(schedule.next(INTERVAL_MS + 50, &|_| true), None, "not at once");
        let due = schedule
            .next(INTERVAL_MS + 50 + INTERVAL_MS / 8, &|_| true)
            .unwrap();
        schedule.ended(&due, 2 * INTERVAL_MS, true, 3 * INTERVAL_MS, random);
        assert_eq!(
            schedule.last_ms(partition, &peer),
            Some(2 * INTERVAL_MS),
            "its beginning counts"
        );
    }
}

#[test]
fn a_new_ring_keeps_the_times_of_the_pairs_that_stay() {
    let (stays, goes, comes) = (member("m1"), member("m2"), member("m3"));
    let partition = PartitionId(3);
    let pairs = |peers: [&MemberId; 2]| peers.map(|peer| (peer.clone(), partition)).into();
    let mut schedule = Schedule::new(INTERVAL_MS);
    schedule.set_pairs(&pairs([&stays, &goes]), 3, 0, 1);
    for _ in 0..2 {
        let due = schedule.next(INTERVAL_MS, &|_| true).unwrap();
        schedule.ended(&due, INTERVAL_MS, true, INTERVAL_MS, 7);
    }
    schedule.set_pairs(&pairs([&stays, &comes]), 3, 2 * INTERVAL_MS, 2);
    assert_eq!(schedule.last_ms(partition, &stays), Some(INTERVAL_MS));
    assert_eq!(schedule.last_ms(partition, &goes), None);
    assert_eq!(schedule.last_ms(partition, &comes), None);
    let peers: BTreeSet<_> = schedule.pairs().map(|(peer, ..)| peer.clone()).collect();
    assert_eq!(peers, BTreeSet::from([stays.clone(), comes.clone()]));

    // A pair that is dropped while its exchange is under way frees its partition.
    let due = schedule.next(9 * INTERVAL_MS, &|peer| *peer == comes).unwrap();
    schedule.set_pairs(&pairs([&stays, &goes]), 3, 9 * INTERVAL_MS, 3);
    assert_eq!(schedule.next(9 * INTERVAL_MS, &|_| true), None);
    schedule.ended(&due, 9 * INTERVAL_MS, true, 9 * INTERVAL_MS, 3);
    assert_eq!(schedule.next(9 * INTERVAL_MS, &|_| true).unwrap().peer, stays);
    // This node is no primary any more.
    schedule.place(&placement(3, 3), &member("gone"), 9 * INTERVAL_MS, 3);
    assert_eq!(schedule.pairs().count(), 0);
}

#[test]
fn an_administrator_may_hurry_a_partition() {
    let mut schedule = Schedule::new(INTERVAL_MS);
    schedule.place(&placement(3, 3), &member("m0"), 0, 4);
    schedule.hurry(PartitionId(6));
    for _ in 0..2 {
        let due = schedule.next(0, &|_| true).unwrap();
        assert_eq!(due.partition, PartitionId(6), "before all others");
        schedule.ended(&due, 0, true, 0, 1);
    }
    let next = schedule.next(0, &|_| true);
    assert_ne!(
        next.map(|due| due.partition),
        Some(PartitionId(6)),
        "once with each"
    );
}

/// Two exchanges that found a difference in one partition would compare the same keys.
#[test]
fn one_exchange_at_a_time_may_send_keys_of_a_partition() {
    let mut schedule = Schedule::new(INTERVAL_MS);
    let (a, b) = (member("m1"), member("m2"));
    let (this, other) = (PartitionId(3), PartitionId(4));
    let hold_ms = INTERVAL_MS / 16;
    schedule.set_pairs(&BTreeSet::from([(a.clone(), this)]), 2, 0, 1);
    let far_ms = 10 * INTERVAL_MS;

    assert!(schedule.lets_in(this, &a, far_ms));
    assert!(!schedule.lets_in(this, &b, far_ms + hold_ms - 1), "a is in");
    assert!(schedule.lets_in(other, &b, far_ms), "another partition is free");
    assert!(
        schedule.lets_in(this, &a, far_ms + hold_ms - 1),
        "whoever is in goes on"
    );
    assert!(
        !schedule.lets_in(this, &b, far_ms + hold_ms),
        "and stays in from its last question"
    );
    assert_eq!(
        schedule.next(far_ms + hold_ms, &|_| true),
        None,
        "nor is one begun here"
    );

    let over_ms = far_ms + 2 * hold_ms;
    let due = schedule.next(over_ms, &|_| true).unwrap();
    assert_eq!(due.partition, this);
    assert!(
        !schedule.lets_in(this, &b, over_ms),
        "this node's own is under way"
    );
    schedule.ended(&due, over_ms, true, over_ms + 1, 1);
    assert!(schedule.lets_in(this, &b, over_ms + 1));
}
