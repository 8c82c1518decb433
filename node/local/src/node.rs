//! One member of a local ring, with or without a process.

use std::path::PathBuf;

use dynamo_proto::admin::Member;

use crate::{
    ports::Addresses,
    process::{Process, log_path},
    settings::Place,
};

/// One member of the ring.
#[derive(Debug)]
pub struct Node {
    pub(crate) member: String,
    pub(crate) zone: String,
    pub(crate) place: Place,
    pub(crate) addresses: Addresses,
    pub(crate) dir: PathBuf,
    pub(crate) process: Option<Process>,
}

/// What a node's process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Running {
    /// It runs.
    Yes {
        /// Its process id.
        pid: u32,
    },
    /// It is stopped by SIGSTOP.
    Paused {
        /// Its process id.
        pid: u32,
    },
    /// There is none.
    No,
}

impl Node {
    /// Its identity: `node-1`, ...
    pub fn member(&self) -> &str {
        &self.member
    }

    /// Its zone: `zone-a`, ...
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Its log file.
    pub fn log(&self) -> PathBuf {
        log_path(&self.dir)
    }

    /// What its process does.
    pub fn running(&self) -> Running {
        match &self.process {
            Some(process) if process.paused => Running::Paused { pid: process.id },
            Some(process) => Running::Yes { pid: process.id },
            None => Running::No,
        }
    }

    /// As `dynamo.admin.v1` names it.
    pub(crate) fn to_member(&self) -> Member {
        Member {
            member_id: self.member.clone(),
            zone: self.zone.clone(),
            weight: 1,
            peer_address: self.addresses.peer.to_string(),
        }
    }
}
