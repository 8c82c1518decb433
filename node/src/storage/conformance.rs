//! One suite for every [`Store`]. An implementation names itself as a [`Subject`] and calls [`suite!`].

use std::{collections::BTreeMap, ops::Bound, path::Path, sync::Arc};

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    Batch, Cached, Health, KeyRange, Page, ScanLimit, Space, Store,
    buffered::BufferedStore,
    memory::MemoryStore,
    rocks::{RocksOptions, RocksStore},
};

/// A store that can lose its process.
pub(crate) trait Subject {
    /// A new, empty one.
    fn create() -> Self;
    fn store(&self) -> &dyn Store;
    /// Ends the process at once, as `kill -9` does, and opens what it left.
    fn kill(&mut self);
}

/// The twin: its unsynced writes are safe from the end of a process that it does not have.
pub(crate) struct Memory(pub(crate) MemoryStore);

/// RocksDB in a directory of its own.
pub(crate) struct Rocks {
    pub(crate) store: Arc<RocksStore>,
    directory: tempfile::TempDir,
}

/// A buffer in front of each of them that is flushed now and then. It gives up what a kill takes, and nothing else.
pub(crate) struct Buffered<S> {
    store: BufferedStore<S>,
    _directory: Option<tempfile::TempDir>,
}

impl Subject for Buffered<MemoryStore> {
    fn create() -> Self {
        Self {
            store: BufferedStore::new(MemoryStore::new(), BUFFER_BYTES),
            _directory: None,
        }
    }

    fn store(&self) -> &dyn Store {
        &self.store
    }

    fn kill(&mut self) {}
}

impl Subject for Buffered<RocksStore> {
    fn create() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            store: BufferedStore::new(open(directory.path()), BUFFER_BYTES),
            _directory: Some(directory),
        }
    }

    fn store(&self) -> &dyn Store {
        &self.store
    }

    fn kill(&mut self) {}
}

/// So small that some writes of every test are flushed, and some are not.
const BUFFER_BYTES: usize = 16;

impl Subject for Memory {
    fn create() -> Self {
        Self(MemoryStore::new())
    }

    fn store(&self) -> &dyn Store {
        &self.0
    }

    fn kill(&mut self) {}
}

impl Subject for Rocks {
    fn create() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            store: Arc::new(open(directory.path())),
            directory,
        }
    }

    fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Copies the files as they are while the store is still open: that is what a killed process leaves.
    fn kill(&mut self) {
        let directory = copy(self.directory.path());
        self.store = Arc::new(open(directory.path()));
        self.directory = directory;
    }
}

pub(crate) fn open(path: &Path) -> RocksStore {
    RocksStore::open(path, RocksOptions::default()).unwrap()
}

pub(crate) fn copy(path: &Path) -> tempfile::TempDir {
    let image = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() && entry.file_name() != "LOCK" {
            std::fs::copy(entry.path(), image.path().join(entry.file_name())).unwrap();
        }
    }
    image
}

macro_rules! suite {
    ($module:ident, $subject:ty) => {
        mod $module {
            use super::*;

            #[test]
            fn puts_and_deletes() {
                super::puts_and_deletes(&<$subject>::create());
            }

            #[test]
            fn spaces_are_apart() {
                super::spaces_are_apart(&<$subject>::create());
            }

            #[test]
            fn a_batch_takes_effect_in_its_order() {
                super::a_batch_takes_effect_in_its_order(&<$subject>::create());
            }

            #[test]
            fn a_page_ends_at_its_limits_and_its_range() {
                super::a_page_ends_at_its_limits_and_its_range(&<$subject>::create());
            }

            #[test]
            fn the_sequence_counts_changes() {
                super::the_sequence_counts_changes(&<$subject>::create());
            }

            #[test]
            fn a_reader_sees_all_of_a_batch_or_nothing() {
                super::a_reader_sees_all_of_a_batch_or_nothing(&<$subject>::create());
            }

            #[test]
            fn recent_writes_are_known_without_the_disk() {
                super::recent_writes_are_known_without_the_disk(&<$subject>::create());
            }

            #[test]
            fn a_new_store_is_healthy_and_counts_its_keys() {
                super::a_new_store_is_healthy_and_counts_its_keys(&<$subject>::create());
            }

            #[test]
            fn it_behaves_like_a_map() {
                super::it_behaves_like_a_map(&<$subject>::create());
            }
        }
    };
}

suite!(memory, Memory);
suite!(rocks, Rocks);
suite!(buffered_memory, Buffered<MemoryStore>);
suite!(buffered_rocks, Buffered<RocksStore>);

#[test]
fn a_killed_process_loses_nothing_of_the_stores_without_a_buffer() {
    a_killed_process_loses_nothing(&mut Memory::create());
    a_killed_process_loses_nothing(&mut Rocks::create());
}

fn the_sequence_counts_changes(subject: &impl Subject) {
    let store = subject.store();
    let before = store.sequence();
    put(store, Space::Data, "a", "1");
    let mut batch = Batch::new();
    batch.put(Space::Data, &b"a"[..], &b"2"[..]);
    batch.delete(Space::Marks, &b"never there"[..]);
    store.write(batch, true).unwrap();
    assert_eq!(store.sequence(), before + 3);
    store.sync().unwrap();
    assert_eq!(store.sequence(), before + 3, "a sync is no change");
}

