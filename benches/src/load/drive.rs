//! When operations are sent: in a closed loop when the one before is answered, in an open loop when they are due.

use std::{
    fmt::{self, Display},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _, future, stream};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc, watch},
    time::{sleep, timeout},
};

use super::{
    recorder::Recorder,
    workload::{Load, Source},
};
use crate::system::Target;

/// For what is under way at the end of an open loop. What is not answered by then has failed.
const DRAIN: Duration = Duration::from_secs(10);
/// No open loop lasts longer.
const LONGEST: Duration = Duration::from_hours(1);
/// A record is written again so often while records are loaded.
const LOAD_ATTEMPTS: u32 = 10;
/// Between two such attempts.
const LOAD_PAUSE: Duration = Duration::from_millis(100);

/// How operations follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pace {
    /// So many tasks, each with one operation under way.
    Closed(u32),
    /// So many operations a second, whatever becomes of them.
    Rate(f64),
}

/// When a load ends.
#[derive(Debug, Clone)]
pub(crate) enum Until {
    Elapsed(Duration),
    /// Of a closed loop, in all.
    Operations(u64),
    /// Of an open loop: once this is true, or after an hour.
    Told(watch::Receiver<bool>),
}

impl Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(tasks) => write!(f, "{tasks} at a time"),
            Self::Rate(rate) => write!(f, "{rate:.0}/s"),
        }
    }
}

/// Runs a load to its end.
pub(crate) async fn drive(
    target: &Arc<dyn Target>,
    load: &Arc<Load>,
    pace: Pace,
    until: Until,
) -> Result<Recorder> {
    match (pace, until) {
        (Pace::Closed(tasks), Until::Elapsed(elapsed)) => {
            closed(target, load, tasks, u64::MAX, Some(Instant::now() + elapsed)).await
        }
        (Pace::Closed(tasks), Until::Operations(all)) => {
            closed(target, load, tasks, all.div_ceil(u64::from(tasks)), None).await
        }
        (Pace::Rate(rate), Until::Elapsed(elapsed)) => {
            let (_never, told) = watch::channel(false);
            open(target, load, rate, elapsed, told).await
        }
        (Pace::Rate(rate), Until::Told(told)) => open(target, load, rate, LONGEST, told).await,
        (Pace::Closed(_), Until::Told(_)) => bail!("a closed loop ends by time or by operations"),
        (Pace::Rate(_), Until::Operations(_)) => bail!("an open loop ends by time, or when it is told"),
    }
}

/// Writes every record once.
pub(crate) async fn fill(target: &Arc<dyn Target>, load: &Arc<Load>, tasks: usize) -> Result<()> {
    let writes = stream::iter(0..load.plan.records).map(Ok::<_, anyhow::Error>);
    writes
        .try_for_each_concurrent(tasks, |record| async move {
            let mut chance = crate::chance::Chance::stream(load.plan.seed, record);
            let value = load.value(&mut chance);
            for attempt in 1.. {
                match target.put(load.key(record), value.clone()).await {
                    Ok(()) => break,
                    Err(error) if attempt == LOAD_ATTEMPTS => {
                        return Err(
                            error.context(format!("cannot load record {record} in {attempt} attempts"))
                        );
                    }
                    Err(_) => sleep(LOAD_PAUSE).await,
                }
            }
            Ok(())
        })
        .await
}

/// Each task performs `each` operations at most.
async fn closed(
    target: &Arc<dyn Target>,
    load: &Arc<Load>,
    tasks: u32,
    each: u64,
    deadline: Option<Instant>,
) -> Result<Recorder> {
    let first = load.streams(tasks);
    let running = (first..first + u64::from(tasks)).map(|stream| {
        let (target, load) = (Arc::clone(target), Arc::clone(load));
        tokio::spawn(async move {
            let source = load.source(stream);
            one_loop(&*target, &load, source, each, deadline).await
        })
    });
    let mut all = Recorder::default();
    for task in future::join_all(running).await {
        all.add(&task.context("a task of the load has ended badly")?);
    }
    Ok(all)
}

async fn one_loop(
    target: &dyn Target,
    load: &Load,
    mut source: Source,
    mut left: u64,
    deadline: Option<Instant>,
) -> Recorder {
    let mut recorder = Recorder::default();
    let mut now = Instant::now();
    while left > 0 && deadline.is_none_or(|deadline| now < deadline) {
        let (operation, value) = source.next();
        let sent = Instant::now();
        let result = load.perform(target, operation, value).await;
        now = Instant::now();
        recorder.record(operation, now - sent, &result);
        left -= 1;
    }
    recorder
}

