//! The messages of both streams.

use std::sync::Arc;

use dynamo_proto::{
    peer::{self, Header, ReplicaRequest, ReplicaRequests, ReplicaResponse, ReplicaResponses},
    v1::{self, Request, Requests, Response, Responses},
};
use prost::Message;

/// What travels on a stream.
pub trait Protocol: 'static {
    /// What all requests of one message share.
    type Group: PartialEq + Send;
    /// A request without its number.
    type Asked: Send;
    /// A request.
    type Request: Message;
    /// A message of requests.
    type Requests: Message + 'static;
    /// A response.
    type Response: Message + 'static;
    /// A message of responses.
    type Responses: Message + 'static;

    /// Numbers a request.
    fn request(id: u64, asked: Self::Asked) -> Self::Request;

    /// Puts requests into a message.
    fn requests(group: Self::Group, requests: Vec<Self::Request>) -> Self::Requests;

    /// How many requests a message has.
    fn count(requests: &Self::Requests) -> usize;

    /// The number of the request that is answered.
    fn id(response: &Self::Response) -> u64;

    /// Puts responses into a message,
    fn join(responses: Vec<Self::Response>) -> Self::Responses;

    /// and takes them out.
    fn split(responses: Self::Responses) -> Vec<Self::Response>;
}

/// `dynamo.v1.KeyValue/Serve`.
#[derive(Debug)]
pub struct Clients;

impl Protocol for Clients {
    type Group = ();
    /// With the milliseconds that the client waits.
    type Asked = (u32, v1::request::Request);
    type Request = Request;
    type Requests = Requests;
    type Response = Response;
    type Responses = Responses;

    fn request(id: u64, (timeout_ms, request): Self::Asked) -> Request {
        Request {
            id,
            timeout_ms,
            request: Some(request),
        }
    }

    fn requests((): (), requests: Vec<Request>) -> Requests {
        Requests { requests }
    }

    fn count(requests: &Requests) -> usize {
        requests.requests.len()
    }

    fn id(response: &Response) -> u64 {
        response.id
    }

    fn join(responses: Vec<Response>) -> Responses {
        Responses { responses }
    }

    fn split(responses: Responses) -> Vec<Response> {
        responses.responses
    }
}

/// `dynamo.peer.v1.Peer/Serve`. Requests of one message go by the same rings.
#[derive(Debug)]
pub struct Peers;

impl Protocol for Peers {
    type Group = Arc<Header>;
    type Asked = peer::replica_request::Request;
    type Request = ReplicaRequest;
    type Requests = ReplicaRequests;
    type Response = ReplicaResponse;
    type Responses = ReplicaResponses;

    fn request(id: u64, request: Self::Asked) -> ReplicaRequest {
        ReplicaRequest {
            id,
            request: Some(request),
        }
    }

    fn requests(header: Arc<Header>, requests: Vec<ReplicaRequest>) -> ReplicaRequests {
        ReplicaRequests {
            header: Some(Arc::unwrap_or_clone(header)),
            requests,
        }
    }

    fn count(requests: &ReplicaRequests) -> usize {
        requests.requests.len()
    }

    fn id(response: &ReplicaResponse) -> u64 {
        response.id
    }

    fn join(responses: Vec<ReplicaResponse>) -> ReplicaResponses {
        ReplicaResponses { responses }
    }

    fn split(responses: ReplicaResponses) -> Vec<ReplicaResponse> {
        responses.responses
    }
}
