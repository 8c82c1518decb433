//! Volumes that were lost, or put back in time (§4.6 takes a returning store at its word; here it is not believed).

use bytes::Bytes;
use dynamo_proto::v1;
use tonic::Code;

use crate::harness::{Cluster, Shape, count, get, put, quick, until, values};

fn to_all(key: &str, value: &str, context: &Bytes) -> v1::PutRequest {
    v1::PutRequest {
        w: count(3),
        ..put(key, value, context)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_an_emptied_volume_fills_no_quorum_until_it_is_whole() {
    let mut cluster = Cluster::start(Shape {
        configure: |config| {
            quick(config);
            // Long enough to look at it.
            config.background.recovery_delay_ms = 6000;
        },
        ..Shape::new(3, 3)
    })
    .await;
    for number in 0..100 {
        cluster
            .kv(0)
            .put(to_all(&format!("key-{number}"), "value", &Bytes::new()))
            .await
            .unwrap();
    }
    let before = cluster.status(2).await;
    cluster.stop_node(2).await;
    cluster.start_emptied(2).await;
    until("the node knows that it lost something", || async {
        cluster.status(2).await.partitions_suspect == 16
    })
    .await;
    let after = cluster.status(2).await;
    assert_eq!(after.member_id, before.member_id);
    assert!(
        after.incarnation_generation > before.incarnation_generation,
        "another life"
    );
    let (code, why) = cluster.http(2, "/readyz").await;
    assert_eq!(code, 503);
    assert!(why.contains("suspect") && why.contains("16 partitions"), "{why}");
    assert_eq!(cluster.metric(2, "dynamo_partitions_suspect", "").await, 16);
    let mine = v1::ReplicaGetRequest {
        key: "key-0".into(),
        ..v1::ReplicaGetRequest::default()
    };
    assert!(
        cluster
            .kv(2)
            .replica_get(mine)
            .await
            .unwrap()
            .into_inner()
            .suspect
    );
    // It coordinates, and is never taken for one that says "no".
    for number in 0..100 {
        let one = v1::GetRequest {
            r: count(1),
            ..get(&format!("key-{number}"))
        };
        let found = cluster.kv(2).get(one).await.unwrap().into_inner();
        assert_eq!(values(&found), ["value"]);
    }
    cluster.stop_node(0).await;
    let status = cluster.kv(1).get(get("key-0")).await.unwrap_err();
    assert_eq!(
        status.code(),
        Code::Unavailable,
        "one whole replica is no quorum: {status}"
    );
    let status = cluster.kv(1).get(get("nothing")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "and proves no absence");
    // It takes writes long before, as soon as a peer has compared it.
    until("a write is taken", || async {
        let taken = cluster.kv(2).put(put("key-0", "meanwhile", &Bytes::new())).await;
        taken.is_ok()
    })
    .await;
    cluster.start_node(0).await;
    until("the node is whole", || async {
        cluster.http(2, "/readyz").await.0 == 200
    })
    .await;
    assert_eq!(cluster.status(2).await.partitions_suspect, 0);
    for number in 1..100 {
        assert_eq!(cluster.local_values(2, &format!("key-{number}")).await, ["value"]);
    }
    assert_eq!(cluster.local_values(2, "key-0").await, ["meanwhile", "value"]);
    // Whole is whole, also after a restart.
    cluster.restart_node(2).await;
    cluster.all_valid().await;
    assert_eq!(cluster.status(2).await.partitions_suspect, 0);
    assert_eq!(cluster.status(2).await.incarnation_id, after.incarnation_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_goes_on_after_a_restart() {
    let mut cluster = Cluster::start(Shape::quick(3, 0)).await;
    for number in 0..50 {
        cluster
            .kv(0)
            .put(to_all(&format!("key-{number}"), "value", &Bytes::new()))
            .await
            .unwrap();
    }
    cluster.stop_node(2).await;
    cluster.stop_node(1).await;
    cluster.start_emptied(2).await;
    // Node 0 alone is not enough: the third may know of writes that node 0 has missed.
    until("half of it is done", || async {
        cluster.status(2).await.partitions_suspect == 16
    })
    .await;
    until("node 0 has been pulled from", || async {
        cluster.local_values(2, "key-49").await == ["value"]
    })
    .await;
    assert_eq!(cluster.http(2, "/readyz").await.0, 503);
    cluster.restart_node(2).await;
    assert_eq!(cluster.status(2).await.partitions_suspect, 16, "still");
    cluster.start_node(1).await;
    until("the node is whole", || async {
        cluster.http(2, "/readyz").await.0 == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn v_two_blind_puts_through_a_node_that_lost_its_copy_between_them_both_stay() {
    let mut cluster = Cluster::start(Shape::quick(3, 0)).await;
    cluster
        .kv(2)
        .put(to_all("key", "v1", &Bytes::new()))
        .await
        .unwrap();
    cluster.stop_node(2).await;
    cluster.start_emptied(2).await;
    until("it serves writes", || async {
        cluster
            .kv(2)
            .put(put("another", "value", &Bytes::new()))
            .await
            .is_ok()
    })
    .await;
    let reply = cluster.accepted(2, put("key", "v2", &Bytes::new())).await;
    assert_eq!(reply.info.unwrap().coordinator, Cluster::id(2));
    for index in 0..3 {
        until("both values are everywhere", || async {
            cluster.local_values(index, "key").await == ["v1", "v2"]
        })
        .await;
    }
    cluster.equal("", "key").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn z3_an_old_copy_of_a_volume_is_set_aside_and_no_deleted_value_comes_back() {
    let mut cluster = Cluster::start(Shape::quick(3, 3)).await;
    for key in ["deleted", "kept"] {
        cluster
            .kv(0)
            .put(to_all(key, "value", &Bytes::new()))
            .await
            .unwrap();
    }
    cluster.stop_node(2).await;
    let old = cluster.snapshot(2);
    cluster.start_node(2).await;
    cluster.all_valid().await;
    let request = v1::DeleteRequest {
        key: "deleted".into(),
        force: true,
        ..v1::DeleteRequest::default()
    };
    cluster.kv(1).delete(request).await.unwrap();
    until("the tombstone is gone everywhere", || async {
        let mut present = false;
        for index in 0..3 {
            present |= cluster.present(index, "deleted").await;
        }
        !present
    })
    .await;
    let lost = cluster
        .kv(2)
        .put(to_all("lost", "value", &Bytes::new()))
        .await
        .unwrap();
    assert_eq!(lost.into_inner().outcome.unwrap().acks, 3);
    let before = cluster.status(2).await;
    cluster.stop_node(2).await;

    cluster.put_back(2, old);
    cluster.start_node(2).await;
    cluster.ended(2).await;
    cluster.start_node(2).await;
    assert!(
        cluster.dir(2).join("set-aside-1").is_dir(),
        "nothing is thrown away"
    );
    until("it begins another life", || async {
        cluster.status(2).await.incarnation_generation > before.incarnation_generation
    })
    .await;
    assert_eq!(
        cluster.status(2).await.member_id,
        before.member_id,
        "it knows who it is"
    );
    until("the node is whole", || async {
        for index in 0..3 {
            assert_eq!(cluster.read(index, "deleted").await, None, "no zombie");
        }
        cluster.http(2, "/readyz").await.0 == 200
    })
    .await;
    for key in ["kept", "lost"] {
        assert_eq!(cluster.local_values(2, key).await, ["value"]);
    }
    cluster.equal_trees().await;
    for index in 0..3 {
        assert!(!cluster.present(index, "deleted").await);
        assert_eq!(cluster.read(index, "deleted").await, None);
    }

    // Only an administrator's word brings back what the old copy held.
    let unknown = cluster.salvage(2, "../set-aside-1", false).await.unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidArgument);
    assert!(unknown.message().contains("set-aside-1"), "{}", unknown.message());
    let counted = cluster.salvage(2, "set-aside-1", true).await.unwrap();
    assert_eq!((counted.records, counted.merged, counted.percent), (2, 0, 100));
    assert_eq!(cluster.read(0, "deleted").await, None);
    let salvaged = cluster.salvage(2, "set-aside-1", false).await.unwrap();
    assert_eq!((salvaged.records, salvaged.merged, salvaged.damaged), (2, 2, 0));
    for index in 0..3 {
        assert_eq!(cluster.local_values(index, "deleted").await, ["value"]);
        assert_eq!(
            cluster.local_values(index, "lost").await,
            ["value"],
            "and takes nothing away"
        );
    }
}

/// What a store takes before any peer has told it that it is an old copy outlives it, be it acknowledged by this node alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_only_an_old_copy_of_a_volume_took_is_not_set_aside_with_it() {
    let mut cluster = Cluster::start(Shape::quick(3, 3)).await;
    cluster.stop_node(2).await;
    let old = cluster.snapshot(2);
    cluster.start_node(2).await;
    // Peers remember one start more than the copy will have.
    cluster.restart_node(2).await;
    cluster.all_valid().await;
    for index in [2, 0, 1] {
        cluster.stop_node(index).await;
    }
    cluster.put_back(2, old);
    cluster.start_node(2).await;
    let alone = v1::PutRequest {
        w: count(1),
        ..put("alone", "value", &Bytes::new())
    };
    until("the node takes a write with nobody to ask", || async {
        cluster.kv(2).put(alone.clone()).await.is_ok()
    })
    .await;
    cluster.start_node(0).await;
    cluster.start_node(1).await;
    cluster.ended(2).await;
    cluster.start_node(2).await;
    until("everybody has the write, and nobody a hint", || async {
        let mut there = true;
        for index in 0..3 {
            there &= cluster.local_values(index, "alone").await == ["value"];
            there &= cluster.hint_count(index).await == 0;
        }
        there
    })
    .await;
    assert!(cluster.dir(2).join("set-aside-1").is_dir(), "it was an old copy");
}
