//! `kvbench best`: the concurrency at which servers do most for their processor time. Batching gains with it, queues lose.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::{
    bed::{Bed, Figures, say},
    cli,
    load::drive::Pace,
    report,
};

/// 1, 2, 4, ..., 256.
const STEPS: u32 = 9;

pub(crate) async fn run(options: &cli::Best) -> Result<()> {
    let bench = &options.bench;
    let shape = bench.shape(options.workload);
    let mut bed = Bed::prepare(options.target, shape, options.workload, bench).await?;
    Bed::rest(&mut [&mut bed], bench).await?;
    let steps = steps(&bed, Duration::from_secs_f64(options.secs), &[]).await?;
    let best = best(&steps)?;
    let guarantee = bed.guarantee().to_owned();
    bed.stop().await?;
    println!(
        "{}",
        report::steps_table(options.target, &guarantee, &steps, best)
    );
    let report = json!({
        "target": options.target,
        "shape": shape,
        "guarantee": guarantee,
        "plan": bench.plan(options.workload),
        "best": { "closed": steps[best].0, "operations_per_cpu_s": steps[best].1.operations_per_cpu_s },
        "steps": steps.iter().map(|(_, figures)| figures).collect::<Vec<_>>(),
    });
    report::write_json(bench.json.as_deref(), "best", report)
}

/// Runs them all.
pub(crate) async fn steps(bed: &Bed, elapsed: Duration, bystanders: &[u32]) -> Result<Vec<(u32, Figures)>> {
    let mut steps = Vec::new();
    for tasks in (0..STEPS).map(|power| 1 << power) {
        let figures = bed.measure(Pace::Closed(tasks), elapsed, bystanders).await?;
        say(&format!(
            "{}: {tasks} at a time: {:.0} ops/CPU-s",
            bed.kind, figures.operations_per_cpu_s
        ));
        steps.push((tasks, figures));
    }
    Ok(steps)
}

/// Which of them; those that are void do not count.
pub(crate) fn best(steps: &[(u32, Figures)]) -> Result<usize> {
    let counting = steps
        .iter()
        .enumerate()
        .filter(|(_, (_, figures))| figures.void.is_none());
    let best = counting.max_by(|(_, (_, one)), (_, (_, other))| {
        one.operations_per_cpu_s.total_cmp(&other.operations_per_cpu_s)
    });
    best.map(|(index, _)| index).context("no run counts")
}
