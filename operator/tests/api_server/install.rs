//! From a spec to a serving cluster, once and no more.

use dynamo_operator::{
    controller::{apply, build, names, observe, plan, validate},
    crd::DynamoCluster,
};
use dynamo_operator_sim::world::{message, ready_reason, truth};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PatchParams, PostParams},
};
use serde_json::json;

use super::world;

/// K1, K2, K4, K32: the sample comes to Ready under the chart's RBAC, in a namespace that enforces the restricted
/// profile, and every object is taken by a real API server.
#[tokio::test]
async fn k1_k2_k4_k32_the_sample_comes_to_ready() {
    let world = world::new("install").await;
    world.create("demo", json!({"members": 6})).await.unwrap();
    let operator = world.operator();
    world.drive(&operator, "demo", "AllMembersValid").await;

    let status = world.status("demo").await;
    for (condition, expected) in [
        ("Ready", "True"),
        ("Reconciling", "False"),
        ("Stalled", "False"),
        ("QuorumAvailable", "True"),
        ("RingBalanced", "True"),
    ] {
        assert_eq!(truth(&status, condition), expected, "{condition}");
    }
    assert_eq!((status.members, status.ready_members), (6, 6));
    assert_eq!(world.nodes.rings_minted(), 1);
    assert_eq!(world.nodes.bootstraps(), 1);

    let sets: Vec<String> = world
        .api::<StatefulSet>()
        .list(&ListParams::default())
        .await
        .unwrap()
        .iter()
        .map(ResourceExt::name_any)
        .collect();
    assert_eq!(sets, ["demo-a", "demo-b", "demo-c"]);
    for pod in world.pods().await {
        let volume = world
            .nodes
            .volume(&world.claim_uid(&names::claim(&pod.name_any())).await)
            .unwrap();
        let (_, member, zone) = volume.identity.unwrap();
        assert_eq!(member, pod.name_any());
        assert_eq!(
            format!("worker-{zone}"),
            pod.spec.unwrap().node_name.unwrap(),
            "the zone is its k8s node's"
        );
    }
    let services: Vec<String> = world
        .api::<Service>()
        .list(&ListParams::default())
        .await
        .unwrap()
        .iter()
        .map(ResourceExt::name_any)
        .collect();
    assert_eq!(services, ["demo-client", "demo-nodes"]);
    let budget = world.api::<PodDisruptionBudget>().get("demo").await.unwrap();
    assert_eq!(
        serde_json::to_value(budget.spec.unwrap().max_unavailable).unwrap(),
        json!(1)
    );
    let account = world.api::<ServiceAccount>().get("demo-node").await.unwrap();
    assert_eq!(account.automount_service_account_token, Some(false));
    let id = world.get("demo").await.annotations()[names::CLUSTER_ID].clone();
    assert_eq!(status.cluster_id.as_deref(), Some(id.as_str()));

    world
        .happened(&[
            "Normal Founded",
            "Normal WaitingForPods",
            "Normal Bootstrapped",
            "Normal NodeJoined",
            "Normal AllMembersValid",
        ])
        .await;
}

/// A steady cluster costs no write: neither requests nor changed versions.
#[tokio::test]
async fn a_steady_cluster_costs_no_writes() {
    let (world, operator) = world::serving(
        "steady",
        json!({"resources": {"limits": {"cpu": "1000m", "memory": "1024Mi"}}}),
    )
    .await;
    for _ in 0..3 {
        operator.pass(&world.get("demo").await).await.unwrap();
    }
    let (versions, writes) = (world.versions().await, operator.faults.writes().len());
    for _ in 0..20 {
        operator.pass(&world.get("demo").await).await.unwrap();
    }
    // Another operator has nothing to say either, though it remembers nothing.
    let other = world.operator();
    for _ in 0..5 {
        other.pass(&world.get("demo").await).await.unwrap();
    }
    assert_eq!(operator.faults.writes()[writes..], [] as [String; 0]);
    assert_eq!(other.faults.writes(), [] as [String; 0]);
    assert_eq!(world.versions().await, versions);
}

/// What somebody changed by hand is put right; what somebody added is left alone.
#[tokio::test]
async fn drift_is_put_right_and_additions_are_left() {
    let (world, operator) = world::serving("drift", json!({})).await;
    let sets = world.api::<StatefulSet>();
    let drift = json!({"metadata": {"annotations": {"example.net/mine": "x"}}, "spec": {"replicas": 5}});
    sets.patch("demo-a", &PatchParams::default(), &kube::api::Patch::Merge(drift))
        .await
        .unwrap();
    operator.pass(&world.get("demo").await).await.unwrap();
    let set = sets.get("demo-a").await.unwrap();
    assert_eq!(set.spec.as_ref().unwrap().replicas, Some(1));
    assert_eq!(set.annotations()["example.net/mine"], "x");
    world
        .api::<Service>()
        .delete("demo-client", &DeleteParams::default())
        .await
        .unwrap();
    operator.pass(&world.get("demo").await).await.unwrap();
    world.api::<Service>().get("demo-client").await.unwrap();
}

/// K2: two operators that both believe to lead, pass by pass at the same time, end with one id, one layout and one ring.
#[tokio::test]
async fn k2_two_operators_at_once_make_one_ring() {
    for round in 0..5 {
        let world = world::new("race").await;
        world.create("demo", json!({})).await.unwrap();
        let (one, two) = (world.operator(), world.operator());
        for _ in 0..30 {
            let cluster = world.get("demo").await;
            let _ = tokio::join!(one.pass(&cluster), two.pass(&cluster));
            if ready_reason(&world.status("demo").await) == "AllMembersValid" {
                break;
            }
            world.kubelet.turn().await;
        }
        assert_eq!(
            ready_reason(&world.status("demo").await),
            "AllMembersValid",
            "round {round}"
        );
        assert_eq!(world.nodes.rings_minted(), 1, "round {round}");
        assert_eq!(world.pods().await.len(), 3);
    }
}

