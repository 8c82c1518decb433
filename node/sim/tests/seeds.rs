//! The fixed set of seeds, that a seed is a reproduction, and the seeds by which bugs were found.

use dynamo_sim::invariants::i14_a_seed_is_a_reproduction;
use dynamo_sim::nemesis::{Fault, Plan, plan};
use dynamo_sim::shrink::{RUNS_MAX, shrink};
use dynamo_sim::totals::Totals;
use dynamo_sim::{Knobs, Mistake, Options, Report, run};

fn of_seed(seed: u64) -> Report {
    let knobs = Knobs::of_seed(seed);
    run(&knobs, &plan(&knobs), Options::default())
}

/// Runs each seed twice: both runs must be the same (row 20), and hold what is promised.
fn all_hold(seeds: std::ops::Range<u64>) {
    let mut totals = Totals::default();
    for seed in seeds {
        let report = of_seed(seed);
        assert_eq!(
            report.violations,
            [],
            "seed {seed}: cargo run --release -p dynamo-sim -- --seed {seed}"
        );
        assert_eq!(of_seed(seed), report, "seed {seed} is no reproduction");
        totals.add(&report);
    }
    println!("{totals}");
    let stats = totals.stats;
    assert_eq!(totals.without_faults, 0);
    assert!(stats.acked > 80_000, "{totals}");
    // Row 4: enough lives to give a dot twice, and enough occasions.
    assert!(stats.incarnations > 2500 && stats.amnesias > 250, "{totals}");
    // Rows 7 and 8: all converge, without a hint left (I8, I13), and soon.
    assert!(
        stats.hints_kept > 5000 && stats.quiet_after_ms <= 60_000,
        "{totals}"
    );
}

/// Rows 1 to 8 and 20 of the reliability table, X: nothing lost, nothing invented, all equal in the end, whatever fails.
#[test]
fn fixed_seeds_first_half() {
    all_hold(1..241);
}

/// See above.
#[test]
fn fixed_seeds_second_half() {
    all_hold(241..481);
}

/// Walks in which members died and something else failed: a damaged record waited for the dead (40571, shell), new holders did not ask
/// those of superseded rings (40474, 41286: core), a disk put back counted as a copy (40350), what only the dead had was owed again
/// (30275, 40829), or by a ring that was retired (41398), what was about to be erased was found anew (41795: simulator), who had what a
/// ring's dead were to hold left on the word of that ring (50560, 70703, 70894), and gave its strays to a dead one that was back
/// (81018: core).
const DEAD: [u64; 12] = [
    30_275, 40_350, 40_474, 40_571, 40_829, 41_286, 41_398, 41_795, 50_560, 70_703, 70_894, 81_018,
];

/// Row 14: members change in each of these, under load and faults, and in half of them some are declared dead (7, 12 and 40 found
/// faults of that, 109 one of stores that were set aside: core and shell); the last seed found a node that was paired with two primaries,
/// by two rings, and counted for one of them only (core).
#[test]
fn walks() {
    let mut totals = Totals::default();
    for seed in (1..41).chain([109, 15_177]).chain(DEAD) {
        let knobs = Knobs::walk_of_seed(seed);
        let report = run(&knobs, &plan(&knobs), Options::default());
        let again = run(&knobs, &plan(&knobs), Options::default());
        assert_eq!(report.violations, [], "seed {seed}: --walk --seed {seed}");
        assert_eq!(again, report, "seed {seed} is no reproduction");
        totals.add(&report);
    }
    println!("{totals}");
    let stats = totals.stats;
    assert!(
        stats.transitions > 50 && stats.changes_of_mind > 50 && stats.released > 100,
        "{totals}"
    );
}

/// Row 20 (I14): a run whose trace is written is the same run.
#[test]
fn a_traced_run_is_the_same() {
    for seed in 1..21 {
        let knobs = Knobs::of_seed(seed);
        let sink: Box<dyn FnMut(&str)> = Box::new(|line| assert!(!line.is_empty()));
        let options = Options {
            sink: Some(sink),
            until_ms: None,
        };
        let traced = run(&knobs, &plan(&knobs), options);
        assert_eq!(
            i14_a_seed_is_a_reproduction::check(&of_seed(seed), &traced),
            Ok(()),
            "seed {seed}"
        );
    }
}

