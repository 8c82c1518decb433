//! A machine with a disk that fails, and a node's storage on it.

use std::{
    collections::BTreeMap,
    future::Future,
    path::PathBuf,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use dynamo_core::{
    replica::{Minter, SiblingCaps, Update},
    types::Incarnation,
    version::{Content, KeyState, Seen, Stamp},
};
use dynamo_fault_fs::{Fault, FaultFs, Loss, Unsynced};
use dynamo_node::storage::{
    DataKey, RocksStore, Store, records,
    rocks::{OpenError, RocksOptions},
    writer::{Durability, WriterOptions},
};
use tokio::{runtime::Runtime, task::JoinHandle};

/// The sync of the interval modes is never due by itself.
pub(crate) const HOUR: Duration = Duration::from_hours(1);

/// So small that a hundred writes are flushed once or twice, and now and then compacted.
pub(crate) const SMALL: RocksOptions = RocksOptions {
    block_cache_bytes: 1 << 20,
    write_buffer_bytes: 64 << 10,
    background_jobs: 2,
};

pub(crate) struct Machine {
    pub(crate) fs: FaultFs,
    directory: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self {
            fs: FaultFs::new(),
            directory: scratch(),
        }
    }

    pub(crate) fn open(&self) -> Result<RocksStore, OpenError> {
        RocksStore::open_on(&self.fs.env(), &self.path(), SMALL)
    }

    /// The power goes, if it has not gone yet, and comes back. All stores have to be closed, as far as one can close
    /// anything without power.
    pub(crate) fn lose_power(&self, unsynced: Unsynced) -> Loss {
        self.fs.fail(Fault::PowerOff);
        self.fs.lose_power(unsynced)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("data")
    }
}

/// In memory if there is a place: what survives is decided above the real disk, so its syncs would only take time.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
}

pub(crate) fn options(durability: Durability) -> WriterOptions {
    WriterOptions {
        durability,
        caps: SiblingCaps::NONE,
        free_bytes_min: Some(0),
    }
}

pub(crate) fn minter(id: u64) -> Minter {
    Minter::new(Incarnation { generation: 1, id }, 1)
}

pub(crate) fn key(number: u8) -> DataKey {
    DataKey::new("bucket", &[number]).unwrap()
}

/// A write that supersedes what its author has seen.
pub(crate) fn update(number: u64, length: usize, context: Seen) -> Update {
    Update {
        content: Content::Value(value(number, length)),
        context,
        op_id: None,
        stamp: Stamp(1),
        expires_at_ms: None,
    }
}

/// What another node sends: its write to a record that it knows.
pub(crate) fn delta(
    state: &mut Option<KeyState>,
    minter: &mut Minter,
    number: u64,
    length: usize,
) -> KeyState {
    let context = state
        .as_ref()
        .map_or_else(Seen::new, |state| state.seen().clone());
    let update = update(number, length, context);
    let made =
        dynamo_core::replica::coordinate(state.as_ref(), None, minter, update, SiblingCaps::NONE).unwrap();
    *state = Some(made.state);
    made.delta
}

/// The number, and bytes that follow from it.
fn value(number: u64, length: usize) -> Bytes {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.extend((0..length as u64).map(|place| (number.wrapping_mul(31) + place * 7) as u8));
    bytes.into()
}

/// The number of a record's only value; panics on any byte that was not written.
pub(crate) fn number(state: &KeyState) -> u64 {
    let live = state.live(0);
    assert_eq!(live.len(), 1, "one author at a time leaves one sibling: {live:?}");
    let bytes = live[0].1.value().unwrap();
    let number = u64::from_be_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(*bytes, value(number, bytes.len() - 8), "never wrong bytes");
    number
}

/// What the store holds of the keys below a number.
pub(crate) fn states(store: &dyn Store, keys: u8) -> BTreeMap<u8, KeyState> {
    let read = |number| records::read(store, &key(number)).unwrap();
    (0..keys)
        .filter_map(|number| Some((number, read(number)?)))
        .collect()
}

/// Submits now, and leaves the answer for later.
pub(crate) async fn submit<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    let mut future = Box::pin(future);
    let first = std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
    match first {
        Poll::Ready(value) => tokio::spawn(std::future::ready(value)),
        Poll::Pending => tokio::spawn(future),
    }
}

/// Waits for the writer's thread to let go of the store, and closes it.
pub(crate) fn close(store: Arc<dyn Store>) {
    let started = Instant::now();
    while Arc::strong_count(&store) > 1 {
        assert!(
            started.elapsed() < Duration::from_mins(1),
            "the writer has not ended"
        );
        std::thread::yield_now();
    }
    drop(store);
}

/// A number from the environment.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}
