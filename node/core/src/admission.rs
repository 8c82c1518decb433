//! How much background work the foreground leaves room for. Paper: §6.5.
//!
//! The 99th percentile of client requests over the last minute is compared with a target, once a second. Above it the
//! rate of background work is halved, below it the rate grows by a step: so background work yields within seconds, and
//! comes back slowly. It never stops entirely, or hints and exchanges would never end under a steady load.
//!
//! All tasks draw from one budget, in small slices; one operation costs 1, and so do [`BYTES_PER_OPERATION`] bytes.

use std::collections::{BTreeMap, BTreeSet};

/// So many bytes cost as much as one operation.
pub const BYTES_PER_OPERATION: u64 = 4 << 10;
/// The percentile is that of requests of the last minute.
pub const WINDOW_MS: u64 = 60_000;
/// A task that is paused, or has to wait, asks again after so long at most.
pub const WAIT_MS_MAX: u64 = 250;

/// A task that does not come when it said so has lost its turn after so long.
const GRACE_MS: u64 = 3;
const SLOTS: usize = 12;
const SLOT_MS: u64 = WINDOW_MS / SLOTS as u64;
const ADJUST_INTERVAL_MS: u64 = 1000;
/// From the lowest rate to the highest in so many steps.
const STEPS: u64 = 20;
/// Buckets per doubling of the latency.
const PER_OCTAVE: u32 = 4;
const BUCKETS: usize = 128;

/// A kind of background work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// Making Merkle trees from records.
    Rebuild,
    /// Delivering hints (§4.6).
    Hints,
    /// Anti-entropy (§4.7).
    Exchange,
    /// Making a suspect store whole.
    Recovery,
    /// Getting what the next ring makes this node hold, and handing over what it holds no more (§4.9).
    Transfer,
    /// Removing tombstones.
    Reap,
    /// Merging a store that was set aside, by an administrator's word.
    Salvage,
}

/// What background work may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Operations a second while the foreground is well or idle.
    pub operations_per_s_max: u64,
    /// Operations a second that it always may; at least 1.
    pub operations_per_s_min: u64,
    /// What the foreground's 99th percentile should stay below, in microseconds.
    pub p99_target_us: u64,
}

/// The gate of all background work on one node. Times are milliseconds of one monotonic clock.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    foreground: Window,
    rate: u64,
    /// Thousandths of operations that may be done now; negative while the last slice is paid off.
    budget: i64,
    refilled_ms: u64,
    adjusted_ms: u64,
    paused: BTreeSet<Task>,
    /// When those who were refused will ask again.
    waiting: BTreeMap<Task, u64>,
}

impl Task {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Rebuild,
        Self::Hints,
        Self::Exchange,
        Self::Recovery,
        Self::Transfer,
        Self::Reap,
        Self::Salvage,
    ];

    /// A word for people and labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rebuild => "rebuild",
            Self::Hints => "hints",
            Self::Exchange => "exchange",
            Self::Recovery => "recovery",
            Self::Transfer => "transfer",
            Self::Reap => "reap",
            Self::Salvage => "salvage",
        }
    }

    /// The task of that [`name`](Self::name).
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|task| task.name() == name)
    }
}

