//! A system with its records, warm and ready to be measured.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dynamo_local::LocalRing;
use serde::Serialize;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::{
    cli::Bench,
    load::{
        drive::{self, Pace, Until, drive},
        recorder::{Latency, Recorder, latency},
        warm::{WarmUp, warm_up},
        workload::{Load, Workload},
    },
    measure::{
        Clocks, Cores,
        machine::load_average,
        process::{Memory, memory, pause},
    },
    servers::Kind,
    system::{Servers, Shape, Tally, Target},
};

/// Of a closed loop that finds out a rate.
pub(crate) const SEARCH: Duration = Duration::from_secs(10);
/// Parts of the time in which the servers are idle: as many figures, for an interval.
const IDLE_PARTS: u32 = 5;
/// Reads that must succeed in a row after a pause.
const AWAKE_READS: u32 = 100;
/// For that.
const AWAKE_LIMIT: Duration = Duration::from_mins(1);

/// A system that runs.
pub(crate) struct Bed {
    pub(crate) kind: Kind,
    pub(crate) shape: Shape,
    pub(crate) pids: Vec<u32>,
    /// How it was warmed up.
    pub(crate) warm: WarmUp,
    /// Processors that the servers use when nobody asks anything: the mean, and each part of the time.
    pub(crate) idle: f64,
    pub(crate) idle_parts: Vec<f64>,
    load: Arc<Load>,
    target: Arc<dyn Target>,
    servers: Box<dyn Servers>,
    // After the servers, which write there.
    _files: Files,
}

enum Files {
    Temporary(TempDir),
    Kept(PathBuf),
}

/// One run's figures.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figures {
    pub(crate) pace: Pace,
    pub(crate) seconds: f64,
    pub(crate) operations: u64,
    pub(crate) operations_per_s: f64,
    pub(crate) failed: u64,
    pub(crate) failures: BTreeMap<String, u64>,
    /// Reads of records that are there, and were not found.
    pub(crate) missing: u64,
    /// Why the run does not count, if so.
    pub(crate) void: Option<String>,
    /// In a closed loop from sent to answered, in an open one from due to answered.
    pub(crate) latency: Option<Latency>,
    pub(crate) reads: Option<Latency>,
    pub(crate) writes: Option<Latency>,
    /// From due to sent; of an open loop.
    pub(crate) slip: Option<Latency>,
    /// Server processor time, without idle time.
    pub(crate) server_us_per_operation: f64,
    pub(crate) operations_per_cpu_s: f64,
    /// This program's processor time.
    pub(crate) client_us_per_operation: f64,
    /// Processors that the servers use when idle.
    pub(crate) idle_cores: f64,
    pub(crate) cores: Cores,
    pub(crate) load_average: f64,
    pub(crate) memory: Vec<Memory>,
    /// Values that a read found, on average; 1 without siblings.
    pub(crate) siblings_per_read: Option<f64>,
    /// Where several operations travel in one.
    pub(crate) operations_per_message: Option<f64>,
    /// Requests of the client beyond one for each operation.
    pub(crate) hedges: Option<u64>,
}

impl Bed {
    /// Starts it, loads its records, and warms it up.
    pub(crate) async fn prepare(kind: Kind, shape: Shape, workload: Workload, bench: &Bench) -> Result<Self> {
        let plan = bench.plan(workload);
        plan.check()?;
        let start = kind.start(shape.durability)?;
        let files = Files::new(kind, bench)?;
        say(&format!("{kind}: starting {} servers", shape.nodes));
        let servers = start(files.path(), shape).await?;
        let target = servers
            .connect()
            .await
            .with_context(|| format!("cannot connect to {kind}"))?;
        let load = Load::new(plan);
        say(&format!("{kind}: loading {} records", bench.records));
        drive::fill(&target, &load, bench.load_tasks as usize).await?;
        let pids = servers.pids();
        say(&format!("{kind}: warming up"));
        let warm = warm_up(&target, &load, bench.load_tasks, &pids, bench.warm_up).await?;
        say(&format!("{kind}: {}", told(&warm, bench.warm_up.is_some())));
        Ok(Self {
            kind,
            shape,
            pids,
            warm,
            idle: 0.0,
            idle_parts: Vec::new(),
            load,
            target,
            servers,
            _files: files,
        })
    }

