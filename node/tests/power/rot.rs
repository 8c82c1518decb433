//! Bits that flip in the files of a store.

use std::{
    collections::BTreeMap,
    fs,
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
};

use dynamo_core::version::KeyState;
use dynamo_node::{
    durable::{self, Life},
    storage::{
        RocksStore, ScanLimit, Space, Store, Writer, records,
        set_aside::{self, Part},
        writer::Durability,
    },
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{
    harness::{SMALL, close, delta, key, minter, number, options, runtime, scratch, setting},
    history::{Found, History, is_right},
};

const KEYS: u8 = 150;
const THREADS: usize = 8;

/// What became of the flips.
#[derive(Debug, Default)]
struct Totals {
    /// The store does not open, or takes no write, and is left as it is, for a person to see.
    refused: u64,
    /// It does not open and is set aside.
    set_aside: u64,
    /// It opens, and reads of some records fail.
    failed_reads: u64,
    /// It opens, and the end is missing, as its sequence number shows.
    shorter: u64,
    /// Nothing is read from there.
    unnoticed: u64,
}

impl Totals {
    fn plus(self, other: &Self) -> Self {
        Self {
            refused: self.refused + other.refused,
            set_aside: self.set_aside + other.set_aside,
            failed_reads: self.failed_reads + other.failed_reads,
            shorter: self.shorter + other.shorter,
            unnoticed: self.unnoticed + other.unnoticed,
        }
    }
}

/// Guarantee 11: a flipped bit is found, never served. A store with one gives the right bytes or an error, is set aside, or
/// has less than peers know that it had synced: then it knows, or is told, that it is suspect.
#[test]
fn a_flipped_bit_is_never_served() {
    let flips = setting("DYNAMO_BIT_FLIPS", 500);
    let seed = setting("DYNAMO_TEST_SEED", 1);
    let images = [Image::new(1, 60), Image::new(1, 60), Image::new(2, 300)];
    // Closing a store whose compaction failed takes RocksDB a second.
    let totals = std::thread::scope(|scope| {
        let images = &images;
        let share = |first: u64| {
            scope.spawn(move || {
                let mut totals = Totals::default();
                for flip in (first..flips).step_by(THREADS) {
                    flip_one(images, seed, flip, &mut totals);
                }
                totals
            })
        };
        let shares: Vec<_> = (0..THREADS as u64).map(share).collect();
        shares
            .into_iter()
            .fold(Totals::default(), |sum, share| sum.plus(&share.join().unwrap()))
    });
    println!("{totals:?}");
    assert!(
        totals.set_aside > 0 && totals.failed_reads > 0 && totals.shorter > 0,
        "{totals:?}"
    );
}

fn flip_one(images: &[Image], seed: u64, flip: u64, totals: &mut Totals) {
    let mut random = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003) + flip);
    let Image {
        files,
        history,
        synced,
    } = &images[random.random_range(0..images.len())];
    let directory = scratch();
    let data = directory.path().join("data");
    fs::create_dir(&data).unwrap();
    for (name, bytes) in files {
        fs::write(data.join(name), bytes).unwrap();
    }
    let (name, bytes) = &files[random.random_range(0..files.len())];
    let mut bytes = bytes.clone();
    let (place, bit) = (random.random_range(0..bytes.len()), random.random_range(0..8));
    bytes[place] ^= 1 << bit;
    fs::write(data.join(name), bytes).unwrap();
    let what = format!("seed {seed}, flip {flip}: bit {bit} of byte {place} of {name}");
    judge(directory.path(), history, *synced, &what, totals);
}

