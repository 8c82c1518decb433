//! Installing, making a cluster, and taking both away.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use dynamo_e2e::{
    loader::{Loader, RECORDS},
    wait::{self, Look},
};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, ResourceExt as _};

use crate::{Suite, data, seconds, told};

const SAMPLE: &str = "operator/samples/dynamocluster.yaml";
const RELEASE: &str = "dynamo";

/// Both namespaces are made to enforce the strictest pod security (K32).
pub(crate) async fn helm_installs_the_operator(suite: &Suite) -> anyhow::Result<()> {
    let cluster = &suite.cluster;
    for namespace in [cluster.system, cluster.namespace] {
        vanished(suite, namespace).await?;
        let manifest = format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}, labels: {{\
             pod-security.kubernetes.io/enforce: restricted}}}}}}"
        );
        let apply = ["apply", "-f", "-"];
        cluster
            .kubectl_with(&apply, Some(&manifest), seconds(30))
            .await?
            .ok()?;
    }
    let mut args = vec!["upgrade", "--install", RELEASE, "charts/dynamo-operator"];
    args.extend(["--namespace", cluster.system, "--wait", "--timeout", "120s"]);
    // A cluster that is not ours may need images from elsewhere: --set image.repository=... and so on.
    let more = std::env::var("DYNAMO_HELM_ARGS").unwrap_or_default();
    args.extend(more.split_whitespace());
    let notes = cluster.helm(&args, seconds(130)).await?;
    ensure!(
        notes.contains("kubectl") && notes.contains("demo-client"),
        "the notes should tell what to do next: {notes}"
    );
    let deployment = [
        "-n",
        cluster.system,
        "get",
        "deployment",
        "-o",
        "jsonpath={.items[0].status.availableReplicas}",
    ];
    let available = cluster.kubectl(&deployment).await?;
    ensure!(
        available == "1",
        "Helm waited, but {available:?} operators are there"
    );
    Ok(())
}

pub(crate) async fn k1_ten_lines_become_a_ready_cluster(suite: &Suite) -> anyhow::Result<()> {
    let cluster = &suite.cluster;
    let lines = std::fs::read_to_string(dynamo_e2e::cluster::root().join(SAMPLE))?
        .lines()
        .count();
    ensure!(lines <= 10, "the sample has {lines} lines");
    let took = apply_and_wait(suite).await?;
    told(&format!("from kubectl apply to Ready: {took:.1} s"));
    told(&cluster.kubectl(&["-n", cluster.namespace, "get", "dync"]).await?);
    let wide = cluster
        .kubectl(&["-n", cluster.namespace, "get", "dync", "-o", "wide"])
        .await?;
    for column in [
        "READY", "MEMBERS", "STATUS", "EPOCH", "VERSION", "AGE", "QUORUM", "ENDPOINT",
    ] {
        ensure!(wide.contains(column), "a column {column} is missing: {wide}");
    }
    let lost = [
        "-n",
        cluster.namespace,
        "get",
        "events",
        "--field-selector=reason=QuorumLost",
        "-o",
        "name",
    ];
    let lost = cluster.kubectl(&lost).await?;
    ensure!(
        lost.is_empty(),
        "a quorum was lost while none had been there: {lost}"
    );
    let now = cluster.dynamo_cluster().await?;
    let status = now.status.context("it is Ready without a status")?;
    ensure!(
        status.observed_generation == now.metadata.generation,
        "the status speaks of generation {:?}, the spec is of {:?}",
        status.observed_generation,
        now.metadata.generation
    );
    for (type_, expected) in [
        ("Ready", "True"),
        ("Stalled", "False"),
        ("QuorumAvailable", "True"),
        ("RingBalanced", "True"),
    ] {
        let condition = cluster.condition(type_).await?;
        let well = condition.status == expected
            && !condition.reason.is_empty()
            && !condition.message.is_empty()
            && condition.observed_generation == now.metadata.generation;
        ensure!(well, "{condition:?}");
    }
    Ok(())
}

/// K15, K2: the volumes carry the cluster's id, so that the nodes come back as who they were.
pub(crate) async fn k15_a_deleted_cluster_returns_with_its_volumes(suite: &Suite) -> anyhow::Result<()> {
    let cluster = &suite.cluster;
    let id = cluster
        .dynamo_cluster()
        .await?
        .status
        .unwrap_or_default()
        .cluster_id;
    let volumes = delete_cluster(suite).await?;
    let took = apply_and_wait(suite).await?;
    told(&format!(
        "a new DynamoCluster took the volumes over in {took:.1} s"
    ));
    let now = cluster.dynamo_cluster().await?.status.unwrap_or_default();
    ensure!(
        id.is_some() && now.cluster_id == id,
        "the cluster was {id:?} and is {:?}",
        now.cluster_id
    );
    let after = volume_names(suite).await?;
    ensure!(after == volumes, "the volumes were {volumes:?} and are {after:?}");
    let args = ["verify", "--file", RECORDS, "--bucket", data::BUCKET];
    let verify = Loader::start(cluster, &suite.image, "verify-returned", "", &args).await?;
    data::all_there(&verify.finished(seconds(90)).await?, suite.records)
}

