//! What calls one node: small requests of one key on the stream that all such requests to the node share, everything else, and
//! everything at a node of a release without such streams, as calls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dynamo_lane::{Clients, Lane, Lost, REQUEST_BYTES_MAX};
use dynamo_proto::v1::{
    self, key_value_client::KeyValueClient, request::Request as Asked, response::Response as Answer,
};
use prost::Message as _;
use tonic::{Code, Request, service::interceptor::InterceptedService, transport::Channel};

use crate::{
    nodes::NamesCluster,
    status::{Failed, Origin},
};

type Calls = KeyValueClient<InterceptedService<Channel, NamesCluster>>;

/// The way to one node.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) channel: Channel,
    lane: Lane<Clients>,
    /// The node knows no streams.
    by_calls: AtomicBool,
}

/// Calls one node.
#[derive(Debug, Clone)]
pub(crate) struct Stub {
    link: Arc<Link>,
    pub(crate) calls: Calls,
}

impl Link {
    pub(crate) fn new(channel: Channel) -> Self {
        Self {
            channel,
            lane: Lane::new(Arc::default()),
            by_calls: AtomicBool::new(false),
        }
    }
}

impl Stub {
    pub(crate) fn new(link: Arc<Link>, calls: Calls) -> Self {
        Self { link, calls }
    }

    pub(crate) async fn get(
        self,
        request: v1::GetRequest,
        limit: Duration,
    ) -> Result<v1::GetResponse, Failed> {
        match self.one(Asked::Get(request), limit).await? {
            Answer::Get(response) => Ok(response),
            _ => Err(unfitting()),
        }
    }

    pub(crate) async fn put(
        self,
        request: v1::PutRequest,
        limit: Duration,
    ) -> Result<v1::PutResponse, Failed> {
        match self.one(Asked::Put(request), limit).await? {
            Answer::Put(response) => Ok(response),
            _ => Err(unfitting()),
        }
    }

    pub(crate) async fn delete(
        self,
        request: v1::DeleteRequest,
        limit: Duration,
    ) -> Result<v1::DeleteResponse, Failed> {
        match self.one(Asked::Delete(request), limit).await? {
            Answer::Delete(response) => Ok(response),
            _ => Err(unfitting()),
        }
    }

    pub(crate) async fn update(
        self,
        request: v1::UpdateRequest,
        limit: Duration,
    ) -> Result<v1::UpdateResponse, Failed> {
        match self.one(Asked::Update(request), limit).await? {
            Answer::Update(response) => Ok(response),
            _ => Err(unfitting()),
        }
    }

    pub(crate) async fn replica_get(
        self,
        request: v1::ReplicaGetRequest,
        limit: Duration,
    ) -> Result<v1::ReplicaGetResponse, Failed> {
        match self.one(Asked::ReplicaGet(request), limit).await? {
            Answer::ReplicaGet(response) => Ok(response),
            _ => Err(unfitting()),
        }
    }

    async fn one(mut self, asked: Asked, limit: Duration) -> Result<Answer, Failed> {
        if self.link.by_calls.load(Ordering::Relaxed) || encoded_len(&asked) > REQUEST_BYTES_MAX {
            return self.call(asked, limit).await;
        }
        let timeout_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX).max(1);
        let mut calls = self.calls.clone();
        let open = |leaving| async move { calls.serve(leaving).await };
        let lost = match self
            .link
            .lane
            .request((), (timeout_ms, asked.clone()), open)
            .await
        {
            Ok(response) => return answer(response.response),
            Err(lost) => lost,
        };
        if let Lost::Sent(status) | Lost::Unsent(status) = &lost
            && status.code() == Code::Unimplemented
        {
            self.link.by_calls.store(true, Ordering::Relaxed);
            return self.call(asked, limit).await;
        }
        Err(failed(&lost))
    }

    async fn call(&mut self, asked: Asked, limit: Duration) -> Result<Answer, Failed> {
        let calls = &mut self.calls;
        let answer = match asked {
            Asked::Get(get) => calls
                .get(with_timeout(get, limit))
                .await
                .map(|answer| answer.map(Answer::Get)),
            Asked::Put(put) => calls
                .put(with_timeout(put, limit))
                .await
                .map(|answer| answer.map(Answer::Put)),
            Asked::Delete(delete) => {
                let answer = calls.delete(with_timeout(delete, limit)).await;
                answer.map(|answer| answer.map(Answer::Delete))
            }
            Asked::Update(update) => {
                let answer = calls.update(with_timeout(update, limit)).await;
                answer.map(|answer| answer.map(Answer::Update))
            }
            Asked::ReplicaGet(get) => {
                let answer = calls.replica_get(with_timeout(get, limit)).await;
                answer.map(|answer| answer.map(Answer::ReplicaGet))
            }
        };
        Ok(answer?.into_inner())
    }
}

/// The node learns the time that the client waits, as `grpc-timeout`, and should answer a little before it ends.
pub(crate) fn with_timeout<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

fn encoded_len(asked: &Asked) -> usize {
    match asked {
        Asked::Get(get) => get.encoded_len(),
        Asked::Put(put) => put.encoded_len(),
        Asked::Delete(delete) => delete.encoded_len(),
        Asked::Update(update) => update.encoded_len(),
        Asked::ReplicaGet(get) => get.encoded_len(),
    }
}

fn answer(answer: Option<Answer>) -> Result<Answer, Failed> {
    match answer {
        Some(Answer::Error(error)) => Err(Failed::from_error(error)),
        Some(answer) => Ok(answer),
        None => Err(unfitting()),
    }
}

/// The stream gave no answer.
fn failed(lost: &Lost) -> Failed {
    let (status, sent) = match lost {
        Lost::Full => {
            let message = "too many requests wait to be sent to this node".to_owned();
            let full = Failed::local(Origin::Node, Code::ResourceExhausted, message);
            return Failed {
                reason: "OVERLOADED".to_owned(),
                ..full
            };
        }
        Lost::Sent(status) => (status, true),
        Lost::Unsent(status) => (status, false),
    };
    let mut failed = Failed::from_status(status);
    // Without a reason it is the end of the stream, and not the node's word on what was asked.
    if failed.origin == Origin::Node && failed.reason.is_empty() {
        failed.origin = Origin::Transport;
    }
    if failed.origin == Origin::Transport && !sent {
        failed.origin = Origin::Connect;
    }
    failed
}

fn unfitting() -> Failed {
    let message = "the node has answered another question".to_owned();
    Failed::local(Origin::Transport, Code::Internal, message)
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn the_end_of_a_stream_is_no_answer_and_what_was_not_sent_was_not_done() {
        let ended = Status::unavailable("the node has ended the stream");
        assert_eq!(failed(&Lost::Sent(ended.clone())).origin, Origin::Transport);
        assert_eq!(failed(&Lost::Unsent(ended)).origin, Origin::Connect);
        let full = failed(&Lost::Full);
        assert_eq!((full.origin, full.reason.as_str()), (Origin::Node, "OVERLOADED"));
    }
}
