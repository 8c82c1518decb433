//! The [`Store`] on RocksDB: one database and so one write-ahead log per node, a column family per space.
//!
//! `options` says how it is set up, `open` which directories are refused, and how.

use std::{
    fmt::{self, Debug},
    ops::Bound,
    path::Path,
};

use bytes::Bytes;
use rocksdb::{
    CStrLike, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, Direction, Env, ErrorKind, IteratorMode,
    Options, ReadOptions, WriteBatch, WriteOptions, properties, statistics::Ticker,
};

use super::{
    Batch, Cached, Disk, Estimate, Health, KeyRange, Page, Run, ScanLimit, Space, Store, StoreCounters,
    StoreError, format, inside, keys,
};

mod open;

mod options;

mod runs;

pub use open::{OpenError, Remains};
pub use options::RocksOptions;

use open::{directory_error, open_error, prepare_directory, refuse_endless_manifest, refuse_unknown_spaces};
use options::{database_options, family_name, family_options, memory_only, without_waiting, write_options};
use runs::Runs;

/// A RocksDB store. Only one process at a time can have a directory open.
pub struct RocksStore {
    db: DB,
    /// RocksDB's statistics belong to them.
    options: Options,
    cache: Cache,
    from_memory: ReadOptions,
    synced: WriteOptions,
    unsynced: WriteOptions,
    at_once: WriteOptions,
    runs: Runs,
}

impl RocksStore {
    /// Opens the store in a directory, or makes an empty one there. Replays the log after an unclean end: everything
    /// readable afterwards has been synced.
    ///
    /// # Errors
    /// If the directory cannot be used; see [`OpenError`].
    pub fn open(path: &Path, options: RocksOptions) -> Result<Self, OpenError> {
        Self::open_database(None, path, options)
    }

    /// Like [`RocksStore::open`] on another file system than the usual one, such as one that fails on demand.
    ///
    /// # Errors
    /// As [`RocksStore::open`].
    pub fn open_on(env: &Env, path: &Path, options: RocksOptions) -> Result<Self, OpenError> {
        Self::open_database(Some(env), path, options)
    }

    fn open_database(env: Option<&Env>, path: &Path, options: RocksOptions) -> Result<Self, OpenError> {
        let mut database = database_options(options);
        prepare_directory(path)?;
        refuse_endless_manifest(path)?;
        let cache = Cache::new_hyper_clock_cache(options.block_cache_bytes, 0);
        let family = |space| family_options(space, options, &cache).map_err(|error| open_error(path, &error));
        let mut runs = family(Space::Data)?;
        if let Some(env) = env {
            database.set_env(env);
            runs.set_env(env);
        }
        refuse_unknown_spaces(path, &database)?;
        let families: Result<Vec<_>, OpenError> = Space::ALL
            .into_iter()
            .map(|space| Ok(ColumnFamilyDescriptor::new(family_name(space), family(space)?)))
            .collect();
        let db =
            DB::open_cf_descriptors(&database, path, families?).map_err(|error| open_error(path, &error))?;
        let store = Self {
            db,
            options: database,
            cache,
            from_memory: memory_only(),
            synced: write_options(true),
            unsynced: write_options(false),
            at_once: without_waiting(),
            runs: Runs::open(path, runs).map_err(|error| directory_error(path, &error))?,
        };
        format::claim(&store).map_err(|source| OpenError::Format {
            path: path.to_owned(),
            source,
        })?;
        Ok(store)
    }

    fn family(&self, space: Space) -> Result<&ColumnFamily, StoreError> {
        self.db
            .cf_handle(family_name(space))
            .ok_or_else(|| StoreError::Io {
                attempted: format!("using space {}", space.name()),
                reason: "its column family is not open".to_owned(),
            })
    }

    fn encode(&self, batch: &Batch) -> Result<WriteBatch, StoreError> {
        let mut writes = WriteBatch::default();
        for change in batch.changes() {
            let family = self.family(change.space)?;
            match &change.value {
                Some(value) => writes.put_cf(family, &change.key, value),
                None => writes.delete_cf(family, &change.key),
            }
        }
        Ok(writes)
    }

    fn number(&self, space: Space, property: impl CStrLike + Debug) -> Result<u64, StoreError> {
        let attempted = format!("asking RocksDB for {property:?}");
        let value = self.db.property_int_value_cf(self.family(space)?, property);
        value
            .map(Option::unwrap_or_default)
            .map_err(|error| store_error(attempted, &error))
    }
}

