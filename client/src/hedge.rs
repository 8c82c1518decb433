//! When a read gets a second node beside the one that keeps it waiting. Paper: §6.2 and §4.8.3, the slowest of the nodes asked
//! decides the 99.9th percentile, and a slow node is not a dead one: it is not put aside for being slow.
//!
//! A node that coordinates a read asks another replica by itself when one is late; what one slow node can hold up is the reads that
//! it coordinates itself. How late a replica is that this client reads from is known in the same way.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::nodes::Node;

/// The answers by which it is known how long a node usually takes.
const SAMPLES: usize = 64;
/// With fewer than these nothing is usual yet.
const SAMPLES_MIN: usize = 16;
/// No second node is asked before: below, timers and schedulers decide more than nodes.
const DELAY_MIN: Duration = Duration::from_millis(1);
/// Hedges that can be saved up for a bad moment: a third of what 7,000 reads a second begin while one of three nodes stands still
/// for 100 ms. More would help an overloaded cluster less than it costs.
pub(crate) const HEDGES_SAVED_MAX: u32 = 256;
/// What one additional request costs; every operation earns the budget's percentage of it.
const COST: u32 = 100;

/// How long one node took for its last reads.
#[derive(Debug)]
pub(crate) struct Latencies(Mutex<Samples>);

#[derive(Debug)]
struct Samples {
    /// In microseconds; the one after the last is overwritten next.
    us: [u32; SAMPLES],
    taken: usize,
}

impl Default for Latencies {
    fn default() -> Self {
        Self(Mutex::new(Samples {
            us: [0; SAMPLES],
            taken: 0,
        }))
    }
}

/// Additional requests may be made for so many of a hundred operations.
#[derive(Debug)]
pub(crate) struct Budget {
    percent: u32,
    saved_max: u32,
    saved: AtomicU32,
}

/// Takes the time of one read at one node, also of one that is given up because another node was faster: then the node
/// would have taken at least as long.
pub(crate) struct Stopwatch<'a> {
    node: &'a Node,
    started: Instant,
    at_most_usual: bool,
}

impl Latencies {
    fn add(&self, took: Duration) {
        let us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let mut samples = self.0.lock();
        let next = samples.taken % SAMPLES;
        samples.us[next] = us;
        samples.taken += 1;
    }

    /// See [`Stopwatch::at_most_usual`].
    fn add_at_most_usual(&self, took: Duration) {
        self.add(self.hedge_after().map_or(took, |usual| took.min(usual)));
    }

    /// What the node has exceeded in one of twenty reads: after this time a second node may be asked.
    pub(crate) fn hedge_after(&self) -> Option<Duration> {
        let (mut us, taken) = {
            let samples = self.0.lock();
            (samples.us, samples.taken)
        };
        if taken < SAMPLES_MIN {
            return None;
        }
        let us = &mut us[..taken.min(SAMPLES)];
        let rank = us.len() * 19 / 20;
        let (_, p95, _) = us.select_nth_unstable(rank);
        Some(Duration::from_micros(u64::from(*p95)).max(DELAY_MIN))
    }
}

impl Budget {
    /// Nothing is saved yet.
    pub(crate) fn new(percent: u32, saved_max: u32) -> Self {
        Self {
            percent,
            saved_max,
            saved: AtomicU32::new(0),
        }
    }

    /// As much is saved as can be.
    pub(crate) fn full(self) -> Self {
        self.saved.store(self.saved_max * COST, Ordering::Relaxed);
        self
    }

    /// An operation is begun.
    pub(crate) fn earn(&self) {
        let most = self.saved_max * COST;
        let more = |saved: u32| Some(saved.saturating_add(self.percent).min(most));
        let _ = self
            .saved
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// Whether one more request may be made now.
    pub(crate) fn spend(&self) -> bool {
        self.saved
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |saved| {
                saved.checked_sub(COST)
            })
            .is_ok()
    }
}

impl<'a> Stopwatch<'a> {
    pub(crate) fn start(node: &'a Node) -> Self {
        Self {
            node,
            started: Instant::now(),
            at_most_usual: false,
        }
    }

    /// A read that is given up counts as no more than what is usual. Else the second node, which it is given up for, would be asked
    /// later and later while the first one stands still.
    pub(crate) fn at_most_usual(mut self) -> Self {
        self.at_most_usual = true;
        self
    }

    /// The node has answered, or has not in time.
    pub(crate) fn stop(self) {
        self.node.latencies.add(self.started.elapsed());
        self.forget();
    }

    /// The node could not be asked, which tells nothing of its speed.
    pub(crate) fn forget(self) {
        std::mem::forget(self);
    }
}

impl Drop for Stopwatch<'_> {
    fn drop(&mut self) {
        let (latencies, took) = (&self.node.latencies, self.started.elapsed());
        if self.at_most_usual {
            latencies.add_at_most_usual(took);
        } else {
            latencies.add(took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_stands_still_is_not_waited_for_longer_and_longer() {
        let latencies = Latencies::default();
        for _ in 0..SAMPLES {
            latencies.add(Duration::from_millis(2));
        }
        for _ in 0..SAMPLES {
            let waited = latencies.hedge_after().unwrap() + Duration::from_millis(1);
            latencies.add_at_most_usual(waited);
        }
        assert_eq!(latencies.hedge_after(), Some(Duration::from_millis(2)));
        // Who answers late is slow, and is given the time.
        for _ in 0..SAMPLES {
            latencies.add(Duration::from_millis(50));
        }
        assert_eq!(latencies.hedge_after(), Some(Duration::from_millis(50)));
    }

    #[test]
    fn the_95th_percentile_of_the_last_reads_is_what_is_usual() {
        let latencies = Latencies::default();
        for ms in 1..SAMPLES_MIN as u64 {
            latencies.add(Duration::from_millis(ms));
            assert_eq!(latencies.hedge_after(), None);
        }
        for _ in 0..SAMPLES {
            latencies.add(Duration::from_millis(500));
        }
        for ms in 1..=SAMPLES as u64 {
            latencies.add(Duration::from_millis(ms));
        }
        assert_eq!(latencies.hedge_after(), Some(Duration::from_millis(61)));
        for _ in 0..SAMPLES {
            latencies.add(Duration::from_micros(20));
        }
        assert_eq!(latencies.hedge_after(), Some(DELAY_MIN));
    }

    #[test]
    fn the_budget_is_a_share_of_the_reads_and_little_of_it_is_saved() {
        let budget = Budget::new(5, 10);
        let mut spent = 0;
        for _ in 0..1000 {
            budget.earn();
            spent += u32::from(budget.spend());
        }
        assert_eq!(spent, 50);
        for _ in 0..1000 {
            budget.earn();
        }
        assert_eq!((0..100).filter(|_| budget.spend()).count(), 10);
        let full = Budget::new(5, 10).full();
        assert_eq!((0..100).filter(|_| full.spend()).count(), 10);
        let none = Budget::new(0, 10);
        none.earn();
        assert!(!none.spend());
    }
}
