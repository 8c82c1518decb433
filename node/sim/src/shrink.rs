//! Makes a failing plan short: takes faults away, by halves and then one by one, as long as the run still fails.

use crate::knobs::Knobs;
use crate::nemesis::Plan;
use crate::world::{Options, run};

/// Runs that one search makes at most.
pub const RUNS_MAX: usize = 200;

/// The shortest plan found that breaks the same rule, and how many runs that took.
pub fn shrink(knobs: &Knobs, plan: &Plan, invariant: &str) -> (Plan, usize) {
    let mut best = plan.clone();
    let mut runs = 0;
    let mut size = best.len().div_ceil(2).max(1);
    loop {
        let mut start = 0;
        let mut shorter = false;
        while start < best.len() && runs < RUNS_MAX {
            let mut candidate = best.clone();
            candidate.drain(start..(start + size).min(best.len()));
            runs += 1;
            if fails(knobs, &candidate, invariant) {
                best = candidate;
                shorter = true;
            } else {
                start += size;
            }
        }
        if runs >= RUNS_MAX || (size == 1 && !shorter) {
            return (best, runs);
        }
        size = size.div_ceil(2).max(1);
    }
}

fn fails(knobs: &Knobs, plan: &Plan, invariant: &str) -> bool {
    let report = run(knobs, plan, Options::default());
    report
        .violations
        .iter()
        .any(|violation| violation.invariant == invariant)
}
