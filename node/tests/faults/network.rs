//! Cut and slow ways: test F, and disconnected operation (D41).

use bytes::Bytes;
use dynamo_proto::{fault::PeerFault, v1};
use tonic::Code;

use crate::{
    cut,
    harness::{Cluster, Shape, count, get, put, until, values},
    heal, set, towards,
};

#[tokio::test(flavor = "multi_thread")]
async fn f_d62_a_cut_in_one_direction_concerns_only_the_node_that_cannot_send() {
    let cluster = Cluster::start(Shape {
        configure: |config| {
            crate::harness::quick(config);
            config.limits.peer_timeout_ms = 500;
        },
        ..Shape::quick(5, 0)
    })
    .await;
    let key = cluster.key_with(|_, _| true).await;
    let (primaries, _) = cluster.placed(&key).await;
    let [a, b, c] = primaries[..] else {
        panic!("three primaries")
    };
    let epoch = cluster.status(a).await.ring_epoch;
    set(&cluster, a, towards([b], &cut())).await;
    // Also before it is noticed: a stand-in is found within the request.
    let three = |value: &str, context: &Bytes| v1::PutRequest {
        w: count(3),
        ..put(&key, value, context)
    };
    let reply = cluster.accepted(a, three("first", &Bytes::new())).await;
    let outcome = reply.outcome.unwrap();
    assert_eq!(
        (outcome.primaries, outcome.fallbacks_counted),
        (2, 1),
        "A uses a fallback"
    );
    cluster.sees_down(a, b).await;
    let reply = cluster.accepted(c, three("second", &reply.context)).await;
    let outcome = reply.outcome.unwrap();
    assert_eq!(
        (outcome.primaries, outcome.fallbacks_counted),
        (3, 0),
        "C still uses B"
    );
    let reply = cluster.accepted(b, three("third", &reply.context)).await;
    assert_eq!(reply.outcome.unwrap().primaries, 3, "and B reaches A");
    for index in [b, c] {
        assert_eq!(cluster.status(index).await.peers_down, [] as [String; 0]);
    }
    for index in 0..5 {
        assert_eq!(
            cluster.status(index).await.ring_epoch,
            epoch,
            "the ring is unchanged"
        );
    }
    heal(&cluster).await;
    cluster.all_valid().await;
    for index in cluster.up() {
        until("hints drain", || async { cluster.hint_count(index).await == 0 }).await;
    }
    cluster.equal("", &key).await;
    assert_eq!(cluster.read(a, &key).await.unwrap(), ["third"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn f_d71_a_slow_node_is_neither_waited_for_nor_taken_for_dead() {
    let cluster = Cluster::start(Shape {
        configure: |config| {
            crate::harness::quick(config);
            config.limits.peer_timeout_ms = 500;
        },
        ..Shape::quick(3, 0)
    })
    .await;
    let delayed = PeerFault {
        delay_ms: 600,
        ..PeerFault::default()
    };
    set(&cluster, 0, towards([2], &delayed)).await;
    set(&cluster, 1, towards([2], &delayed)).await;
    for number in 0..20 {
        let key = format!("key-{number}");
        // No request lasts as long as one call to the slow node: it is never the one that is waited for.
        let within = |request: v1::PutRequest| {
            let mut request = tonic::Request::new(request);
            request.set_timeout(std::time::Duration::from_millis(450));
            request
        };
        let request = within(put(&key, "value", &Bytes::new()));
        let reply = cluster.accepted(number % 2, request).await;
        assert!(reply.outcome.unwrap().acks >= 2);
        let found = cluster.kv(number % 2).get(get(&key)).await.unwrap().into_inner();
        assert_eq!(values(&found), ["value"]);
        assert_ne!(found.info.unwrap().fastest, Cluster::id(2));
    }
    for index in [0, 1] {
        assert_eq!(
            cluster.status(index).await.peers_down,
            [] as [String; 0],
            "slow is not down"
        );
    }
    heal(&cluster).await;
    for number in 0..20 {
        cluster.equal("", &format!("key-{number}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d41_both_halves_of_a_split_cluster_take_writes_and_all_of_them_are_there_afterwards() {
    let cluster = Cluster::start(Shape {
        configure: |config| {
            crate::harness::quick(config);
            config.limits.peer_timeout_ms = 300;
        },
        ..Shape::quick(5, 0)
    })
    .await;
    let halves = [vec![0, 1], vec![2, 3, 4]];
    for (half, other) in [(0, 1), (1, 0)] {
        for index in &halves[half] {
            set(&cluster, *index, towards(halves[other].clone(), &cut())).await;
        }
    }
    // Both halves learn it as they go.
    let mut acknowledged = 0;
    for number in 0..12 {
        for half in &halves {
            let index = half[number % half.len()];
            let one = v1::PutRequest {
                w: count(1),
                ..put(
                    &format!("key-{number}"),
                    &format!("from-{}", half[0]),
                    &Bytes::new(),
                )
            };
            until("a write at W = 1 is taken", || async {
                match cluster.kv(index).put(one.clone()).await {
                    Ok(_) => true,
                    // Sent to a coordinator beyond the cut, before that was known. The value is the same again.
                    Err(status) => {
                        assert!(
                            matches!(status.code(), Code::DeadlineExceeded | Code::Unavailable),
                            "{status}"
                        );
                        false
                    }
                }
            })
            .await;
            acknowledged += 1;
        }
    }
    assert_eq!(acknowledged, 24);
    heal(&cluster).await;
    cluster.all_valid().await;
    for number in 0..12 {
        let key = format!("key-{number}");
        let (primaries, _) = cluster.placed(&key).await;
        for primary in primaries {
            until("both halves' values are on every primary", || async {
                let mut values = cluster.local_values(primary, &key).await;
                values.dedup();
                values == ["from-0", "from-2"]
            })
            .await;
        }
        cluster.equal("", &key).await;
    }
    for index in cluster.up() {
        until("hints drain", || async { cluster.hint_count(index).await == 0 }).await;
    }
}
