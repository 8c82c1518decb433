//! A store that fails as it is told to.

use std::{
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::Faults;
use crate::storage::{
    Batch, Cached, Estimate, Health, KeyRange, Page, Run, ScanLimit, Space, Store, StoreCounters, StoreError,
};

/// How often a held sync looks whether it may go on.
const HELD_LOOK: Duration = Duration::from_millis(5);
/// So long a sync is held at most; then it fails.
const HELD_MAX: Duration = Duration::from_mins(2);

/// Fails what its node's settings say, and passes everything else on.
pub(crate) struct FaultyStore {
    store: Arc<dyn Store>,
    path: PathBuf,
    faults: Faults,
}

impl FaultyStore {
    pub(crate) fn new(store: Arc<dyn Store>, path: PathBuf, faults: Faults) -> Self {
        Self { store, path, faults }
    }

    fn synced(&self) -> Result<(), StoreError> {
        self.faults.synced(&self.path).map_err(|error| StoreError::Io {
            attempted: "noting what is synced".to_owned(),
            reason: error.to_string(),
        })
    }

    /// Before a sync, on the thread that makes it.
    fn before_sync(&self) -> Result<(), StoreError> {
        let began = Instant::now();
        while self.faults.settings().hold_syncs {
            Self::fail_if(began.elapsed() > HELD_MAX, "syncing, held for too long,")?;
            thread::sleep(HELD_LOOK);
        }
        Self::fail_if(self.faults.settings().fail_syncs, "syncing")
    }

    fn fail_if(fails: bool, attempted: &str) -> Result<(), StoreError> {
        if !fails {
            return Ok(());
        }
        Err(StoreError::Io {
            attempted: attempted.to_owned(),
            reason: "a fault on demand".to_owned(),
        })
    }
}

impl Store for FaultyStore {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Self::fail_if(self.faults.settings().fail_reads, "reading")?;
        self.store.get(space, key)
    }

    fn get_cached(&self, space: Space, key: &[u8]) -> Result<Cached, StoreError> {
        Self::fail_if(self.faults.settings().fail_reads, "reading")?;
        self.store.get_cached(space, key)
    }

    fn write(&self, batch: Batch, sync: bool) -> Result<(), StoreError> {
        Self::fail_if(self.faults.settings().fail_writes, "writing")?;
        if sync {
            self.before_sync()?;
        }
        self.store.write(batch, sync)?;
        if sync { self.synced() } else { Ok(()) }
    }

    fn write_at_once(&self, batch: &Batch) -> Result<bool, StoreError> {
        Self::fail_if(self.faults.settings().fail_writes, "writing")?;
        self.store.write_at_once(batch)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.before_sync()?;
        self.store.sync()?;
        self.synced()
    }

    fn scan(&self, space: Space, range: KeyRange<'_>, limit: ScanLimit) -> Result<Page, StoreError> {
        Self::fail_if(self.faults.settings().fail_reads, "scanning")?;
        self.store.scan(space, range, limit)
    }

    fn write_run(
        &self,
        records: &mut dyn Iterator<Item = (Bytes, Bytes)>,
    ) -> Result<Option<Run>, StoreError> {
        Self::fail_if(self.faults.settings().fail_writes, "writing a sorted run")?;
        self.store.write_run(records)
    }

    fn take_in(&self, run: &Run) -> Result<Option<Vec<Bytes>>, StoreError> {
        self.before_sync()?;
        self.store.take_in(run)
    }

    fn estimate(&self) -> Result<Estimate, StoreError> {
        self.store.estimate()
    }

    fn counters(&self) -> StoreCounters {
        self.store.counters()
    }

    fn health(&self) -> Result<Health, StoreError> {
        let mut health = self.store.health()?;
        if let (true, Some(disk)) = (self.faults.settings().disk_full, &mut health.disk) {
            disk.free_bytes = 0;
        }
        Ok(health)
    }

    fn sequence(&self) -> u64 {
        self.store.sequence()
    }

    fn blocks(&self) -> bool {
        self.store.blocks()
    }
}
