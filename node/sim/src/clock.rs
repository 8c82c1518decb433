//! One node's clocks: a monotonic one that drifts, and a wall clock that is also skewed and stepped.
//!
//! The world's own time is in microseconds. Causality and time-outs must survive any of this; wall time orders `lww`
//! writes and expiry and nothing else.

/// The simulated Unix time at which every run begins, in milliseconds.
const EPOCH_MS: u64 = 1_700_000_000_000;
/// Rate of a clock that does not drift.
pub const RATE_TRUE: u64 = 1_000_000;

/// The clocks of one node.
#[derive(Clone, Debug)]
pub struct Clock {
    /// Local microseconds in 1,000,000 of the world's.
    pub rate: u64,
    /// How far the wall clock is off, in milliseconds.
    pub skew_ms: i64,
}

impl Clock {
    /// A good clock.
    pub fn new() -> Self {
        Self {
            rate: RATE_TRUE,
            skew_ms: 0,
        }
    }

    /// Milliseconds of the monotonic clock. Changes of the rate while a node runs are not simulated.
    pub fn monotonic_ms(&self, now_us: u64) -> u64 {
        now_us * self.rate / RATE_TRUE / 1000
    }

    /// Milliseconds since 1970 by the wall clock.
    pub fn wall_ms(&self, now_us: u64) -> u64 {
        (EPOCH_MS + self.monotonic_ms(now_us)).saturating_add_signed(self.skew_ms)
    }

    /// The world's time after `ms` of local time from now.
    pub fn after(&self, now_us: u64, ms: u64) -> u64 {
        now_us + ms * 1000 * RATE_TRUE / self.rate + 1
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
