//! What is under way on this node, by the newest ring when it began: the step `known` of a change waits for what was begun
//! before that ring was known.

use std::{collections::BTreeMap, sync::Arc};

use dynamo_core::membership::RingVersion;
use parking_lot::Mutex;

/// Counts of operations under way. Usually there is one entry, of the ring in use.
#[derive(Debug, Default)]
pub(crate) struct Operations(Mutex<BTreeMap<RingVersion, u64>>);

/// One operation, until it is dropped.
#[derive(Debug)]
pub(crate) struct Begun {
    all: Arc<Operations>,
    newest: RingVersion,
}

impl Operations {
    /// Begins one. `newest` must have been read before what the operation goes by.
    pub(crate) fn begin(self: &Arc<Self>, newest: RingVersion) -> Begun {
        *self.0.lock().entry(newest).or_default() += 1;
        Begun {
            all: Arc::clone(self),
            newest,
        }
    }

    /// The newest ring when the oldest one began.
    pub(crate) fn oldest(&self) -> Option<RingVersion> {
        self.0.lock().keys().next().copied()
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut counts = self.all.0.lock();
        if let Some(count) = counts.get_mut(&self.newest) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.newest);
            }
        }
    }
}
