//! What happens to a cluster that serves.

use dynamo_operator::{controller::names, crd::DynamoCluster};
use dynamo_operator_sim::{
    nodes::Volume,
    world::{Operator, World, message, ready_reason, truth},
};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use kube::{
    ResourceExt as _,
    api::{DeleteParams, ListParams, PatchParams},
};
use serde_json::json;

use super::world;

async fn kill(world: &World, pod: &str) {
    world
        .api::<Pod>()
        .delete(pod, &DeleteParams::default())
        .await
        .unwrap();
}

async fn pass(world: &World, operator: &Operator) {
    operator.pass(&world.get("demo").await).await.unwrap();
}

/// K11, K18: pods fail, stay away and come back with other addresses: same members, same ring, nothing asked of nodes.
#[tokio::test]
async fn k11_k18_pods_fail_and_return_and_the_ring_stays() {
    let (world, operator) = world::serving("fail", json!({})).await;
    let ring = world.status("demo").await.ring;
    let asked = |operator: &Operator| {
        operator
            .faults
            .writes()
            .iter()
            .filter(|w| w.starts_with("join") || w.starts_with("boot"))
            .count()
    };
    let before = asked(&operator);
    for pod in ["demo-a-0", "demo-b-0", "demo-c-0"] {
        let old = world.ip(pod).await;
        kill(&world, pod).await;
        world.nodes.stop(old);
        for _ in 0..5 {
            pass(&world, &operator).await;
            let status = world.status("demo").await;
            assert_eq!(truth(&status, "Ready"), "False");
            assert_eq!(truth(&status, "QuorumAvailable"), "True");
            assert_eq!(status.ring, ring);
        }
        world.kubelet.turn().await;
        world.drive(&operator, "demo", "AllMembersValid").await;
        assert_ne!(world.ip(pod).await, old);
    }
    assert_eq!(world.status("demo").await.ring, ring);
    assert_eq!(asked(&operator), before);
}

/// K19: all pods at once.
#[tokio::test]
async fn k19_all_pods_deleted_at_once_come_back_without_the_operator_doing_anything() {
    let (world, operator) = world::serving("all", json!({})).await;
    let ring = world.status("demo").await.ring;
    for pod in world.pods().await {
        kill(&world, &pod.name_any()).await;
    }
    pass(&world, &operator).await;
    assert_eq!(truth(&world.status("demo").await, "Ready"), "False");
    let writes = operator.faults.writes();
    for _ in 0..3 {
        world.kubelet.turn().await;
    }
    world.drive(&operator, "demo", "AllMembersValid").await;
    assert_eq!(world.status("demo").await.ring, ring);
    let since = &operator.faults.writes()[writes.len()..];
    let only_news = since
        .iter()
        .all(|write| write.contains("/status") || write.contains("/events"));
    assert!(only_news, "{since:?}");
    assert_eq!((world.nodes.rings_minted(), world.nodes.bootstraps()), (1, 1));
}

/// K1: a zone cut off keeps every quorum, two lose it, and both are told with the zones' names.
#[tokio::test]
async fn k1_quorum_lost_and_restored_are_told_with_names() {
    let (world, operator) = world::serving("quorum", json!({})).await;
    world.nodes.cut_off(world.ip("demo-b-0").await);
    pass(&world, &operator).await;
    let status = world.status("demo").await;
    assert_eq!(
        (truth(&status, "Ready"), truth(&status, "QuorumAvailable")),
        ("False", "True")
    );
    assert!(
        message(&status, "Ready").contains("demo-b-0 (zone b)"),
        "{}",
        message(&status, "Ready")
    );
    world.nodes.cut_off(world.ip("demo-c-0").await);
    pass(&world, &operator).await;
    let status = world.status("demo").await;
    assert_eq!(
        (ready_reason(&status), truth(&status, "QuorumAvailable")),
        ("QuorumLost", "False")
    );
    let text = message(&status, "QuorumAvailable");
    assert!(
        text.contains("256 of 256") && text.contains("zone b") && text.contains("zone c"),
        "{text}"
    );
    world.nodes.heal();
    pass(&world, &operator).await;
    assert_eq!(ready_reason(&world.status("demo").await), "AllMembersValid");
    world
        .happened(&["Warning QuorumLost", "Normal QuorumRestored"])
        .await;
}

