//! The command line.

use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use dynamo_local::{Layout, Settings, Wanted};
use tempfile::TempDir;

/// Starts a ring of Dynamo nodes on this machine, on loopback, for a first look.
///
/// Data stay in a directory that it names: a second start finds what the first one stored. Ctrl-C stops all nodes.
#[derive(Debug, Parser)]
#[command(name = "dynamo-local", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// Nodes, 1..=64 [default: 6]
    #[arg(long, value_name = "COUNT")]
    nodes: Option<u32>,
    /// Zones, to which the nodes belong in turn [default: 3, or fewer with fewer nodes]
    #[arg(long, value_name = "COUNT")]
    zones: Option<u32>,
    /// N: replicas of every key [default: 3, or fewer with fewer nodes]
    #[arg(long, value_name = "N")]
    factor: Option<u32>,
    /// Q: partitions of the ring, a power of two [default: 256]
    #[arg(long, value_name = "Q")]
    partitions: Option<u32>,
    /// R of requests that name none [default: a majority of N]
    #[arg(long, value_name = "R")]
    read_quorum: Option<u32>,
    /// W of requests that name none [default: a majority of N]
    #[arg(long, value_name = "W")]
    write_quorum: Option<u32>,
    /// When a write counts as accepted [default: every]
    #[arg(long)]
    durability: Option<Durability>,
    /// First port; node 1 takes four from here, node 2 from ten further on, ... [default: the first free block from 7700]
    #[arg(long, value_name = "PORT")]
    port_base: Option<u16>,
    /// Where the ring's data and logs are [default: a folder for this shape in ~/.local/share/dynamo-kubernetes/local]
    #[arg(long, value_name = "DIR", conflicts_with = "temporary")]
    data: Option<PathBuf>,
    /// Data in a temporary directory, which is removed at the end
    #[arg(long)]
    temporary: bool,
    /// Log filter of the nodes
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log_level: String,
    /// Where the programs dynamo-node and dynamoctl are [default: beside this one]
    #[arg(long, value_name = "DIR")]
    pub(crate) programs: Option<PathBuf>,
    /// Take the tour without asking, then stop; the exit code says whether all of it went as it should
    #[arg(long)]
    pub(crate) tour: bool,
    /// Run this with DYNAMO_ENDPOINT and DYNAMO_ADMIN set, then stop with its exit code
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "tour")]
    pub(crate) command: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  dynamo-local                                      # 6 nodes in 3 zones; `help` at its prompt shows what it can do
  dynamo-local --nodes 4 --zones 2 --data /tmp/ring
  dynamo-local --temporary --tour
  dynamo-local --temporary -- dynamoctl bench-lite";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Durability {
    /// Synced to disk before it counts
    Every,
    /// In the write-ahead log, which is synced every second
    Interval,
    /// Synced on the node that coordinates it, as `interval` on the others
    OneOfN,
    /// In memory, which is written and synced every second
    Buffered,
}

/// Where a ring lives.
#[derive(Debug)]
pub(crate) enum Place {
    Kept(PathBuf),
    Temporary(TempDir),
}

/// No directory can be chosen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoPlace {
    #[error("cannot choose a directory for the data: HOME is not set; pass one with --data (DATA=...)")]
    NoHome,
    #[error("cannot make a temporary directory: {0}")]
    Temporary(std::io::Error),
    #[error(transparent)]
    Layout(#[from] dynamo_local::LayoutError),
}

impl Cli {
    /// The directory that was asked for, or the one of this shape.
    pub(crate) fn place(&self) -> Result<Place, NoPlace> {
        if self.temporary {
            let dir = tempfile::Builder::new().prefix("dynamo-local.").tempdir();
            return dir.map(Place::Temporary).map_err(NoPlace::Temporary);
        }
        if let Some(dir) = &self.data {
            return Ok(Place::Kept(dir.clone()));
        }
        // One for each shape, so that `make run` and `make run ZONES=2 NODES=4` both find their own data again.
        let Layout { nodes, zones, .. } = self.wanted().to_layout()?;
        let dir = data_home().ok_or(NoPlace::NoHome)?;
        Ok(Place::Kept(dir.join(format!(
            "dynamo-kubernetes/local/{nodes}-nodes-{zones}-zones"
        ))))
    }

    pub(crate) fn settings(&self, dir: &Path, node_program: PathBuf) -> Settings {
        let durability = self
            .durability
            .and_then(|mode| Some(mode.to_possible_value()?.get_name().to_owned()));
        Settings {
            wanted: self.wanted(),
            port_base: self.port_base,
            read_quorum: self.read_quorum,
            write_quorum: self.write_quorum,
            durability,
            log_level: self.log_level.clone(),
            ..Settings::new(dir, node_program)
        }
    }

    fn wanted(&self) -> Wanted {
        let Self {
            nodes,
            zones,
            factor,
            partitions,
            ..
        } = *self;
        Wanted {
            nodes,
            zones,
            factor,
            partitions,
        }
    }
}

impl Place {
    pub(crate) fn dir(&self) -> &Path {
        match self {
            Self::Kept(dir) => dir,
            Self::Temporary(dir) => dir.path(),
        }
    }
}

fn data_home() -> Option<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_shape_has_a_directory_of_its_own() {
        let place = |args: &[&str]| {
            let cli = Cli::try_parse_from([&["dynamo-local"], args].concat()).unwrap();
            cli.place().map(|place| place.dir().display().to_string())
        };
        assert!(
            place(&[])
                .unwrap()
                .ends_with("/dynamo-kubernetes/local/6-nodes-3-zones")
        );
        assert!(
            place(&["--nodes", "4", "--zones", "2"])
                .unwrap()
                .ends_with("/4-nodes-2-zones")
        );
        assert_eq!(place(&["--data", "/x/y"]).unwrap(), "/x/y");
        assert!(matches!(place(&["--zones", "9"]), Err(NoPlace::Layout(_))));
    }

    #[test]
    fn a_command_follows_two_dashes() {
        let cli = Cli::try_parse_from([
            "dynamo-local",
            "--temporary",
            "--",
            "dynamoctl",
            "ring",
            "-o",
            "json",
        ]);
        assert_eq!(cli.unwrap().command, ["dynamoctl", "ring", "-o", "json"]);
        assert!(Cli::try_parse_from(["dynamo-local", "--tour", "--", "true"]).is_err());
    }
}
