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
    time::{Duration, Instant},
};

use dynamo_client::{Client, Context};
use dynamo_history::{Findings, History, Outcome, ValueId, Write};
use dynamo_local::{LocalRing, Running, Settings, program};
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

/// Most memory that the process of the node with this index ever had, in KiB.
pub(crate) fn peak_kib(ring: &LocalRing, index: usize) -> u64 {
    let node = &ring.nodes()[index];
    let Running::Yes { pid } = node.running() else {
        panic!("{} does not run", node.member())
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What writers did.
#[derive(Debug, Default)]
pub(crate) struct Did {
    pub(crate) history: History,
    /// The first failures, for the reader of a failed test.
    pub(crate) failures: Vec<String>,
}

impl Did {
    /// Takes what others did.
    pub(crate) fn merge(&mut self, other: Self) {
        self.history.merge(other.history);
        self.failures.extend(other.failures);
    }

    /// Acknowledged, with unknown outcome, not applied.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        use Outcome::{Acknowledged, NotApplied, Unknown};
        let [acknowledged, unknown, refused] =
            [Acknowledged, Unknown, NotApplied].map(|outcome| self.history.count(outcome));
        (acknowledged, unknown, refused)
    }
}

/// What a client holds of a key between its own writes: which values its context covers.
type Held = BTreeMap<String, (BTreeSet<ValueId>, Context)>;

/// Writes until it is told to stop, each writer to keys of its own; returns all that it did.
async fn write(client: Client, writer: u32, keys: u32, seed: u64, mut stop: watch::Receiver<bool>) -> Did {
    let mut random = SmallRng::seed_from_u64(seed ^ u64::from(writer) << 32);
    let (mut did, mut held) = (Did::default(), Held::new());
    let mut number = 0;
    while !*stop.borrow_and_update() {
        number += 1;
        let key = format!("w{writer}-{}", random.random_range(0..keys));
        one_write(&client, &mut did, &mut held, key, number, &mut random).await;
    }
    did
}

/// One blind put, put in sequence, or read and put.
async fn one_write(
    client: &Client,
    did: &mut Did,
    held: &mut Held,
    key: String,
    value: ValueId,
    random: &mut SmallRng,
) {
    let last = || held.get(&key).cloned().unwrap_or_default();
    let (mut saw, context) = match random.random_range(0..10) {
        // Blind: a sibling of whatever is there. Rare, since siblings add up until a read resolves them.
        0 => (BTreeSet::new(), Context::none()),
        1..=4 => match client.get(&key).await {
            Ok(found) => (numbers(found.values()), found.context),
            Err(_) => last(),
        },
        _ => last(),
    };
    let result = client.put(&key, value.to_string(), &context).await;
    let write = Write {
        value: Some(value),
        saw: saw.iter().copied().collect(),
        outcome: outcome(result.as_ref().err()),
    };
    did.history.write(&key, write);
    match result {
        Ok(written) => {
            // The context covers what that of the request did, and this write: nothing else.
            saw.insert(value);
            held.insert(key, (saw, written.context));
        }
        Err(error) if did.failures.len() < 5 => did.failures.push(format!("put {value} of {key}: {error}")),
        Err(_) => (),
    }
}

/// What became of a write.
pub(crate) fn outcome(error: Option<&dynamo_client::Error>) -> Outcome {
    match error.map(dynamo_client::Error::outcome) {
        None => Outcome::Acknowledged,
        Some(dynamo_client::Outcome::NotApplied) => Outcome::NotApplied,
        Some(_) => Outcome::Unknown,
    }
}

/// Writers that run until [`Writers::stop`].
pub(crate) struct Writers {
    stop: watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<Did>>,
}

impl Writers {
    pub(crate) fn start(client: &Client, count: u32, keys: u32, seed: u64) -> Self {
        Self::start_from(client, 0, count, keys, seed)
    }

    /// With the numbers from `first`.
    pub(crate) fn start_from(client: &Client, first: u32, count: u32, keys: u32, seed: u64) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = |writer| tokio::spawn(write(client.clone(), writer, keys, seed, stopped.clone()));
        Self {
            stop,
            tasks: (first..first + count).map(task).collect(),
        }
    }

    /// All that they did.
    pub(crate) async fn stop(self) -> Did {
        self.stop.send(true).unwrap();
        let mut all = Did::default();
        for task in self.tasks {
            all.merge(task.await.unwrap());
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

/// Reads every key at quorum, and judges it.
pub(crate) async fn judge(client: &Client, history: &History) -> Findings {
    let mut findings = Findings::default();
    for key in history.keys() {
        let found = match client.get(key).await {
            Ok(found) => numbers(found.values()),
            Err(error) if error.is_not_found() => BTreeSet::new(),
            Err(error) => panic!("cannot read {key}: {error}"),
        };
        history.judge(key, &found, &mut findings);
    }
    findings
}

/// Every acknowledged write is there or was replaced.
pub(crate) async fn all_is_kept(client: &Client, history: &History) {
    let findings = judge(client, history).await;
    assert!(findings.nothing_lost(), "{findings:#?}");
}

pub(crate) fn numbers<'a>(values: impl Iterator<Item = &'a bytes::Bytes>) -> BTreeSet<ValueId> {
    values
        .map(|value| std::str::from_utf8(value).unwrap().parse().unwrap())
        .collect()
}
