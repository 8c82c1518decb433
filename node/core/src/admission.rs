//! How much background work the foreground leaves room for. Paper: §6.5.
//!
//! ```text
//!   client's request done ──▶ foreground(latency) ──▶ p99 of the last minute ──▶ level, floor..=1000 per mille
//!   runner ──▶ slice(now) ──▶ the wanting task that had least, and what it may do now ──▶ runner works ──▶ done(used)
//! ```
//!
//! Once a second the level is halved while the p99 is above its target, and otherwise grows by
//! [`LEVEL_STEP`]: background work gives way within seconds and comes back slowly. It never falls below its floor, so
//! no task starves, and without foreground traffic it is full. Tasks share alike: the next slice goes to the one that
//! has had least among those that want any.

use std::collections::{BTreeMap, VecDeque};

/// The latencies that count are this young.
pub const WINDOW_MS: u64 = 60_000;
/// The level is set once in this time.
pub const ADJUST_INTERVAL_MS: u64 = 1000;
/// By so much of a thousand the level grows at a time: from the floor to full in about half a minute.
pub const LEVEL_STEP: u32 = 30;
/// With fewer latencies in the window there is no foreground to speak of.
pub const SAMPLES_MIN: u64 = 10;
/// One slice holds the work of this long at most.
pub const SLICE_MS: u64 = 100;
/// A task that wants nothing looks again after this long.
pub const IDLE_MS: u64 = 1000;

const LEVEL_FULL: u32 = 1000;
/// Latencies of one second are dropped together.
const SECOND_MS: u64 = 1000;
/// Latency classes for each doubling: a class is at most an eighth wide.
const CLASSES_PER_DOUBLING: u64 = 8;
/// Enough for 2^40 microseconds, twelve days.
const CLASSES: usize = 8 * 39;
/// Allowances are counted in millionths, so that a millisecond's share of the smallest rate at the lowest level is not
/// lost: a rate of one in a second at a level of one in a thousand is one millionth in a millisecond.
const MILLIONTHS: i128 = 1_000_000;
/// What a full rate costs in one second, where tasks are compared.
const COST_SECOND: i128 = 1_000_000;

/// Kinds of background work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// Delivery of hints to their owners (§4.6).
    Hints,
    /// Merkle exchanges (§4.7).
    Exchange,
    /// Filling a suspect store.
    Recovery,
    /// Reaping of tombstones and truncation of versions.
    Reap,
    /// Reading everything once in a while to find damage.
    Scrub,
}

impl Task {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Hints,
        Self::Exchange,
        Self::Recovery,
        Self::Reap,
        Self::Scrub,
    ];
}

/// What background work may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The foreground's p99 that background work must not spoil, in microseconds.
    pub target_us: u64,
    /// Operations per second at most, 1 or more.
    pub operations: u64,
    /// Bytes per second at most, 1 or more.
    pub bytes: u64,
    /// Of a thousand parts of these: what is always allowed, 1..=1000.
    pub floor: u32,
}

/// What the runner may do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// For whom; `None`: nothing may be done before `wait_ms` have passed.
    pub task: Option<Task>,
    /// So many operations.
    pub operations: u64,
    /// So many bytes; an operation that turns out larger may be finished, and is paid for afterwards.
    pub bytes: u64,
    /// Ask again after so long; 0 with a task.
    pub wait_ms: u64,
}

/// One node's account of it. Times are milliseconds of one monotonic clock.
#[derive(Clone, Debug)]
pub struct Admission {
    limits: Limits,
    latencies: Latencies,
    level: u32,
    adjusted_ms: u64,
    refilled_ms: u64,
    /// Millionths; below 0 after a slice that cost more than it was given.
    operations_left: i128,
    bytes_left: i128,
    tasks: BTreeMap<Task, Share>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Share {
    wants: bool,
    paused: bool,
    /// What it has had.
    had: u128,
}

impl Admission {
    /// Full level, nothing wanted; values of `limits` out of range are brought into it.
    pub fn new(limits: Limits) -> Self {
        let limits = Limits {
            target_us: limits.target_us,
            operations: limits.operations.max(1),
            bytes: limits.bytes.max(1),
            floor: limits.floor.clamp(1, LEVEL_FULL),
        };
        Self {
            limits,
            latencies: Latencies::default(),
            level: LEVEL_FULL,
            adjusted_ms: 0,
            refilled_ms: 0,
            operations_left: 0,
            bytes_left: 0,
            tasks: Task::ALL.map(|task| (task, Share::default())).into(),
        }
    }