const ALL: KeyRange<'static> = (Bound::Unbounded, Bound::Unbounded);
const NO_LIMIT: ScanLimit = ScanLimit {
    entries: usize::MAX,
    bytes: usize::MAX,
};

fn put(store: &dyn Store, space: Space, key: &str, value: &str) {
    let mut batch = Batch::new();
    batch.put(space, key.as_bytes().to_vec(), value.as_bytes().to_vec());
    store.write(batch, false).unwrap();
}

fn get(store: &dyn Store, space: Space, key: &str) -> Option<String> {
    let value = store.get(space, key.as_bytes()).unwrap();
    value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

fn keys(page: &Page) -> Vec<&str> {
    page.entries
        .iter()
        .map(|(key, _)| std::str::from_utf8(key).unwrap())
        .collect()
}

fn puts_and_deletes(subject: &impl Subject) {
    let store = subject.store();
    assert_eq!(get(store, Space::Data, "k"), None);
    put(store, Space::Data, "k", "1");
    put(store, Space::Data, "k", "2");
    assert_eq!(get(store, Space::Data, "k").as_deref(), Some("2"));
    put(store, Space::Data, "empty", "");
    assert_eq!(
        get(store, Space::Data, "empty").as_deref(),
        Some(""),
        "an empty value is a value"
    );
    let mut batch = Batch::new();
    batch.delete(Space::Data, &b"k"[..]);
    batch.delete(Space::Data, &b"never there"[..]);
    store.write(batch, true).unwrap();
    assert_eq!(get(store, Space::Data, "k"), None);
    store.write(Batch::new(), true).unwrap();
    store.sync().unwrap();
}

fn spaces_are_apart(subject: &impl Subject) {
    let store = subject.store();
    for space in Space::ALL {
        put(store, space, "k", space.name());
    }
    for space in Space::ALL {
        assert_eq!(get(store, space, "k").as_deref(), Some(space.name()));
        let from_k = (Bound::Included(&b"k"[..]), Bound::Unbounded);
        assert_eq!(keys(&store.scan(space, from_k, NO_LIMIT).unwrap()), ["k"]);
    }
}

fn a_batch_takes_effect_in_its_order(subject: &impl Subject) {
    let store = subject.store();
    let mut batch = Batch::new();
    batch.put(Space::Data, &b"a"[..], &b"1"[..]);
    batch.delete(Space::Data, &b"a"[..]);
    batch.delete(Space::Data, &b"b"[..]);
    batch.put(Space::Data, &b"b"[..], &b"1"[..]);
    let mut more = Batch::new();
    more.put(Space::Data, &b"b"[..], &b"2"[..]);
    batch.append(more);
    assert_eq!((batch.bytes(), batch.changes().len()), (8, 5));
    store.write(batch, true).unwrap();
    assert_eq!(get(store, Space::Data, "a"), None);
    assert_eq!(get(store, Space::Data, "b").as_deref(), Some("2"));
}

fn a_page_ends_at_its_limits_and_its_range(subject: &impl Subject) {
    let store = subject.store();
    for key in ["d", "b", "a", "c", "e"] {
        put(store, Space::Data, key, "12345");
    }
    let check = |range: KeyRange<'_>, entries, bytes, expected: &[&str], done| {
        let page = store
            .scan(Space::Data, range, ScanLimit { entries, bytes })
            .unwrap();
        assert_eq!(
            (keys(&page), page.done),
            (expected.to_vec(), done),
            "{range:?} {entries} {bytes}"
        );
    };
    let max = usize::MAX;
    check(ALL, max, max, &["a", "b", "c", "d", "e"], true);
    check(
        (Bound::Included(b"b"), Bound::Included(b"d")),
        max,
        max,
        &["b", "c", "d"],
        true,
    );
    check(
        (Bound::Excluded(b"b"), Bound::Excluded(b"d")),
        max,
        max,
        &["c"],
        true,
    );
    check(
        (Bound::Excluded(b"bb"), Bound::Included(b"cc")),
        max,
        max,
        &["c"],
        true,
    );
    check((Bound::Excluded(b"e"), Bound::Unbounded), max, max, &[], true);
    check((Bound::Unbounded, Bound::Excluded(b"a")), max, max, &[], true);
    check(ALL, 2, max, &["a", "b"], false);
    check(ALL, 5, max, &["a", "b", "c", "d", "e"], true);
    check(
        (Bound::Excluded(b"c"), Bound::Included(b"d")),
        1,
        max,
        &["d"],
        true,
    );
    // Each entry has 6 bytes; the one that reaches the limit is the last, and there is always a first.
    check(ALL, max, 7, &["a", "b"], false);
    check(ALL, max, 0, &["a"], false);
}

