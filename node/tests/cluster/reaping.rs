//! Tombstones go when everybody agrees, and never come back as values: tests Z1 and Z2, D17 and D51.

use std::time::Duration;

use bytes::Bytes;
use dynamo_proto::v1;
use tonic::Code;

use crate::harness::{Cluster, Shape, count, get, put, until, values};

/// The grace of these clusters ten times over.
const TEN_GRACES: Duration = Duration::from_secs(5);

fn to_all(key: &str, value: &str, context: &Bytes) -> v1::PutRequest {
    v1::PutRequest {
        w: count(3),
        ..put(key, value, context)
    }
}

async fn delete(cluster: &Cluster, at: usize, key: &str) {
    let request = v1::DeleteRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        force: true,
        ..v1::DeleteRequest::default()
    };
    cluster.kv(at).delete(request).await.unwrap();
}

/// Waits until no node holds anything of a key, while every quorum read says that there is nothing.
async fn goes_unseen(cluster: &Cluster, key: &str) {
    until("the tombstone is gone everywhere", || async {
        let mut present = false;
        for index in cluster.up() {
            assert_eq!(cluster.read(index, key).await, None, "for ever");
            present |= cluster.present(index, key).await;
        }
        !present
    })
    .await;
    for index in cluster.up() {
        assert_eq!(cluster.read(index, key).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn z1_d55_a_replica_that_was_away_while_its_key_was_deleted_does_not_bring_it_back() {
    let mut cluster = Cluster::start(Shape::quick(3, 3)).await;
    cluster
        .kv(0)
        .put(to_all("key", "value", &Bytes::new()))
        .await
        .unwrap();
    cluster.stop_node(2).await;
    delete(&cluster, 0, "key").await;
    // Nothing is to happen meanwhile, so there is no condition to wait for.
    tokio::time::sleep(TEN_GRACES).await;
    for index in [0, 1] {
        assert!(
            cluster.present(index, "key").await,
            "one is missing: the tombstone stays"
        );
    }
    assert_eq!(cluster.metrics("dynamo_reaped_total", "").await, 0);
    cluster.start_node(2).await;
    goes_unseen(&cluster, "key").await;
    assert_eq!(cluster.metrics("dynamo_reaped_total", "").await, 1);
    cluster.all_valid().await;
    // A key that is created anew is a new one.
    cluster
        .kv(1)
        .put(to_all("key", "anew", &Bytes::new()))
        .await
        .unwrap();
    for index in 0..3 {
        assert_eq!(cluster.read(index, "key").await.unwrap(), ["anew"]);
    }
    cluster.equal("", "key").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn z2_nothing_is_reaped_while_a_fallback_keeps_a_hint() {
    let mut cluster = Cluster::start(Shape::quick(5, 0)).await;
    let key = cluster.key_with(|primaries, _| primaries[0] != 0).await;
    let (primaries, fallbacks) = cluster.placed(&key).await;
    for fallback in &fallbacks {
        cluster.pause(*fallback, "hints", true).await;
    }
    cluster.stop_node(primaries[0]).await;
    cluster
        .kv(primaries[1])
        .put(to_all(&key, "value", &Bytes::new()))
        .await
        .unwrap();
    assert_eq!(cluster.hint_count(fallbacks[0]).await, 1);
    cluster.start_node(primaries[0]).await;
    cluster.all_valid().await;
    delete(&cluster, primaries[1], &key).await;
    // Nothing is to happen meanwhile, so there is no condition to wait for.
    tokio::time::sleep(TEN_GRACES).await;
    assert_eq!(cluster.hint_count(fallbacks[0]).await, 1, "paused");
    for primary in &primaries {
        assert!(
            cluster.present(*primary, &key).await,
            "the hint could still arrive"
        );
    }
    for fallback in &fallbacks {
        cluster.pause(*fallback, "hints", false).await;
    }
    goes_unseen(&cluster, &key).await;
    assert_eq!(cluster.hint_count(fallbacks[0]).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn d17_an_expired_value_is_gone_everywhere_without_a_repair_and_its_record_is_reaped() {
    let cluster = Cluster::start(Shape::quick(3, 0)).await;
    let request = v1::PutRequest {
        ttl_ms: 2000,
        ..to_all("key", "value", &Bytes::new())
    };
    cluster.kv(0).put(request).await.unwrap();
    let found = cluster.kv(1).get(get("key")).await.unwrap().into_inner();
    assert_eq!(values(&found), ["value"]);
    assert!(found.versions[0].expires_at_ms > found.versions[0].written_at_ms);
    for index in 0..3 {
        until("the value expires", || async {
            cluster.read(index, "key").await.is_none()
        })
        .await;
    }
    goes_unseen(&cluster, "key").await;
    assert_eq!(cluster.metrics("dynamo_exchange_keys_total", "").await, 0);
    assert_eq!(cluster.metrics("dynamo_read_repairs_total", "").await, 0);
    // A value that is put without a time to live stays.
    cluster
        .kv(2)
        .put(put("key", "stays", &Bytes::new()))
        .await
        .unwrap();
    assert_eq!(cluster.read(0, "key").await.unwrap(), ["stays"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn d51_a_history_of_many_lives_is_shortened_and_no_value_is_lost() {
    let mut cluster = Cluster::start(Shape {
        configure: |config| {
            crate::harness::quick(config);
            config.background.actors_max = 4;
        },
        ..Shape::new(3, 0)
    })
    .await;
    let mut context = Bytes::new();
    for life in 0..5 {
        let reply = cluster
            .kv(2)
            .put(to_all("key", &format!("life-{life}"), &context))
            .await
            .unwrap();
        context = reply.into_inner().context;
        let before = cluster.status(2).await.incarnation_generation;
        cluster.stop_node(2).await;
        cluster.start_emptied(2).await;
        until("peers tell it of its earlier life", || async {
            cluster.status(2).await.incarnation_generation > before
        })
        .await;
        cluster.all_valid().await;
    }
    until(
        "at most four writers are remembered, the same everywhere",
        || async {
            let mut longest = 0;
            for index in 0..3 {
                assert_eq!(cluster.read(index, "key").await.unwrap(), ["life-4"]);
                longest = longest.max(cluster.local(index, "key").await.state.unwrap().seen.len());
            }
            longest <= 4 && cluster.digests("", "key").await.len() == 1
        },
    )
    .await;
    // The old context still supersedes what it saw.
    cluster.kv(0).put(to_all("key", "last", &context)).await.unwrap();
    assert_eq!(cluster.read(1, "key").await.unwrap(), ["last"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_and_a_concurrent_put_leave_the_value() {
    let cluster = Cluster::start(Shape::quick(3, 0)).await;
    let old = cluster.accepted(0, to_all("key", "old", &Bytes::new())).await;
    cluster
        .kv(1)
        .put(to_all("key", "new", &old.context))
        .await
        .unwrap();
    let request = v1::DeleteRequest {
        key: "key".into(),
        context: old.context,
        ..v1::DeleteRequest::default()
    };
    cluster.kv(2).delete(request).await.unwrap();
    // Nothing is to happen meanwhile, so there is no condition to wait for.
    tokio::time::sleep(TEN_GRACES / 2).await;
    let found = cluster.kv(0).get(get("key")).await.unwrap().into_inner();
    assert_eq!(values(&found), ["new"]);
    assert!(
        found.deleted_concurrently,
        "and it says so, as long as the value lives"
    );
    let missing = cluster.kv(0).get(get("other")).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
}
