//! Probes and metrics over plain HTTP: `/livez`, `/readyz`, `/metrics`.

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, extract::State, http::StatusCode, routing::get, serve::Listener};
use tokio_util::sync::CancellationToken;

use crate::node::Node;

/// Serves until `shutdown`.
///
/// # Errors
/// If the listener fails.
pub(crate) async fn serve(
    listener: impl Listener<Addr = SocketAddr>,
    node: Arc<Node>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(node);
    axum::serve(listener, router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await?;
    Ok(())
}

/// 200 if the node serves its ranges; never a matter of peers or of disk space.
async fn readyz(State(node): State<Arc<Node>>) -> (StatusCode, String) {
    match node.not_ready_reason() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn metrics(State(node): State<Arc<Node>>) -> (StatusCode, String) {
    match node.metrics().encode(&node.snapshot()) {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}
