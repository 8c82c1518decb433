//! Copies that vanish, and hints that arrive too late: tests A and Z2.

use bytes::Bytes;
use dynamo_proto::v1;

use crate::{
    drop_key,
    harness::{Cluster, Shape, count, put, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_d38_copies_that_vanished_without_a_trace_come_back_and_nothing_else_is_shipped() {
    let cluster = Cluster::start(Shape {
        configure: |config| {
            crate::harness::quick(config);
            config.hints.bytes_max = 0;
        },
        ..Shape::new(3, 0)
    })
    .await;
    for batch in 0..20 {
        let requests =
            (0..100).map(|number| put(&format!("key-{}", batch * 100 + number), "value", &Bytes::new()));
        let request = v1::BatchPutRequest {
            requests: requests.collect(),
        };
        cluster.kv(0).batch_put(request).await.unwrap();
    }
    cluster.equal_trees().await;
    let before = cluster.metrics("dynamo_exchange_keys_total", "").await;
    for number in 0..60 {
        assert!(drop_key(&cluster, number % 3, &format!("key-{}", number * 33)).await);
    }
    cluster.equal_trees().await;
    for number in 0..60 {
        let key = format!("key-{}", number * 33);
        assert_eq!(cluster.local_values(number % 3, &key).await, ["value"]);
    }
    let shipped = cluster.metrics("dynamo_exchange_keys_total", "").await - before;
    assert!((60..=63).contains(&shipped), "{shipped}");
}

#[tokio::test(flavor = "multi_thread")]
async fn z2_a_key_that_was_reaped_by_force_and_created_anew_survives_the_late_hint() {
    let mut cluster = Cluster::start(Shape::quick(5, 0)).await;
    let key = cluster.key_with(|primaries, _| primaries[0] != 0).await;
    let (primaries, fallbacks) = cluster.placed(&key).await;
    for fallback in &fallbacks {
        cluster.pause(*fallback, "hints", true).await;
    }
    cluster.stop_node(primaries[0]).await;
    let all = |value: &str| v1::PutRequest {
        w: count(3),
        ..put(&key, value, &Bytes::new())
    };
    cluster.kv(primaries[1]).put(all("old")).await.unwrap();
    assert_eq!(cluster.hint_count(fallbacks[0]).await, 1);
    cluster.start_node(primaries[0]).await;
    cluster.all_valid().await;
    // Everything is gone but the hint: as if it had been deleted, and reaped without asking for hints.
    until("no primary holds it", || async {
        let mut present = false;
        for primary in &primaries {
            drop_key(&cluster, *primary, &key).await;
            present |= cluster.present(*primary, &key).await;
        }
        !present
    })
    .await;
    cluster.kv(primaries[1]).put(all("anew")).await.unwrap();
    for fallback in &fallbacks {
        cluster.pause(*fallback, "hints", false).await;
    }
    until("the hint is delivered", || async {
        cluster.hint_count(fallbacks[0]).await == 0
    })
    .await;
    cluster.equal("", &key).await;
    for primary in primaries {
        // The old value is back beside it, never in its place.
        assert_eq!(cluster.local_values(primary, &key).await, ["anew", "old"]);
    }
}
