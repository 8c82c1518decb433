//! hints, exchanges, repair, tasks, bucket, locate: what keeps replicas whole, and how to look at it.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::Key;
use crate::values;

/// Show the hints that nodes keep for members they could not reach
///
/// A hint is a write on loan: it is handed to its owner as soon as that one answers.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl hints
  dynamoctl hints --all                     # every member, each asked itself
  dynamoctl hints --all --output json | jq '[.nodes[].hints[].hints] | add'")]
pub(crate) struct Hints {
    /// Every member that the node knows, each asked at its own admin address
    #[arg(long)]
    pub(crate) all: bool,
}

/// Show when a node last compared its partitions with the other replicas
///
/// An exchange compares two Merkle trees and transfers the keys that differ, both ways.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl exchanges                       # per member: partitions, never exchanged, oldest
  dynamoctl exchanges --partitions          # every partition
  dynamoctl exchanges --all --output json")]
pub(crate) struct Exchanges {
    /// Every member that the node knows, each asked at its own admin address
    #[arg(long)]
    pub(crate) all: bool,
    /// List every partition
    #[arg(long)]
    pub(crate) partitions: bool,
}

/// Compare and repair the replicas of a partition now
///
/// Asks the partition's first reachable primary for an exchange with all the others.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl repair 17                       # a partition
  dynamoctl repair cart:alice               # the partition of a key
  dynamoctl repair --key 17                 # the partition of the key \"17\"
  dynamoctl repair 17 --timeout 5m")]
pub(crate) struct Repair {
    /// The number of a partition, or a key
    #[arg(value_name = "PARTITION|KEY")]
    pub(crate) target: String,
    /// It is a key, even if it looks like a number
    #[arg(long)]
    pub(crate) key: bool,
    /// It is a key, given in hexadecimal digits
    #[arg(long)]
    pub(crate) hex: bool,
}

/// Let a node that lost its disk answer reads again although members that could tell it more are gone for good
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl accept-loss --yes               # all partitions of the node that is asked
  dynamoctl accept-loss 17 18 --yes

The node counts what it could not get back as lost: acknowledged writes may be gone. `dynamoctl status` shows the
partitions that it waits for.")]
pub(crate) struct AcceptLoss {
    /// The numbers of partitions; left out: all
    #[arg(value_name = "PARTITION")]
    pub(crate) partitions: Vec<u32>,
    /// Yes: acknowledged writes may be lost
    #[arg(long, required = true)]
    pub(crate) yes: bool,
}

/// Merge what a node's store held that was set aside into the cluster again
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl salvage set-aside-1             # reads it and counts, merges nothing
  dynamoctl salvage set-aside-1 --yes

A node sets its store aside if it is damaged, or older than what the node once acknowledged, and gets its data back from
the other replicas. What only the old store held is merged by this command alone: what was deleted since then, and whose
tombstones are gone, comes back to life. It can be run again, and on any member to whose data directory the store was
copied.")]
pub(crate) struct Salvage {
    /// The store's directory in the node's data directory
    #[arg(value_name = "STORE")]
    pub(crate) store: String,
    /// Yes: merge it, although deleted values may come back
    #[arg(long)]
    pub(crate) yes: bool,
}

/// Show the background tasks of a node, pause one, or let it go on
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl tasks
  dynamoctl tasks --all
  dynamoctl tasks pause exchange
  dynamoctl tasks resume exchange --all")]
pub(crate) struct Tasks {
    /// Every member that the node knows, each asked at its own admin address
    #[arg(long, global = true)]
    pub(crate) all: bool,
    #[command(subcommand)]
    pub(crate) action: Option<TaskAction>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TaskAction {
    /// Pause a task until it is resumed or the node restarts
    #[command(after_help = "\
Examples:
  dynamoctl tasks pause exchange
  dynamoctl tasks pause hints --all")]
    Pause {
        /// hints, exchange, recovery, reap or rebuild
        name: String,
    },
    /// Let a paused task go on
    #[command(after_help = "\
Examples:
  dynamoctl tasks resume exchange")]
    Resume {
        /// hints, exchange, recovery, reap or rebuild
        name: String,
    },
}

/// Show and set what holds for the keys of a bucket
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl bucket list
  dynamoctl bucket set sessions --conflict lww --ttl 1h
  dynamoctl bucket set likes --conflict counter")]
pub(crate) struct Bucket {
    #[command(subcommand)]
    pub(crate) action: BucketAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BucketAction {
    Set(BucketSet),
    /// List the buckets that have a policy of their own
    #[command(after_help = "\
Examples:
  dynamoctl bucket list
  dynamoctl bucket list --output json | jq -r '.buckets[].name'")]
    List,
}

/// Set a bucket's policy; what is left out stays as it is
///
/// Gossip brings it to all nodes within seconds. The conflict policy can be set once and never changed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl bucket set sessions --conflict lww --ttl 1h
  dynamoctl bucket set likes --conflict counter
  dynamoctl bucket set orders --read-repair blocking -n 3 -r 2 -w 2
  dynamoctl bucket set sessions --ttl never")]
pub(crate) struct BucketSet {
    /// Its name: 1 to 63 characters of a-z, 0-9 and -
    pub(crate) name: String,
    /// What becomes of concurrent values
    #[arg(long, value_enum)]
    pub(crate) conflict: Option<Conflict>,
    /// When a read repairs replicas that are out of date
    #[arg(long, value_enum)]
    pub(crate) read_repair: Option<ReadRepair>,
    /// After which values count as deleted, such as 30s, 1h or 7d; never
    #[arg(long, value_name = "DURATION", value_parser = values::ttl_or_never)]
    pub(crate) ttl: Option<values::Ttl>,
    /// N: replicas of every key; 0 as the ring says
    #[arg(long, short)]
    pub(crate) n: Option<u32>,
    /// R: replicas that must answer a read; 0 as the cluster's configuration says
    #[arg(long, short)]
    pub(crate) r: Option<u32>,
    /// W: replicas that must accept a write; 0 as the cluster's configuration says
    #[arg(long, short)]
    pub(crate) w: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Conflict {
    /// All are kept, for the client to resolve
    Siblings,
    /// The last write by the nodes' clocks wins
    Lww,
    Counter,
    Set,
    Map,
    Flag,
    Register,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReadRepair {
    /// After the reply
    Async,
    /// Before the reply
    Blocking,
    /// Never; anti-entropy still does
    Off,
}

/// Search the members for copies of a key: primaries, hints and strays
///
/// The question travels from member to member, never twice through one, and the answers travel back.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl locate cart:alice
  dynamoctl locate cart:alice --ttl 5 --output json")]
pub(crate) struct Locate {
    #[command(flatten)]
    pub(crate) key: Key,
    /// Hops that the question travels at most
    #[arg(long, default_value_t = 3, value_name = "HOPS", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) ttl: u32,
}

/// A time to live, to the millisecond; zero: none.
pub(crate) fn ttl_ms(ttl: values::Ttl) -> u64 {
    let ms = |ttl: Duration| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    ttl.0.map_or(0, ms)
}
