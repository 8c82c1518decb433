//! How RocksDB is set up where that differs from its defaults, and why. The aim is few surprises in memory (a node with
//! little data stays far below 128 MiB) and none in recovery.

use rocksdb::{
    BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, DataBlockIndexType, Error, LogLevel,
    Options, ReadOptions, ReadTier, WriteOptions, statistics::StatsLevel,
};

use crate::storage::Space;

/// The sizes of a store that a deployment may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RocksOptions {
    /// Blocks, indexes and filters held in memory, in bytes.
    pub block_cache_bytes: usize,
    /// Writes held in memory before they are flushed to a file, all spaces together, in bytes.
    pub write_buffer_bytes: usize,
    /// Flushes and compactions at once.
    pub background_jobs: i32,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self {
            block_cache_bytes: 32 << 20,
            write_buffer_bytes: 64 << 20,
            background_jobs: 2,
        }
    }
}

pub(super) fn family_name(space: Space) -> &'static str {
    match space {
        Space::Data => "data",
        Space::Epochs => "epochs",
        Space::Marks => "marks",
        // Every database has this one; nothing else would use it.
        Space::Meta => "default",
    }
}

/// Files that RocksDB keeps open at most; below the usual limit of 1,024 per process, sockets included.
const OPEN_FILES_MAX: i32 = 384;
/// Log files together: beyond it the oldest buffers are flushed, which bounds the replay at a start.
const LOG_BYTES_MAX: u64 = 256 << 20;

pub(super) fn database_options(options: RocksOptions) -> Options {
    let mut database = Options::default();
    database.create_if_missing(true);
    database.create_missing_column_families(true);
    // Recovery stops at the first torn record of the log, which leaves a prefix of what was written. What it replays it
    // writes to synced files before the database is open (RocksDB's default). Log files are not recycled: in a recycled
    // one, a damaged record in the middle looks like the end.
    database.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    database.set_recycle_log_file_num(0);
    database.set_track_and_verify_wals_in_manifest(true);
    database.set_paranoid_checks(true);
    // Kept off: with it a killed process would lose acknowledged writes.
    database.set_manual_wal_flush(false);
    database.set_max_total_wal_size(LOG_BYTES_MAX);
    // The kernel begins to write early, so that a sync finds little left to do.
    database.set_wal_bytes_per_sync(512 << 10);
    database.set_bytes_per_sync(1 << 20);
    database.set_db_write_buffer_size(options.write_buffer_bytes);
    database.set_max_background_jobs(options.background_jobs);
    database.set_max_open_files(OPEN_FILES_MAX);
    // RocksDB's own diary: warnings only, two files of 1 MiB.
    database.set_log_level(LogLevel::Warn);
    database.set_max_log_file_size(1 << 20);
    database.set_keep_log_file_num(2);
    // Counters only: what takes time to measure stays off.
    database.enable_statistics();
    database.set_statistics_level(StatsLevel::ExceptHistogramOrTimers);
    database.set_stats_dump_period_sec(0);
    database.set_stats_persist_period_sec(0);
    database
}

/// What is flushed stays in the block cache. It was written last, and often is read next: without it every flush would send reads
/// to the disk, which other threads have to make. Not so for compactions: what a large one writes would push out what gets use.
const KEEP_FLUSHED: &str = "block_based_table_factory={prepopulate_block_cache=kFlushOnly}";

/// # Errors
/// If RocksDB does not know what it is told.
pub(super) fn family_options(space: Space, options: RocksOptions, cache: &Cache) -> Result<Options, Error> {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    // 6: a block's checksum also covers its place in the file.
    table.set_format_version(6);
    // Every put asks first whether an older version is there, and for a new key the answer is no: filters cover all
    // levels, the last one too, and whole keys.
    table.set_bloom_filter(10.0, false);
    table.set_whole_key_filtering(true);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);

    let mut family = Options::default();
    family.set_block_based_table_factory(&table);
    let buffer_bytes = match space {
        Space::Data => options.write_buffer_bytes / 2,
        Space::Epochs => options.write_buffer_bytes / 8,
        Space::Meta | Space::Marks => 1 << 20,
    };
    family.set_write_buffer_size(buffer_bytes);
    family.set_max_write_buffer_number(3);
    family.set_memtable_prefix_bloom_ratio(0.02);
    family.set_memtable_whole_key_filtering(true);
    family.set_level_compaction_dynamic_level_bytes(true);
    // Files of the first level are soon rewritten: compressing them costs more than it saves.
    let (none, lz4) = (DBCompressionType::None, DBCompressionType::Lz4);
    family.set_compression_per_level(&[none, lz4, lz4, lz4, lz4, lz4, lz4]);
    // The binding has no setter for it.
    family.get_options_from_string(KEEP_FLUSHED)
}

pub(super) fn memory_only() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_read_tier(ReadTier::BlockCache);
    options
}

pub(super) fn write_options(sync: bool) -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(sync);
    options
}

/// Fails where a write would have to wait for flushes or compactions.
pub(super) fn without_waiting() -> WriteOptions {
    let mut options = write_options(false);
    options.set_no_slowdown(true);
    options
}