fn judge(directory: &Path, history: &History<u8>, synced: u64, what: &str, totals: &mut Totals) {
    let Ok((store, aside)) = set_aside::open(directory, Part::Data, SMALL) else {
        totals.refused += 1;
        return;
    };
    // A compaction in the background may have met the flip already, and then nothing is written any more.
    let Ok(started) = durable::start(&store, 99) else {
        totals.refused += 1;
        return;
    };
    if aside.is_some() {
        assert!(started.suspect.is_some(), "{what}");
        totals.set_aside += 1;
        return;
    }
    let found: BTreeMap<_, _> = (0..KEYS)
        .map(|number| (number, records::read(&store, &key(number))))
        .map(|(key, read)| {
            (
                key,
                read.map(|state| state.as_ref().map(number))
                    .map_err(|error| error.to_string()),
            )
        })
        .collect();
    assert!(history.is_some_prefix(&found), "{what}: {found:?}");
    let expected = history.now();
    let right = found.iter().all(|(key, read)| is_right(read, expected.get(key)));
    let failed = found.values().any(Result::is_err);
    if !right {
        // Peers remember what it had announced as synced; see `Started::recovered`.
        assert!(
            started.recovered < synced,
            "{what}: {} of {synced} recovered",
            started.recovered
        );
        assert!(!matches!(started.life, Life::Kept), "{what}");
        totals.shorter += 1;
    } else if failed {
        totals.failed_reads += 1;
    } else {
        totals.unnoticed += 1;
    }
    check_listing(&store, &found, what);
}

/// A listing shows what single reads show, or fails.
fn check_listing(store: &RocksStore, found: &BTreeMap<u8, Found>, what: &str) {
    let limit = ScanLimit {
        entries: 1000,
        bytes: 1 << 30,
    };
    let Ok(page) = store.scan(Space::Data, (Bound::Unbounded, Bound::Unbounded), limit) else {
        return;
    };
    let listed = page.entries.len();
    let read = found.values().flatten().flatten().count();
    assert!(listed >= read, "{what}: {listed} listed, {read} read");
    for (_, value) in page.entries {
        if let Ok(state) = KeyState::decode(value) {
            number(&state);
        }
    }
}

/// The files of a store with tables, a log and a manifest that was killed; and what was synced.
struct Image {
    files: Vec<(String, Vec<u8>)>,
    history: History<u8>,
    synced: u64,
}

impl Image {
    /// With so many starts after the first, and so many writes in each life. Few leave one table for a space, many as many
    /// as are compacted at the next start.
    fn new(restarts: u64, writes: u64) -> Self {
        let directory = scratch();
        let mut random = StdRng::seed_from_u64(writes);
        let mut history = History::new();
        let mut states = BTreeMap::new();
        let mut other = minter(1_000_000);
        let mut synced = 0;
        for life in 0..=restarts {
            let (store, _) = set_aside::open(directory.path(), Part::Data, SMALL).unwrap();
            let started = durable::start(&store, life).unwrap();
            let store: Arc<dyn Store> = Arc::new(store);
            runtime().block_on(async {
                let options = options(Durability::Every);
                let (writer, _failure) =
                    Writer::start(Arc::clone(&store), started.minter(), options).unwrap();
                for count in 0..writes {
                    let place = random.random_range(0..KEYS);
                    let number = life * 1000 + count;
                    let state = states.entry(place).or_default();
                    let delta = delta(state, &mut other, number, random.random_range(0..600));
                    history.submitted(place, Some(number));
                    writer.merge(key(place), delta, true).await.unwrap();
                }
                synced = writer.synced();
            });
            close(store);
        }
        let files = files(&directory.path().join("data"));
        Self {
            files,
            history,
            synced,
        }
    }
}

/// The files that hold data or say which do.
fn files(data: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(data).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let bytes = fs::read(&path).unwrap();
        let is_a = |kind| path.extension().is_some_and(|extension| extension == kind);
        let counts = is_a("sst") || is_a("log") || name.starts_with("MANIFEST") || name == "CURRENT";
        if counts && !bytes.is_empty() {
            files.push((name, bytes));
        }
    }
    files.sort();
    let kinds = |end: &str| files.iter().any(|(name, _)| name.ends_with(end));
    assert!(kinds(".sst") && kinds(".log"), "tables and a log");
    files
}
