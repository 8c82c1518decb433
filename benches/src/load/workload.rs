//! What is asked for: YCSB's core workloads, except E (scans), which no store has whose keys are spread by a hash.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use clap::ValueEnum;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::zipf::{Scrambled, Zipf, fnv};
use crate::{chance::Chance, system::Target};

/// YCSB's keys: `user` and a number of 20 digits.
const KEY_BYTES_MIN: usize = 24;
/// Values are cut from so much randomness, which no compression makes smaller.
const RANDOM_BYTES: usize = 1 << 20;

/// A mix of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Workload {
    /// Half reads, half writes
    A,
    /// 95 % reads, 5 % writes
    B,
    /// Reads
    C,
    /// 95 % reads of what was inserted last, 5 % insertions
    D,
    /// Half reads, half read-modify-writes: the cart of the paper
    F,
    /// Writes
    Put,
    /// Reads: another name for c
    Get,
    /// Read-modify-writes of one key
    Siblings,
}

/// Which records are asked for, except by d and siblings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Distribution {
    /// YCSB's scrambled Zipfian, theta 0.99
    Zipf,
    /// All alike
    Uniform,
}

/// What a load consists of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) workload: Workload,
    pub(crate) distribution: Distribution,
    pub(crate) records: u64,
    pub(crate) key_bytes: usize,
    pub(crate) value_bytes: usize,
    pub(crate) seed: u64,
}

/// One operation on a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Read(u64),
    Write(u64),
    Insert(u64),
    Modify(u64),
}

/// What became of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// A read of a record that is there found nothing.
    Missing,
}

/// A plan at work, shared by all tasks.
pub(crate) struct Load {
    pub(crate) plan: Plan,
    random: Bytes,
    inserted: Frontier,
    /// Of chance, taken so far.
    streams: AtomicU64,
}

/// One task's operations.
pub(crate) struct Source {
    load: Arc<Load>,
    chance: Chance,
    popular: Scrambled,
    latest: Option<Zipf>,
}

impl Plan {
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.records > 0, "--records must be at least 1");
        ensure!(
            (KEY_BYTES_MIN..=256).contains(&self.key_bytes),
            "--key-bytes must be {KEY_BYTES_MIN} to 256, not {}",
            self.key_bytes
        );
        ensure!(
            (1..=RANDOM_BYTES).contains(&self.value_bytes),
            "--value-bytes must be 1 to {RANDOM_BYTES}, not {}",
            self.value_bytes
        );
        Ok(())
    }
}

impl Workload {
    /// Operations of a hundred that only read.
    fn reads_percent(self) -> u64 {
        match self {
            Self::A | Self::F => 50,
            Self::B | Self::D => 95,
            Self::C | Self::Get => 100,
            Self::Put | Self::Siblings => 0,
        }
    }
}

impl Load {
    pub(crate) fn new(plan: Plan) -> Arc<Self> {
        let mut chance = Chance::stream(plan.seed, u64::MAX);
        let random = (0..(RANDOM_BYTES + plan.value_bytes).div_ceil(8))
            .flat_map(|_| chance.next().to_le_bytes())
            .collect();
        let inserted = Frontier::new(plan.records);
        Arc::new(Self {
            plan,
            random,
            inserted,
            streams: AtomicU64::default(),
        })
    }

    /// The number of the first of so many streams of chance that no run has had: the next run asks for other keys than the
    /// last, while two systems that are given the same runs are asked for the same.
    pub(crate) fn streams(&self, count: u32) -> u64 {
        self.streams.fetch_add(u64::from(count), Ordering::Relaxed)
    }

    /// The operations of stream `number`.
    pub(crate) fn source(self: &Arc<Self>, number: u64) -> Source {
        let plan = &self.plan;
        Source {
            load: Arc::clone(self),
            chance: Chance::stream(plan.seed, number),
            popular: Scrambled::new(plan.records),
            latest: (plan.workload == Workload::D).then(|| Zipf::new(plan.records)),
        }
    }

