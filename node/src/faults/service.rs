//! `dynamo.fault.v1.Fault`: sets faults from outside.

use std::sync::Arc;

use dynamo_proto::fault::{
    CrashRequest, CrashResponse, DropKeyRequest, DropKeyResponse, SetRequest, SetResponse, fault_server::Fault,
};
use tonic::{Request, Response, Status};

use crate::{
    grpc::{convert, status::{Failure, Reason}},
    node::Node,
};

/// The exit code of a process that was killed.
const KILLED: i32 = 137;

/// The service.
pub(crate) struct FaultService {
    node: Arc<Node>,
}

impl FaultService {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

#[tonic::async_trait]
impl Fault for FaultService {
    async fn set(&self, request: Request<SetRequest>) -> Result<Response<SetResponse>, Status> {
        let settings = request.into_inner();
        let me = self.node.membership().me().map(|me| me.member.to_string());
        tracing::warn!(?settings, "faults set");
        super::set(&me.unwrap_or_default(), settings);
        Ok(Response::new(SetResponse {}))
    }

    async fn drop_key(&self, request: Request<DropKeyRequest>) -> Result<Response<DropKeyResponse>, Status> {
        let request = request.into_inner();
        let key = convert::record_key(&request.bucket, &request.key)?;
        let dropped = self.node.load(&key).await.map_err(|error| Failure::new(Reason::Storage, error.to_string()))?.is_some();
        let written = self.node.writer().forget(key).await;
        written.map_err(|error| Failure::new(Reason::Storage, error.to_string()))?;
        Ok(Response::new(DropKeyResponse { dropped }))
    }

    async fn crash(&self, _request: Request<CrashRequest>) -> Result<Response<CrashResponse>, Status> {
        std::process::exit(KILLED)
    }
}
