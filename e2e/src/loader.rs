//! Running the loader in the cluster: its image, its Job, its lines.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, bail};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{Api, api::ListParams};
use serde_json::json;

use crate::{
    cluster::Cluster,
    report::{self, Line},
    wait::{self, Look},
};

/// Where the image has the records.
pub const RECORDS: &str = "/records.tsv";
/// The image, if the user has not put one elsewhere.
const IMAGE: &str = "dynamo-loader:test";
/// The base of all our images.
const BASE: &str = "dynamo-base:debian12";

/// The loader's image.
#[derive(Clone, Debug)]
pub struct Image(String);

impl Image {
    /// Builds the image from the loader's binary and the records, and puts it on every k8s node. `DYNAMO_LOADER_IMAGE`
    /// names one that the cluster can pull instead.
    ///
    /// # Errors
    /// If that fails.
    pub async fn build(cluster: &Cluster, binary: &str, records: &str) -> anyhow::Result<Self> {
        if let Ok(image) = std::env::var("DYNAMO_LOADER_IMAGE") {
            return Ok(Self(image));
        }
        let context = std::env::temp_dir().join(format!("dynamo-loader-{}", std::process::id()));
        let result = Self::build_in(cluster, &context, binary, records).await;
        std::fs::remove_dir_all(&context).ok();
        result
    }

    async fn build_in(
        cluster: &Cluster,
        context: &Path,
        binary: &str,
        records: &str,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(context)?;
        std::fs::write(context.join("records.tsv"), records)?;
        let dockerfile = format!(
            "FROM {BASE}\nCOPY dynamo-loader /dynamo-loader\nCOPY records.tsv {RECORDS}\nUSER 65532:65532\n\
             ENTRYPOINT [\"/dynamo-loader\"]\n"
        );
        std::fs::write(context.join("Dockerfile"), dockerfile)?;
        let (kind, context) = (cluster.kind()?, context.display());
        let script = format!(
            "strip -o '{context}/dynamo-loader' '{binary}'\nchmod 755 '{context}/dynamo-loader'\n\
             chmod 644 '{context}/records.tsv'\n\
             docker build --quiet --tag {IMAGE} '{context}'\ne2e/kind/load '{kind}' {IMAGE}"
        );
        cluster.with_engine(&script, Duration::from_mins(3)).await?;
        Ok(Self(IMAGE.into()))
    }
}

/// A loader that runs as a Job.
pub struct Loader<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl<'a> Loader<'a> {
    /// Starts it with these arguments, after the endpoint; in `zone` if that is not empty.
    ///
    /// # Errors
    /// If the API server refuses.
    pub async fn start(
        cluster: &'a Cluster,
        image: &Image,
        name: &str,
        zone: &str,
        args: &[&str],
    ) -> anyhow::Result<Self> {
        let endpoint = format!("{}-client.{}.svc:7700", cluster.name, cluster.namespace);
        let mut all = vec!["--endpoint", &endpoint];
        all.extend(args);
        let selector = match zone {
            "" => json!({}),
            zone => json!({"topology.kubernetes.io/zone": zone}),
        };
        let job: Job = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"backoffLimit": 0, "template": {"spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "terminationGracePeriodSeconds": 1,
                "nodeSelector": selector,
                "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "loader",
                    "image": image.0,
                    "imagePullPolicy": "IfNotPresent",
                    "args": all,
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                }],
            }}},
        }))?;
        let jobs: Api<Job> = Api::namespaced(cluster.client.clone(), cluster.namespace);
        // Left over from a run that failed.
        if jobs.get_opt(name).await?.is_some() {
            let delete = [
                "-n",
                cluster.namespace,
                "delete",
                "job",
                name,
                "--cascade=foreground",
            ];
            cluster.kubectl(&delete).await?;
        }
        jobs.create(&kube::api::PostParams::default(), &job)
            .await
            .with_context(|| format!("cannot create the Job {name}"))?;
        Ok(Self {
            cluster,
            name: name.into(),
        })
    }

    /// What it has printed up to now.
    ///
    /// # Errors
    /// If its pod does not run yet, or the API server does not answer.
    pub async fn lines(&self) -> anyhow::Result<Vec<Line>> {
        let pods = self.pods();
        let params = ListParams::default().labels(&format!("job-name={}", self.name));
        let pod = pods.list(&params).await?.items.into_iter().next();
        let name = pod.and_then(|pod| pod.metadata.name).context("it has no pod")?;
        Ok(report::parse(
            &pods.logs(&name, &kube::api::LogParams::default()).await?,
        ))
    }

    /// Waits until its lines are as asked.
    ///
    /// # Errors
    /// If they are not within `limit`.
    pub async fn seen(
        &self,
        what: &str,
        limit: Duration,
        enough: impl Fn(&[Line]) -> bool,
    ) -> anyhow::Result<Vec<Line>> {
        wait::until(what, limit, || async {
            let lines = self.lines().await?;
            Ok(if enough(&lines) {
                Look::Done(lines)
            } else {
                Look::NotYet(format!("{:?}", lines.last()))
            })
        })
        .await
    }

    /// Waits until it ends, and returns its lines.
    ///
    /// # Errors
    /// If it fails, or not within `limit`.
    pub async fn finished(&self, limit: Duration) -> anyhow::Result<Vec<Line>> {
        let jobs: Api<Job> = Api::namespaced(self.cluster.client.clone(), self.cluster.namespace);
        let what = format!("the Job {} is done", self.name);
        let succeeded = wait::until(&what, limit, || async {
            let status = jobs.get(&self.name).await?.status.unwrap_or_default();
            Ok(match (status.succeeded, status.failed) {
                (Some(1..), _) => Look::Done(true),
                (_, Some(1..)) => Look::Done(false),
                _ => Look::NotYet(format!("{:?}", self.lines().await?.last())),
            })
        })
        .await?;
        let lines = self.lines().await.context("cannot read the loader's lines")?;
        if !succeeded {
            bail!(
                "the Job {} failed; its last lines: {:#?}",
                self.name,
                tail(&lines)
            );
        }
        Ok(lines)
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.cluster.client.clone(), self.cluster.namespace)
    }
}

/// The last lines, for messages.
fn tail(lines: &[Line]) -> &[Line] {
    &lines[lines.len().saturating_sub(5)..]
}
