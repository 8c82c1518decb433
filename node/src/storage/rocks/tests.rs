//! What only RocksDB can get wrong. Everything that holds for all stores is in `conformance`.

use std::{
    fs::{self, OpenOptions},
    io,
    path::PathBuf,
};

use rocksdb::Options;

use super::{open::directory_error, *};
use crate::storage::{
    DataKey,
    conformance::{copy, open},
    format::FormatError,
    keys::meta,
    run::KEPT_MAX,
};

fn put(store: &RocksStore, key: &[u8], value: &[u8], sync: bool) {
    let mut batch = Batch::new();
    batch.put(Space::Data, key.to_vec(), value.to_vec());
    store.write(batch, sync).unwrap();
}

fn refusal(path: &Path) -> OpenError {
    RocksStore::open(path, RocksOptions::default()).unwrap_err()
}

fn files(path: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect()
}

#[test]
fn a_second_process_is_told_about_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    assert!(matches!(refusal(directory.path()), OpenError::Locked { .. }));
    drop(store);
    open(directory.path());
}

#[test]
fn a_path_that_is_no_directory_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, b"").unwrap();
    assert!(matches!(refusal(&path), OpenError::NotADirectory { .. }));
    assert!(matches!(
        refusal(&path.join("below")),
        OpenError::NotADirectory { .. }
    ));
}

#[test]
fn a_forbidden_directory_names_who_must_own_it() {
    // Tests may run as root, whom nothing is forbidden: so only the message.
    let error = directory_error(Path::new("/data"), &io::ErrorKind::PermissionDenied.into());
    let text = error.to_string();
    assert!(
        text.contains("/data") && text.contains("writable by user id"),
        "{text}"
    );
}

#[test]
fn a_store_without_its_current_file_is_not_replaced_by_an_empty_one() {
    let directory = tempfile::tempdir().unwrap();
    put(&open(directory.path()), b"k", b"v", true);
    fs::remove_file(directory.path().join("CURRENT")).unwrap();
    assert!(matches!(refusal(directory.path()), OpenError::Incomplete { .. }));
}

#[test]
fn other_peoples_databases_stay_as_they_are() {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    let foreign = |families: &[&str]| {
        let directory = tempfile::tempdir().unwrap();
        let db = DB::open_cf(&options, directory.path(), families).unwrap();
        db.put(b"theirs", b"value").unwrap();
        drop(db);
        let error = refusal(directory.path());
        assert!(
            matches!(
                error,
                OpenError::Format {
                    source: FormatError::Foreign,
                    ..
                }
            ),
            "{error}"
        );
        DB::open_cf(
            &options,
            directory.path(),
            DB::list_cf(&options, directory.path()).unwrap(),
        )
        .unwrap();
    };
    foreign(&["default", "users"]);
    foreign(&["default"]);
}

#[test]
fn a_newer_store_is_named_even_with_spaces_unknown_here() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let mut batch = Batch::new();
    batch.put(
        Space::Meta,
        meta::FORMAT,
        format::marker(format::STORE_FORMAT + 1),
    );
    store.write(batch, true).unwrap();
    drop(store);
    let newer = |error: OpenError| {
        let expected = FormatError::Newer {
            found: format::STORE_FORMAT + 1,
            known: format::STORE_FORMAT,
        };
        assert!(matches!(error, OpenError::Format { source, .. } if source == expected));
    };
    newer(refusal(directory.path()));

    let families = ["default", "data", "epochs", "marks", "of a later release"];
    let mut options = Options::default();
    options.create_missing_column_families(true);
    drop(DB::open_cf(&options, directory.path(), families).unwrap());
    newer(refusal(directory.path()));
}

