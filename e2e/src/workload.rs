//! What the loader does: load records and read them back; keep a steady load, remember every acknowledged write, and look
//! for each of them.
//!
//! An acknowledged write must be found for ever; a failed one may be found or not, and is not looked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dynamo_client::{Client, Context, Error, ReadOptions, Replicas, WriteOptions};
use futures::{StreamExt as _, stream};
use tokio::time::{Instant, MissedTickBehavior};

use crate::{
    records::Record,
    report::{Line, now_ms},
};

/// Requests at once while loading and verifying.
const AT_ONCE: usize = 32;
/// Updates of a cart until the next one is begun, so that values stay small.
const UPDATES_PER_CART: u64 = 400;
/// Carts that are updated at the same time; fewer than workers, so that they meet and make siblings.
const CARTS: u64 = 3;
/// Missing or unreadable keys that a line names.
const EXAMPLES: usize = 5;

const READ: ReadOptions = ReadOptions {
    r: Some(Replicas::Count(2)),
    pr: None,
    deadline: None,
};
const WRITE: WriteOptions = WriteOptions {
    w: Some(Replicas::Count(2)),
    pw: None,
    dw: None,
    zones: None,
    ttl: None,
    deadline: None,
    op_id: None,
};

/// How steady a load is.
#[derive(Clone, Debug)]
pub struct Steady {
    /// How long.
    pub length: Duration,
    /// Operations per second of all workers.
    pub rate: u32,
    /// Operations at once.
    pub workers: u32,
    /// When to look for all acknowledged writes, besides at the end: times from the start.
    pub verify_at: Vec<Duration>,
}

/// Puts every record.
pub async fn load(client: &Client, records: &[Record]) -> Line {
    let began = Instant::now();
    let results = stream::iter(records).map(|record| async {
        let value = record.value.clone().into_bytes();
        client
            .put_with(&record.key, value, &Context::none(), &WRITE)
            .await
    });
    let results: Vec<_> = results.buffer_unordered(AT_ONCE).collect().await;
    let failures: Vec<&Error> = results
        .iter()
        .filter_map(|result| result.as_ref().err())
        .collect();
    for error in failures.iter().take(EXAMPLES) {
        eprintln!("a put failed: {error}");
    }
    Line::Loaded {
        written: (results.len() - failures.len()) as u64,
        failed: failures.len() as u64,
        took_ms: began.elapsed().as_millis() as u64,
    }
}

/// Reads every record, and looks whether it has its value.
pub async fn verify(client: &Client, records: &[Record]) -> Line {
    let expected = records
        .iter()
        .map(|record| (record.key.clone(), vec![record.value.clone()]));
    look_for(client, expected.collect(), is_value).await
}

/// Keeps a steady load; prints a line for every second and every failure. Returns the last line.
pub async fn steady(client: Client, steady: Steady) -> Line {
    let shared = Arc::new(Shared {
        client,
        acknowledged: Mutex::default(),
        second: Mutex::default(),
        ops: AtomicU64::new(0),
        updates: AtomicU64::new(0),
        failures: AtomicU64::new(0),
    });
    Line::Started { at_ms: now_ms() }.print();
    let began = Instant::now();
    let end = began + steady.length;
    let reporter = tokio::spawn(report(shared.clone(), end));
    let looks = steady.verify_at.iter().map(|at| {
        let (shared, at) = (shared.clone(), began + *at);
        async move {
            tokio::time::sleep_until(at).await;
            shared.verify().await;
        }
    });
    let looks = tokio::spawn(futures::future::join_all(looks.collect::<Vec<_>>()));
    let pause = Duration::from_secs(1) * steady.workers / steady.rate.max(1);
    let workers = (0..steady.workers).map(|id| tokio::spawn(work(shared.clone(), id, pause, end)));
    futures::future::join_all(workers).await;
    for ended in [looks.await.map(drop), reporter.await] {
        if let Err(error) = ended {
            eprintln!("a task failed: {error}");
        }
    }
    shared.verify().await;
    Line::Done {
        ops: shared.ops.load(Ordering::Relaxed),
        acknowledged: shared.acknowledged().count(),
        failures: shared.failures.load(Ordering::Relaxed),
    }
}

