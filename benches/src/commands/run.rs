//! `kvbench run`: one system, one load.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    bed::Bed,
    cli,
    inside::{Engine, Job},
    load::drive::Pace,
    report::{self, svg},
    servers::Kind,
    system::Durability,
};

pub(crate) async fn run(options: &cli::Run) -> Result<()> {
    let (figures, guarantee) = if options.target == Kind::Rocks {
        rocks(options).await?
    } else {
        servers(options).await?
    };
    let report = json!({
        "target": options.target,
        "shape": options.bench.shape(options.workload),
        "guarantee": guarantee,
        "plan": options.bench.plan(options.workload),
        "figures": figures,
    });
    println!("{}", report::run_table(options.target, &guarantee, &figures));
    report::write_json(options.bench.json.as_deref(), "run", report)?;
    let curve = curve(&figures);
    report::write(options.svg.as_deref(), || {
        svg::latencies(&[(options.target.to_string(), curve)])
    })
}

async fn servers(options: &cli::Run) -> Result<(Value, String)> {
    let shape = options.bench.shape(options.workload);
    let mut bed = Bed::prepare(options.target, shape, options.workload, &options.bench).await?;
    Bed::rest(&mut [&mut bed], &options.bench).await?;
    let elapsed = Duration::from_secs_f64(options.secs);
    let figures = bed.measure(options.pacing.pace(), elapsed, &[]).await?;
    let guarantee = bed.guarantee().to_owned();
    bed.stop().await?;
    Ok((serde_json::to_value(figures)?, guarantee))
}

async fn rocks(options: &cli::Run) -> Result<(Value, String)> {
    let Pace::Closed(tasks) = options.pacing.pace() else {
        anyhow::bail!("rocks has no queue that could wait: it is measured with --closed");
    };
    ensure!(options.bench.nodes > 0, "no process would be measured");
    let plan = options.bench.plan(options.workload);
    plan.check()?;
    let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
    let job = Job {
        engine: Engine::Rocks,
        dir: dir.path().to_owned(),
        plan,
        tasks,
        secs: options.secs,
        warm_up: options.bench.warm_up,
        synced: options.bench.durability == Durability::Synced,
    };
    let guarantee = if job.synced {
        "synced to the disk of one process"
    } else {
        "in the log of one process"
    };
    Ok((job.run().await?.figures, guarantee.to_owned()))
}

/// Percentile and microseconds.
fn curve(figures: &Value) -> Vec<(f64, f64)> {
    serde_json::from_value(figures["latency"]["curve"].clone()).unwrap_or_default()
}
