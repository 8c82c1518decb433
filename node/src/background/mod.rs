//! Work behind the foreground: hints, exchanges, recovery, reaping, and the making of trees. Paper: §6.5.
//!
//! ```text
//!   rebuild   trees of partitions from their records                    after a start
//!   hints     to their owners (§4.6)                                    at an interval, and when a member answers again
//!   recovery  of a store that lost writes, pulling only                 until it is whole
//!   transfer  of partitions that are new here, and that are not any more  while the ring changes
//!   exchange  of partitions with their other primaries (§4.7)           each pair once per interval × (N - 1)
//!   refetch   records whose checksum is wrong, from the other primaries  as they are met
//!   checks    of primaries that gets did not ask (§5)                   soon after these gets; by no gate
//!   reap      tombstones and long histories, by everybody's word        each partition once per interval
//! ```
//!
//! All others wait for their turn at one gate, which opens as far as the foreground's 99th percentile allows.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use dynamo_core::{
    admission::Admission,
    entropy::{Mode, Schedule},
    types::MemberId,
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{clock, config::Config, node::Node, storage::ScanLimit};

mod bulk;

pub(crate) mod checks;

pub(crate) mod exchange;

pub(crate) mod hints;

mod reap;

pub(crate) mod recovery;

pub(crate) mod refetch;

mod rot;

pub(crate) mod salvage;

pub(crate) mod transition;

pub(crate) use dynamo_core::admission::Task;

/// How often a task that had nothing to do looks again.
const IDLE: Duration = Duration::from_millis(250);
/// Reading records in a row and hashing them costs less than moving them.
const RECORDS_PER_OPERATION: usize = 8;
/// Records that go into a tree at a time, while writes wait.
const FOLD_LIMIT: ScanLimit = ScanLimit {
    entries: 256,
    bytes: 1 << 20,
};

/// What all background work of a node shares.
pub(crate) struct Background {
    admission: Mutex<Admission>,
    schedule: Mutex<Schedule>,
    /// A member answers again, or this node has just started.
    hints_due: Notify,
    /// The rings in use are others, or a step of a change may be due.
    transition_due: Notify,
    operations: BTreeMap<Task, AtomicU64>,
}

/// One task, as an administrator sees it.
pub(crate) struct TaskStatus {
    pub(crate) task: Task,
    pub(crate) paused: bool,
    pub(crate) operations: u64,
}

impl Background {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            admission: Mutex::new(Admission::new(config.background.admission())),
            schedule: Mutex::new(Schedule::new(config.background.exchange_interval_ms)),
            hints_due: Notify::new(),
            transition_due: Notify::new(),
            operations: Task::ALL
                .into_iter()
                .map(|task| (task, AtomicU64::new(0)))
                .collect(),
        }
    }

    /// Notes how long a client's request took.
    pub(crate) fn foreground(&self, latency: Duration) {
        let latency_us = latency.as_micros() as u64;
        self.admission.lock().sample(latency_us, clock::monotonic_ms());
    }

    /// Waits until a task may do so much more work.
    pub(crate) async fn wait_turn(&self, task: Task, operations: u32, bytes: u64) {
        if let Some(count) = self.operations.get(&task) {
            count.fetch_add(operations.into(), Relaxed);
        }
        loop {
            let now_ms = clock::monotonic_ms();
            let taken = self.admission.lock().take(task, operations.into(), bytes, now_ms);
            match taken {
                Ok(()) => return,
                Err(wait_ms) => tokio::time::sleep(Duration::from_millis(wait_ms)).await,
            }
        }
    }

    /// Stops or continues a task.
    pub(crate) fn pause(&self, task: Task, paused: bool) {
        self.admission.lock().pause(task, paused);
    }

    pub(crate) fn tasks(&self) -> Vec<TaskStatus> {
        let admission = self.admission.lock();
        let status = |(task, operations): (&Task, &AtomicU64)| TaskStatus {
            task: *task,
            paused: admission.is_paused(*task),
            operations: operations.load(Relaxed),
        };
        self.operations.iter().map(status).collect()
    }

    /// The foreground's 99th percentile in microseconds, and the operations a second that background work may do.
    pub(crate) fn pace(&self) -> (u64, u64) {
        let admission = self.admission.lock();
        (admission.p99_us(), admission.operations_per_s())
    }

    /// Hints are to be looked for now.
    pub(crate) fn hurry_hints(&self) {
        self.hints_due.notify_one();
    }

    /// A step of a change of the ring may be due.
    pub(crate) fn transition_due(&self) {
        self.transition_due.notify_one();
    }

    /// Waits for that, but no longer than so.
    async fn transition_changed(&self, longest: Duration) {
        // Whether it was told or the time is over, it is looked after.
        let _ = tokio::time::timeout(clock::until_next(longest), self.transition_due.notified()).await;
    }

    pub(crate) fn with_schedule<T>(&self, with: impl FnOnce(&mut Schedule) -> T) -> T {
        with(&mut self.schedule.lock())
    }
}