/// A thread of its own keeps time: the runtime's timer counts in milliseconds, and its threads are busy.
async fn open(
    target: &Arc<dyn Target>,
    load: &Arc<Load>,
    rate: f64,
    elapsed: Duration,
    told: watch::Receiver<bool>,
) -> Result<Recorder> {
    let count = (rate * elapsed.as_secs_f64()) as u64;
    if count == 0 || count > u64::from(u32::MAX) {
        bail!(
            "cannot send {rate} operations a second for {} s: that is {count} in all",
            elapsed.as_secs()
        );
    }
    let recorder = Arc::new(Mutex::new(Recorder::default()));
    let under_way = Arc::new(Semaphore::new(0));
    let (ended, mut sent_all) = mpsc::channel::<()>(1);
    let sender = {
        let (target, load, recorder, under_way) = (
            Arc::clone(target),
            Arc::clone(load),
            Arc::clone(&recorder),
            Arc::clone(&under_way),
        );
        let runtime = Handle::current();
        move || {
            let _ended = ended;
            super::go_first();
            let mut source = load.source(load.streams(1));
            let began = Instant::now();
            for number in 0..count {
                if *told.borrow() {
                    return number;
                }
                let due = began + Duration::from_secs_f64(number as f64 / rate);
                // Late ones are sent at once, each with its own due time: no back-off.
                if let Some(early) = due.checked_duration_since(Instant::now()) {
                    std::thread::sleep(early);
                }
                let (operation, value) = source.next();
                let (target, load) = (Arc::clone(&target), Arc::clone(&load));
                let (recorder, under_way) = (Arc::clone(&recorder), Arc::clone(&under_way));
                runtime.spawn(async move {
                    let slip = due.elapsed();
                    let result = load.perform(&*target, operation, value).await;
                    let took = due.elapsed();
                    let mut recorder = recorder.lock();
                    recorder.slipped(slip);
                    recorder.record(operation, took, &result);
                    drop(recorder);
                    under_way.add_permits(1);
                });
            }
            count
        }
    };
    let thread = std::thread::Builder::new().name("pace".to_owned()).spawn(sender);
    let thread = thread.context("cannot start the thread that keeps time")?;
    // Answers none; it ends with the thread.
    let _ = sent_all.recv().await;
    let Ok(sent) = thread.join() else {
        bail!("the thread that keeps time has ended badly");
    };
    let all_done = under_way.acquire_many(sent as u32);
    let in_time = timeout(DRAIN, all_done).await.is_ok();
    let mut all = recorder.lock().clone();
    if !in_time {
        let answered = all.done() + all.failed();
        for _ in answered..sent {
            all.fail(format!("no answer {} s after the end", DRAIN.as_secs()));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::future::BoxFuture;

    use super::*;
    use crate::load::workload::{Distribution, Plan, Workload};

    /// Serves one operation at a time, each in `takes`.
    struct Slow {
        one: tokio::sync::Mutex<()>,
        takes: Duration,
    }

    impl Target for Slow {
        fn put(&self, _: Bytes, _: Bytes) -> BoxFuture<'_, Result<()>> {
            Box::pin(async {
                let _turn = self.one.lock().await;
                sleep(self.takes).await;
                Ok(())
            })
        }

        fn get(&self, _: Bytes) -> BoxFuture<'_, Result<Option<Bytes>>> {
            Box::pin(async { bail!("only puts here") })
        }
    }

    /// Tells of every put.
    struct Noted(mpsc::UnboundedSender<()>);

    impl Target for Noted {
        fn put(&self, _: Bytes, _: Bytes) -> BoxFuture<'_, Result<()>> {
            Box::pin(future::ready(self.0.send(()).context("nobody listens")))
        }

        fn get(&self, _: Bytes) -> BoxFuture<'_, Result<Option<Bytes>>> {
            Box::pin(async { bail!("only puts here") })
        }
    }

    fn slow(takes: Duration) -> (Arc<dyn Target>, Arc<Load>) {
        let load = Load::new(Plan {
            workload: Workload::Put,
            distribution: Distribution::Uniform,
            records: 10,
            key_bytes: 24,
            value_bytes: 10,
            seed: 1,
        });
        let one = tokio::sync::Mutex::default();
        (Arc::new(Slow { one, takes }), load)
    }

    /// The point of an open loop: who comes while the server is busy has waited from when it was due.
    #[tokio::test(flavor = "multi_thread")]
    async fn an_open_loop_counts_what_waits() {
        let (target, load) = slow(Duration::from_millis(10));
        let until = Until::Elapsed(Duration::from_millis(200));
        let recorder = drive(&target, &load, Pace::Rate(200.0), until).await.unwrap();
        assert_eq!(
            (recorder.done(), recorder.failed(), recorder.slip.len()),
            (40, 0, 40)
        );
        // 40 operations of 10 ms each that were due within 200 ms: the last one waits for 200 ms and more.
        assert!(recorder.latency().unwrap().max_us >= 190_000.0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_open_loop_ends_when_it_is_told() {
        let (_, load) = slow(Duration::ZERO);
        let (serve, mut served) = mpsc::unbounded_channel();
        let target: Arc<dyn Target> = Arc::new(Noted(serve));
        let (tell, told) = watch::channel(false);
        let pace = Pace::Rate(1000.0);
        let (recorder, ()) = future::join(drive(&target, &load, pace, Until::Told(told)), async {
            for _ in 0..20 {
                served.recv().await.unwrap();
            }
            tell.send(true).unwrap();
        })
        .await;
        let recorder = recorder.unwrap();
        assert!(
            recorder.done() >= 20 && recorder.failed() == 0,
            "{}",
            recorder.done()
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_runs_ask_for_different_keys_and_two_systems_for_the_same() {
        let mut asked = Vec::new();
        for _ in 0..2 {
            let (_, load) = slow(Duration::ZERO);
            let mut runs = Vec::new();
            for _ in 0..2 {
                let mut source = load.source(load.streams(1));
                runs.push((0..50).map(|_| source.next().0).collect::<Vec<_>>());
            }
            assert_ne!(runs[0], runs[1]);
            asked.push(runs);
        }
        assert_eq!(asked[0], asked[1]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_closed_loop_ends_after_its_operations() {
        let (target, load) = slow(Duration::ZERO);
        let recorder = drive(&target, &load, Pace::Closed(4), Until::Operations(100))
            .await
            .unwrap();
        assert_eq!((recorder.done(), recorder.slip.len()), (100, 0));
    }
}
