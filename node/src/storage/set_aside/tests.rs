use std::collections::BTreeSet;

use dynamo_core::types::{ClusterId, Incarnation, MemberId, Zone};

use super::*;
use crate::{
    durable::{Identity, Life, Started},
    storage::DataKey,
};

fn who() -> Identity {
    Identity {
        cluster: ClusterId(*b"0123456789abcdef"),
        member: MemberId::new("node-1").unwrap(),
        zone: Zone::new("eu-1").unwrap(),
        weight: 100,
    }
}

fn key() -> DataKey {
    DataKey::new("bucket", b"key").unwrap()
}

/// A node's data directory with some data in it, stopped cleanly.
fn used() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let (store, aside) = open(directory.path(), Part::Data, RocksOptions::default()).unwrap();
    assert_eq!(aside, None);
    let started = durable::start(&store, 7).unwrap();
    let mut batch = durable::identity(&who());
    batch.append(durable::view(b"whom it knew"));
    batch.append(durable::seeds(b"a:7701"));
    batch.put(Space::Data, key().as_bytes().clone(), &b"value"[..]);
    store.write(batch, true).unwrap();
    durable::stop(&store, &started.minter()).unwrap();
    directory
}

fn reopen(directory: &Path) -> (RocksStore, Option<SetAside>) {
    open(directory, Part::Data, RocksOptions::default()).unwrap()
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn holds_data(store: &RocksStore) -> bool {
    store.get(Space::Data, key().as_bytes()).unwrap().is_some()
}

fn assert_goes_on_suspect(started: &Started) {
    assert_eq!(started.identity, Some(who()));
    assert_eq!(started.view.as_deref(), Some(&b"whom it knew"[..]));
    assert_eq!(started.seeds.as_deref(), Some(&b"a:7701"[..]));
    assert_eq!(started.suspect.as_deref(), Some(&b""[..]));
    assert!(matches!(started.life, Life::Renewed { .. }), "{:?}", started.life);
    assert_eq!(
        (started.previous, started.fresh),
        (None, true),
        "what was set aside is accounted for"
    );
    assert_eq!(started.incarnation, Incarnation { generation: 2, id: 8 });
}

/// D32: the node keeps its name, knows what it lacks, and nothing is deleted.
#[test]
fn a_store_is_set_aside_on_request_and_the_node_goes_on_as_a_suspect() {
    let directory = used();
    request(directory.path(), "bad sectors\n").unwrap();
    let (store, aside) = reopen(directory.path());
    let aside = aside.unwrap();
    assert_eq!(aside.path, directory.path().join("set-aside-1"));
    assert_eq!(aside.because, "requested: bad sectors");
    assert_eq!(
        aside.carried,
        ["identity", "incarnation", "starts", "view", "seeds"]
    );
    assert!(!holds_data(&store));
    assert_goes_on_suspect(&durable::start(&store, 8).unwrap());
    drop(store);
    let expected = ["data", "set-aside-1", "set-aside.granted"];
    assert_eq!(names(directory.path()), set(&expected));
    let (store, aside) = reopen(directory.path());
    assert_eq!(aside, None, "once");
    assert!(durable::start(&store, 9).unwrap().suspect.is_some());
    drop(store);
    let kept = RocksStore::open(&directory.path().join("set-aside-1"), RocksOptions::default()).unwrap();
    assert!(holds_data(&kept), "salvage finds it");

    request(directory.path(), "again").unwrap();
    let (_store, aside) = reopen(directory.path());
    assert_eq!(aside.unwrap().path, directory.path().join("set-aside-2"));
}

#[test]
fn a_damaged_store_is_set_aside_with_what_can_still_be_read() {
    let directory = used();
    let data = directory.path().join("data");
    // A table file that the manifest names, cut: RocksDB checks the sizes at open.
    let tables = || {
        fs::read_dir(&data)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "sst"))
            .collect::<Vec<_>>()
    };
    drop(reopen(directory.path()));
    let largest = tables()
        .into_iter()
        .max_by_key(|path| fs::metadata(path).unwrap().len());
    let largest = largest.expect("opening writes what the log held to a table");
    File::options()
        .write(true)
        .open(&largest)
        .unwrap()
        .set_len(10)
        .unwrap();
    assert!(matches!(
        RocksStore::open(&data, RocksOptions::default()),
        Err(OpenError::Damaged { .. })
    ));
    let (store, aside) = reopen(directory.path());
    let aside = aside.unwrap();
    assert!(aside.path.join(largest.file_name().unwrap()).exists());
    assert!(!holds_data(&store));
    let started = durable::start(&store, 8).unwrap();
    assert_eq!(started.suspect.as_deref(), Some(&b""[..]));
}

