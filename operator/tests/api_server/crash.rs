//! K33: the operator is killed at each of its writes, before and after it arrives, and its successor comes to the same end.

use kube::{ResourceExt as _, api::ListParams};
use serde_json::{Value, json};

use super::{
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
        "layout": world.get("demo").await.annotations()[dynamo_operator::controller::names::LAYOUT],
    })
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
