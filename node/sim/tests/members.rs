//! Scripted worlds in which members come, go and are declared dead while others fail: scenarios 18 to 21, rows 14 and 15 and D64 of
//! docs/testing.md. Each ends with the oracle.

mod support;

use dynamo_core::coordinator::ReadRepair;
use dynamo_sim::knobs::Mix;
use dynamo_sim::nemesis::{Fault, Plan};
use dynamo_sim::{Knobs, Mistake, Options, Report, run};
use support::{DELETES, cluster, holds};

const FIVE: u32 = 0b1_1111;
const SIX: u32 = FIVE | 1 << 5;

/// Five members and one more node, in three zones; only primaries count, so that a read meets every acknowledged write.
fn six(seed: u64) -> Knobs {
    Knobs {
        nodes: 6,
        outside: 1,
        strict: true,
        partitions: 16,
        keys: 120,
        hot: 0,
        safety_ms: 16_000,
        ..cluster(seed)
    }
}

/// How it stands at that time.
fn at(knobs: &Knobs, plan: &Plan, until_ms: u64) -> Report {
    let options = Options {
        until_ms: Some(until_ms),
        ..Options::default()
    };
    let report = run(knobs, plan, options);
    assert_eq!(report.violations, [], "seed {}", knobs.seed);
    report
}

/// The receiver is killed when half of what moves has arrived: it goes on, and no read misses anything meanwhile (I15).
#[test]
fn c1_18_receiver_killed_at_half_of_the_handoff() {
    for seed in 1..6 {
        let knobs = six(seed);
        let mut plan: Plan = vec![(3000, Fault::Members(0, SIX))];
        let undisturbed = holds(&knobs, &plan).stats;
        assert_eq!(undisturbed.transitions, 1, "{undisturbed:?}");
        let pulled = |until_ms| at(&knobs, &plan, until_ms).stats.pulled;
        let half_ms = (3000..10_000)
            .step_by(10)
            .find(|ms| 2 * pulled(*ms) >= undisturbed.pulled);
        let killed_ms = half_ms.unwrap();
        assert!(pulled(killed_ms) < undisturbed.pulled, "all had arrived");
        plan.push((killed_ms, Fault::Power(5, 1500)));
        let waiting = at(&knobs, &plan, killed_ms + 1400).stats;
        assert_eq!((waiting.transitions, waiting.released), (0, 0), "{waiting:?}");
        let report = holds(&knobs, &plan);
        assert_eq!(
            (report.stats.transitions, report.members.len()),
            (1, 6),
            "{:?}",
            report.stats
        );
    }
}

/// One member is down and another one cut off: the third that is to leave waits, and keeps what it has.
#[test]
fn c1_19_decommission_while_one_is_down_and_one_cut_off() {
    for seed in 1..6 {
        let knobs = six(seed);
        let plan = vec![
            (2000, Fault::Kill(1, 6000)),
            (2000, Fault::Split(1 << 2, 6000)),
            (2500, Fault::Members(0, FIVE & !(1 << 4))),
        ];
        let waiting = at(&knobs, &plan, 7900).stats;
        assert_eq!(
            (
                waiting.proposed,
                waiting.transitions,
                waiting.released,
                waiting.left
            ),
            (1, 0, 0, 0),
            "{waiting:?}"
        );
        let report = holds(&knobs, &plan);
        assert_eq!(
            (report.stats.left, report.members),
            (1, vec![0, 1, 2, 3]),
            "{:?}",
            report.stats
        );
    }
}

/// Two nodes are to join and one to leave, asked of three members in one moment: one ring wins, and the others are asked for
/// again. How little moves: `d20_moves_are_close_to_the_minimum_with_a_zone_for_each_replica` (core).
#[test]
fn c1_20_two_joins_and_one_leave_at_once() {
    for seed in 1..6 {
        let knobs = Knobs {
            nodes: 7,
            outside: 2,
            safety_ms: 24_000,
            ..six(seed)
        };
        let asked = [FIVE | 1 << 5, FIVE | 1 << 6, FIVE & !(1 << 4)];
        let mut plan: Plan = (0..3)
            .zip(asked)
            .map(|(node, members)| (2000, Fault::Members(node, members)))
            .collect();
        let first = holds(&knobs, &plan);
        // All three have one epoch: the first base ring of that epoch is the only one (I18).
        assert_eq!(
            (first.stats.proposed, first.stats.transitions),
            (3, 1),
            "{:?}",
            first.stats
        );
        plan.extend([
            (8000, Fault::Members(0, FIVE | 1 << 5)),
            (13_000, Fault::Members(1, FIVE | 1 << 5 | 1 << 6)),
            (18_000, Fault::Members(2, 0b110_1111)),
        ]);
        let report = holds(&knobs, &plan);
        assert_eq!(report.members, [0, 1, 2, 3, 5, 6], "{:?}", report.stats);
    }
}

