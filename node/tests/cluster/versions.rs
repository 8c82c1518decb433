//! Versions as clients see them (§4.4). The laws themselves are property tests of the core.

use bytes::Bytes;
use dynamo_proto::{admin::InspectRequest, v1};

use crate::harness::{Cluster, Shape, get, put, values};

#[tokio::test(flavor = "multi_thread")]
async fn v_a_put_with_the_first_puts_context_leaves_the_second_alone() {
    let cluster = Cluster::start(Shape::new(3, 3)).await;
    let mut kv = cluster.kv(0);
    let none = Bytes::new();
    let first = kv
        .put(put("key", "v1", &none))
        .await
        .unwrap()
        .into_inner()
        .context;
    kv.put(put("key", "v2", &none)).await.unwrap();
    kv.put(put("key", "v3", &first)).await.unwrap();
    assert_eq!(
        values(&kv.get(get("key")).await.unwrap().into_inner()),
        ["v2", "v3"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn v_d45_a_thousand_interleaved_pairs_leave_two_siblings() {
    let cluster = Cluster::start(Shape::new(3, 3)).await;
    let mut writers = [(cluster.kv(0), Bytes::new()), (cluster.kv(1), Bytes::new())];
    for round in 0..1000 {
        for (writer, (kv, context)) in writers.iter_mut().enumerate() {
            let request = put("key", &format!("{writer}-{round}"), context);
            *context = kv.put(request).await.unwrap().into_inner().context;
        }
    }
    let read = cluster.kv(2).get(get("key")).await.unwrap().into_inner();
    assert_eq!(values(&read), ["0-999", "1-999"]);
    assert!(
        read.context.len() < 512,
        "the context does not grow with the history: {} bytes",
        read.context.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn d44_d46_replicas_hold_the_same_actors_and_no_ancestor() {
    let cluster = Cluster::start(Shape::new(3, 3)).await;
    let mut kv = cluster.kv(0);
    let mut all = put("key", "first", &Bytes::new());
    all.w = crate::harness::count(3);
    let first = kv.put(all).await.unwrap().into_inner().context;
    let mut all = put("key", "second", &first);
    all.w = crate::harness::count(3);
    kv.put(all).await.unwrap();
    let request = InspectRequest {
        bucket: String::new(),
        key: "key".into(),
    };
    let replicas = cluster
        .admin(1)
        .inspect(request)
        .await
        .unwrap()
        .into_inner()
        .replicas;
    assert_eq!(replicas.len(), 3);
    for replica in &replicas {
        assert_eq!(replica.error, "");
        assert_eq!(replica.digest, replicas[0].digest, "replicas are byte-equal");
        assert_eq!(replica.siblings.len(), 1, "the ancestor is gone");
        assert_eq!(replica.siblings[0].value_bytes, "second".len() as u64);
        let issued: u64 = replica.seen.iter().map(|actor| actor.counter).sum();
        assert_eq!(issued, 2, "one dot for each put");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_with_the_same_op_id_counts_once() {
    let cluster = Cluster::start(Shape::new(3, 3)).await;
    let mut request = put("key", "once", &Bytes::new());
    request.op_id = Bytes::from_static(&[9; 16]);
    // The same operation through every node: other coordinators may take it, and still it is read once.
    let mut contexts = Vec::new();
    for index in [0, 0, 1, 2] {
        contexts.push(cluster.accepted(index, request.clone()).await.context);
    }
    assert_eq!(
        contexts[0], contexts[1],
        "the coordinator answers the first dot again"
    );
    let read = cluster.kv(0).get(get("key")).await.unwrap().into_inner();
    assert_eq!(values(&read), ["once"]);
    let mut other = request;
    other.op_id = Bytes::from_static(&[8; 16]);
    cluster.kv(0).put(other).await.unwrap();
    let read: v1::GetResponse = cluster.kv(0).get(get("key")).await.unwrap().into_inner();
    assert_eq!(values(&read), ["once", "once"]);
}
