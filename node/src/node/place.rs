//! A place among the client requests that a node serves at a time.

use std::sync::Arc;

use dynamo_core::overload::Overload;
use parking_lot::Mutex;

use crate::clock;

/// Held while a request is served; it goes back when this value goes.
pub(crate) struct Place {
    overload: Arc<Mutex<Overload>>,
    /// None: the client decides how long it takes.
    began_ms: Option<u64>,
}

impl Place {
    /// One of the places, or how many there are if all are taken.
    pub(super) fn take(overload: &Arc<Mutex<Overload>>) -> Result<Self, u64> {
        let mut gate = overload.lock();
        if !gate.begin() {
            return Err(gate.bound());
        }
        Ok(Self {
            overload: Arc::clone(overload),
            began_ms: Some(clock::monotonic_ms()),
        })
    }

    /// For a stream, which its client reads as slowly as it likes.
    pub(crate) fn untimed(mut self) -> Self {
        self.began_ms = None;
        self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let now_ms = clock::monotonic_ms();
        let took_ms = self.began_ms.map(|began_ms| now_ms.saturating_sub(began_ms));
        self.overload.lock().end(took_ms, now_ms);
    }
}
