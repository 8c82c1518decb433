//! Puts, deletes and updates of data types: coordinated here, or forwarded once to a node that may. Paper: §4.5, §5.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use dynamo_core::{
    bucket::{BucketPolicy, Conflict},
    coordinator::FailureKind,
    quorum::QuorumOverrides,
    types::MemberId,
    version::{Content, Seen},
};
use dynamo_proto::{peer, v1};
use tokio::time::Instant;
use tonic::Status;

use super::{context_bytes, convert, info, read};
use crate::{
    clock,
    grpc::{
        data_types,
        status::{self, Failure, Reason, relay},
    },
    node::{Node, Placed},
    request::{
        Deadline,
        put::{self, Change, Command},
    },
    storage::DataKey,
    telemetry::metrics::Operation,
};

/// A write as a client asks for it.
#[derive(Debug, Clone)]
pub(super) enum Write {
    Put(v1::PutRequest),
    Delete(v1::DeleteRequest),
    Update(v1::UpdateRequest),
}

/// What all writes are answered with.
#[derive(Debug, Clone, Default)]
pub(super) struct Written {
    context: Bytes,
    outcome: Option<v1::WriteOutcome>,
    info: Option<v1::ResponseInfo>,
}

/// One write, counted.
///
/// # Errors
/// With the truth about what may have been applied.
pub(super) async fn one(node: &Arc<Node>, write: Write, deadline: Deadline) -> Result<Written, Status> {
    let started = Instant::now();
    let operation = write.operation();
    let result = serve(node, write, deadline).await;
    let word = match &result {
        Ok(_) => "ok",
        Err(status) => {
            let word = status::reason_word(status);
            if matches!(word, "QUORUM_NOT_MET" | "WRITE_TIMED_OUT") {
                node.metrics().quorum_failure(operation);
            }
            word
        }
    };
    node.foreground(operation, word, started.elapsed());
    result
}

/// Serves a write that another node has forwarded: as its coordinator or not at all, so that it hops once at most.
///
/// # Errors
/// As [`one`]; FAILED_PRECONDITION if this node is not in the key's preference list.
pub(crate) async fn coordinate_forwarded(
    node: &Arc<Node>,
    request: peer::CoordinateRequest,
) -> Result<peer::CoordinateResponse, Status> {
    use peer::{coordinate_request::Request as Asked, coordinate_response::Response as Answer};
    let deadline = Deadline::within(Some(Duration::from_millis(request.timeout_ms.into())), 0);
    let _permit = node.admit()?;
    let placed = node.placed_to_coordinate().map_err(Failure::not_applied)?;
    let write = match request.request {
        Some(Asked::Put(put)) => Write::Put(put),
        Some(Asked::Delete(delete)) => Write::Delete(delete),
        Some(Asked::Update(update)) => Write::Update(update),
        None => return Err(Failure::invalid("a coordinate request must hold a write").into()),
    };
    let command = write.command(node, &placed).map_err(Failure::not_applied)?;
    let candidates = node.put_candidates(&placed, &command.key);
    let partners = candidates.partners.iter().map(|(_, partner)| partner);
    let mut may = candidates.top_reachable().into_iter().chain(partners);
    if !may.any(|candidate| candidate.member == *placed.me()) {
        // Who forwarded it goes by another ring, or cannot reach whom this node reaches.
        let hash = command.key.hash();
        let message = format!("others are to coordinate writes of the key with hash {hash}");
        return Err(Failure::new(Reason::StaleRing, message).not_applied().into());
    }
    drop(may);
    let written = run(node, &placed, command, deadline).await?;
    Ok(peer::CoordinateResponse {
        response: Some(match write {
            Write::Put(_) => Answer::Put(written.into_put()),
            Write::Delete(_) => Answer::Delete(written.into_delete()),
            Write::Update(_) => Answer::Update(written.into_update()),
        }),
    })
}

async fn serve(node: &Arc<Node>, mut write: Write, deadline: Deadline) -> Result<Written, Status> {
    let placed = node.placed_to_coordinate().map_err(Failure::not_applied)?;
    if let Write::Delete(delete) = &mut write
        && delete.force
        && delete.context.is_empty()
    {
        let context = read::context(node, &delete.bucket, &delete.key, deadline).await;
        delete.context = context.map_err(Failure::not_applied)?;
    }
    let command = write.command(node, &placed).map_err(Failure::not_applied)?;
    let candidates = node.put_candidates(&placed, &command.key);
    // By the bucket's replicas, which may be fewer than the ring's.
    let mut primaries = candidates.primaries.iter();
    if primaries.any(|primary| primary.member == *placed.me()) {
        return Ok(run(node, &placed, command, deadline).await?);
    }
    let mut refused = None;
    for candidate in candidates.top_reachable() {
        // Only without a primary in reach does a fallback coordinate, and keeps the write as a hint.
        if candidate.member == *placed.me() {
            return Ok(run(node, &placed, command, deadline).await?);
        }
        match forward(node, &write, &command, &candidate.member, deadline).await? {
            Forwarded::Done(answer) => return Ok(answer),
            Forwarded::DiskFull(status) => refused = Some(status),
            Forwarded::NotSent => {}
        }
    }
    if let Some(status) = refused {
        return Err(status);
    }
    let hash = command.key.hash();
    let message = format!("no node that may coordinate the key with hash {hash} can be reached; try again");
    Err(Failure::new(Reason::QuorumNotMet, message).not_applied().into())
}

