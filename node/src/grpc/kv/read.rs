//! Gets: from the request to its answer.

use std::sync::Arc;

use bytes::Bytes;
use dynamo_core::{
    bucket::{BucketPolicy, Conflict, ReadRepair},
    coordinator::{GetOutcome, GetResult},
    crdt,
    quorum::QuorumOverrides,
    version::{KeyState, Seen},
};
use dynamo_proto::v1;
use tokio::time::Instant;

use super::{context_bytes, convert, info};
use crate::{
    clock,
    grpc::{
        data_types,
        status::{Failure, Reason},
    },
    node::{Node, Placed},
    request::{
        Deadline, Served,
        get::{self, Ask, Query},
        who_failed,
    },
    storage::DataKey,
    telemetry::metrics::Operation,
};

/// One get, counted.
///
/// # Errors
/// NOT_FOUND with the context of the tombstones; UNAVAILABLE or DEADLINE_EXCEEDED if too few replicas answer.
pub(super) async fn one(
    node: &Arc<Node>,
    request: v1::GetRequest,
    deadline: Deadline,
) -> Result<v1::GetResponse, Failure> {
    let started = Instant::now();
    let result = read(node, request, deadline).await;
    let word = match &result {
        Ok(response) => {
            node.metrics().siblings(response.versions.len());
            "ok"
        }
        Err(failure) => failure.reason.name(),
    };
    if let Err(failure) = &result
        && matches!(failure.reason, Reason::QuorumNotMet | Reason::ReadTimedOut)
    {
        node.metrics().quorum_failure(Operation::Get);
    }
    node.foreground(Operation::Get, word, started.elapsed());
    result
}

/// The copy that this node alone holds, for clients that count replicas themselves.
///
/// # Errors
/// If the record cannot be read: never the same as none.
pub(super) async fn replica(
    node: &Arc<Node>,
    request: v1::ReplicaGetRequest,
) -> Result<v1::ReplicaGetResponse, Failure> {
    let placed = node.placed()?;
    if let Some(me) = node.membership().me()
        && !request.member_id.is_empty()
        && request.member_id != me.member.as_str()
    {
        let message = format!("this is {}, not {}", me.member, request.member_id);
        return Err(Failure::new(Reason::WrongRecipient, message));
    }
    let key = convert::record_key(&request.bucket, &request.key)?;
    let read = node.read_replica(&key).await.map_err(|error| {
        let message = format!("the key with hash {}: {error}", key.hash());
        Failure::new(Reason::CorruptRecord, message)
    })?;
    Ok(v1::ReplicaGetResponse {
        state: read.state.map(|state| state.encode()),
        suspect: read.suspect,
        ring_epoch: placed.epoch(),
        primary: placed.is_primary(&key),
        rules: Some(rules(&placed, &node.bucket(key.bucket()))?),
    })
}

/// What a client must know of a bucket to coordinate reads.
fn rules(placed: &Placed, policy: &BucketPolicy) -> Result<v1::ReadRules, Failure> {
    let typed = policy.conflict.data_type().is_some();
    Ok(v1::ReadRules {
        quorum: Some(convert::effective_quorum(&placed.quorum_of(policy)?)),
        last_write_wins: policy.conflict == Conflict::Lww,
        nodes_only: typed || policy.read_repair == ReadRepair::Blocking,
        version: policy.version,
    })
}

/// What a delete with `force` reads before it deletes.
///
/// # Errors
/// As [`one`].
pub(super) async fn context(
    node: &Arc<Node>,
    bucket: &str,
    key: &Bytes,
    deadline: Deadline,
) -> Result<Bytes, Failure> {
    let get = v1::GetRequest {
        bucket: bucket.to_owned(),
        key: key.clone(),
        ..v1::GetRequest::default()
    };
    Ok(read(node, get, deadline).await?.context)
}

async fn read(
    node: &Arc<Node>,
    request: v1::GetRequest,
    deadline: Deadline,
) -> Result<v1::GetResponse, Failure> {
    let placed = node.placed_to_read()?;
    let key = convert::record_key(&request.bucket, &request.key)?;
    let policy = node.bucket(key.bucket());
    let overrides = QuorumOverrides {
        r: convert::replica_count(request.r.as_ref()),
        pr: convert::replica_count(request.pr.as_ref()),
        ..QuorumOverrides::default()
    };
    let query = Query {
        quorum: convert::quorum(&placed.quorum_of(&policy)?, &overrides)?,
        read_repair: policy.read_repair,
        key: key.clone(),
        ask: Ask::Enough,
    };
    let (outcome, served) = get::coordinate(node, &placed, query, deadline).await?;
    answer(&placed, &key, &policy, (outcome, served))
}

fn answer(
    placed: &Placed,
    key: &DataKey,
    policy: &BucketPolicy,
    (outcome, served): (GetOutcome, Served),
) -> Result<v1::GetResponse, Failure> {
    let hash = key.hash();
    match outcome.result {
        GetResult::Found(state) => {
            let Some(shown) = show(&state, policy, clock::wall_ms())? else {
                return Err(not_found(placed, key, Some(state), &served));
            };
            Ok(v1::GetResponse {
                versions: shown.versions,
                typed: shown.typed,
                context: context_bytes(placed, hash, shown.context),
                deleted_concurrently: state.has_tombstone(),
                info: Some(info(&served)),
            })
        }
        GetResult::Absent(state) => Err(not_found(placed, key, state, &served)),
        GetResult::Unavailable {
            needed,
            got,
            timed_out,
            failed,
        } => {
            let reason = if timed_out {
                Reason::ReadTimedOut
            } else {
                Reason::QuorumNotMet
            };
            let message = format!(
                "the get of the key with hash {hash} had {got} answers of the {needed} that it needs{}; try again",
                who_failed(&failed)
            );
            Err(Failure::new(reason, message))
        }
    }
}

/// What a client sees of a record, and what it has seen then.
struct Shown {
    versions: Vec<v1::Version>,
    typed: Option<v1::TypedValue>,
    context: Seen,
}

/// None: there is no value.
fn show(state: &KeyState, policy: &BucketPolicy, wall_ms: u64) -> Result<Option<Shown>, Failure> {
    let plain = |versions: Vec<v1::Version>| {
        (!versions.is_empty()).then(|| Shown {
            versions,
            typed: None,
            context: state.context_seen(),
        })
    };
    let Some(data_type) = policy.conflict.data_type() else {
        return Ok(plain(match policy.conflict {
            Conflict::Lww => convert::last_version(state, wall_ms).into_iter().collect(),
            _ => convert::versions(state, wall_ms),
        }));
    };
    let read = crdt::read(data_type, state, wall_ms).map_err(|error| {
        let message = format!("the value cannot be read as a {data_type}: {error}");
        Failure::new(Reason::CorruptRecord, message)
    })?;
    Ok(read.map(|read| Shown {
        versions: Vec::new(),
        typed: Some(data_types::typed_value(read.view)),
        context: read.context,
    }))
}

fn not_found(placed: &Placed, key: &DataKey, state: Option<KeyState>, served: &Served) -> Failure {
    let hash = key.hash();
    let context = state.map_or_else(Bytes::new, |state| {
        context_bytes(placed, hash, state.context_seen())
    });
    let mut failure = Failure::new(
        Reason::KeyNotFound,
        format!("no value under the key with hash {hash}"),
    );
    failure.not_found = Some(Box::new(v1::NotFound {
        context,
        info: Some(info(served)),
    }));
    failure
}