    /// Lets systems come to rest, and measures what they use then.
    pub(crate) async fn rest(beds: &mut [&mut Self], bench: &Bench) -> Result<()> {
        sleep(bench.settle()).await;
        if bench.idle().is_zero() {
            return Ok(());
        }
        let clocks = |beds: &[&mut Self]| -> Result<Vec<Clocks>> {
            beds.iter().map(|bed| Clocks::read(&bed.pids, &[])).collect()
        };
        let first = clocks(beds)?;
        let mut before = first.clone();
        for _ in 0..IDLE_PARTS {
            sleep(bench.idle() / IDLE_PARTS).await;
            let after = clocks(beds)?;
            for (bed, (before, after)) in beds.iter_mut().zip(before.iter().zip(&after)) {
                bed.idle_parts.push(before.until(after).servers);
            }
            before = after;
        }
        for (bed, (first, last)) in beds.iter_mut().zip(first.iter().zip(&before)) {
            bed.idle = first.until(last).servers;
        }
        Ok(())
    }

    /// Runs its load; `bystanders` are processes of other systems that do nothing.
    pub(crate) async fn measure(&self, pace: Pace, elapsed: Duration, bystanders: &[u32]) -> Result<Figures> {
        self.measure_load(&self.load, pace, elapsed, bystanders).await
    }

    /// The same with another load on its records.
    pub(crate) async fn measure_load(
        &self,
        load: &Arc<Load>,
        pace: Pace,
        elapsed: Duration,
        bystanders: &[u32],
    ) -> Result<Figures> {
        self.measure_until(load, pace, Until::Elapsed(elapsed), bystanders)
            .await
    }

    /// The same to another end.
    pub(crate) async fn measure_until(
        &self,
        load: &Arc<Load>,
        pace: Pace,
        until: Until,
        bystanders: &[u32],
    ) -> Result<Figures> {
        let tallies = || [self.target.siblings(), self.target.batches()];
        let (earlier, hedges) = (tallies(), self.target.hedges());
        let before = Clocks::read(&self.pids, bystanders)?;
        let recorder = drive(&self.target, load, pace, until).await?;
        let cores = before.until(&Clocks::read(&self.pids, bystanders)?);
        let later = tallies();
        let mean = |which: usize| -> Option<f64> { Tally::mean_until(earlier[which]?, later[which]?) };
        Ok(Figures {
            load_average: load_average()?,
            memory: memory(&self.pids)?,
            siblings_per_read: mean(0),
            operations_per_message: mean(1),
            hedges: hedges
                .zip(self.target.hedges())
                .map(|(earlier, later)| later - earlier),
            ..Figures::of(&recorder, pace, cores, self.idle)
        })
    }

    /// The rate that was asked for, or this share of what a closed loop of 64 does.
    pub(crate) async fn rate(&self, wanted: Option<f64>, share: f64) -> Result<f64> {
        if let Some(rate) = wanted {
            return Ok(rate);
        }
        let figures = self.measure(Pace::Closed(64), SEARCH, &[]).await?;
        let rate = share * figures.operations_per_s;
        say(&format!(
            "{}: {:.0} operations a second in a closed loop; {rate:.0} from now on",
            self.kind, figures.operations_per_s
        ));
        Ok(rate)
    }

    /// Runs its load, and measures nothing.
    pub(crate) async fn drive(&self, pace: Pace, elapsed: Duration) -> Result<()> {
        drive(&self.target, &self.load, pace, Until::Elapsed(elapsed)).await?;
        Ok(())
    }

    /// What it does all the time.
    pub(crate) fn load(&self) -> &Arc<Load> {
        &self.load
    }

    /// What each server holds now.
    pub(crate) fn memory(&self) -> Result<Vec<Memory>> {
        memory(&self.pids)
    }

