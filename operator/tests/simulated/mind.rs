//! K8: the spec changes at any moment, nodes refuse, pods die, operators die and follow each other; it always comes to the
//! last spec's end. That no pod goes which a ring lists is watched by the kubelet.

use dynamo_operator_sim::world::Simulated;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use serde_json::json;

use super::random::Random;

#[tokio::test(start_paused = true)]
async fn k8_s_changes_of_mind_at_random_moments_always_converge() {
    let spec = json!({"members": 4, "ring": {"partitions": 16}});
    let begun = Simulated::serving(spec).await;
    for seed in 0..60 {
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let world = begun.fork().world;
        let mut operator = world.operator();
        for _ in 0..8 {
            world.members(3 + random.below(4)).await;
            world.nodes.hold(random.below(2) == 0);
            world.nodes.refuse(random.below(4));
            for _ in 0..random.below(5) {
                world.rounds(&operator, 1).await;
                match random.below(6) {
                    0 => drop(world.nodes.step()),
                    1 => {
                        let pods = world.pod_names().await;
                        let pod = &pods[random.below(u32::try_from(pods.len()).unwrap()) as usize];
                        let now = DeleteParams::default();
                        world.api::<Pod>().delete(pod, &now).await.unwrap();
                    }
                    2 => operator = world.operator(),
                    _ => {}
                }
            }
        }
        world.nodes.hold(false);
        world.settle(&operator).await;
        assert_eq!(world.nodes.rings_minted(), 1);
    }
}
