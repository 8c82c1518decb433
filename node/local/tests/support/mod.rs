//! What the tests with real processes share.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test program uses a part; in a test a panic is a failure"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use dynamo_client::{Client, Context, Outcome};
use dynamo_local::{LocalRing, Settings, program};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard, watch};

/// For whatever is waited for.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);

/// Rings take processor time from each other, and with it the deadlines of their clients: one at a time.
pub(crate) async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

/// A folder that is removed at the end of the test.
pub(crate) fn folder() -> TempDir {
    tempfile::Builder::new()
        .prefix("dynamo-local-test.")
        .tempdir()
        .unwrap()
}

/// A ring of so many nodes in so many zones, N=3, R=W=2, durability `every`.
pub(crate) fn settings(dir: &Path, nodes: u32, zones: u32) -> Settings {
    let mut settings = Settings::new(dir, program("dynamo-node", None).unwrap());
    settings.wanted.nodes = Some(nodes);
    settings.wanted.zones = Some(zones);
    settings.durability = Some("every".to_owned());
    settings
}

/// A client of the ring; its deadline is the one that the guarantees are stated for.
pub(crate) async fn client(ring: &LocalRing) -> Client {
    let builder = Client::builder()
        .endpoints(ring.endpoints())
        .deadline(Duration::from_secs(2));
    builder.connect().await.unwrap()
}

/// What writers did, and what follows from it for the keys that they wrote.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) keys: BTreeMap<String, KeyHistory>,
    pub(crate) acked: u64,
    pub(crate) unknown: u64,
    pub(crate) not_applied: u64,
    /// The first failures, for the reader of a failed test.
    pub(crate) failures: Vec<String>,
}

/// Every write of a key has a number, which is its value.
#[derive(Debug, Default)]
pub(crate) struct KeyHistory {
    /// Writes that the context of each write covered.
    pub(crate) covers: BTreeMap<u64, BTreeSet<u64>>,
    /// Writes that were acknowledged.
    pub(crate) acked: BTreeSet<u64>,
    /// What was read or written last, with its context.
    last: Option<(BTreeSet<u64>, Context)>,
}

impl KeyHistory {
    /// Acknowledged writes that are neither among `found` nor covered by one that is, directly or through others.
    pub(crate) fn lost(&self, found: &BTreeSet<u64>) -> Vec<u64> {
        let mut kept = BTreeSet::new();
        let mut open: Vec<u64> = found.iter().copied().collect();
        while let Some(write) = open.pop() {
            if kept.insert(write) {
                open.extend(self.covers.get(&write).into_iter().flatten());
            }
        }
        self.acked.difference(&kept).copied().collect()
    }
}

/// Writes until it is told to stop, each writer to keys of its own; returns all that it did.
pub(crate) async fn write(
    client: Client,
    writer: u32,
    keys: u32,
    seed: u64,
    mut stop: watch::Receiver<bool>,
) -> History {
    let mut random = SmallRng::seed_from_u64(seed ^ u64::from(writer) << 32);
    let mut history = History::default();
    let mut number = 0;
    while !*stop.borrow_and_update() {
        number += 1;
        let key = format!("w{writer}-{}", random.random_range(0..keys));
        one_write(&client, &mut history, key, number, &mut random).await;
    }
    history
}

/// One blind put, put in sequence, or read and put.
async fn one_write(client: &Client, history: &mut History, key: String, number: u64, random: &mut SmallRng) {
    let entry = history.keys.entry(key.clone()).or_default();
    let (covers, context) = match random.random_range(0..10) {
        // Blind: a sibling of whatever is there. Rare, since siblings add up until a read resolves them.
        0 => (BTreeSet::new(), Context::none()),
        1..=4 => match client.get(&key).await {
            Ok(found) => (numbers(found.values()), found.context),
            Err(_) => entry.last.clone().unwrap_or_default(),
        },
        _ => entry.last.clone().unwrap_or_default(),
    };
    entry.covers.insert(number, covers.clone());
    match client.put(&key, number.to_string(), &context).await {
        Ok(written) => {
            entry.acked.insert(number);
            // The context covers what that of the request did, and this write: nothing else.
            let mut covered = covers;
            covered.insert(number);
            entry.last = Some((covered, written.context));
            history.acked += 1;
        }
        Err(error) => {
            match error.outcome() {
                Outcome::NotApplied => history.not_applied += 1,
                _ => history.unknown += 1,
            }
            if history.failures.len() < 5 {
                history.failures.push(format!("put {number} of {key}: {error}"));
            }
        }
    }
}

/// Writers that run until [`Writers::stop`].
pub(crate) struct Writers {
    stop: watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<History>>,
}

impl Writers {
    pub(crate) fn start(client: &Client, count: u32, keys: u32, seed: u64) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = |writer| tokio::spawn(write(client.clone(), writer, keys, seed, stopped.clone()));
        Self {
            stop,
            tasks: (0..count).map(task).collect(),
        }
    }

    /// All that they did.
    pub(crate) async fn stop(self) -> History {
        self.stop.send(true).unwrap();
        let mut all = History::default();
        for task in self.tasks {
            let one = task.await.unwrap();
            all.keys.extend(one.keys);
            all.acked += one.acked;
            all.unknown += one.unknown;
            all.not_applied += one.not_applied;
            all.failures.extend(one.failures);
        }
        all
    }
}

/// Waits until no node holds a hint. A read at quorum may miss a write that a stand-in's acknowledgement completed until its hint
/// is delivered, so what is judged after faults is judged after this.
pub(crate) async fn until_hints_are_delivered(ring: &LocalRing) {
    let began = Instant::now();
    loop {
        let mut hints = 0;
        for node in ring.nodes() {
            hints += ring.status(node.member()).await.unwrap().hints;
        }
        if hints == 0 {
            return;
        }
        assert!(began.elapsed() < LIMIT, "{hints} hints are left after {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Reads every key at quorum and names each acknowledged write that is lost.
pub(crate) async fn lost(client: &Client, history: &History) -> Vec<String> {
    let client = Arc::new(client.clone());
    let mut lost = Vec::new();
    for (key, written) in &history.keys {
        let found = match client.get(key).await {
            Ok(found) => numbers(found.values()),
            Err(error) if error.is_not_found() => BTreeSet::new(),
            Err(error) => panic!("cannot read {key} with all nodes up: {error}"),
        };
        let gone = written.lost(&found);
        if !gone.is_empty() {
            lost.push(format!(
                "{key}: writes {gone:?} were acknowledged; found {found:?}"
            ));
        }
    }
    lost
}

fn numbers<'a>(values: impl Iterator<Item = &'a bytes::Bytes>) -> BTreeSet<u64> {
    values
        .map(|value| std::str::from_utf8(value).unwrap().parse().unwrap())
        .collect()
}