/// One zone dark, one disk of another zone gone.
#[test]
fn c1_21_zone_and_disk_lost() {
    let plan = vec![
        (2000, Fault::Power(0, 6000)),
        (2000, Fault::Power(3, 6000)),
        (3000, Fault::EmptyDisk(1, 1000)),
    ];
    let report = holds(&cluster(21), &plan);
    assert!(report.stats.sloppy > 0, "{:?}", report.stats);
}

/// The same, and the disk's member is declared dead. Every acknowledged write is in two zones, so none is lost; where one
/// replica is enough for a read, reads go on.
#[test]
fn c1_21_zone_dark_and_a_member_of_another_zone_gone_for_good() {
    for seed in 1..6 {
        let knobs = Knobs {
            r: 1,
            clients: 30,
            mix: Mix {
                read: 40,
                ..cluster(seed).mix
            },
            ..six(seed)
        };
        let plan = vec![
            (2000, Fault::Power(0, 6000)),
            (2000, Fault::Power(3, 6000)),
            (2000, Fault::Bury(1, seed, 30_000)),
        ];
        let (before, dark) = (at(&knobs, &plan, 3500).stats, at(&knobs, &plan, 7900).stats);
        assert!(dark.reads > before.reads + 40, "{before:?} {dark:?}");
        assert_eq!(dark.transitions, 0, "the zone is waited for: {dark:?}");
        let report = holds(&knobs, &plan);
        nothing_forfeited(&report, 1);
        assert!(!report.members.contains(&1), "{:?}", report.members);
    }
}

/// So many members died, and nothing that was acknowledged with them.
fn nothing_forfeited(report: &Report, dead: u64) {
    let stats = &report.stats;
    assert_eq!((stats.dead, stats.forfeited), (dead, 0), "{stats:?}");
}

/// Row 14: a member comes, goes, is replaced, or two changes are asked for at once, while each kind of fault meets those that
/// take part.
#[test]
fn row_14_members_change_under_faults() {
    let changes: [&[Fault]; 4] = [
        &[Fault::Members(0, SIX)],
        &[Fault::Members(0, FIVE & !(1 << 4))],
        &[Fault::Members(0, SIX & !(1 << 4))],
        &[Fault::Members(0, SIX), Fault::Members(2, FIVE & !(1 << 4))],
    ];
    let faults = |round: u64| {
        let node = round as usize % 6;
        [
            Fault::Split(0b01_0101 << (round % 2), 700),
            Fault::OneWay(node, round.is_multiple_of(2), 700),
            Fault::Kill(node, 700),
            Fault::Power(node, 700),
            Fault::Pause(node, 700),
        ]
    };
    for change in changes {
        for kind in 0..5 {
            let knobs = six(kind as u64 + 1);
            let mut plan: Plan = (0..10)
                .map(|round| (2100 + 900 * round, faults(round)[kind]))
                .collect();
            plan.extend(change.iter().map(|change| (2000, *change)));
            let stats = holds(&knobs, &plan).stats;
            assert!(
                stats.transitions == 1 && stats.pulled > 0,
                "{change:?}, {kind}: {stats:?}"
            );
        }
    }
}

