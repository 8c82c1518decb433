//! `kvbench parts`: what gRPC and RocksDB alone cost, and how much more ours do than these parts make up.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::rounds::{Bar, Round, Section, publish};
use crate::{
    bed::{Bed, Figures, say},
    cli,
    inside::{Engine, Job, load_us},
    load::{
        drive::Pace,
        workload::{Load, Workload},
    },
    report,
    servers::Kind,
    stats::{Bars, Better},
    system::{Durability, Shape},
};

/// Operations under way.
const IN_FLIGHT: [u32; 3] = [1, 8, 64];

const BARS: [Bar; 5] = [
    Bar {
        name: "G7",
        what: "CPU of a put of ours / (1 echo's server half + 2 echoes, both halves + 3 puts of RocksDB), 64 in flight",
        better: Better::Lower,
        bars: Bars {
            floor: Some(2.0),
            aim: Some(1.3),
        },
        of: |round| {
            let server = round.get("echo put 64 server")?;
            let peer = server + round.get("echo put 64 client")?;
            Some(
                round.get("ours put 64 server")?
                    / (server + 2.0 * peer + 3.0 * round.get("rocks put server")?),
            )
        },
    },
    Bar {
        name: "G8",
        what: "CPU of an operation in a batched stream / of a call, both halves, 64 in flight",
        better: Better::Lower,
        bars: Bars {
            floor: Some(0.4),
            aim: Some(0.15),
        },
        of: |round| {
            let both = |name: &str| {
                Some(round.get(&format!("{name} server"))? + round.get(&format!("{name} client"))?)
            };
            Some(both("echo-stream put 64")? / both("echo put 64")?)
        },
    },
    Bar {
        name: "G8 batch",
        what: "operations in a message of the batched stream, 64 in flight",
        better: Better::Higher,
        bars: Bars {
            floor: Some(4.0),
            aim: None,
        },
        of: |round| round.get("echo-stream put 64 batch"),
    },
    Bar {
        name: "G9 get",
        what: "p50 of a get of ours / of an echo, 1 in flight",
        better: Better::Lower,
        bars: Bars {
            floor: Some(2.5),
            aim: Some(2.1),
        },
        of: |round| Some(round.get("ours get 1 p50")? / round.get("echo get 1 p50")?),
    },
    Bar {
        name: "G9 put",
        what: "p50 of a put of ours / of an echo, 1 in flight",
        better: Better::Lower,
        bars: Bars {
            floor: Some(3.0),
            aim: Some(2.3),
        },
        of: |round| Some(round.get("ours put 1 p50")? / round.get("echo put 1 p50")?),
    },
];

/// A system, and what is asked of it.
struct Part {
    bed: Bed,
    loads: Vec<Arc<Load>>,
    in_flight: Vec<u32>,
}

/// All of them run all the time.
struct Beds(Vec<Part>);

pub(crate) async fn run(options: &cli::Parts) -> Result<()> {
    let mut beds = Beds::prepare(options).await?;
    let mut all: Vec<&mut Bed> = beds.0.iter_mut().map(|part| &mut part.bed).collect();
    Bed::rest(&mut all, &options.bench).await?;
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        say(&format!("round {number} of {}", options.rounds));
        rounds.push(beds.round(options).await?);
    }
    beds.stop().await?;
    let about = json!({
        "plan": options.bench.plan(Workload::Put),
        "shape": options.bench.shape(Workload::Put),
    });
    let section = Section {
        note: "us; server, client: processor time of an operation, without idle time and the load's own; put, get 1, 8, 64: operations \
               under way"
            .to_owned(),
        rounds,
        bars: &BARS,
    };
    publish("parts", &options.bench, about, &[section])
}

impl Beds {
    async fn prepare(options: &cli::Parts) -> Result<Self> {
        let bench = &options.bench;
        let shape = bench.shape(Workload::Put);
        // One server: what a message costs does not depend on how many others there are.
        let one = Shape { nodes: 1, ..shape };
        let both = [Workload::Put, Workload::Get].as_slice();
        let wanted = [
            (Kind::Echo, one, both, IN_FLIGHT.as_slice()),
            (Kind::EchoStream, one, &both[..1], IN_FLIGHT.as_slice()),
            (Kind::Ours, shape, both, &[1, 64]),
        ];
        let mut parts = Vec::new();
        for (kind, shape, workloads, in_flight) in wanted {
            parts.push(Part {
                bed: Bed::prepare(kind, shape, Workload::Put, bench).await?,
                loads: workloads
                    .iter()
                    .map(|&workload| Load::new(bench.plan(workload)))
                    .collect(),
                in_flight: in_flight.to_vec(),
            });
        }
        Ok(Self(parts))
    }

