//! Pods that are killed, all pods gone, no operator.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};
use dynamo_e2e::{
    cluster::Cluster,
    forward,
    loader::{Loader, RECORDS},
    records,
    report::Line,
    wait::{self, Look},
};
use dynamo_proto::admin as pb;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use crate::{Suite, data, placement, seconds, told};

/// Keys whose copies are compared before and after.
const COMPARED: usize = 100;

/// K11: its copies are the same, and so is the ring; only its incarnation may be another.
pub(crate) async fn k11_a_killed_pod_returns_with_its_data_and_the_same_ring(
    suite: &Suite,
) -> anyhow::Result<()> {
    let cluster = &suite.cluster;
    let before = identities(&cluster.members().await?);
    let victim = before.keys().next().context("there are no pods")?.clone();
    let (ring, copies) = (
        placement::ring_of(cluster, &victim).await?.ring().version(),
        copies(suite, &victim).await?,
    );
    ensure!(
        copies.len() == COMPARED,
        "{victim} has {} of {COMPARED} keys",
        copies.len()
    );
    let began = std::time::Instant::now();
    kill(cluster, &[&victim]).await?;
    returned(cluster, &before, &[&victim]).await?;
    told(&format!(
        "{victim} was killed and is ready again after {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    let after = placement::ring_of(cluster, &victim).await?.ring().version();
    ensure!(after == ring, "the ring was {ring:?} and is {after:?}");
    let now = self::copies(suite, &victim).await?;
    ensure!(now == copies, "the copies of {victim} have changed");
    ready(cluster).await
}

/// K19: nodes start in any order and find each other, with nobody's help.
pub(crate) async fn k19_all_pods_deleted_at_once_return_with_the_data(suite: &Suite) -> anyhow::Result<()> {
    let cluster = &suite.cluster;
    let before = identities(&cluster.members().await?);
    let all: Vec<&str> = before.keys().map(String::as_str).collect();
    let ring = placement::ring_of(cluster, all[0]).await?.ring().version();
    let began = std::time::Instant::now();
    kill(cluster, &all).await?;
    returned(cluster, &before, &all).await?;
    ready(cluster).await?;
    told(&format!(
        "all were killed, and the cluster is Ready again after {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    let after = placement::ring_of(cluster, all[0]).await?.ring().version();
    ensure!(after == ring, "the ring was {ring:?} and is {after:?}");
    let args = ["verify", "--file", RECORDS, "--bucket", data::BUCKET];
    let verify = Loader::start(cluster, &suite.image, "verify-all-killed", "", &args).await?;
    data::all_there(&verify.finished(seconds(90)).await?, suite.records)
}

/// K35 in part: without an operator requests go on, also through the loss and return of a pod with another address.
pub(crate) async fn k35_data_are_served_without_the_operator(suite: &Suite) -> anyhow::Result<()> {
    let cluster = &suite.cluster;
    operators(cluster, "0").await?;
    let result = served(suite).await;
    operators(cluster, "1").await?;
    result?;
    ready(cluster).await
}

async fn served(suite: &Suite) -> anyhow::Result<()> {
    let cluster = &suite.cluster;
    let before = identities(&cluster.members().await?);
    let victim = before.keys().next_back().context("there are no pods")?.clone();
    let args = ["steady", "--bucket", "no-operator", "--seconds", "25"];
    let loader = Loader::start(cluster, &suite.image, "no-operator", "", &args).await?;
    loader
        .seen("the load runs", seconds(40), |lines| {
            lines
                .iter()
                .any(|line| matches!(line, Line::Second { ops: 1.., .. }))
        })
        .await?;
    kill(cluster, &[&victim]).await?;
    let killed_ms = dynamo_e2e::report::now_ms();
    returned(cluster, &before, &[&victim]).await?;
    let lines = loader.finished(seconds(60)).await?;
    check(&lines, killed_ms)
}

/// No acknowledged write is missing, and nothing failed but in the 5 s after a fault.
pub(crate) fn check(lines: &[Line], fault_ms: u64) -> anyhow::Result<()> {
    let mut looks = 0;
    for line in lines {
        match line {
            Line::Failure { at_ms, .. } if !(fault_ms..fault_ms + 5_000).contains(at_ms) => {
                bail!(
                    "an operation failed {} ms after the fault: {line:?}",
                    i128::from(*at_ms) - i128::from(fault_ms)
                );
            }
            Line::Verified {
                missing, unreadable, ..
            } => {
                ensure!(*missing == 0 && *unreadable == 0, "{line:?}");
                looks += 1;
            }
            _ => {}
        }
    }
    let Some(Line::Done {
        ops,
        acknowledged,
        failures,
    }) = lines.last()
    else {
        bail!("the load did not end: {:?}", lines.last());
    };
    ensure!(
        *acknowledged > 100 && looks >= 2,
        "too little was done: {acknowledged} writes, {looks} looks"
    );
    let seconds = lines.iter().filter_map(|line| match line {
        Line::Second { ops, slowest_ms, .. } => Some((*ops, *slowest_ms)),
        _ => None,
    });
    let seconds: Vec<_> = seconds.collect();
    // The rate is 100 a second; a busy machine may not keep it, but a load that stands still shows nothing.
    ensure!(
        *ops >= 50 * seconds.len() as u64,
        "only {ops} operations in {} s",
        seconds.len()
    );
    let (fewest, slowest_ms) = seconds
        .into_iter()
        .fold((u64::MAX, 0), |(fewest, slowest), (ops, ms)| {
            (fewest.min(ops), slowest.max(ms))
        });
    told(&format!(
        "{ops} operations, {failures} failed within 5 s of the fault, {acknowledged} writes acknowledged and found; \
         slowest operation {slowest_ms} ms, fewest operations in a second {fewest}"
    ));
    Ok(())
}

/// Waits until the DynamoCluster is Ready.
pub(crate) async fn ready(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.ready(seconds(120)).await
}

/// Name and uid.
fn identities(pods: &[Pod]) -> BTreeMap<String, String> {
    pods.iter()
        .map(|pod| (pod.name_any(), pod.uid().unwrap_or_default()))
        .collect()
}

/// Deletes pods without any grace.
async fn kill(cluster: &Cluster, pods: &[&str]) -> anyhow::Result<()> {
    let mut args = vec!["-n", cluster.namespace, "delete", "pod", "--wait=false"];
    args.extend(["--grace-period=0", "--force"]);
    args.extend(pods);
    cluster.kubectl(&args).await.map(drop)
}

/// Waits until there are other pods of these names, and they are ready.
async fn returned(
    cluster: &Cluster,
    before: &BTreeMap<String, String>,
    names: &[&str],
) -> anyhow::Result<()> {
    wait::until("the killed pods are ready again", seconds(120), || async {
        let pods = cluster.members().await?;
        let waiting: Vec<String> = names
            .iter()
            .filter(|name| {
                !pods.iter().any(|pod| {
                    pod.name_any() == **name && pod.uid().as_ref() != before.get(**name) && is_ready(pod)
                })
            })
            .map(ToString::to_string)
            .collect();
        Ok(if waiting.is_empty() {
            Look::Done(())
        } else {
            Look::NotYet(format!("not ready: {}", waiting.join(", ")))
        })
    })
    .await
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

/// Sets the number of operators, and waits until it is so.
async fn operators(cluster: &Cluster, count: &str) -> anyhow::Result<()> {
    let replicas = format!("--replicas={count}");
    cluster
        .kubectl(&["-n", cluster.system, "scale", "deployment", "--all", &replicas])
        .await?;
    wait::until("the operators are as many as asked", seconds(60), || async {
        let phases = [
            "-n",
            cluster.system,
            "get",
            "pods",
            "-o",
            "jsonpath={.items[*].status.containerStatuses[*].ready}",
        ];
        let ready = cluster.kubectl(&phases).await?;
        let expected = if count == "0" { "" } else { "true" };
        Ok(if ready.trim() == expected {
            Look::Done(())
        } else {
            Look::NotYet(ready)
        })
    })
    .await
}

/// The digests of this member's own copies of some records.
async fn copies(suite: &Suite, member: &str) -> anyhow::Result<BTreeMap<String, u64>> {
    let (_forward, mut admin) = forward::admin(&suite.cluster, member).await?;
    let (_, records) = records::collect().await?;
    let mut copies = BTreeMap::new();
    for record in records.iter().step_by(records.len() / COMPARED).take(COMPARED) {
        let request = pb::LocalGetRequest {
            bucket: data::BUCKET.into(),
            key: record.key.clone().into_bytes().into(),
        };
        let state = admin
            .local_get(request)
            .await
            .with_context(|| format!("{member} does not show its copy"))?
            .into_inner()
            .state
            .unwrap_or_default();
        if state.present {
            copies.insert(record.key.clone(), state.digest);
        }
    }
    Ok(copies)
}
