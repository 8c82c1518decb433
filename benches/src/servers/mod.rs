//! Servers that can be measured: how each is started, and what its guarantees are called.

pub(crate) mod cassandra;

pub(crate) mod child;

pub(crate) mod echo;

pub(crate) mod etcd;

pub(crate) mod garage;

pub(crate) mod ours;

pub(crate) mod redis;

use std::fmt::{self, Display};

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use serde::Serialize;

use crate::system::{Durability, Start};

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Dynamo
    Ours,
    /// Apache Cassandra, reads and writes at QUORUM
    Cassandra,
    /// Redis, SET and WAIT 1 for each; GET at one node
    Redis,
    /// etcd, linearizable reads
    Etcd,
    /// Garage K2V
    Garage,
    /// Bare gRPC, one call an operation: no store
    Echo,
    /// Bare gRPC, many operations in a message of one stream: no store
    EchoStream,
    /// Bare RocksDB, set up as our nodes set it up: no network
    Rocks,
}

impl Kind {
    /// How it is started.
    pub(crate) fn start(self, durability: Durability) -> Result<Start> {
        ensure!(
            self == Self::Ours || durability.is_common(),
            "{self} has no such --durability: only ours have"
        );
        Ok(match self {
            Self::Ours => ours::start,
            Self::Echo => echo::start_calls,
            Self::EchoStream => echo::start_batches,
            Self::Cassandra => cassandra::start,
            Self::Redis => redis::start,
            Self::Etcd => etcd::start,
            Self::Garage => garage::start,
            Self::Rocks => {
                bail!("rocks has no servers: it is measured by `kvbench run` and `kvbench parts` alone")
            }
        })
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.pad(value.as_ref().map_or("?", |value| value.get_name()))
    }
}
