//! How a ring is run, and where its programs are.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use crate::{error::Error, layout::Wanted};

/// How a ring is run. What is not fixed with its data may differ from start to start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where data, logs and the ring's description are.
    pub dir: PathBuf,
    /// The shape; must agree with what `dir` holds.
    pub wanted: Wanted,
    /// The program `dynamo-node`: see [`program`].
    pub node_program: PathBuf,
    /// First port of the ring's block; None: the stored one, or the first free block.
    pub port_base: Option<u16>,
    /// R of requests that name none; None: a majority.
    pub read_quorum: Option<u32>,
    /// W of requests that name none; None: a majority.
    pub write_quorum: Option<u32>,
    /// `every` or `interval`; None: the node's default.
    pub durability: Option<String>,
    /// Threads that serve requests in each node; None: its share of the machine's processors.
    pub threads: Option<usize>,
    /// More flags for every node.
    pub options: Vec<String>,
    /// Where each node runs; left out, all on loopback.
    pub places: Vec<Place>,
    /// Log filter of the nodes.
    pub log_level: String,
    /// Told what is going on, in a line at a time.
    pub progress: fn(&str),
}

/// A network of a node's own.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its address there.
    pub ip: Ipv4Addr,
    /// The command that runs a program there, which follows it; with the same process id.
    pub enter: Vec<String>,
}

impl Place {
    /// Where all are that have no place of their own.
    pub(crate) const LOOPBACK: Self = Self {
        ip: Ipv4Addr::LOCALHOST,
        enter: Vec::new(),
    };
}

impl Settings {
    /// The default shape and settings.
    pub fn new(dir: impl Into<PathBuf>, node_program: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            wanted: Wanted::default(),
            node_program: node_program.into(),
            port_base: None,
            read_quorum: None,
            write_quorum: None,
            durability: None,
            threads: None,
            options: Vec::new(),
            places: Vec::new(),
            log_level: "info".to_owned(),
            progress: |_| {},
        }
    }
}

/// One of the workspace's programs: in `folder` if one is named, else beside the running program, or, for a test, one
/// level above it.
///
/// # Errors
/// If it is not there; the message names the command that builds it.
pub fn program(name: &str, folder: Option<&Path>) -> Result<PathBuf, Error> {
    let beside = std::env::current_exe().map_err(Error::process("find", "the running program"))?;
    let folders: Vec<&Path> = match folder {
        Some(folder) => vec![folder],
        None => beside.ancestors().skip(1).take(2).collect(),
    };
    let found = folders
        .iter()
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    let places = folders
        .iter()
        .map(|folder| folder.display().to_string())
        .collect::<Vec<_>>()
        .join(" and ");
    found.ok_or_else(|| Error::NoProgram {
        name: name.to_owned(),
        places,
    })
}
