//! Bars that are made of rounds: in each of them everything is measured once, and gives one figure of each bar.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    bed::{Figures, say},
    cli::Bench,
    report,
    stats::{Bars, Better, Interval, Verdict, bootstrap},
};

/// Figures of one round, by name.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Round {
    pub(crate) figures: BTreeMap<String, f64>,
    /// Why it does not count, if so.
    pub(crate) dropped: Option<String>,
}

/// What is to be reached, and how it is made of a round's figures.
pub(crate) struct Bar {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) better: Better,
    pub(crate) bars: Bars,
    pub(crate) of: fn(&Round) -> Option<f64>,
}

/// What became of a bar.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Judged {
    pub(crate) name: String,
    pub(crate) what: String,
    pub(crate) bars: Bars,
    pub(crate) better: Better,
    pub(crate) ratio: Option<Interval>,
    pub(crate) verdict: Verdict,
}

/// Rounds with their bars.
pub(crate) struct Section<'a> {
    /// What a reader must know of the figures.
    pub(crate) note: String,
    pub(crate) rounds: Vec<Round>,
    pub(crate) bars: &'a [Bar],
}

impl Round {
    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.figures.get(name).copied()
    }

    pub(crate) fn set(&mut self, name: impl Into<String>, value: f64) {
        self.figures.insert(name.into(), value);
    }

    /// One figure divided by another one.
    pub(crate) fn ratio(&self, a: &str, b: &str) -> Option<f64> {
        Some(self.get(a)? / self.get(b)?).filter(|ratio| ratio.is_finite())
    }

    /// Takes note that one of its runs does not count.
    pub(crate) fn check(&mut self, run: &str, figures: &Figures, foreign_max: f64) {
        let foreign = figures.cores.foreign;
        let void = figures
            .void
            .as_ref()
            .map(|reason| format!("{run} is void: {reason}"));
        let disturbed =
            || (foreign > foreign_max).then(|| format!("{run}: others used {foreign:.2} processors"));
        self.dropped = self.dropped.take().or(void).or_else(disturbed);
    }

    /// Takes the latencies of a run, if it has any.
    pub(crate) fn take_latency(&mut self, run: &str, figures: &Figures) {
        if let Some(latency) = &figures.latency {
            self.set(format!("{run}, samples"), latency.samples as f64);
            self.set(format!("{run}, p50 us"), latency.p50_us);
            self.set(format!("{run}, p99 us"), latency.p99_us);
            self.set(format!("{run}, p99.9 us"), latency.p999_us);
        }
    }
}

impl Bar {
    pub(crate) fn judge(&self, rounds: &[Round]) -> Judged {
        let counting = rounds.iter().filter(|round| round.dropped.is_none());
        let ratios: Vec<f64> = counting.filter_map(self.of).collect();
        Judged::of(self.name, self.what, self.better, self.bars, &ratios)
    }
}

impl Judged {
    /// By the bad end of the ratios' interval.
    pub(crate) fn of(name: &str, what: &str, better: Better, bars: Bars, ratios: &[f64]) -> Self {
        let ratio = bootstrap(ratios);
        Self {
            name: name.to_owned(),
            what: what.to_owned(),
            bars,
            better,
            ratio,
            verdict: ratio.map_or(Verdict::None, |ratio| ratio.judge(better, bars)),
        }
    }
}

/// Measures so many rounds, by their numbers from 1, and says what each has come to.
pub(crate) async fn measure(
    count: u32,
    mut round: impl AsyncFnMut(u32) -> Result<Round>,
) -> Result<Vec<Round>> {
    let mut rounds = Vec::new();
    for number in 1..=count {
        let round = round(number).await?;
        let dropped = round.dropped.as_deref().unwrap_or("counts");
        say(&format!("round {number}: {dropped}"));
        rounds.push(round);
    }
    Ok(rounds)
}

/// Prints tables and bars, and writes the JSON with `about`. An error if a bar has no figure.
pub(crate) fn publish(command: &str, bench: &Bench, about: Value, sections: &[Section<'_>]) -> Result<()> {
    let mut told = Vec::new();
    let mut missing = None;
    for section in sections {
        let judged: Vec<Judged> = section
            .bars
            .iter()
            .map(|bar| bar.judge(&section.rounds))
            .collect();
        println!(
            "{}",
            report::rounds_table(&section.note, &section.rounds, &judged)
        );
        missing = missing.or_else(|| Some(judged.iter().find(|bar| bar.ratio.is_none())?.name.clone()));
        told.push(json!({ "note": section.note, "rounds": section.rounds, "bars": judged }));
    }
    let mut report = json!({ "foreign_max": bench.foreign_max, "sections": told });
    if let (Some(report), Value::Object(about)) = (report.as_object_mut(), about) {
        report.extend(about);
    }
    report::write_json(bench.json.as_deref(), command, report)?;
    match missing {
        Some(name) => {
            None.with_context(|| format!("no figure for {name}: no round counts, see the reasons above"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAR: Bar = Bar {
        name: "G0",
        what: "a / b",
        better: Better::Lower,
        bars: Bars {
            floor: Some(2.0),
            aim: Some(1.2),
        },
        of: |round| round.ratio("a", "b"),
    };

    fn round(a: f64, b: f64) -> Round {
        let mut round = Round::default();
        round.set("a", a);
        round.set("b", b);
        round
    }

    #[test]
    fn a_bar_is_judged_by_the_rounds_that_count() {
        let mut disturbed = round(90.0, 1.0);
        disturbed.dropped = Some("a: others used 0.50 processors".to_owned());
        let judged = BAR.judge(&[round(3.0, 2.0), disturbed, round(3.0, 2.0)]);
        let ratio = judged.ratio.unwrap();
        assert!((ratio.low - 1.5).abs() < 1e-9 && (ratio.high - 1.5).abs() < 1e-9);
        assert_eq!(judged.verdict, Verdict::Floor);
    }

    #[test]
    fn what_was_not_measured_is_not_judged() {
        for rounds in [vec![], vec![Round::default()], vec![round(1.0, 0.0)]] {
            let judged = BAR.judge(&rounds);
            assert_eq!((judged.ratio, judged.verdict), (None, Verdict::None));
        }
    }
}
