//! The bounded queue between requests and those who carry them out, and whose turn that is.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

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

/// Operations of a group that the task carries out, after which others have their turn.
const AT_ONCE_OPERATIONS_MAX: usize = 64;
/// Bytes after which such a group takes no further operation.
const AT_ONCE_BYTES_MAX: usize = 256 << 10;

pub(super) struct Queue {
    state: Mutex<State>,
    /// For the thread.
    arrived: Condvar,
    /// For the task.
    submitted: Notify,
}

struct State {
    operations: VecDeque<Operation>,
    bytes: usize,
    /// Whose turn it is.
    turn: Turn,
    /// The thread is to look at what is not in the queue.
    called: bool,
    closed: bool,
    failed: Option<StoreError>,
}

/// Who carries out what waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The thread, or whoever submits, for good: there is no task.
    ThreadForGood,
    /// The thread, until nothing waits.
    Thread,
    /// The task.
    Task,
    /// The task, which has taken a group.
    TaskWithGroup,
}

/// What the writer's thread is to do next.
pub(super) enum Taken {
    Group(Vec<Operation>),
    /// Nothing waits; it was called, or has waited long enough.
    Nothing,
    Closed,
}

impl Queue {
    /// `with_task`: a task serves it, too.
    pub(super) fn new(with_task: bool) -> Self {
        Self {
            state: Mutex::new(State {
                operations: VecDeque::new(),
                bytes: 0,
                turn: if with_task {
                    Turn::Task
                } else {
                    Turn::ThreadForGood
                },
                called: false,
                closed: false,
                failed: None,
            }),
            arrived: Condvar::new(),
            submitted: Notify::new(),
        }
    }

    pub(super) fn push(&self, operation: Operation) -> Result<(), WriteError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(state.why_closed());
        }
        let bytes = operation.bytes();
        let first = state.operations.is_empty();
        let full = state.operations.len() >= QUEUE_OPERATIONS_MAX
            || (!first && state.bytes + bytes > QUEUE_BYTES_MAX);
        if full {
            return Err(WriteError::Overloaded);
        }
        state.bytes += bytes;
        state.operations.push_back(operation);
        let turn = state.turn;
        drop(state);
        match turn {
            Turn::Thread | Turn::ThreadForGood => drop(self.arrived.notify_one()),
            Turn::Task | Turn::TaskWithGroup if first => self.submitted.notify_one(),
            Turn::Task | Turn::TaskWithGroup => {}
        }
        Ok(())
    }

    /// Waits until something may have been submitted for the task.
    pub(super) async fn submitted(&self) {
        self.submitted.notified().await;
    }

    /// What the task is to carry out. None: nothing waits, or it is the thread's turn. Else it calls [`Queue::done`] or
    /// [`Queue::hand_over`].
    pub(super) fn take_at_once(&self) -> Option<Vec<Operation>> {
        let mut state = self.state.lock();
        if state.turn != Turn::Task || state.closed || state.operations.is_empty() {
            return None;
        }
        state.turn = Turn::TaskWithGroup;
        Some(state.take_group(AT_ONCE_OPERATIONS_MAX, AT_ONCE_BYTES_MAX))
    }

    /// The task has carried out its group. `call`: the thread has something to do from now on.
    pub(super) fn done(&self, call: bool) {
        let mut state = self.state.lock();
        state.turn = Turn::Task;
        state.called |= call;
        if call || state.closed {
            self.arrived.notify_one();
        }
    }

    /// The thread is to carry out the task's group, and what comes meanwhile.
    pub(super) fn hand_over(&self, group: Vec<Operation>) {
        let mut state = self.state.lock();
        state.turn = Turn::Thread;
        state.called = true;
        state.bytes += group.iter().map(Operation::bytes).sum::<usize>();
        for operation in group.into_iter().rev() {
            state.operations.push_front(operation);
        }
        self.arrived.notify_one();
    }

    /// There is no task any more.
    pub(super) fn task_ended(&self) {
        self.state.lock().turn = Turn::ThreadForGood;
        self.arrived.notify_one();
    }

    /// Waits for operations, for `wait` at most, and takes as many as fit into one group. `Closed` once the queue is
    /// closed and empty.
    pub(super) fn take(&self, wait: Option<Duration>) -> Taken {
        let until = wait.map(|wait| Instant::now() + wait);
        let mut state = self.state.lock();
        let (mut slept, mut waited) = (false, false);
        loop {
            if state.closed && state.turn == Turn::Task {
                state.turn = Turn::ThreadForGood;
            }
            let mine = matches!(state.turn, Turn::Thread | Turn::ThreadForGood);
            if mine && !state.operations.is_empty() {
                break;
            }
            if mine && state.closed {
                return Taken::Closed;
            }
            if std::mem::take(&mut state.called) || waited {
                return Taken::Nothing;
            }
            if state.turn == Turn::Thread {
                state.turn = Turn::Task;
            }
            slept = true;
            match until {
                None => self.arrived.wait(&mut state),
                Some(until) => waited = self.arrived.wait_until(&mut state, until).timed_out(),
            }
        }
        if slept {
            // Who woke this thread may have more to submit, if it is let: one commit for all is cheaper than one for each.
            drop(state);
            std::thread::yield_now();
            state = self.state.lock();
        }
        Taken::Group(state.take_group(GROUP_OPERATIONS_MAX, GROUP_BYTES_MAX))
    }

    /// Operations that wait.
    pub(super) fn length(&self) -> usize {
        self.state.lock().operations.len()
    }

    /// Refuses further operations; those that wait are still carried out.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.arrived.notify_all();
        self.submitted.notify_one();
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
        self.submitted.notify_one();
    }

    /// Whether no more is taken.
    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Why an operation got no answer, or can no longer be submitted.
    pub(super) fn why_closed(&self) -> WriteError {
        self.state.lock().why_closed()
    }
}

impl State {
    fn take_group(&mut self, operations_max: usize, bytes_max: usize) -> Vec<Operation> {
        let mut group = Vec::new();
        let mut bytes = 0;
        while group.len() < operations_max && bytes < bytes_max {
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
