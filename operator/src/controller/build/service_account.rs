//! The pods' identity.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::meta;
use crate::controller::{names, validate::ValidatedCluster};

/// An account without rights; no pod gets a token, for nodes never speak to the API server.
pub(super) fn service_account(cluster: &ValidatedCluster) -> ServiceAccount {
    ServiceAccount {
        metadata: meta::owned(cluster, names::service_account(&cluster.name)),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}
