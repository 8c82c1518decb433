//! Runs the core's request machines: performs their effects, feeds back what arrives, decides nothing.

pub(crate) mod get;

pub(crate) mod list;

pub(crate) mod put;

use std::{future::poll_fn, task::Poll, time::Duration};

use dynamo_core::{
    coordinator::{FailedReplica, FailureKind, ReplicaFailure},
    quorum::Quorum,
    types::MemberId,
};
use tokio::time::Instant;

use crate::{
    config::REQUEST_TIMEOUT_MS_MAX,
    grpc::status::{Failure, Reason},
};

/// A member whose address is not known cannot be asked.
const UNKNOWN_ADDRESS: ReplicaFailure = ReplicaFailure {
    sent: false,
    kind: FailureKind::Unreachable,
};

/// When a request must be answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Instant);

/// What is kept of the time that a caller waits for the way of the answer, at most; never more than a tenth of it.
const ANSWER_MARGIN: Duration = Duration::from_millis(50);

impl Deadline {
    /// A little before a caller stops waiting, so that the truth about a write reaches it in time: `asked` from now, or
    /// the default where a client names none; never more than the longest that is allowed.
    pub(crate) fn within(asked: Option<Duration>, default_ms: u64) -> Self {
        let longest = Duration::from_millis(REQUEST_TIMEOUT_MS_MAX);
        let waits = asked.unwrap_or(Duration::from_millis(default_ms)).min(longest);
        Self(Instant::now() + waits.saturating_sub((waits / 10).min(ANSWER_MARGIN)))
    }

    /// So long from now.
    pub(crate) fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    pub(crate) fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    pub(crate) async fn reached(self) {
        tokio::time::sleep_until(self.0).await;
    }
}

/// Lets the connection be looked at before a request is begun. One that was on its way for long may have been given up by
/// its client, whose word of that is right behind it: then this never returns.
pub(crate) async fn still_wanted() {
    let mut asked = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut asked, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Who coordinated and how.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) ring_epoch: u64,
    pub(crate) coordinator: MemberId,
    pub(crate) acks: u32,
    pub(crate) fallbacks_counted: u32,
    /// Of a get: the primary that answered first with a state.
    pub(crate) fastest: Option<MemberId>,
    pub(crate) quorum: Quorum,
}

/// The node has no ring, or it stops: another one serves.
pub(crate) fn not_ready(reason: &str) -> Failure {
    Failure::new(
        Reason::NotReady,
        format!("this node does not serve: {reason}; ask another node"),
    )
}

/// Who did not count and why, for a message.
pub(crate) fn who_failed(failed: &[FailedReplica]) -> String {
    if failed.is_empty() {
        return String::new();
    }
    let each: Vec<String> = failed
        .iter()
        .map(|replica| format!("{} {}", replica.member, replica.kind.as_str()))
        .collect();
    format!(" ({})", each.join(", "))
}
