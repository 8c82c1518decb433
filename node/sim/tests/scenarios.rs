//! What may go wrong among nodes, as scripted plans of faults with a number each (`c1_01` and so on). Each ends with the oracle:
//! nothing acknowledged is lost, all replicas are equal, no hint is left.
//!
//! Those in which members change (18 to 21) are in `members.rs`.

mod support;

use std::collections::BTreeSet;

use dynamo_core::coordinator::ReadRepair;
use dynamo_sim::knobs::{Durability, Mix};
use dynamo_sim::nemesis::{Fault, Plan};
use dynamo_sim::{Knobs, Mistake, Options, run};
use support::{DELETES, cluster, holds};

/// Both sides of a split accept writes of the same keys; afterwards both are there.
#[test]
fn c1_01_split_in_two() {
    let report = holds(&cluster(1), &vec![(1000, Fault::Split(0b00011, 4000))]);
    assert!(
        report.stats.sloppy > 0 && report.stats.siblings_max > 1,
        "{:?}",
        report.stats
    );
}

#[test]
fn c1_02_coordinator_isolated_after_its_local_write() {
    let plan = (0..20)
        .map(|round| (800 + 400 * round, Fault::Split(1 << (round % 5), 200)))
        .collect();
    holds(&cluster(2), &plan);
}

#[test]
fn c1_03_one_way_cut_for_ever() {
    let report = holds(&cluster(3), &vec![(1000, Fault::OneWay(0, false, 9000))]);
    assert!(report.stats.sloppy > 0, "{:?}", report.stats);
}

#[test]
fn c1_04_flapping_node() {
    let knobs = Knobs {
        safety_ms: 60_000,
        ..cluster(4)
    };
    let plan = (0..15)
        .map(|round| (1000 + 4000 * round, Fault::Kill(0, 2000)))
        .collect();
    let report = holds(&knobs, &plan);
    assert!(report.stats.hints_delivered > 0, "{:?}", report.stats);
}

/// With the request's id a retry is no second value (I5 asks for that).
#[test]
fn c1_05_kills_between_apply_and_ack() {
    let plan = (0..30)
        .map(|round| (700 + 300 * round, Fault::Kill(round as usize % 5, 150)))
        .collect();
    holds(&cluster(5), &plan);
}

#[test]
fn c1_06_all_killed_at_once() {
    let plan = (0..5)
        .map(|node| (5000, Fault::Kill(node, 200 + 300 * (4 - node as u64))))
        .collect();
    holds(&cluster(6), &plan);
}

#[test]
fn c1_07_power_loss_of_all() {
    let plan: Plan = vec![(3000, Fault::PowerAll(500)), (7000, Fault::PowerAll(100))];
    holds(&cluster(7), &plan);
    // In this mode the last moments may be lost; nothing may be wrong for that.
    let knobs = Knobs {
        durability: Durability::Interval(200),
        ..cluster(7)
    };
    holds(&knobs, &plan);
}

#[test]
fn c1_08_disk_put_back_in_time() {
    let knobs = Knobs {
        strict: true,
        ..cluster(8)
    };
    let report = holds(&knobs, &vec![(7000, Fault::OldDisk(2, 4000, 500))]);
    assert_eq!(
        (report.stats.spared, report.stats.recovered),
        (0, 1),
        "{:?}",
        report.stats
    );
}

/// Z3: the disk that is put back held hints, long delivered; what they wrote has been deleted and removed since.
#[test]
fn c1_08_hints_put_back_in_time() {
    let mut shown = 0;
    for seed in 1..50 {
        let knobs = Knobs {
            mix: DELETES,
            keys: 30,
            hot: 0,
            think_ms: 100,
            safety_ms: 24_000,
            ..cluster(seed)
        };
        let plan = vec![
            (1500, Fault::Power(0, 3000)),
            (16_000, Fault::OldDisk(3, 12_500, 500)),
        ];
        let report = holds(&knobs, &plan);
        if report.stats.reaped == 0 || report.stats.spared > 0 {
            continue;
        }
        let trusting = Knobs {
            mistake: Some(Mistake::GhostAdmitted),
            ..knobs
        };
        let report = run(&trusting, &plan, Options::default());
        let first = report.violations.first().map(|one| one.invariant);
        shown += usize::from(first == Some("I7"));
    }
    assert!(shown >= 3, "the mistake shows with {shown} of the seeds");
}

/// riak_kv#679: a damaged record is written through.
#[test]
fn c1_09_damaged_record_written_through() {
    let knobs = Knobs {
        keys: 1,
        ..cluster(9)
    };
    let plan = (0..12)
        .map(|round| (1000 + 700 * round, Fault::Corrupt(round as usize % 5, 0)))
        .collect();
    let report = holds(&knobs, &plan);
    assert!(report.stats.refetched > 2, "{:?}", report.stats);
}

