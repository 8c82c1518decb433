//! What many runs came to: the evidence, in a few lines.

use std::collections::BTreeMap;
use std::fmt;

use crate::shared::Stats;
use crate::world::Report;

/// The sums of many runs.
#[derive(Clone, Default, Debug)]
pub struct Totals {
    /// Runs.
    pub seeds: u64,
    /// Of these, runs that broke a rule; by the first rule.
    pub broken: BTreeMap<&'static str, u64>,
    /// Runs in which no fault took effect.
    pub without_faults: u64,
    /// Counts of all runs; of the two maxima the largest.
    pub stats: Stats,
    /// Events.
    pub events: u64,
    /// Simulated milliseconds.
    pub simulated_ms: u64,
}

impl Totals {
    /// Adds a run.
    pub fn add(&mut self, report: &Report) {
        let Stats {
            operations,
            acked,
            faults,
            spared,
            hints_kept,
            reaped,
            quiet_after_ms,
            siblings_max,
            incarnations,
            amnesias,
            excused_reads,
            proposed,
            changes_of_mind,
            not_proposed,
            transitions,
            pulled,
            released,
            left,
            fenced,
            dead,
            forfeited,
            dead_acks,
            left_out,
            hedged,
            ..
        } = report.stats;
        self.seeds += 1;
        if let Some(first) = report.violations.first() {
            *self.broken.entry(first.invariant).or_default() += 1;
        }
        self.without_faults += u64::from(faults == 0);
        self.stats.operations += operations;
        self.stats.acked += acked;
        self.stats.faults += faults;
        self.stats.spared += spared;
        self.stats.hints_kept += hints_kept;
        self.stats.reaped += reaped;
        self.stats.incarnations += incarnations;
        self.stats.amnesias += amnesias;
        self.stats.excused_reads += excused_reads;
        self.stats.proposed += proposed;
        self.stats.changes_of_mind += changes_of_mind;
        self.stats.not_proposed += not_proposed;
        self.stats.transitions += transitions;
        self.stats.pulled += pulled;
        self.stats.released += released;
        self.stats.left += left;
        self.stats.fenced += fenced;
        self.stats.dead += dead;
        self.stats.forfeited += forfeited;
        self.stats.dead_acks += dead_acks;
        self.stats.left_out += left_out;
        self.stats.hedged += hedged;
        self.stats.quiet_after_ms = self.stats.quiet_after_ms.max(quiet_after_ms);
        self.stats.siblings_max = self.stats.siblings_max.max(siblings_max);
        self.events += report.events;
        self.simulated_ms += report.simulated_ms;
    }

    /// Runs that broke a rule.
    pub fn bad(&self) -> u64 {
        self.broken.values().sum()
    }

    fn broken(&self, rule: &str) -> u64 {
        self.broken.get(rule).copied().unwrap_or_default()
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = &self.stats;
        writeln!(
            f,
            "{} seeds, {} without a fault, {} bad {:?}; {} operations, {} writes acknowledged, {} faults ({} more spared a last copy)",
            self.seeds,
            self.without_faults,
            self.bad(),
            self.broken,
            stats.operations,
            stats.acked,
            stats.faults - stats.spared,
            stats.spared
        )?;
        writeln!(
            f,
            "seeds with: an acknowledged write lost {}, siblings that are not concurrent {}, a dot given twice {}, a reaped value back {}, \
             a stale read or no answer {}, an orphan hint {}, replicas not equal after healing {}",
            self.broken("I1"),
            self.broken("I5"),
            self.broken("I3"),
            self.broken("I7"),
            self.broken("I15"),
            self.broken("I8"),
            self.broken("I13")
        )?;
        writeln!(
            f,
            "{} rings proposed ({} of them changes of mind, {} more refused), {} transitions, {} partitions pulled, {} given away, {} members left, {} stale requests",
            stats.proposed,
            stats.changes_of_mind,
            stats.not_proposed,
            stats.transitions,
            stats.pulled,
            stats.released,
            stats.left,
            stats.fenced
        )?;
        writeln!(
            f,
            "{} members declared dead, {} acknowledged writes that only they had, {} more that they took alone when they had come back",
            stats.dead, stats.forfeited, stats.dead_acks
        )?;
        write!(
            f,
            "{} incarnations, {} times a disk forgot something, {} hints kept, {} records reaped, at most {} siblings; \
             equal after {} ms at the latest; {} stale reads of stores put back that had nobody to ask; \
             {} primaries that gets did not ask, {} gets that asked them late",
            stats.incarnations,
            stats.amnesias,
            stats.hints_kept,
            stats.reaped,
            stats.siblings_max,
            stats.quiet_after_ms,
            stats.excused_reads,
            stats.left_out,
            stats.hedged
        )
    }
}