/// Runs a write as its coordinator; the reply's context is the request's and the new dot.
async fn run(
    node: &Arc<Node>,
    placed: &Arc<Placed>,
    command: Command,
    deadline: Deadline,
) -> Result<Written, Failure> {
    let hash = command.key.hash();
    let written = put::coordinate(node, placed, command, deadline).await?;
    Ok(Written {
        context: context_bytes(placed, hash, written.context),
        outcome: Some(written.outcome),
        info: Some(info(&written.served)),
    })
}

/// What became of a write that was passed on and may be passed on again.
enum Forwarded {
    Done(Written),
    /// That node has no room, of which others may have plenty.
    DiskFull(Status),
    NotSent,
}

/// Passes a write on. What may have been applied is never sent again.
async fn forward(
    node: &Arc<Node>,
    write: &Write,
    command: &Command,
    target: &MemberId,
    deadline: Deadline,
) -> Result<Forwarded, Status> {
    let Some(to) = node.membership().to(target) else {
        return Ok(Forwarded::NotSent);
    };
    node.metrics().forward();
    let remaining = deadline.remaining();
    let request = peer::CoordinateRequest {
        header: Some(to.header()),
        // The coordinator gives up a little before that, and its answer comes before its silence is held against it.
        timeout_ms: remaining.as_millis() as u32,
        request: Some(write.clone().into_forwarded()),
    };
    // A task of its own: what a dead peer costs is learned even if the client does not wait for it.
    let forwarding = Arc::clone(node);
    let call = tokio::spawn(async move { forwarding.peers().coordinate(&to, request, remaining).await });
    let answer = call
        .await
        .map_err(|error| Status::internal(format!("the forwarding task ended early: {error}")))?;
    match answer {
        Ok(response) => Written::forwarded(response).map(Forwarded::Done),
        Err(error) if error.kind == FailureKind::StaleEpoch => {
            node.catch_up();
            Ok(Forwarded::NotSent)
        }
        Err(error) if error.answered && status::reason_word(&error.status) == Reason::DiskFull.name() => {
            Ok(Forwarded::DiskFull(relay(&error.status)))
        }
        Err(error) if error.answered => Err(relay(&error.status)),
        Err(error) if error.sent => {
            let message = format!(
                "{target} was to coordinate the write of the key with hash {} and did not answer ({}); some replicas may \
                 hold it: repeat it with the same op id",
                command.key.hash(),
                error.status.message()
            );
            let outcome = v1::WriteOutcome {
                state: v1::write_outcome::State::Partial.into(),
                ..v1::WriteOutcome::default()
            };
            let failure = Failure::new(Reason::WriteTimedOut, message);
            Err(failure.with_outcome(outcome).into())
        }
        Err(_) => Ok(Forwarded::NotSent),
    }
}

impl Write {
    fn operation(&self) -> Operation {
        match self {
            Self::Put(_) => Operation::Put,
            Self::Delete(_) => Operation::Delete,
            Self::Update(_) => Operation::Update,
        }
    }

    /// Checks the request.
    fn command(&self, node: &Node, placed: &Placed) -> Result<Command, Failure> {
        match self {
            Self::Put(put) => put_command(node, placed, put),
            Self::Delete(delete) => delete_command(node, placed, delete),
            Self::Update(update) => update_command(node, placed, update),
        }
    }

    fn into_forwarded(self) -> peer::coordinate_request::Request {
        use peer::coordinate_request::Request;
        match self {
            Self::Put(put) => Request::Put(put),
            Self::Delete(delete) => Request::Delete(delete),
            Self::Update(update) => Request::Update(update),
        }
    }
}

fn put_command(node: &Node, placed: &Placed, put: &v1::PutRequest) -> Result<Command, Failure> {
    let key = convert::record_key(&put.bucket, &put.key)?;
    let policy = node.bucket(key.bucket());
    if policy.conflict.data_type().is_some() {
        return Err(Failure::invalid(format!(
            "bucket {:?} holds values of a data type; change them with Update",
            key.bucket()
        )));
    }
    let value = convert::value(put.value.clone(), node.config().limits.value_bytes_max)?;
    let ttl_ms = if put.ttl_ms > 0 {
        Some(put.ttl_ms)
    } else {
        policy.ttl_ms
    };
    let overrides = overrides(put.w, put.pw, put.dw, put.zones);
    Ok(Command {
        context: context(&put.context, placed, &key)?,
        change: change(&policy, Content::Value(value)),
        op_id: convert::op_id(&put.op_id)?,
        expires_at_ms: ttl_ms.map(|ttl_ms| clock::wall_ms().saturating_add(ttl_ms)),
        quorum: convert::quorum(&placed.quorum_of(&policy)?, &overrides)?,
        key,
    })
}

