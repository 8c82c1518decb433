//! `kvbench trees`: what it costs a put that hash trees are kept of all records. G22.
//!
//! No node can do without its trees, and a switch that only a benchmark needs would be another program. So a node's writer runs by
//! itself, followed by trees and followed by nobody; what trees add there, each of a put's N replicas adds to it. Flushes and
//! compactions of RocksDB, on threads of their own, are left out of that: they are the same for both, and come in lumps.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::rounds::{Bar, Round, Section, measure, publish};
use crate::{
    bed::Bed,
    cli,
    inside::{Engine, Job},
    load::{drive::Pace, workload::Workload},
    servers::Kind,
    stats::{Bars, Better},
    system::Durability,
};

/// Writes at a time, to nodes and to a writer alike.
const TASKS: u32 = 64;

const WITH: &str = "us of a writer / write, with trees";
const WITHOUT: &str = "us of a writer / write, without trees";
const PUT: &str = "us of all servers / put";
const OF_TREES: &str = "us of these for trees";

const BARS: [Bar; 1] = [Bar {
    name: "G22",
    what: "CPU of a put / the same less what trees take on its replicas",
    better: Better::Lower,
    bars: Bars {
        floor: Some(1.08),
        aim: Some(1.02),
    },
    of: with_and_without,
}];

fn with_and_without(round: &Round) -> Option<f64> {
    let (put, trees) = (round.get(PUT)?, round.get(OF_TREES)?);
    Some(put / (put - trees)).filter(|ratio| ratio.is_finite())
}

pub(crate) async fn run(options: &cli::Trees) -> Result<()> {
    let bench = &options.bench;
    let shape = bench.shape(Workload::Put);
    let mut bed = Bed::prepare(Kind::Ours, shape, Workload::Put, bench).await?;
    Bed::rest(&mut [&mut bed], bench).await?;
    let rounds = measure(options.rounds, async |_| round(options, &bed).await).await?;
    let section = Section {
        note: format!("ours: {}; {TASKS} puts at a time", bed.guarantee()),
        rounds,
        bars: &BARS,
    };
    let about = json!({ "plan": bench.plan(Workload::Put), "shape": shape, "warm_up": bed.warm });
    bed.stop().await?;
    publish("trees", bench, about, &[section])
}

async fn round(options: &cli::Trees, bed: &Bed) -> Result<Round> {
    let mut round = Round::default();
    let elapsed = Duration::from_secs_f64(options.secs);
    let figures = bed.measure(Pace::Closed(TASKS), elapsed, &[]).await?;
    round.check("ours", &figures, options.bench.foreign_max);
    round.set(PUT, figures.server_us_per_operation);
    let without = writer(options, Engine::Writer).await?;
    let with = writer(options, Engine::WriterWithTrees).await?;
    let without = f64::midpoint(without, writer(options, Engine::Writer).await?);
    round.set(WITH, with);
    round.set(WITHOUT, without);
    let replicas = f64::from(bed.ring()?.layout().factor);
    round.set(OF_TREES, replicas * (with - without));
    Ok(round)
}

async fn writer(options: &cli::Trees, engine: Engine) -> Result<f64> {
    let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
    let job = Job {
        engine,
        dir: dir.path().to_owned(),
        plan: options.bench.plan(Workload::Put),
        tasks: TASKS,
        secs: options.secs,
        warm_up: options.bench.warm_up,
        synced: options.bench.durability == Durability::Synced,
    };
    let stored = job.run().await?;
    Ok(stored.us_per_operation - stored.behind_us_per_operation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_that_of_puts_with_and_without() {
        let mut round = Round::default();
        round.set(PUT, 102.0);
        round.set(OF_TREES, 2.0);
        assert!((with_and_without(&round).unwrap() - 1.02).abs() < 1e-9);
        round.set(OF_TREES, 102.0);
        assert_eq!(with_and_without(&round), None);
    }
}
