//! Writers whose history is judged: gets, puts and deletes with contexts, blind puts, increments, on keys that they share.
//!
//! They go on until told to stop, and judge when told to, by a key of the cluster itself: whoever makes the faults knows when
//! they are over.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dynamo_client::{Client, Context, Error, Found};
use dynamo_history::{Findings, History, Outcome, ValueId, Write};
use futures::{StreamExt as _, stream};
use tokio::time::{Instant, MissedTickBehavior};

use crate::report::{Line, now_ms};

/// The bucket of counters; its policy must say so.
pub const COUNTERS: &str = "soak-counters";
/// The bucket of all else.
pub const KEYS: &str = "soak-keys";
/// The key that tells writers what to do.
pub const SIGNAL: &str = "signal";
/// Its value: stop writing.
pub const STOP: &str = "stop";
/// Its value: judge.
pub const JUDGE: &str = "judge";

/// Gets at once while judging.
const AT_ONCE: usize = 16;
/// A key that cannot be read is tried again for so long.
const READABLE: Duration = Duration::from_mins(1);
/// Between two looks at the signal.
const POLL: Duration = Duration::from_secs(1);

/// What writers do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Same seed, same choices.
    pub seed: u64,
    /// Keys, and a tenth as many counters.
    pub keys: u64,
    /// Operations per second of all writers.
    pub rate: u32,
    /// Writers.
    pub writers: u32,
}

/// Writes until told to stop, and judges when told to; returns the verdict.
pub async fn run(client: &Client, plan: &Plan) -> Line {
    Line::Started { at_ms: now_ms() }.print();
    let shared = Arc::new(Shared {
        keys: client.with_bucket(KEYS),
        history: Mutex::default(),
        second: Mutex::default(),
    });
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let pause = Duration::from_secs(1) * plan.writers / plan.rate.max(1);
    let writers = (0..plan.writers).map(|id| {
        let chance = Chance(plan.seed ^ (u64::from(id) << 32));
        tokio::spawn(write(
            shared.clone(),
            chance,
            plan.keys,
            (pause, stopped.clone(), id),
        ))
    });
    let writers: Vec<_> = writers.collect();
    told(&shared, &[STOP, JUDGE]).await;
    stop.send_replace(true);
    futures::future::join_all(writers).await;
    {
        let history = shared.history();
        Line::Stopped {
            at_ms: now_ms(),
            acknowledged: history.count(Outcome::Acknowledged),
            unknown: history.count(Outcome::Unknown),
            not_applied: history.count(Outcome::NotApplied),
        }
        .print();
    }
    told(&shared, &[JUDGE]).await;
    judge(&shared).await
}

struct Shared {
    keys: Client,
    history: Mutex<History>,
    second: Mutex<(u64, u64)>,
}

impl Shared {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self, outcome: Outcome) {
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        second.0 += 1;
        second.1 += u64::from(outcome != Outcome::Acknowledged);
    }
}

/// Random numbers from a seed (SplitMix64): the choices are part of the seed, so they must not change with a library.
pub struct Chance(pub u64);

impl Chance {
    /// The next one.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..count`.
    pub fn below(&mut self, count: u64) -> u64 {
        self.number() % count.max(1)
    }
}

/// Waits until the signal is one of these; prints a line for every second meanwhile.
async fn told(shared: &Shared, signals: &[&str]) {
    let mut tick = tokio::time::interval(POLL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let (ops, failures) =
            std::mem::take(&mut *shared.second.lock().unwrap_or_else(PoisonError::into_inner));
        Line::Second {
            at_ms: now_ms(),
            ops,
            failures,
            slowest_ms: 0,
        }
        .print();
        if let Ok(found) = shared.keys.get(SIGNAL).await {
            let told = |value: &[u8]| signals.iter().any(|signal| signal.as_bytes() == value);
            if found.values().any(|value| told(value)) {
                return;
            }
        }
    }
}

type Pace = (Duration, tokio::sync::watch::Receiver<bool>, u32);

