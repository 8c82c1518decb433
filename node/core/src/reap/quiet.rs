//! How long nothing has arrived for a record.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

/// A process that has not said for so long that it runs stood still, as one that is stopped or starved does.
const STANDSTILL_MS: u64 = 5000;

/// Remembers when something last arrived for each record, within a bound.
///
/// What it has forgotten, or never heard of, counts as touched at the floor: the start of the process, its latest
/// standstill, or the latest time among forgotten entries. So it errs only towards waiting.
#[derive(Debug)]
pub struct QuietTable {
    floor_ms: u64,
    ran_ms: u64,
    entries_max: usize,
    touched: BTreeMap<Bytes, u64>,
    by_time: BTreeSet<(u64, Bytes)>,
}

impl QuietTable {
    /// An empty table of a process that starts now (monotonic).
    pub fn new(now_ms: u64, entries_max: usize) -> Self {
        Self {
            floor_ms: now_ms,
            ran_ms: now_ms,
            entries_max,
            touched: BTreeMap::new(),
            by_time: BTreeSet::new(),
        }
    }

    /// The process runs; to be said several times in 5 s.
    ///
    /// Where it stood still, the silence was its own: messages from before may wait in its sockets, older than any grace.
    pub fn runs(&mut self, now_ms: u64) {
        if self.stood_still(now_ms) {
            self.touched.clear();
            self.by_time.clear();
            self.floor_ms = now_ms;
        }
        self.ran_ms = self.ran_ms.max(now_ms);
    }

    /// Something arrived for the record, whether or not it changed it. To be called for every merge and every local
    /// write after which the record is, or by the passing of time alone can become, one to be reaped or truncated.
    pub fn touch(&mut self, position: &Bytes, now_ms: u64) {
        self.runs(now_ms);
        if let Some(before) = self.touched.insert(position.clone(), now_ms) {
            self.by_time.remove(&(before, position.clone()));
        }
        self.by_time.insert((now_ms, position.clone()));
        while self.by_time.len() > self.entries_max {
            self.forget_oldest();
        }
    }

    /// Forgets what has been quiet for `grace_ms`. The floor stays at least that far back, so nobody waits for it.
    pub fn prune(&mut self, now_ms: u64, grace_ms: u64) {
        while let Some((touched_ms, _)) = self.by_time.first() {
            if now_ms.saturating_sub(*touched_ms) < grace_ms {
                break;
            }
            self.forget_oldest();
        }
    }

    /// Milliseconds since something arrived for the record, at least that many.
    pub fn quiet_ms(&self, position: &[u8], now_ms: u64) -> u64 {
        if self.stood_still(now_ms) {
            return 0;
        }
        let touched = self.touched.get(position).copied().unwrap_or(self.floor_ms);
        now_ms.saturating_sub(touched)
    }

    /// Records in the table.
    pub fn len(&self) -> usize {
        self.touched.len()
    }

    /// True if no record is in the table.
    pub fn is_empty(&self) -> bool {
        self.touched.is_empty()
    }

    fn stood_still(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.ran_ms) >= STANDSTILL_MS
    }

    fn forget_oldest(&mut self) {
        if let Some((touched_ms, position)) = self.by_time.pop_first() {
            self.touched.remove(&position);
            self.floor_ms = self.floor_ms.max(touched_ms);
        }
    }
}
