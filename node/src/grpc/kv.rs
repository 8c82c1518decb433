//! `dynamo.v1.KeyValue`: what clients speak.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use dynamo_core::{
    coordinator::GetResult,
    quorum::QuorumOverrides,
    types::KeyHash,
    version::{Content, Context, KeyState, Seen},
};
use dynamo_proto::{peer, v1, v1::key_value_server::KeyValue};
use futures::{Stream, future::join_all};
use tokio::time::Instant;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{
    convert,
    status::{Failure, Reason, relay},
};
use crate::{
    clock::wall_ms,
    config::{BATCH_KEYS_MAX, PAGE_KEYS_MAX},
    node::{Node, Placed},
    request::{
        Deadline, Served, get, list,
        put::{self, Command, Written},
        who_failed,
    },
    telemetry::metrics::Operation,
};

/// The client service.
pub(crate) struct KvService {
    node: Arc<Node>,
}

impl KvService {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

type KeyStream = Pin<Box<dyn Stream<Item = Result<v1::ListKeysResponse, Status>> + Send>>;

#[tonic::async_trait]
impl KeyValue for KvService {
    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let (deadline, request) = self.begin(request);
        let _permit = self.node.admit()?;
        Ok(Response::new(get_one(&self.node, request, deadline).await?))
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let (deadline, request) = self.begin(request);
        let _permit = self.node.admit()?;
        put_one(&self.node, request, deadline).await.map(Response::new)
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let (deadline, request) = self.begin(request);
        let _permit = self.node.admit()?;
        delete_one(&self.node, request, deadline).await.map(Response::new)
    }

    async fn batch_get(
        &self,
        request: Request<v1::BatchGetRequest>,
    ) -> Result<Response<v1::BatchGetResponse>, Status> {
        let (deadline, request) = self.begin(request);
        batch_size(request.requests.len())?;
        let _permit = self.node.admit()?;
        let results = join_all(
            request
                .requests
                .into_iter()
                .map(|one| get_one(&self.node, one, deadline)),
        )
        .await;
        let results = results.into_iter().map(|result| v1::GetResult {
            result: Some(match result {
                Ok(response) => v1::get_result::Result::Response(response),
                Err(failure) => v1::get_result::Result::Error(failure.into()),
            }),
        });
        Ok(Response::new(v1::BatchGetResponse {
            results: results.collect(),
        }))
    }

    async fn batch_put(
        &self,
        request: Request<v1::BatchPutRequest>,
    ) -> Result<Response<v1::BatchPutResponse>, Status> {
        let (deadline, request) = self.begin(request);
        batch_size(request.requests.len())?;
        let _permit = self.node.admit()?;
        let results = join_all(
            request
                .requests
                .into_iter()
                .map(|one| put_one(&self.node, one, deadline)),
        )
        .await;
        let results = results.into_iter().map(|result| v1::PutResult {
            result: Some(match result {
                Ok(response) => v1::put_result::Result::Response(response),
                Err(status) => v1::put_result::Result::Error(super::status::to_error(&status)),
            }),
        });
        Ok(Response::new(v1::BatchPutResponse {
            results: results.collect(),
        }))
    }

    type ListKeysStream = KeyStream;

    async fn list_keys(
        &self,
        request: Request<v1::ListKeysRequest>,
    ) -> Result<Response<Self::ListKeysStream>, Status> {
        let request = request.into_inner();
        let placed = self.node.placed()?;
        let bucket = convert::bucket_name(&request.bucket)?.to_owned();
        let page_size = match request.page_size {
            0 => PAGE_KEYS_MAX,
            size if size <= PAGE_KEYS_MAX => size,
            size => {
                return Err(
                    Failure::invalid(format!("page_size is {size} but must be 1..={PAGE_KEYS_MAX}")).into(),
                );
            }
        };
        let listing = list::Listing {
            bucket,
            prefix: request.prefix,
            page_token: request.page_token,
            page_size,
            limit: if request.limit == 0 {
                u64::MAX
            } else {
                request.limit
            },
        };
        let permit = self.node.admit()?;
        Ok(Response::new(Box::pin(list::stream(
            Arc::clone(&self.node),
            placed,
            listing,
            permit,
        )?)))
    }

    async fn get_ring(
        &self,
        request: Request<v1::GetRingRequest>,
    ) -> Result<Response<v1::GetRingResponse>, Status> {
        let placed = self.node.placed()?;
        let ring = placed.placement().ring();
        let known = request.into_inner().known_epoch == ring.epoch();
        Ok(Response::new(v1::GetRingResponse {
            epoch: ring.epoch(),
            ring: (!known).then(|| convert::ring(ring, |member| self.node.client_address(member))),
        }))
    }
}