/// Row 15: a whole zone is cut off, or is gone with its disks and declared dead. What is acknowledged is in two zones; the others
/// take writes all the time, and everything once they hold what the zone held.
#[test]
fn row_15_a_zone_is_lost_with_its_disks() {
    for seed in 1..6 {
        let knobs = Knobs {
            strict: false,
            ..six(seed)
        };
        let cut = vec![(3000, Fault::Split(0b00_1001, 8000))];
        let gone = vec![
            (3000, Fault::Bury(0, seed, 30_000)),
            (3000, Fault::Bury(3, seed, 30_000)),
        ];
        for plan in [cut, gone] {
            let (begin, end) = (at(&knobs, &plan, 4500).stats, at(&knobs, &plan, 11_000).stats);
            assert!(end.acked > begin.acked + 50, "{begin:?} {end:?}");
            let stats = holds(&knobs, &plan).stats;
            assert_eq!(stats.forfeited, 0, "{stats:?}");
        }
        // Two primaries in two zones have every acknowledged write.
        let strict = six(seed);
        let gone = vec![
            (3000, Fault::Bury(0, seed, 30_000)),
            (3000, Fault::Bury(3, seed, 30_000)),
        ];
        let report = holds(&strict, &gone);
        nothing_forfeited(&report, 2);
        assert!(
            report.members.iter().all(|node| ![0, 3].contains(node)),
            "{:?}",
            report.members
        );
    }
}

/// D64: nobody waits for a member that is declared dead, and its place is taken, long before it could be back.
#[test]
fn d64_a_dead_member_is_not_waited_for() {
    for seed in 1..11 {
        let knobs = six(seed);
        let plan = vec![(3000, Fault::Bury(1, seed, 60_000))];
        let before = at(&knobs, &plan, 15_900);
        assert_eq!(before.stats.transitions, 1, "{:?}", before.stats);
        let report = holds(&knobs, &plan);
        nothing_forfeited(&report, 1);
        assert!(!report.members.contains(&1), "{:?}", report.members);
    }
}

/// Another one is suspect when the member dies, and had counted on it for its recovery: it recovers from those that are left, and
/// so do the new holders.
#[test]
fn d64_a_suspect_store_does_not_wait_for_the_dead() {
    for seed in 1..11 {
        let knobs = six(seed);
        let plan = vec![
            (3000, Fault::EmptyDisk(2, 500)),
            (3300, Fault::Bury(1, seed, 60_000)),
        ];
        let before = at(&knobs, &plan, 15_900).stats;
        assert_eq!((before.spared, before.dead), (0, 1), "{before:?}");
        assert!(before.transitions == 1 && before.recovered >= 1, "{before:?}");
        holds(&knobs, &plan);
    }
}

/// Records are damaged while a member is gone for good: they are fetched anew from the primaries that are left, or the new holders
/// would wait for ever for what cannot be read.
#[test]
fn d64_a_damaged_record_does_not_wait_for_the_dead() {
    let mut refetched = 0;
    for seed in 1..11 {
        let knobs = six(seed);
        let mut plan = vec![(3000, Fault::Bury(1, seed, 60_000))];
        plan.extend((0..40).map(|nth| {
            (
                3001 + nth,
                Fault::Corrupt([0, 2, 3, 4][nth as usize % 4], 3 * nth),
            )
        }));
        let before = at(&knobs, &plan, 15_900).stats;
        assert_eq!((before.dead, before.transitions), (1, 1), "{before:?}");
        refetched += before.refetched;
        holds(&knobs, &plan);
    }
    assert!(refetched > 10, "{refetched}");
}

/// Two primaries take a write that the third one misses, and one of the two dies. Whoever takes its place pulls from both of the
/// others: from either alone it may not get what was acknowledged.
#[test]
fn d64_new_holders_pull_from_all_that_are_left() {
    for seed in 1..11 {
        let knobs = Knobs {
            hints_max: 0,
            anti_entropy: false,
            read_repair: ReadRepair::Off,
            ..six(seed)
        };
        let plan = vec![(2000, Fault::Kill(2, 2000)), (4100, Fault::Bury(1, seed, 60_000))];
        let stats = holds(&knobs, &plan).stats;
        assert_eq!((stats.dead, stats.forfeited), (1, 0), "{stats:?}");
    }
}

/// Every partition has one copy, and a new member gets some of each of the others.
fn lone(seed: u64) -> Knobs {
    Knobs {
        n: 1,
        r: 1,
        w: 1,
        partitions: 64,
        ..six(seed)
    }
}

