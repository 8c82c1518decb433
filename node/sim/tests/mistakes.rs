//! The mutation check: each classic mistake of the shell, made on purpose, is caught by some seed of the fixed set.
//!
//! The number beside a mistake is the seed that caught it last; it is tried first, the others after it. `walk_of_seed`: as
//! with `--walk`, so that the members change.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use dynamo_core::coordinator::ReadRepair;
use dynamo_sim::knobs::Mix;
use dynamo_sim::nemesis::{Fault, plan};
use dynamo_sim::{Knobs, Mistake, Options, run};
use support::{DELETES, cluster, holds};

fn caught(mistake: Mistake, of_seed: fn(u64) -> Knobs, first: u64, by: &[&str]) {
    let catches = |seed: u64| {
        let knobs = Knobs {
            mistake: Some(mistake),
            ..of_seed(seed)
        };
        let report = run(&knobs, &plan(&knobs), Options::default());
        report
            .violations
            .iter()
            .any(|violation| by.contains(&violation.invariant))
    };
    let found = std::iter::once(first).chain(1..301).find(|seed| catches(*seed));
    assert!(found.is_some(), "no seed of the fixed set notices {mistake:?}");
}

macro_rules! mistakes {
    ($($name:ident: $mistake:ident, $of_seed:ident $seed:literal, $by:expr;)*) => {
        $(#[test]
        fn $name() {
            caught(Mistake::$mistake, Knobs::$of_seed, $seed, &$by);
        })*

        /// No mistake is left out.
        #[test]
        fn every_mistake_has_its_test() {
            let scripted = [
                Mistake::ReapWithoutAskingAbsent,
                Mistake::GhostAdmitted,
                Mistake::KnownWithOldWritesInFlight,
                Mistake::SyncsBeforeAllAreKnown,
                Mistake::SupersededRingDropped,
                Mistake::WholeTooEarly,
                Mistake::ForgottenRingNotFenced,
                Mistake::ProposesAlthoughItReads,
                Mistake::WholeWhereNotListed,
                Mistake::ForgetfulVouches,
            ];
            let tested: Vec<Mistake> = [$(Mistake::$mistake,)*].into_iter().chain(scripted).collect();
            for mistake in Mistake::ALL {
                assert!(tested.contains(&mistake), "{mistake:?} has no test");
            }
        }
    };
}

mistakes! {
    reply_with_merged_context: MergedContextReply, of_seed 1, ["I4"];
    ack_before_sync: AckBeforeSync, of_seed 1, ["I6", "I1"];
    hint_counted_twice: HintCountedTwice, of_seed 14, ["I6", "I1"];
    hints_forgotten_after_restart: ForgetHintsOnRestart, of_seed 1, ["I1"];
    hint_deleted_before_the_durable_word: HintDeletedEarly, of_seed 2, ["I1", "I9"];
    anti_entropy_pushing_one_way_only: OneWayExchange, of_seed 37, ["I13"];
    same_incarnation_after_volume_loss: SameIncarnationAfterLoss, of_seed 2, ["I3", "I1", "I15"];
    emptied_member_counted_in_a_read_quorum: EmptiedCountsInReads, of_seed 2, ["I15"];
    reaping_by_time_only: ReapByTimeOnly, of_seed 41, ["I7"];
    read_error_answered_as_absent: ReadErrorIsAbsent, of_seed 16, ["I1", "I15", "I3"];
    retry_without_its_operation_id: ForgetOpIds, of_seed 10, ["I5"];
    going_on_after_a_failed_sync: IgnoreFailedSync, of_seed 25, ["I6", "I1"];
    overwriting_instead_of_merging: OverwriteInsteadOfMerge, of_seed 2, ["I1", "I15"];
    empty_fallback_counted_as_a_primary: EmptyFallbackIsPrimary, of_seed 9, ["I15"];
    plain_counters: PlainCounters, of_seed 4, ["I3", "I1", "I15"];
    merging_without_seen: IgnoreSeenInMerge, of_seed 2, ["I5"];
    addresses_taken_for_identities: AddressIsIdentity, of_seed 9, ["I2", "I6", "I1"];
    unclean_stop_keeps_the_incarnation: UncleanStopKeepsIncarnation, of_seed 4, ["I3", "I13"];
    base_left_before_all_read_from_the_next_ring: BaseLeftTooEarly, walk_of_seed 13, ["I15", "I1"];
    suspect_stores_as_sources: SuspectsAreSources, walk_of_seed 13, ["I15", "I1"];
    emptied_member_counted_while_rings_change: EmptiedCountsInReads, walk_of_seed 1, ["I15"];
    freed_partition_erased_before_its_owners_word: FreedErasedEarly, walk_of_seed 2, ["I9", "I1"];
}