/// Z1: the "doomstone". A member with old hints comes back after the tombstone would have been old enough.
#[test]
fn c1_10_deleted_reaped_created_anew() {
    let mix = Mix {
        cart: 1,
        register: 1,
        delete: 4,
        blind: 0,
        read: 1,
        expiring: 1,
    };
    let knobs = Knobs {
        mix,
        keys: 40,
        hot: 0,
        safety_ms: 30_000,
        think_ms: 150,
        ..cluster(10)
    };
    let plan = vec![
        (2000, Fault::Kill(0, 3000)),
        (4000, Fault::Split(0b01000, 9000)),
        (15_000, Fault::Kill(1, 6000)),
        (18_000, Fault::Kill(3, 8000)),
    ];
    let report = holds(&knobs, &plan);
    assert!(report.stats.reaped > 3, "{:?}", report.stats);
}

/// riak_core#154: the holder of a hint restarts; nobody reads.
#[test]
fn c1_11_hint_holders_restart() {
    let mix = Mix {
        cart: 0,
        register: 0,
        delete: 0,
        blind: 1,
        read: 0,
        expiring: 0,
    };
    let knobs = Knobs {
        mix,
        keys: 200,
        hot: 0,
        anti_entropy: false,
        read_repair: ReadRepair::Off,
        ..cluster(11)
    };
    let mut plan: Plan = vec![(1000, Fault::Kill(0, 3000))];
    plan.extend((1..5).map(|node| (3500, Fault::Power(node, 300))));
    let report = run(
        &knobs,
        &plan,
        Options {
            until_ms: Some(25_000),
            ..Options::default()
        },
    );
    assert!(report.stats.hints_delivered > 100, "{:?}", report.stats);
    assert_eq!(
        (report.violations.len(), report.hints_left),
        (0, 0),
        "{:?}",
        report.stats
    );
}

/// The target of hints comes back with an empty disk; the other half (a new node id) needs ring changes.
#[test]
fn c1_12_hint_target_replaced() {
    let knobs = Knobs {
        strict: true,
        ..cluster(12)
    };
    let report = holds(
        &knobs,
        &vec![(2000, Fault::Kill(0, 2500)), (5000, Fault::EmptyDisk(0, 2000))],
    );
    assert!(
        report.stats.hints_delivered > 0 && report.stats.recovered == 1,
        "{:?}",
        report.stats
    );
}

#[test]
fn c1_13_hint_budget_spent() {
    let knobs = Knobs {
        hints_max: 2,
        ..cluster(13)
    };
    let report = holds(&knobs, &vec![(1000, Fault::Kill(0, 6000))]);
    assert!(
        report.stats.hints_declined > 0 && report.stats.exchanged > 0,
        "{:?}",
        report.stats
    );
}

#[test]
fn c1_14_stopped_for_thirty_seconds() {
    let knobs = Knobs {
        safety_ms: 40_000,
        ..cluster(14)
    };
    holds(&knobs, &vec![(3000, Fault::Pause(1, 30_000))]);
}

/// The full node refuses; clients that ask another one are served.
#[test]
fn c1_15_full_disk() {
    let report = holds(&cluster(15), &vec![(2000, Fault::DiskFull(3, 6000))]);
    assert!(
        report.stats.failed * 20 < report.stats.operations,
        "{:?}",
        report.stats
    );
}

#[test]
fn c1_16_flipped_bits() {
    let plan = (0..25)
        .map(|round| {
            (
                500 + 350 * round,
                Fault::Corrupt(round as usize % 5, round * 7919),
            )
        })
        .collect();
    let report = holds(
        &Knobs {
            strict: true,
            ..cluster(16)
        },
        &plan,
    );
    assert!(report.stats.refetched > 5, "{:?}", report.stats);
}

#[test]
fn c1_17_failed_sync() {
    let plan = (0..8)
        .map(|round| (1000 + 1000 * round, Fault::FailSync(round as usize % 5, 200)))
        .collect();
    holds(&cluster(17), &plan);
}

/// Row 16, metamorphic: wall clocks order nothing here, so wrong ones change nothing.
#[test]
fn c1_22_clocks() {
    let faults: Plan = vec![(3000, Fault::Kill(2, 2000)), (6000, Fault::Split(0b00101, 1500))];
    let mut skewed = faults.clone();
    let mut straight = faults;
    let steps = [
        (600, 0, 3_600_000),
        (600, 1, -315_576_000_000),
        (4000, 4, 10_000),
        (5000, 4, -20_000),
    ];
    skewed.extend(steps.map(|(at_ms, node, by_ms)| (at_ms, Fault::ClockStep(node, by_ms))));
    straight.extend(steps.map(|(at_ms, node, _)| (at_ms, Fault::ClockStep(node, 0))));
    let knobs = cluster(22);
    let (good, wrong) = (holds(&knobs, &straight), holds(&knobs, &skewed));
    // The chain alone differs: trees hash the stamps, too.
    assert_eq!(
        (good.stats, good.events, good.simulated_ms),
        (wrong.stats, wrong.events, wrong.simulated_ms)
    );
}