/// A member dies that was the only one of a partition's primaries, but a new holder has the partition already. Another ring takes the
/// place of the one that lists the new holder: whoever is to hold the partition now gets it from there.
#[test]
fn d64_what_a_holder_by_a_superseded_ring_has_is_not_lost() {
    let mut superseded = 0;
    for seed in 1..6 {
        let knobs = lone(seed);
        let mut plan: Plan = vec![(2000, Fault::Members(0, SIX))];
        let all = holds(&knobs, &plan).stats.pulled;
        let pulled_ms = (2000..8000)
            .step_by(10)
            .find(|ms| at(&knobs, &plan, *ms).stats.pulled == all);
        let dies_ms = pulled_ms.unwrap();
        plan.extend([
            (dies_ms, Fault::Bury(1, seed, 60_000)),
            (dies_ms, Fault::Members(0, FIVE & !(1 << 1))),
        ]);
        superseded += holds(&knobs, &plan).stats.changes_of_mind;
    }
    assert!(superseded > 2, "{superseded}");
}

/// One leaves, and who gets a part of what it has dies when all others read from the ring that says so: that ring serves, and the one that
/// leaves stays, with everything, until another ring serves.
#[test]
fn d64_what_a_dead_successor_was_to_hold_is_not_let_go() {
    const DIES_MS: u64 = 1000;
    for seed in 1..3 {
        let knobs = lone(seed);
        let leaves = (2000, Fault::Members(0, FIVE & !(1 << 4)));
        // It tells that it has everything, and hears no more that all have.
        let of = |deaf_ms| {
            let deaf = (deaf_ms, Fault::Deafen(1, 3000));
            vec![leaves, deaf, (deaf_ms + DIES_MS, Fault::Bury(1, seed, 60_000))]
        };
        let serves = |deaf_ms: &u64| {
            let plan = of(*deaf_ms);
            let serves = |until_ms| at(&knobs, &plan, deaf_ms + until_ms).stats.transitions == 1;
            !serves(DIES_MS) && serves(DIES_MS + 400)
        };
        let deaf_ms = (2000..4000).step_by(10).find(serves).unwrap();
        let stats = at(&knobs, &of(deaf_ms), deaf_ms + DIES_MS + 400).stats;
        assert_eq!((stats.dead, stats.left, stats.spared), (1, 0, 0), "{stats:?}");
        let report = holds(&knobs, &of(deaf_ms));
        assert!(
            !report.members.contains(&1) && report.stats.transitions > 1,
            "{:?}",
            report.stats
        );
    }
}

/// One that takes writes alone, and dies: these are lost by the administrator's word, and everything else is there.
#[test]
fn d64_what_only_the_dead_held_is_lost_and_nothing_else() {
    let mut forfeited = 0;
    for seed in 1..11 {
        let knobs = Knobs {
            r: 3,
            w: 1,
            // What is read before it is written needs the others.
            mix: Mix {
                blind: 20,
                ..cluster(seed).mix
            },
            ..six(seed)
        };
        let plan = vec![
            (3000, Fault::Split(1 << 1, 1000)),
            (3900, Fault::Bury(1, seed, 60_000)),
        ];
        let stats = holds(&knobs, &plan).stats;
        assert_eq!(stats.dead, 1, "{stats:?}");
        forfeited += stats.forfeited;
    }
    assert!(forfeited > 20, "{forfeited}");
}

/// A dead member comes back with its old disk, full of hints and of what was deleted and removed meanwhile: it is heard by nobody,
/// erases what it has, and may join as one that is new.
#[test]
fn d64_a_dead_member_that_comes_back_has_no_part() {
    let mut noticed = 0;
    for seed in 1..6 {
        let knobs = Knobs {
            mix: DELETES,
            keys: 40,
            think_ms: 100,
            strict: false,
            anti_entropy: false,
            safety_ms: 26_000,
            ..six(seed)
        };
        let plan = vec![
            (2000, Fault::Kill(0, 1900)),
            (3800, Fault::Bury(1, seed, 14_000)),
            // It is heard, but hears nobody.
            (17_700, Fault::OneWay(1, false, 2000)),
            (22_000, Fault::Members(2, SIX)),
        ];
        let report = holds(&knobs, &plan);
        assert!(
            report.stats.left >= 1 && report.stats.refused > 0,
            "{:?}",
            report.stats
        );
        assert!(report.members.contains(&1), "{:?}", report.members);
        let trusting = Knobs {
            mistake: Some(Mistake::GhostAdmitted),
            ..knobs
        };
        let report = run(&trusting, &plan, Options::default());
        noticed += usize::from(report.violations.iter().any(|one| one.invariant == "I19"));
    }
    assert!(
        noticed >= 3,
        "taking what it sends shows with {noticed} of the seeds"
    );
}
