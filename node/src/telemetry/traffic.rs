//! What goes over the streams of requests to replicas, counted where it leaves and where it arrives. One addition each.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// All streams of a node: those to its peers, on which it asks, and those of its peers, on which it answers.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) requests_sent: Flow,
    pub(crate) requests_received: Flow,
    pub(crate) answers_sent: Flow,
    pub(crate) answers_received: Flow,
}

/// One kind of message in one direction.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    messages: AtomicU64,
    entries: AtomicU64,
    bytes: AtomicU64,
}

impl Flow {
    /// A message with so many requests or answers.
    pub(crate) fn message(&self, entries: usize) {
        self.messages.fetch_add(1, Relaxed);
        self.entries.fetch_add(entries as u64, Relaxed);
    }

    /// The same, of so many encoded bytes: who sends it counts them, who gets it would only count the same again.
    pub(crate) fn message_of(&self, entries: usize, bytes: usize) {
        self.message(entries);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn messages(&self) -> u64 {
        self.messages.load(Relaxed)
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries.load(Relaxed)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}
