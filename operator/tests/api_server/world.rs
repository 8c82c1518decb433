//! Worlds on the real API server.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use dynamo_operator_sim::{
    faults::Faults,
    world::{Operator, World},
};
use kube::client::ClientBuilder;
use serde_json::Value;

use super::server::{self, OPERATOR};

/// A namespace of its own, in which operators act under the chart's RBAC.
pub async fn new(purpose: &str) -> World {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let server = server::shared().await;
    let namespace = format!("{purpose}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let clients = |faults: &Faults| {
        let config = server.config_as(OPERATOR);
        ClientBuilder::try_from(config)
            .unwrap()
            .with_layer(faults)
            .build()
    };
    World::new(server.client(), namespace, Arc::new(clients)).await
}

/// A namespace in which the DynamoCluster `demo` serves.
pub async fn serving(purpose: &str, spec: Value) -> (World, Operator) {
    let world = new(purpose).await;
    let operator = world.serve(spec).await;
    (world, operator)
}