/// K15: `storage.whenDeleted: Retain` is the default.
pub(crate) async fn k15_uninstall_leaves_the_volumes(suite: &Suite) -> anyhow::Result<()> {
    let cluster = &suite.cluster;
    let volumes = delete_cluster(suite).await?;
    ensure!(volumes.len() == 3, "{volumes:?}");
    told(&cluster.kubectl(&["-n", cluster.namespace, "get", "pvc"]).await?);
    for claim in cluster.claims().await? {
        let phase = claim.status.as_ref().and_then(|status| status.phase.clone());
        ensure!(
            phase.as_deref() == Some("Bound"),
            "{} is {phase:?}",
            claim.name_any()
        );
        ensure!(
            claim.annotations().contains_key("dynamo.rs/cluster-id"),
            "{} does not say whose it is",
            claim.name_any()
        );
    }
    let says = cluster
        .helm(
            &["uninstall", RELEASE, "--namespace", cluster.system, "--wait"],
            seconds(90),
        )
        .await?;
    told(&says);
    ensure!(
        says.contains("kept") && says.contains("dynamoclusters.dynamo.rs"),
        "Helm does not say that the CRD stays: {says}"
    );
    cluster
        .kubectl(&["get", "crd", "dynamoclusters.dynamo.rs"])
        .await?;
    let after = volume_names(suite).await?;
    ensure!(after == volumes, "the volumes were {volumes:?} and are {after:?}");
    // A cluster that is not thrown away is left as it was found.
    let delete = [
        "delete",
        "namespace",
        cluster.namespace,
        cluster.system,
        "--wait=false",
    ];
    cluster.kubectl(&delete).await?;
    cluster
        .kubectl(&["delete", "crd", "dynamoclusters.dynamo.rs", "--wait=false"])
        .await?;
    Ok(())
}

/// Waits for a namespace that a run before this one has deleted.
async fn vanished(suite: &Suite, namespace: &str) -> anyhow::Result<()> {
    let namespaces: Api<Namespace> = Api::all(suite.cluster.client.clone());
    wait::until("the old namespace is gone", seconds(90), || async {
        let found = namespaces.get_opt(namespace).await?;
        Ok(match found {
            Some(found) if found.metadata.deletion_timestamp.is_some() => {
                Look::NotYet("it is terminating".into())
            }
            _ => Look::Done(()),
        })
    })
    .await
}

/// Applies the sample; seconds until it is Ready.
async fn apply_and_wait(suite: &Suite) -> anyhow::Result<f64> {
    let cluster = &suite.cluster;
    let began = Instant::now();
    cluster
        .kubectl(&["-n", cluster.namespace, "apply", "-f", SAMPLE])
        .await?;
    let target = format!("dync/{}", cluster.name);
    let args = [
        "-n",
        cluster.namespace,
        "wait",
        "--for=condition=Ready",
        &target,
        "--timeout=180s",
    ];
    cluster.kubectl_with(&args, None, seconds(190)).await?.ok()?;
    Ok(began.elapsed().as_secs_f64())
}

/// Deletes the DynamoCluster, and waits until its pods are gone. Returns its volumes, which must all be there still.
async fn delete_cluster(suite: &Suite) -> anyhow::Result<Vec<String>> {
    let cluster = &suite.cluster;
    let before = volume_names(suite).await?;
    let args = [
        "-n",
        cluster.namespace,
        "delete",
        "dync",
        cluster.name,
        "--timeout=60s",
    ];
    cluster.kubectl_with(&args, None, seconds(70)).await?.ok()?;
    wait::until(
        "the pods of the deleted cluster are gone",
        seconds(90),
        || async {
            let pods = cluster.members().await?;
            Ok(if pods.is_empty() {
                Look::Done(())
            } else {
                Look::NotYet(format!("{} are there", pods.len()))
            })
        },
    )
    .await?;
    let after = volume_names(suite).await?;
    ensure!(after == before, "the volumes were {before:?} and are {after:?}");
    Ok(after)
}

async fn volume_names(suite: &Suite) -> anyhow::Result<Vec<String>> {
    let claims = suite.cluster.claims().await?;
    let volumes = claims.into_iter().filter_map(|claim| claim.spec?.volume_name);
    let mut volumes: Vec<String> = volumes.collect();
    volumes.sort();
    Ok(volumes)
}
