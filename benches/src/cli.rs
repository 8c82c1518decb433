//! The command line.

mod bars;

pub(crate) use bars::{Join, Restart, Stall, Sync, Trees};

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::{
    load::{
        drive::Pace,
        workload::{Distribution, Plan, Workload},
    },
    servers::Kind,
    stats::{Bars, Better},
    system::{Background, Conflict, Durability, RedisWait, Route, Shape},
};

/// Measures what operations cost: here, elsewhere, and bare gRPC and RocksDB.
///
/// The main figure is the processor time of all servers per operation; it does not depend on what else a machine does.
/// Everything runs on loopback, in temporary directories.
#[derive(Debug, Parser)]
#[command(name = "kvbench", version, after_help = EXAMPLES, args_override_self = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  kvbench run --target ours --workload put --closed 64
  kvbench run --target ours --workload a --rate 2000 --secs 120 --json ours.json --svg ours.svg
  kvbench pair --a ours --b cassandra --metric put-per-cpu --floor 3 --aim 10
  kvbench pair --a ours --route client --b ours --b-route random --nodes 6 --metric mean,p999
  kvbench best --target etcd --workload put
  kvbench parts
  kvbench join

Exit code: 0 if there is a figure, whatever it says; 1 if there is none.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// One system, one load
    Run(Run),
    /// Two systems, one after the other, again and again: the ratio of a figure
    Pair(Pair),
    /// At which concurrency a system's servers need the least processor time for an operation
    Best(Best),
    /// What gRPC and RocksDB alone cost, and how much more a put and a get of ours do
    Parts(Parts),
    /// Synced puts of ours / syncs that the disk does for one writer
    Sync(Sync),
    /// Latencies of ours while a node joins and hints are delivered / when nothing else goes on
    Join(Join),
    /// What keeping hash trees takes of a put of ours
    Trees(Trees),
    /// From kill -9 of a node to its first get, ours / a peer; and the memory of both
    Restart(Restart),
    /// Latencies of reads of ours while one node stops for 100 ms of every second / calm ones
    Stall(Stall),
    /// An echo, until standard input ends
    #[command(hide = true)]
    ServeEcho,
    /// A load on a store in this process; the job is JSON, and so are its figures
    #[command(hide = true)]
    DriveStore {
        /// The job
        job: String,
    },
}

