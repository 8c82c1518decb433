//! The process: wait for the CRD, become leader, run the loop, stop cleanly.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount},
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::ListParams,
    runtime::{
        Controller,
        controller::Config,
        events::{Recorder, Reporter},
        reflector::ObjectRef,
        watcher,
    },
};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder};
use serde::de::DeserializeOwned;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{Admin, GrpcAdmin},
    controller::{Context, names, on_error, reconcile, validate::Defaults},
    crd::DynamoCluster,
    telemetry::{self, LogFormat, Metrics, Readiness},
};

/// Clusters worked on at once.
const CLUSTERS_AT_ONCE: u16 = 16;
/// Events within this time make one pass.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Between looks for the CRD.
const CRD_POLL: Duration = Duration::from_secs(2);

/// Runs the operator.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// Namespaces to watch, comma separated [default: all].
    #[arg(
        long,
        env = "DYNAMO_OPERATOR_WATCH_NAMESPACES",
        value_delimiter = ',',
        value_name = "NAMESPACE"
    )]
    pub watch_namespaces: Vec<String>,
    /// Image of the nodes of clusters that name none.
    #[arg(
        long,
        env = "DYNAMO_OPERATOR_NODE_IMAGE",
        value_name = "IMAGE",
        default_value = concat!("dynamo-node:", env!("CARGO_PKG_VERSION"))
    )]
    pub node_image: String,
    /// Address for probes and metrics (HTTP).
    #[arg(
        long,
        env = "DYNAMO_OPERATOR_HTTP_LISTEN",
        value_name = "IP:PORT",
        default_value = "0.0.0.0:9700"
    )]
    pub http_listen: SocketAddr,
    /// Whether to act only while holding a Lease; without, never run two operators.
    #[arg(
        long,
        env = "DYNAMO_OPERATOR_LEADER_ELECTION",
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set
    )]
    pub leader_election: bool,
    /// Name of the Lease.
    #[arg(
        long,
        env = "DYNAMO_OPERATOR_LEASE_NAME",
        value_name = "NAME",
        default_value = "dynamo-operator"
    )]
    pub lease_name: String,
    /// Namespace of the Lease [default: the pod's].
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    pub lease_namespace: Option<String>,
    /// Seconds after which another operator takes a Lease that is not renewed, 6..=300.
    #[arg(
        long,
        env = "DYNAMO_OPERATOR_LEASE_DURATION_S",
        value_name = "S",
        default_value_t = 15,
        value_parser = clap::value_parser!(u64).range(6..=300)
    )]
    pub lease_duration_s: u64,
    /// Name of this operator among others [default: the host's].
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub identity: Option<String>,
    /// Form of the log on standard error.
    #[arg(long, env = "DYNAMO_OPERATOR_LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,
    /// Log filter: a level, or `target=level,...`.
    #[arg(
        long,
        env = "DYNAMO_OPERATOR_LOG_LEVEL",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub log_level: String,
}

/// Runs until `shutdown` completes.
///
/// # Errors
/// If it cannot start, or lost the lease: then another operator may act already.
pub async fn run(
    settings: Settings,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let metrics = Metrics::new()?;
    let readiness = Readiness::not_yet("starting");
    let listener = TcpListener::bind(settings.http_listen).await?;
    tracing::info!(http = %listener.local_addr()?, release = env!("CARGO_PKG_VERSION"), "listening");
    let http = tokio::spawn(telemetry::serve(
        listener,
        metrics.clone(),
        readiness.clone(),
        stop.clone(),
    ));
    let signal = stop.clone();
    tokio::spawn(async move {
        shutdown.await;
        signal.cancel();
    });
    let client = Client::try_default().await?;
    let result = stop
        .run_until_cancelled(wait_for_crd(&client, &settings.watch_namespaces, &readiness))
        .await;
    let result = match result {
        None => Ok(()),
        Some(()) if settings.leader_election => lead(&client, &settings, &metrics, &stop).await,
        Some(()) => {
            metrics.leads(true);
            control(&client, &settings, &metrics, stop.clone()).await;
            Ok(())
        }
    };
    stop.cancel();
    http.await??;
    result
}

/// Without its CRD the operator waits and says so; crashing would only hide why.
async fn wait_for_crd(client: &Client, namespaces: &[String], readiness: &Readiness) {
    let mut told = false;
    loop {
        let api = match namespaces.first() {
            Some(namespace) => Api::<DynamoCluster>::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        };
        let Err(error) = api.list(&ListParams::default().limit(1)).await else {
            break;
        };
        // Not `is_not_found()`: an unknown group is answered with plain text, which has no reason.
        let missing = matches!(&error, kube::Error::Api(status) if status.code == 404);
        let why = if missing {
            "WaitingForCRD: install crds/dynamoclusters.yaml, or the chart with crds.install=true".to_owned()
        } else {
            format!("cannot list DynamoClusters: {error}")
        };
        if !told {
            tracing::warn!(why, "waiting");
            told = true;
        }
        readiness.set(Some(&why));
        tokio::time::sleep(CRD_POLL).await;
    }
    // A standby is as ready as a leader: it takes over within the lease's duration.
    readiness.set(None);
}

