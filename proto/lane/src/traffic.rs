//! What goes over streams, counted where it leaves and where it arrives.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Streams of one kind: those on which requests leave, and those on which they arrive.
#[derive(Debug, Default)]
pub struct Traffic {
    /// By who asks.
    pub requests_sent: Flow,
    /// By who serves.
    pub requests_received: Flow,
    /// By who serves.
    pub answers_sent: Flow,
    /// By who asks.
    pub answers_received: Flow,
}

/// One kind of message in one direction.
#[derive(Debug, Default)]
pub struct Flow {
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

    /// Messages.
    pub fn messages(&self) -> u64 {
        self.messages.load(Relaxed)
    }

    /// Requests or answers in them.
    pub fn entries(&self) -> u64 {
        self.entries.load(Relaxed)
    }

    /// Their encoded bytes; of what was sent only.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}