/// What is measured, and on which records.
#[derive(Debug, Clone, Args)]
pub(crate) struct Bench {
    /// Server processes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) nodes: u16,
    /// When a write counts
    #[arg(long, value_enum, default_value_t = Durability::Written)]
    pub(crate) durability: Durability,
    /// Which of our nodes coordinates
    #[arg(long, value_enum, default_value_t = Route::Owner)]
    pub(crate) route: Route,
    /// What our nodes do with causally unrelated values; siblings if the workload is that
    #[arg(long, value_enum)]
    pub(crate) conflict: Option<Conflict>,
    /// Which records are asked for
    #[arg(long, value_enum, default_value_t = Distribution::Zipf)]
    pub(crate) dist: Distribution,
    /// Records that are there before anything is measured
    #[arg(long, default_value_t = 100_000, value_name = "COUNT")]
    pub(crate) records: u64,
    /// 24 to 256
    #[arg(long, default_value_t = 24, value_name = "BYTES")]
    pub(crate) key_bytes: usize,
    /// 1 to 1 MiB
    #[arg(long, default_value_t = 1024, value_name = "BYTES")]
    pub(crate) value_bytes: usize,
    /// Of keys and values
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Operations of the workload before anything is measured [default: 200000 or more, until they have become no cheaper]
    #[arg(long, value_name = "COUNT")]
    pub(crate) warm_up: Option<u64>,
    /// Threads that serve requests in each node of ours [default: a node's share of the processors]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) threads: Option<u16>,
    /// What background work of our nodes may do
    #[arg(long, value_enum, default_value_t = Background::Default)]
    pub(crate) background: Background,
    /// Who waits for a WAIT of Redis
    #[arg(long, value_enum, default_value_t = RedisWait::Each)]
    pub(crate) redis_wait: RedisWait,
    /// Tasks that load records and warm up
    #[arg(long, default_value_t = 64, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) load_tasks: u32,
    /// Seconds between that and anything measured, for what servers still have to tidy up
    #[arg(long, default_value_t = 5.0, value_name = "S", value_parser = seconds)]
    pub(crate) settle_secs: f64,
    /// Seconds during which the servers' idle processor time is measured; 0 takes it for none
    #[arg(long, default_value_t = 10.0, value_name = "S", value_parser = seconds)]
    pub(crate) idle_secs: f64,
    /// Processors that others may use during a pair or a round that counts
    #[arg(long, default_value_t = 0.3, value_name = "CORES", value_parser = cores)]
    pub(crate) foreign_max: f64,
    /// Where the servers' files are meanwhile [default: a temporary directory, removed at the end]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// All figures, also those that are not on the table
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// What is asked for, and for how long.
#[derive(Debug, Clone, Args)]
#[group(id = "pace", multiple = false)]
pub(crate) struct Pacing {
    /// Closed loop: so many operations at a time
    #[arg(long, value_name = "TASKS", group = "pace", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) closed: Option<u32>,
    /// Open loop: so many operations a second, whether answered or not; latency counts from when each is due
    #[arg(long, value_name = "PER_S", group = "pace", value_parser = rate)]
    pub(crate) rate: Option<f64>,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[arg(long, value_enum)]
    pub(crate) target: Kind,
    #[arg(long, value_enum, default_value_t = Workload::A)]
    pub(crate) workload: Workload,
    #[command(flatten)]
    pub(crate) pacing: Pacing,
    /// Seconds of it
    #[arg(long, default_value_t = 25.0, value_name = "S", value_parser = seconds)]
    pub(crate) secs: f64,
    #[command(flatten)]
    pub(crate) bench: Bench,
    /// A plot of the latencies
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Pair {
    #[arg(long, value_enum)]
    pub(crate) a: Kind,
    #[arg(long, value_enum)]
    pub(crate) b: Kind,
    /// One, or several of one kind with a comma: all are taken from the same runs
    #[arg(long, value_enum, value_delimiter = ',', required = true)]
    pub(crate) metric: Vec<Metric>,
    /// [default: what the first metric names, else a]
    #[arg(long, value_enum)]
    pub(crate) workload: Option<Workload>,
    /// Pairs of runs
    #[arg(long, visible_alias = "rounds", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) pairs: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 25.0, value_name = "S", value_parser = seconds)]
    pub(crate) secs: f64,
    /// Operations at a time, or `best`: what `kvbench best` finds for each
    #[arg(long, default_value = "64", value_name = "TASKS|best")]
    pub(crate) closed: Concurrency,
    /// For a alone
    #[arg(long, value_name = "TASKS|best")]
    pub(crate) a_closed: Option<Concurrency>,
    /// For b alone
    #[arg(long, value_name = "TASKS|best")]
    pub(crate) b_closed: Option<Concurrency>,
    /// Of latencies: operations a second for both [default: half of what the slower one does in a closed loop]
    #[arg(long, value_name = "PER_S", value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// Of b, if it is another one: ours can be compared with ours
    #[arg(long, value_enum)]
    pub(crate) b_route: Option<Route>,
    /// As --b-route
    #[arg(long, value_enum)]
    pub(crate) b_durability: Option<Durability>,
    /// As --b-route
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) b_nodes: Option<u16>,
    /// What the ratios must reach
    #[arg(long)]
    pub(crate) floor: Option<f64>,
    /// What they should reach
    #[arg(long)]
    pub(crate) aim: Option<f64>,
    /// Of a ratio of latencies: the slower a, the better; for what b is to gain over a
    #[arg(long)]
    pub(crate) more_is_better: bool,
    /// What the idle processor time of a server of a must not exceed, in percent of a processor
    #[arg(long, value_name = "PERCENT")]
    pub(crate) idle_floor: Option<f64>,
    /// What it should not
    #[arg(long, value_name = "PERCENT")]
    pub(crate) idle_aim: Option<f64>,
    /// The one that is not measured is stopped by SIGSTOP, rather than idle
    #[arg(long)]
    pub(crate) one_at_a_time: bool,
    #[command(flatten)]
    pub(crate) bench: Bench,
    /// A plot of the ratios, of the first metric
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Best {
    #[arg(long, value_enum)]
    pub(crate) target: Kind,
    #[arg(long, value_enum, default_value_t = Workload::Put)]
    pub(crate) workload: Workload,
    /// Seconds of each step
    #[arg(long, default_value_t = 10.0, value_name = "S", value_parser = seconds)]
    pub(crate) secs: f64,
    #[command(flatten)]
    pub(crate) bench: Bench,
}

#[derive(Debug, Args)]
pub(crate) struct Parts {
    /// Rounds, in each of which everything is measured once
    #[arg(long, visible_alias = "pairs", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 5.0, value_name = "S", value_parser = seconds)]
    pub(crate) secs: f64,
    #[command(flatten)]
    pub(crate) bench: Bench,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Metric {
    /// Puts per second of server processor time
    PutPerCpu,
    /// Gets per second of server processor time
    GetPerCpu,
    /// Operations of the workload per second of server processor time
    OpsPerCpu,
    /// Server processor time of a put
    CpuPerPut,
    /// Server processor time of an operation of the workload
    CpuPerOp,
    /// Mean latency at the same rate
    Mean,
    /// Median latency at the same rate
    P50,
    /// 99th percentile of latency at the same rate
    P99,
    /// 99.9th percentile of latency at the same rate
    P999,
}

/// How many operations at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Concurrency {
    Tasks(u32),
    Best,
}

impl Metric {
    pub(crate) fn better(self) -> Better {
        match self {
            Self::PutPerCpu | Self::GetPerCpu | Self::OpsPerCpu => Better::Higher,
            Self::CpuPerPut | Self::CpuPerOp | Self::Mean | Self::P50 | Self::P99 | Self::P999 => {
                Better::Lower
            }
        }
    }