fn a_killed_process_loses_nothing(subject: &mut impl Subject) {
    put(subject.store(), Space::Data, "unsynced", "1");
    subject.kill();
    assert_eq!(
        get(subject.store(), Space::Data, "unsynced").as_deref(),
        Some("1")
    );
    put(subject.store(), Space::Epochs, "unsynced", "2");
    let sequence = subject.store().sequence();
    subject.kill();
    assert_eq!(
        subject.store().sequence(),
        sequence,
        "counting goes on where it was"
    );
    subject.kill();
    assert_eq!(
        get(subject.store(), Space::Data, "unsynced").as_deref(),
        Some("1")
    );
    assert_eq!(
        get(subject.store(), Space::Epochs, "unsynced").as_deref(),
        Some("2")
    );
}

fn a_reader_sees_all_of_a_batch_or_nothing(subject: &impl Subject) {
    let store = subject.store();
    let write = |number: u32| {
        let mut batch = Batch::new();
        for key in [&b"first"[..], &b"second"[..]] {
            batch.put(Space::Data, key, number.to_be_bytes().to_vec());
        }
        store.write(batch, false).unwrap();
    };
    write(0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (1..2000).for_each(write));
        while !writer.is_finished() {
            let page = store.scan(Space::Data, ALL, NO_LIMIT).unwrap();
            assert_eq!(page.entries[0].1, page.entries[1].1);
        }
    });
}

fn recent_writes_are_known_without_the_disk(subject: &impl Subject) {
    let store = subject.store();
    put(store, Space::Data, "k", "1");
    assert_eq!(
        store.get_cached(Space::Data, b"k").unwrap(),
        Cached::Known(Some(Bytes::from_static(b"1")))
    );
    assert_eq!(
        store.get_cached(Space::Data, b"other").unwrap(),
        Cached::Known(None)
    );
}

fn a_new_store_is_healthy_and_counts_its_keys(subject: &impl Subject) {
    let store = subject.store();
    let health = store.health().unwrap();
    assert!(!health.failed());
    assert_eq!(
        Health {
            memory_bytes: 0,
            disk: None,
            ..health
        },
        Health::default()
    );
    assert!(health.memory_bytes < 16 << 20, "{health:?}");
    if let Some(disk) = health.disk {
        assert!(
            0 < disk.free_bytes && disk.free_bytes <= disk.total_bytes,
            "{disk:?}"
        );
    }
    assert_eq!(store.estimate().unwrap().keys, 0);
    for key in 0..100 {
        put(store, Space::Data, &format!("{key}"), "value");
    }
    let estimate = store.estimate().unwrap();
    assert_eq!(estimate.keys, 100);
    assert!(estimate.bytes >= 500, "{estimate:?}");
}

type Model = BTreeMap<(Space, Vec<u8>), Vec<u8>>;

fn space() -> impl Strategy<Value = Space> {
    prop::sample::select(Space::ALL.to_vec())
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec![0u8, 1, 0xff]), 0..4)
}

fn bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
    prop_oneof![
        Just(Bound::Unbounded),
        key().prop_map(Bound::Included),
        key().prop_map(Bound::Excluded)
    ]
}

/// Random batches and pages against a map. The one store serves all cases: its content goes on with the model's.
fn it_behaves_like_a_map(subject: &impl Subject) {
    let store = subject.store();
    let model = std::cell::RefCell::new(Model::new());
    for space in Space::ALL {
        for (key, value) in store.scan(space, ALL, NO_LIMIT).unwrap().entries {
            model.borrow_mut().insert((space, key.to_vec()), value.to_vec());
        }
    }
    let changes = prop::collection::vec((space(), key(), prop::option::of(any::<[u8; 2]>())), 0..8);
    let scans = (space(), bound(), bound(), 1usize..6, 0usize..20);
    proptest!(|(changes in changes, scan in scans, sync in any::<bool>())| {
        let mut batch = Batch::new();
        for (space, key, value) in changes {
            if let Some(value) = value {
                batch.put(space, key.clone(), value.to_vec());
                model.borrow_mut().insert((space, key), value.to_vec());
            } else {
                batch.delete(space, key.clone());
                model.borrow_mut().remove(&(space, key));
            }
        }
        store.write(batch, sync).unwrap();

        let (space, lower, upper, entries, bytes) = scan;
        let range = (lower.as_ref().map(Vec::as_slice), upper.as_ref().map(Vec::as_slice));
        let page = store.scan(space, range, ScanLimit { entries, bytes }).unwrap();
        let expected = expected_page(&model.borrow(), space, range, entries, bytes);
        prop_assert_eq!(page, expected);
    });
}

fn expected_page(model: &Model, space: Space, range: KeyRange<'_>, entries: usize, bytes: usize) -> Page {
    let within = |key: &&(Space, Vec<u8>)| key.0 == space && super::inside(&range, &key.1);
    let all: Vec<_> = model.keys().filter(within).collect();
    let mut page = Page {
        entries: Vec::new(),
        done: true,
    };
    let mut sum = 0;
    for place in all {
        if page.entries.len() >= entries || (sum >= bytes && !page.entries.is_empty()) {
            page.done = false;
            break;
        }
        let value = &model[place];
        sum += place.1.len() + value.len();
        page.entries.push((place.1.clone().into(), value.clone().into()));
    }
    page
}
