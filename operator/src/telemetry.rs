//! Logs, metrics, and the plain HTTP port: `/livez`, `/readyz`, `/metrics`.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Gauge, Histogram, MeterProvider as _},
};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// From 5 ms to 10 s.
const SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// Starts logging to standard error.
///
/// # Errors
/// If the filter is not understood, or logging was started before.
pub fn init_logging(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let result = match format {
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .try_init(),
        LogFormat::Text => builder.try_init(),
    };
    result.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

/// What the operator counts.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    _provider: SdkMeterProvider,
    duration: Histogram<f64>,
    errors: Counter<u64>,
    leader: Gauge<u64>,
}

impl Metrics {
    /// Fresh instruments.
    ///
    /// # Errors
    /// If the exporter cannot register itself.
    pub fn new() -> anyhow::Result<Self> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .without_target_info()
            .scope_info_enabled(false)
            .build()?;
        let provider = SdkMeterProvider::builder().with_reader(exporter).build();
        let meter = provider.meter("dynamo-operator");
        let info = meter
            .u64_gauge("dynamo_operator_build_info")
            .with_description("Always 1.")
            .build();
        info.record(1, &[KeyValue::new("release", env!("CARGO_PKG_VERSION"))]);
        Ok(Self {
            duration: meter
                .f64_histogram("dynamo_operator_reconcile_duration_seconds")
                .with_description("Time of one pass over one DynamoCluster.")
                .with_boundaries(SECONDS.into())
                .build(),
            errors: meter
                .u64_counter("dynamo_operator_reconcile_errors")
                .with_description("Passes that failed, by the step that did.")
                .build(),
            leader: meter
                .u64_gauge("dynamo_operator_leader")
                .with_description("1 while this operator holds the lease.")
                .build(),
            registry,
            _provider: provider,
        })
    }

    /// Counts one pass.
    pub fn reconciled(&self, duration: Duration, failed_step: Option<&'static str>) {
        let result = if failed_step.is_some() { "error" } else { "ok" };
        self.duration
            .record(duration.as_secs_f64(), &[KeyValue::new("result", result)]);
        if let Some(step) = failed_step {
            self.errors.add(1, &[KeyValue::new("step", step)]);
        }
    }

    /// Notes who leads.
    pub fn leads(&self, leads: bool) {
        self.leader.record(u64::from(leads), &[]);
    }

    /// The text that Prometheus reads.
    ///
    /// # Errors
    /// If a metric cannot be encoded.
    pub fn encode(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// What `/readyz` says.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Mutex<Option<String>>>);

impl Readiness {
    /// Not ready, for this reason.
    pub fn not_yet(reason: &str) -> Self {
        Self(Arc::new(Mutex::new(Some(reason.into()))))
    }

    /// Ready with `None`, else why not.
    pub fn set(&self, reason: Option<&str>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = reason.map(Into::into);
    }

    /// Why not ready.
    pub fn reason(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves probes and metrics until `shutdown`.
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(readiness)
        .merge(Router::new().route("/metrics", get(scrape)).with_state(metrics));
    axum::serve(listener, router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, String) {
    match readiness.reason() {
        None => (StatusCode::OK, "ok\n".into()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn scrape(State(metrics): State<Metrics>) -> (StatusCode, String) {
    match metrics.encode() {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_the_documented_names() {
        let metrics = Metrics::new().unwrap();
        metrics.reconciled(Duration::from_millis(3), None);
        metrics.reconciled(Duration::from_millis(3), Some("apply"));
        metrics.leads(true);
        let text = metrics.encode().unwrap();
        for line in [
            "dynamo_operator_reconcile_duration_seconds_bucket{result=\"ok\",le=\"0.005\"} 1",
            "dynamo_operator_reconcile_errors_total{step=\"apply\"} 1",
            "dynamo_operator_leader 1",
            "dynamo_operator_build_info{",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
    }
}