impl Store for RocksStore {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.db.get_pinned_cf(self.family(space)?, key) {
            Ok(value) => Ok(value.map(|value| Bytes::copy_from_slice(&value))),
            Err(error) => Err(store_error(reading(space, key), &error)),
        }
    }

    fn get_cached(&self, space: Space, key: &[u8]) -> Result<Cached, StoreError> {
        match self
            .db
            .get_pinned_cf_opt(self.family(space)?, key, &self.from_memory)
        {
            Ok(value) => Ok(Cached::Known(value.map(|value| Bytes::copy_from_slice(&value)))),
            Err(error) if error.kind() == ErrorKind::Incomplete => Ok(Cached::OnDisk),
            Err(error) => Err(store_error(reading(space, key), &error)),
        }
    }

    fn write(&self, batch: Batch, sync: bool) -> Result<(), StoreError> {
        let options = if sync { &self.synced } else { &self.unsynced };
        let written = self.db.write_opt(self.encode(&batch)?, options);
        written.map_err(|error| write_error(&batch, sync, &error))
    }

    fn write_at_once(&self, batch: &Batch) -> Result<bool, StoreError> {
        match self.db.write_opt(self.encode(batch)?, &self.at_once) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Incomplete => Ok(false),
            Err(error) => Err(write_error(batch, false, &error)),
        }
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.db
            .flush_wal(true)
            .map_err(|error| store_error("syncing the write-ahead log".to_owned(), &error))
    }

    fn scan(&self, space: Space, range: KeyRange<'_>, limit: ScanLimit) -> Result<Page, StoreError> {
        let mut options = ReadOptions::default();
        // A listing reads each block once; it must not push out what gets use.
        options.fill_cache(false);
        if let Bound::Excluded(end) = range.1 {
            options.set_iterate_upper_bound(end);
        }
        let mode = match range.0 {
            Bound::Included(key) | Bound::Excluded(key) => IteratorMode::From(key, Direction::Forward),
            Bound::Unbounded => IteratorMode::Start,
        };
        let mut page = Page {
            entries: Vec::new(),
            done: true,
        };
        let mut bytes = 0;
        for entry in self.db.iterator_cf_opt(self.family(space)?, options, mode) {
            let (key, value) =
                entry.map_err(|error| store_error(format!("listing space {}", space.name()), &error))?;
            if !inside(&range, &key) {
                if matches!(range.0, Bound::Excluded(start) if start == key.as_ref()) {
                    continue;
                }
                break;
            }
            if !page.entries.is_empty() && (page.entries.len() >= limit.entries || bytes >= limit.bytes) {
                page.done = false;
                break;
            }
            bytes += key.len() + value.len();
            page.entries.push((key.into(), value.into()));
        }
        Ok(page)
    }

    fn write_run(
        &self,
        records: &mut dyn Iterator<Item = (Bytes, Bytes)>,
    ) -> Result<Option<Run>, StoreError> {
        self.runs.write(records)
    }

    fn take_in(&self, run: &Run) -> Result<Option<Vec<Bytes>>, StoreError> {
        self.ingest(run)
    }

    fn estimate(&self) -> Result<Estimate, StoreError> {
        Ok(Estimate {
            keys: self.number(Space::Data, properties::ESTIMATE_NUM_KEYS)?,
            bytes: self.number(Space::Data, properties::LIVE_SST_FILES_SIZE)?
                + self.number(Space::Data, properties::CUR_SIZE_ALL_MEM_TABLES)?,
        })
    }

    fn counters(&self) -> StoreCounters {
        let ticker = |ticker| self.options.get_ticker_count(ticker);
        StoreCounters {
            reads: ticker(Ticker::NumberKeysRead),
            read_bytes: ticker(Ticker::BytesRead),
            batches: ticker(Ticker::WriteDoneBySelf) + ticker(Ticker::WriteDoneByOther),
            changes: ticker(Ticker::NumberKeysWritten),
            log_bytes: ticker(Ticker::WalFileBytes),
            log_syncs: ticker(Ticker::WalFileSynced),
        }
    }

    fn health(&self) -> Result<Health, StoreError> {
        let mut health = Health {
            memory_bytes: self.cache.get_usage() as u64,
            disk: Some(disk(self.db.path())?),
            ..Health::default()
        };
        // Errors and stops are those of the database, whichever family is asked.
        health.background_errors = self.number(Space::Data, properties::BACKGROUND_ERRORS)?;
        health.writes_stopped = self.number(Space::Data, properties::IS_WRITE_STOPPED)? > 0;
        health.delayed_write_bytes_per_s = self.number(Space::Data, properties::ACTUAL_DELAYED_WRITE_RATE)?;
        for space in Space::ALL {
            health.memory_bytes += self.number(space, properties::SIZE_ALL_MEM_TABLES)?;
        }
        Ok(health)
    }

    fn sequence(&self) -> u64 {
        self.db.latest_sequence_number()
    }
}

/// Room on the disk that holds a path.
fn disk(path: &Path) -> Result<Disk, StoreError> {
    let found = rustix::fs::statvfs(path).map_err(|error| StoreError::Io {
        attempted: format!("asking for the room on the disk of {}", path.display()),
        reason: error.to_string(),
    })?;
    Ok(Disk {
        // `f_bavail` leaves out what is reserved for root.
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
    })
}

impl Debug for RocksStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocksStore")
            .field("path", &self.db.path())
            .finish_non_exhaustive()
    }
}

fn reading(space: Space, key: &[u8]) -> String {
    match space {
        // Clients' keys do not belong in logs; the hash is enough to find the record.
        Space::Data | Space::Epochs | Space::Marks => {
            format!("reading space {} at hash {}", space.name(), keys::hash_of(key))
        }
        Space::Meta => format!("reading the {} record", String::from_utf8_lossy(key)),
    }
}

fn write_error(batch: &Batch, sync: bool, error: &rocksdb::Error) -> StoreError {
    let how = if sync { "syncing" } else { "writing" };
    let attempted = format!("{how} a batch of {} changes", batch.changes().len());
    store_error(attempted, error)
}

fn store_error(attempted: String, error: &rocksdb::Error) -> StoreError {
    let reason = error.to_string();
    if error.kind() == ErrorKind::Corruption {
        StoreError::Damaged { attempted, reason }
    } else {
        StoreError::Io { attempted, reason }
    }
}

#[cfg(test)]
mod tests;
