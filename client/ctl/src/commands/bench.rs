//! bench-lite: a closed or an open loop of puts and gets, and how long they took.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use dynamo_client::{Client, Context, Error, Outcome};
use futures::{StreamExt as _, future, stream};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    cli::{BenchLite, Global},
    connect,
    failure::Failure,
    output::{Columns, Output},
};

/// Longest latency that is told apart: a minute, in microseconds.
const LATENCY_US_MAX: u64 = 60_000_000;
/// Tasks that get to know their keys at the same time.
const PREPARING: usize = 64;
/// Digits of a latency that are kept.
const DIGITS: u8 = 3;

/// What one task, or all of them, measured.
struct Measured {
    puts: Histogram<u64>,
    gets: Histogram<u64>,
    /// By operation and reason.
    errors: BTreeMap<(&'static str, String), u64>,
}

/// When to begin, and when to stop.
struct Limits {
    began: Instant,
    until: Instant,
    /// Operations a second that are to begin, answered or not.
    rate: Option<u32>,
    /// Of these, how many a task has taken.
    taken: AtomicU64,
    /// Operations that may still begin.
    left: Option<AtomicU64>,
    done: AtomicU64,
}

/// One closed loop.
struct Task {
    client: Client,
    value: Bytes,
    put_percent: u32,
    /// Its own keys, with the context of its last operation on each; none before the first.
    keys: Vec<(String, Option<Context>)>,
}

pub(crate) async fn run(global: &Global, bench: &BenchLite, output: Output) -> Result<(), Failure> {
    let mut clients = Vec::new();
    for _ in 0..bench.connections {
        clients.push(connect::bench(global, bench).await?);
    }
    let mut tasks = tasks(bench, &clients);
    if bench.rate.is_some() {
        // An open loop shall measure nothing else.
        tasks = stream::iter(tasks)
            .map(Task::prepared)
            .buffer_unordered(PREPARING)
            .collect()
            .await;
    }
    let began = Instant::now();
    let limits = Arc::new(Limits {
        began,
        rate: bench.rate,
        taken: AtomicU64::new(0),
        // A bench of operations may still meet a cluster that serves none.
        until: began
            + bench
                .operations
                .map_or(bench.duration, |_| Duration::from_hours(1)),
        left: bench.operations.map(AtomicU64::new),
        done: AtomicU64::new(0),
    });
    let tasks: Vec<JoinHandle<Result<Measured, Failure>>> = tasks
        .into_iter()
        .map(|task| tokio::spawn(task.run(Arc::clone(&limits))))
        .collect();
    let showing = tokio::spawn(show(
        Arc::clone(&limits),
        bench.duration,
        bench.operations,
        output,
    ));
    let results = future::join_all(tasks).await;
    showing.abort();
    let _ = showing.await;
    let seconds = began.elapsed().as_secs_f64();
    let mut all = Measured::new()?;
    for result in results {
        let result = result.map_err(|error| Failure::new("cannot measure", error.to_string()))?;
        all.add(result?)?;
    }
    output.print(&all.json(bench, seconds), |output| all.text(seconds, output))?;
    if all.puts.is_empty() && all.gets.is_empty() {
        return Err(Failure::new("cannot measure", "no operation succeeded")
            .hint("`dynamoctl status --all` shows whether the nodes are ready"));
    }
    Ok(())
}

/// Shares the keys out, at least one for each task.
fn tasks(bench: &BenchLite, clients: &[Client]) -> Vec<Task> {
    let value: Bytes = (0..bench.value_bytes)
        .map(|_| rand::random::<u8>())
        .collect::<Vec<_>>()
        .into();
    let of = |task: u32| {
        let keys = (task..bench.keys.max(bench.tasks)).step_by(bench.tasks as usize);
        let client = clients[task as usize % clients.len()].clone();
        Task {
            client,
            value: value.clone(),
            put_percent: bench.put_percent,
            keys: keys.map(|key| (format!("bench-lite-{key}"), None)).collect(),
        }
    };
    (0..bench.tasks).map(of).collect()
}

impl Task {
    async fn run(mut self, limits: Arc<Limits>) -> Result<Measured, Failure> {
        let mut measured = Measured::new()?;
        while let Some(begin) = limits.begin() {
            tokio::time::sleep_until(begin.into()).await;
            let chosen = rand::random_range(0..self.keys.len());
            let put = rand::random_range(0..100) < self.put_percent;
            // What was there before is read, unmeasured, so that puts supersede it and gets find something.
            let Some(context) = self.prepare(chosen, put).await else {
                measured.count_error("prepare", "unreadable key");
                continue;
            };
            let key = &self.keys[chosen].0;
            // An open loop that is late has waited all the same.
            let begin = if limits.rate.is_some() {
                begin
            } else {
                Instant::now()
            };
            let result = if put {
                self.client
                    .put(key, self.value.clone(), &context)
                    .await
                    .map(|written| written.context)
            } else {
                self.client.get(key).await.map(|found| found.context)
            };
            let took = begin.elapsed();
            limits.done.fetch_add(1, Ordering::Relaxed);
            let context = match result {
                Ok(context) => {
                    measured.count(put, took);
                    Some(context)
                }
                Err(error) => {
                    measured.count_error(if put { "put" } else { "get" }, reason(&error));
                    // What was not written has changed nothing.
                    (!put || error.outcome() == Outcome::NotApplied).then_some(context)
                }
            };
            self.keys[chosen].1 = context;
        }
        Ok(measured)
    }

