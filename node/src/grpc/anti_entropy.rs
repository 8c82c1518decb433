//! The peer service's half of an exchange: hashes, keys and records of this node's partitions. Paper: §4.7.

use std::sync::Arc;

use bytes::Bytes;
use dynamo_core::{
    entropy::{
        exchange::{HASHES_PER_MESSAGE, LEAVES_PER_MESSAGE, RECORDS_PER_TRANSFER},
        has_news_for, record_hash,
    },
    types::{MemberId, PartitionId},
    version::KeyState,
};
use dynamo_proto::peer::{
    CompareRequest, CompareResponse, FetchKey, FetchRequest, FetchResponse, Fetched, PageRequest,
    PageResponse, StoreRequest, StoreResponse, StoredState, TreeHashesRequest, TreeHashesResponse, TreeKey,
    TreeKeysRequest, TreeKeysResponse, fetched::Result as Found,
};
use futures::future::try_join_all;

use super::status::{Failure, Reason};
use crate::{
    background::exchange::TRANSFER_BYTES_MAX,
    clock,
    node::{Digest, Node, Unless},
    storage::DataKey,
};

pub(super) fn tree_hashes(node: &Node, request: &TreeHashesRequest) -> Result<TreeHashesResponse, Failure> {
    at_most("nodes", request.nodes.len(), HASHES_PER_MESSAGE)?;
    let partition = PartitionId(request.partition);
    let suspect = node.is_suspect(partition);
    let tree = node.tree(partition);
    let Some(tree) = tree.filter(|_| request.level == 0 || lets_in(node, request, partition)) else {
        return Ok(TreeHashesResponse {
            not_ready: true,
            suspect,
            ..TreeHashesResponse::default()
        });
    };
    let hashes = tree.hashes_of(request.level, &request.nodes).ok_or_else(|| {
        Failure::invalid("the tree has no such level or nodes; do both sides use one ring?")
    })?;
    Ok(TreeHashesResponse {
        hashes,
        not_ready: false,
        suspect,
    })
}

/// The peer looks below the root, so something differs.
fn lets_in(node: &Node, request: &TreeHashesRequest, partition: PartitionId) -> bool {
    let sender = request
        .header
        .as_ref()
        .map(|header| MemberId::new(&header.member_id));
    let Some(Ok(sender)) = sender else {
        return false;
    };
    let now_ms = clock::monotonic_ms();
    node.background()
        .with_schedule(|schedule| schedule.lets_in(partition, &sender, now_ms))
}

pub(super) async fn tree_keys(
    node: &Arc<Node>,
    request: TreeKeysRequest,
) -> Result<TreeKeysResponse, Failure> {
    at_most("leaves", request.leaves.len(), LEAVES_PER_MESSAGE)?;
    let partition = PartitionId(request.partition);
    let suspect = node.is_suspect(partition);
    if node.tree(partition).is_none() {
        return Ok(TreeKeysResponse {
            not_ready: true,
            suspect,
            ..TreeKeysResponse::default()
        });
    }
    let after = if request.after.is_empty() {
        None
    } else {
        Some(place(request.after)?.position())
    };
    let page = node.keys_of_leaves(partition, request.leaves, after).await;
    let page = page.map_err(|error| Failure::new(Reason::Storage, error.to_string()))?;
    let keys = page.keys.into_iter().map(|key| TreeKey {
        position: key.position.as_bytes().clone(),
        hash: key.hash,
    });
    Ok(TreeKeysResponse {
        keys: keys.collect(),
        more: page.more,
        not_ready: false,
        suspect,
    })
}

