//! The Kubernetes under test: its API, and the programs that users work with.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use dynamo_operator::{
    controller::names,
    crd::{DynamoCluster, conditions},
};
use k8s_openapi::{
    api::core::v1::{Node, PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::{
    command::{self, Output},
    wait::{self, Look},
};

/// A program may take this long, unless it says that it waits longer.
const COMMAND: Duration = Duration::from_mins(1);

/// A Kubernetes, and the namespaces that the tests use in it.
#[derive(Clone)]
pub struct Cluster {
    /// Its API.
    pub client: Client,
    /// Where the operator lives.
    pub system: &'static str,
    /// Where the DynamoCluster lives.
    pub namespace: &'static str,
    /// Name of the DynamoCluster.
    pub name: &'static str,
    kubeconfig: PathBuf,
    tools: PathBuf,
    kind: Option<String>,
}

impl Cluster {
    /// The cluster that `KUBECONFIG` names, or the one that `e2e/kind/up` has made last under the name `DYNAMO_CLUSTER`.
    ///
    /// # Errors
    /// If there is none, or it does not answer.
    pub async fn connect() -> anyhow::Result<Self> {
        let cache = cache()?;
        let named = env::var("DYNAMO_CLUSTER").unwrap_or_else(|_| "dynamo".into());
        let made = cache.join(format!("kube/{named}.kubeconfig"));
        let kubeconfig = env::var_os("KUBECONFIG").map_or(made, PathBuf::from);
        ensure!(
            kubeconfig.is_file(),
            "there is no kubeconfig {}: run e2e/kind/up, or set KUBECONFIG",
            kubeconfig.display()
        );
        let parsed = Kubeconfig::read_from(&kubeconfig)?;
        let context = parsed.current_context.clone().unwrap_or_default();
        let config = Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        client
            .apiserver_version()
            .await
            .with_context(|| format!("the API server of {} does not answer", kubeconfig.display()))?;
        Ok(Self {
            client,
            system: "dynamo-system",
            namespace: "dynamo-e2e",
            name: "demo",
            kubeconfig,
            tools: cache.join("kube/bin"),
            kind: context.strip_prefix("kind-").map(str::to_owned),
        })
    }

    /// The same with another DynamoCluster.
    #[must_use]
    pub fn named(&self, name: &'static str) -> Self {
        Self { name, ..self.clone() }
    }

    /// Name of the kind cluster, for faults that only containers allow.
    ///
    /// # Errors
    /// If it is none.
    pub fn kind(&self) -> anyhow::Result<&str> {
        self.kind
            .as_deref()
            .context("zones can be cut, and images loaded, in kind clusters only; this is another one")
    }

    /// Runs kubectl.
    ///
    /// # Errors
    /// If it fails.
    pub async fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        self.kubectl_with(args, None, COMMAND).await?.ok()
    }

    /// Runs kubectl with something on its standard input, within `limit`; also its failure is an answer.
    ///
    /// # Errors
    /// If it cannot be run.
    pub async fn kubectl_with(
        &self,
        args: &[&str],
        input: Option<&str>,
        limit: Duration,
    ) -> anyhow::Result<Output> {
        self.tool("kubectl", args, input, limit).await
    }

    /// Runs Helm.
    ///
    /// # Errors
    /// If it fails, or takes longer than `limit`.
    pub async fn helm(&self, args: &[&str], limit: Duration) -> anyhow::Result<String> {
        self.tool("helm", args, None, limit).await?.ok()
    }

    /// A child process that runs kubectl, for what does not end by itself.
    pub fn kubectl_process(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(self.program("kubectl"));
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(args);
        command
    }

    /// The DynamoCluster.
    ///
    /// # Errors
    /// If the API server does not answer, or it is not there.
    pub async fn dynamo_cluster(&self) -> anyhow::Result<DynamoCluster> {
        let api = Api::namespaced(self.client.clone(), self.namespace);
        Ok(api.get(self.name).await?)
    }

    /// A condition of the DynamoCluster.
    ///
    /// # Errors
    /// If the API server does not answer, or it has no such condition.
    pub async fn condition(&self, type_: &str) -> anyhow::Result<Condition> {
        let status = self.dynamo_cluster().await?.status.unwrap_or_default();
        conditions::find(&status.conditions, type_)
            .cloned()
            .with_context(|| format!("there is no condition {type_} yet"))
    }

    /// Waits until the DynamoCluster is Ready.
    ///
    /// # Errors
    /// If it is not within `limit`.
    pub async fn ready(&self, limit: Duration) -> anyhow::Result<()> {
        wait::until("the DynamoCluster is Ready", limit, || async {
            let condition = self.condition(conditions::READY).await?;
            Ok(if condition.status == "True" {
                Look::Done(())
            } else {
                Look::NotYet(format!("{}: {}", condition.reason, condition.message))
            })
        })
        .await
    }

    /// The pods of the DynamoCluster, by name.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn members(&self) -> anyhow::Result<Vec<Pod>> {
        let selector = names::selector_text(&names::selector(self.name));
        let params = ListParams::default().labels(&selector);
        let mut pods = Api::namespaced(self.client.clone(), self.namespace)
            .list(&params)
            .await?
            .items;
        pods.sort_by_key(Pod::name_any);
        Ok(pods)
    }

    /// The volume claims of the DynamoCluster.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn claims(&self) -> anyhow::Result<Vec<PersistentVolumeClaim>> {
        let selector = names::selector_text(&names::selector(self.name));
        let params = ListParams::default().labels(&selector);
        let api = Api::namespaced(self.client.clone(), self.namespace);
        Ok(api.list(&params).await?.items)
    }

    /// The label `topology.kubernetes.io/zone` of a k8s node; empty without.
    ///
    /// # Errors
    /// If the API server does not answer, or there is no such node.
    pub async fn zone_of(&self, k8s_node: &str) -> anyhow::Result<String> {
        let node: Node = Api::all(self.client.clone()).get(k8s_node).await?;
        Ok(node
            .labels()
            .get(names::TOPOLOGY_ZONE)
            .cloned()
            .unwrap_or_default())
    }

    /// The zones in which pods of a namespace with these labels run.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn zones_with(&self, namespace: &str, labels: &str) -> anyhow::Result<Vec<String>> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let mut zones = Vec::new();
        for pod in api.list(&ListParams::default().labels(labels)).await? {
            if let Some(node) = pod.spec.and_then(|spec| spec.node_name) {
                zones.push(self.zone_of(&node).await?);
            }
        }
        Ok(zones)
    }

    /// Runs a script of `e2e/kind`, with `docker` pointing to the engine that the cluster runs on.
    ///
    /// # Errors
    /// If it fails, or takes longer than `limit`.
    pub async fn with_engine(&self, script: &str, limit: Duration) -> anyhow::Result<String> {
        let script = format!("set -euo pipefail\nengine=$(e2e/kind/engine env)\neval \"$engine\"\n{script}");
        command::run(Path::new("bash"), &["-c", &script], &root(), None, limit)
            .await?
            .ok()
    }

    async fn tool(
        &self,
        name: &str,
        args: &[&str],
        input: Option<&str>,
        limit: Duration,
    ) -> anyhow::Result<Output> {
        let kubeconfig = self.kubeconfig.to_string_lossy();
        let mut all = vec!["--kubeconfig", &kubeconfig];
        all.extend(args);
        command::run(&self.program(name), &all, &root(), input, limit).await
    }

    /// Those of the cache, or those of the user.
    fn program(&self, name: &str) -> PathBuf {
        let cached = self.tools.join(name);
        if cached.exists() { cached } else { name.into() }
    }
}

/// The top folder of the project.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

fn cache() -> anyhow::Result<PathBuf> {
    if let Some(cache) = env::var_os("DYNAMO_CACHE") {
        return Ok(cache.into());
    }
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    Ok(base
        .context("set HOME or DYNAMO_CACHE: the cluster's tools are there")?
        .join("dynamo-kubernetes"))
}
