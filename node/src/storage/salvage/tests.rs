use std::fs;

use bytes::Bytes;
use dynamo_core::types::{MemberId, Zone};

use super::*;
use crate::storage::{Batch, RocksStore, Store, rocks::RocksOptions};

const RECORDS: usize = 3000;

fn cluster() -> ClusterId {
    ClusterId(*b"0123456789abcdef")
}

/// A closed store with records of an empty state under many keys, in files.
fn store() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let store = RocksStore::open(directory.path(), RocksOptions::default()).unwrap();
    let mut batch = durable::identity(&durable::Identity {
        cluster: cluster(),
        member: MemberId::new("node-1").unwrap(),
        zone: Zone::new("a").unwrap(),
        weight: 1,
    });
    for number in 0..RECORDS {
        let key = DataKey::new("bucket", format!("key-{number}").as_bytes()).unwrap();
        batch.put(Space::Data, key.as_bytes().clone(), KeyState::new().encode());
    }
    store.write(batch, true).unwrap();
    drop(store);
    // What is replayed from the log at a start is in files before the store is open.
    drop(RocksStore::open(directory.path(), RocksOptions::default()).unwrap());
    directory
}

/// Everything that can be read: keys, damaged records, gaps.
fn read(salvage: &mut Salvage) -> (Vec<Bytes>, u64, u64) {
    let (mut keys, mut damaged, mut gaps, mut percent) = (Vec::new(), 0, 0, 0);
    while let Some(portion) = salvage.portion() {
        keys.extend(portion.records.into_iter().map(|(key, _)| key.as_bytes().clone()));
        damaged += portion.damaged;
        gaps += u64::from(portion.gap);
        assert!(portion.percent >= percent);
        percent = portion.percent;
    }
    assert_eq!(percent, 100);
    assert!(keys.is_sorted() && keys.windows(2).all(|pair| pair[0] != pair[1]));
    (keys, damaged, gaps)
}

#[test]
fn everything_is_read_once_and_in_order() {
    let directory = store();
    let mut salvage = Salvage::open(directory.path()).unwrap();
    assert_eq!(salvage.cluster(), Some(cluster()));
    let (keys, damaged, gaps) = read(&mut salvage);
    assert_eq!((keys.len(), damaged, gaps), (RECORDS, 0, 0));
    // It was only read.
    RocksStore::open(directory.path(), RocksOptions::default()).unwrap();
}

#[test]
fn what_follows_a_damaged_place_is_read_too() {
    let directory = store();
    let files = fs::read_dir(directory.path()).unwrap();
    let tables = files
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sst"));
    let table = tables
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    let mut bytes = fs::read(&table).unwrap();
    // Within the data blocks, which come first.
    let place = bytes.len() / 4;
    bytes[place] ^= 1;
    fs::write(&table, bytes).unwrap();

    let (keys, damaged, gaps) = read(&mut Salvage::open(directory.path()).unwrap());
    assert_eq!((damaged, gaps), (0, 1));
    assert!(
        keys.len() < RECORDS && keys.len() > RECORDS * 9 / 10,
        "{}",
        keys.len()
    );
    let half = |key: &Bytes| key[0] >> 7;
    assert!(keys.iter().any(|key| half(key) == 0) && keys.iter().any(|key| half(key) == 1));
}

#[test]
fn a_record_that_is_damaged_is_counted_and_left_out() {
    let directory = store();
    let store = RocksStore::open(directory.path(), RocksOptions::default()).unwrap();
    let mut batch = Batch::new();
    let key = DataKey::new("bucket", b"damaged").unwrap();
    batch.put(Space::Data, key.as_bytes().clone(), &b"no state"[..]);
    batch.put(Space::Data, &b"no key"[..], KeyState::new().encode());
    store.write(batch, true).unwrap();
    drop(store);
    let (keys, damaged, gaps) = read(&mut Salvage::open(directory.path()).unwrap());
    assert_eq!((keys.len(), damaged, gaps), (RECORDS, 2, 0));
}
