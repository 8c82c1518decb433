//! The bounded queue between requests and the writer's thread.

use std::{collections::VecDeque, time::Duration};

use parking_lot::{Condvar, Mutex};

use super::{Operation, WriteError};
use crate::storage::StoreError;

/// Operations that may wait; further ones are refused at once.
pub const QUEUE_OPERATIONS_MAX: usize = 4096;
/// Bytes of waiting operations; one alone may have more.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Operations of one group.
pub const GROUP_OPERATIONS_MAX: usize = 1024;
/// Bytes after which a group takes no further operation.
pub const GROUP_BYTES_MAX: usize = 4 << 20;

#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    operations: VecDeque<Operation>,
    bytes: usize,
    closed: bool,
    failed: Option<StoreError>,
}

/// What the writer's thread is to do next.
pub(super) enum Taken {
    Group(Vec<Operation>),
    TimedOut,
    Closed,
}

impl Queue {
    pub(super) fn push(&self, operation: Operation) -> Result<(), WriteError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(state.why_closed());
        }
        let bytes = operation.bytes();
        let full = state.operations.len() >= QUEUE_OPERATIONS_MAX
            || (!state.operations.is_empty() && state.bytes + bytes > QUEUE_BYTES_MAX);
        if full {
            return Err(WriteError::Overloaded);
        }
        state.bytes += bytes;
        state.operations.push_back(operation);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits for operations, for `wait` at most, and takes as many as fit into one group. `Closed` once the queue is
    /// closed and empty.
    pub(super) fn take(&self, wait: Option<Duration>) -> Taken {
        let mut state = self.state.lock();
        let mut slept = false;
        while state.operations.is_empty() {
            if state.closed {
                return Taken::Closed;
            }
            slept = true;
            match wait {
                None => self.arrived.wait(&mut state),
                Some(wait) => {
                    if self.arrived.wait_for(&mut state, wait).timed_out() && state.operations.is_empty() {
                        return Taken::TimedOut;
                    }
                }
            }
        }
        if slept {
            // Who woke this thread may have more to submit, if it is let: one commit for all is cheaper than one for each.
            drop(state);
            std::thread::yield_now();
            state = self.state.lock();
        }
        Taken::Group(state.take_group())
    }

    /// Operations that wait.
    pub(super) fn length(&self) -> usize {
        self.state.lock().operations.len()
    }

    /// Refuses further operations; those that wait are still carried out.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.arrived.notify_all();
    }

    /// Refuses further operations and drops those that wait, for this reason.
    pub(super) fn fail(&self, error: StoreError) {
        let mut state = self.state.lock();
        state.closed = true;
        state.failed.get_or_insert(error);
        state.bytes = 0;
        let dropped = std::mem::take(&mut state.operations);
        // Dropping wakes waiters, who ask for the reason.
        drop(state);
        drop(dropped);
    }

    /// Why an operation got no answer, or can no longer be submitted.
    pub(super) fn why_closed(&self) -> WriteError {
        self.state.lock().why_closed()
    }
}

impl State {
    fn take_group(&mut self) -> Vec<Operation> {
        let mut group = Vec::new();
        let mut bytes = 0;
        while group.len() < GROUP_OPERATIONS_MAX && bytes < GROUP_BYTES_MAX {
            let Some(operation) = self.operations.pop_front() else {
                break;
            };
            bytes += operation.bytes();
            group.push(operation);
        }
        self.bytes -= bytes;
        group
    }

    fn why_closed(&self) -> WriteError {
        self.failed
            .clone()
            .map_or(WriteError::Stopped, WriteError::Storage)
    }
}
