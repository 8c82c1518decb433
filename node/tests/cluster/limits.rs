//! Bounds: bad input gets a clear error and changes nothing.

use bytes::Bytes;
use dynamo_proto::v1;
use tonic::Code;

use crate::harness::{Cluster, Shape, count, get, put, until, why};

#[tokio::test(flavor = "multi_thread")]
async fn d16_keys_and_values_have_bounds_and_ten_thousand_oversize_puts_cost_nothing() {
    let cluster = Cluster::start(Shape {
        configure: |config| config.limits.value_bytes_max = 1000,
        ..Shape::new(3, 0)
    })
    .await;
    let mut kv = cluster.kv(0);
    let largest = v1::PutRequest {
        value: vec![1; 1000].into(),
        ..put("key", "", &Bytes::new())
    };
    kv.put(largest.clone()).await.unwrap();
    let oversize = v1::PutRequest {
        value: vec![1; 1001].into(),
        ..largest
    };
    for _ in 0..10_000 {
        let status = kv.put(oversize.clone()).await.unwrap_err();
        assert_eq!(why(&status), (Code::InvalidArgument, "INVALID_ARGUMENT".into()));
        assert!(status.message().contains("1001 bytes") && status.message().contains("at most 1000"));
    }
    let read = kv.get(get("key")).await.unwrap().into_inner();
    assert_eq!((read.versions.len(), read.versions[0].value.len()), (1, 1000));

    for length in [0, 4097] {
        let request = v1::GetRequest {
            key: vec![b'k'; length].into(),
            ..v1::GetRequest::default()
        };
        let status = kv.get(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("1..=4096"), "{}", status.message());
    }
    let longest = v1::PutRequest {
        key: vec![b'k'; 4096].into(),
        ..put("", "value", &Bytes::new())
    };
    kv.put(longest).await.unwrap();
    let bucket = v1::GetRequest {
        bucket: "No Bucket".into(),
        ..get("key")
    };
    assert_eq!(kv.get(bucket).await.unwrap_err().code(), Code::InvalidArgument);
    let op_id = v1::PutRequest {
        op_id: vec![1; 15].into(),
        ..put("key", "value", &Bytes::new())
    };
    assert_eq!(kv.put(op_id).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn d31_quorums_out_of_range_are_refused_and_the_reply_echoes_those_in_effect() {
    let cluster = Cluster::start(Shape::new(3, 0)).await;
    let mut kv = cluster.kv(0);
    for bad in [0, 4] {
        let request = v1::PutRequest {
            w: count(bad),
            ..put("key", "value", &Bytes::new())
        };
        let status = kv.put(request).await.unwrap_err();
        assert_eq!(why(&status), (Code::InvalidArgument, "INVALID_ARGUMENT".into()));
        let request = v1::GetRequest {
            r: count(bad),
            ..get("key")
        };
        assert_eq!(kv.get(request).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let request = v1::PutRequest {
        w: count(3),
        dw: count(1),
        ..put("key", "value", &Bytes::new())
    };
    let reply = kv.put(request).await.unwrap().into_inner();
    let quorum = reply.info.unwrap().quorum.unwrap();
    assert_eq!((quorum.replicas, quorum.r, quorum.w, quorum.dw), (3, 2, 3, 1));
    assert_eq!(reply.outcome.unwrap().acks, 3);
    let level = Some(v1::Replicas {
        amount: Some(v1::replicas::Amount::Level(v1::replicas::Level::All.into())),
    });
    let reply = kv
        .get(v1::GetRequest {
            r: level,
            ..get("key")
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(reply.info.unwrap().acks, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_and_first_sibling_is_refused_and_a_resolving_put_is_not() {
    let cluster = Cluster::start(Shape::new(3, 0)).await;
    let mut kv = cluster.kv(0);
    for number in 0..100 {
        kv.put(put("key", &number.to_string(), &Bytes::new()))
            .await
            .unwrap();
    }
    // The coordinator's copy is complete: every put went through it.
    let status = kv.put(put("key", "one more", &Bytes::new())).await.unwrap_err();
    assert_eq!(
        why(&status),
        (Code::ResourceExhausted, "TOO_MANY_SIBLINGS".into())
    );
    let read = kv.get(get("key")).await.unwrap().into_inner();
    assert_eq!(read.versions.len(), 100);
    kv.put(put("key", "resolved", &read.context)).await.unwrap();
    assert_eq!(kv.get(get("key")).await.unwrap().into_inner().versions.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_bound_are_closed_and_room_is_given_back() {
    let cluster = Cluster::start(
        Shape {
            configure: |config| config.limits.connections_max = 16,
            ..Shape::new(1, 0)
        }
        .with_factor(1),
    )
    .await;
    let address = cluster.node(0).client;
    let mut held = Vec::new();
    until("the port is full", || {
        held.push(std::net::TcpStream::connect(address).unwrap());
        async { cluster.kv(0).get(get("key")).await.unwrap_err().code() != Code::NotFound }
    })
    .await;
    assert!(held.len() <= 18, "{} connections were held", held.len());
    drop(held);
    until("there is room again", || async {
        cluster.kv(0).get(get("key")).await.unwrap_err().code() == Code::NotFound
    })
    .await;
}
