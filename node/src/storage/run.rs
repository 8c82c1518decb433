//! A sorted run: many records in a file of their own, that a store takes in as a whole. Paper: §6.2 (strategy 3: partitions
//! move as files).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::ScanLimit;

/// What a store may have between a run's ends when it takes it in: it copies it, while all writes wait.
pub const KEPT_MAX: ScanLimit = ScanLimit {
    entries: 1000,
    bytes: 16 << 20,
};

/// A synced file beside a store, which is no part of it until [`Store::take_in`](super::Store::take_in). Removed with this
/// value; what a crash leaves, with the next opening of the store.
#[derive(Debug)]
pub struct Run {
    path: PathBuf,
    /// The first and the last key.
    ends: (Bytes, Bytes),
    bytes: u64,
}

impl Run {
    /// Of a file that has one record.
    pub(super) fn new(path: PathBuf, first: Bytes, value: &[u8]) -> Self {
        Self {
            path,
            bytes: (first.len() + value.len()) as u64,
            ends: (first.clone(), first),
        }
    }

    /// The file has one more, behind the others.
    pub(super) fn extend(&mut self, last: Bytes, value: &[u8]) {
        self.bytes += (last.len() + value.len()) as u64;
        self.ends.1 = last;
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn ends(&self) -> (&Bytes, &Bytes) {
        (&self.ends.0, &self.ends.1)
    }

    /// Bytes of its keys and values.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a file; the next start does");
        }
    }
}
