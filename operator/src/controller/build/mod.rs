//! Pure: the objects of a cluster, one builder each.

mod config_map;
mod meta;
mod pdb;
mod service_account;
mod services;
mod stateful_set;

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};

use super::validate::ValidatedCluster;

pub use meta::hash_of;

/// Seconds that a node gives requests in flight after SIGTERM.
pub const SHUTDOWN_GRACE_S: i64 = 20;
/// Seconds after which the kubelet kills a node: time to drain, to flush and to close.
pub const TERMINATION_GRACE_S: i64 = SHUTDOWN_GRACE_S + 25;

/// Every object of a cluster. `apply` takes it apart without `..`, so a kind that nobody writes does not compile.
#[derive(Clone, Debug)]
pub struct Desired {
    /// Identity of the pods, with no rights and no token.
    pub service_account: ServiceAccount,
    /// The nodes' configuration file.
    pub config_map: ConfigMap,
    /// Names of the pods, ready or not.
    pub nodes_service: Service,
    /// The ready pods, for clients.
    pub client_service: Service,
    /// Evictions of one pod at a time.
    pub pdb: PodDisruptionBudget,
    /// The pods, one StatefulSet per zone; without zones that nothing is left in but the StatefulSet.
    pub stateful_sets: Vec<StatefulSet>,
}

/// Why objects could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The nodes' configuration.
    #[error("cannot write the nodes' configuration as YAML: {0}")]
    Config(#[from] serde_yaml::Error),
    /// Its hash.
    #[error("cannot write an object as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Builds every object.
///
/// # Errors
/// If one cannot be serialised, which no valid cluster causes.
pub fn build(cluster: &ValidatedCluster) -> Result<Desired, BuildError> {
    let config = config_map::config(cluster)?;
    let zones = cluster.zones.iter();
    let stateful_sets = zones
        .filter(|zone| !(zone.layout.leaving && zone.pods == 0))
        .map(|zone| stateful_set::stateful_set(cluster, zone, &config));
    let desired = Desired {
        service_account: service_account::service_account(cluster),
        config_map: config_map::config_map(cluster, &config),
        nodes_service: services::nodes(cluster),
        client_service: services::client(cluster),
        pdb: pdb::pdb(cluster),
        stateful_sets: stateful_sets.collect::<Result<_, _>>()?,
    };
    desired.with_hashes()
}

impl Desired {
    fn with_hashes(mut self) -> Result<Self, BuildError> {
        let Self {
            service_account,
            config_map,
            nodes_service,
            client_service,
            pdb,
            stateful_sets,
        } = &mut self;
        meta::annotate_hash(service_account)?;
        meta::annotate_hash(config_map)?;
        meta::annotate_hash(nodes_service)?;
        meta::annotate_hash(client_service)?;
        meta::annotate_hash(pdb)?;
        stateful_sets.iter_mut().try_for_each(meta::annotate_hash)?;
        Ok(self)
    }
}