/// Row 20: a debug build, which is made here, does what this build does.
#[test]
fn a_debug_build_gives_the_same_chains() {
    for seed in [3, 14, 29] {
        let output = std::process::Command::new(env!("CARGO"))
            .args(["run", "--quiet", "--offline", "--config", "profile.dev.debug=0"])
            .args(["-p", "dynamo-sim", "--", "--seed", &seed.to_string()])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let chain = format!("chain {:016x},", of_seed(seed).chain);
        assert!(
            said.contains(&chain),
            "seed {seed}, here {chain} there {said} {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// Row 20: a plan that fails is made shorter, and fails still.
#[test]
fn a_failing_plan_is_made_shorter() {
    let knobs = Knobs {
        mistake: Some(Mistake::ForgetHintsOnRestart),
        ..Knobs::of_seed(1)
    };
    let whole = plan(&knobs);
    let (short, runs) = shrink(&knobs, &whole, "I1");
    assert!(short.len() < whole.len() && runs <= RUNS_MAX, "{short:?}");
    let report = run(&knobs, &short, Options::default());
    assert!(
        report
            .violations
            .iter()
            .any(|violation| violation.invariant == "I1")
    );
}

/// Row 16, metamorphic: clocks that are ten years off, step, or stand still change nothing but the stamps. Expiry and the
/// last write, which are matters of wall clocks, are left out.
#[test]
fn wrong_wall_clocks_change_nothing() {
    for seed in 1..41 {
        let mut knobs = Knobs::plain(seed);
        knobs.mix.expiring = 0;
        let steps = |factor: i64| {
            let ten_years = (0..knobs.nodes).map(|node| {
                (
                    100,
                    Fault::ClockStep(node, [315_576_000_000, -315_576_000_000][node % 2] * factor),
                )
            });
            let stands_still = (1..40).map(|tick| (250 * tick, Fault::ClockStep(0, -250 * factor)));
            let rest = plan(&knobs).into_iter().map(|(at_ms, fault)| match fault {
                Fault::ClockStep(node, by_ms) => (at_ms, Fault::ClockStep(node, by_ms * factor)),
                other => (at_ms, other),
            });
            ten_years.chain(stands_still).chain(rest).collect::<Plan>()
        };
        let (right, wrong) = (steps(0), steps(1));
        let outcome = |plan: &Plan| {
            let report = run(&knobs, plan, Options::default());
            assert_eq!(report.violations, [], "seed {seed}");
            // The chain differs: trees hash the stamps, too.
            (report.stats, report.events, report.put_us, report.standing)
        };
        assert_eq!(outcome(&right), outcome(&wrong), "seed {seed}");
    }
}

/// Seeds differ, so that the test above compares something.
#[test]
fn seeds_are_different_runs() {
    let chains: std::collections::BTreeSet<u64> = (1..41).map(|seed| of_seed(seed).chain).collect();
    assert_eq!(chains.len(), 40);
}

/// What was found by these seeds, in the order of finding. The code has changed since, and with it what the seeds do;
/// they stay as a small set that has been hard once.
const FOUND: [(u64, &str); 20] = [
    (
        439,
        "simulator: a damaged record was the only copy of a write whose acknowledgement was on its way",
    ),
    (
        2741,
        "simulator: a hint counted as a copy while it was being deleted on the victim's word",
    ),
    (
        754,
        "core: an emptied store whose random id was the larger one was not exposed, and answered reads",
    ),
    (1898, "core: the same, with a rolled-back peer"),
    (
        1171,
        "shell: a store was set aside at every start, since the empty one remembered less than the life before",
    ),
    (
        1454,
        "shell: an emptied store that stopped before it was exposed counted as an old one afterwards",
    ),
    (
        882,
        "shell: what a rolled-back store had acknowledged before it was exposed was set aside with it",
    ),
    (
        2185,
        "shell: an emptied peer, which remembers nobody, confirmed an emptied store",
    ),
    (
        1242,
        "shell: a clean stop before the first gossip made a rolled-back store forget how old it was",
    ),
    (
        5503,
        "core: what peers remembered of a rolled-back store was pushed out by the short life that followed",
    ),
    (
        236,
        "core: where the last write wins, a clock that was a little behind hid what it had just acknowledged",
    ),
    (
        1715,
        "core: a recognised retry, where the last write wins, superseded writes that were later than its first attempt",
    ),
    (
        2662,
        "shell: an emptied peer that knew a rolled-back store by its own word alone vouched for it",
    ),
    (
        7035,
        "core: of two lives of an emptied member the true one was not remembered by those who met the other first",
    ),
    (
        7460,
        "shell: a process that stood still had waited in its sleep for its peers' word",
    ),
    (
        108_260,
        "shell: a write that a rolled-back store alone had taken, with nobody there to expose it, was set aside with it",
    ),
    (
        2352,
        "core, shell: two emptied stores vouched for each other, and a ring came without what its sender remembered",
    ),
    (
        3613,
        "simulator: a digest that lists another life of the member exposed it in the real shell alone",
    ),
    (
        703_720,
        "core: who got a ring unasked did not get the rival lives that go with it, and gave it on without them",
    ),
    (
        707_397,
        "core: a disk that was put back and started twice had a later generation than the life that it had lost",
    ),
];

#[test]
fn seeds_that_found_bugs() {
    for (seed, what) in FOUND {
        assert_eq!(of_seed(seed).violations, [], "seed {seed}, which found: {what}");
    }
}
