//! `kvbench stall`: what clients notice of a node that stops for a moment, again and again. G26.
//!
//! Of three nodes each has a replica of every record and coordinates a third of the reads. A coordinator asks as many replicas as it
//! needs beside its own, and others when one is late; what else can be held up are the reads that the stopped node coordinates. For
//! these the client asks another node. Extra are the client's requests beyond one for each read, and the nodes' beyond R - 1.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::rounds::{Bar, Round, Section, measure, publish};
use crate::{
    bed::Bed,
    cli,
    load::{drive::Pace, workload::Workload},
    measure::process::pause,
    servers::{Kind, ours::metrics::Metrics},
    stats::{Bars, Better},
};

/// Of every second.
const STOPPED: Duration = Duration::from_millis(100);
const RUNNING: Duration = Duration::from_millis(900);
/// R of the ring.
const READS_NEEDED: u32 = 2;
/// Labels of the metric that counts what nodes ask each other.
const REPLICA_REQUESTS: &str = r#"direction="sent",from="nodes",kind="requests""#;
/// Of a closed loop's.
const RATE_SHARE: f64 = 0.4;

const CALM: &str = "calm, p99.9 us";
const STALLED: &str = "stalled, p99.9 us";
const EXTRA: &str = "stalled, extra requests, %";

const BARS: [Bar; 2] = [
    Bar {
        name: "G26 p99.9",
        what: "p99.9 of reads with one node stopped for 100 ms of every second / calm",
        better: Better::Lower,
        bars: Bars {
            floor: Some(2.0),
            aim: Some(1.2),
        },
        of: |round| round.ratio(STALLED, CALM),
    },
    Bar {
        name: "G26 extra",
        what: "requests of the client beyond one for each read, and of nodes beyond R - 1, percent",
        better: Better::Lower,
        bars: Bars {
            floor: Some(10.0),
            aim: Some(3.0),
        },
        of: |round| round.get(EXTRA),
    },
];

pub(crate) async fn run(options: &cli::Stall) -> Result<()> {
    let bench = &options.bench;
    let shape = bench.shape(Workload::Get);
    let mut bed = Bed::prepare(Kind::Ours, shape, Workload::Get, bench).await?;
    Bed::rest(&mut [&mut bed], bench).await?;
    let rate = bed.rate(options.rate, RATE_SHARE).await?;
    let rounds = measure(options.rounds, async |_| round(options, &bed, rate).await).await?;
    let section = Section {
        note: format!("ours: {}; {rate:.0} reads a second", bed.guarantee()),
        rounds,
        bars: &BARS,
    };
    let about =
        json!({ "plan": bench.plan(Workload::Get), "shape": shape, "warm_up": bed.warm, "rate": rate });
    bed.stop().await?;
    publish("stall", bench, about, &[section])
}

async fn round(options: &cli::Stall, bed: &Bed, rate: f64) -> Result<Round> {
    let mut round = Round::default();
    take(options, bed, rate, "calm", &mut round).await?;
    let stalls = Stalls::begin(bed)?;
    let taken = take(options, bed, rate, "stalled", &mut round).await;
    stalls.end()?;
    taken?;
    Ok(round)
}

async fn take(options: &cli::Stall, bed: &Bed, rate: f64, run: &str, round: &mut Round) -> Result<()> {
    let elapsed = Duration::from_secs_f64(options.secs);
    let before = Metrics::read(bed.ring()?).await?;
    let figures = bed.measure(Pace::Rate(rate), elapsed, &[]).await?;
    let after = Metrics::read(bed.ring()?).await?;
    round.check(run, &figures, options.bench.foreign_max);
    let served = before.growth(&after, "dynamo_request_duration_seconds_count", "op=\"get\"");
    round.take_latency(run, &figures);
    let asked = before.growth(&after, "dynamo_stream_message_entries_total", REPLICA_REQUESTS);
    let needed = served * f64::from(READS_NEEDED - 1);
    let extra = figures.hedges.unwrap_or_default() as f64 + (asked - needed).max(0.0);
    round.set(
        format!("{run}, extra requests, %"),
        extra * 100.0 / figures.operations as f64,
    );
    round.set(
        format!("{run}, gets that nodes served / reads"),
        served / figures.operations as f64,
    );
    Ok(())
}

/// A thread that stops a node and lets it go on, and never leaves it stopped.
struct Stalls {
    end: mpsc::Sender<()>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Stalls {
    /// Of the first node.
    fn begin(bed: &Bed) -> Result<Self> {
        let pid = *bed.pids.first().context("no node runs")?;
        let (end, ended) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("stalls".to_owned())
            .spawn(move || {
                loop {
                    pause(&[pid], true)?;
                    let stopped = ended.recv_timeout(STOPPED);
                    pause(&[pid], false)?;
                    if stopped != Err(RecvTimeoutError::Timeout)
                        || ended.recv_timeout(RUNNING) != Err(RecvTimeoutError::Timeout)
                    {
                        return Ok(());
                    }
                }
            });
        let thread = thread.context("cannot start the thread that stops a node")?;
        Ok(Self { end, thread })
    }

    fn end(self) -> Result<()> {
        // Fails only if the thread has ended, which its result explains.
        let _ = self.end.send(());
        match self.thread.join() {
            Ok(result) => result,
            Err(_) => anyhow::bail!("the thread that stops a node has ended badly"),
        }
    }
}
