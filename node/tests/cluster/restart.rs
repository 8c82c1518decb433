//! What survives a stop: everything acknowledged, who a node is, whom it knows.

use bytes::Bytes;
use dynamo_proto::admin::{LocalGetRequest, MembershipLogRequest};

use crate::harness::{Cluster, Shape, count, get, put, values};

#[tokio::test(flavor = "multi_thread")]
async fn k11_k19_all_nodes_stop_and_come_back_at_other_addresses_with_data_and_ring() {
    let mut cluster = Cluster::start(Shape::new(4, 2)).await;
    let mut contexts = Vec::new();
    for number in 0..50 {
        let reply = cluster
            .kv(number % 4)
            .put(put(&format!("key-{number}"), "value", &Bytes::new()))
            .await
            .unwrap();
        contexts.push(reply.into_inner().context);
    }
    let before = cluster.status(2).await;
    let log = cluster
        .admin(2)
        .membership_log(MembershipLogRequest {})
        .await
        .unwrap()
        .into_inner();
    for index in 0..4 {
        cluster.stop_node(index).await;
    }
    // In another order, and all but the seed at ports of the system's choice: identity is the member id, never an address.
    for index in [3, 1, 0, 2] {
        cluster.start_node(index).await;
    }
    cluster.all_valid().await;
    let after = cluster.status(2).await;
    assert_eq!(
        (after.ring_epoch, after.ring_hash),
        (before.ring_epoch, before.ring_hash),
        "a restart is no change"
    );
    assert_eq!(
        (after.member_id, after.zone, after.incarnation_id),
        (before.member_id, before.zone, before.incarnation_id),
        "a clean stop keeps the incarnation"
    );
    assert_eq!(
        cluster
            .admin(2)
            .membership_log(MembershipLogRequest {})
            .await
            .unwrap()
            .into_inner(),
        log
    );
    for (number, context) in contexts.iter().enumerate() {
        let key = format!("key-{number}");
        assert_eq!(
            values(
                &cluster
                    .kv((number + 1) % 4)
                    .get(get(&key))
                    .await
                    .unwrap()
                    .into_inner()
            ),
            ["value"]
        );
        // Contexts outlive the process, and counters go on where they were.
        cluster
            .kv((number + 2) % 4)
            .put(put(&key, "next", context))
            .await
            .unwrap();
        assert_eq!(
            values(&cluster.kv(number % 4).get(get(&key)).await.unwrap().into_inner()),
            ["next"]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_keeps_what_it_had() {
    let mut cluster = Cluster::start(Shape::new(3, 3)).await;
    let mut all = put("key", "value", &Bytes::new());
    all.w = count(3);
    cluster.kv(0).put(all).await.unwrap();
    cluster.stop_node(2).await;
    cluster.start_node(2).await;
    cluster.all_valid().await;
    let request = LocalGetRequest {
        bucket: String::new(),
        key: "key".into(),
    };
    let local = cluster.admin(2).local_get(request).await.unwrap().into_inner();
    assert_eq!(local.versions.len(), 1);
    assert!(local.state.unwrap().present);
}
