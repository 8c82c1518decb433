//! A system with its records, warm and ready to be measured.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::{
    cli::Bench,
    load::{
        drive::{self, Pace, Until, drive},
        recorder::{Latency, Recorder, latency},
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

/// Reads that must succeed in a row after a pause.
const AWAKE_READS: u32 = 100;
/// For that.
const AWAKE_LIMIT: Duration = Duration::from_mins(1);

/// A system that runs.
pub(crate) struct Bed {
    pub(crate) kind: Kind,
    pub(crate) shape: Shape,
    pub(crate) pids: Vec<u32>,
    /// Processors that the servers use when nobody asks anything.
    pub(crate) idle: f64,
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
}

impl Bed {
    /// Starts it, loads its records, and warms it up.
    pub(crate) async fn prepare(kind: Kind, shape: Shape, workload: Workload, bench: &Bench) -> Result<Self> {
        let plan = bench.plan(workload);
        plan.check()?;
        let start = kind.start()?;
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
        let operations = bench.warm_up.unwrap_or(kind.warm_up());
        say(&format!("{kind}: warming up with {operations} operations"));
        let (pace, until) = (Pace::Closed(bench.load_tasks), Until::Operations(operations));
        let warm = drive(&target, &load, pace, until).await?;
        if let Some(failure) = warm.failures.keys().next() {
            say(&format!("{kind}: {} operations failed: {failure}", warm.failed()));
        }
        Ok(Self {
            kind,
            shape,
            pids: servers.pids(),
            idle: 0.0,
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
        let before = clocks(beds)?;
        sleep(bench.idle()).await;
        let after = clocks(beds)?;
        for (bed, (before, after)) in beds.iter_mut().zip(before.iter().zip(&after)) {
            bed.idle = before.until(after).servers;
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
        let tallies = || [self.target.siblings(), self.target.batches()];
        let earlier = tallies();
        let before = Clocks::read(&self.pids, bystanders)?;
        let recorder = drive(&self.target, load, pace, Until::Elapsed(elapsed)).await?;
        let cores = before.until(&Clocks::read(&self.pids, bystanders)?);
        let later = tallies();
        let mean = |which: usize| -> Option<f64> { Tally::mean_until(earlier[which]?, later[which]?) };
        Ok(Figures {
            load_average: load_average()?,
            memory: memory(&self.pids)?,
            siblings_per_read: mean(0),
            operations_per_message: mean(1),
            ..Figures::of(&recorder, pace, cores, self.idle)
        })
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

/// What is going on; figures go to standard output.
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}
