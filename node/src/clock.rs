//! The only file of the node that reads a clock or draws a random number.

use std::{
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

use crate::faults;

/// What a simulation puts in the place of clocks and chance.
#[derive(Debug, Clone, Copy)]
pub struct Simulated {
    /// Time since any fixed moment; never goes back.
    pub monotonic: fn() -> Duration,
    /// Time since 1970.
    pub wall: fn() -> Duration,
    /// 64 random bits.
    pub random: fn() -> u64,
}

static SIMULATED: OnceLock<Simulated> = OnceLock::new();

/// Has every node of this process ask `simulated` from now on. Only the first call counts; it comes before any node starts.
pub fn simulate(simulated: Simulated) {
    SIMULATED.get_or_init(|| simulated);
}

/// Milliseconds since the process first asked, from a clock that never goes back. Orders causes and time-outs.
pub(crate) fn monotonic_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = match SIMULATED.get() {
        None => START.get_or_init(Instant::now).elapsed(),
        Some(simulated) => (simulated.monotonic)(),
    };
    elapsed.as_millis() as u64
}

/// Time until the next of the moments that all waits of this length end at, in this process: who looks from time to time whether
/// there is something to do is woken together with the others.
pub(crate) fn until_next(period: Duration) -> Duration {
    let period_ms = (period.as_millis() as u64).max(1);
    Duration::from_millis(period_ms - monotonic_ms() % period_ms)
}

/// Milliseconds since 1970, from a clock that people and time servers move. Orders `lww` writes and expiry, nothing else.
pub(crate) fn wall_ms() -> u64 {
    let since_1970 = match SIMULATED.get() {
        None => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO),
        Some(simulated) => (simulated.wall)(),
    };
    faults::skewed(since_1970.as_millis() as u64)
}

/// 64 random bits.
pub(crate) fn random_u64() -> u64 {
    SIMULATED
        .get()
        .map_or_else(rand::random, |simulated| (simulated.random)())
}
