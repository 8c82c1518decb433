//! Clusters that grow, shrink, change their minds, lose volumes and give up pods and zones (K5-K11, K25, K26).

use dynamo_operator::{controller::names, crd::DynamoClusterStatus};
use dynamo_operator_sim::world::{Operator, World, message, truth};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{server, specs::kubectl, world};

fn epoch(status: &DynamoClusterStatus) -> i64 {
    status.ring.as_ref().unwrap().epoch
}

const FIVE: [&str; 5] = ["demo-a-0", "demo-a-1", "demo-b-0", "demo-b-1", "demo-c-0"];

#[tokio::test]
async fn k5_k25_scaled_out_by_kubectl_members_join_and_one_change_takes_them_in() {
    let (world, operator) = world::serving("out", json!({})).await;
    world.nodes.hold(true);
    let scale = ["-n", &world.namespace, "scale", "dync/demo", "--replicas", "5"];
    let (done, text) = kubectl(server::shared().await, &scale);
    assert!(done, "{text}");
    world.drive(&operator, "demo", "RingChanging").await;
    let status = world.status("demo").await;
    assert_eq!(
        (status.members, status.ready_members),
        (5, 3),
        "new ones serve nothing yet"
    );
    assert_eq!(
        (truth(&status, "Ready"), truth(&status, "RingBalanced")),
        ("False", "False")
    );
    assert_eq!(truth(&status, "QuorumAvailable"), "True");
    let transition = status.transition.clone().unwrap();
    assert_eq!((transition.epoch, transition.step.as_str()), (2, "known"));
    assert!(
        message(&status, "Ready").contains("waiting for demo-a-0"),
        "{}",
        message(&status, "Ready")
    );
    world.nodes.step();
    world.rounds(&operator, 1).await;
    let (_, text) = kubectl(server::shared().await, &["-n", &world.namespace, "get", "dync"]);
    assert!(
        text.contains("PROGRESS") && text.contains("RingChanging"),
        "{text}"
    );
    world.rounds(&operator, 5).await;
    let status = world.status("demo").await;
    assert_eq!(status.transition.unwrap().since, transition.since);
    assert_eq!(epoch(&world.status("demo").await), 1);

    world.nodes.hold(false);
    world.settle(&operator).await;
    let status = world.status("demo").await;
    assert_eq!((epoch(&status), status.transition), (2, None));
    assert_eq!(world.pod_names().await, FIVE);
    assert_eq!(
        world.nodes.proposed(),
        [FIVE.map(ToOwned::to_owned).to_vec()],
        "one change for both"
    );
    world
        .happened(&[
            "Normal PodsAdded",
            "Normal NodeJoined",
            "Normal RingChangeStarted",
            "Normal RingChangeCompleted",
        ])
        .await;
    let writes = operator.faults.writes().len();
    world.rounds(&operator, 3).await;
    assert_eq!(
        operator.faults.writes().len(),
        writes,
        "a cluster that has grown costs no writes"
    );
}