/// One writer.
async fn write(shared: Arc<Shared>, mut chance: Chance, keys: u64, (pause, stopped, id): Pace) {
    let mut pace = tokio::time::interval(pause);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for turn in 0_u64.. {
        pace.tick().await;
        if *stopped.borrow() {
            return;
        }
        // Unique over writers and turns.
        let value = (u64::from(id) << 40) | turn;
        let key = format!("key/{}", chance.below(keys));
        let outcome = match chance.below(100) {
            0..20 => increment(&shared, &mut chance, keys).await,
            20..30 => put(&shared, &key, Some(value), None).await,
            30..40 => replace(&shared, &key, None).await,
            _ => replace(&shared, &key, Some(value)).await,
        };
        shared.ended(outcome);
    }
}

async fn increment(shared: &Shared, chance: &mut Chance, keys: u64) -> Outcome {
    let counter = format!("counter/{}", chance.below(keys / 10));
    let by = 1 + chance.below(5).cast_signed();
    let result = shared.keys.update(COUNTERS, &counter).increment(by).await;
    let outcome = outcome(result.as_ref().err());
    shared.history().increment(&counter, by, outcome);
    outcome
}

/// Gets, and puts or deletes with the context.
async fn replace(shared: &Shared, key: &str, value: Option<ValueId>) -> Outcome {
    match shared.keys.get(key).await {
        Ok(found) => put(shared, key, value, Some((ids(&found), found.context))).await,
        Err(Error::NotFound { context }) => put(shared, key, value, Some((Vec::new(), context))).await,
        Err(_) => Outcome::NotApplied,
    }
}

/// Puts, or deletes without a value; blind without what was seen.
async fn put(
    shared: &Shared,
    key: &str,
    value: Option<ValueId>,
    seen: Option<(Vec<ValueId>, Context)>,
) -> Outcome {
    let (saw, context) = seen.unwrap_or_else(|| (Vec::new(), Context::none()));
    let result = match value {
        Some(value) => shared.keys.put(key, value.to_string(), &context).await,
        // Nothing was ever there, so there is nothing to delete.
        None if context.is_none() || saw.is_empty() => return Outcome::Acknowledged,
        None => shared.keys.delete(key, &context).await,
    };
    let outcome = outcome(result.as_ref().err());
    shared.history().write(key, Write { value, saw, outcome });
    outcome
}

fn outcome(error: Option<&Error>) -> Outcome {
    match error.map(Error::outcome) {
        None => Outcome::Acknowledged,
        Some(dynamo_client::Outcome::NotApplied) => Outcome::NotApplied,
        Some(_) => Outcome::Unknown,
    }
}

/// The ids of all siblings; a value that is none counts as one that nobody wrote.
fn ids(found: &Found) -> Vec<ValueId> {
    let text = |value: &bytes::Bytes| String::from_utf8_lossy(value).parse();
    found
        .values()
        .map(|value| text(value).unwrap_or(ValueId::MAX))
        .collect()
}

/// Reads every key and counter, and judges them.
async fn judge(shared: &Shared) -> Line {
    let history = shared.history().clone();
    let (mut findings, mut unreadable) = (Findings::default(), 0);
    let counts = shared.keys.with_bucket(COUNTERS);
    let mut keys = stream::iter(history.keys())
        .map(|key| async move { (key, readable(&shared.keys, key).await) })
        .buffer_unordered(AT_ONCE);
    while let Some((key, found)) = keys.next().await {
        match found {
            Ok(found) => {
                let found: BTreeSet<ValueId> = found.iter().flat_map(ids).collect();
                history.judge(key, &found, &mut findings);
            }
            Err(error) => {
                unreadable += 1;
                findings.examples.push(format!("{key}: {error}"));
            }
        }
    }
    for counter in history.counters() {
        match readable(&counts, counter).await {
            Ok(found) => {
                let value = found.and_then(|found| found.typed?.counter());
                history.judge_counter(counter, value, &mut findings);
            }
            Err(error) => {
                unreadable += 1;
                findings.examples.push(format!("{counter}: {error}"));
            }
        }
    }
    Line::Judged {
        keys: findings.keys,
        counters: findings.counters,
        acknowledged: findings.acknowledged,
        lost: findings.lost,
        invented: findings.invented,
        ancestors: findings.ancestors,
        miscounted: findings.miscounted,
        unreadable,
        examples: findings.examples,
    }
}

/// What a key holds, tried again while it cannot be read.
async fn readable(client: &Client, key: &str) -> Result<Option<Found>, Error> {
    let deadline = Instant::now() + READABLE;
    loop {
        match client.get(key).await {
            Ok(found) => return Ok(Some(found)),
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
