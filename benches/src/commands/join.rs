//! `kvbench join`: what clients notice while a node joins, hints are delivered and partitions are compared; how much moves, and how
//! fast. G13, with figures of G14 and G23.
//!
//! In each round: a load with nothing else going on; then a node is killed for some seconds, so that others keep hints for it, and
//! started again; as soon as it serves, another node joins, and the same load goes on until it has joined and no hint is left.
//! Exchanges compare partitions all the time. Between rounds the node that joined leaves again, which nobody measures.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use dynamo_proto::admin::PlanResponse;
use futures::future;
use serde_json::json;
use tokio::{sync::watch, time::sleep};

use super::rounds::{Bar, Round, Section, measure, publish};
use crate::{
    bed::{Bed, Figures, say},
    cli,
    disk::copy_bytes_per_s,
    load::{
        drive::{Pace, Until},
        workload::Workload,
    },
    servers::{
        Kind,
        ours::{
            change::{changed, commit, hints},
            member,
            metrics::Metrics,
        },
    },
    stats::{Bars, Better},
    system::Shape,
};

/// Of a closed loop's.
const RATE_SHARE: f64 = 0.4;
/// Between two looks at what is still to be done.
const LOOK: Duration = Duration::from_millis(50);
/// For a node that has left to end, and for one that was killed to serve again.
const NODE_LIMIT: Duration = Duration::from_mins(1);
/// For hints to be delivered.
const HINTS_LIMIT: Duration = Duration::from_mins(10);
/// The node that is killed, so that there are hints for it.
const VICTIM: usize = 0;

const BARS: [Bar; 2] = [
    Bar {
        name: "G13",
        what: "p99.9 while a node joins, hints are delivered and partitions compared / without",
        better: Better::Lower,
        bars: Bars {
            floor: Some(2.0),
            aim: Some(1.2),
        },
        of: |round| round.ratio("busy, p99.9 us", "idle, p99.9 us"),
    },
    Bar {
        name: "G14",
        what: "replica-partitions that move for the join / the fewest that any ring moves",
        better: Better::Lower,
        bars: Bars {
            floor: Some(1.1),
            aim: Some(1.01),
        },
        of: |round| round.ratio("partitions moved", "partitions moved at least"),
    },
];

pub(crate) async fn run(options: &cli::Join) -> Result<()> {
    let bench = &options.bench;
    let members = usize::from(bench.nodes);
    let shape = Shape {
        nodes: bench.nodes + 1,
        ..bench.shape(Workload::A)
    };
    let mut bed = Bed::prepare(Kind::Ours, shape, Workload::A, bench).await?;
    leave(&mut bed, members).await?;
    Bed::rest(&mut [&mut bed], bench).await?;
    let rate = bed.rate(options.rate, RATE_SHARE).await?;
    let rounds = measure(options.rounds, async |number| {
        if number > 1 {
            leave(&mut bed, members).await?;
            sleep(bench.settle()).await;
        }
        round(options, &mut bed, members, rate).await
    })
    .await?;
    let section = Section {
        note: format!(
            "ours: {}; {members} nodes and one that joins; {rate:.0} operations a second",
            bed.guarantee()
        ),
        rounds,
        bars: &BARS,
    };
    let about = json!({ "plan": bench.plan(Workload::A), "shape": shape, "warm_up": bed.warm, "rate": rate });
    bed.stop().await?;
    publish("join", bench, about, &[section])
}

/// It ends by itself, and begins anew with an empty store.
async fn leave(bed: &mut Bed, members: usize) -> Result<()> {
    say("the last node leaves");
    let ring = bed.ring()?;
    let plan = commit(ring, members).await?;
    changed(ring, members, &plan).await?;
    let gone = member(members);
    let ended = async || Ok(ring.status(&gone).await.is_err());
    until(&format!("{gone} has ended"), NODE_LIMIT, ended).await?;
    // What is left of its process.
    bed.kill(members).await?;
    bed.launch(members)
}