/// Starts all tasks; they end with `shutdown`.
pub(crate) fn start(node: &Arc<Node>, tracker: &TaskTracker, shutdown: &CancellationToken) {
    let spawn = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        tracker.spawn(shutdown.clone().run_until_cancelled_owned(task));
    };
    spawn(Box::pin(rebuild_loop(Arc::clone(node))));
    spawn(Box::pin(hints_loop(Arc::clone(node))));
    spawn(Box::pin(recovery_loop(Arc::clone(node))));
    spawn(Box::pin(exchange_loop(Arc::clone(node))));
    spawn(Box::pin(transition::steps(Arc::clone(node))));
    for _ in 0..transition::PULLS {
        spawn(Box::pin(transition::pull(Arc::clone(node))));
    }
    spawn(Box::pin(transition::strays(Arc::clone(node))));
    spawn(Box::pin(reap_loop(Arc::clone(node))));
    spawn(Box::pin(refetch::serve(Arc::clone(node))));
    spawn(Box::pin(checks::serve(Arc::clone(node))));
}

/// Until a task that had nothing to do looks again.
async fn idle() {
    tokio::time::sleep(clock::until_next(IDLE)).await;
}

async fn rebuild_loop(node: Arc<Node>) {
    loop {
        node.background().wait_turn(Task::Rebuild, 0, 0).await;
        match node.trees().fold_next(node.writer(), FOLD_LIMIT).await {
            Ok(Some(folded)) => {
                let background = node.background();
                background
                    .wait_turn(Task::Rebuild, (folded.records / RECORDS_PER_OPERATION) as u32, 0)
                    .await;
            }
            Ok(None) => idle().await,
            Err(error) => {
                tracing::warn!(%error, "cannot make a Merkle tree");
                rot::met(&node, &error).await;
                tokio::time::sleep(IDLE * 4).await;
            }
        }
    }
}

/// Hints for members that answer are not left lying: a member may have been put aside for a moment only, and by another node.
async fn hints_loop(node: Arc<Node>) {
    let interval = Duration::from_millis(node.config().background.hints_interval_ms);
    loop {
        let all = hints::deliver(&node).await;
        let pause = if all { IDLE.min(interval) } else { interval };
        tokio::select! {
            () = node.background().hints_due.notified() => {}
            () = tokio::time::sleep(clock::until_next(pause)) => {}
        }
    }
}

async fn recovery_loop(node: Arc<Node>) {
    loop {
        if !recovery::step(&node).await {
            idle().await;
        }
    }
}

async fn exchange_loop(node: Arc<Node>) {
    loop {
        node.background().wait_turn(Task::Exchange, 0, 0).await;
        let now_ms = clock::monotonic_ms();
        // Recovery pulls what a suspect store lacks.
        let due = (!node.is_suspect_anywhere())
            .then(|| {
                let reachable = |member: &MemberId| node.peers().reachable(member);
                node.background()
                    .with_schedule(|schedule| schedule.next(now_ms, &reachable))
            })
            .flatten();
        let Some(due) = due else {
            idle().await;
            continue;
        };
        // Each node pulls what it lacks, one partition at a time, and its peers do the same. If it also pushed, a replica that
        // comes back would be sent the same records by all others at once.
        let report = exchange::run(&node, Task::Exchange, due.partition, &due.peer, Mode::PullOnly).await;
        let finished = report.is_some_and(|report| report.finished);
        let ended_ms = clock::monotonic_ms();
        node.background().with_schedule(|schedule| {
            schedule.ended(&due, now_ms, finished, ended_ms, clock::random_u64());
        });
    }
}

async fn reap_loop(node: Arc<Node>) {
    let interval = Duration::from_millis(node.config().background.reap_interval_ms);
    loop {
        tokio::time::sleep(interval).await;
        let Some(placed) = node
            .ring_in_use()
            .filter(|placed| !placed.layouts().in_transition())
        else {
            continue;
        };
        for partition in placed.first_of() {
            reap::partition(&node, &placed, partition).await;
        }
    }
}
