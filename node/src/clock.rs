//! The only file of the node that reads a clock or draws a random number.

use std::{
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

use crate::faults;

/// Milliseconds since the process first asked, from a clock that never goes back. Orders causes and time-outs.
pub(crate) fn monotonic_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64
}

/// Milliseconds since 1970, from a clock that people and time servers move. Orders `lww` writes and expiry, nothing else.
pub(crate) fn wall_ms() -> u64 {
    let now_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_millis() as u64;
    faults::skewed(now_ms)
}

/// 64 random bits.
pub(crate) fn random_u64() -> u64 {
    rand::random()
}
