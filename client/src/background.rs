//! What a client does between requests: it refreshes its ring and probes the nodes that it has put aside.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures::{StreamExt as _, stream};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use dynamo_proto::v1::GetRingRequest;

use crate::call::Shared;

/// Replies that show a newer ring cause one refresh per so much time at most.
const REFRESH_PAUSE: Duration = Duration::from_millis(200);
/// Probes in flight at once.
const PROBES_IN_FLIGHT_MAX: usize = 16;

/// Refreshes the ring at each interval and when woken, until the client is gone.
pub(crate) async fn refresh(client: Weak<Shared>, every: Duration, wake: Arc<tokio::sync::Notify>) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = wake.notified() => {}
        }
        let Some(client) = client.upgrade() else { return };
        if let Err(error) = client.refresh().await {
            tracing::debug!(%error, "ring was not refreshed");
        }
        drop(client);
        tokio::time::sleep(REFRESH_PAUSE).await;
    }
}

/// Asks nodes that were put aside whether they answer again, until the client is gone.
pub(crate) async fn probe(client: Weak<Shared>, every: Duration) {
    // Looking more often than probing keeps the interval of each node close to what was asked for.
    let mut ticks = interval((every / 4).max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(client) = client.upgrade() else { return };
        let due = client.router.nodes.probes_due();
        let probes = due.into_iter().map(|node| {
            let client = Arc::clone(&client);
            async move {
                let nodes = &client.router.nodes;
                let started = Instant::now();
                let request = GetRingRequest {
                    known_epoch: client.router.epoch(),
                };
                let mut stub = nodes.stub(&node);
                match timeout(client.settings.attempt_timeout, stub.calls.get_ring(request)).await {
                    Ok(Ok(_)) => node.heard(),
                    // A node that is draining or has no ring yet stays aside.
                    Ok(Err(status)) => nodes.failed(&node, started, status.message()),
                    Err(_) => nodes.failed(&node, started, "no answer to a probe"),
                }
            }
        });
        stream::iter(probes)
            .buffer_unordered(PROBES_IN_FLIGHT_MAX)
            .collect::<()>()
            .await;
    }
}
