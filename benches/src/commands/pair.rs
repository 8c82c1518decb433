//! `kvbench pair`: two systems in turn on one machine, so that what disturbs one disturbs the other.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;
use serde_json::json;

use super::{best, rounds::Judged};
use crate::{
    bed::{Bed, Figures, SEARCH, say},
    cli::{self, Concurrency, Metric},
    load::drive::Pace,
    report::{self, svg},
    stats::{Bars, Better},
    system::Shape,
};

/// Of what the slower one does in a closed loop.
const RATE_SHARE: f64 = 0.5;

/// One run of each.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Pair {
    pub(crate) a: Figures,
    pub(crate) b: Figures,
    /// In each metric.
    pub(crate) compared: Vec<Compared>,
    /// Why it does not count, if so.
    pub(crate) dropped: Option<String>,
}

/// Both in one metric.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Compared {
    pub(crate) metric: Metric,
    pub(crate) a: f64,
    pub(crate) b: f64,
    /// a / b
    pub(crate) ratio: f64,
}

/// All of them.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    pub(crate) pairs: Vec<Pair>,
    /// The ratios that count, of each metric; and the idle processor time if that is a bar.
    pub(crate) judged: Vec<Judged>,
}

pub(crate) async fn run(options: &cli::Pair) -> Result<()> {
    let mut a = prepare(options, Side::A).await?;
    let mut b = prepare(options, Side::B).await?;
    rest(options, &mut a, &mut b).await?;
    let paces = paces(options, &a, &b).await?;
    let mut pairs = Vec::new();
    for number in 1..=options.pairs {
        let pair = pair(options, &a, &b, paces).await?;
        let ratios: Vec<String> = pair
            .compared
            .iter()
            .map(|both| format!("{:.3}", both.ratio))
            .collect();
        let dropped = pair.dropped.as_deref().unwrap_or("counts");
        say(&format!(
            "pair {number}: ratio {}; {dropped}",
            ratios.join(" and ")
        ));
        pairs.push(pair);
    }
    let outcome = Outcome::of(pairs, options, &a);
    let (names, guarantees) = (
        names(&a, &b),
        [a.guarantee().to_owned(), b.guarantee().to_owned()],
    );
    println!("{}", report::pair_table(&names, &guarantees, &outcome));
    let report = json!({
        "foreign_max": options.bench.foreign_max,
        "a": { "target": a.kind, "shape": a.shape, "guarantee": guarantees[0], "warm_up": a.warm, "idle_parts": a.idle_parts },
        "b": { "target": b.kind, "shape": b.shape, "guarantee": guarantees[1], "warm_up": b.warm, "idle_parts": b.idle_parts },
        "plan": options.bench.plan(options.workload()),
        "outcome": outcome,
    });
    report::write_json(options.bench.json.as_deref(), "pair", report)?;
    report::write(options.svg.as_deref(), || plot(options, &names, &outcome))?;
    if options.one_at_a_time {
        a.resume().await?;
        b.resume().await?;
    }
    a.stop().await?;
    b.stop().await?;
    let all = outcome.judged.iter().all(|judged| judged.ratio.is_some());
    ensure!(all, "no pair counts; see the reasons above");
    Ok(())
}

/// Of the first metric.
fn plot(options: &cli::Pair, names: &[String; 2], outcome: &Outcome) -> String {
    let first = outcome.judged.first();
    let metric = first.map_or("", |judged| &judged.name);
    let point = |pair: &Pair| {
        let ratio = pair.compared.first().map_or(f64::NAN, |both| both.ratio);
        (ratio, pair.dropped.is_none())
    };
    let points: Vec<(f64, bool)> = outcome.pairs.iter().map(point).collect();
    let interval = first.and_then(|judged| judged.ratio);
    let title = format!("{metric} of {} / {}", names[0], names[1]);
    svg::ratios(&title, &points, interval, options.bars())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    A,
    B,
}

async fn prepare(options: &cli::Pair, side: Side) -> Result<Bed> {
    options.is_latency()?;
    let workload = options.workload();
    let shape = options.bench.shape(workload);
    let (kind, shape) = match side {
        Side::A => (options.a, shape),
        Side::B => (
            options.b,
            Shape {
                route: options.b_route.unwrap_or(shape.route),
                durability: options.b_durability.unwrap_or(shape.durability),
                nodes: options.b_nodes.unwrap_or(shape.nodes),
                ..shape
            },
        ),
    };
    let bed = Bed::prepare(kind, shape, workload, &options.bench).await?;
    if options.one_at_a_time {
        bed.pause()?;
    }
    Ok(bed)
}

