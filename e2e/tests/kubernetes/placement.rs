//! Where members and replicas are, and what their pods may do.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::{Context as _, ensure};
use dynamo_core::{ring::Placement, types::PartitionId};
use dynamo_e2e::{cluster::Cluster, forward};
use dynamo_operator::ring;
use dynamo_proto::admin as pb;
use kube::ResourceExt as _;

use crate::{Suite, told};

/// K4: the zone that the ring has for each member is that of its k8s node. D30: the primaries of every partition are in
/// three zones. Both by every member's own `admin.Ring`.
pub(crate) async fn k4_d30_members_and_replicas_are_spread_over_zones(suite: &Suite) -> anyhow::Result<()> {
    let cluster = &suite.cluster;
    let mut zones = BTreeMap::new();
    let pods = cluster.members().await?;
    for pod in &pods {
        let k8s_node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let zone = cluster
            .zone_of(k8s_node.context("a pod has no k8s node")?)
            .await?;
        ensure!(!zone.is_empty(), "{k8s_node:?} has no zone");
        zones.insert(pod.name_any(), zone);
    }
    ensure!(zones.len() == 3, "{zones:?}");
    let distinct: BTreeSet<&String> = zones.values().collect();
    ensure!(distinct.len() == 3, "members share zones: {zones:?}");
    let mut versions = BTreeSet::new();
    for pod in &pods {
        let placement = ring_of(cluster, &pod.name_any()).await?;
        let ring = placement.ring();
        versions.insert(ring.version());
        let told: BTreeMap<String, String> = ring
            .members()
            .iter()
            .map(|member| (member.id.as_str().into(), member.zone.as_str().into()))
            .collect();
        ensure!(
            told == zones,
            "{} says {told:?}, k8s says {zones:?}",
            pod.name_any()
        );
        for partition in (0..ring.partitions()).map(PartitionId) {
            let primaries = placement.primaries(partition).iter();
            let spread: BTreeSet<&str> = primaries
                .map(|index| ring.members()[usize::from(*index)].zone.as_str())
                .collect();
            ensure!(
                spread.len() == 3,
                "the primaries of {partition:?} are in {spread:?}"
            );
        }
    }
    ensure!(versions.len() == 1, "members have several rings: {versions:?}");
    told(&format!("{zones:?}, all partitions in three zones"));
    Ok(())
}

/// K17, K32: the namespace enforces `restricted`; the pods run in it, and cannot speak with the API server.
pub(crate) async fn k17_k32_nodes_are_restricted_and_have_no_token(suite: &Suite) -> anyhow::Result<()> {
    let cluster = &suite.cluster;
    let enforced = "jsonpath={.metadata.labels.pod-security\\.kubernetes\\.io/enforce}";
    for namespace in [cluster.system, cluster.namespace] {
        let level = cluster
            .kubectl(&["get", "namespace", namespace, "-o", enforced])
            .await?;
        ensure!(level == "restricted", "{namespace} enforces {level:?}");
    }
    for pod in cluster.members().await? {
        let name = pod.name_any();
        let spec = pod.spec.context("a pod has no spec")?;
        ensure!(
            spec.automount_service_account_token == Some(false),
            "{name} mounts a token"
        );
        for volume in spec.volumes.unwrap_or_default() {
            let text = serde_json::to_string(&volume)?;
            ensure!(
                !text.contains("serviceAccountToken") && volume.secret.is_none(),
                "{name}: {text}"
            );
        }
        ensure!(
            spec.security_context.and_then(|context| context.run_as_non_root) == Some(true),
            "{name} may run as root"
        );
        // Nobody may do anything in its name, token or not.
        let account = format!(
            "--as=system:serviceaccount:{}:{}",
            cluster.namespace,
            spec.service_account_name.context("a pod has no account")?
        );
        for (verb, what) in [
            ("get", "pods"),
            ("get", "nodes"),
            ("get", "secrets"),
            ("patch", "dynamoclusters"),
        ] {
            let args = ["-n", cluster.namespace, "auth", "can-i", verb, what, &account];
            let may = cluster
                .kubectl_with(&args, None, crate::seconds(20))
                .await?
                .refused()
                .is_err();
            ensure!(!may, "the account of {name} may {verb} {what}");
        }
    }
    Ok(())
}

/// What a member says of the ring, checked.
pub(crate) async fn ring_of(cluster: &Cluster, pod: &str) -> anyhow::Result<Arc<Placement>> {
    let (_forward, mut admin) = forward::admin(cluster, pod).await?;
    let answer = admin
        .ring(pb::RingRequest {})
        .await
        .with_context(|| format!("{pod} does not tell its ring"))?;
    Ok(ring::read(answer.into_inner())?)
}
