//! Time and chance of the servers, so that nothing but the client's requests makes them do something, and no number that goes
//! into a message or a record is longer in one run than in another.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use dynamo_node::Simulated;
use tokio::time::Instant;

/// 2023-11-14.
const EPOCH: Duration = Duration::from_secs(1_700_000_000);

/// Has the nodes of this process ask clocks of its own.
pub(crate) fn simulate() {
    dynamo_node::simulate(Simulated {
        monotonic: || {
            static START: OnceLock<Instant> = OnceLock::new();
            START.get_or_init(Instant::now).elapsed()
        },
        // Grows with every look, so that all stamps are those of a millisecond of their own.
        wall: || {
            static LOOKS: AtomicU64 = AtomicU64::new(0);
            EPOCH + Duration::from_millis(LOOKS.fetch_add(1, Relaxed))
        },
        // As long as random numbers become, whatever encodes them.
        random: || {
            static DRAWN: AtomicU64 = AtomicU64::new(0);
            let drawn = DRAWN.fetch_add(1, Relaxed);
            drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 << 63
        },
    });
}

/// While it lives, the clock of the runtime that it was made on stands still: no timer ends, so nothing that waits for one
/// begins. Who is waited for must not need a clock.
pub(crate) struct Still {
    _ends: mpsc::Sender<()>,
}

impl Still {
    /// On a runtime of one thread.
    pub(crate) fn new() -> Self {
        tokio::time::pause();
        // A paused clock goes on when there is nothing to do; not while a thread works for the runtime.
        let (ends, ended) = mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || ended.recv());
        Self { _ends: ends }
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        tokio::time::resume();
    }
}
