//! What is said to nodes, and what their answers say.

use bytes::Bytes;
use dynamo_proto::v1;
use prost::Message as _;
use tonic::{Code, Status};

pub(crate) fn get(key: &str) -> v1::GetRequest {
    v1::GetRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        ..v1::GetRequest::default()
    }
}

pub(crate) fn put(key: &str, value: &str, context: &Bytes) -> v1::PutRequest {
    v1::PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        context: context.clone(),
        ..v1::PutRequest::default()
    }
}

/// As a request's field.
#[allow(clippy::unnecessary_wraps, reason = "the field is optional")]
pub(crate) fn count(count: u32) -> Option<v1::Replicas> {
    Some(v1::Replicas {
        amount: Some(v1::replicas::Amount::Count(count)),
    })
}

/// The values that were found, ascending.
pub(crate) fn values(response: &v1::GetResponse) -> Vec<String> {
    let versions = response.versions.iter();
    let mut values: Vec<_> = versions
        .map(|version| String::from_utf8(version.value.to_vec()).unwrap())
        .collect();
    values.sort();
    values
}

/// The code and the reason of a failure; no reason if it is not the node's own word.
pub(crate) fn why(status: &Status) -> (Code, String) {
    let info: Option<tonic_types::pb::ErrorInfo> = detail(status, "google.rpc.ErrorInfo");
    (status.code(), info.unwrap_or_default().reason)
}

/// A typed detail of a failure.
pub(crate) fn detail<M: prost::Message + Default>(status: &Status, name: &str) -> Option<M> {
    let rich = tonic_types::pb::Status::decode(status.details()).unwrap();
    let any = rich
        .details
        .into_iter()
        .find(|any| any.type_url == format!("type.googleapis.com/{name}"))?;
    Some(M::decode(any.value.as_slice()).unwrap())
}