impl KvService {
    fn begin<T>(&self, request: Request<T>) -> (Deadline, T) {
        let asked = grpc_timeout(request.metadata());
        (
            Deadline::within(asked, self.node.config().limits.request_timeout_ms),
            request.into_inner(),
        )
    }
}

fn batch_size(keys: usize) -> Result<(), Failure> {
    if keys <= BATCH_KEYS_MAX {
        return Ok(());
    }
    Err(Failure::invalid(format!(
        "the batch has {keys} keys but may have at most {BATCH_KEYS_MAX}"
    )))
}

/// The client's deadline, as gRPC spells it: up to eight digits and a unit.
fn grpc_timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

async fn get_one(
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
    if matches!(
        &result,
        Err(Failure {
            reason: Reason::QuorumNotMet | Reason::ReadTimedOut,
            ..
        })
    ) {
        node.metrics().quorum_failure(Operation::Get);
    }
    node.metrics().request(Operation::Get, word, started.elapsed());
    result
}

async fn read(
    node: &Arc<Node>,
    request: v1::GetRequest,
    deadline: Deadline,
) -> Result<v1::GetResponse, Failure> {
    let placed = node.placed()?;
    let key = convert::record_key(&request.bucket, &request.key)?;
    let overrides = QuorumOverrides {
        r: convert::replica_count(request.r.as_ref()),
        pr: convert::replica_count(request.pr.as_ref()),
        ..QuorumOverrides::default()
    };
    let quorum = convert::quorum(placed.quorum(), &overrides)?;
    let hash = key.hash();
    let (outcome, served) = get::coordinate(node, &placed, &key, quorum, deadline).await;
    let info = info(&served, 0);
    match outcome.result {
        GetResult::Found(state) => Ok(v1::GetResponse {
            versions: convert::versions(&state, wall_ms()),
            context: context_bytes(&placed, hash, state.context_seen()),
            deleted_concurrently: state.has_tombstone(),
            info: Some(info),
        }),
        GetResult::Absent(state) => {
            let context = state.map_or_else(Bytes::new, |state: KeyState| {
                context_bytes(&placed, hash, state.context_seen())
            });
            let mut failure = Failure::new(
                Reason::KeyNotFound,
                format!("no value under the key with hash {hash}"),
            );
            failure.not_found = Some(Box::new(v1::NotFound {
                context,
                info: Some(info),
            }));
            Err(failure)
        }
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

async fn put_one(
    node: &Arc<Node>,
    request: v1::PutRequest,
    deadline: Deadline,
) -> Result<v1::PutResponse, Status> {
    let started = Instant::now();
    let result = write_put(node, request, deadline).await;
    note_write(node, Operation::Put, started, result.as_ref().err());
    result
}

async fn write_put(
    node: &Arc<Node>,
    request: v1::PutRequest,
    deadline: Deadline,
) -> Result<v1::PutResponse, Status> {
    let placed = node.placed().map_err(Failure::not_applied)?;
    let command = put_command(node, &placed, &request).map_err(Failure::not_applied)?;
    if placed.is_primary(&command.key) {
        let hash = command.key.hash();
        let (written, context) = run(node, &placed, command, deadline).await?;
        return Ok(put_response(&placed, hash, &written, context));
    }
    let forwarded = peer::coordinate_request::Request::Put(request);
    match forward(node, &placed, &command, forwarded, deadline)
        .await?
        .response
    {
        Some(peer::coordinate_response::Response::Put(mut response)) => {
            count_hop(&mut response.info);
            Ok(response)
        }
        _ => Err(Status::internal("the coordinator answered another request")),
    }
}

/// Runs a write as its coordinator, and gives the context that its reply carries: the request's and the new dot.
async fn run(
    node: &Arc<Node>,
    placed: &Placed,
    command: Command,
    deadline: Deadline,
) -> Result<(Written, Seen), Failure> {
    let covered = command.context.clone();
    let written = put::coordinate(node, placed, command, deadline).await?;
    let context = Context::of_reply(&covered, written.dot);
    Ok((written, context.seen))
}

fn put_response(placed: &Placed, hash: KeyHash, written: &Written, context: Seen) -> v1::PutResponse {
    v1::PutResponse {
        context: context_bytes(placed, hash, context),
        outcome: Some(written.outcome),
        info: Some(info(&written.served, 0)),
    }
}

fn put_command(node: &Node, placed: &Placed, request: &v1::PutRequest) -> Result<Command, Failure> {
    let key = convert::record_key(&request.bucket, &request.key)?;
    let value = convert::value(request.value.clone(), node.config().limits.value_bytes_max)?;
    Ok(Command {
        context: convert::context(&request.context, placed.cluster_id(), key.hash())?,
        content: Content::Value(value),
        op_id: convert::op_id(&request.op_id)?,
        quorum: convert::quorum(
            placed.quorum(),
            &write_overrides(request.w.as_ref(), request.pw.as_ref(), request.dw.as_ref()),
        )?,
        key,
    })
}

async fn delete_one(
    node: &Arc<Node>,
    request: v1::DeleteRequest,
    deadline: Deadline,
) -> Result<v1::DeleteResponse, Status> {
    let started = Instant::now();
    let result = write_delete(node, request, deadline).await;
    note_write(node, Operation::Delete, started, result.as_ref().err());
    result
}

async fn write_delete(
    node: &Arc<Node>,
    mut request: v1::DeleteRequest,
    deadline: Deadline,
) -> Result<v1::DeleteResponse, Status> {
    let placed = node.placed().map_err(Failure::not_applied)?;
    if request.force && request.context.is_empty() {
        let get = v1::GetRequest {
            bucket: request.bucket.clone(),
            key: request.key.clone(),
            ..v1::GetRequest::default()
        };
        request.context = read(node, get, deadline)
            .await
            .map_err(Failure::not_applied)?
            .context;
    }
    let command = delete_command(&placed, &request).map_err(Failure::not_applied)?;
    if placed.is_primary(&command.key) {
        let hash = command.key.hash();
        let (written, context) = run(node, &placed, command, deadline).await?;
        let v1::PutResponse {
            context,
            outcome,
            info,
        } = put_response(&placed, hash, &written, context);
        return Ok(v1::DeleteResponse {
            context,
            outcome,
            info,
        });
    }
    let forwarded = peer::coordinate_request::Request::Delete(request);
    match forward(node, &placed, &command, forwarded, deadline)
        .await?
        .response
    {
        Some(peer::coordinate_response::Response::Delete(mut response)) => {
            count_hop(&mut response.info);
            Ok(response)
        }
        _ => Err(Status::internal("the coordinator answered another request")),
    }
}

fn delete_command(placed: &Placed, request: &v1::DeleteRequest) -> Result<Command, Failure> {
    let key = convert::record_key(&request.bucket, &request.key)?;
    if request.context.is_empty() {
        return Err(Failure::new(
            Reason::ContextRequired,
            "a delete needs the context of a get, so that it deletes what was seen; or set force",
        ));
    }
    Ok(Command {
        context: convert::context(&request.context, placed.cluster_id(), key.hash())?,
        content: Content::Tombstone,
        op_id: convert::op_id(&request.op_id)?,
        quorum: convert::quorum(
            placed.quorum(),
            &write_overrides(request.w.as_ref(), request.pw.as_ref(), request.dw.as_ref()),
        )?,
        key,
    })
}

fn write_overrides(
    w: Option<&v1::Replicas>,
    pw: Option<&v1::Replicas>,
    dw: Option<&v1::Replicas>,
) -> QuorumOverrides {
    QuorumOverrides {
        w: convert::replica_count(w),
        pw: convert::replica_count(pw),
        dw: convert::replica_count(dw),
        ..QuorumOverrides::default()
    }
}

/// Serves a write that another node has forwarded: as its coordinator or not at all, so that it hops once at most.
pub(crate) async fn coordinate_forwarded(
    node: &Arc<Node>,
    request: peer::CoordinateRequest,
) -> Result<peer::CoordinateResponse, Status> {
    use peer::{coordinate_request::Request as Asked, coordinate_response::Response as Answer};
    let deadline = Deadline::within(Some(Duration::from_millis(request.timeout_ms.into())), 0);
    let _permit = node.admit()?;
    let placed = node.placed().map_err(Failure::not_applied)?;
    let answer = match request.request {
        Some(Asked::Put(put)) => {
            let command = put_command(node, &placed, &put).map_err(Failure::not_applied)?;
            let hash = must_be_primary(&placed, &command)?;
            let (written, context) = run(node, &placed, command, deadline).await?;
            Answer::Put(put_response(&placed, hash, &written, context))
        }
        Some(Asked::Delete(delete)) => {
            let command = delete_command(&placed, &delete).map_err(Failure::not_applied)?;
            let hash = must_be_primary(&placed, &command)?;
            let (written, context) = run(node, &placed, command, deadline).await?;
            let v1::PutResponse {
                context,
                outcome,
                info,
            } = put_response(&placed, hash, &written, context);
            Answer::Delete(v1::DeleteResponse {
                context,
                outcome,
                info,
            })
        }
        None => return Err(Failure::invalid("a coordinate request must hold a put or a delete").into()),
    };
    Ok(peer::CoordinateResponse {
        response: Some(answer),
    })
}

fn must_be_primary(placed: &Placed, command: &Command) -> Result<KeyHash, Failure> {
    let hash = command.key.hash();
    if placed.is_primary(&command.key) {
        return Ok(hash);
    }
    let message = format!("{} is no primary of the key with hash {hash}", placed.me());
    Err(Failure::new(Reason::NotAReplica, message).not_applied())
}

/// Passes a write on to the first reachable primary. What may have been applied is never sent again.
async fn forward(
    node: &Arc<Node>,
    placed: &Placed,
    command: &Command,
    request: peer::coordinate_request::Request,
    deadline: Deadline,
) -> Result<peer::CoordinateResponse, Status> {
    node.metrics().forward();
    let candidates = node.candidates(placed, &command.key);
    for candidate in put::forward_targets(&candidates) {
        let Some(to) = node.membership().to(&candidate.member) else {
            continue;
        };
        let remaining = deadline.remaining();
        // The coordinator gives up a little before that, and its answer comes before its silence is held against it.
        let timeout_ms = remaining.as_millis() as u32;
        let request = peer::CoordinateRequest {
            header: Some(to.header.clone()),
            timeout_ms,
            request: Some(request.clone()),
        };
        // A task of its own: what a dead peer costs is learned even if the client does not wait for it.
        let forwarding = Arc::clone(node);
        let call = tokio::spawn(async move { forwarding.peers().coordinate(&to, request, remaining).await });
        let answer = call
            .await
            .map_err(|error| Status::internal(format!("the forwarding task ended early: {error}")))?;
        match answer {
            Ok(response) => return Ok(response),
            Err(error) if error.answered => return Err(relay(&error.status)),
            Err(error) if error.sent => {
                let message = format!(
                    "{} was to coordinate the write of the key with hash {} and did not answer ({}); some replicas may hold \
                     it: repeat it with the same op id",
                    candidate.member,
                    command.key.hash(),
                    error.status.message()
                );
                let outcome = v1::WriteOutcome {
                    state: v1::write_outcome::State::Partial.into(),
                    ..v1::WriteOutcome::default()
                };
                return Err(Failure::new(Reason::WriteTimedOut, message)
                    .with_outcome(outcome)
                    .into());
            }
            Err(_) => {}
        }
    }
    let message = format!(
        "no primary of the key with hash {} can be reached; try again",
        command.key.hash()
    );
    Err(Failure::new(Reason::QuorumNotMet, message).not_applied().into())
}

fn note_write(node: &Node, operation: Operation, started: Instant, error: Option<&Status>) {
    let word = match error {
        None => "ok",
        Some(status) => {
            let word = super::status::reason_word(status);
            if matches!(word, "QUORUM_NOT_MET" | "WRITE_TIMED_OUT") {
                node.metrics().quorum_failure(operation);
            }
            word
        }
    };
    node.metrics().request(operation, word, started.elapsed());
}

fn context_bytes(placed: &Placed, hash: KeyHash, seen: Seen) -> Bytes {
    Context { seen }.encode(placed.cluster_id(), hash)
}

fn info(served: &Served, hops: u32) -> v1::ResponseInfo {
    v1::ResponseInfo {
        ring_epoch: served.ring_epoch,
        coordinator: served.coordinator.as_str().to_owned(),
        hops,
        acks: served.acks,
        fallbacks_counted: 0,
        quorum: Some(convert::effective_quorum(&served.quorum)),
    }
}

fn count_hop(info: &mut Option<v1::ResponseInfo>) {
    if let Some(info) = info {
        info.hops += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_as_grpc_spells_them() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            grpc_timeout(&metadata)
        };
        assert_eq!(read("2S"), Some(Duration::from_secs(2)));
        assert_eq!(read("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(read("99999999H"), Some(Duration::from_hours(99_999_999)));
        for bad in ["", "S", "2", "2X", "123456789S", "-1S"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
