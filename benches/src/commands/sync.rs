//! `kvbench sync`: how many puts one sync of the disk carries. G12.
//!
//! A put is acknowledged once W of its N replicas have synced it, so that of P puts a second each of S nodes has synced P W / S for an
//! acknowledgement; N - W more follow, which nobody has waited for and which do not count. All nodes share this machine's disk.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::rounds::{Bar, Round, Section, measure, publish};
use crate::{
    bed::Bed,
    cli,
    disk::syncs_per_s,
    load::{drive::Pace, workload::Workload},
    servers::{Kind, ours::metrics::Metrics},
    stats::{Bars, Better},
    system::{Durability, Shape},
};

const DISK: &str = "syncs / s of the disk alone";
const PUTS: &str = "synced puts / s acknowledged";
const PER_NODE: &str = "synced puts / s and node, that an acknowledgement waited for";

const BARS: [Bar; 1] = [Bar {
    name: "G12",
    what: "synced puts / s and node / times a second that one writer appends as much and syncs it",
    better: Better::Higher,
    bars: Bars {
        floor: Some(8.0),
        aim: Some(16.0),
    },
    of: |round| round.ratio(PER_NODE, DISK),
}];

pub(crate) async fn run(options: &cli::Sync) -> Result<()> {
    let bench = &options.bench;
    let shape = Shape {
        durability: Durability::Synced,
        ..bench.shape(Workload::Put)
    };
    let mut bed = Bed::prepare(Kind::Ours, shape, Workload::Put, bench).await?;
    Bed::rest(&mut [&mut bed], bench).await?;
    let rounds = measure(options.rounds, async |_| round(options, &bed).await).await?;
    let (_, w) = bed.ring()?.quorums();
    let section = Section {
        note: format!(
            "ours: {}; {} puts at a time. Of each put, the syncs of {w} of {} nodes count.",
            bed.guarantee(),
            options.closed,
            shape.nodes
        ),
        rounds,
        bars: &BARS,
    };
    let about = json!({ "plan": bench.plan(Workload::Put), "shape": shape, "warm_up": bed.warm });
    bed.stop().await?;
    publish("sync", bench, about, &[section])
}

async fn round(options: &cli::Sync, bed: &Bed) -> Result<Round> {
    let elapsed = Duration::from_secs_f64(options.secs);
    let mut round = Round::default();
    round.set(DISK, disk(options, bed, elapsed).await?);
    let ring = bed.ring()?;
    let before = Metrics::read(ring).await?;
    let figures = bed.measure(Pace::Closed(options.closed), elapsed, &[]).await?;
    let after = Metrics::read(ring).await?;
    round.check("ours", &figures, options.bench.foreign_max);
    let (_, w) = ring.quorums();
    let share = f64::from(w) / f64::from(bed.shape.nodes);
    round.set(PUTS, figures.operations_per_s);
    round.set(PER_NODE, figures.operations_per_s * share);
    round.set("server CPU, us / put", figures.server_us_per_operation);
    let grown = |name: &str| before.growth(&after, name, "");
    let syncs = grown("dynamo_writer_syncs");
    round.set(
        "writes in a sync of a node",
        grown("dynamo_writer_operations") / syncs.max(1.0),
    );
    round.set(
        "syncs / s and node",
        syncs / figures.seconds / f64::from(bed.shape.nodes),
    );
    Ok(round)
}

/// On the file system that the nodes are on.
async fn disk(options: &cli::Sync, bed: &Bed, elapsed: Duration) -> Result<f64> {
    let (dir, bytes) = (bed.ring()?.dir().to_owned(), options.bench.value_bytes);
    let syncing = tokio::task::spawn_blocking(move || syncs_per_s(&dir, bytes, elapsed));
    syncing
        .await
        .context("the syncing thread has ended badly")?
        .context("cannot sync a file")
}