#[tokio::test]
async fn k6_scaled_in_pods_stay_until_their_members_have_left() {
    let (world, operator) = world::serving("in", json!({"members": 5})).await;
    let before = world.claims().await;
    world.nodes.hold(true);
    world.members(3).await;
    for _ in 0..3 {
        world.rounds(&operator, 3).await;
        assert_eq!(world.pod_names().await, FIVE);
        assert!(world.status("demo").await.transition.is_some());
        world.nodes.step();
    }
    // It has ended: the next pass reads it, and only then do pods go.
    world
        .nodes
        .on_volumes(|member, volume| volume.hints = u64::from(member == "demo-b-1") * 7);
    world.rounds(&operator, 3).await;
    assert_eq!(
        world.pod_names().await,
        ["demo-a-0", "demo-b-0", "demo-b-1", "demo-c-0"]
    );
    let status = world.status("demo").await;
    assert_eq!(
        (truth(&status, "Ready"), truth(&status, "Reconciling")),
        ("True", "True")
    );
    assert!(
        message(&status, "Reconciling").contains("7 hints"),
        "{}",
        message(&status, "Reconciling")
    );
    world.nodes.on_volumes(|_, volume| volume.hints = 0);
    world.settle(&operator).await;
    assert_eq!(world.pod_names().await, ["demo-a-0", "demo-b-0", "demo-c-0"]);
    world.rounds(&operator, 2).await;
    let after = world.claims().await;
    let left = |claims: &[(String, String, bool)]| {
        let left = claims.iter().filter(|(_, _, left)| *left);
        left.map(|(name, ..)| name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        left(&after),
        ["data-demo-a-1", "data-demo-b-1"],
        "volumes stay, and are marked"
    );

    // Growing again uses them again.
    world.nodes.hold(false);
    world.members(5).await;
    world.settle(&operator).await;
    assert_eq!(world.claims().await, before);
    assert_eq!(
        (world.pod_names().await.len(), epoch(&world.status("demo").await)),
        (5, 3)
    );
}

#[tokio::test]
async fn k6_while_too_few_answer_no_pod_goes() {
    let (world, operator) = world::serving("quiet", json!({"members": 5})).await;
    world.nodes.hold(true);
    world.members(3).await;
    world.drive(&operator, "demo", "RingChanging").await;
    for _ in 0..3 {
        world.nodes.step();
    }
    for pod in ["demo-a-0", "demo-c-0"] {
        world.nodes.cut_off(world.ip(pod).await);
    }
    world.rounds(&operator, 5).await;
    assert_eq!(world.pod_names().await, FIVE);
    world.nodes.heal();
    world.settle(&operator).await;
    assert_eq!(world.pod_names().await.len(), 3);
}

#[tokio::test]
async fn k7_k25_what_would_not_fit_is_refused_with_numbers_and_nothing_moves() {
    let (world, operator) = world::serving("full", json!({"members": 5})).await;
    world.nodes.on_volumes(|_, volume| volume.data_bytes = 600 << 20);
    world.members(3).await;
    world.drive(&operator, "demo", "ScaleDownBlocked").await;
    world.rounds(&operator, 4).await;
    let status = world.status("demo").await;
    assert_eq!(
        (truth(&status, "Stalled"), truth(&status, "QuorumAvailable")),
        ("True", "True")
    );
    let text = message(&status, "Stalled");
    assert!(
        text.contains("2 of 5 members") && text.contains("1000.0 MiB") && text.contains("819.1 MiB"),
        "{text}"
    );
    assert_eq!(
        (world.pod_names().await.len(), world.nodes.proposed().len()),
        (5, 0)
    );
    world.happened(&["Warning ScaleDownBlocked"]).await;
    // Fewer than replicas, the API server refuses, also by way of the scale subresource.
    let scale = ["-n", &world.namespace, "scale", "dync/demo", "--replicas", "2"];
    let (done, text) = kubectl(server::shared().await, &scale);
    assert!(
        !done && text.contains("members must be at least replication.factor"),
        "{text}"
    );
    // Less to hold, and it goes on by itself.
    world.nodes.on_volumes(|_, volume| volume.data_bytes = 100 << 20);
    world.settle(&operator).await;
    assert_eq!(world.pod_names().await.len(), 3);
}

#[tokio::test]
async fn k8_a_change_of_mind_in_the_middle_keeps_every_pod() {
    let (world, operator) = world::serving("mind", json!({"members": 5})).await;
    let uids = |pods: Vec<Pod>| pods.into_iter().map(|pod| pod.uid()).collect::<Vec<_>>();
    let before = uids(world.pods().await);
    world.nodes.hold(true);
    world.members(3).await;
    world.drive(&operator, "demo", "RingChanging").await;
    world.nodes.step();
    world.members(5).await;
    // Some have begun to read from the proposed ring, and say so.
    world.nodes.refuse(2);
    world.rounds(&operator, 3).await;
    let proposed: Vec<usize> = world.nodes.proposed().iter().map(Vec::len).collect();
    assert_eq!(proposed, [3, 5]);
    world.nodes.hold(false);
    world.settle(&operator).await;
    assert_eq!(uids(world.pods().await), before);
    assert_eq!(epoch(&world.status("demo").await), 3);
}

/// A member after the other refuses; then nobody takes the plan; then it is asked again.
#[tokio::test]
async fn k8_a_proposal_that_is_refused_is_asked_again_and_is_no_persons_matter() {
    let (world, operator) = world::serving("refused", json!({})).await;
    world.members(4).await;
    world.nodes.refuse(7);
    let mut told = false;
    for _ in 0..12 {
        let _ = operator.pass(&world.get("demo").await).await;
        let status = world.status("demo").await;
        assert_eq!(truth(&status, "Stalled"), "False");
        told |= message(&status, "Reconciling").contains("cannot propose the ring");
        world.kubelet.turn().await;
    }
    assert!(told);
    world.settle(&operator).await;
    assert_eq!(world.nodes.proposed().len(), 1);
}

#[tokio::test]
async fn k9_an_evacuated_pod_is_made_anew_with_an_empty_volume() {
    let (world, operator) = world::serving("evacuate", json!({"members": 4})).await;
    let (before, pod) = (world.claims().await, world.pod("demo-b-0").await.uid());
    world.evacuate("demo-b-0").await;
    settle_after(&world, &operator, |status| epoch(status) == 3).await;
    let after = world.claims().await;
    for (old, new) in before.iter().zip(&after) {
        assert_eq!(old.1 != new.1, old.0 == "data-demo-b-0", "{old:?} {new:?}");
    }
    assert_ne!(world.pod("demo-b-0").await.uid(), pod);
    let proposed: Vec<usize> = world.nodes.proposed().iter().map(Vec::len).collect();
    assert_eq!(proposed, [3, 4]);
    world.happened(&["Normal Evacuated"]).await;
}

#[tokio::test]
async fn k9_an_evacuation_that_leaves_too_few_is_refused() {
    let (world, operator) = world::serving("few", json!({})).await;
    world.evacuate("demo-b-0").await;
    world.drive(&operator, "demo", "EvacuationBlocked").await;
    world.rounds(&operator, 3).await;
    assert_eq!(world.nodes.proposed().len(), 0);
    // One more, and it goes.
    world.members(4).await;
    settle_after(&world, &operator, |status| epoch(status) == 3).await;
    let sizes: Vec<usize> = world.nodes.proposed().iter().map(Vec::len).collect();
    assert_eq!(sizes.last(), Some(&4));
}

/// Rounds until this holds, and then until the cluster is settled.
async fn settle_after(world: &World, operator: &Operator, holds: impl Fn(&DynamoClusterStatus) -> bool) {
    for _ in 0..60 {
        world.rounds(operator, 1).await;
        if holds(&world.status("demo").await) {
            return world.settle(operator).await;
        }
    }
    panic!("it did not come to it: {:#?}", world.status("demo").await);
}

fn zones(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"name": name})).collect()
}

