//! Makes a suspect store whole again, partition by partition, from the other primaries. Paper: §4.7.
//!
//! The store was emptied, put back in time, or repaired: it takes writes, but answers no read quorum and is no source
//! until it has pulled what it may have lost.

use std::sync::Arc;

use dynamo_core::entropy::{ExchangeReport, Mode};

use super::{Task, bulk, exchange};
use crate::{clock, durable, node::Node};

/// Runs the next exchange that is needed, if one can begin now. False: there is nothing to do.
pub(crate) async fn step(node: &Arc<Node>) -> bool {
    let now_ms = clock::monotonic_ms();
    let next = node.recovery(|recovery| {
        recovery.next(
            now_ms,
            &|member| node.peers().reachable(member),
            clock::random_u64(),
        )
    });
    let Some(Some((partition, source))) = next else {
        if is_whole(node) {
            keep(node).await;
        }
        return false;
    };
    bulk::pull(node, Task::Recovery, partition, &source).await;
    let report = exchange::run(node, Task::Recovery, partition, &source, Mode::PullOnly).await;
    let report = report.unwrap_or_default();
    // What was equal may have come by a write that is not synced yet.
    let synced = !report.complete || node.sync().await;
    let report = if synced { report } else { ExchangeReport::default() };
    let ended = node.recovery(|recovery| recovery.ended(partition, &source, now_ms, &report));
    let counts = synced && ended.unwrap_or(false);
    if counts {
        keep(node).await;
    }
    counts
}

/// Nothing is missing any more, of what the next ring makes this node hold either; and nobody can have retired the base ring by the
/// word of the life before: then this node hears of it from one of them.
fn is_whole(node: &Node) -> bool {
    let pulled = node
        .with_sync(|sync| sync.is_done().then(|| sync.ring()))
        .flatten();
    node.recovery(|recovery| recovery.is_whole()) == Some(true) && node.membership().may_be_trusted(pulled)
}

/// Persists how far it has come; forgets the suspicion once everything is whole.
pub(crate) async fn keep(node: &Arc<Node>) {
    let whole = is_whole(node);
    let Some(progress) = node.recovery(|recovery| recovery.encode()) else {
        return;
    };
    let batch = if whole {
        durable::trusted()
    } else {
        durable::suspect(&progress)
    };
    match node.writer().meta(batch, true).await {
        Ok(_) if whole => {
            node.recovered();
            tracing::info!("the store is whole again");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot keep how far the recovery has come"),
    }
}