struct Shared {
    client: Client,
    acknowledged: Mutex<Acknowledged>,
    second: Mutex<Second>,
    ops: AtomicU64,
    updates: AtomicU64,
    failures: AtomicU64,
}

#[derive(Clone, Default)]
struct Acknowledged {
    /// Keys that were written once; the value follows from the key.
    once: Vec<String>,
    /// What was added to carts.
    carts: BTreeMap<String, Vec<String>>,
}

#[derive(Default)]
struct Second {
    ops: u64,
    failures: u64,
    slowest_ms: u64,
}

impl Acknowledged {
    fn count(&self) -> u64 {
        (self.once.len() + self.carts.values().map(Vec::len).sum::<usize>()) as u64
    }
}

impl Shared {
    fn acknowledged(&self) -> MutexGuard<'_, Acknowledged> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn second(&self) -> MutexGuard<'_, Second> {
        self.second.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation, and tells of its failure.
    fn ended(&self, op: &str, key: &str, began: Instant, failure: Option<&Error>) {
        let took_ms = began.elapsed().as_millis() as u64;
        self.ops.fetch_add(1, Ordering::Relaxed);
        {
            let mut second = self.second();
            second.ops += 1;
            second.failures += u64::from(failure.is_some());
            second.slowest_ms = second.slowest_ms.max(took_ms);
        }
        if let Some(error) = failure {
            self.failures.fetch_add(1, Ordering::Relaxed);
            Line::Failure {
                at_ms: now_ms(),
                took_ms,
                op: op.into(),
                key: key.into(),
                reason: error.reason().into(),
                message: format!("{error} {:?}", error.detail()),
            }
            .print();
        }
    }

    /// Looks for what has been acknowledged until now.
    async fn verify(&self) {
        let acknowledged = self.acknowledged().clone();
        let once = acknowledged.once.into_iter().map(|key| {
            let value = value_of(&key);
            (key, vec![value])
        });
        let once = look_for(&self.client, once.collect(), is_value).await;
        let carts = acknowledged.carts.into_iter().collect();
        let carts = look_for(&self.client, carts, holds_items).await;
        once.print();
        carts.print();
    }
}

/// One worker: writes, reads and updates in turn, at its pace, until the end.
async fn work(shared: Arc<Shared>, id: u32, pause: Duration, end: Instant) {
    let mut pace = tokio::time::interval(pause);
    // What a slow operation has missed is not made up for.
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for turn in 0_u64.. {
        pace.tick().await;
        if Instant::now() >= end {
            return;
        }
        match turn % 3 {
            0 => write_once(&shared, format!("once/{id}/{turn}")).await,
            1 => read_once(&shared, turn).await,
            _ => update_cart(&shared, format!("{id}/{turn}")).await,
        }
    }
}

async fn write_once(shared: &Shared, key: String) {
    let began = Instant::now();
    let result = shared
        .client
        .put_with(&key, value_of(&key), &Context::none(), &WRITE)
        .await;
    shared.ended("write", &key, began, result.as_ref().err());
    if result.is_ok() {
        shared.acknowledged().once.push(key);
    }
}

/// Reads something acknowledged; not the same again soon.
async fn read_once(shared: &Shared, turn: u64) {
    let key = {
        let acknowledged = shared.acknowledged();
        let all = &acknowledged.once;
        let Some(last) = all.len().checked_sub(1) else {
            return;
        };
        all[(turn as usize).wrapping_mul(7919) % (last + 1)].clone()
    };
    let began = Instant::now();
    match shared.client.get_with(&key, &READ).await {
        Ok(found) if is_value(&texts(found.values()), &[value_of(&key)]) => {
            shared.ended("read", &key, began, None);
        }
        Err(error) if !error.is_not_found() => shared.ended("read", &key, began, Some(&error)),
        absent_or_other => {
            shared.ended("read", &key, began, None);
            let found = absent_or_other.map(|found| texts(found.values()));
            Line::Verified {
                at_ms: now_ms(),
                checked: 1,
                missing: 1,
                unreadable: 0,
                examples: vec![format!("{key}: {found:?}")],
            }
            .print();
        }
    }
}

/// Get, merge, put with the context: as the paper's shopping cart (§4.4).
async fn update_cart(shared: &Shared, item: String) {
    let count = shared.updates.fetch_add(1, Ordering::Relaxed);
    let key = format!("cart/{}/{}", count / UPDATES_PER_CART, count % CARTS);
    let began = Instant::now();
    let (mut items, context) = match shared.client.get_with(&key, &READ).await {
        Ok(found) => (items(&texts(found.values())), found.context),
        Err(Error::NotFound { context }) => (BTreeSet::new(), context),
        Err(error) => return shared.ended("read of an update", &key, began, Some(&error)),
    };
    items.insert(item.clone());
    let value = items.into_iter().collect::<Vec<_>>().join("\n");
    let result = shared.client.put_with(&key, value, &context, &WRITE).await;
    shared.ended("write of an update", &key, began, result.as_ref().err());
    if result.is_ok() {
        shared.acknowledged().carts.entry(key).or_default().push(item);
    }
}

/// Prints a line for every second until `end`.
async fn report(shared: Arc<Shared>, end: Instant) {
    let mut tick = tokio::time::interval_at(Instant::now() + Duration::from_secs(1), Duration::from_secs(1));
    while Instant::now() < end {
        tick.tick().await;
        let second = std::mem::take(&mut *shared.second());
        Line::Second {
            at_ms: now_ms(),
            ops: second.ops,
            failures: second.failures,
            slowest_ms: second.slowest_ms,
        }
        .print();
    }
}

/// Reads keys, and looks whether `holds(values found, values expected)`.
async fn look_for(
    client: &Client,
    expected: Vec<(String, Vec<String>)>,
    holds: fn(&[String], &[String]) -> bool,
) -> Line {
    let checked = expected.iter().map(|(_, values)| values.len() as u64).sum();
    let mut looks = stream::iter(expected)
        .map(|(key, values)| async move {
            let found = client.get_with(&key, &READ).await;
            (key, values, found)
        })
        .buffer_unordered(AT_ONCE);
    let (mut missing, mut unreadable, mut examples) = (0, 0, Vec::new());
    while let Some((key, values, found)) = looks.next().await {
        let found = match found {
            Ok(found) => texts(found.values()),
            Err(error) if error.is_not_found() => Vec::new(),
            Err(error) => {
                unreadable += 1;
                examples.push(format!("{key}: {error}"));
                continue;
            }
        };
        if !holds(&found, &values) {
            missing += values.len() as u64;
            examples.push(format!("{key}: found {found:?} instead of {values:?}"));
        }
    }
    examples.truncate(EXAMPLES);
    Line::Verified {
        at_ms: now_ms(),
        checked,
        missing,
        unreadable,
        examples,
    }
}

fn value_of(key: &str) -> String {
    format!("the value of {key}")
}

/// Every sibling is the value: a write that was repeated without its context may have made two of it.
fn is_value(found: &[String], expected: &[String]) -> bool {
    !found.is_empty() && found.iter().all(|value| expected.contains(value))
}

/// The siblings together hold all items.
fn holds_items(found: &[String], expected: &[String]) -> bool {
    let items = items(found);
    expected.iter().all(|item| items.contains(item))
}

fn items(siblings: &[String]) -> BTreeSet<String> {
    siblings
        .iter()
        .flat_map(|value| value.lines())
        .map(str::to_owned)
        .collect()
}

fn texts<'a>(values: impl Iterator<Item = &'a Bytes>) -> Vec<String> {
    values
        .map(|value| String::from_utf8_lossy(value).into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_if_every_sibling_is_it_and_a_cart_if_its_items_are_in_any() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(is_value(&words("a a"), &words("a")));
        assert!(!is_value(&words("a b"), &words("a")));
        assert!(!is_value(&[], &words("a")));
        let siblings = ["a\nb".to_owned(), "c".to_owned()];
        assert!(holds_items(&siblings, &words("a c")));
        assert!(!holds_items(&siblings, &words("a d")));
    }
}
