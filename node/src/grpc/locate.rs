//! `locate`: asks member after member for copies of a key, and brings the answers back on the same way, as unstructured
//! peers do (§3.1). A diagnostic; no request of a client is ever served so.
//!
//! Each question has an id and a time to live: a node answers an id once, asks others while the time to live lasts, and
//! puts their answers to its own.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use dynamo_core::{types::MemberId, version::KeyState};
use dynamo_proto::{
    peer::{LocateRequest, LocateResponse},
    v1::{LocatedCopy, located_copy::Role},
};
use futures::future::join_all;
use parking_lot::Mutex;

use super::{
    convert,
    status::{Failure, Reason},
};
use crate::{clock, node::Node, storage::DataKey};

/// Hops at most.
pub(crate) const TTL_MAX: u32 = 16;
/// Members that each node asks.
const FAN_OUT: usize = 3;
/// Questions whose ids are remembered.
const ASKED_MAX: usize = 4096;
/// Time that a node keeps of what its asker still waits, for its answer's way back.
const MARGIN_MS: u32 = 50;

/// The questions that this node has answered.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    ids: Mutex<VecDeque<[u8; 16]>>,
}

impl Asked {
    /// True the first time.
    fn first(&self, id: [u8; 16]) -> bool {
        let mut ids = self.ids.lock();
        if ids.contains(&id) {
            return false;
        }
        if ids.len() == ASKED_MAX {
            ids.pop_front();
        }
        ids.push_back(id);
        true
    }
}

/// Answers a question and asks it on.
///
/// # Errors
/// INVALID_ARGUMENT for what no node asks; INTERNAL if this node's stores cannot be read.
pub(crate) async fn flood(
    node: &Arc<Node>,
    request: LocateRequest,
    sender: Option<&str>,
) -> Result<LocateResponse, Failure> {
    let id: [u8; 16] = request.request_id.as_ref().try_into().map_err(|_| {
        Failure::invalid(format!(
            "the request id has {} bytes but must have 16",
            request.request_id.len()
        ))
    })?;
    if request.ttl > TTL_MAX {
        return Err(Failure::invalid(format!(
            "the time to live is {} hops but may be {TTL_MAX} at most",
            request.ttl
        )));
    }
    let key = convert::record_key(&request.bucket, &request.key)?;
    if !node.asked().first(id) {
        return Ok(LocateResponse::default());
    }
    let copies = copies(node, &key).await;
    let copies = copies.map_err(|error| Failure::new(Reason::Storage, error.to_string()))?;
    let mut response = LocateResponse { copies, asked: 1 };
    if request.ttl == 0 {
        return Ok(response);
    }
    let timeout_ms = request.timeout_ms.saturating_sub(MARGIN_MS).max(1);
    let asks = targets(node, sender).into_iter().map(|target| {
        let request = LocateRequest {
            ttl: request.ttl - 1,
            timeout_ms,
            ..request.clone()
        };
        ask(node, target, request)
    });
    for answer in join_all(asks).await.into_iter().flatten() {
        response.copies.extend(answer.copies);
        response.asked += answer.asked;
    }
    Ok(response)
}

async fn ask(node: &Arc<Node>, target: MemberId, mut request: LocateRequest) -> Option<LocateResponse> {
    let to = node.membership().to(&target)?;
    let timeout = Duration::from_millis(request.timeout_ms.into());
    request.header = Some(to.header());
    node.peers().locate(&to, request, timeout).await.ok()
}

/// A few random members that answer, but for whoever has asked.
fn targets(node: &Node, sender: Option<&str>) -> Vec<MemberId> {
    let me = node.membership().me().map(|me| me.member);
    let mut others: Vec<MemberId> = node
        .membership()
        .entries()
        .into_iter()
        .map(|entry| entry.member)
        .filter(|member| Some(member) != me.as_ref() && Some(member.as_str()) != sender)
        .filter(|member| node.peers().reachable(member))
        .collect();
    let mut targets = Vec::new();
    while targets.len() < FAN_OUT && !others.is_empty() {
        let pick = (clock::random_u64() % others.len() as u64) as usize;
        targets.push(others.swap_remove(pick));
    }
    targets
}

/// What this node holds of a key.
async fn copies(node: &Arc<Node>, key: &DataKey) -> Result<Vec<LocatedCopy>, crate::storage::StoreError> {
    let me = node.membership().me().map(|me| me.member.to_string());
    let copy = |role: Role, hint_for: String, state: &KeyState| LocatedCopy {
        member_id: me.clone().unwrap_or_default(),
        role: role.into(),
        hint_for,
        digest: state.digest(),
        siblings: state.siblings().len() as u32,
        deleted: state.is_deleted(clock::wall_ms()),
    };
    let mut copies = Vec::new();
    if let Some(state) = node.load(key).await? {
        let primary = node.ring_in_use().is_some_and(|placed| placed.is_primary(key));
        let role = if primary { Role::Primary } else { Role::Stray };
        copies.push(copy(role, String::new(), &state));
    }
    for owner in node.hints().owners().into_keys() {
        if let Some(state) = node.hints().read_for(&owner, key).await? {
            copies.push(copy(Role::Hint, owner.to_string(), &state));
        }
    }
    Ok(copies)
}