    /// Whether it is measured in an open loop.
    pub(crate) fn is_latency(self) -> bool {
        matches!(self, Self::Mean | Self::P50 | Self::P99 | Self::P999)
    }

    pub(crate) fn workload(self) -> Workload {
        match self {
            Self::PutPerCpu | Self::CpuPerPut => Workload::Put,
            Self::GetPerCpu => Workload::Get,
            _ => Workload::A,
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::PutPerCpu | Self::GetPerCpu | Self::OpsPerCpu => "ops/CPU-s",
            Self::CpuPerPut | Self::CpuPerOp | Self::Mean | Self::P50 | Self::P99 | Self::P999 => "us",
        }
    }
}

impl FromStr for Concurrency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "best" {
            return Ok(Self::Best);
        }
        let tasks = text.parse().ok().filter(|tasks| (1..=4096).contains(tasks));
        tasks
            .map(Self::Tasks)
            .ok_or_else(|| "neither 1 to 4096 nor `best`".to_owned())
    }
}

impl Bench {
    pub(crate) fn plan(&self, workload: Workload) -> Plan {
        Plan {
            workload,
            distribution: self.dist,
            records: self.records,
            key_bytes: self.key_bytes,
            value_bytes: self.value_bytes,
            seed: self.seed,
        }
    }

    pub(crate) fn shape(&self, workload: Workload) -> Shape {
        let implied = match workload {
            Workload::Siblings => Conflict::Siblings,
            _ => Conflict::Lww,
        };
        Shape {
            nodes: self.nodes,
            durability: self.durability,
            route: self.route,
            conflict: self.conflict.unwrap_or(implied),
            threads: self.threads,
            background: self.background,
            redis_wait: self.redis_wait,
        }
    }

    pub(crate) fn settle(&self) -> Duration {
        Duration::from_secs_f64(self.settle_secs)
    }

    pub(crate) fn idle(&self) -> Duration {
        Duration::from_secs_f64(self.idle_secs)
    }
}

impl Pacing {
    pub(crate) fn pace(&self) -> Pace {
        match (self.closed, self.rate) {
            (_, Some(rate)) => Pace::Rate(rate),
            (Some(tasks), None) => Pace::Closed(tasks),
            (None, None) => Pace::Closed(64),
        }
    }
}

impl Pair {
    pub(crate) fn bars(&self) -> Bars {
        Bars {
            floor: self.floor,
            aim: self.aim,
        }
    }

