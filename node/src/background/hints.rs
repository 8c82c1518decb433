//! Hinted handoff: brings hints to the members for which they are kept. Paper: §4.6.
//!
//! A hint is removed only after the owner's durable word, and only if it has not grown meanwhile. Hints are looked for at
//! an interval, after the start of this node, and as soon as a member answers again.

use std::sync::Arc;

use dynamo_core::{types::MemberId, version::KeyState};
use futures::future::join_all;

use super::Task;
use crate::{
    node::{Node, Placed},
    peers::Replication,
    storage::{DataKey, ScanLimit, hints::Hint},
};

/// Hints on their way at a time.
const PAGE: ScanLimit = ScanLimit {
    entries: 64,
    bytes: 4 << 20,
};

/// Delivers what can be delivered now. False: a member that seemed to answer has not taken all of its hints.
pub(crate) async fn deliver(node: &Arc<Node>) -> bool {
    let Some(placed) = node.ring_in_use() else {
        return true;
    };
    if node.is_doubtful() {
        // Those of an old volume may hold what was removed everywhere since.
        return true;
    }
    let mut all = true;
    for owner in node.hints().owners().into_keys() {
        let listed = placed.layouts().lists(&owner);
        if !listed || node.peers().reachable(&owner) {
            all &= deliver_to(node, &placed, &owner).await;
        }
    }
    all
}

/// Gives up the hints of a volume that was put back in time, but for those that this life has kept under its own name.
pub(crate) async fn give_up_old(node: &Node) {
    let Some(placed) = node.ring_in_use() else { return };
    for owner in node
        .hints()
        .owners()
        .into_keys()
        .filter(|owner| owner != placed.me())
    {
        while let Ok(page) = node.hints().scan(&owner, None, PAGE).await {
            let mut left = page.entries.is_empty() && page.damaged.is_empty();
            for key in &page.damaged {
                left |= node.hints().remove_corrupt(&owner, key).await.is_err();
            }
            for Hint { key, digest, .. } in &page.entries {
                left |= node.hints().remove_if(&owner, key, *digest).await.is_err();
            }
            if left {
                break;
            }
        }
    }
}

async fn deliver_to(node: &Arc<Node>, placed: &Arc<Placed>, owner: &MemberId) -> bool {
    let mut after = None;
    loop {
        let page = match node.hints().scan(owner, after.as_ref(), PAGE).await {
            Ok(page) => page,
            Err(error) => {
                tracing::warn!(%owner, %error, "cannot read hints");
                return false;
            }
        };
        for key in &page.damaged {
            tracing::error!(%owner, key_hash = %key.hash(), "a hint is damaged and given up; anti-entropy brings what it held");
            if let Err(error) = node.hints().remove_corrupt(owner, key).await {
                tracing::warn!(%owner, %error, "cannot remove a damaged hint");
            }
        }
        let deliveries = page
            .entries
            .into_iter()
            .map(|hint| hand_over(node, placed, owner, hint));
        // An owner that does not answer is asked again later, not for every hint.
        if join_all(deliveries).await.contains(&false) {
            return false;
        }
        after = page.next;
        if after.is_none() {
            return true;
        }
    }
}

/// Brings one hint to its owner, or to the key's primaries if the owner is none of them any more. True if it is gone.
async fn hand_over(node: &Arc<Node>, placed: &Arc<Placed>, owner: &MemberId, hint: Hint) -> bool {
    let Hint { key, state, digest } = hint;
    let (_operation, placed) = &node.begin(placed);
    let targets = placed.layouts().hint_targets(owner, key.hash());
    if !bring(node, placed, Task::Hints, &targets, &key, &state).await {
        return false;
    }
    match node.hints().remove_if(owner, &key, digest).await {
        // One that has grown meanwhile goes the next time.
        Ok(removed) => {
            if removed {
                node.metrics().hint_delivered();
            }
            removed
        }
        Err(error) => {
            tracing::warn!(%owner, %error, "cannot remove a delivered hint; it will be delivered again");
            false
        }
    }
}

/// Has all these members take a state durably. True if they have.
pub(super) async fn bring(
    node: &Arc<Node>,
    placed: &Placed,
    task: Task,
    targets: &[MemberId],
    key: &DataKey,
    state: &KeyState,
) -> bool {
    let bytes = state.encode();
    for target in targets {
        if target == placed.me() {
            if node.merge_local(key.clone(), state.clone(), true).await.is_err() {
                return false;
            }
            continue;
        }
        let Some(to) = node.membership().to(target) else {
            return false;
        };
        if !node.peers().reachable(target) {
            return false;
        }
        node.background().wait_turn(task, 1, bytes.len() as u64).await;
        let replication = Replication {
            sync: true,
            hint_for: None,
        };
        match node.peers().write(&to, key, bytes.clone(), replication).await {
            Ok(ack) if ack.durable => {}
            Ok(_) => {
                tracing::warn!(peer = %target, task = task.name(), "a peer took a record without making it durable");
                return false;
            }
            Err(_) => return false,
        }
    }
    true
}