    /// Knows all of its keys.
    async fn prepared(mut self) -> Self {
        for chosen in 0..self.keys.len() {
            self.keys[chosen].1 = self.prepare(chosen, false).await;
        }
        self
    }

    async fn prepare(&mut self, chosen: usize, put: bool) -> Option<Context> {
        let (key, known) = &self.keys[chosen];
        if let Some(context) = known {
            return Some(context.clone());
        }
        match self.client.get(key).await {
            Ok(found) => Some(found.context),
            Err(Error::NotFound { context }) if put => Some(context),
            Err(Error::NotFound { context }) => {
                let written = self.client.put(key, self.value.clone(), &context).await;
                written.ok().map(|written| written.context)
            }
            Err(_) => None,
        }
    }
}

impl Limits {
    /// When another operation may begin; `None`: no more.
    fn begin(&self) -> Option<Instant> {
        let now = Instant::now();
        let begin = self.rate.map_or(now, |rate| {
            let number = self.taken.fetch_add(1, Ordering::Relaxed);
            self.began + Duration::from_secs_f64(number as f64 / f64::from(rate))
        });
        if now.max(begin) >= self.until {
            return None;
        }
        let take = |left: u64| left.checked_sub(1);
        if let Some(left) = &self.left {
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .ok()?;
        }
        Some(begin)
    }
}

/// Moves the bar until it is stopped.
async fn show(limits: Arc<Limits>, duration: Duration, operations: Option<u64>, output: Output) {
    let total = operations.unwrap_or(duration.as_millis() as u64);
    let template = if operations.is_some() {
        "{bar:30} {pos}/{len} operations {elapsed}"
    } else {
        "{bar:30} {msg} operations {elapsed}"
    };
    let bar = Cleared(output.progress(Some(total), template));
    let began = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let done = limits.done.load(Ordering::Relaxed);
        bar.0.set_message(done.to_string());
        bar.0
            .set_position(operations.map_or(began.elapsed().as_millis() as u64, |_| done));
    }
}