    /// `user` and the record's number, hashed, so that neighbours are apart.
    pub(crate) fn key(&self, record: u64) -> Bytes {
        let digits = self.plan.key_bytes - 4;
        format!("user{:0digits$}", fnv(record)).into()
    }

    pub(crate) fn value(&self, chance: &mut Chance) -> Bytes {
        let begin = chance.below(RANDOM_BYTES as u64) as usize;
        self.random.slice(begin..begin + self.plan.value_bytes)
    }

    /// Performs one operation.
    pub(crate) async fn perform(
        &self,
        target: &dyn Target,
        operation: Operation,
        value: Bytes,
    ) -> Result<Outcome> {
        match operation {
            Operation::Read(record) => {
                let found = target.get(self.key(record)).await?;
                Ok(found.map_or(Outcome::Missing, |_| Outcome::Done))
            }
            Operation::Write(record) => {
                target.put(self.key(record), value).await?;
                Ok(Outcome::Done)
            }
            Operation::Insert(record) => {
                let done = target.put(self.key(record), value).await;
                // Failed ones too, or the frontier would stop there; a read then counts as missing.
                self.inserted.done(record);
                done.map(|()| Outcome::Done)
            }
            Operation::Modify(record) => {
                target.read_modify_write(self.key(record), value).await?;
                Ok(Outcome::Done)
            }
        }
    }
}

impl Source {
    pub(crate) fn next(&mut self) -> (Operation, Bytes) {
        let workload = self.load.plan.workload;
        let reads = self.chance.below(100) < workload.reads_percent();
        let operation = match (workload, reads) {
            (Workload::Siblings, _) => Operation::Modify(0),
            (Workload::D, true) => Operation::Read(self.recent()),
            (Workload::D, false) => Operation::Insert(self.load.inserted.claim()),
            (_, true) => Operation::Read(self.record()),
            (Workload::F, false) => Operation::Modify(self.record()),
            (_, false) => Operation::Write(self.record()),
        };
        let value = match operation {
            Operation::Read(_) => Bytes::new(),
            _ => self.load.value(&mut self.chance),
        };
        (operation, value)
    }

    fn record(&mut self) -> u64 {
        match self.load.plan.distribution {
            Distribution::Zipf => self.popular.record(&mut self.chance),
            Distribution::Uniform => self.chance.below(self.load.plan.records),
        }
    }

    /// YCSB's `SkewedLatestGenerator`: the last record is the most popular one.
    fn recent(&mut self) -> u64 {
        let count = self.load.inserted.count();
        let Some(latest) = &mut self.latest else {
            return count - 1;
        };
        latest.grow(count);
        count - 1 - latest.rank(&mut self.chance).min(count - 1)
    }
}

/// Insertions in any order, of which readers see the part without gaps: YCSB's `AcknowledgedCounterGenerator`.
struct Frontier {
    next: AtomicU64,
    count: AtomicU64,
    ahead: Mutex<BTreeSet<u64>>,
}

impl Frontier {
    fn new(count: u64) -> Self {
        Self {
            next: AtomicU64::new(count),
            count: AtomicU64::new(count),
            ahead: Mutex::default(),
        }
    }