    /// Ours, for what only they can be asked.
    pub(crate) fn ring(&self) -> Result<&LocalRing> {
        let ring = self.servers.ring();
        ring.with_context(|| format!("{} are no nodes of ours", self.kind))
    }

    /// Kills one server with SIGKILL.
    pub(crate) async fn kill(&mut self, number: usize) -> Result<()> {
        self.servers.kill(number).await
    }

    /// Starts it again.
    pub(crate) fn launch(&mut self, number: usize) -> Result<()> {
        self.servers.launch(number)?;
        self.pids = self.servers.pids();
        Ok(())
    }

    /// A client that asks this server alone.
    pub(crate) async fn connect_to(&self, number: usize) -> Result<Arc<dyn Target>> {
        self.servers.connect_to(number).await
    }

    pub(crate) fn guarantee(&self) -> &str {
        self.servers.guarantee()
    }

    pub(crate) fn pause(&self) -> Result<()> {
        pause(&self.pids, true)
    }

    /// Lets it go on, and waits until it answers as before.
    pub(crate) async fn resume(&self) -> Result<()> {
        pause(&self.pids, false)?;
        let began = Instant::now();
        let mut answered = 0;
        while answered < AWAKE_READS {
            ensure!(
                began.elapsed() < AWAKE_LIMIT,
                "{} does not answer {} s after a pause",
                self.kind,
                AWAKE_LIMIT.as_secs()
            );
            if self.target.get(self.load.key(0)).await.is_ok() {
                answered += 1;
            } else {
                answered = 0;
                sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    pub(crate) async fn stop(self) -> Result<()> {
        drop(self.target);
        self.servers.stop().await
    }
}

impl Figures {
    /// What follows from the load alone; nothing of the machine or of siblings.
    pub(crate) fn of(recorder: &Recorder, pace: Pace, cores: Cores, idle: f64) -> Self {
        let operations = recorder.done();
        let seconds = cores.elapsed.as_secs_f64();
        let server_us = cores.us_per_operation(idle, operations);
        Self {
            pace,
            seconds,
            operations,
            operations_per_s: operations as f64 / seconds,
            failed: recorder.failed(),
            failures: recorder.failures.clone(),
            missing: recorder.missing,
            void: recorder.void(),
            latency: recorder.latency(),
            reads: latency(&recorder.reads),
            writes: latency(&recorder.writes),
            slip: latency(&recorder.slip),
            server_us_per_operation: server_us,
            operations_per_cpu_s: 1e6 / server_us,
            client_us_per_operation: cores.client * seconds * 1e6 / operations as f64,
            idle_cores: idle,
            cores,
            load_average: 0.0,
            memory: Vec::new(),
            siblings_per_read: None,
            operations_per_message: None,
            hedges: None,
        }
    }
}

impl Files {
    fn new(kind: Kind, bench: &Bench) -> Result<Self> {
        let Some(dir) = &bench.dir else {
            let dir = tempfile::Builder::new().prefix("kvbench.").tempdir();
            return dir
                .map(Self::Temporary)
                .context("cannot make a temporary directory");
        };
        // Servers of two systems, or of two shapes of one, share no directory.
        let dir = tempfile::Builder::new()
            .prefix(&format!("{kind}."))
            .tempdir_in(dir)
            .with_context(|| format!("cannot make a directory in {}", dir.display()))?;
        Ok(Self::Kept(dir.keep()))
    }

    fn path(&self) -> &std::path::Path {
        match self {
            Self::Temporary(dir) => dir.path(),
            Self::Kept(dir) => dir,
        }
    }
}

fn told(warm: &WarmUp, given: bool) -> String {
    let last = warm.us_per_operation.last().copied().unwrap_or_default();
    let settled = match (given, warm.settled) {
        (true, _) => "as many as asked for",
        (false, true) => "it is warm",
        (false, false) => "IT STILL BECOMES CHEAPER",
    };
    let failed = match warm.failed {
        0 => String::new(),
        failed => format!("; {failed} failed"),
    };
    format!(
        "{last:.0} us an operation after {}: {settled}{failed}",
        warm.operations
    )
}

/// What is going on; figures go to standard output.
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}
