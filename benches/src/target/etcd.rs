//! etcd over gRPC. Four messages of its API are all that is needed, and no second compiler of protocols for their sake.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::uri::PathAndQuery;
use prost::Message;
use tonic::{
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::system::Target;

const CONNECT: Duration = Duration::from_secs(5);
const REQUEST: Duration = Duration::from_secs(10);

/// `etcdserverpb.PutRequest`, the fields that are used.
#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// `etcdserverpb.PutResponse`, of which nothing is used.
#[derive(Clone, PartialEq, Message)]
struct PutResponse {}

/// `etcdserverpb.RangeRequest`: one key, linearizable, which is the default.
#[derive(Clone, PartialEq, Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

/// `etcdserverpb.RangeResponse`.
#[derive(Clone, PartialEq, Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

/// `mvccpb.KeyValue`.
#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(int64, tag = "3")]
    mod_revision: i64,
    #[prost(bytes = "bytes", tag = "5")]
    value: Bytes,
}

/// `etcdserverpb.TxnRequest`: if the key is as it was, put.
#[derive(Clone, PartialEq, Message)]
struct TxnRequest {
    #[prost(message, repeated, tag = "1")]
    compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    success: Vec<RequestOp>,
}

/// `etcdserverpb.Compare`; the comparison 0 is equality.
#[derive(Clone, PartialEq, Message)]
struct Compare {
    #[prost(int32, tag = "2")]
    target: i32,
    #[prost(bytes = "bytes", tag = "3")]
    key: Bytes,
    #[prost(int64, optional, tag = "6")]
    mod_revision: Option<i64>,
}

/// `Compare.CompareTarget.MOD`.
const MOD: i32 = 2;

/// `etcdserverpb.RequestOp`.
#[derive(Clone, PartialEq, Message)]
struct RequestOp {
    #[prost(message, optional, tag = "2")]
    request_put: Option<PutRequest>,
}

/// `etcdserverpb.TxnResponse`.
#[derive(Clone, PartialEq, Message)]
struct TxnResponse {
    #[prost(bool, tag = "2")]
    succeeded: bool,
}

struct Etcd {
    channels: Vec<Channel>,
    turn: AtomicUsize,
}

pub(crate) async fn connect(endpoints: Vec<String>) -> Result<Arc<dyn Target>> {
    let channels = futures::future::try_join_all(endpoints.iter().map(|endpoint| channel(endpoint))).await?;
    Ok(Arc::new(Etcd {
        channels,
        turn: AtomicUsize::new(0),
    }))
}

/// Whether a member knows a leader that answers.
pub(crate) async fn serves(endpoint: &str) -> bool {
    let key = Bytes::from_static(b"kvbench");
    let Ok(channel) = channel(endpoint).await else {
        return false;
    };
    range(channel, key).await.is_ok()
}

async fn channel(endpoint: &str) -> Result<Channel> {
    Endpoint::from_shared(endpoint.to_owned())?
        .connect_timeout(CONNECT)
        .timeout(REQUEST)
        .tcp_nodelay(true)
        .connect()
        .await
        .with_context(|| format!("connect to etcd at {endpoint}"))
}

async fn range(channel: Channel, key: Bytes) -> Result<Option<KeyValue>> {
    let request = RangeRequest { key };
    let response: RangeResponse = call(channel, "/etcdserverpb.KV/Range", request).await?;
    Ok(response.kvs.into_iter().next())
}

async fn call<Q, A>(channel: Channel, method: &'static str, request: Q) -> Result<A>
where
    Q: Message + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.context("reach etcd")?;
    let codec: ProstCodec<Q, A> = ProstCodec::default();
    let request = tonic::Request::new(request);
    let response = grpc
        .unary(request, PathAndQuery::from_static(method), codec)
        .await;
    Ok(response.with_context(|| format!("call {method}"))?.into_inner())
}

impl Etcd {
    /// All members in turn, as clients of Kubernetes are spread over them.
    fn channel(&self) -> Channel {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.channels[turn % self.channels.len()].clone()
    }
}

impl Target for Etcd {
    fn put(&self, key: Bytes, value: Bytes) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let request = PutRequest { key, value };
            let PutResponse {} = call(self.channel(), "/etcdserverpb.KV/Put", request).await?;
            Ok(())
        })
    }

    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>>> {
        Box::pin(async move { Ok(range(self.channel(), key).await?.map(|found| found.value)) })
    }

    /// Again from the read if somebody else has written in between.
    fn read_modify_write(&self, key: Bytes, value: Bytes) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            loop {
                let found = range(self.channel(), key.clone()).await?;
                let request = replace(&key, &value, found.map(|found| found.mod_revision));
                let response: TxnResponse = call(self.channel(), "/etcdserverpb.KV/Txn", request).await?;
                if response.succeeded {
                    return Ok(());
                }
            }
        })
    }
}

fn replace(key: &Bytes, value: &Bytes, read: Option<i64>) -> TxnRequest {
    let (key, value) = (key.clone(), value.clone());
    let compare = Compare {
        target: MOD,
        key: key.clone(),
        // A key that is not there has revision 0.
        mod_revision: Some(read.unwrap_or(0)),
    };
    let request_put = Some(PutRequest { key, value });
    TxnRequest {
        compare: vec![compare],
        success: vec![RequestOp { request_put }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encoded by hand from field numbers of etcd's `rpc.proto`.
    #[test]
    fn a_replacement_is_encoded_as_etcd_defines_it() {
        let request = replace(&Bytes::from_static(b"k"), &Bytes::from_static(b"v"), None);
        let compare = [0x10, 2, 0x1a, 1, b'k', 0x30, 0];
        let put = [0x0a, 1, b'k', 0x12, 1, b'v'];
        let mut expected = vec![0x0a, 7];
        expected.extend(compare);
        expected.extend([0x12, 8, 0x12, 6]);
        expected.extend(put);
        assert_eq!(request.encode_to_vec(), expected);
    }
}