async fn rest(options: &cli::Pair, a: &mut Bed, b: &mut Bed) -> Result<()> {
    if !options.one_at_a_time {
        return Bed::rest(&mut [a, b], &options.bench).await;
    }
    for bed in [a, b] {
        bed.resume().await?;
        Bed::rest(&mut [bed], &options.bench).await?;
        bed.pause()?;
    }
    Ok(())
}

/// Measures one while the other one is idle or stopped.
async fn measure(options: &cli::Pair, bed: &Bed, other: &Bed, pace: Pace) -> Result<Figures> {
    let elapsed = Duration::from_secs_f64(options.secs);
    alone(options, bed, async || {
        bed.measure(pace, elapsed, &other.pids).await
    })
    .await
}

async fn alone<T>(options: &cli::Pair, bed: &Bed, work: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
    if !options.one_at_a_time {
        return work().await;
    }
    bed.resume().await?;
    let result = work().await;
    bed.pause()?;
    result
}

/// Of a and of b.
async fn paces(options: &cli::Pair, a: &Bed, b: &Bed) -> Result<[Pace; 2]> {
    let closed = [
        closed(options, options.a_closed, a, b).await?,
        closed(options, options.b_closed, b, a).await?,
    ];
    if !options.is_latency()? {
        return Ok(closed);
    }
    let rate = if let Some(rate) = options.rate {
        rate
    } else {
        let of_a = alone(options, a, async || a.measure(closed[0], SEARCH, &b.pids).await).await?;
        let of_b = alone(options, b, async || b.measure(closed[1], SEARCH, &a.pids).await).await?;
        RATE_SHARE * of_a.operations_per_s.min(of_b.operations_per_s)
    };
    say(&format!("both get {rate:.0} operations a second"));
    Ok([Pace::Rate(rate); 2])
}

async fn closed(options: &cli::Pair, wanted: Option<Concurrency>, bed: &Bed, other: &Bed) -> Result<Pace> {
    Ok(Pace::Closed(match wanted.unwrap_or(options.closed) {
        Concurrency::Tasks(tasks) => tasks,
        Concurrency::Best => {
            let steps = alone(options, bed, async || best::steps(bed, SEARCH, &other.pids).await).await?;
            steps[best::best(&steps)?].0
        }
    }))
}

async fn pair(options: &cli::Pair, a: &Bed, b: &Bed, paces: [Pace; 2]) -> Result<Pair> {
    let of_a = measure(options, a, b, paces[0]).await?;
    let of_b = measure(options, b, a, paces[1]).await?;
    Ok(Pair::of(of_a, of_b, &options.metric, options.bench.foreign_max))
}

impl Pair {
    fn of(a: Figures, b: Figures, metrics: &[Metric], foreign_max: f64) -> Self {
        let compared: Vec<Compared> = metrics
            .iter()
            .map(|&metric| Compared::of(metric, &a, &b))
            .collect();
        let all_finite = compared.iter().all(|both| both.ratio.is_finite());
        let void = a.void.as_ref().map(|reason| format!("a is void: {reason}"));
        let void = void.or_else(|| b.void.as_ref().map(|reason| format!("b is void: {reason}")));
        let foreign = a.cores.foreign.max(b.cores.foreign);
        let dropped = void
            .or_else(|| (foreign > foreign_max).then(|| format!("others used {foreign:.2} processors")))
            .or_else(|| (!all_finite).then(|| "there is no ratio".to_owned()));
        Self {
            a,
            b,
            compared,
            dropped,
        }
    }
}

impl Compared {
    fn of(metric: Metric, a: &Figures, b: &Figures) -> Self {
        let (a, b) = (value(a, metric), value(b, metric));
        Self {
            metric,
            a,
            b,
            ratio: a / b,
        }
    }
}