    pub(crate) fn idle_bars(&self) -> Bars {
        Bars {
            floor: self.idle_floor,
            aim: self.idle_aim,
        }
    }

    pub(crate) fn workload(&self) -> Workload {
        let named = self.metric.first().map(|metric| metric.workload());
        self.workload.or(named).unwrap_or(Workload::A)
    }

    /// Which way a metric's ratio is to go.
    pub(crate) fn better(&self, metric: Metric) -> Better {
        if self.more_is_better {
            Better::Higher
        } else {
            metric.better()
        }
    }

    /// Whether it is latencies that are compared; all of them, or none: they are measured in another loop.
    pub(crate) fn is_latency(&self) -> Result<bool, anyhow::Error> {
        let latencies = self.metric.iter().filter(|metric| metric.is_latency()).count();
        anyhow::ensure!(
            latencies == 0 || latencies == self.metric.len(),
            "--metric mixes latencies, of an open loop, with what is measured in a closed one"
        );
        Ok(latencies > 0)
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    number(text, 0.0..=86_400.0)
}

fn cores(text: &str) -> Result<f64, String> {
    number(text, 0.0..=1024.0)
}

fn rate(text: &str) -> Result<f64, String> {
    number(text, 0.1..=1e6)
}

fn number(text: &str, range: std::ops::RangeInclusive<f64>) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    let inside = range.contains(&number);
    inside
        .then_some(number)
        .ok_or_else(|| format!("not in {} to {}", range.start(), range.end()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_load_is_closed_or_open() {
        let pace = |line| match parse(line).map(|cli| cli.command) {
            Ok(Command::Run(run)) => Some(run.pacing.pace()),
            _ => None,
        };
        assert_eq!(pace("kvbench run --target echo"), Some(Pace::Closed(64)));
        assert_eq!(
            pace("kvbench run --target echo --closed 3"),
            Some(Pace::Closed(3))
        );
        assert_eq!(
            pace("kvbench run --target echo --rate 50.5"),
            Some(Pace::Rate(50.5))
        );
        assert_eq!(pace("kvbench run --target echo --rate 50 --closed 3"), None);
        assert_eq!(pace("kvbench run --target echo --rate 0"), None);
    }

    #[test]
    fn a_concurrency_is_a_number_or_the_best() {
        assert_eq!("best".parse(), Ok(Concurrency::Best));
        assert_eq!("256".parse(), Ok(Concurrency::Tasks(256)));
        assert!("0".parse::<Concurrency>().is_err() && "x".parse::<Concurrency>().is_err());
    }

    #[test]
    fn the_last_of_a_repeated_flag_counts() {
        let line = "kvbench run --target echo --secs 120 --records 1 --secs 5";
        let Ok(Command::Run(run)) = parse(line).map(|cli| cli.command) else {
            panic!("this is how .ci/bench calls it");
        };
        assert!((run.secs - 5.0).abs() < 1e-9);
    }

    #[test]
    fn several_metrics_are_of_one_kind() {
        let pair = |metrics: &str| match parse(&format!("kvbench pair --a ours --b ours --metric {metrics}"))
            .map(|cli| cli.command)
        {
            Ok(Command::Pair(pair)) => pair,
            other => panic!("{other:?}"),
        };
        let table2 = pair("mean,p999");
        assert_eq!(table2.metric, [Metric::Mean, Metric::P999]);
        assert!(table2.is_latency().unwrap());
        assert_eq!(table2.workload(), Workload::A);
        assert!(!pair("put-per-cpu").is_latency().unwrap());
        assert_eq!(pair("put-per-cpu,cpu-per-put").workload(), Workload::Put);
        assert!(pair("mean,cpu-per-put").is_latency().is_err());
        assert!(parse("kvbench pair --a ours --b ours").is_err());
    }

    #[test]
    fn siblings_are_kept_where_they_are_measured() {
        let Ok(Command::Run(run)) = parse("kvbench run --target ours").map(|cli| cli.command) else {
            panic!("this is how it is called");
        };
        assert_eq!(run.bench.shape(Workload::Put).conflict, Conflict::Lww);
        assert_eq!(run.bench.shape(Workload::Siblings).conflict, Conflict::Siblings);
    }
}
