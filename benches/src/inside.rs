//! What of a node stores, in a process of its own: what that costs without a network. Bare RocksDB, set up as our nodes set it up; or
//! a node's writer on it, with the hash trees that follow it or without.
//!
//! The load runs in that process, too, since calls into it would cost more than RocksDB does. What the load itself costs
//! is measured on a target that does nothing, and taken off.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use dynamo_core::{
    replica::{Minter, SiblingCaps, Update},
    types::{Incarnation, PartitionId},
    version::{Content, Seen, Stamp},
};
use dynamo_node::storage::{
    Batch, Cached, DataKey, RocksStore, ScanLimit, Space, Store as _, Writer,
    rocks::RocksOptions,
    trees::PartitionTrees,
    writer::{self, Follower, Intent, Mint, WriterOptions},
};
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
        warm::warm_up,
        workload::{Load, Plan},
    },
    measure::{
        Clocks,
        machine::load_average,
        process::{memory, own_threads_cpu},
    },
    system::Target,
};

const BUCKET: &str = "kvbench";
/// How the names of RocksDB's background threads begin.
const ROCKS_THREADS: &str = "rocksdb:";
/// Of the load's own cost.
const NOTHING_OPERATIONS: u64 = 200_000;

/// The partitions of a ring, as its default has them; all of them are this one node's.
const PARTITIONS: u32 = 256;
/// Records that are folded into trees at once; there are none yet.
const FOLD: ScanLimit = ScanLimit {
    entries: 1000,
    bytes: 1 << 20,
};

/// What stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Engine {
    /// RocksDB alone
    Rocks,
    /// A writer that nobody follows; it only writes
    Writer,
    /// A writer that hash trees follow; it only writes
    WriterWithTrees,
}

/// What the process is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) engine: Engine,
    pub(crate) dir: PathBuf,
    pub(crate) plan: Plan,
    pub(crate) tasks: u32,
    pub(crate) secs: f64,
    /// As of every other system.
    pub(crate) warm_up: Option<u64>,
    pub(crate) synced: bool,
}

/// What it answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// Of this process, in microseconds of processor time: RocksDB's background threads too, the load not.
    pub(crate) us_per_operation: f64,
    /// Of these, RocksDB's background threads: flushes and compactions, which come in lumps.
    pub(crate) behind_us_per_operation: f64,
    /// What the load took besides.
    pub(crate) load_us_per_operation: f64,
    /// As of every other run.
    pub(crate) figures: serde_json::Value,
}

impl Job {
    /// In a child process.
    pub(crate) async fn run(&self) -> Result<Stored> {
        let program = std::env::current_exe().context("cannot find the running program")?;
        let job = serde_json::to_string(self)?;
        let child = Command::new(program)
            .args(["drive-store", &job])
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .output();
        let output = child.await.context("cannot start drive-rocks")?;
        ensure!(
            output.status.success(),
            "drive-store ended with {}",
            output.status
        );
        serde_json::from_slice(&output.stdout).context("drive-store answered something else")
    }
}

/// `kvbench drive-store`.
pub(crate) async fn drive_store(job: &str) -> Result<()> {
    let job: Job = serde_json::from_str(job).context("the job is damaged")?;
    println!("{}", serde_json::to_string(&job.here().await?)?);
    Ok(())
}

impl Job {
    async fn here(&self) -> Result<Stored> {
        let pace = Pace::Closed(self.tasks);
        let load = Load::new(self.plan.clone());
        let load_us = load_us(&load, pace).await?;
        let target = self.open().await?;
        fill(&target, &load, self.tasks as usize).await?;
        warm_up(&target, &load, self.tasks, &[std::process::id()], self.warm_up).await?;
        let (before, behind) = (Clocks::read(&[], &[])?, own_threads_cpu(ROCKS_THREADS)?);
        let recorder = drive(
            &target,
            &load,
            pace,
            Until::Elapsed(Duration::from_secs_f64(self.secs)),
        )
        .await?;
        let mut cores = before.until(&Clocks::read(&[], &[])?);
        let behind = own_threads_cpu(ROCKS_THREADS)?.saturating_sub(behind);
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
        Ok(Stored {
            us_per_operation: figures.server_us_per_operation,
            behind_us_per_operation: behind.as_secs_f64() * 1e6 / recorder.done() as f64,
            load_us_per_operation: load_us,
            figures: serde_json::to_value(figures)?,
        })
    }
}

impl Job {
    async fn open(&self) -> Result<Arc<dyn Target>> {
        Ok(match self.engine {
            Engine::Rocks => Arc::new(InProcess::open(&self.dir, self.synced)?),
            Engine::Writer => Arc::new(Writing::start(&self.dir, self.synced, None)?),
            Engine::WriterWithTrees => {
                let trees = PartitionTrees::new();
                trees.keep(PARTITIONS, &(0..PARTITIONS).map(PartitionId).collect());
                let writing = Writing::start(&self.dir, self.synced, Some(Arc::clone(&trees)))?;
                while trees.fold_next(&writing.writer, FOLD).await?.is_some() {}
                let (ready, _) = trees.counts();
                ensure!(
                    ready == PARTITIONS as usize,
                    "{ready} trees are kept, not {PARTITIONS}"
                );
                Arc::new(writing)
            }
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

fn open(dir: &Path) -> Result<RocksStore> {
    let store = RocksStore::open(&dir.join("rocks"), RocksOptions::default());
    store.with_context(|| format!("cannot open RocksDB in {}", dir.display()))
}

/// As a node coordinates a put: a record is read, written over, and stored with others that come at the same time.
struct Writing {
    writer: Writer,
}

impl Writing {
    fn start(dir: &Path, synced: bool, trees: Option<Arc<PartitionTrees>>) -> Result<Self> {
        let durability = if synced {
            writer::Durability::Every
        } else {
            writer::Durability::Interval(Duration::from_secs(1))
        };
        let options = WriterOptions {
            durability,
            caps: SiblingCaps::NONE,
            free_bytes_min: None,
        };
        let mint = Mint::new(Minter::new(Incarnation { generation: 1, id: 1 }, 1));
        let follower = trees.map(|trees| trees as Arc<dyn Follower>);
        let started = Writer::start_with(Arc::new(open(dir)?), mint, options, follower);
        let (writer, _failure) = started.context("cannot start a writer")?;
        Ok(Self { writer })
    }

    async fn write(&self, key: &Bytes, value: Bytes) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let update = Update {
            content: Content::Value(value),
            context: Seen::new(),
            op_id: None,
            stamp: Stamp(now.as_micros() as u64),
            expires_at_ms: None,
        };
        let intent = Intent::Lww {
            update,
            wall_ms: now.as_millis() as u64,
        };
        let prepared = self
            .writer
            .coordinate(DataKey::new(BUCKET, key)?, intent, false)
            .await?;
        prepared.committed().await?;
        Ok(())
    }
}

impl Target for Writing {
    fn put(&self, key: Bytes, value: Bytes) -> BoxFuture<'_, Result<()>> {
        async move { self.write(&key, value).await }.boxed()
    }

    fn get(&self, _: Bytes) -> BoxFuture<'_, Result<Option<Bytes>>> {
        future::ready(Err(anyhow!("a writer only writes"))).boxed()
    }
}

struct InProcess {
    store: RocksStore,
    synced: bool,
}

impl InProcess {
    fn open(dir: &Path, synced: bool) -> Result<Self> {
        let store = open(dir)?;
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
