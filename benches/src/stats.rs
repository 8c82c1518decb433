//! From some ratios to a statement.

use serde::Serialize;

use crate::chance::Chance;

const RESAMPLES: usize = 10_000;
/// The same ratios give the same interval, always.
const SEED: u64 = 0x6b76_6265_6e63_6801;

/// A median and where it would be in 95 of 100 repetitions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Interval {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

/// Which end of an interval is the bad one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// What a figure is compared with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Bars {
    /// What it must reach.
    pub(crate) floor: Option<f64>,
    /// What it should.
    pub(crate) aim: Option<f64>,
}

/// How it compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// The aim is reached.
    Aim,
    /// The floor is reached.
    Floor,
    /// The floor is not reached.
    Miss,
    /// Nothing was to be reached.
    None,
}

/// The middle one, or the mean of both; none of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

/// The percentile bootstrap (Efron 1979) of the median; none of nothing.
pub(crate) fn bootstrap(ratios: &[f64]) -> Option<Interval> {
    let median_of_all = median(ratios)?;
    let mut chance = Chance::new(SEED);
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let drawn: Vec<f64> = (0..ratios.len())
                .map(|_| ratios[chance.below(ratios.len() as u64) as usize])
                .collect();
            median(&drawn)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    Some(Interval {
        low: medians[RESAMPLES / 40],
        median: median_of_all,
        high: medians[RESAMPLES - 1 - RESAMPLES / 40],
    })
}

impl Interval {
    /// By its bad end.
    pub(crate) fn judge(&self, better: Better, bars: Bars) -> Verdict {
        let reached = |bar: f64| match better {
            Better::Higher => self.low >= bar,
            Better::Lower => self.high <= bar,
        };
        match (bars.floor, bars.aim) {
            (None, None) => Verdict::None,
            (_, Some(aim)) if reached(aim) => Verdict::Aim,
            (Some(floor), _) if reached(floor) => Verdict::Floor,
            _ => Verdict::Miss,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn an_interval_lies_around_its_median_and_repeats() {
        let ratios = [3.9, 4.1, 4.0, 4.3, 3.7];
        let interval = bootstrap(&ratios).unwrap();
        assert_eq!(Some(interval), bootstrap(&ratios));
        assert!((interval.median - 4.0).abs() < 1e-9);
        // Of five, the interval of the median reaches to the outermost ones: (3 of 5 draws are the smallest) is 5.8 %.
        assert!(
            (interval.low - 3.7).abs() < 1e-9 && (interval.high - 4.3).abs() < 1e-9,
            "{interval:?}"
        );
        assert_eq!(bootstrap(&[]), None);
    }

    /// Its coverage, with known truth: medians of 15 draws of a uniform distribution around 10.
    #[test]
    fn an_interval_holds_the_truth_as_often_as_it_says() {
        let mut chance = Chance::new(5);
        let held = (0..200).filter(|_| {
            let drawn: Vec<f64> = (0..15).map(|_| 9.0 + 2.0 * chance.unit()).collect();
            bootstrap(&drawn).is_some_and(|interval| interval.low <= 10.0 && 10.0 <= interval.high)
        });
        let held = held.count();
        assert!((180..=200).contains(&held), "{held} of 200");
    }

    #[test]
    fn a_verdict_looks_at_the_bad_end() {
        let interval = Interval {
            low: 2.9,
            median: 4.0,
            high: 5.0,
        };
        let bars = |floor, aim| Bars {
            floor: Some(floor),
            aim: Some(aim),
        };
        assert_eq!(interval.judge(Better::Higher, bars(3.0, 10.0)), Verdict::Miss);
        assert_eq!(interval.judge(Better::Higher, bars(2.5, 10.0)), Verdict::Floor);
        assert_eq!(interval.judge(Better::Higher, bars(2.0, 2.5)), Verdict::Aim);
        assert_eq!(interval.judge(Better::Lower, bars(4.5, 1.0)), Verdict::Miss);
        assert_eq!(interval.judge(Better::Lower, bars(6.0, 5.0)), Verdict::Aim);
        assert_eq!(interval.judge(Better::Higher, Bars::default()), Verdict::None);
    }
}