#[tokio::test]
async fn k9_a_zone_goes_after_its_members() {
    let (world, operator) =
        world::serving("zone", json!({"members": 6, "zones": zones(&["a", "b", "c"])})).await;
    world.nodes.hold(true);
    world
        .change("demo", json!({"zones": zones(&["a", "b"])}))
        .await
        .unwrap();
    world.drive(&operator, "demo", "RingChanging").await;
    world.rounds(&operator, 3).await;
    assert_eq!(world.pod_names().await.len(), 8);
    world.api::<StatefulSet>().get("demo-c").await.unwrap();
    world.nodes.hold(false);
    world.settle(&operator).await;
    world.rounds(&operator, 3).await;
    assert!(
        world
            .api::<StatefulSet>()
            .get_opt("demo-c")
            .await
            .unwrap()
            .is_none()
    );
    let layout = world.get("demo").await.annotations()[names::LAYOUT].clone();
    assert!(
        !layout.contains("demo-c") && layout.contains("demo-b"),
        "{layout}"
    );
    world.happened(&["Normal ZoneRemoved"]).await;
    // And another comes, or the same again.
    world
        .change("demo", json!({"zones": zones(&["a", "c"])}))
        .await
        .unwrap();
    world.settle(&operator).await;
    let mut sets: Vec<String> = world.pod_names().await;
    sets.retain(|pod| pod.starts_with("demo-c-"));
    assert_eq!(sets.len(), 3);
}

