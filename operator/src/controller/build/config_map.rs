//! The nodes' configuration file.

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;

use super::{SHUTDOWN_GRACE_S, meta};
use crate::{
    controller::{names, validate::ValidatedCluster},
    crd::{DurabilityMode, LogLevel},
};

/// Name of the file.
pub(super) const FILE: &str = "dynamo.yaml";

/// Its text. It names no members, so that a change of membership restarts nobody.
pub(super) fn config(cluster: &ValidatedCluster) -> Result<String, serde_yaml::Error> {
    let spec = &cluster.spec;
    let seeds = format!(
        "{}.{}.svc:7701",
        names::nodes_service(&cluster.name),
        cluster.namespace
    );
    serde_yaml::to_string(&json!({
        "seeds": [seeds],
        "replication": {"readQuorum": cluster.read_quorum, "writeQuorum": cluster.write_quorum},
        "durability": {
            "mode": match spec.durability.mode {
                DurabilityMode::Every => "every",
                DurabilityMode::Interval => "interval",
                DurabilityMode::OneOfN => "oneOfN",
                DurabilityMode::Buffered => "buffered",
            },
            "intervalMs": spec.durability.interval_ms,
        },
        "hints": {"bytesMax": spec.hints.bytes_max},
        "background": {
            "hintsIntervalMs": milliseconds(spec.hints.interval_seconds),
            "exchangeIntervalMs": milliseconds(spec.anti_entropy.interval_seconds),
            "reapIntervalMs": milliseconds(spec.reaping.interval_seconds),
            "reapGraceMs": milliseconds(spec.reaping.grace_seconds),
        },
        "limits": {
            "valueBytesMax": spec.limits.value_bytes_max,
            "connectionsMax": spec.limits.connections_max,
            "requestsInFlightMax": spec.limits.requests_in_flight_max,
        },
        "log": {
            "format": "json",
            "level": match spec.log_level {
                LogLevel::Trace => "trace",
                LogLevel::Debug => "debug",
                LogLevel::Info => "info",
                LogLevel::Warn => "warn",
                LogLevel::Error => "error",
            },
        },
        "shutdownGraceS": SHUTDOWN_GRACE_S,
    }))
}

fn milliseconds(seconds: i32) -> i64 {
    i64::from(seconds) * 1000
}

/// The ConfigMap that holds it.
pub(super) fn config_map(cluster: &ValidatedCluster, config: &str) -> ConfigMap {
    ConfigMap {
        metadata: meta::owned(cluster, names::config_map(&cluster.name)),
        data: Some([(FILE.to_owned(), config.to_owned())].into()),
        ..ConfigMap::default()
    }
}
