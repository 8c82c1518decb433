//! Room on the disk: the writer stops taking data before the disk is full, because RocksDB does not come back from that.

use super::WriteError;
use crate::{
    clock,
    storage::{Disk, Store},
};

/// How long an answer of the file system holds.
const CHECK_INTERVAL_MS: u64 = 100;
/// After how many bytes written it holds no longer, however young.
const CHECK_BYTES: u64 = 16 << 20;

/// Free bytes that a disk keeps unless the configuration says how many: 5 % of it; at least 64 MiB, for flushes and
/// compactions of what has been acknowledged, but never more than a quarter; and at most 1 GiB.
pub fn free_bytes_min(total_bytes: u64) -> u64 {
    (total_bytes / 20).clamp(64 << 20, 1 << 30).min(total_bytes / 4)
}

/// Whether the disk has room for so much more, as far as the store can say.
pub(crate) fn has_room(store: &dyn Store, least: Option<u64>, bytes: u64) -> bool {
    let disk = store.health().ok().and_then(|health| health.disk);
    disk.is_none_or(|disk| {
        disk.free_bytes.saturating_sub(bytes) >= least.unwrap_or_else(|| free_bytes_min(disk.total_bytes))
    })
}

/// Watches the disk of one store.
pub(super) struct Room {
    free_bytes_min: Option<u64>,
    checked_ms: Option<u64>,
    written_since: u64,
    full: Option<WriteError>,
}

impl Room {
    pub(super) fn new(free_bytes_min: Option<u64>) -> Self {
        Self {
            free_bytes_min,
            checked_ms: None,
            written_since: 0,
            full: None,
        }
    }

    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written_since += bytes as u64;
    }

    /// Whether more may be stored. While it may not, every call asks the file system.
    pub(super) fn check(&mut self, store: &dyn Store) -> Result<(), WriteError> {
        let now_ms = clock::monotonic_ms();
        let fresh = self
            .checked_ms
            .is_some_and(|checked| now_ms.saturating_sub(checked) < CHECK_INTERVAL_MS);
        if self.full.is_none() && fresh && self.written_since < CHECK_BYTES {
            return Ok(());
        }
        self.checked_ms = Some(now_ms);
        self.written_since = 0;
        // A store that cannot say fails its writes if they cannot be made.
        let disk = store.health().ok().and_then(|health| health.disk);
        self.full = disk.and_then(|disk| self.judge(disk));
        self.full.clone().map_or(Ok(()), Err)
    }

    fn judge(&self, disk: Disk) -> Option<WriteError> {
        let Disk {
            free_bytes,
            total_bytes,
        } = disk;
        let free_bytes_min = self.free_bytes_min.unwrap_or_else(|| free_bytes_min(total_bytes));
        (free_bytes < free_bytes_min).then_some(WriteError::DiskFull {
            free_bytes,
            free_bytes_min,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_free_grows_with_the_disk_within_bounds() {
        const MIB: u64 = 1 << 20;
        let cases = [
            (0, 0),
            (100 * MIB, 25 * MIB),
            (400 * MIB, 64 * MIB),
            (2000 * MIB, 100 * MIB),
            (10 << 40, 1024 * MIB),
        ];
        for (total, expected) in cases {
            assert_eq!(free_bytes_min(total), expected, "{total}");
        }
    }
}