fn delete_command(node: &Node, placed: &Placed, delete: &v1::DeleteRequest) -> Result<Command, Failure> {
    let key = convert::record_key(&delete.bucket, &delete.key)?;
    if delete.context.is_empty() {
        return Err(Failure::new(
            Reason::ContextRequired,
            "a delete needs the context of a get, so that it deletes what was seen; or set force",
        ));
    }
    let policy = node.bucket(key.bucket());
    let overrides = overrides(delete.w, delete.pw, delete.dw, delete.zones);
    Ok(Command {
        context: context(&delete.context, placed, &key)?,
        change: change(&policy, Content::Tombstone),
        op_id: convert::op_id(&delete.op_id)?,
        expires_at_ms: None,
        quorum: convert::quorum(&placed.quorum_of(&policy)?, &overrides)?,
        key,
    })
}

fn update_command(node: &Node, placed: &Placed, update: &v1::UpdateRequest) -> Result<Command, Failure> {
    let key = convert::record_key(&update.bucket, &update.key)?;
    let policy: BucketPolicy = node.bucket(key.bucket());
    let overrides = overrides(update.w, update.pw, update.dw, update.zones);
    let Some(data_type) = policy.conflict.data_type() else {
        return Err(Failure::invalid(format!(
            "bucket {:?} holds plain values; change them with Put",
            key.bucket()
        )));
    };
    let operation = data_types::operation(update)?;
    operation
        .check(data_type)
        .map_err(|error| Failure::invalid(error.to_string()))?;
    if operation.removes() && update.context.is_empty() {
        return Err(Failure::new(
            Reason::ContextRequired,
            "a removal needs the context of a get, so that it removes what was seen",
        ));
    }
    Ok(Command {
        change: Change::Typed(data_type, operation),
        context: context(&update.context, placed, &key)?,
        op_id: convert::op_id(&update.op_id)?,
        expires_at_ms: policy.expires_at_ms(clock::wall_ms()),
        quorum: convert::quorum(&placed.quorum_of(&policy)?, &overrides)?,
        key,
    })
}

/// What the client has seen; none if it sent no context.
fn context(bytes: &Bytes, placed: &Placed, key: &DataKey) -> Result<Option<Seen>, Failure> {
    let sent = !bytes.is_empty();
    let seen = convert::context(bytes, placed.cluster_id(), key.hash())?;
    Ok(sent.then_some(seen))
}

fn change(policy: &BucketPolicy, content: Content) -> Change {
    match policy.conflict {
        Conflict::Lww => Change::Lww(content),
        _ => Change::Siblings(content),
    }
}

fn overrides(
    w: Option<v1::Replicas>,
    pw: Option<v1::Replicas>,
    dw: Option<v1::Replicas>,
    zones: Option<v1::Replicas>,
) -> QuorumOverrides {
    QuorumOverrides {
        w: convert::replica_count(w.as_ref()),
        pw: convert::replica_count(pw.as_ref()),
        dw: convert::replica_count(dw.as_ref()),
        zones: convert::replica_count(zones.as_ref()),
        ..QuorumOverrides::default()
    }
}

impl Written {
    /// The coordinator's answer, one hop further.
    fn forwarded(response: peer::CoordinateResponse) -> Result<Self, Status> {
        use peer::coordinate_response::Response;
        let (context, outcome, info) = match response.response {
            Some(Response::Put(put)) => (put.context, put.outcome, put.info),
            Some(Response::Delete(delete)) => (delete.context, delete.outcome, delete.info),
            Some(Response::Update(update)) => (update.context, update.outcome, update.info),
            None => return Err(Status::internal("the coordinator answered nothing")),
        };
        let info = info.map(|info| v1::ResponseInfo {
            hops: info.hops + 1,
            ..info
        });
        Ok(Self {
            context,
            outcome,
            info,
        })
    }

    pub(super) fn into_put(self) -> v1::PutResponse {
        let Self {
            context,
            outcome,
            info,
        } = self;
        v1::PutResponse {
            context,
            outcome,
            info,
        }
    }

    pub(super) fn into_delete(self) -> v1::DeleteResponse {
        let Self {
            context,
            outcome,
            info,
        } = self;
        v1::DeleteResponse {
            context,
            outcome,
            info,
        }
    }

    pub(super) fn into_update(self) -> v1::UpdateResponse {
        let Self {
            context,
            outcome,
            info,
        } = self;
        v1::UpdateResponse {
            context,
            outcome,
            info,
        }
    }
}
