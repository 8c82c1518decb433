//! The commands that measure one bar each.

use clap::Args;

use super::{Bench, seconds};
use crate::servers::Kind;

#[derive(Debug, Args)]
pub(crate) struct Sync {
    /// Rounds, in each of which disk and nodes are measured once
    #[arg(long, visible_alias = "pairs", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 10.0, value_name = "S", value_parser = seconds)]
    pub(crate) secs: f64,
    /// Puts at a time
    #[arg(long, default_value_t = 64, value_name = "TASKS", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) closed: u32,
    #[command(flatten)]
    pub(crate) bench: Bench,
}

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// Joins; between two of them the node leaves again
    #[arg(long, visible_alias = "pairs", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// Seconds without anything else; with it, the load lasts until all is done
    #[arg(long, default_value_t = 60.0, value_name = "S", value_parser = seconds)]
    pub(crate) secs: f64,
    /// Seconds that a node is down before, so that others keep hints for it
    #[arg(long, default_value_t = 10.0, value_name = "S", value_parser = seconds)]
    pub(crate) down_secs: f64,
    /// Operations a second [default: 40 % of what a closed loop of 64 does]
    #[arg(long, value_name = "PER_S", value_parser = super::rate)]
    pub(crate) rate: Option<f64>,
    #[command(flatten)]
    pub(crate) bench: Bench,
}

#[derive(Debug, Args)]
pub(crate) struct Trees {
    /// Rounds, in each of which everything is measured once
    #[arg(long, visible_alias = "pairs", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 10.0, value_name = "S", value_parser = seconds)]
    pub(crate) secs: f64,
    #[command(flatten)]
    pub(crate) bench: Bench,
}

#[derive(Debug, Args)]
pub(crate) struct Restart {
    /// Rounds, in each of which one node of each is killed
    #[arg(long, visible_alias = "pairs", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// With whom ours are compared
    #[arg(long, value_enum, default_value_t = Kind::Cassandra)]
    pub(crate) peer: Kind,
    #[command(flatten)]
    pub(crate) bench: Bench,
}

#[derive(Debug, Args)]
pub(crate) struct Stall {
    /// Rounds, in each of which reads are measured calm and stalled
    #[arg(long, visible_alias = "pairs", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 60.0, value_name = "S", value_parser = seconds)]
    pub(crate) secs: f64,
    /// Reads a second [default: 40 % of what a closed loop of 64 does]
    #[arg(long, value_name = "PER_S", value_parser = super::rate)]
    pub(crate) rate: Option<f64>,
    #[command(flatten)]
    pub(crate) bench: Bench,
}