/// Takes the bar away when the task that shows it is stopped.
struct Cleared(indicatif::ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl Measured {
    fn new() -> Result<Self, Failure> {
        let histogram = || {
            Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS)
                .map_err(|error| Failure::new("cannot measure", error.to_string()))
        };
        Ok(Self {
            puts: histogram()?,
            gets: histogram()?,
            errors: BTreeMap::new(),
        })
    }

    fn count(&mut self, put: bool, took: Duration) {
        let histogram = if put { &mut self.puts } else { &mut self.gets };
        histogram.saturating_record(took.as_micros() as u64);
    }

    fn count_error(&mut self, operation: &'static str, reason: impl Into<String>) {
        *self.errors.entry((operation, reason.into())).or_default() += 1;
    }

    fn add(&mut self, other: Self) -> Result<(), Failure> {
        let failed = |error: hdrhistogram::AdditionError| Failure::new("cannot measure", error.to_string());
        self.puts.add(other.puts).map_err(failed)?;
        self.gets.add(other.gets).map_err(failed)?;
        for (name, count) in other.errors {
            *self.errors.entry(name).or_default() += count;
        }
        Ok(())
    }

    fn operations(&self) -> [(&'static str, &Histogram<u64>); 2] {
        [("put", &self.puts), ("get", &self.gets)]
    }

    fn errors_of(&self, operation: &str) -> u64 {
        self.errors
            .iter()
            .filter(|((name, _), _)| *name == operation)
            .map(|(_, count)| count)
            .sum()
    }

    fn json(&self, bench: &BenchLite, seconds: f64) -> Value {
        let operations = self.operations().map(|(name, histogram)| {
            let at = |percentile: f64| histogram.value_at_percentile(percentile);
            json!({
                "operation": name, "count": histogram.len(), "per_second": histogram.len() as f64 / seconds,
                "p50_us": at(50.0), "p90_us": at(90.0), "p99_us": at(99.0), "p999_us": at(99.9),
                "max_us": histogram.max(), "errors": self.errors_of(name),
            })
        });
        let errors = self.errors.iter().map(|((operation, reason), count)| {
            json!({ "operation": operation, "reason": reason, "count": count })
        });
        json!({
            "seconds": seconds, "tasks": bench.tasks, "connections": bench.connections,
            "value_bytes": bench.value_bytes, "rate": bench.rate, "operations": operations, "errors": errors.collect::<Vec<_>>(),
        })
    }

    fn text(&self, seconds: f64, output: Output) -> String {
        let header = [
            "OPERATION",
            "COUNT",
            "PER SECOND",
            "P50",
            "P90",
            "P99",
            "P99.9",
            "MAX",
            "ERRORS",
        ];
        let mut columns = Columns::new(&header, &[1, 2, 3, 4, 5, 6, 7, 8]);
        for (name, histogram) in self.operations() {
            let mut row = vec![
                name.to_owned(),
                histogram.len().to_string(),
                format!("{:.0}", histogram.len() as f64 / seconds),
            ];
            let percentiles = [50.0, 90.0, 99.0, 99.9].map(|at| histogram.value_at_percentile(at));
            row.extend(percentiles.into_iter().chain([histogram.max()]).map(milliseconds));
            row.push(self.errors_of(name).to_string());
            columns.row(row);
        }
        let mut text = output.table(&columns);
        for ((operation, reason), count) in &self.errors {
            let _ = write!(text, "\n{count} x {operation} failed: {reason}");
        }
        text
    }
}

fn milliseconds(us: u64) -> String {
    format!("{:.2}ms", us as f64 / 1000.0)
}

fn reason(error: &Error) -> String {
    match error.reason() {
        "" => error
            .detail()
            .map_or_else(|| error.to_string(), |detail| format!("{:?}", detail.code)),
        reason => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_errors() {
        let mut measured = Measured::new().unwrap();
        for ms in 1..=1000 {
            measured.count(true, Duration::from_millis(ms));
        }
        measured.count(false, Duration::from_hours(1));
        let mut other = Measured::new().unwrap();
        other.count_error("put", "QUORUM_NOT_MET");
        measured.add(other).unwrap();
        let near = |at: f64| measured.puts.value_at_percentile(at) / 1000;
        assert_eq!((near(50.0), near(99.0), measured.puts.len()), (500, 990, 1000));
        assert!(
            measured.gets.max() >= LATENCY_US_MAX,
            "a longer latency is not lost"
        );
        assert_eq!((measured.errors_of("put"), measured.errors_of("get")), (1, 0));
    }

    #[test]
    fn a_counted_bench_begins_exactly_so_many_operations() {
        let until = Instant::now() + Duration::from_mins(1);
        let counted = limits(until, None, Some(3));
        assert_eq!((0..10).filter(|_| counted.begin().is_some()).count(), 3);
        let over = limits(Instant::now(), None, None);
        assert!(over.begin().is_none());
    }

    #[test]
    fn an_open_loop_has_times_of_its_own() {
        let open = limits(Instant::now() + Duration::from_mins(1), Some(10), None);
        let times = [(); 3].map(|()| open.begin().unwrap() - open.began);
        assert_eq!(times, [0, 100, 200].map(Duration::from_millis));
        let left = std::iter::from_fn(|| open.begin()).take(10_000).count();
        assert!((590..=597).contains(&left), "{left} in the minute's rest");
    }

    fn limits(until: Instant, rate: Option<u32>, left: Option<u64>) -> Limits {
        Limits {
            began: Instant::now(),
            until,
            rate,
            taken: AtomicU64::new(0),
            left: left.map(AtomicU64::new),
            done: AtomicU64::new(0),
        }
    }
}