/// The pod is made again and finds no k8s node for its volume.
async fn strand(world: &World, pod: &str) {
    world.kubelet.unschedulable.lock().unwrap().insert(pod.into());
    world
        .api::<Pod>()
        .delete(pod, &DeleteParams::default())
        .await
        .unwrap();
    world.kubelet.turn().await;
    world.kubelet.turn().await;
}

#[tokio::test]
async fn k10_a_member_whose_volume_is_lost_begins_empty_under_the_same_ring() {
    let (world, operator) = world::serving("lost", json!({})).await;
    let ring = world.status("demo").await.ring;
    let volumes = Api::<PersistentVolume>::all(world.client.clone());
    let api = world.api::<PersistentVolumeClaim>();
    let pinned = |name: &str, host: &str| -> PersistentVolume {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [host]},
            ]}]}},
        }}))
        .unwrap()
    };
    // A volume that waits for its k8s node is none that is lost.
    let kept = format!("{}-kept", world.namespace);
    let gone = format!("{}-gone", world.namespace);
    for (member, volume, host) in [
        ("demo-a-0", &kept, "worker-a"),
        ("demo-b-0", &gone, "worker-that-was"),
    ] {
        volumes
            .create(&PostParams::default(), &pinned(volume, host))
            .await
            .unwrap();
        let bound = Patch::Merge(json!({"spec": {"volumeName": volume}}));
        api.patch(&names::claim(member), &PatchParams::default(), &bound)
            .await
            .unwrap();
    }
    let before = world.claims().await;
    strand(&world, "demo-a-0").await;
    world.rounds(&operator, 3).await;
    assert_eq!(world.claims().await, before);
    world.kubelet.unschedulable.lock().unwrap().clear();
    world
        .api::<Pod>()
        .delete("demo-a-0", &DeleteParams::default())
        .await
        .unwrap();
    world.settle(&operator).await;

    strand(&world, "demo-b-0").await;
    world
        .change("demo", json!({"storage": {"whenLost": "Keep"}}))
        .await
        .unwrap();
    world.drive(&operator, "demo", "VolumeLost").await;
    assert_eq!(world.claims().await, before);
    world
        .change("demo", json!({"storage": {"whenLost": "Replace"}}))
        .await
        .unwrap();
    world.settle(&operator).await;
    let after = world.claims().await;
    assert_eq!((&before[0], &before[2]), (&after[0], &after[2]));
    assert_ne!(before[1].1, after[1].1);
    assert_eq!(world.status("demo").await.ring, ring, "the ring is the same");
    assert_eq!(world.nodes.proposed().len(), 0);
    world.happened(&["Normal VolumeReplaced"]).await;
    for volume in [kept, gone] {
        volumes.delete(&volume, &DeleteParams::default()).await.unwrap();
    }
}

#[tokio::test]
async fn k11_a_pod_that_stays_away_changes_no_ring_whatever_else_is_asked() {
    let (world, operator) = world::serving("away", json!({"members": 4})).await;
    world.nodes.cut_off(world.ip("demo-c-0").await);
    world.members(3).await;
    world.rounds(&operator, 6).await;
    let status = world.status("demo").await;
    assert_eq!((epoch(&status), world.nodes.proposed().len()), (1, 0));
    assert!(
        message(&status, "Ready").contains("demo-c-0"),
        "{}",
        message(&status, "Ready")
    );
    world.nodes.heal();
    world.settle(&operator).await;
}

