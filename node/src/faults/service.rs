//! `dynamo.fault.v1.Fault`: sets faults from outside.

use std::sync::Arc;

use dynamo_proto::fault::{
    CrashRequest, CrashResponse, DropKeyRequest, DropKeyResponse, SetRequest, SetResponse,
    fault_server::Fault,
};
use tonic::{Request, Response, Status};

use crate::{
    grpc::{
        convert,
        status::{Failure, Reason},
    },
    node::Node,
    storage::writer::{Expected, Swap},
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
        tracing::warn!(?settings, "faults set");
        let set = self.node.faults().set(settings);
        set.map_err(|error| Failure::new(Reason::Storage, error.to_string()))?;
        Ok(Response::new(SetResponse {}))
    }

    async fn drop_key(&self, request: Request<DropKeyRequest>) -> Result<Response<DropKeyResponse>, Status> {
        let request = request.into_inner();
        let key = convert::record_key(&request.bucket, &request.key)?;
        let failed = |error: String| Failure::new(Reason::Storage, error);
        let stored = self.node.load(&key).await;
        let Some(state) = stored.map_err(|error| failed(error.to_string()))? else {
            return Ok(Response::new(DropKeyResponse { dropped: false }));
        };
        let expected = Expected {
            digest: state.digest(),
            mark: None,
        };
        let swapped = self.node.writer().swap(&key, expected, Swap::Delete, true).await;
        let dropped = swapped.map_err(|error| failed(error.to_string()))?.is_some();
        Ok(Response::new(DropKeyResponse { dropped }))
    }

    async fn crash(&self, _request: Request<CrashRequest>) -> Result<Response<CrashResponse>, Status> {
        let lost = self.node.faults().crash();
        lost.map_err(|error| Failure::new(Reason::Storage, error.to_string()))?;
        std::process::exit(KILLED)
    }
}
