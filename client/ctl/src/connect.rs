//! Ways to the nodes.

use std::time::Duration;

use dynamo_client::{Builder, Client, Coordination};
use dynamo_proto::admin::admin_client::AdminClient;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    cli::{BenchLite, Global, ReadCoordination, Route},
    failure::Failure,
};

/// A ring of 16,384 partitions and thousands of members is far smaller.
const RECEIVE_BYTES_MAX: usize = 64 << 20;
/// For making a connection, so that the next address is tried soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// An admin stub and the address it speaks with.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    pub(crate) address: String,
    stub: AdminClient<Channel>,
    timeout: Duration,
}

/// A client for single operations: it uses the endpoints alone, since asking for the ring would cost a round trip.
pub(crate) fn single(global: &Global) -> Result<Client, Failure> {
    let builder = Client::builder().endpoints(&global.endpoint).ring_aware(false);
    let client = builder
        .deadline(global.timeout)
        .attempt_timeout(global.timeout.mul_f64(0.4))
        .build();
    let client = client.map_err(|error| Failure::client("cannot make a client", &error))?;
    Ok(client.with_bucket(&global.bucket))
}

/// A client for many operations.
pub(crate) async fn many(global: &Global, route: Route) -> Result<Client, Failure> {
    connect(global, route, Client::builder()).await
}

/// A client that measures.
pub(crate) async fn bench(global: &Global, bench: &BenchLite) -> Result<Client, Failure> {
    let mut builder = Client::builder().coordination(match bench.coordination {
        ReadCoordination::Server => Coordination::Server,
        ReadCoordination::Client => Coordination::Client,
    });
    if let Some(zone) = &bench.zone {
        builder = builder.zone(zone);
    }
    connect(global, bench.route, builder).await
}

async fn connect(global: &Global, route: Route, builder: Builder) -> Result<Client, Failure> {
    let builder = builder.endpoints(&global.endpoint).deadline(global.timeout);
    let client = builder.ring_aware(route == Route::Ring).connect().await;
    let attempted = || format!("cannot reach the cluster at {}", global.endpoint.join(", "));
    let client = client.map_err(|error| Failure::client(attempted(), &error))?;
    Ok(client.with_bucket(&global.bucket))
}

impl Admin {
    /// The first of the admin addresses that accepts a connection.
    pub(crate) async fn first(global: &Global) -> Result<Self, Failure> {
        let mut failure = None;
        for address in &global.admin {
            match Self::at(address, global.timeout).await {
                Ok(admin) => return Ok(admin),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| Failure::new("cannot reach a node", "no --admin address is given")))
    }

    /// One node.
    pub(crate) async fn at(address: &str, timeout: Duration) -> Result<Self, Failure> {
        let host = address.strip_prefix("http://").unwrap_or(address);
        let failed = |cause: String| {
            Failure::new(format!("cannot reach the admin port of a node at {host}"), cause).hint(
                "name a node's admin port with --admin, or forward it: kubectl port-forward pod/NAME 7702",
            )
        };
        let endpoint = Endpoint::from_shared(format!("http://{host}")).map_err(|e| failed(e.to_string()))?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT.min(timeout))
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(2));
        let channel = match tokio::time::timeout(timeout, endpoint.connect()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(failed(innermost(&error))),
            Err(_) => return Err(failed("no connection in time".to_owned())),
        };
        let stub = AdminClient::new(channel).max_decoding_message_size(RECEIVE_BYTES_MAX);
        Ok(Self {
            address: host.to_owned(),
            stub,
            timeout,
        })
    }

    /// One call, within the timeout. `attempted` begins with "cannot".
    pub(crate) async fn call<M, T, F>(
        &self,
        attempted: impl Into<String>,
        message: M,
        send: impl FnOnce(AdminClient<Channel>, Request<M>) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        // The transport keeps the same time; a little more here lets its own error through.
        let limit = self.timeout + Duration::from_millis(100);
        let result = tokio::time::timeout(limit, send(self.stub.clone(), request)).await;
        let result = result.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
        let attempted = attempted.into();
        result
            .map(Response::into_inner)
            .map_err(|status| Failure::admin(format!("{attempted} (asked {})", self.address), &status))
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}
