//! K33: the operator is killed at each of its writes, before and after it arrives, and its successor comes to the same end.

use dynamo_operator::controller::names;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    change::settle,
    faults::{Faults, When},
    world::World,
};

/// What a finished install looks like, without what differs from run to run.
async fn end_state(world: &World) -> Value {
    let status = world.status("demo").await;
    let objects: Vec<String> = world
        .versions()
        .await
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| !name.starts_with("Event/"))
        .collect();
    let mut volumes = Vec::new();
    let claims = world.api::<k8s_openapi::api::core::v1::PersistentVolumeClaim>();
    for claim in claims.list(&ListParams::default()).await.unwrap() {
        let volume = world.nodes.volume(&claim.uid().unwrap()).unwrap();
        let (cluster, member, zone) = volume.identity.unwrap();
        assert_eq!(Some(cluster.to_string()), status.cluster_id);
        volumes.push(json!([
            claim.name_any(),
            member,
            zone,
            volume.ring.unwrap().epoch()
        ]));
    }
    json!({
        "objects": objects,
        "volumes": volumes,
        "zones": status.zones,
        "nodes": status.nodes.iter().map(|node| json!([node.name, node.zone, node.state])).collect::<Vec<_>>(),
        "conditions": status.conditions.iter().map(|c| json!([c.type_, c.status, c.reason])).collect::<Vec<_>>(),
        "rings": world.nodes.rings_minted(),
        "layout": world.get("demo").await.annotations()[names::LAYOUT],
    })
}

/// A cluster that serves, to which this happens, and which an operator sees through until it is killed, and another after it.
async fn change(spec: &Value, happens: &Value, faults: Faults) -> (World, Vec<String>) {
    let (world, _) = World::serving("crash", spec.clone()).await;
    match happens.as_str() {
        Some(pod) => {
            let evacuate = json!({"metadata": {"annotations": {names::EVACUATE: "true"}}});
            let api = world.api::<Pod>();
            api.patch(pod, &PatchParams::default(), &Patch::Merge(evacuate))
                .await
                .unwrap();
        }
        None => drop(world.change("demo", happens.clone()).await.unwrap()),
    }
    let first = world.operator_with(faults);
    settle(&world, &first).await;
    if first.faults.dead() {
        // Kubernetes and the nodes work on while nobody leads.
        world.kubelet.turn().await;
        settle(&world, &world.operator()).await;
    }
    // Volumes of those who left are marked in the pass after.
    for _ in 0..2 {
        let operator = world.operator();
        operator.pass(&world.get("demo").await).await.unwrap();
        world.kubelet.turn().await;
    }
    settle(&world, &world.operator()).await;
    (world, first.faults.writes())
}

async fn killed_everywhere(spec: Value, happens: Value) {
    let (whole, writes) = change(&spec, &happens, Faults::default()).await;
    let expected = end_state(&whole).await;
    assert!(writes.len() >= 8, "{writes:#?}");
    for (at, write) in writes.iter().enumerate() {
        // Before a write it stands as after the one before.
        let before = (at == 0).then_some(When::Before);
        for when in before.into_iter().chain([When::After]) {
            let (world, done) = change(&spec, &happens, Faults::dying_at(at, when)).await;
            assert!(
                done.len() > at,
                "the operator was to die at write {at} and did not"
            );
            let end = end_state(&world).await;
            assert_eq!(end, expected, "killed {when:?} write {at}: {write}");
        }
    }
}

#[tokio::test]
async fn s_killed_at_every_write_of_a_scale_out_the_end_is_the_same() {
    killed_everywhere(json!({}), json!({"members": 5})).await;
}

#[tokio::test]
async fn s_killed_at_every_write_of_a_scale_in_the_end_is_the_same() {
    killed_everywhere(json!({"members": 5}), json!({"members": 3})).await;
}

#[tokio::test]
async fn s_killed_at_every_write_of_an_evacuation_the_end_is_the_same() {
    killed_everywhere(json!({"members": 4}), json!("demo-b-0")).await;
}

#[tokio::test]
async fn s_killed_at_every_write_of_a_zones_removal_the_end_is_the_same() {
    let zones = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Value>();
    let spec = json!({"members": 4, "zones": zones(&["a", "b", "c"])});
    killed_everywhere(spec, json!({"zones": zones(&["a", "b"])})).await;
}

async fn install(faults: Faults) -> (World, Vec<String>) {
    let world = World::new("crash").await;
    world.create("demo", json!({})).await.unwrap();
    let first = world.operator_with(faults);
    world.drive(&first, "demo", "AllMembersValid").await;
    if first.faults.dead() {
        // Kubernetes works on while nobody leads.
        world.kubelet.turn().await;
        let second = world.operator();
        world.drive(&second, "demo", "AllMembersValid").await;
    }
    (world, first.faults.writes())
}

#[tokio::test]
async fn k33_killed_at_every_write_of_an_install_the_end_is_the_same() {
    let (whole, writes) = install(Faults::default()).await;
    let expected = end_state(&whole).await;
    assert_eq!(expected["rings"], 1);
    assert!(writes.len() > 20, "{writes:#?}");
    for (at, write) in writes.iter().enumerate() {
        for when in [When::Before, When::After] {
            let (world, done) = install(Faults::dying_at(at, when)).await;
            assert!(
                done.len() > at,
                "the operator was to die at write {at} and did not"
            );
            let end = end_state(&world).await;
            assert_eq!(end, expected, "killed {when:?} write {at}: {write}");
        }
    }
}