/// What the loss of power may leave: the log up to somewhere within an unsynced record.
#[test]
fn a_torn_log_leaves_a_prefix() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    put(&store, b"synced", b"v", true);
    let [log] = files(directory.path(), "log").try_into().unwrap();
    let synced_bytes = fs::metadata(&log).unwrap().len();
    for key in [b"1", b"2", b"3"] {
        put(&store, key, &[b'v'; 100], false);
    }
    let all_bytes = fs::metadata(&log).unwrap().len();
    let mut found = Vec::new();
    for length in (synced_bytes..=all_bytes).step_by(40) {
        let image = copy(directory.path());
        let log = image.path().join(log.file_name().unwrap());
        OpenOptions::new()
            .write(true)
            .open(log)
            .unwrap()
            .set_len(length)
            .unwrap();
        let store = open(image.path());
        assert!(
            store.get(Space::Data, b"synced").unwrap().is_some(),
            "at {length}"
        );
        let there = [b"1", b"2", b"3"].map(|key| store.get(Space::Data, key).unwrap().is_some());
        assert!(
            there.is_sorted_by(|earlier, later| earlier >= later),
            "a hole at {length}: {there:?}"
        );
        found.push(there.iter().filter(|there| **there).count());
    }
    assert!(
        found.is_sorted() && found[0] == 0 && found[found.len() - 1] >= 2,
        "{found:?}"
    );
}

/// Rule 5: what an open store shows is synced, although the process that wrote it was killed before its sync.
#[test]
fn what_was_replayed_no_longer_needs_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    put(&store, b"unsynced", b"v", false);
    let killed = copy(directory.path());
    let reopened = open(killed.path());
    assert!(reopened.get(Space::Data, b"unsynced").unwrap().is_some());
    let powerless = copy(killed.path());
    for log in files(powerless.path(), "log") {
        OpenOptions::new()
            .write(true)
            .open(log)
            .unwrap()
            .set_len(0)
            .unwrap();
    }
    let store = open(powerless.path());
    assert!(store.get(Space::Data, b"unsynced").unwrap().is_some());
}

#[test]
fn a_damaged_file_is_an_error_never_an_absent_key() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    put(&store, b"k", &[b'v'; 4000], true);
    store.db.flush_cf(store.family(Space::Data).unwrap()).unwrap();
    drop(store);
    let file = files(directory.path(), "sst")
        .into_iter()
        .max_by_key(|file| fs::metadata(file).unwrap().len());
    let file = file.unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let value = bytes.windows(8).position(|window| window == [b'v'; 8]).unwrap();
    bytes[value] ^= 1;
    fs::write(&file, bytes).unwrap();

    let store = open(directory.path());
    let error = store.get(Space::Data, b"k").unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    let all = (Bound::Unbounded, Bound::Unbounded);
    let error = store
        .scan(
            Space::Data,
            all,
            ScanLimit {
                entries: 10,
                bytes: 10,
            },
        )
        .unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}

#[test]
fn what_is_only_on_disk_is_said_to_be() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    put(&store, b"k", b"v", true);
    store.db.flush_cf(store.family(Space::Data).unwrap()).unwrap();
    drop(store);
    let store = open(directory.path());
    assert_eq!(store.get_cached(Space::Data, b"k").unwrap(), Cached::OnDisk);
    assert_eq!(store.get(Space::Data, b"k").unwrap().as_deref(), Some(&b"v"[..]));
    assert_eq!(
        store.get_cached(Space::Data, b"k").unwrap(),
        Cached::Known(Some(Bytes::from_static(b"v")))
    );
}

#[test]
fn an_errors_words_name_the_record_by_its_hash_alone() {
    let key = DataKey::new("cart", b"secret").unwrap();
    let text = reading(Space::Data, key.as_bytes());
    assert_eq!(text, format!("reading space data at hash {}", key.hash()));
    assert_eq!(
        reading(Space::Meta, meta::IDENTITY),
        "reading the identity record"
    );
}

/// RocksDB would read such a manifest for ever.
#[test]
fn a_manifest_whose_record_has_become_one_of_a_recycled_file_is_damaged() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    let current = fs::read_to_string(directory.path().join("CURRENT")).unwrap();
    let manifest = directory.path().join(current.trim_end());
    let mut bytes = fs::read(&manifest).unwrap();
    // The kind of the second record; the first one says by its length where that begins.
    let second = 7 + usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
    assert_eq!(bytes[second + 6], 1);
    bytes[second + 6] ^= 4;
    fs::write(&manifest, bytes).unwrap();
    assert!(matches!(refusal(directory.path()), OpenError::Damaged { .. }));
    assert!(Remains::open(directory.path(), &[Space::Meta]).is_err());
}