#[tokio::test]
async fn k26_nothing_moves_until_the_plan_is_approved() {
    let (world, operator) = world::serving("manual", json!({"rebalance": "Manual"})).await;
    world.members(5).await;
    world.drive(&operator, "demo", "WaitingForApproval").await;
    world.rounds(&operator, 3).await;
    assert_eq!(world.nodes.proposed().len(), 0);
    let status = world.status("demo").await;
    let plan = status.plan.unwrap();
    assert_eq!((plan.epoch, plan.members.len(), plan.hash.len()), (2, 5, 16));
    assert!(plan.moves >= plan.minimum_moves && plan.bytes > 0);
    let wrong = json!({"approvedPlan": "0123456789abcdef"});
    world.change("demo", wrong).await.unwrap();
    world.rounds(&operator, 2).await;
    assert_eq!(world.nodes.proposed().len(), 0);
    world
        .change("demo", json!({"approvedPlan": plan.hash}))
        .await
        .unwrap();
    world.settle(&operator).await;
    let status = world.status("demo").await;
    assert_eq!((epoch(&status), status.plan), (2, None));
    // An approval is for one ring.
    world.members(4).await;
    world.drive(&operator, "demo", "WaitingForApproval").await;
    assert_eq!(world.nodes.proposed().len(), 1);
    assert!(
        world
            .change("demo", json!({"approvedPlan": "yes"}))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn d22_d26_weights_and_partitions_reach_the_ring() {
    let weighted = |weight: u32| json!([{"name": "a", "weight": weight}, {"name": "b"}, {"name": "c"}]);
    let (world, operator) = world::serving("weights", json!({"members": 6, "zones": weighted(1)})).await;
    world
        .change("demo", json!({"zones": weighted(2), "ring": {"partitions": 512}}))
        .await
        .unwrap();
    world.settle(&operator).await;
    let status = world.status("demo").await;
    assert_eq!((epoch(&status), status.ring.unwrap().partitions), (3, 512));
    let owned: Vec<i32> = status.nodes.iter().map(|node| node.owned).collect();
    assert!(owned[0] > 120 && owned[5] < 70, "{owned:?}");
}

/// Two operators that both believe to lead come to one end, and remove no pod that a ring lists.
#[tokio::test]
async fn s_two_operators_at_once_change_the_ring_once() {
    for (from, to) in [(3, 5), (5, 3)] {
        let (world, one) = world::serving("pair", json!({"members": from})).await;
        let two = world.operator();
        world.members(to).await;
        for _ in 0..40 {
            let cluster = world.get("demo").await;
            let _ = tokio::join!(one.pass(&cluster), two.pass(&cluster));
            if world.settled().await {
                break;
            }
            world.kubelet.turn().await;
        }
        assert!(world.settled().await, "{:#?}", world.status("demo").await);
        assert_eq!(world.nodes.proposed().len(), 1);
    }
}

/// c2: shrinking was decided upon one version of a StatefulSet, and meanwhile another operator grew it.
#[tokio::test]
async fn s_a_shrink_decided_upon_an_older_stateful_set_is_refused() {
    use dynamo_operator::controller::{apply, build, observe, plan, validate};
    let (world, fast) = world::serving("slow", json!({"members": 5})).await;
    world.members(3).await;
    world.drive(&fast, "demo", "RingChanging").await;
    while world.nodes.step() {}
    let slow = world.operator();
    let (client, admin) = (&slow.context.client, &slow.context.admin);
    let source = world.get("demo").await;
    let observed = observe::observe(client, admin, &source).await.unwrap();
    let cluster = validate::validate(&source, &observed, &slow.context.defaults).unwrap();
    let desired = build::build(&cluster).unwrap();
    let plan = plan::plan(&cluster, &desired, &observed, &source);
    assert_eq!(cluster.members().count(), 3);

    let touched = json!({"metadata": {"annotations": {"example.net/touched": "x"}}});
    let sets = world.api::<StatefulSet>();
    sets.patch("demo-a", &PatchParams::default(), &Patch::Merge(touched))
        .await
        .unwrap();
    let work = apply::Work {
        source: &source,
        cluster: &cluster,
        observed: &observed,
        plan: &plan,
    };
    let (_, error) = apply::apply(client, admin, work, desired).await;
    assert!(
        matches!(error, Some(apply::ApplyError::Write { .. })),
        "{error:?}"
    );
    assert_eq!(sets.get("demo-a").await.unwrap().spec.unwrap().replicas, Some(2));
}
