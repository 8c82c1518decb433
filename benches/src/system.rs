//! What is measured: some servers on this machine, and a client of theirs.

use std::{path::Path, sync::Arc};

use anyhow::Result;
use bytes::Bytes;
use futures::future::BoxFuture;

/// A client that speaks to running servers. One is shared by all tasks of a load.
pub trait Target: Send + Sync {
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
}

/// When a server acknowledges a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Once it is in the log of a process; a killed process loses nothing, a machine without power may.
    Written,
    /// Once it is synced to the disk.
    Synced,
}

/// How many servers, and how they work.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Server processes, each with a whole copy if there are three.
    pub nodes: u16,
    /// When a write counts.
    pub durability: Durability,
}

/// Running servers. Dropped, it kills them.
pub trait Servers: Send {
    /// All server processes, whose processor time and memory count.
    fn pids(&self) -> Vec<u32>;

    /// A client of them all.
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Target>>>;

    /// What "acknowledged" means here, for the table.
    fn guarantee(&self) -> &str;

    /// Ends them; their files are the caller's to remove.
    fn stop(self: Box<Self>) -> BoxFuture<'static, Result<()>>;
}

/// Starts servers with their files below `dir` and waits until they serve.
pub type Start = for<'a> fn(dir: &'a Path, shape: Shape) -> BoxFuture<'a, Result<Box<dyn Servers>>>;
