//! K33: the operator is killed after each of its writes, and its successor comes to the same end. The same at every call, with
//! operators killed one after the other, and of other changes: `tests/simulated`.

use std::collections::BTreeSet;

use dynamo_operator_sim::{
    faults::{Faults, When},
    world::World,
};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::world;

/// Sees a change through by an operator that dies, and another. Returns whether it died, and what came about.
async fn change(world: &World, members: u32, faults: Faults) -> (bool, Value) {
    world.members(members).await;
    let first = world.operator_with(faults);
    world.settle(&first).await;
    if first.faults.dead() {
        // Kubernetes and the nodes work on while nobody leads.
        world.kubelet.turn().await;
    }
    // Volumes of those who left are marked in the pass after.
    let last = world.operator();
    world.settle(&last).await;
    world.rounds(&last, 2).await;
    world.settle(&last).await;
    let mut end = world.end_state().await;
    // The epoch grows with every change.
    for volume in end["volumes"].as_array_mut().unwrap() {
        volume.as_array_mut().unwrap().pop();
    }
    (first.faults.dead(), end)
}

/// Pods by name and UID.
async fn pods(world: &World) -> BTreeSet<(String, String)> {
    let pods = world.pods().await.into_iter();
    pods.map(|pod| (pod.name_any(), pod.uid().unwrap())).collect()
}

#[tokio::test]
async fn s_killed_at_every_write_of_a_scale_out_and_of_a_scale_in_the_end_is_the_same() {
    let (world, _) = world::serving("crash", json!({})).await;
    let (_, grown) = change(&world, 5, Faults::default()).await;
    let (_, shrunk) = change(&world, 3, Faults::default()).await;
    let (kept, claims) = (pods(&world).await, world.claims().await);
    assert_eq!((kept.len(), claims.len()), (3, 5));
    let mut deaths = [0, 0];
    // Before a write it stands as after the one before.
    let points = [(0, When::Before)]
        .into_iter()
        .chain((0..).map(|write| (write, When::After)));
    for (write, when) in points {
        let mut died = [false, false];
        for (direction, (members, expected)) in [(5, &grown), (3, &shrunk)].into_iter().enumerate() {
            let (dead, end) = change(&world, members, Faults::dying_at(write, when)).await;
            assert_eq!(
                end, *expected,
                "killed {when:?} write {write}, on the way to {members} members"
            );
            assert!(
                pods(&world).await.is_superset(&kept),
                "a pod was made anew that was to stay"
            );
            died[direction] = dead;
            deaths[direction] += usize::from(dead);
        }
        assert_eq!(world.claims().await, claims, "volumes stay");
        if died == [false, false] {
            break;
        }
    }
    assert!(deaths.iter().all(|deaths| *deaths >= 8), "{deaths:?}");
    assert_eq!(world.nodes.rings_minted(), 1);
}