async fn round(options: &cli::Join, bed: &mut Bed, members: usize, rate: f64) -> Result<Round> {
    let foreign_max = options.bench.foreign_max;
    let mut round = Round::default();
    let idle = bed
        .measure(Pace::Rate(rate), Duration::from_secs_f64(options.secs), &[])
        .await?;
    take("idle", &idle, foreign_max, &mut round);
    miss_writes(options, bed, rate).await?;

    let before = Metrics::read(bed.ring()?).await?;
    let (tell, told) = watch::channel(false);
    let load = bed.measure_until(bed.load(), Pace::Rate(rate), Until::Told(told), &[]);
    let (busy, joined) = future::join(load, async {
        let joined = join(bed, members + 1).await;
        // Fails only if the load has ended before.
        let _ = tell.send(true);
        joined
    })
    .await;
    let (busy, (plan, took)) = (busy?, joined?);
    let after = Metrics::read(bed.ring()?).await?;
    take("busy", &busy, foreign_max, &mut round);
    moved(&before, &after, &plan, took, &mut round);
    if let Some(copied) = copied(bed, members).await? {
        round.set(
            "MB / s of a copy of the new node's files over loopback",
            copied / 1e6,
        );
    }
    Ok(round)
}

/// Kills a node, writes without it, and starts it again.
async fn miss_writes(options: &cli::Join, bed: &mut Bed, rate: f64) -> Result<()> {
    bed.kill(VICTIM).await?;
    // Its process has no clock now; this load is not measured.
    bed.drive(Pace::Rate(rate), Duration::from_secs_f64(options.down_secs))
        .await?;
    bed.launch(VICTIM)?;
    let (ring, member) = (bed.ring()?, member(VICTIM));
    let serves = async || {
        let status = ring.status(&member).await;
        Ok(status.is_ok_and(|status| status.not_ready_reason.is_empty()))
    };
    until(&format!("{member} serves again"), NODE_LIMIT, serves).await
}

/// From the commit until all serve by the new ring and nobody keeps a hint.
async fn join(bed: &Bed, members: usize) -> Result<(PlanResponse, Duration)> {
    let (ring, began) = (bed.ring()?, Instant::now());
    let plan = commit(ring, members).await?;
    changed(ring, members, &plan).await?;
    let took = began.elapsed();
    let delivered = async || Ok(hints(ring).await? == 0);
    until("all hints are delivered", HINTS_LIMIT, delivered).await?;
    Ok((plan, took))
}

async fn until(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !condition().await? {
        anyhow::ensure!(
            began.elapsed() < limit,
            "not within {} s: {what}",
            limit.as_secs()
        );
        sleep(LOOK).await;
    }
    Ok(())
}

fn take(run: &str, figures: &Figures, foreign_max: f64, round: &mut Round) {
    round.check(run, figures, foreign_max);
    round.set(format!("{run}, s"), figures.seconds);
    round.take_latency(run, figures);
}

fn moved(before: &Metrics, after: &Metrics, plan: &PlanResponse, took: Duration, round: &mut Round) {
    let grown = |name: &str| before.growth(after, name, "");
    let pulled = grown("dynamo_pulled_bytes_total");
    round.set("join, s", took.as_secs_f64());
    round.set("join, MB pulled", pulled / 1e6);
    round.set("join, MB / s", pulled / 1e6 / took.as_secs_f64());
    round.set("join, MB planned", plan.bytes as f64 / 1e6);
    round.set("partitions moved", f64::from(plan.moves));
    round.set("partitions moved at least", f64::from(plan.moves_min));
    round.set("hints delivered", grown("dynamo_hints_delivered_total"));
    round.set("exchanges", grown("dynamo_exchanges_total"));
}

/// What this machine makes of the same bytes without a store.
async fn copied(bed: &Bed, joined: usize) -> Result<Option<f64>> {
    let ring = bed.ring()?;
    let (store, dir) = (ring.nodes()[joined].data(), ring.dir().to_owned());
    let copying = tokio::task::spawn_blocking(move || copy_bytes_per_s(&store, &dir));
    copying
        .await
        .context("the copying thread has ended badly")?
        .context("cannot copy files")
}
