//! The two Services.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::meta;
use crate::controller::{names, validate::ValidatedCluster};

/// Gives every pod a DNS name, ready or not: peers must find a node before it is ready, or none ever would be.
pub(super) fn nodes(cluster: &ValidatedCluster) -> Service {
    Service {
        metadata: meta::owned(cluster, names::nodes_service(&cluster.name)),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            publish_not_ready_addresses: Some(true),
            selector: Some(names::selector(&cluster.name)),
            ports: Some(vec![
                port("client", 7700, Some("kubernetes.io/h2c")),
                port("peer", 7701, Some("kubernetes.io/h2c")),
                port("admin", 7702, Some("kubernetes.io/h2c")),
                port("http", 9700, Some("http")),
            ]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// One address for clients, of ready pods only.
pub(super) fn client(cluster: &ValidatedCluster) -> Service {
    Service {
        metadata: meta::owned(cluster, names::client_service(&cluster.name)),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".into()),
            selector: Some(names::selector(&cluster.name)),
            ports: Some(vec![port("client", 7700, Some("kubernetes.io/h2c"))]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn port(name: &str, port: i32, app_protocol: Option<&str>) -> ServicePort {
    ServicePort {
        name: Some(name.into()),
        port,
        protocol: Some("TCP".into()),
        target_port: Some(IntOrString::String(name.into())),
        app_protocol: app_protocol.map(Into::into),
        ..ServicePort::default()
    }
}
