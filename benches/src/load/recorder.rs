//! What operations took, and whether a run was driven well enough to count.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::workload::{Operation, Outcome};

/// Longest latency that is told apart.
const LONGEST: Duration = Duration::from_mins(1);
/// Digits that are kept.
const DIGITS: u8 = 3;
/// Operations that were sent later than this at the 99th percentile measure the load tool and its machine.
const SLIP_P99_MAX: Duration = Duration::from_millis(2);
/// A 99.9th percentile of fewer samples is an anecdote.
const P999_SAMPLES_MIN: u64 = 100_000;
/// Different failures that are told apart.
const FAILURES_TOLD: usize = 8;
/// Percentiles of a plot.
const PLOTTED: [f64; 14] = [
    0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 99.999, 100.0,
];

/// Counts of one task, or of all.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    pub(crate) reads: Histogram<u64>,
    pub(crate) writes: Histogram<u64>,
    /// How much later than due operations were sent; empty in a closed loop.
    pub(crate) slip: Histogram<u64>,
    pub(crate) missing: u64,
    pub(crate) failures: BTreeMap<String, u64>,
}

/// A histogram's figures, in microseconds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Latency {
    pub(crate) samples: u64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
    /// Whether there are enough samples for the 99.9th percentile.
    pub(crate) p999_counts: bool,
    /// Percentile and microseconds, for plots.
    pub(crate) curve: Vec<(f64, f64)>,
}

impl Default for Recorder {
    fn default() -> Self {
        let histogram = || {
            let mut histogram = Histogram::new(DIGITS).unwrap_or_else(|_| unreachable_digits());
            histogram.auto(true);
            histogram
        };
        Self {
            reads: histogram(),
            writes: histogram(),
            slip: histogram(),
            missing: 0,
            failures: BTreeMap::new(),
        }
    }
}

impl Recorder {
    pub(crate) fn record(&mut self, operation: Operation, took: Duration, result: &anyhow::Result<Outcome>) {
        match result {
            Ok(outcome) => {
                self.missing += u64::from(*outcome == Outcome::Missing);
                let histogram = match operation {
                    Operation::Read(_) => &mut self.reads,
                    _ => &mut self.writes,
                };
                note(histogram, took);
            }
            Err(error) => self.fail(format!("{error:#}")),
        }
    }

    pub(crate) fn slipped(&mut self, by: Duration) {
        note(&mut self.slip, by);
    }

    pub(crate) fn fail(&mut self, failure: String) {
        let told = self.failures.len() < FAILURES_TOLD || self.failures.contains_key(&failure);
        let failure = if told { failure } else { "others".to_owned() };
        *self.failures.entry(failure).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, others) in [
            (&mut self.reads, &other.reads),
            (&mut self.writes, &other.writes),
            (&mut self.slip, &other.slip),
        ] {
            // Both grow as they must, so that no value is outside.
            let _ = mine.add(others);
        }
        self.missing += other.missing;
        for (failure, count) in &other.failures {
            *self.failures.entry(failure.clone()).or_default() += count;
        }
    }

    pub(crate) fn done(&self) -> u64 {
        self.reads.len() + self.writes.len()
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Reads and writes together.
    pub(crate) fn latency(&self) -> Option<Latency> {
        let mut all = self.reads.clone();
        let _ = all.add(&self.writes);
        latency(&all)
    }

    /// Why the run does not count, if so.
    pub(crate) fn void(&self) -> Option<String> {
        let slip = Duration::from_nanos(self.slip.value_at_quantile(0.99));
        if slip > SLIP_P99_MAX {
            return Some(format!(
                "1 % of the operations were sent more than {:.1} ms late (at most {} ms may be): this machine cannot drive \
                 such a rate",
                slip.as_secs_f64() * 1e3,
                SLIP_P99_MAX.as_millis()
            ));
        }
        let (done, failed) = (self.done(), self.failed());
        if done == 0 {
            return Some(format!("no operation succeeded, {failed} failed"));
        }
        // Failures are cheap for servers; a run with many would flatter them.
        (failed * 1000 > done).then(|| format!("{failed} of {} operations failed", done + failed))
    }
}

