//! Bare RocksDB, set up as our nodes set it up, in a process of its own: what storing costs without a network.
//!
//! The load runs in that process, too, since calls into it would cost more than RocksDB does. What the load itself costs
//! is measured on a target that does nothing, and taken off.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use dynamo_node::storage::{Batch, Cached, DataKey, RocksStore, Space, Store as _, rocks::RocksOptions};
use futures::{
    FutureExt as _,
    future::{self, BoxFuture},
};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::{
    bed::Figures,
    load::{
        drive::{Pace, Until, drive, fill},
        workload::{Load, Plan},
    },
    measure::{Clocks, machine::load_average, process::memory},
    system::Target,
};

const BUCKET: &str = "kvbench";
/// Of the load's own cost.
const NOTHING_OPERATIONS: u64 = 200_000;

/// What the process is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) dir: PathBuf,
    pub(crate) plan: Plan,
    pub(crate) tasks: u32,
    pub(crate) secs: f64,
    pub(crate) warm_up: u64,
    pub(crate) synced: bool,
}

/// What it answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Rocks {
    /// Of this process, in microseconds of processor time: RocksDB's background threads too, the load not.
    pub(crate) us_per_operation: f64,
    /// What the load took besides.
    pub(crate) load_us_per_operation: f64,
    /// As of every other run.
    pub(crate) figures: serde_json::Value,
}

impl Job {
    /// In a child process.
    pub(crate) async fn run(&self) -> Result<Rocks> {
        let program = std::env::current_exe().context("cannot find the running program")?;
        let job = serde_json::to_string(self)?;
        let child = Command::new(program)
            .args(["drive-rocks", &job])
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .output();
        let output = child.await.context("cannot start drive-rocks")?;
        ensure!(
            output.status.success(),
            "drive-rocks ended with {}",
            output.status
        );
        serde_json::from_slice(&output.stdout).context("drive-rocks answered something else")
    }
}

/// `kvbench drive-rocks`.
pub(crate) async fn drive_rocks(job: &str) -> Result<()> {
    let job: Job = serde_json::from_str(job).context("the job is damaged")?;
    println!("{}", serde_json::to_string(&job.here().await?)?);
    Ok(())
}

impl Job {
    async fn here(&self) -> Result<Rocks> {
        let pace = Pace::Closed(self.tasks);
        let load = Load::new(self.plan.clone());
        let load_us = load_us(&load, pace).await?;
        let target: Arc<dyn Target> = Arc::new(InProcess::open(&self.dir, self.synced)?);
        fill(&target, &load, 1).await?;
        drive(&target, &load, pace, Until::Operations(self.warm_up)).await?;
        let before = Clocks::read(&[], &[])?;
        let recorder = drive(
            &target,
            &load,
            pace,
            Until::Elapsed(Duration::from_secs_f64(self.secs)),
        )
        .await?;
        let mut cores = before.until(&Clocks::read(&[], &[])?);
        // One process is both.
        let seconds = cores.elapsed.as_secs_f64();
        let load_cores = load_us * 1e-6 * recorder.done() as f64 / seconds;
        cores.servers = (cores.client - load_cores).max(0.0);
        cores.client = load_cores;
        let figures = Figures {
            load_average: load_average()?,
            memory: memory(&[std::process::id()])?,
            ..Figures::of(&recorder, pace, cores, 0.0)
        };
        Ok(Rocks {
            us_per_operation: figures.server_us_per_operation,
            load_us_per_operation: load_us,
            figures: serde_json::to_value(figures)?,
        })
    }
}

/// Processor time that the load itself takes for an operation, in microseconds.
pub(crate) async fn load_us(load: &Arc<Load>, pace: Pace) -> Result<f64> {
    let nothing: Arc<dyn Target> = Arc::new(Nothing);
    let before = Clocks::read(&[], &[])?;
    let recorder = drive(&nothing, load, pace, Until::Operations(NOTHING_OPERATIONS)).await?;
    let cores = before.until(&Clocks::read(&[], &[])?);
    Ok(cores.client * cores.elapsed.as_secs_f64() * 1e6 / recorder.done() as f64)
}

struct Nothing;

impl Target for Nothing {
    fn put(&self, _: Bytes, _: Bytes) -> BoxFuture<'_, Result<()>> {
        future::ready(Ok(())).boxed()
    }

    fn get(&self, _: Bytes) -> BoxFuture<'_, Result<Option<Bytes>>> {
        future::ready(Ok(Some(Bytes::new()))).boxed()
    }
}

struct InProcess {
    store: RocksStore,
    synced: bool,
}

impl InProcess {
    fn open(dir: &Path, synced: bool) -> Result<Self> {
        let store = RocksStore::open(&dir.join("rocks"), RocksOptions::default());
        let store = store.with_context(|| format!("cannot open RocksDB in {}", dir.display()))?;
        Ok(Self { store, synced })
    }

    fn write(&self, key: &Bytes, value: Bytes) -> Result<()> {
        let mut batch = Batch::new();
        batch.put(Space::Data, DataKey::new(BUCKET, key)?.as_bytes().clone(), value);
        Ok(self.store.write(batch, self.synced)?)
    }

    fn read(&self, key: &Bytes) -> Result<Option<Bytes>> {
        let key = DataKey::new(BUCKET, key)?;
        Ok(match self.store.get_cached(Space::Data, key.as_bytes())? {
            Cached::Known(value) => value,
            Cached::OnDisk => self.store.get(Space::Data, key.as_bytes())?,
        })
    }
}

impl Target for InProcess {
    fn put(&self, key: Bytes, value: Bytes) -> BoxFuture<'_, Result<()>> {
        future::ready(self.write(&key, value)).boxed()
    }

    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>>> {
        future::ready(self.read(&key)).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_keeps_what_it_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let store = InProcess::open(dir.path(), false).unwrap();
        let key = Bytes::from_static(b"user1");
        assert_eq!(store.read(&key).unwrap(), None);
        store.write(&key, Bytes::from_static(b"value")).unwrap();
        assert_eq!(store.read(&key).unwrap(), Some(Bytes::from_static(b"value")));
    }
}