/// A lost volume: the pod comes back with an empty one and joins under its old name; no ring is minted.
#[tokio::test]
async fn a_lost_volume_joins_again() {
    let (world, operator) = world::serving("lost", json!({})).await;
    let ring = world.status("demo").await.ring;
    world
        .nodes
        .set_volume(&world.claim_uid("data-demo-b-0").await, Volume::default());
    world.drive(&operator, "demo", "Joining").await;
    world.drive(&operator, "demo", "AllMembersValid").await;
    let volume = world
        .nodes
        .volume(&world.claim_uid("data-demo-b-0").await)
        .unwrap();
    let (_, member, zone) = volume.identity.unwrap();
    assert_eq!((member.as_str(), zone.as_str()), ("demo-b-0", "b"));
    assert_eq!(world.status("demo").await.ring, ring);
    assert_eq!(world.nodes.bootstraps(), 1);
}

/// All volumes lost at once: nothing is minted over the loss.
#[tokio::test]
async fn k2_when_every_volume_is_lost_no_new_ring_hides_it() {
    let (world, operator) = world::serving("gone", json!({})).await;
    for zone in ["a", "b", "c"] {
        world.nodes.set_volume(
            &world.claim_uid(&format!("data-demo-{zone}-0")).await,
            Volume::default(),
        );
    }
    world.drive(&operator, "demo", "VolumesLost").await;
    assert_eq!(truth(&world.status("demo").await, "Stalled"), "True");
    assert_eq!(world.nodes.bootstraps(), 1);
}

/// K12: a change of configuration reaches every pod, one at a time, and only while the others serve.
#[tokio::test]
async fn k12_a_change_restarts_pods_one_by_one() {
    let (world, operator) = world::serving("roll", json!({})).await;
    let uids = |pods: Vec<Pod>| pods.into_iter().map(|pod| pod.uid().unwrap()).collect::<Vec<_>>();
    let before = uids(world.pods().await);
    world.change("demo", json!({"logLevel": "debug"})).await.unwrap();
    for _ in 0..30 {
        pass(&world, &operator).await;
        let deleting = world
            .pods()
            .await
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_some())
            .count();
        assert!(deleting <= 1, "{deleting} pods were stopped at once");
        // A second pass at once changes nothing: a pod is down.
        pass(&world, &operator).await;
        let again = world
            .pods()
            .await
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_some())
            .count();
        assert!(again <= 1);
        world.kubelet.turn().await;
        let status = world.status("demo").await;
        if uids(world.pods().await).iter().all(|uid| !before.contains(uid))
            && truth(&status, "Ready") == "True"
            && truth(&status, "Reconciling") == "False"
        {
            break;
        }
    }
    let after = world.pods().await;
    assert!(after.iter().all(|pod| !before.contains(&pod.uid().unwrap())));
    let config = world.api::<ConfigMap>().get("demo-config").await.unwrap();
    assert!(config.data.unwrap()["dynamo.yaml"].contains("level: debug"));
    assert_eq!(world.nodes.bootstraps(), 1);
    world.happened(&["Normal RollingRestart"]).await;
}

/// A bad image stops at the first pod with all quorums intact; putting it right needs no further help.
#[tokio::test]
async fn k12_a_bad_image_stops_at_one_pod_and_is_taken_back() {
    let (world, operator) = world::serving("image", json!({"image": "good:1"})).await;
    world.change("demo", json!({"image": "bad:2"})).await.unwrap();
    for _ in 0..8 {
        let _ = operator.pass(&world.get("demo").await).await;
        world.kubelet.turn().await;
    }
    let status = world.status("demo").await;
    assert_eq!(
        (status.ready_members, truth(&status, "QuorumAvailable")),
        (2, "True")
    );
    assert!(
        message(&status, "Ready").contains("ErrImagePull"),
        "{}",
        message(&status, "Ready")
    );
    world.change("demo", json!({"image": "good:1"})).await.unwrap();
    for _ in 0..8 {
        let _ = operator.pass(&world.get("demo").await).await;
        world.kubelet.turn().await;
    }
    let status = world.status("demo").await;
    assert_eq!(
        (ready_reason(&status), truth(&status, "Reconciling")),
        ("AllMembersValid", "False")
    );
}

/// K23: a paused cluster is watched and reported on, and nothing of it is written.
#[tokio::test]
async fn k23_paused_means_hands_off() {
    let (world, operator) = world::serving("paused", json!({})).await;
    world
        .change("demo", json!({"paused": true, "logLevel": "trace"}))
        .await
        .unwrap();
    pass(&world, &operator).await;
    world
        .api::<ConfigMap>()
        .delete("demo-config", &DeleteParams::default())
        .await
        .unwrap();
    kill(&world, "demo-a-0").await;
    let writes = operator.faults.writes().len();
    for _ in 0..3 {
        pass(&world, &operator).await;
    }
    let since = &operator.faults.writes()[writes..];
    assert!(
        since
            .iter()
            .all(|write| write.contains("/status") || write.contains("/events")),
        "{since:?}"
    );
    assert_eq!(ready_reason(&world.status("demo").await), "Paused");
    world.change("demo", json!({"paused": false})).await.unwrap();
    world.kubelet.turn().await;
    pass(&world, &operator).await;
    world.api::<ConfigMap>().get("demo-config").await.unwrap();
}