/// None without samples.
pub(crate) fn latency(histogram: &Histogram<u64>) -> Option<Latency> {
    if histogram.is_empty() {
        return None;
    }
    let at = |percentile: f64| histogram.value_at_percentile(percentile) as f64 / 1e3;
    Some(Latency {
        samples: histogram.len(),
        mean_us: histogram.mean() / 1e3,
        p50_us: at(50.0),
        p90_us: at(90.0),
        p99_us: at(99.0),
        p999_us: at(99.9),
        max_us: histogram.max() as f64 / 1e3,
        p999_counts: histogram.len() >= P999_SAMPLES_MIN,
        curve: PLOTTED.map(|percentile| (percentile, at(percentile))).to_vec(),
    })
}

/// What is longer than the longest counts as that, so that every histogram can grow to hold it.
fn note(histogram: &mut Histogram<u64>, duration: Duration) {
    let _ = histogram.record(duration.min(LONGEST).as_nanos() as u64);
}

fn unreachable_digits() -> Histogram<u64> {
    unreachable!("3 digits are between 0 and 5")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(latencies_us: impl IntoIterator<Item = u64>) -> Recorder {
        let mut recorder = Recorder::default();
        for us in latencies_us {
            recorder.record(Operation::Read(0), Duration::from_micros(us), &Ok(Outcome::Done));
        }
        recorder
    }

    #[test]
    fn percentiles_keep_three_digits() {
        let latency = recorded(1..=10_000).latency().unwrap();
        let expected = [
            (latency.p50_us, 5_000.0),
            (latency.p90_us, 9_000.0),
            (latency.p99_us, 9_900.0),
            (latency.p999_us, 9_990.0),
            (latency.max_us, 10_000.0),
            (latency.mean_us, 5_000.5),
        ];
        for (found, expected) in expected {
            assert!((found / expected - 1.0).abs() < 1e-3, "{found} for {expected}");
        }
        assert!(!latency.p999_counts, "10,000 samples are too few");
        assert!(recorded([]).latency().is_none());
    }

    #[test]
    fn a_run_with_a_large_slip_is_void() {
        let slipped = |late_of_a_thousand: u64, late: Duration| {
            let mut recorder = recorded([100]);
            for number in 0..1000 {
                recorder.slipped(if number < late_of_a_thousand {
                    late
                } else {
                    Duration::from_micros(80)
                });
            }
            recorder.void()
        };
        assert_eq!(slipped(9, Duration::from_millis(50)), None);
        assert_eq!(slipped(1000, Duration::from_micros(1900)), None);
        let reason = slipped(20, Duration::from_millis(50)).unwrap();
        assert!(reason.contains("50.0 ms late"), "{reason}");
    }

    #[test]
    fn a_run_with_failures_is_void() {
        let mut recorder = recorded(std::iter::repeat_n(100, 5000));
        for _ in 0..5 {
            recorder.fail("refused".to_owned());
        }
        assert_eq!(recorder.void(), None);
        recorder.fail("timed out".to_owned());
        assert_eq!(recorder.void().unwrap(), "6 of 5006 operations failed");
        assert_eq!(recorder.failures["refused"], 5);
        assert!(recorded([]).void().is_some());
    }

    #[test]
    fn failures_of_many_kinds_are_told_together() {
        let mut recorder = Recorder::default();
        for number in 0..100 {
            recorder.fail(format!("failure {number}"));
        }
        assert_eq!(recorder.failures.len(), FAILURES_TOLD + 1);
        assert_eq!(recorder.failures["others"], 100 - FAILURES_TOLD as u64);
    }

    #[test]
    fn tasks_add_up() {
        let mut all = recorded([10, 20]);
        let mut other = recorded([30]);
        other.record(Operation::Write(0), Duration::from_micros(40), &Ok(Outcome::Done));
        other.record(
            Operation::Read(0),
            Duration::from_micros(50),
            &Ok(Outcome::Missing),
        );
        all.add(&other);
        assert_eq!((all.done(), all.reads.len(), all.missing), (5, 4, 1));
        assert!((all.latency().unwrap().max_us - 50.0).abs() < 0.1);
    }
}
