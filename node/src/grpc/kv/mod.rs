//! `dynamo.v1.KeyValue`: what clients speak.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use dynamo_core::{
    types::KeyHash,
    version::{Context, Seen},
};
use dynamo_lane::{Clients, Serving};
use dynamo_proto::{CLUSTER_METADATA, v1, v1::key_value_server::KeyValue};
use futures::{Stream, future::join_all};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap, service::Interceptor};

use super::{
    convert,
    status::{Failure, Reason},
};
use crate::{
    config::{BATCH_KEYS_MAX, PAGE_KEYS_MAX},
    node::{Node, Placed},
    request::{Deadline, Served, list, still_wanted},
};

mod read;

mod stream;

mod write;

pub(crate) use write::coordinate_forwarded;

use write::Write;

/// The client service.
pub(crate) struct KvService {
    node: Arc<Node>,
}

impl KvService {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

/// Refuses requests that name another cluster: their client has an address that was another node's.
#[derive(Clone)]
pub(crate) struct MeantHere(pub(crate) Arc<Node>);

impl Interceptor for MeantHere {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        if let (Some(meant), Some(mine)) = (
            request.metadata().get(CLUSTER_METADATA),
            self.0.membership().cluster_id(),
        ) && !uuid::Uuid::try_parse_ascii(meant.as_bytes()).is_ok_and(|meant| meant.into_bytes() == mine.0)
        {
            let message = format!(
                "this node belongs to cluster {mine}, not to {meant:?}; if that one is gone, restart its client"
            );
            return Err(Failure::new(Reason::ForeignCluster, message).into());
        }
        Ok(request)
    }
}

type KeyStream = Pin<Box<dyn Stream<Item = Result<v1::ListKeysResponse, Status>> + Send>>;

#[tonic::async_trait]
impl KeyValue for KvService {
    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let (deadline, request) = self.begin(request).await;
        let _permit = self.node.admit()?;
        Ok(Response::new(read::one(&self.node, request, deadline).await?))
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let (deadline, request) = self.begin(request).await;
        let _permit = self.node.admit()?;
        let written = write::one(&self.node, Write::Put(request), deadline).await?;
        Ok(Response::new(written.into_put()))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let (deadline, request) = self.begin(request).await;
        let _permit = self.node.admit()?;
        let written = write::one(&self.node, Write::Delete(request), deadline).await?;
        Ok(Response::new(written.into_delete()))
    }

    async fn update(
        &self,
        request: Request<v1::UpdateRequest>,
    ) -> Result<Response<v1::UpdateResponse>, Status> {
        let (deadline, request) = self.begin(request).await;
        let _permit = self.node.admit()?;
        let written = write::one(&self.node, Write::Update(request), deadline).await?;
        Ok(Response::new(written.into_update()))
    }

    async fn replica_get(
        &self,
        request: Request<v1::ReplicaGetRequest>,
    ) -> Result<Response<v1::ReplicaGetResponse>, Status> {
        let _permit = self.node.admit()?;
        Ok(Response::new(
            read::replica(&self.node, request.into_inner()).await?,
        ))
    }

    async fn batch_get(
        &self,
        request: Request<v1::BatchGetRequest>,
    ) -> Result<Response<v1::BatchGetResponse>, Status> {
        let (deadline, request) = self.begin(request).await;
        batch_size(request.requests.len())?;
        let _permit = self.node.admit()?;
        let results = join_all(
            request
                .requests
                .into_iter()
                .map(|one| read::one(&self.node, one, deadline)),
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
        let (deadline, request) = self.begin(request).await;
        batch_size(request.requests.len())?;
        let _permit = self.node.admit()?;
        let results = join_all(
            request
                .requests
                .into_iter()
                .map(|one| write::one(&self.node, Write::Put(one), deadline)),
        )
        .await;
        let results = results.into_iter().map(|result| v1::PutResult {
            result: Some(match result {
                Ok(written) => v1::put_result::Result::Response(written.into_put()),
                Err(status) => v1::put_result::Result::Error(super::status::to_error(&status)),
            }),
        });
        Ok(Response::new(v1::BatchPutResponse {
            results: results.collect(),
        }))
    }

    type ServeStream = Serving<Clients>;

    async fn serve(
        &self,
        request: Request<Streaming<v1::Requests>>,
    ) -> Result<Response<Self::ServeStream>, Status> {
        let stops = self.node.stops().cancelled_owned();
        let stream = stream::Stream(Arc::clone(&self.node));
        Ok(Response::new(dynamo_lane::serve(
            stream,
            request.into_inner(),
            stops,
            stream::BOUNDS,
            Arc::clone(self.node.client_traffic()),
        )))
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
        let place = self.node.admit()?.untimed();
        Ok(Response::new(Box::pin(list::stream(
            Arc::clone(&self.node),
            placed,
            listing,
            place,
        )?)))
    }

    async fn get_ring(
        &self,
        request: Request<v1::GetRingRequest>,
    ) -> Result<Response<v1::GetRingResponse>, Status> {
        let placed = self.node.placed()?;
        let ring = placed.reading()?.ring();
        let known = request.into_inner().known_epoch == ring.epoch();
        Ok(Response::new(v1::GetRingResponse {
            epoch: ring.epoch(),
            ring: (!known).then(|| convert::ring(ring, |member| self.node.client_address(member))),
        }))
    }
}

impl KvService {
    async fn begin<T>(&self, request: Request<T>) -> (Deadline, T) {
        still_wanted().await;
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

fn context_bytes(placed: &Placed, hash: KeyHash, seen: Seen) -> Bytes {
    Context { seen }.encode(placed.cluster_id(), hash)
}

fn info(served: &Served) -> v1::ResponseInfo {
    v1::ResponseInfo {
        ring_epoch: served.ring_epoch,
        coordinator: served.coordinator.as_str().to_owned(),
        hops: 0,
        acks: served.acks,
        fallbacks_counted: served.fallbacks_counted,
        quorum: Some(convert::effective_quorum(&served.quorum)),
        fastest: served
            .fastest
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
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
