//! The rings that some node of the cluster has accepted: a set that only grows, so it is the same on all members,
//! also on one that was away during changes.

use std::collections::BTreeMap;

use super::message::RingVersion;
use super::view::MEMBERS_MAX;
use crate::ring::Ring;
use crate::types::MemberId;

/// Rings that the membership log keeps: the largest.
pub const LOG_ENTRIES_MAX: usize = 1000;
/// Members that the log entries of one delta name together, unless one entry alone names more; about 1 MB.
pub const DELTA_LOG_MEMBERS_MAX: usize = 16 << 10;

/// A ring that some node has accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its epoch.
    pub epoch: u64,
    /// Its hash.
    pub hash: u64,
    /// Its members, ascending.
    pub members: Vec<MemberId>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Log(BTreeMap<RingVersion, LogEntry>);

impl LogEntry {
    pub(super) fn version(&self) -> RingVersion {
        RingVersion {
            epoch: self.epoch,
            hash: self.hash,
        }
    }

    /// As a ring has it: 1 to [`MEMBERS_MAX`] members, ascending.
    pub(super) fn is_sound(&self) -> bool {
        (1..=MEMBERS_MAX).contains(&self.members.len()) && self.members.is_sorted_by(|a, b| a < b)
    }
}

impl From<&Ring> for LogEntry {
    fn from(ring: &Ring) -> Self {
        Self {
            epoch: ring.epoch(),
            hash: ring.hash(),
            members: ring.members().iter().map(|member| member.id.clone()).collect(),
        }
    }
}

impl Log {
    /// Ascending.
    pub(super) fn entries(&self) -> impl ExactSizeIterator<Item = &LogEntry> {
        self.0.values()
    }

    pub(super) fn versions(&self) -> Vec<RingVersion> {
        self.0.keys().copied().collect()
    }

    /// False if it is known, or older than all of a full log.
    pub(super) fn insert(&mut self, entry: LogEntry) -> bool {
        let version = entry.version();
        if !self.wants(version) {
            return false;
        }
        self.0.insert(version, entry);
        if self.0.len() > LOG_ENTRIES_MAX {
            self.0.pop_first();
        }
        true
    }

    /// Which of another log's rings this one lacks.
    pub(super) fn lacks(&self, theirs: &[RingVersion]) -> Vec<RingVersion> {
        let newest = theirs.len().saturating_sub(LOG_ENTRIES_MAX);
        let lacked = theirs.iter().skip(newest).copied();
        lacked.filter(|version| self.wants(*version)).collect()
    }

    /// The entries that a node with those rings lacks, newest first, as many as one delta may hold.
    pub(super) fn beyond(&self, theirs: &[RingVersion]) -> Vec<LogEntry> {
        let theirs: std::collections::BTreeSet<&RingVersion> = theirs.iter().take(LOG_ENTRIES_MAX).collect();
        let floor = theirs.first().filter(|_| theirs.len() == LOG_ENTRIES_MAX);
        let lacked =
            self.0.iter().rev().filter(|(version, _)| {
                !theirs.contains(version) && floor.is_none_or(|floor| *floor < *version)
            });
        bounded(lacked.map(|(_, entry)| entry))
    }

    /// These entries, newest first, as many as one delta may hold.
    pub(super) fn select(&self, wanted: &[RingVersion]) -> Vec<LogEntry> {
        let known = wanted.iter().rev().take(LOG_ENTRIES_MAX);
        bounded(known.filter_map(|version| self.0.get(version)))
    }

    fn wants(&self, version: RingVersion) -> bool {
        let too_old = self.0.len() >= LOG_ENTRIES_MAX
            && self
                .0
                .first_key_value()
                .is_some_and(|(first, _)| version < *first);
        !too_old && !self.0.contains_key(&version)
    }
}

fn bounded<'a>(entries: impl Iterator<Item = &'a LogEntry>) -> Vec<LogEntry> {
    let mut room = DELTA_LOG_MEMBERS_MAX;
    let mut taken = Vec::new();
    for entry in entries {
        let fits = entry.members.len() <= room;
        if !fits && !taken.is_empty() {
            break;
        }
        room = room.saturating_sub(entry.members.len());
        taken.push(entry.clone());
    }
    taken
}