/// K15: volumes stay when the cluster goes, and one of the same name takes them over with their ring.
#[tokio::test]
async fn k15_volumes_outlive_the_cluster_and_are_taken_over() {
    let (world, operator) = world::serving("retain", json!({})).await;
    let first = world.get("demo").await;
    let ring = world.status("demo").await.ring;
    world
        .api::<DynamoCluster>()
        .delete("demo", &DeleteParams::default())
        .await
        .unwrap();
    world.kubelet.collect_garbage(&first.uid().unwrap()).await;
    let claims = world
        .api::<PersistentVolumeClaim>()
        .list(&ListParams::default())
        .await
        .unwrap();
    assert_eq!(claims.items.len(), 3);

    world.create("demo", json!({})).await.unwrap();
    world.drive(&operator, "demo", "AllMembersValid").await;
    let second = world.get("demo").await;
    assert_ne!(second.uid(), first.uid());
    assert_eq!(
        second.annotations()[names::CLUSTER_ID],
        first.annotations()[names::CLUSTER_ID]
    );
    assert_eq!(second.status.unwrap().ring, ring);
    assert_eq!((world.nodes.rings_minted(), world.nodes.bootstraps()), (1, 1));
}

/// With storage.whenDeleted: Delete the claims go with the cluster; a change of mind is followed.
#[tokio::test]
async fn k15_claims_follow_when_deleted() {
    let (world, operator) = world::serving("delete", json!({"storage": {"whenDeleted": "Delete"}})).await;
    pass(&world, &operator).await;
    let owners = || async {
        let claims = world
            .api::<PersistentVolumeClaim>()
            .list(&ListParams::default())
            .await
            .unwrap();
        claims
            .iter()
            .map(|claim| claim.owner_references().len())
            .collect::<Vec<_>>()
    };
    assert_eq!(owners().await, [1, 1, 1]);
    world
        .change("demo", json!({"storage": {"whenDeleted": "Retain"}}))
        .await
        .unwrap();
    pass(&world, &operator).await;
    assert_eq!(owners().await, [0, 0, 0]);
    world
        .change("demo", json!({"storage": {"whenDeleted": "Delete"}}))
        .await
        .unwrap();
    pass(&world, &operator).await;
    let uid = world.get("demo").await.uid().unwrap();
    world
        .api::<DynamoCluster>()
        .delete("demo", &DeleteParams::default())
        .await
        .unwrap();
    world.kubelet.collect_garbage(&uid).await;
    assert_eq!(owners().await, [] as [usize; 0]);
}

/// A larger size reaches the claims, or the status says who refused it.
#[tokio::test]
async fn a_volume_that_cannot_grow_is_told() {
    let (world, operator) = world::serving("grow", json!({})).await;
    world
        .change("demo", json!({"storage": {"size": "2Gi"}}))
        .await
        .unwrap();
    let error = operator
        .pass(&world.get("demo").await)
        .await
        .unwrap_err()
        .to_string();
    // No provisioner has made these, so the API server refuses to resize them.
    assert!(error.contains("claim data-demo-a-0"), "{error}");
    let status = world.status("demo").await;
    assert_eq!(
        (ready_reason(&status), truth(&status, "Stalled")),
        ("VolumeNotChanged", "True")
    );
    assert_eq!(truth(&status, "QuorumAvailable"), "True");
}

/// A k8s node that loses its zone, or changes it, never changes the cluster's zones.
#[tokio::test]
async fn k4_zones_are_remembered() {
    let (world, operator) = world::serving("zones", json!({})).await;
    let layout = world.get("demo").await.annotations()[names::LAYOUT].clone();
    let cluster = world.get("demo").await;
    // The annotation is lost: it is found again from the StatefulSets.
    let lost = json!({"metadata": {"annotations": {names::LAYOUT: null, names::CLUSTER_ID: null}}});
    let api = world.api::<DynamoCluster>();
    api.patch("demo", &PatchParams::default(), &kube::api::Patch::Merge(lost))
        .await
        .unwrap();
    pass(&world, &operator).await;
    let after = world.get("demo").await;
    assert_eq!(after.annotations()[names::LAYOUT], layout);
    assert_eq!(
        after.annotations()[names::CLUSTER_ID],
        cluster.annotations()[names::CLUSTER_ID]
    );
    pass(&world, &operator).await;
    assert_eq!(ready_reason(&world.status("demo").await), "AllMembersValid");
}