/// A removed member comes back with its old ring, old data and hints for everybody, among them values that were deleted
/// and reaped meanwhile.
#[test]
fn c1_23_ghost() {
    let knobs = Knobs {
        mix: Mix {
            cart: 0,
            register: 2,
            delete: 4,
            blind: 0,
            read: 1,
            expiring: 0,
        },
        keys: 40,
        hot: 0,
        think_ms: 150,
        safety_ms: 20_000,
        ghost: true,
        ..cluster(23)
    };
    // At first it hears nobody, but is heard.
    let plan = vec![
        (12_000, Fault::Ghost(9000)),
        (12_001, Fault::OneWay(5, false, 2000)),
    ];
    let report = holds(&knobs, &plan);
    assert!(report.stats.reaped > 3, "{:?}", report.stats);
    let mistaken = Knobs {
        mistake: Some(Mistake::GhostAdmitted),
        ..knobs
    };
    let report = run(&mistaken, &plan, Options::default());
    let rules: BTreeSet<&str> = report.violations.iter().map(|one| one.invariant).collect();
    assert_eq!(rules, BTreeSet::from(["I7"]), "{:?}", report.violations);
}

/// Addresses are used again: by two members that swap theirs, and by another cluster's node, which even writes.
#[test]
fn c1_24_addresses_are_used_again() {
    let plan = vec![
        (1000, Fault::Swap(0, 1, 2000)),
        (3500, Fault::Stranger(2, 2000)),
        (5000, Fault::Swap(3, 4, 1000)),
        (6000, Fault::Kill(1, 500)),
    ];
    let report = holds(&cluster(24), &plan);
    assert!(
        report.stats.refused > 20 && report.stats.sloppy > 0,
        "{:?}",
        report.stats
    );
    let mistaken = Knobs {
        mistake: Some(Mistake::AddressIsIdentity),
        ..cluster(24)
    };
    assert_ne!(run(&mistaken, &plan, Options::default()).violations, []);
}

/// Siblings of a hot key are bounded for clients that only add; merging is never refused.
#[test]
fn c1_25_hot_key_of_blind_writers() {
    let mix = Mix {
        cart: 0,
        register: 1,
        delete: 0,
        blind: 40,
        read: 1,
        expiring: 0,
    };
    let knobs = Knobs {
        mix,
        clients: 60,
        keys: 4,
        hot: 985,
        think_ms: 20,
        ..cluster(25)
    };
    let report = run(
        &knobs,
        &vec![(2000, Fault::Split(0b00011, 2000))],
        Options::default(),
    );
    assert_eq!(report.violations, []);
    assert!(report.stats.capped > 0, "nothing was refused: {:?}", report.stats);
    assert_eq!(
        report.stats.capped_keys, 1,
        "others are not affected: {:?}",
        report.stats
    );
    assert!(report.stats.siblings_max <= 3 * 100, "{:?}", report.stats);
}

/// Row 3: however replicas are away and hints come back, a record never holds more siblings than there are clients that
/// read before they write.
#[test]
fn row_3_siblings_are_no_more_than_writers() {
    for clients in 2..9 {
        let knobs = Knobs {
            strict: true,
            avoid: Some(0),
            clients,
            keys: 2,
            hot: 0,
            mix: Mix {
                cart: 3,
                register: 2,
                delete: 0,
                blind: 0,
                read: 1,
                expiring: 0,
            },
            ..cluster(clients as u64)
        };
        let plan = (0..9)
            .map(|round| (800 + 1000 * round, Fault::Power(0, 500)))
            .collect();
        let report = holds(&knobs, &plan);
        let stats = report.stats;
        assert!(stats.hints_delivered > 0, "{stats:?}");
        assert!((2..=clients as u64).contains(&stats.siblings_max), "{stats:?}");
    }
}

/// Row 17: one of five nodes is slow, by its network or its disk, or stands still. Clients ask other primaries, as the
/// client library does.
#[test]
fn row_17_a_slow_node_does_not_move_the_tail() {
    let slow: [Plan; 3] = [
        vec![(500, Fault::SlowLink(0, 200, 19_000))],
        vec![(500, Fault::SlowDisk(0, 50, 19_000))],
        (0..3)
            .map(|round| (500 + 6000 * round, Fault::Pause(0, 5000)))
            .collect(),
    ];
    for seed in 1..6 {
        let knobs = Knobs {
            avoid: Some(0),
            hot: 0,
            safety_ms: 20_000,
            ..cluster(seed)
        };
        let p99_us = |plan: &Plan| {
            let until_ms = Some(knobs.safety_ms);
            let report = run(&knobs, plan, Options { sink: None, until_ms });
            assert!(report.put_us.len() > 1000, "{:?}", report.stats);
            report.put_p99_us()
        };
        let healthy_us = p99_us(&Plan::new());
        for plan in &slow {
            let slow_us = p99_us(plan);
            assert!(
                slow_us * 2 <= healthy_us * 3,
                "seed {seed}: {slow_us} us, healthy {healthy_us} us, with {plan:?}"
            );
            holds(&knobs, plan);
        }
    }
}
