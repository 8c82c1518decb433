//! K6, K9-K11, K34: what was missed, what is old, and what is gone for good removes nobody.

use dynamo_operator::{
    controller::{apply, names},
    crd::DynamoCluster,
};
use dynamo_operator_sim::world::{Simulated, World, message, truth};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{PersistentVolumeClaim, Pod, Service},
};
use kube::{
    ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

async fn serving(members: u32) -> World {
    let spec = json!({"members": members, "ring": {"partitions": 16}});
    Simulated::serving(spec).await.world
}

async fn uids(world: &World) -> Vec<Option<String>> {
    world.pods().await.iter().map(kube::ResourceExt::uid).collect()
}

async fn kill(world: &World, pod: &str) {
    let now = DeleteParams::default();
    world.api::<Pod>().delete(pod, &now).await.unwrap();
}

/// c2: marks that somebody left from an earlier life, or put at another place than the pod that they mean.
#[tokio::test(start_paused = true)]
async fn s_marks_of_an_earlier_life_remove_nobody() {
    let world = serving(4).await;
    let (pods, claims) = (uids(&world).await, world.claims().await);
    let params = PatchParams::default();
    let left =
        Patch::Merge(json!({"metadata": {"annotations": {names::LEFT: "1", names::EVACUATE: "true"}}}));
    world
        .api::<PersistentVolumeClaim>()
        .patch("data-demo-a-1", &params, &left)
        .await
        .unwrap();
    world
        .api::<StatefulSet>()
        .patch("demo-a", &params, &left)
        .await
        .unwrap();
    world
        .api::<Service>()
        .patch("demo-nodes", &params, &left)
        .await
        .unwrap();
    let operator = world.operator();
    world.rounds(&operator, 6).await;
    assert_eq!(
        (uids(&world).await, world.claims().await),
        (pods, claims),
        "and the mark is taken off"
    );

    // A pod that was to be evacuated and was made anew meanwhile is another.
    world.evacuate("demo-b-0").await;
    kill(&world, "demo-b-0").await;
    world.kubelet.turn().await;
    world.settle(&operator).await;
    world.rounds(&operator, 6).await;
    assert_eq!(world.nodes.proposed(), Vec::<Vec<String>>::new());
}

/// c2: who is to leave is down: before the change, which waits, and in the middle of it.
#[tokio::test(start_paused = true)]
async fn s_a_member_that_is_to_leave_and_does_not_answer_is_waited_for() {
    let world = serving(5).await;
    let operator = world.operator();
    world.nodes.cut_off(world.ip("demo-a-1").await);
    world.members(3).await;
    world.rounds(&operator, 8).await;
    let status = world.status("demo").await;
    assert_eq!((world.pods().await.len(), world.nodes.proposed().len()), (5, 0));
    assert!(
        message(&status, "Ready").contains("demo-a-1"),
        "{}",
        message(&status, "Ready")
    );

    world.nodes.heal();
    world.nodes.hold(true);
    world.drive(&operator, "demo", "RingChanging").await;
    world.nodes.cut_off(world.ip("demo-b-1").await);
    world.nodes.hold(false);
    world.rounds(&operator, 8).await;
    assert_eq!(world.pods().await.len(), 5);
    assert!(world.status("demo").await.transition.is_some());
    world.nodes.heal();
    world.settle(&operator).await;
    assert_eq!(world.nodes.proposed().len(), 1);
}

/// c2: a pod and its claim are gone before anybody has seen them go; the member comes back empty, and nobody else is touched.
#[tokio::test(start_paused = true)]
async fn s_a_pod_and_its_claim_that_nobody_saw_go_come_back_empty() {
    let world = serving(3).await;
    let (operator, claims) = (world.operator(), world.claims().await);
    let ring = world.status("demo").await.ring;
    let bound = world.api::<PersistentVolumeClaim>();
    bound
        .delete("data-demo-b-0", &DeleteParams::default())
        .await
        .unwrap();
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    bound
        .patch("data-demo-b-0", &PatchParams::default(), &free)
        .await
        .unwrap();
    world.kubelet.end(&world.pod("demo-b-0").await).await;
    world.rounds(&operator, 1).await;
    assert_eq!(truth(&world.status("demo").await, "Ready"), "False");
    world.settle(&operator).await;
    let after = world.claims().await;
    for (old, new) in claims.iter().zip(&after) {
        assert_eq!(old.1 != new.1, old.0 == "data-demo-b-0", "{old:?} {new:?}");
    }
    let (_, member, zone) = world.nodes.volume(&after[1].1).unwrap().identity.unwrap();
    assert_eq!((member.as_str(), zone.as_str()), ("demo-b-0", "b"));
    assert_eq!(world.status("demo").await.ring, ring);
    assert_eq!((world.nodes.bootstraps(), world.nodes.proposed().len()), (1, 0));
}

/// c2: a k8s node is heard of no more, and its pod ends never. The operator does not end it by force: a node may be at work
/// there. Once Kubernetes has taken it away, it comes back.
#[tokio::test(start_paused = true)]
async fn s_a_pod_that_ends_never_is_not_ended_by_force() {
    let world = serving(4).await;
    let operator = world.operator();
    let pod = world.pod("demo-b-0").await;
    world.kubelet.unheard.lock().unwrap().insert("demo-b-0".into());
    world.nodes.stop(world.ip("demo-b-0").await);
    kill(&world, "demo-b-0").await;
    // Not even when it is to be restarted, or to leave.
    world
        .change("demo", json!({"logLevel": "debug", "members": 3}))
        .await
        .unwrap();
    world.rounds(&operator, 10).await;
    assert_eq!(world.pod("demo-b-0").await.uid(), pod.uid());
    let deletes: Vec<String> = operator
        .faults
        .writes()
        .into_iter()
        .filter(|write| write.starts_with("DELETE"))
        .collect();
    assert_eq!(deletes, [] as [String; 0]);
    let status = world.status("demo").await;
    assert_eq!(
        (truth(&status, "Ready"), truth(&status, "QuorumAvailable")),
        ("False", "True")
    );
    assert!(
        message(&status, "Ready").contains("demo-b-0"),
        "{}",
        message(&status, "Ready")
    );

    world.kubelet.unheard.lock().unwrap().clear();
    world.settle(&operator).await;
    assert_eq!(world.pods().await.len(), 3);
}

/// c2: between a look and the word about it, the DynamoCluster is deleted and another of its name is created. What is said of
/// the first, its ring above all, is not said of the second, which would wait for that ring for ever.
#[tokio::test(start_paused = true)]
async fn k34_a_status_is_not_written_on_another_cluster_of_the_same_name() {
    let world = serving(3).await;
    let old = world.get("demo").await;
    world
        .api::<DynamoCluster>()
        .delete("demo", &DeleteParams::default())
        .await
        .unwrap();
    world.kubelet.collect_garbage(&old.uid().unwrap()).await;
    world.create("demo", json!({"members": 4})).await.unwrap();
    let mut status = old.status.clone().unwrap();
    status.ready_members = 2;
    let operator = world.operator();
    let client = &operator.context.client;
    assert!(!apply::patch_status(client, &old, &status).await.unwrap());
    assert_eq!(
        serde_json::to_value(world.get("demo").await.status).unwrap(),
        Value::Null
    );
    assert_eq!(operator.faults.writes(), [] as [String; 0]);
}
