//! Records whose bytes fail their checksum: never served, and fetched anew from the other primaries. Paper: §4.7.
//!
//! What comes back must not be less than what was acknowledged here, so all other primaries have to answer, and none of
//! them from a suspect store. Nobody waits for those that an administrator has declared dead.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use dynamo_core::version::KeyState;
use futures::future::try_join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Task;
use crate::{node::Node, storage::DataKey};

/// Damaged records that are remembered at a time; others wait until they are read again.
const WANTED_MAX: usize = 1024;
/// Time between two attempts while the other primaries cannot all be asked.
const RETRY: Duration = Duration::from_secs(1);

/// The damaged records that were met.
#[derive(Debug, Default)]
pub(crate) struct Refetches {
    wanted: Mutex<BTreeSet<DataKey>>,
    due: Notify,
}

impl Refetches {
    /// A record cannot be read for its damage.
    pub(crate) fn want(&self, key: &DataKey) {
        let mut wanted = self.wanted.lock();
        if wanted.len() < WANTED_MAX && wanted.insert(key.clone()) {
            self.due.notify_one();
        }
    }

    fn all(&self) -> Vec<DataKey> {
        self.wanted.lock().iter().cloned().collect()
    }
}

/// Fetches damaged records as they are met.
pub(crate) async fn serve(node: Arc<Node>) {
    loop {
        let mut left = false;
        for key in node.refetches().all() {
            node.background().wait_turn(Task::Exchange, 1, 0).await;
            match run(&node, &key).await {
                Ok(()) => {
                    tracing::warn!(key_hash = %key.hash(), "a damaged record was replaced by what the other primaries hold");
                    node.refetches().wanted.lock().remove(&key);
                }
                Err(why) => {
                    left = true;
                    tracing::warn!(key_hash = %key.hash(), why, "a damaged record cannot be replaced yet");
                }
            }
        }
        if left {
            tokio::time::sleep(RETRY).await;
        } else {
            node.refetches().due.notified().await;
        }
    }
}

async fn run(node: &Arc<Node>, key: &DataKey) -> Result<(), String> {
    let placed = node.ring_in_use().ok_or("there is no ring")?;
    if !placed.is_primary(key) {
        return Err("this node is no primary of the key".to_owned());
    }
    let dead = placed.layouts().dead();
    let others = placed
        .primaries_of(placed.partition_of(key))
        .filter(|member| *member != placed.me() && !dead.contains(*member));
    let states = try_join_all(others.map(|member| async move {
        let to = node
            .membership()
            .to(member)
            .ok_or_else(|| format!("the address of {member} is not known"))?;
        let read = node.peers().read(&to, key, false, None).await;
        let read = read.map_err(|failure| format!("{member}: {}", failure.kind.as_str()))?;
        if read.suspect {
            return Err(format!("{member} does not trust its own store"));
        }
        Ok(read.state)
    }))
    .await?;
    let mut merged = KeyState::new();
    for state in states.iter().flatten() {
        merged.merge(state);
    }
    let replaced = if merged == KeyState::new() {
        node.writer().remove_corrupt(key).await
    } else {
        node.writer().replace_corrupt(key, merged).await
    };
    replaced.map(drop).map_err(|error| error.to_string())
}