    async fn round(&self, options: &cli::Parts) -> Result<Round> {
        let mut round = Round::default();
        let elapsed = Duration::from_secs_f64(options.secs);
        for part in &self.0 {
            let others = self.0.iter().filter(|other| other.bed.kind != part.bed.kind);
            let others: Vec<u32> = others.flat_map(|other| other.bed.pids.clone()).collect();
            for load in &part.loads {
                for &tasks in &part.in_flight {
                    let pace = Pace::Closed(tasks);
                    let load_us = load_us(load, pace).await?;
                    let figures = part.bed.measure_load(load, pace, elapsed, &others).await?;
                    let workload = report::name(load.plan.workload);
                    let name = format!("{} {workload} {tasks}", part.bed.kind);
                    round.check(&name, &figures, options.bench.foreign_max);
                    take(&mut round, &name, &figures, load_us);
                }
            }
        }
        for workload in [Workload::Put, Workload::Get] {
            let rocks = rocks(options, workload).await?;
            round.set(format!("rocks {} server", report::name(workload)), rocks);
        }
        Ok(round)
    }

    async fn stop(self) -> Result<()> {
        for part in self.0 {
            part.bed.stop().await?;
        }
        Ok(())
    }
}

async fn rocks(options: &cli::Parts, workload: Workload) -> Result<f64> {
    let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
    let job = Job {
        engine: Engine::Rocks,
        dir: dir.path().to_owned(),
        plan: options.bench.plan(workload),
        // As a node's writer.
        tasks: 1,
        secs: options.secs,
        warm_up: options.bench.warm_up,
        synced: options.bench.durability == Durability::Synced,
    };
    Ok(job.run().await?.us_per_operation)
}

fn take(round: &mut Round, name: &str, figures: &Figures, load_us: f64) {
    let p50 = figures.latency.as_ref().map(|latency| latency.p50_us);
    let named = [
        ("server", Some(figures.server_us_per_operation)),
        (
            "client",
            Some((figures.client_us_per_operation - load_us).max(0.0)),
        ),
        ("p50", p50),
        ("batch", figures.operations_per_message),
    ];
    for (what, value) in named {
        if let Some(value) = value {
            round.set(format!("{name} {what}"), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Verdict;

    fn round() -> Round {
        let figures = [
            ("echo put 64 server", 15.0),
            ("echo put 64 client", 20.0),
            ("echo-stream put 64 server", 2.0),
            ("echo-stream put 64 client", 3.0),
            ("echo-stream put 64 batch", 30.0),
            ("rocks put server", 5.0),
            ("ours put 64 server", 200.0),
            ("ours put 1 p50", 300.0),
            ("ours get 1 p50", 210.0),
            ("echo put 1 p50", 100.0),
            ("echo get 1 p50", 100.0),
        ];
        Round {
            figures: figures.map(|(name, value)| (name.to_owned(), value)).into(),
            dropped: None,
        }
    }

    #[test]
    fn bars_are_made_of_their_parts() {
        let rounds = [round()];
        let found: Vec<(f64, Verdict)> = BARS
            .iter()
            .map(|bar| bar.judge(&rounds))
            .map(|judged| (judged.ratio.unwrap().median, judged.verdict))
            .collect();
        let expected = [
            // 200 / (15 + 2 * 35 + 3 * 5)
            (2.0, Verdict::Floor),
            (5.0 / 35.0, Verdict::Aim),
            (30.0, Verdict::Floor),
            (2.1, Verdict::Aim),
            (3.0, Verdict::Floor),
        ];
        for ((found, verdict), (expected, verdict_expected)) in found.into_iter().zip(expected) {
            assert!(
                (found - expected).abs() < 1e-9 && verdict == verdict_expected,
                "{found} {verdict:?}"
            );
        }
    }
}