/// Which records are others here. One that cannot be read is not among them: nothing here would come of a repair.
pub(super) async fn compare(node: &Arc<Node>, request: CompareRequest) -> Result<CompareResponse, Failure> {
    at_most("records", request.records.len(), RECORDS_PER_TRANSFER)?;
    let mut differing = Vec::new();
    for (index, record) in request.records.into_iter().enumerate() {
        let found = node
            .read_unless(&place(record.position)?, Some(Digest(record.digest)))
            .await;
        if matches!(found, Ok(Unless::Other(_))) {
            differing.push(index as u32);
        }
    }
    Ok(CompareResponse { differing })
}

/// Records for one who lacks something of them; as many as fit into a message.
pub(super) async fn fetch(node: &Arc<Node>, request: FetchRequest) -> Result<FetchResponse, Failure> {
    at_most("keys", request.keys.len(), RECORDS_PER_TRANSFER)?;
    let mut response = FetchResponse::default();
    let mut bytes = 0;
    for key in request.keys {
        if bytes > TRANSFER_BYTES_MAX {
            break;
        }
        let place = place(key.position.clone())?;
        let partition = node.ring_in_use().map(|placed| placed.partition_of(&place));
        response.suspect |= partition.is_some_and(|partition| node.is_suspect(partition));
        let found = look_up(node, &place, key).await?;
        if let Found::State(state) = &found {
            bytes += state.len();
        }
        response.fetched.push(Fetched { result: Some(found) });
    }
    Ok(response)
}

async fn look_up(node: &Arc<Node>, place: &DataKey, asked: FetchKey) -> Result<Found, Failure> {
    let stored = node.load_unmarked(place).await;
    let stored = stored.map_err(|error| Failure::new(Reason::CorruptRecord, error.to_string()))?;
    let Some(state) = stored else {
        return Ok(Found::Gone(true));
    };
    let known = asked.known.map(KeyState::decode).transpose();
    let known = known.map_err(|error| Failure::invalid(format!("a key state cannot be read: {error}")))?;
    let encoded = state.encode();
    let is_same = || asked.known_hash == record_hash(place.as_bytes(), &encoded);
    Ok(match known {
        // It may have become the same since the asker compared hashes.
        Some(known) if is_same() || !has_news_for(&state, &known) => Found::NoNews(true),
        _ => Found::State(encoded),
    })
}

/// The next records of a partition, as they are stored: whoever asks checks them.
pub(super) async fn page(node: &Arc<Node>, request: PageRequest) -> Result<PageResponse, Failure> {
    let after = if request.after.is_empty() {
        None
    } else {
        Some(place(request.after)?)
    };
    let page = node.stored(PartitionId(request.partition), after).await;
    let page = page.map_err(|error| Failure::new(Reason::Storage, error.to_string()))?;
    let states = page.records.into_iter();
    Ok(PageResponse {
        states: states
            .map(|(position, state)| StoredState { position, state })
            .collect(),
        next: page.next.unwrap_or_default(),
    })
}

/// Merges what the sender has; answers once all of it is on the disk.
pub(super) async fn store(node: &Arc<Node>, request: StoreRequest) -> Result<StoreResponse, Failure> {
    at_most("states", request.states.len(), RECORDS_PER_TRANSFER)?;
    let mut merges = Vec::with_capacity(request.states.len());
    for StoredState { position, state } in request.states {
        let key = place(position)?;
        let state = KeyState::decode(state)
            .map_err(|error| Failure::invalid(format!("a key state cannot be read: {error}")))?;
        merges.push(async move {
            let merged = node.writer().merge(key, state, true).await;
            merged.map_err(Failure::from)
        });
    }
    try_join_all(merges).await?;
    Ok(StoreResponse {})
}

fn place(position: Bytes) -> Result<DataKey, Failure> {
    DataKey::parse(position)
        .map_err(|error| Failure::invalid(format!("a key's place cannot be read: {error}")))
}

fn at_most(what: &str, count: usize, most: usize) -> Result<(), Failure> {
    if count <= most {
        return Ok(());
    }
    Err(Failure::invalid(format!(
        "a message asks for {count} {what}, at most {most} are allowed"
    )))
}