/// A damaged manifest leaves nothing to read: an unassigned node, that still knows that it is suspect.
#[test]
fn nothing_is_carried_over_from_a_store_that_cannot_be_read() {
    let directory = used();
    let data = directory.path().join("data");
    for entry in fs::read_dir(&data).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("MANIFEST") {
            fs::write(&path, b"not a manifest at all").unwrap();
        }
    }
    let (store, aside) = reopen(directory.path());
    assert_eq!(aside.unwrap().carried, [""; 0]);
    let started = durable::start(&store, 8).unwrap();
    assert_eq!((started.identity, started.life), (None, Life::First));
    assert_eq!(started.suspect.as_deref(), Some(&b""[..]));
}

/// The end of the process at each step: the next start finishes, or begins again, and nothing is lost.
#[test]
fn an_interrupted_change_goes_on_at_the_next_start() {
    let after_the_first_rename = used();
    let path = after_the_first_rename.path();
    request(path, "r").unwrap();
    let paths = Paths::new(path, Part::Data);
    let carried = carry(&paths.store, RocksOptions::default()).unwrap();
    paths
        .prepare_new(Part::Data, &carried, RocksOptions::default())
        .unwrap();
    paths.move_aside(&paths.store).unwrap();
    let (store, aside) = reopen(path);
    assert_eq!(aside, None, "it was done already");
    assert_goes_on_suspect(&durable::start(&store, 8).unwrap());
    assert_eq!(names(path), set(&["data", "set-aside-1", "set-aside.granted"]));
    drop(store);

    let while_the_new_one_is_made = used();
    let path = while_the_new_one_is_made.path();
    request(path, "r").unwrap();
    fs::create_dir(path.join("data.new")).unwrap();
    let (store, aside) = reopen(path);
    assert_eq!(aside.unwrap().path, path.join("set-aside-2"));
    assert_goes_on_suspect(&durable::start(&store, 8).unwrap());
}

#[test]
fn what_an_empty_store_would_not_heal_stays_an_error() {
    let directory = used();
    let (_store, _) = reopen(directory.path());
    let error = open(directory.path(), Part::Data, RocksOptions::default()).unwrap_err();
    assert!(
        matches!(error, SetAsideError::Open(OpenError::Locked { .. })),
        "{error}"
    );
    request(directory.path(), "r").unwrap();
    let error = open(directory.path(), Part::Data, RocksOptions::default()).unwrap_err();
    assert!(
        matches!(error, SetAsideError::Open(OpenError::Locked { .. })),
        "{error}"
    );
}

#[test]
fn damaged_hints_are_set_aside_alone() {
    let directory = used();
    drop(open(directory.path(), Part::Hints, RocksOptions::default()).unwrap());
    for entry in fs::read_dir(directory.path().join("hints")).unwrap() {
        let path = entry.unwrap().path();
        if path
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("MANIFEST")
        {
            fs::write(&path, b"not a manifest at all").unwrap();
        }
    }
    let (hints, aside) = open(directory.path(), Part::Hints, RocksOptions::default()).unwrap();
    assert_eq!(aside.unwrap().path, directory.path().join("hints-set-aside-1"));
    assert_eq!(hints.get(Space::Meta, meta::SUSPECT).unwrap(), None);
    let (store, aside) = reopen(directory.path());
    assert_eq!(aside, None);
    assert!(holds_data(&store));
    assert_eq!(durable::start(&store, 8).unwrap().life, Life::Kept);
}