    /// A client's request took `latency_us` microseconds and ended at `now_ms`.
    pub fn foreground(&mut self, latency_us: u64, now_ms: u64) {
        self.advance(now_ms);
        self.latencies.add(latency_us, now_ms);
    }

    /// The foreground's p99 over the last minute in microseconds, rounded up by at most an eighth; `None` if there are
    /// fewer than [`SAMPLES_MIN`] latencies.
    pub fn p99_us(&mut self, now_ms: u64) -> Option<u64> {
        self.advance(now_ms);
        self.latencies.p99_class().map(class_last)
    }

    /// Of a thousand parts of the limits: what is allowed now.
    pub fn level(&mut self, now_ms: u64) -> u32 {
        self.advance(now_ms);
        self.level
    }

    /// Whether a task has work. One that begins to want starts level with the others, whatever it has not used before.
    pub fn want(&mut self, task: Task, wants: bool) {
        self.change(task, |share| share.wants = wants);
    }

    /// Stops a task until it is resumed with `false`.
    pub fn pause(&mut self, task: Task, paused: bool) {
        self.change(task, |share| share.paused = paused);
    }

    /// Whether a task is paused.
    pub fn paused(&self, task: Task) -> bool {
        self.tasks.get(&task).is_some_and(|share| share.paused)
    }

    /// The next piece of background work; what it holds counts as used until [`Admission::done`] says better.
    pub fn slice(&mut self, now_ms: u64) -> Slice {
        self.advance(now_ms);
        self.refill(now_ms);
        let Some(task) = self.next_task() else {
            return Slice {
                task: None,
                operations: 0,
                bytes: 0,
                wait_ms: IDLE_MS,
            };
        };
        let wait_ms = self.wait_ms();
        if wait_ms > 0 {
            return Slice {
                task: None,
                operations: 0,
                bytes: 0,
                wait_ms,
            };
        }
        let slice = Slice {
            task: Some(task),
            operations: whole(self.operations_left),
            bytes: whole(self.bytes_left),
            wait_ms: 0,
        };
        self.charge(task, i128::from(slice.operations), i128::from(slice.bytes));
        slice
    }

    /// What the work of a slice has really cost, be it more or less than it was given.
    pub fn done(&mut self, slice: &Slice, operations: u64, bytes: u64) {
        if let Some(task) = slice.task {
            self.charge(
                task,
                i128::from(operations) - i128::from(slice.operations),
                i128::from(bytes) - i128::from(slice.bytes),
            );
        }
    }

    fn change(&mut self, task: Task, change: impl FnOnce(&mut Share)) {
        let runs = |share: &Share| share.wants && !share.paused;
        let others = self
            .tasks
            .iter()
            .filter(|(other, share)| **other != task && runs(share));
        let least = others.map(|(_, share)| share.had).min();
        if let Some(share) = self.tasks.get_mut(&task) {
            let ran = runs(share);
            change(share);
            if !ran && runs(share) {
                share.had = share.had.max(least.unwrap_or(0));
            }
        }
    }

    fn next_task(&self) -> Option<Task> {
        let running = self
            .tasks
            .iter()
            .filter(|(_, share)| share.wants && !share.paused);
        running.min_by_key(|(_, share)| share.had).map(|(task, _)| *task)
    }

    fn charge(&mut self, task: Task, operations: i128, bytes: i128) {
        self.operations_left -= operations * MILLIONTHS;
        self.bytes_left -= bytes * MILLIONTHS;
        let cost = |used: i128, rate: u64| used * COST_SECOND / i128::from(rate);
        let cost = cost(operations, self.limits.operations) + cost(bytes, self.limits.bytes);
        if let Some(share) = self.tasks.get_mut(&task) {
            share.had = share.had.saturating_add_signed(cost);
        }
    }

    /// Brings the window and the level up to now.
    fn advance(&mut self, now_ms: u64) {
        let missed = now_ms.saturating_sub(self.adjusted_ms) / ADJUST_INTERVAL_MS;
        // After a window's length of silence nothing is left to judge.
        for _ in 0..missed.min(WINDOW_MS / ADJUST_INTERVAL_MS + 1) {
            self.adjusted_ms += ADJUST_INTERVAL_MS;
            self.latencies.expire(self.adjusted_ms);
            self.adjust();
        }
        if now_ms.saturating_sub(self.adjusted_ms) >= ADJUST_INTERVAL_MS {
            self.adjusted_ms = now_ms - now_ms % ADJUST_INTERVAL_MS;
            self.latencies.expire(self.adjusted_ms);
            self.adjust();
        }
    }

