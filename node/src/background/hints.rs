//! Hinted handoff: brings hints to the members for which they are kept. Paper: §4.6.
//!
//! A hint is removed only after the owner's durable word, and only if it has not grown meanwhile. Hints are looked for at
//! an interval, after the start of this node, and as soon as a member answers again.

use std::sync::Arc;

use dynamo_core::{handoff::hint_targets, types::MemberId, version::KeyState};
use futures::future::join_all;

use super::Task;
use crate::{
    node::{Node, Placed},
    peers::Replication,
    storage::DataKey,
};

/// Hints on their way at a time.
const PAGE_HINTS: usize = 64;

/// Delivers what can be delivered now.
pub(crate) async fn deliver(node: &Arc<Node>) {
    let Some(placed) = node.ring_in_use() else { return };
    for owner in node.hints().owners().into_keys() {
        deliver_to(node, &placed, &owner).await;
    }
}

async fn deliver_to(node: &Arc<Node>, placed: &Placed, owner: &MemberId) {
    let mut after = None;
    loop {
        let page = match node.hints().scan(owner, after.take(), PAGE_HINTS).await {
            Ok(page) => page,
            Err(error) => {
                tracing::warn!(%owner, %error, "cannot read hints");
                return;
            }
        };
        let Some((last, _)) = page.last() else { return };
        after = Some(last.clone());
        let full = page.len() == PAGE_HINTS;
        let deliveries = page.into_iter().map(|(key, state)| hand_over(node, placed, owner, key, state));
        let delivered = join_all(deliveries).await;
        // An owner that does not answer is asked again later, not for every hint.
        if !full || delivered.iter().all(|delivered| !delivered) {
            return;
        }
    }
}

/// Brings one hint to its owner, or to the key's primaries if the owner is none of them any more. True if it is gone.
async fn hand_over(
    node: &Arc<Node>,
    placed: &Placed,
    owner: &MemberId,
    key: DataKey,
    state: KeyState,
) -> bool {
    let partition = placed.placement().ring().partition_of(key.hash());
    let bytes = state.encode();
    for target in hint_targets(placed.placement(), owner, partition) {
        if target == *placed.me() {
            if node.merge_local(key.clone(), state.clone(), true).await.is_err() {
                return false;
            }
            continue;
        }
        let Some(to) = node.membership().to(&target) else {
            return false;
        };
        if !node.peers().reachable(&target) {
            return false;
        }
        node.background().wait_turn(Task::Hints, 1, bytes.len() as u64).await;
        let replication = Replication {
            sync: true,
            hint_for: None,
        };
        match node.peers().write(&to, &key, bytes.clone(), replication).await {
            Ok(ack) if ack.durable => {}
            Ok(_) => {
                tracing::warn!(peer = %target, "a peer took a hint without making it durable; keeping the hint");
                return false;
            }
            Err(_) => return false,
        }
    }
    match node.hints().remove_if(owner, key, state.digest()).await {
        Ok(removed) => {
            node.metrics().hint_delivered();
            removed
        }
        Err(error) => {
            tracing::warn!(%owner, %error, "cannot remove a delivered hint; it will be delivered again");
            false
        }
    }
}
