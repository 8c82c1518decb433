//! Connections over which nothing comes any more are given up and made anew, whether they are in use or not.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::harness::{Cluster, Shape, get, id, put, run, until, why, within};

/// A dead connection is noticed within the silence before a ping and the wait for its answer, a second each; then comes the
/// next probe, once a second, which may wait as long as four calls.
const BACK: Duration = Duration::from_secs(6);

/// Whether a write on all three of three nodes succeeds, each taking it itself.
async fn writes_everywhere(cluster: &Cluster, coordinator: usize) -> bool {
    let written = cluster
        .kv(coordinator)
        .put(within(Duration::from_secs(1), put("key", "value", 3)))
        .await;
    written.is_ok_and(|written| written.into_inner().info.unwrap().fallbacks_counted == 0)
}

#[test]
fn peers_reach_each_other_soon_after_a_split_has_healed() {
    for seed in 0..5 {
        run(Shape::new(3), seed, |cluster| async move {
            turmoil::partition(id(0), id(1));
            turmoil::partition(id(0), id(2));
            for (watcher, other) in [(0, 1), (0, 2), (1, 0), (2, 0)] {
                until("both sides see the split", || async {
                    cluster
                        .status(watcher)
                        .await
                        .unwrap()
                        .peers_down
                        .contains(&id(other))
                })
                .await;
            }
            assert!(!writes_everywhere(&cluster, 0).await && !writes_everywhere(&cluster, 1).await);
            turmoil::repair(id(0), id(1));
            turmoil::repair(id(0), id(2));
            let healed = Instant::now();
            cluster.all_well().await;
            assert!(writes_everywhere(&cluster, 0).await && writes_everywhere(&cluster, 1).await);
            assert!(healed.elapsed() < BACK, "{:?}", healed.elapsed());
        });
    }
}