/// K2: a volume that another cluster has used stops the install before anything is minted, and is not touched.
#[tokio::test]
async fn k2_a_volume_of_another_cluster_is_refused() {
    let world = world::new("foreign").await;
    let (other, other_operator) = world::serving("owner", json!({})).await;
    let volume = other
        .nodes
        .volume(&other.claim_uid("data-demo-b-0").await)
        .unwrap();
    drop(other_operator);
    world.create("demo", json!({})).await.unwrap();
    let operator = world.operator();
    operator.pass(&world.get("demo").await).await.unwrap();
    operator.pass(&world.get("demo").await).await.unwrap();
    world.kubelet.turn().await;
    world
        .nodes
        .set_volume(&world.claim_uid("data-demo-b-0").await, volume.clone());
    world.drive(&operator, "demo", "ForeignVolume").await;

    let status = world.status("demo").await;
    assert_eq!(
        (truth(&status, "Ready"), truth(&status, "Stalled")),
        ("False", "True")
    );
    let text = message(&status, "Stalled");
    assert!(
        text.contains("demo-b-0 (zone b)") && text.contains("data-demo-b-0"),
        "{text}"
    );
    assert_eq!((world.nodes.rings_minted(), world.nodes.bootstraps()), (0, 0));
    let writes = operator.faults.writes().len();
    operator.pass(&world.get("demo").await).await.unwrap();
    assert_eq!(
        operator.faults.writes().len(),
        writes,
        "and nothing is written while it is so"
    );
    let kept = world
        .nodes
        .volume(&world.claim_uid("data-demo-b-0").await)
        .unwrap();
    assert_eq!(kept.identity, volume.identity);
    world.happened(&["Warning ForeignVolume"]).await;
}

/// An object of another owner under a name that the cluster needs is not taken.
#[tokio::test]
async fn objects_of_others_are_not_taken() {
    let world = world::new("taken").await;
    world
        .create("demo", json!({"zones": [{"name": "a"}]}))
        .await
        .unwrap();
    world
        .create("demo-a", json!({"zones": [{"name": "x"}]}))
        .await
        .unwrap();
    let service = json!({"metadata": {"name": "demo-client"}, "spec": {"ports": [{"port": 1}]}});
    let services: Api<Service> = world.api();
    services
        .create(&PostParams::default(), &serde_json::from_value(service).unwrap())
        .await
        .unwrap();
    let operator = world.operator();
    let _ = operator.pass(&world.get("demo").await).await;
    let error = operator
        .pass(&world.get("demo").await)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("Service demo-client") && error.contains("not this DynamoCluster's"),
        "{error}"
    );
    let status = world.status("demo").await;
    assert_eq!(
        (ready_reason(&status), truth(&status, "Stalled")),
        ("NameTaken", "True")
    );
    assert_eq!(
        services
            .get("demo-client")
            .await
            .unwrap()
            .spec
            .unwrap()
            .ports
            .unwrap()[0]
            .port,
        1
    );
}

/// K33, K34: what an operator with an old cache, or a slow one, decides upon old versions changes nothing.
#[tokio::test]
async fn k34_decisions_upon_old_versions_change_nothing() {
    let (world, operator) = world::serving("stale", json!({})).await;
    let old = world.get("demo").await;
    world
        .api::<DynamoCluster>()
        .delete("demo", &DeleteParams::default())
        .await
        .unwrap();
    world.kubelet.collect_garbage(&old.uid().unwrap()).await;
    world.create("demo", json!({"paused": true})).await.unwrap();
    let versions = world.versions().await;
    // The cache still holds the cluster that was deleted: same name, other UID.
    operator.pass(&old).await.unwrap();
    assert_eq!(world.versions().await, versions);
}

/// K34: two operators decide upon the same pod; it is made again in between; the slower one's delete is refused.
#[tokio::test]
async fn k34_a_restart_decided_upon_an_older_pod_is_refused() {
    let (world, fast) = world::serving("preconditions", json!({})).await;
    world.change("demo", json!({"logLevel": "debug"})).await.unwrap();
    // Writes the new template, which Kubernetes then sees.
    fast.pass(&world.get("demo").await).await.unwrap();
    world.kubelet.turn().await;

    let slow = world.operator();
    let (client, admin) = (&slow.context.client, &slow.context.admin);
    let source = world.get("demo").await;
    let observed = observe::observe(client, admin, &source).await.unwrap();
    let cluster = validate::validate(&source, &observed, &slow.context.defaults).unwrap();
    let desired = build::build(&cluster).unwrap();
    let plan = plan::plan(&cluster, &desired, &observed, &source);
    let plan::Step::Restart { pod, uid, .. } = &plan.step else {
        panic!("{:?}", plan.step)
    };

    fast.pass(&source).await.unwrap();
    world.kubelet.turn().await;
    world.kubelet.turn().await;
    let made_again = world.pod(pod).await;
    assert_ne!(made_again.uid().as_ref(), Some(uid));

    let work = apply::Work {
        source: &source,
        cluster: &cluster,
        observed: &observed,
        plan: &plan,
    };
    let (done, error) = apply::apply(client, admin, work, desired).await;
    assert!(done.is_empty(), "{done:?}");
    assert!(
        matches!(error, Some(apply::ApplyError::Restart { .. })),
        "{error:?}"
    );
    assert_eq!(world.pod(pod).await.uid(), made_again.uid());
    assert!(world.pod(pod).await.metadata.deletion_timestamp.is_none());
}