/// Some seed shows the mistake under this plan, and nothing without it.
fn provoked(mistake: Mistake, first: u64, of_seed: impl Fn(u64) -> Knobs, plan: &[(u64, Fault)]) {
    let plan = plan.to_vec();
    let stale = |seed: u64, mistake: Option<Mistake>| {
        let knobs = Knobs {
            mistake,
            ..of_seed(seed)
        };
        let report = run(&knobs, &plan, Options::default());
        let mut rules = report.violations.iter().map(|violation| violation.invariant);
        rules.any(|rule| ["I1", "I15", "I18"].contains(&rule))
    };
    let shows = |seed: &u64| stale(*seed, Some(mistake)) && !stale(*seed, None);
    let seed = (first..first + 200).find(shows);
    println!("{mistake:?}: {seed:?}");
    assert!(seed.is_some(), "no seed from {first} on shows {mistake:?}");
}

/// A walk in which little is made good by chance; one answer is enough for a read, so that what one replica lacks shows.
fn bare(seed: u64) -> Knobs {
    let knobs = (0..).map(|more| Knobs::walk_of_seed(seed + 1000 * more));
    let bare = knobs.into_iter().find(|knobs| knobs.uneven && knobs.r == 1);
    Knobs {
        call_timeout_ms: 1500,
        timeout_ms: 3000,
        safety_ms: 30_000,
        ..bare.unwrap()
    }
}

/// A write is on its way to the one that is pulled from, counting the answer of the disk that is gone.
#[test]
fn whole_before_the_longest_deadline() {
    let plan: Vec<_> = (1..9)
        .map(|round| (3500 * round, Fault::EmptyDisk(0, 50)))
        .collect();
    let of_seed = |seed| Knobs {
        nodes: 3,
        outside: 0,
        ..bare(seed)
    };
    provoked(Mistake::WholeTooEarly, 3, of_seed, &plan);
}

/// A disk is put back to before a ring was proposed; its node hears no news for a while, and goes on writing.
#[test]
fn writing_without_a_ring_that_was_forgotten() {
    let mut plan = Vec::new();
    for round in 1..7 {
        let node = round as usize % 3;
        plan.push((4000 * round, Fault::Commit(3, round)));
        plan.push((4000 * round + 2500, Fault::Deafen(node, 1500)));
        plan.push((4000 * round + 2500, Fault::OldDisk(node, 3000, 100)));
    }
    provoked(Mistake::ForgottenRingNotFenced, 1, bare, &plan);
}

/// One answer is enough for a read, and nothing is made good by chance.
fn strict(seed: u64) -> Knobs {
    Knobs {
        r: 1,
        w: 3,
        strict: true,
        read_repair: ReadRepair::Off,
        anti_entropy: false,
        mix: Mix {
            cart: 0,
            register: 2,
            delete: 0,
            blind: 1,
            read: 6,
            expiring: 0,
        },
        hot: 0,
        clients: 8,
        think_ms: 20,
        ..cluster(seed)
    }
}

/// A disk is put back to before a ring listed its member, and a peer exposes it before it hears of that ring.
#[test]
fn whole_where_it_is_not_listed() {
    let plan = [
        (2000, Fault::Members(0, 0b1_1111)),
        (7000, Fault::OldDisk(4, 6000, 300)),
    ];
    let of_seed = |seed| Knobs {
        outside: 1,
        safety_ms: 12_000,
        ..strict(seed)
    };
    provoked(Mistake::WholeWhereNotListed, 1, of_seed, &plan);
}