impl Admission {
    /// Begins at the highest rate: nothing is known against it.
    pub fn new(limits: Limits) -> Self {
        Self {
            rate: limits.operations_per_s_max.max(1),
            limits,
            foreground: Window::default(),
            budget: 0,
            refilled_ms: 0,
            adjusted_ms: 0,
            paused: BTreeSet::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// A client's request took so long.
    pub fn sample(&mut self, latency_us: u64, now_ms: u64) {
        self.foreground.add(latency_us, now_ms);
    }

    /// Takes so much from the budget, or says how long to wait before asking again: 1..=[`WAIT_MS_MAX`] ms. A slice
    /// larger than what is left is granted once the budget is positive, and paid off by those that follow.
    ///
    /// # Errors
    /// The wait.
    pub fn take(&mut self, task: Task, operations: u64, bytes: u64, now_ms: u64) -> Result<(), u64> {
        self.adjust(now_ms);
        if self.paused.contains(&task) {
            return Err(WAIT_MS_MAX);
        }
        let cost = operations + bytes / BYTES_PER_OPERATION;
        if cost == 0 {
            return Ok(());
        }
        let wait_ms = if self.budget < 0 {
            self.budget
                .unsigned_abs()
                .div_ceil(self.rate)
                .clamp(1, WAIT_MS_MAX)
        } else {
            u64::from(self.gives_way(task, now_ms))
        };
        if wait_ms > 0 {
            self.waiting.insert(task, now_ms + wait_ms);
            return Err(wait_ms);
        }
        self.waiting.remove(&task);
        self.budget -= (cost * 1000).cast_signed();
        Ok(())
    }

    /// Stops or continues a task.
    pub fn pause(&mut self, task: Task, paused: bool) {
        if paused {
            self.paused.insert(task);
        } else {
            self.paused.remove(&task);
        }
    }

    /// Whether a task is stopped.
    pub fn is_paused(&self, task: Task) -> bool {
        self.paused.contains(&task)
    }

    /// The foreground's 99th percentile over the last minute, in microseconds, to within a fifth; 0 without requests.
    pub fn p99_us(&self) -> u64 {
        self.foreground.p99_us()
    }

    /// Operations a second that background work may do at present.
    pub fn operations_per_s(&self) -> u64 {
        self.rate
    }

    /// Whether another task has waited for longer and asks about now: else one that is always quicker would get all.
    fn gives_way(&self, task: Task, now_ms: u64) -> bool {
        let mine_ms = self.waiting.get(&task).copied().unwrap_or(u64::MAX);
        let sooner = |(other, due_ms): (&Task, &u64)| {
            *other != task
                && *due_ms < mine_ms
                && (now_ms.saturating_sub(GRACE_MS)..=now_ms + 1).contains(due_ms)
        };
        self.waiting.iter().any(sooner)
    }

    fn adjust(&mut self, now_ms: u64) {
        let elapsed_ms = now_ms.saturating_sub(self.refilled_ms).min(WAIT_MS_MAX * 4);
        self.refilled_ms = now_ms;
        // A tenth of a second's work may be saved up: slices, not bursts.
        let most = (self.rate * 100).cast_signed();
        self.budget = (self.budget + (self.rate * elapsed_ms).cast_signed()).min(most);
        if now_ms.saturating_sub(self.adjusted_ms) < ADJUST_INTERVAL_MS {
            return;
        }
        self.adjusted_ms = now_ms;
        self.foreground.forget(now_ms);
        let Limits {
            operations_per_s_max: max,
            operations_per_s_min: min,
            p99_target_us,
        } = self.limits;
        self.rate = if self.p99_us() > p99_target_us {
            (self.rate / 2).max(min).max(1)
        } else {
            (self.rate + (max / STEPS).max(1)).min(max).max(1)
        };
    }
}

/// Latencies of the last minute, in slots that are forgotten one by one.
#[derive(Debug, Default)]
struct Window {
    slots: [Slot; SLOTS],
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    began_ms: u64,
    counts: [u32; BUCKETS],
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            began_ms: 0,
            counts: [0; BUCKETS],
        }
    }
}

impl Window {
    fn add(&mut self, latency_us: u64, now_ms: u64) {
        let began_ms = now_ms / SLOT_MS * SLOT_MS;
        let slot = &mut self.slots[(now_ms / SLOT_MS) as usize % SLOTS];
        if slot.began_ms != began_ms {
            *slot = Slot {
                began_ms,
                ..Slot::default()
            };
        }
        let count = &mut slot.counts[bucket(latency_us)];
        *count = count.saturating_add(1);
    }

    fn forget(&mut self, now_ms: u64) {
        for slot in &mut self.slots {
            if slot.began_ms + WINDOW_MS <= now_ms {
                slot.counts = [0; BUCKETS];
            }
        }
    }

    fn p99_us(&self) -> u64 {
        let count =
            |bucket: usize| -> u64 { self.slots.iter().map(|slot| u64::from(slot.counts[bucket])).sum() };
        let total: u64 = (0..BUCKETS).map(count).sum();
        let above = total / 100;
        let mut seen = 0;
        for bucket in (0..BUCKETS).rev() {
            seen += count(bucket);
            if seen > above {
                return upper_us(bucket);
            }
        }
        0
    }
}

/// Buckets grow by a quarter of a doubling.
fn bucket(latency_us: u64) -> usize {
    let latency_us = latency_us.max(1);
    let octave = latency_us.ilog2();
    let within = ((u128::from(latency_us) * u128::from(PER_OCTAVE)) >> octave) as u32 - PER_OCTAVE;
    ((octave * PER_OCTAVE + within) as usize).min(BUCKETS - 1)
}

/// The largest latency of a bucket.
fn upper_us(bucket: usize) -> u64 {
    let (octave, within) = (bucket as u32 / PER_OCTAVE, bucket as u32 % PER_OCTAVE);
    let quarters = u64::from(PER_OCTAVE + within + 1);
    ((quarters << octave) / u64::from(PER_OCTAVE)).max(1)
}

#[cfg(test)]
mod tests;