/// Or every flush would send the reads of what was just written to the disk.
#[test]
fn what_has_been_flushed_is_still_in_memory() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    put(&store, b"k", b"v", false);
    store.db.flush_cf(store.family(Space::Data).unwrap()).unwrap();
    assert_eq!(files(directory.path(), "sst").len(), 1);
    let found = store.get_cached(Space::Data, b"k").unwrap();
    assert_eq!(found, Cached::Known(Some(Bytes::from_static(b"v"))));
}

fn run_of(store: &RocksStore, keys: impl IntoIterator<Item = u32>) -> Run {
    let mut records = keys
        .into_iter()
        .map(|key| (key.to_be_bytes().to_vec().into(), Bytes::from_static(b"run")));
    store.write_run(&mut records).unwrap().unwrap()
}

fn value(store: &RocksStore, key: u32) -> Option<Bytes> {
    store.get(Space::Data, &key.to_be_bytes()).unwrap()
}

/// In the buffer, in a file, or written between the run and its arrival: what a store has stays, also when the process
/// ends at once.
#[test]
fn a_run_adds_records_and_replaces_none() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    put(&store, &3u32.to_be_bytes(), b"flushed", true);
    store.db.flush_cf(store.family(Space::Data).unwrap()).unwrap();
    put(&store, &5u32.to_be_bytes(), b"removed", false);
    let mut removal = Batch::new();
    removal.delete(Space::Data, 5u32.to_be_bytes().to_vec());
    store.write(removal, false).unwrap();
    let run = run_of(&store, (0..20_000).step_by(2).chain([20_001]));
    assert_eq!(run.bytes(), 10_001 * 7);
    put(&store, &4u32.to_be_bytes(), b"buffered", false);
    put(&store, &7u32.to_be_bytes(), b"between", false);
    let kept = [3u32, 4, 7].map(|key| Bytes::copy_from_slice(&key.to_be_bytes()));
    assert_eq!(store.take_in(&run).unwrap().unwrap(), kept);
    drop(run);
    assert_eq!(files(&directory.path().join("incoming"), "sst").len(), 0);

    let left = copy(directory.path());
    for store in [&store, &open(left.path())] {
        for (key, expected) in [
            (0, Some("run")),
            (3, Some("flushed")),
            (4, Some("buffered")),
            (5, None),
            (7, Some("between")),
            (8, Some("run")),
            (20_001, Some("run")),
            (20_002, None),
        ] {
            assert_eq!(value(store, key).as_deref(), expected.map(str::as_bytes), "{key}");
        }
    }
    // What is written later counts, whatever the run had.
    put(&store, &8u32.to_be_bytes(), b"later", true);
    assert_eq!(value(&store, 8).unwrap(), "later");
    assert_eq!(value(&open(copy(directory.path()).path()), 8).unwrap(), "later");
}

#[test]
fn a_run_is_refused_where_the_store_has_much_already() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let most = u32::try_from(KEPT_MAX.entries).unwrap();
    let run = run_of(&store, 0..=most + 1);
    for key in 1..=most {
        put(&store, &key.to_be_bytes(), b"kept", false);
    }
    let kept = store.take_in(&run_of(&store, [0, most + 1])).unwrap();
    assert_eq!(kept.unwrap().len(), KEPT_MAX.entries);
    put(&store, &(most + 1).to_be_bytes(), b"kept", false);
    assert_eq!(store.take_in(&run).unwrap(), None);
    assert_eq!(value(&store, 1).unwrap(), "kept");
    assert!(store.write_run(&mut std::iter::empty()).unwrap().is_none());
    let large = vec![0; KEPT_MAX.bytes];
    put(&store, &(most + 10).to_be_bytes(), &large, false);
    put(&store, &(most + 11).to_be_bytes(), b"kept", false);
    let run = run_of(&store, [most + 9, most + 12]);
    assert_eq!(store.take_in(&run).unwrap(), None, "few records, many bytes");
}

#[test]
fn what_a_crash_leaves_of_a_run_goes_with_the_next_opening() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    std::mem::forget(run_of(&store, 0..10));
    drop(store);
    let store = open(directory.path());
    assert!(!directory.path().join("incoming").exists());
    assert_eq!(value(&store, 1), None);
}
