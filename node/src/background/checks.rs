//! Primaries that a get did not ask, compared behind it: one quorum read brings every stale primary up to date (§5), though it waits
//! for R of them only.
//!
//! What many gets left out goes in one message, a key that was read often only once, and equal copies cost their digests. A copy
//! that differs is met by a get that asks all primaries, and repairs.

use std::{
    collections::{BTreeMap, HashSet},
    mem,
    sync::Arc,
    time::Duration,
};

use dynamo_core::{entropy::exchange::RECORDS_PER_TRANSFER, types::MemberId};
use dynamo_proto::peer::{CompareRequest, RecordDigest};
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    clock,
    node::Node,
    peers::CallError,
    request::{
        Deadline,
        get::{self, Ask, Query},
    },
    storage::DataKey,
};

/// Keys that are remembered at a time, about 100 bytes each; with more, gets ask all primaries again.
const KEYS_MAX: usize = 16_384;
/// How long a key waits for company at most.
const EVERY: Duration = Duration::from_millis(50);

/// What is to be compared.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    left_out: Mutex<LeftOut>,
    due: Notify,
}

#[derive(Debug, Default)]
struct LeftOut {
    keys: BTreeMap<MemberId, HashSet<DataKey>>,
    count: usize,
}

impl Checks {
    /// Whether a get may leave primaries out.
    pub(crate) fn has_room(&self) -> bool {
        self.left_out.lock().count < KEYS_MAX
    }

    /// A get did not ask this primary.
    pub(crate) fn left_out(&self, member: MemberId, key: &DataKey) {
        let mut left_out = self.left_out.lock();
        if left_out.keys.entry(member).or_default().insert(key.clone()) {
            left_out.count += 1;
            if left_out.count == 1 {
                self.due.notify_one();
            }
        }
    }

    fn take(&self) -> BTreeMap<MemberId, HashSet<DataKey>> {
        mem::take(&mut *self.left_out.lock()).keys
    }
}

/// Compares what gets leave out.
pub(crate) async fn serve(node: Arc<Node>) {
    loop {
        node.checks().due.notified().await;
        tokio::time::sleep(clock::until_next(EVERY)).await;
        let left_out = node.checks().take().into_iter();
        join_all(left_out.map(|(member, keys)| compare(&node, member, keys))).await;
    }
}

async fn compare(node: &Arc<Node>, member: MemberId, keys: HashSet<DataKey>) {
    let keys: Vec<DataKey> = keys.into_iter().collect();
    for keys in keys.chunks(RECORDS_PER_TRANSFER) {
        match differing(node, &member, keys).await {
            Ok(differing) => {
                for key in differing {
                    repair(node, key).await;
                }
            }
            // Hints and exchanges bring it what it lacks.
            Err(error) => {
                tracing::debug!(peer = %member, error = error.status.message(), "cannot compare what gets left out");
                return;
            }
        }
    }
}

/// The keys of which a peer has another state than this node.
async fn differing(node: &Node, member: &MemberId, keys: &[DataKey]) -> Result<Vec<DataKey>, CallError> {
    let mut differing = Vec::new();
    let (mut compared, mut records) = (Vec::new(), Vec::new());
    for key in keys {
        if let Some(digest) = node.digest_now(key) {
            let position = key.as_bytes().clone();
            records.push(RecordDigest {
                position,
                digest: digest.0,
            });
            compared.push(key);
        } else {
            // It is no longer in memory, or no longer here.
            differing.push(key.clone());
        }
    }
    if let Some(to) = node.membership().to(member).filter(|_| !records.is_empty()) {
        let header = Some(to.header());
        let response = node.peers().compare(&to, CompareRequest { header, records });
        let places = response.await?.differing.into_iter();
        differing.extend(places.filter_map(|place| compared.get(place as usize).copied().cloned()));
    }
    Ok(differing)
}

/// A get that nobody waits for.
async fn repair(node: &Arc<Node>, key: DataKey) {
    let Some(placed) = node.ring_in_use() else {
        return;
    };
    let policy = node.bucket(key.bucket());
    let Ok(quorum) = placed.quorum_of(&policy) else {
        return;
    };
    let query = Query {
        key,
        quorum,
        read_repair: policy.read_repair,
        ask: Ask::All,
    };
    let deadline = Deadline::after(node.peers().call_timeout());
    if let Err(failure) = get::coordinate(node, &placed, query, deadline).await {
        tracing::debug!(?failure, "cannot repair what a get left out");
    }
}
