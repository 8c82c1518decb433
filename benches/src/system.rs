//! What is measured: some servers on this machine, and a client of theirs.

use std::{path::Path, sync::Arc};

use anyhow::{Result, bail};
use bytes::Bytes;
use clap::ValueEnum;
use dynamo_local::LocalRing;
use futures::future::BoxFuture;
use serde::Serialize;

/// A client that speaks to running servers. One is shared by all tasks of a load.
pub(crate) trait Target: Send + Sync {
    /// Writes a value over whatever is there, with the write quorum of the comparison.
    fn put(&self, key: Bytes, value: Bytes) -> BoxFuture<'_, Result<()>>;

    /// Reads a value with the read quorum of the comparison; `None` if there is none.
    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>>>;

    /// Reads, and writes what supersedes exactly what was read. Where a system has no such thing: a get, then a put.
    fn read_modify_write(&self, key: Bytes, value: Bytes) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.get(key.clone()).await?;
            self.put(key, value).await
        })
    }

    /// Requests of this client beyond one for each operation: hedges; `None` where there are none.
    fn hedges(&self) -> Option<u64> {
        None
    }

    /// Values in reads that found any; `None` where a key has one value at most.
    fn siblings(&self) -> Option<Tally> {
        None
    }

    /// Operations in messages; `None` where each is a message of its own.
    fn batches(&self) -> Option<Tally> {
        None
    }
}

/// How many of one thing were in another, since the connection was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Values, operations.
    pub(crate) parts: u64,
    /// Reads, messages.
    pub(crate) wholes: u64,
}

impl Tally {
    /// Parts of a whole, on average, from `self` to `later`; none without wholes.
    pub(crate) fn mean_until(self, later: Self) -> Option<f64> {
        let wholes = later.wholes - self.wholes;
        (wholes > 0).then(|| (later.parts - self.parts) as f64 / wholes as f64)
    }
}

/// When a server acknowledges a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Durability {
    /// Once it is in the log of a process; a killed process loses nothing, a machine without power may.
    Written,
    /// Once it is synced to the disk.
    Synced,
    /// Once it is synced on the node that coordinates it, and in the logs of others; ours only. Paper: §6.1.
    OneOfN,
    /// Once it is in memory, from where it is written to the log and synced every second; ours only.
    Buffered,
}

impl Durability {
    /// Of peers, which know these two alone; `Kind::start` refuses the others.
    pub(crate) fn is_synced(self) -> bool {
        self == Self::Synced
    }

    /// Whether peers know it, too.
    pub(crate) fn is_common(self) -> bool {
        matches!(self, Self::Written | Self::Synced)
    }
}

/// Who waits for a WAIT of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RedisWait {
    /// Every SET has its own: each client waits for its own acknowledgement.
    Each,
    /// SETs that wait at the same time share a pipeline and a WAIT: what one proxy before all clients could do.
    Shared,
}

/// Which of our nodes coordinates. Paper: §6.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Route {
    /// One of the key's replicas, by the client's ring.
    Owner,
    /// The client itself reads the replicas; writes as with owner.
    Client,
    /// Any node, which forwards: what a load balancer does.
    Random,
}

/// What our nodes do with causally unrelated values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Conflict {
    /// The last write wins, as it does in every peer but Garage.
    Lww,
    /// All are kept; a put passes the context of the last operation on its key.
    Siblings,
}

/// What background work (partitions that move, hints, exchanges) of our nodes may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Background {
    /// What a node's defaults say: it gives way to clients.
    Default,
    /// All that it can.
    Free,
}

/// How many servers, and how they work.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Shape {
    /// Server processes, each with a whole copy if there are three.
    pub(crate) nodes: u16,
    /// When a write counts.
    pub(crate) durability: Durability,
    /// Of ours only.
    pub(crate) route: Route,
    /// Of ours only.
    pub(crate) conflict: Conflict,
    /// Threads that serve requests in each node; none: a node's share of the processors. Of ours only.
    pub(crate) threads: Option<u16>,
    /// Of ours only.
    pub(crate) background: Background,
    /// Of Redis only.
    pub(crate) redis_wait: RedisWait,
}

#[cfg(test)]
impl Shape {
    /// The usual three.
    pub(crate) fn of_three(durability: Durability) -> Self {
        Self {
            nodes: 3,
            durability,
            route: Route::Owner,
            conflict: Conflict::Lww,
            threads: None,
            background: Background::Default,
            redis_wait: RedisWait::Each,
        }
    }
}

/// Running servers. Dropped, it kills them.
pub(crate) trait Servers: Send {
    /// All server processes, whose processor time and memory count.
    fn pids(&self) -> Vec<u32>;

    /// A client of them all.
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Target>>>;

    /// A client of one of them, by number from 0, that asks no other.
    fn connect_to(&self, _: usize) -> BoxFuture<'_, Result<Arc<dyn Target>>> {
        Box::pin(async { bail!("no bar asks a single one of these servers") })
    }

    /// Kills one with SIGKILL, and waits until it is gone.
    fn kill(&mut self, _: usize) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { bail!("no bar kills these servers") })
    }

    /// Starts again one that was killed, on its files, and waits for nothing.
    fn launch(&mut self, _: usize) -> Result<()> {
        bail!("no bar kills these servers")
    }

    /// Ours, for what only they can be asked.
    fn ring(&self) -> Option<&LocalRing> {
        None
    }

    /// What "acknowledged" means here, for the table.
    fn guarantee(&self) -> &str;

    /// Ends them; their files are the caller's to remove.
    fn stop(self: Box<Self>) -> BoxFuture<'static, Result<()>>;
}

/// Starts servers with their files below `dir` and waits until they serve.
pub(crate) type Start = for<'a> fn(dir: &'a Path, shape: Shape) -> BoxFuture<'a, Result<Box<dyn Servers>>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_is_that_of_the_time_between() {
        let tally = |parts, wholes| Tally { parts, wholes };
        assert_eq!(tally(90, 10).mean_until(tally(120, 30)), Some(1.5));
        assert_eq!(tally(90, 10).mean_until(tally(90, 10)), None);
    }
}