impl Outcome {
    fn of(pairs: Vec<Pair>, options: &cli::Pair, a: &Bed) -> Self {
        let metrics = options.metric.iter().enumerate();
        let mut judged: Vec<Judged> = metrics
            .map(|(index, &metric)| {
                let counting = pairs.iter().filter(|pair| pair.dropped.is_none());
                let ratios: Vec<f64> = counting.map(|pair| pair.compared[index].ratio).collect();
                Judged::of(
                    &report::name(metric),
                    "",
                    options.better(metric),
                    options.bars(),
                    &ratios,
                )
            })
            .collect();
        if options.idle_bars() != Bars::default() {
            judged.push(idle(a, options.idle_bars()));
        }
        Self { pairs, judged }
    }
}

fn idle(bed: &Bed, bars: Bars) -> Judged {
    let servers = f64::from(bed.shape.nodes);
    let percents: Vec<f64> = bed
        .idle_parts
        .iter()
        .map(|cores| cores * 100.0 / servers)
        .collect();
    let what = format!("percent of a processor that an idle one of {servers} servers uses");
    Judged::of("idle", &what, Better::Lower, bars, &percents)
}

fn value(figures: &Figures, metric: Metric) -> f64 {
    let latency = |choose: fn(&crate::load::recorder::Latency) -> f64| {
        figures.latency.as_ref().map_or(f64::NAN, choose)
    };
    match metric {
        Metric::PutPerCpu | Metric::GetPerCpu | Metric::OpsPerCpu => figures.operations_per_cpu_s,
        Metric::CpuPerPut | Metric::CpuPerOp => figures.server_us_per_operation,
        Metric::Mean => latency(|latency| latency.mean_us),
        Metric::P50 => latency(|latency| latency.p50_us),
        Metric::P99 => latency(|latency| latency.p99_us),
        Metric::P999 => latency(|latency| latency.p999_us),
    }
}

/// What sets them apart: the systems, or how one of them is set up.
fn names(a: &Bed, b: &Bed) -> [String; 2] {
    let name = |bed: &Bed| {
        if a.kind != b.kind {
            return bed.kind.to_string();
        }
        let Shape {
            nodes,
            route,
            durability,
            ..
        } = bed.shape;
        let (route, durability) = (report::name(route), report::name(durability));
        format!("{} ({nodes} nodes, {route}, {durability})", bed.kind)
    };
    [name(a), name(b)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        load::{
            recorder::Recorder,
            workload::{Operation, Outcome as Done},
        },
        measure::Cores,
    };

    /// 1,000 operations of 100 us, in 10 s.
    fn figures(servers: f64, foreign: f64) -> Figures {
        let mut recorder = Recorder::default();
        for _ in 0..1000 {
            recorder.record(Operation::Write(0), Duration::from_micros(100), &Ok(Done::Done));
        }
        let cores = Cores {
            elapsed: Duration::from_secs(10),
            servers,
            bystanders: 0.0,
            client: 0.1,
            foreign,
            interrupts: 0.0,
            steal: 0.0,
        };
        Figures::of(&recorder, Pace::Closed(1), cores, 0.1)
    }

    #[test]
    fn the_ratio_is_that_of_work_for_processor_time() {
        let metrics = [Metric::PutPerCpu, Metric::CpuPerPut];
        let pair = Pair::of(figures(0.2, 0.0), figures(0.5, 0.1), &metrics, 0.3);
        // 0.1 against 0.4 processors above idle, for as many operations.
        assert!(
            (pair.compared[0].ratio - 4.0).abs() < 1e-9 && pair.dropped.is_none(),
            "{pair:?}"
        );
        assert!((pair.compared[1].ratio - 0.25).abs() < 1e-9);
    }

    #[test]
    fn pairs_that_were_disturbed_do_not_count() {
        let disturbed = Pair::of(figures(0.2, 0.0), figures(0.5, 0.31), &[Metric::PutPerCpu], 0.3);
        assert_eq!(disturbed.dropped.as_deref(), Some("others used 0.31 processors"));
        let mut void = figures(0.2, 0.0);
        void.void = Some("late".to_owned());
        let void = Pair::of(void, figures(0.5, 0.0), &[Metric::P999], 0.3);
        assert_eq!(void.dropped.as_deref(), Some("a is void: late"));
        let nothing = Pair::of(figures(0.1, 0.0), figures(0.1, 0.0), &[Metric::PutPerCpu], 0.3);
        assert!(
            nothing.dropped.is_some(),
            "no processor time was measured: {:?}",
            nothing.compared
        );
    }
}