    fn adjust(&mut self) {
        self.level = match self.latencies.p99_class() {
            None => LEVEL_FULL,
            Some(class) if class > class_of(self.limits.target_us) => (self.level / 2).max(self.limits.floor),
            Some(_) => (self.level + LEVEL_STEP).min(LEVEL_FULL),
        };
    }

    /// Adds what the time since the last call allows; at most one slice is saved up.
    fn refill(&mut self, now_ms: u64) {
        let elapsed_ms = now_ms.saturating_sub(self.refilled_ms).min(60 * SECOND_MS);
        self.refilled_ms = self.refilled_ms.max(now_ms);
        let refill = |left: i128, rate: u64, level: u32| {
            let per_ms = i128::from(rate) * i128::from(level);
            let saved_max = (per_ms * i128::from(SLICE_MS)).max(MILLIONTHS);
            (left + per_ms * i128::from(elapsed_ms)).min(saved_max)
        };
        self.operations_left = refill(self.operations_left, self.limits.operations, self.level);
        self.bytes_left = refill(self.bytes_left, self.limits.bytes, self.level);
    }

    /// Until there is room for one operation and one byte.
    fn wait_ms(&self) -> u64 {
        let wait = |left: i128, rate: u64| {
            let per_ms = (i128::from(rate) * i128::from(self.level)).max(1);
            let lacks = (MILLIONTHS - left).max(0);
            ((lacks + per_ms - 1) / per_ms).min(i128::from(IDLE_MS)) as u64
        };
        wait(self.operations_left, self.limits.operations).max(wait(self.bytes_left, self.limits.bytes))
    }
}

fn whole(left: i128) -> u64 {
    u64::try_from(left / MILLIONTHS).unwrap_or(0)
}

/// Counts of latency classes over the last minute, second by second.
#[derive(Clone, Debug, Default)]
struct Latencies {
    /// Oldest first: the second's start and its counts by class.
    seconds: VecDeque<(u64, BTreeMap<usize, u64>)>,
    total: BTreeMap<usize, u64>,
    count: u64,
}

impl Latencies {
    fn add(&mut self, latency_us: u64, now_ms: u64) {
        let start_ms = now_ms - now_ms % SECOND_MS;
        if self.seconds.back().is_none_or(|(last_ms, _)| *last_ms < start_ms) {
            self.seconds.push_back((start_ms, BTreeMap::new()));
        }
        let class = class_of(latency_us);
        if let Some((_, counts)) = self.seconds.back_mut() {
            *counts.entry(class).or_default() += 1;
            *self.total.entry(class).or_default() += 1;
            self.count += 1;
        }
    }

    fn expire(&mut self, now_ms: u64) {
        while let Some((start_ms, _)) = self.seconds.front()
            && start_ms + WINDOW_MS < now_ms
        {
            let (_, counts) = self.seconds.pop_front().unwrap_or_default();
            for (class, count) in counts {
                self.count -= count;
                if let Some(total) = self.total.get_mut(&class) {
                    *total -= count;
                }
            }
        }
    }

    /// The class in which 99 of 100 latencies lie or below; nothing if there are too few.
    fn p99_class(&self) -> Option<usize> {
        let rank = (self.count * 99).div_ceil(100);
        let mut seen = 0;
        let mut classes = self.total.iter().filter(|_| self.count >= SAMPLES_MIN);
        classes.find_map(|(class, count)| {
            seen += count;
            (seen >= rank).then_some(*class)
        })
    }
}

/// Classes 0..=15 hold one value each; from there every doubling has eight.
fn class_of(value: u64) -> usize {
    let bits = u64::from((value | 1).ilog2());
    let class = match bits.checked_sub(3) {
        None | Some(0) => value,
        Some(shift) => (shift + 1) * CLASSES_PER_DOUBLING + (value >> shift) - CLASSES_PER_DOUBLING,
    };
    (class as usize).min(CLASSES - 1)
}

/// The largest value of a class.
fn class_last(class: usize) -> u64 {
    let class = class as u64;
    match (class / CLASSES_PER_DOUBLING).checked_sub(1) {
        None | Some(0) => class,
        Some(shift) => (((class % CLASSES_PER_DOUBLING) + CLASSES_PER_DOUBLING + 1) << shift) - 1,
    }
}