    fn claim(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn done(&self, record: u64) {
        let mut ahead = self.ahead.lock();
        ahead.insert(record);
        let mut count = self.count.load(Ordering::Relaxed);
        while ahead.remove(&count) {
            count += 1;
        }
        self.count.store(count, Ordering::Relaxed);
    }

    /// All records below are there.
    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn load(workload: Workload, distribution: Distribution) -> Arc<Load> {
        Load::new(Plan {
            workload,
            distribution,
            records: 1000,
            key_bytes: 24,
            value_bytes: 100,
            seed: 3,
        })
    }

    /// Percent of reads, writes, insertions, read-modify-writes.
    fn shares(workload: Workload) -> [i64; 4] {
        let mut source = load(workload, Distribution::Zipf).source(0);
        let mut counts = [0_i64; 4];
        for _ in 0..10_000 {
            let kind = match source.next().0 {
                Operation::Read(_) => 0,
                Operation::Write(_) => 1,
                Operation::Insert(_) => 2,
                Operation::Modify(_) => 3,
            };
            counts[kind] += 1;
        }
        counts.map(|count| (count + 50) / 100)
    }

    #[test]
    fn mixes_are_those_of_ycsb() {
        let expected = [
            (Workload::A, [50, 50, 0, 0]),
            (Workload::B, [95, 5, 0, 0]),
            (Workload::C, [100, 0, 0, 0]),
            (Workload::D, [95, 0, 5, 0]),
            (Workload::F, [50, 0, 0, 50]),
            (Workload::Put, [0, 100, 0, 0]),
            (Workload::Get, [100, 0, 0, 0]),
            (Workload::Siblings, [0, 0, 0, 100]),
        ];
        for (workload, shares_expected) in expected {
            for (found, expected) in shares(workload).into_iter().zip(shares_expected) {
                assert!(
                    (found - expected).abs() <= 2,
                    "{workload:?}: {found} for {expected}"
                );
            }
        }
    }

    #[test]
    fn uniform_records_are_asked_for_alike() {
        let mut source = load(Workload::C, Distribution::Uniform).source(0);
        let mut hits: HashMap<u64, u32> = HashMap::new();
        for _ in 0..100_000 {
            let (Operation::Read(record), _) = source.next() else {
                panic!("c only reads");
            };
            *hits.entry(record).or_default() += 1;
        }
        assert_eq!(hits.len(), 1000);
        assert!(hits.values().all(|hits| (50..170).contains(hits)));
    }

    #[test]
    fn sources_of_one_seed_repeat_and_tasks_differ() {
        let load = load(Workload::A, Distribution::Zipf);
        let first = |number| -> Vec<_> {
            let mut source = load.source(number);
            (0..100).map(|_| source.next()).collect()
        };
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }

    #[test]
    fn keys_and_values_have_their_sizes() {
        let mut plan = load(Workload::Put, Distribution::Zipf).plan.clone();
        for key_bytes in [24, 40] {
            plan.key_bytes = key_bytes;
            let load = Load::new(plan.clone());
            let keys: BTreeSet<Bytes> = (0..1000).map(|record| load.key(record)).collect();
            assert_eq!(keys.len(), 1000);
            assert!(
                keys.iter()
                    .all(|key| key.len() == key_bytes && key.starts_with(b"user"))
            );
            assert_eq!(load.source(0).next().1.len(), 100);
        }
        plan.key_bytes = 23;
        assert!(plan.check().is_err());
    }

    #[test]
    fn what_is_read_last_was_inserted_and_the_last_is_the_most_popular() {
        let load = load(Workload::D, Distribution::Zipf);
        let mut source = load.source(0);
        let mut newest = 0;
        for _ in 0..10_000 {
            match source.next().0 {
                Operation::Insert(record) => load.inserted.done(record),
                Operation::Read(record) => {
                    assert!(record < load.inserted.count());
                    newest += u32::from(record + 1 == load.inserted.count());
                }
                other => panic!("{other:?} in d"),
            }
        }
        // 1 / zeta(1000..1500) of 9,500.
        assert!((1000..1500).contains(&newest), "{newest}");
    }

    #[test]
    fn readers_see_no_gap() {
        let frontier = Frontier::new(10);
        let claimed: Vec<u64> = (0..3).map(|_| frontier.claim()).collect();
        assert_eq!(claimed, [10, 11, 12]);
        frontier.done(12);
        frontier.done(11);
        assert_eq!(frontier.count(), 10);
        frontier.done(10);
        assert_eq!(frontier.count(), 13);
    }
}
