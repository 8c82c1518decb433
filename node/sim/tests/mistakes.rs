//! The mutation check: each classic mistake of the shell, made on purpose, is caught by some seed of the fixed set.
//!
//! The number beside a mistake is the seed that caught it last; it is tried first, the others after it.

use dynamo_sim::knobs::{Durability, Mix};
use dynamo_sim::nemesis::{Fault, plan};
use dynamo_sim::{Knobs, Mistake, Options, run};

fn caught(mistake: Mistake, first: u64, by: &[&str]) {
    let catches = |seed: u64| {
        let knobs = Knobs {
            mistake: Some(mistake),
            ..Knobs::of_seed(seed)
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
    ($($name:ident: $mistake:ident, $seed:literal, $by:expr;)*) => {
        $(#[test]
        fn $name() {
            caught(Mistake::$mistake, $seed, &$by);
        })*

        /// No mistake is left out.
        #[test]
        fn every_mistake_has_its_test() {
            let tested = [$(Mistake::$mistake,)* Mistake::ReapWithoutAskingAbsent];
            for mistake in Mistake::ALL {
                assert!(tested.contains(&mistake), "{mistake:?} has no test");
            }
        }
    };
}

mistakes! {
    reply_with_merged_context: MergedContextReply, 1, ["I4"];
    ack_before_sync: AckBeforeSync, 1, ["I6", "I1"];
    hint_counted_twice: HintCountedTwice, 14, ["I6", "I1"];
    hints_forgotten_after_restart: ForgetHintsOnRestart, 1, ["I1"];
    hint_deleted_before_the_durable_word: HintDeletedEarly, 141, ["I1"];
    anti_entropy_pushing_one_way_only: OneWayExchange, 50, ["I13"];
    same_incarnation_after_volume_loss: SameIncarnationAfterLoss, 9, ["I3", "I1", "I15"];
    emptied_member_counted_in_a_read_quorum: EmptiedCountsInReads, 9, ["I15"];
    reaping_by_time_only: ReapByTimeOnly, 13, ["I7"];
    read_error_answered_as_absent: ReadErrorIsAbsent, 4, ["I1", "I15", "I3", "I13"];
    retry_without_its_operation_id: ForgetOpIds, 2, ["I5"];
    going_on_after_a_failed_sync: IgnoreFailedSync, 18, ["I6", "I1"];
    overwriting_instead_of_merging: OverwriteInsteadOfMerge, 1, ["I1", "I15"];
    empty_fallback_counted_as_a_primary: EmptyFallbackIsPrimary, 2, ["I15"];
    unclean_stop_keeps_the_incarnation: UncleanStopKeepsIncarnation, 6, ["I3", "I2"];
}

/// A member with a hint is away until everybody else has deleted the value and reaped the tombstone.
#[test]
fn reaping_without_asking_absent_members() {
    let knobs = |seed: u64, mistake: Option<Mistake>| Knobs {
        nodes: 5,
        zones: 3,
        n: 3,
        r: 2,
        w: 2,
        strict: false,
        partitions: 8,
        durability: Durability::Every,
        mix: Mix {
            cart: 0,
            register: 2,
            delete: 4,
            blind: 0,
            read: 1,
            expiring: 0,
        },
        keys: 30,
        hot: 0,
        clients: 6,
        think_ms: 100,
        timeout_ms: 1000,
        call_timeout_ms: 300,
        grace_ms: 2500,
        safety_ms: 20_000,
        hints_max: 10_000,
        mistake,
        ..Knobs::of_seed(seed)
    };
    // n3 stands in for n0, in its zone; it goes before n0 is back.
    let plan = vec![(2000, Fault::Kill(0, 1500)), (3400, Fault::Kill(3, 14_000))];
    let mistake = Some(Mistake::ReapWithoutAskingAbsent);
    let back = |seed: u64, mistake| {
        let report = run(&knobs(seed, mistake), &plan, Options::default());
        report
            .violations
            .iter()
            .any(|violation| ["I5", "I7"].contains(&violation.invariant))
    };
    let seed = (1..60).find(|seed| back(*seed, mistake));
    assert!(seed.is_some_and(|seed| !back(seed, None)), "seed {seed:?}");
}
