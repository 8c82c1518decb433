//! Settings of the work behind the foreground.

use dynamo_core::admission;
use serde::{Deserialize, Serialize};

/// Work behind the foreground: how often, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Background {
    /// Milliseconds between two looks for hints that can be delivered, 10..=3600000. A member that answers again gets its
    /// hints at once.
    pub hints_interval_ms: u64,
    /// Milliseconds in which each partition is compared with one of its other primaries, 10..=86400000: with all N - 1
    /// of them in N - 1 intervals.
    pub exchange_interval_ms: u64,
    /// Milliseconds between two looks for tombstones that can go, 10..=86400000.
    pub reap_interval_ms: u64,
    /// Milliseconds that all replicas of a tombstone must have been left alone before it goes, 100..=2592000000. Longer than
    /// any request, pause of a process or message under way can last: below a minute only in tests.
    pub reap_grace_ms: u64,
    /// Writers that a key's history names before those are left out that write no more, 4..=10000.
    pub actors_max: usize,
    /// Milliseconds that a store which lost writes waits before it begins to get them back, 0..=600000: the longest that a
    /// request may take.
    pub recovery_delay_ms: u64,
    /// Operations a second of all of it together while the foreground is idle or well, 1..=1000000.
    pub operations_per_s_max: u64,
    /// Operations a second that it may always do, 1..=1000000.
    pub operations_per_s_min: u64,
    /// Milliseconds that the 99th percentile of client requests over the last minute should stay below, 1..=30000; above,
    /// background work slows down.
    pub p99_target_ms: u64,
}

impl Default for Background {
    fn default() -> Self {
        Self {
            hints_interval_ms: 10_000,
            exchange_interval_ms: 60_000,
            reap_interval_ms: 300_000,
            reap_grace_ms: 600_000,
            actors_max: 50,
            recovery_delay_ms: super::REQUEST_TIMEOUT_MS_MAX,
            operations_per_s_max: 5_000,
            operations_per_s_min: 50,
            p99_target_ms: 50,
        }
    }
}

impl Background {
    /// For the gate of background work.
    pub fn admission(&self) -> admission::Limits {
        admission::Limits {
            operations_per_s_max: self.operations_per_s_max,
            operations_per_s_min: self.operations_per_s_min,
            p99_target_us: self.p99_target_ms * 1000,
        }
    }

    /// Names every setting that is out of its range.
    pub(super) fn check(&self, range: &mut dyn FnMut(&str, u64, u64, u64)) {
        const DAY_MS: u64 = 86_400_000;
        range(
            "background.hintsIntervalMs",
            self.hints_interval_ms,
            10,
            DAY_MS / 24,
        );
        range(
            "background.exchangeIntervalMs",
            self.exchange_interval_ms,
            10,
            DAY_MS,
        );
        range("background.reapIntervalMs", self.reap_interval_ms, 10, DAY_MS);
        range("background.reapGraceMs", self.reap_grace_ms, 100, 30 * DAY_MS);
        range("background.actorsMax", self.actors_max as u64, 4, 10_000);
        range("background.recoveryDelayMs", self.recovery_delay_ms, 0, 600_000);
        range(
            "background.operationsPerSMax",
            self.operations_per_s_max,
            1,
            1_000_000,
        );
        range(
            "background.operationsPerSMin",
            self.operations_per_s_min,
            1,
            1_000_000,
        );
        range("background.p99TargetMs", self.p99_target_ms, 1, 30_000);
    }
}