/// Two disks are put back. All hear of the new life of the first one, which hears nothing; the other one gets its news from them, and
/// then the two are cut off together.
#[test]
fn vouching_without_a_memory() {
    let mut plan = Vec::new();
    for round in 0..4 {
        let at_ms = 4000 + 9000 * round;
        plan.push((at_ms, Fault::OldDisk(1, 1200, 300)));
        plan.push((at_ms + 100, Fault::OldDisk(2, 2600, 900)));
        plan.push((at_ms + 600, Fault::Deafen(1, 1600)));
        plan.push((at_ms + 2200, Fault::Split(0b00_0110, 2500)));
    }
    let of_seed = |seed| Knobs {
        nodes: 4,
        safety_ms: 40_000,
        ..strict(seed)
    };
    provoked(Mistake::ForgetfulVouches, 1, of_seed, &plan);
}

/// A node joins and leaves while one write in eight is long on its way: what was begun for the base alone arrives where it has been
/// pulled already, and is acknowledged there, since somebody who hears no news keeps the base from being retired.
#[test]
fn known_with_old_writes_in_flight() {
    let mut plan = Vec::new();
    for round in 0..6 {
        let (at_ms, joins) = (2000 + 4000 * round, round % 2 == 0);
        plan.push((at_ms, Fault::Members(0, 0b1_1111 | u32::from(joins) << 5)));
        plan.push((at_ms + 300, Fault::Deafen(1, 2000)));
    }
    let of_seed = |seed| Knobs {
        nodes: 6,
        outside: 1,
        uneven: true,
        partitions: 16,
        keys: 60,
        clients: 16,
        mix: Mix {
            blind: 5,
            register: 0,
            ..strict(seed).mix
        },
        call_timeout_ms: 1500,
        timeout_ms: 3000,
        safety_ms: 28_000,
        ..strict(seed)
    };
    provoked(Mistake::KnownWithOldWritesInFlight, 1, of_seed, &plan);
}

/// Somebody has not heard of the next ring and goes on writing to the base alone.
#[test]
fn syncing_before_all_are_known() {
    let mut plan = Vec::new();
    for round in 1..8 {
        plan.push((3500 * round, Fault::Commit(3, round)));
        plan.push((3500 * round, Fault::Deafen(round as usize % 3, 1500)));
    }
    provoked(Mistake::SyncsBeforeAllAreKnown, 1, bare, &plan);
}

/// Somebody who has not heard that all are synced is asked for another ring; others read from the one that is to follow.
#[test]
fn superseded_ring_dropped_at_once() {
    let mut plan = Vec::new();
    for round in 1..6 {
        let (at_ms, node) = (5000 * round, round as usize % 3);
        let deaf_ms = at_ms + 900 + 200 * round;
        plan.push((at_ms, Fault::Commit(node + 1, round)));
        plan.push((deaf_ms, Fault::Deafen(node, 1500)));
        plan.push((deaf_ms + 1501, Fault::Commit(node, round + 100)));
    }
    provoked(Mistake::SupersededRingDropped, 97, bare, &plan);
}

/// Whoever reads from the next ring is asked for another one again and again.
#[test]
fn proposing_although_it_reads() {
    let mut plan: Vec<_> = (5..140)
        .map(|tick| (200 * tick, Fault::Commit(tick as usize % 6, tick)))
        .collect();
    plan.extend((1..9).map(|round| (3000 * round, Fault::Deafen(round as usize % 6, 2000))));
    provoked(Mistake::ProposesAlthoughItReads, 91, bare, &plan);
}

/// A member with a hint is away until everybody else has deleted the value and reaped the tombstone.
#[test]
fn reaping_without_asking_absent_members() {
    let knobs = |seed: u64, mistake: Option<Mistake>| Knobs {
        mix: DELETES,
        keys: 30,
        hot: 0,
        think_ms: 100,
        safety_ms: 20_000,
        mistake,
        ..cluster(seed)
    };
    // n3 stands in for n0, in its zone; it goes before n0 is back.
    let plan = vec![(2000, Fault::Kill(0, 1500)), (3400, Fault::Kill(3, 14_000))];
    let mistake = Some(Mistake::ReapWithoutAskingAbsent);
    let back = |seed: &u64| {
        let report = run(&knobs(*seed, mistake), &plan, Options::default());
        report
            .violations
            .iter()
            .any(|violation| ["I5", "I7"].contains(&violation.invariant))
    };
    let seed = (1..60).find(back).expect("no seed shows it");
    holds(&knobs(seed, None), &plan);
}
