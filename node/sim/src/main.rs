//! Runs seeds of the simulator: one to look at, a range, or new ones for some minutes.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use dynamo_sim::buggify::{Fired, Site};
use dynamo_sim::nemesis::plan;
use dynamo_sim::shrink::shrink;
use dynamo_sim::totals::Totals;
use dynamo_sim::{Knobs, Mistake, Options, Report, run};

/// Simulated clusters under faults; the same seed is the same run.
#[derive(Parser)]
struct Arguments {
    /// Runs this seed and says everything about it.
    #[arg(long)]
    seed: Option<u64>,
    /// Runs the seeds A..B, without B.
    #[arg(long, value_name = "A..B")]
    seeds: Option<String>,
    /// Runs new seeds for so many minutes.
    #[arg(long)]
    minutes: Option<u64>,
    /// Ends a run at that simulated time, in milliseconds.
    #[arg(long)]
    until: Option<u64>,
    /// Prints every event, one a line.
    #[arg(long)]
    trace: bool,
    /// Makes a mistake on purpose; see `mistakes.rs`.
    #[arg(long)]
    mistake: Option<String>,
    /// In every seed the members change.
    #[arg(long)]
    walk: bool,
    /// Does not look for a shorter plan of faults.
    #[arg(long)]
    no_shrink: bool,
    /// Goes on after a failing seed.
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let good = match (arguments.seed, &arguments.seeds, arguments.minutes) {
        (Some(seed), _, _) => show(seed, &arguments),
        (None, Some(range), _) => {
            if let Some((first, end)) = parse_range(range) {
                many(first..end, None, &arguments)
            } else {
                eprintln!("--seeds wants A..B, not {range:?}");
                false
            }
        }
        (None, None, minutes) => {
            let first = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(1, |since| since.as_secs())
                << 20;
            let limit = Duration::from_secs(60 * minutes.unwrap_or(1));
            many(first..u64::MAX, Some(limit), &arguments)
        }
    };
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn parse_range(range: &str) -> Option<(u64, u64)> {
    let (first, end) = range.split_once("..")?;
    Some((first.parse().ok()?, end.parse().ok()?))
}

fn knobs(seed: u64, arguments: &Arguments) -> Knobs {
    let of_seed = if arguments.walk {
        Knobs::walk_of_seed(seed)
    } else {
        Knobs::of_seed(seed)
    };
    Knobs {
        mistake: arguments.mistake.as_deref().and_then(Mistake::named),
        ..of_seed
    }
}

fn show(seed: u64, arguments: &Arguments) -> bool {
    let knobs = knobs(seed, arguments);
    println!("{knobs}");
    let faults = plan(&knobs);
    for (at_ms, fault) in &faults {
        println!("  {at_ms:>6} ms {fault:?}");
    }
    let sink: Option<dynamo_sim::trace::Sink> = if arguments.trace {
        Some(Box::new(|line: &str| println!("{line}")))
    } else {
        None
    };
    let report = run(
        &knobs,
        &faults,
        Options {
            sink,
            until_ms: arguments.until,
        },
    );
    print_report(&report);
    if let Some(first) = report.violations.first()
        && !arguments.no_shrink
    {
        let begin = Instant::now();
        let (short, runs) = shrink(&knobs, &faults, first.invariant);
        println!(
            "shortest plan found, in {runs} runs and {:.1} s:",
            begin.elapsed().as_secs_f64()
        );
        for (at_ms, fault) in &short {
            println!("  {at_ms:>6} ms {fault:?}");
        }
    }
    report.violations.is_empty()
}

fn many(seeds: std::ops::Range<u64>, limit: Option<Duration>, arguments: &Arguments) -> bool {
    println!("seeds from {}", seeds.start);
    let begin = Instant::now();
    let mut totals = Totals::default();
    let mut fired = Fired::default();
    for seed in seeds {
        if limit.is_some_and(|limit| begin.elapsed() >= limit) {
            break;
        }
        let knobs = knobs(seed, arguments);
        let report = run(&knobs, &plan(&knobs), Options::default());
        totals.add(&report);
        for (sum, times) in fired.iter_mut().zip(report.fired) {
            *sum += times;
        }
        if let Some(first) = report.violations.first() {
            println!(
                "seed {seed}: {} at {} us: {}",
                first.invariant, first.at_us, first.what
            );
            if !arguments.keep_going {
                show(seed, arguments);
                break;
            }
        }
    }
    let seconds = cpu_seconds().unwrap_or_else(|| begin.elapsed().as_secs_f64());
    println!("{totals}");
    println!(
        "{:.0} simulated hours in {seconds:.1} CPU-seconds: {:.0} operations and {:.0} events per CPU-second",
        totals.simulated_ms as f64 / 3_600_000.0,
        totals.stats.operations as f64 / seconds,
        totals.events as f64 / seconds
    );
    let never: Vec<Site> = Site::ALL
        .into_iter()
        .filter(|site| fired[*site as usize] == 0)
        .collect();
    println!(
        "rare paths: {}, never taken: {never:?}",
        fired.iter().sum::<u64>()
    );
    totals.bad() == 0
}

/// What this process has had of the processor, which it may share with others. Only Linux says so.
fn cpu_seconds() -> Option<f64> {
    let told = std::fs::read_to_string("/proc/self/schedstat").ok()?;
    let nanoseconds: f64 = told.split_whitespace().next()?.parse().ok()?;
    Some(nanoseconds / 1e9)
}

fn print_report(report: &Report) {
    println!("{:?}", report.stats);
    println!(
        "chain {:016x}, {} events, {} simulated ms",
        report.chain, report.events, report.simulated_ms
    );
    for violation in &report.violations {
        println!(
            "{} at {} us: {}",
            violation.invariant, violation.at_us, violation.what
        );
    }
}
