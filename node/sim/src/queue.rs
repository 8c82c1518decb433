//! What is still to happen, in the order of time; events of one moment come in a random order that the seed fixes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::rng::Rng;

/// A heap of events. The heap itself holds small entries only; events wait in a table beside it.
pub struct Queue<E> {
    heap: BinaryHeap<Reverse<(u64, u32, u64, u32)>>,
    slots: Vec<Option<E>>,
    free: Vec<u32>,
    sequence: u64,
    rng: Rng,
}

impl<E> Queue<E> {
    /// An empty queue.
    pub fn new(rng: Rng) -> Self {
        Self {
            heap: BinaryHeap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            sequence: 0,
            rng,
        }
    }

    /// Adds an event for a time.
    pub fn push(&mut self, at_us: u64, event: E) {
        let slot = if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Some(event);
            slot
        } else {
            self.slots.push(Some(event));
            (self.slots.len() - 1) as u32
        };
        self.sequence += 1;
        let shuffle = self.rng.bits() as u32;
        self.heap.push(Reverse((at_us, shuffle, self.sequence, slot)));
    }

    /// The next event and its time.
    pub fn pop(&mut self) -> Option<(u64, E)> {
        loop {
            let Reverse((at_us, _, _, slot)) = self.heap.pop()?;
            self.free.push(slot);
            if let Some(event) = self.slots[slot as usize].take() {
                return Some((at_us, event));
            }
        }
    }

    /// Events that wait.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}
