//! What peers' requests ask of this replica.

use std::sync::Arc;

use dynamo_core::{types::MemberId, version::KeyState};
use dynamo_lane::{Begun, Bounds, Peers, Serves};
use dynamo_proto::peer::{
    ReadRequest, ReadResponse, Refusal, ReplicaRequest, ReplicaRequests, ReplicaResponse, WriteRequest,
    WriteResponse, replica_request::Request as Asked, replica_response::Response as Answer,
};
use prost::Message as _;

use super::{
    convert, gate,
    status::{Failure, Reason},
};
use crate::{
    node::{Digest, Node, Unless},
    storage::hints::HintError,
};

/// Of one peer's requests.
pub(super) const BOUNDS: Bounds = Bounds {
    requests: 1024,
    bytes: 4 << 20,
};

/// Carries out one peer's requests.
pub(super) struct Replica(pub(super) Arc<Node>);

impl Serves for Replica {
    type Protocol = Peers;

    fn begin(&self, message: ReplicaRequests) -> Vec<Begun<ReplicaResponse>> {
        let header = message.header.as_ref();
        let early = gate::is_early(&self.0, header);
        let served = gate::data(&self.0, header);
        let sender: Arc<str> = header.map_or("", |header| header.member_id.as_str()).into();
        let begin = |request: ReplicaRequest| {
            // It is going to be one of the key's primaries.
            let early =
                early && matches!(&request.request, Some(Asked::Write(write)) if write.hint_for.is_empty());
            let served = if early { Ok(()) } else { served.clone() };
            let (node, sender) = (Arc::clone(&self.0), Arc::clone(&sender));
            Begun {
                bytes: request.encoded_len(),
                answer: Box::pin(async move { serve(&node, &sender, served, request).await }),
            }
        };
        message.requests.into_iter().map(begin).collect()
    }
}

async fn serve(
    node: &Arc<Node>,
    sender: &str,
    served: Result<(), Failure>,
    request: ReplicaRequest,
) -> Option<ReplicaResponse> {
    if node.faults().loses_arrival(sender) {
        return None;
    }
    let answer = match (served, request.request) {
        (Err(failure), _) => Err(failure),
        (Ok(()), Some(Asked::Read(asked))) => read(node, &asked).await.map(Answer::Read),
        (Ok(()), Some(Asked::Write(asked))) => write(node, asked).await.map(Answer::Write),
        (Ok(()), None) => Err(Failure::invalid("a request to a replica must ask something")),
    };
    if node.faults().loses_reply(sender) {
        return None;
    }
    Some(ReplicaResponse {
        id: request.id,
        response: Some(answer.unwrap_or_else(|failure| {
            Answer::Refusal(Refusal {
                reason: failure.reason.name().to_owned(),
                message: failure.message,
            })
        })),
    })
}

async fn read(node: &Arc<Node>, request: &ReadRequest) -> Result<ReadResponse, Failure> {
    let key = convert::record_key(&request.bucket, &request.key)?;
    if !request.fallback && !node.placed()?.is_primary(&key) {
        // It may have handed over what it held.
        let message = format!(
            "this node is no primary of the key with hash {} any more",
            key.hash()
        );
        return Err(Failure::new(Reason::StaleRing, message));
    }
    let known = request.known.map(Digest);
    let read = node.read_unless(&key, known).await.map_err(|error| {
        let message = format!("key with hash {}: {error}", key.hash());
        Failure::new(Reason::CorruptRecord, message)
    })?;
    Ok(match read {
        Unless::Same { suspect } => ReadResponse {
            state: None,
            suspect,
            same: true,
        },
        Unless::Other(read) => ReadResponse {
            state: read.state.map(|state| state.encode()),
            suspect: read.suspect,
            same: false,
        },
    })
}

/// Merges a write, or keeps it as a hint. A hint for this node, or for a key of which it is a primary, is its own.
async fn write(node: &Arc<Node>, request: WriteRequest) -> Result<WriteResponse, Failure> {
    let key = convert::record_key(&request.bucket, &request.key)?;
    let state = KeyState::decode(request.state).map_err(|error| {
        Failure::invalid(format!("the state of the key with hash {}: {error}", key.hash()))
    })?;
    let primary = node.ring_in_use().is_none_or(|placed| placed.is_primary(&key));
    let committed = if request.hint_for.is_empty() || primary {
        let doubtful = node.is_doubtful().then(|| state.clone());
        let committed = node.writer().merge(&key, state, request.sync).await?;
        match doubtful {
            Some(state) => node.keep_for_itself(&key, state, committed).await?,
            None => committed,
        }
    } else {
        let owner = MemberId::new(request.hint_for).map_err(|error| Failure::invalid(error.to_string()))?;
        let owner = node.hint_owner(owner);
        let kept = node.hints().hint(&owner, &key, state, request.sync).await;
        kept.map_err(HintError::into_write)?
    };
    Ok(WriteResponse {
        durable: committed.durable,
    })
}