async fn lead(
    client: &Client,
    settings: &Settings,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let manager = lease(client, settings).await?;
    let (mut held, task) = manager.watch().await;
    metrics.leads(false);
    tracing::info!(lease = settings.lease_name, "waiting for the lease");
    let leads = stop
        .run_until_cancelled(held.wait_for(|held| *held))
        .await
        .map(|held| held.is_ok());
    let result = match leads {
        None => Ok(()),
        Some(false) => Err(anyhow::anyhow!("the lease manager stopped")),
        Some(true) => {
            tracing::info!(lease = settings.lease_name, "leading");
            metrics.leads(true);
            let work = stop.child_token();
            let mut control = std::pin::pin!(control(client, settings, metrics, work.clone()));
            tokio::select! {
                () = &mut control => Ok(()),
                _ = held.wait_for(|held| !*held) => {
                    work.cancel();
                    control.await;
                    Err(anyhow::anyhow!("lost the lease: another operator may act; ending"))
                }
            }
        }
    };
    metrics.leads(false);
    drop(held);
    release(task).await;
    result
}

async fn lease(client: &Client, settings: &Settings) -> anyhow::Result<LeaseManager> {
    let identity = settings
        .identity
        .clone()
        .unwrap_or_else(|| format!("dynamo-operator-{}", uuid::Uuid::new_v4()));
    let namespace = settings
        .lease_namespace
        .clone()
        .unwrap_or_else(|| client.default_namespace().into());
    let manager = LeaseManagerBuilder::new(client.clone(), &settings.lease_name)
        .with_namespace(namespace)
        .with_identity(identity)
        .with_duration(settings.lease_duration_s)
        // Also the skew of clocks that is tolerated.
        .with_grace(settings.lease_duration_s / 3)
        .build()
        .await?;
    Ok(manager)
}

/// A lease that is given back lets the next operator act at once.
async fn release(task: JoinHandle<kube_lease_manager::Result<LeaseManager>>) {
    match tokio::time::timeout(Duration::from_secs(5), task).await {
        Ok(Ok(Ok(_))) => tracing::info!("gave the lease back"),
        Ok(Ok(Err(error))) => tracing::warn!(%error, "cannot give the lease back"),
        Ok(Err(error)) => tracing::warn!(%error, "the lease manager failed"),
        Err(_) => tracing::warn!("giving the lease back took too long"),
    }
}

/// The loop, over all namespaces or each of those watched, until `stop`.
async fn control(client: &Client, settings: &Settings, metrics: &Metrics, stop: CancellationToken) {
    let reporter = Reporter {
        controller: "dynamo-operator".into(),
        instance: settings.identity.clone(),
    };
    let context = Arc::new(Context {
        client: client.clone(),
        admin: GrpcAdmin,
        defaults: Defaults {
            image: settings.node_image.clone(),
        },
        recorder: Recorder::new(client.clone(), reporter),
        metrics: metrics.clone(),
        now: Timestamp::now,
        failures: std::sync::Mutex::default(),
    });
    let scopes: Vec<Option<&str>> = match settings.watch_namespaces.as_slice() {
        [] => vec![None],
        namespaces => namespaces
            .iter()
            .map(|namespace| Some(namespace.as_str()))
            .collect(),
    };
    let controllers = scopes
        .into_iter()
        .map(|scope| control_scope(client, scope, context.clone(), stop.clone()));
    futures::future::join_all(controllers).await;
    tracing::info!("the loop has ended");
}

/// The loop over one namespace, or all of them, until `stop`.
pub async fn control_scope<A: Admin>(
    client: &Client,
    scope: Option<&str>,
    context: Arc<Context<A>>,
    stop: CancellationToken,
) {
    let labels = format!("app.kubernetes.io/managed-by={}", names::FIELD_MANAGER);
    let ours = || watcher::Config::default().labels(&labels);
    let config = Config::default().concurrency(CLUSTERS_AT_ONCE).debounce(DEBOUNCE);
    Controller::new(api::<DynamoCluster>(client, scope), watcher::Config::default())
        .with_config(config)
        .owns(api::<StatefulSet>(client, scope), ours())
        .owns(api::<Service>(client, scope), ours())
        .owns(api::<ConfigMap>(client, scope), ours())
        .owns(api::<ServiceAccount>(client, scope), ours())
        .owns(api::<PodDisruptionBudget>(client, scope), ours())
        .watches(api::<Pod>(client, scope), ours(), |pod| cluster_of(&pod))
        .watches(api::<PersistentVolumeClaim>(client, scope), ours(), |claim| {
            cluster_of(&claim)
        })
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, on_error, context)
        .for_each(|_| std::future::ready(()))
        .await;
}

fn api<K>(client: &Client, scope: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned,
{
    match scope {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// The DynamoCluster whose labels a pod or claim carries. Only a hint to look: nothing is decided upon it.
fn cluster_of<K: Resource>(object: &K) -> Option<ObjectRef<DynamoCluster>> {
    let name = object.labels().get("app.kubernetes.io/instance")?;
    Some(ObjectRef::new(name).within(&object.namespace()?))
}
