//! Requests of one client that arrive on one stream; each is served as the call of its name would be.

use std::{sync::Arc, time::Duration};

use dynamo_lane::{Begun, Bounds, Clients, Serves};
use dynamo_proto::v1::{
    Error, Request, Requests, Response, request::Request as Asked, response::Response as Answer,
};
use prost::Message as _;

use super::{
    read,
    write::{self, Write, Written},
};
use crate::{
    grpc::status::{Failure, to_error},
    node::Node,
    request::Deadline,
};

/// Of one client's requests.
pub(super) const BOUNDS: Bounds = Bounds {
    requests: 1024,
    bytes: 1 << 20,
};

/// Serves one client.
pub(super) struct Stream(pub(super) Arc<Node>);

impl Serves for Stream {
    type Protocol = Clients;

    fn begin(&self, message: Requests) -> Vec<Begun<Response>> {
        let begin = |request: Request| {
            let asked = (request.timeout_ms > 0).then(|| Duration::from_millis(request.timeout_ms.into()));
            let deadline = Deadline::within(asked, self.0.config().limits.request_timeout_ms);
            let (node, bytes) = (Arc::clone(&self.0), request.encoded_len());
            let answer = Box::pin(async move {
                let answer = one(&node, request.request, deadline).await;
                Some(Response {
                    id: request.id,
                    response: Some(answer.unwrap_or_else(Answer::Error)),
                })
            });
            Begun { bytes, answer }
        };
        message.requests.into_iter().map(begin).collect()
    }
}

async fn one(node: &Arc<Node>, asked: Option<Asked>, deadline: Deadline) -> Result<Answer, Error> {
    let _permit = node.admit()?;
    match asked {
        Some(Asked::Get(get)) => Ok(Answer::Get(read::one(node, get, deadline).await?)),
        Some(Asked::ReplicaGet(get)) => Ok(Answer::ReplicaGet(read::replica(node, get).await?)),
        Some(Asked::Put(put)) => {
            let written = written(node, Write::Put(put), deadline).await?;
            Ok(Answer::Put(written.into_put()))
        }
        Some(Asked::Delete(delete)) => {
            let written = written(node, Write::Delete(delete), deadline).await?;
            Ok(Answer::Delete(written.into_delete()))
        }
        Some(Asked::Update(update)) => {
            let written = written(node, Write::Update(update), deadline).await?;
            Ok(Answer::Update(written.into_update()))
        }
        None => Err(Failure::invalid("a request on a stream must ask something").into()),
    }
}

async fn written(node: &Arc<Node>, write: Write, deadline: Deadline) -> Result<Written, Error> {
    let written = write::one(node, write, deadline).await;
    written.map_err(|status| to_error(&status))
}
