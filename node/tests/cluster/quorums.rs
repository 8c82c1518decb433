//! N, R and W with nodes away (§4.5). Quorums are strict in this release: the N primaries, no fallbacks.

use bytes::Bytes;
use dynamo_proto::v1::{self, write_outcome::State};
use tonic::Code;

use crate::harness::{Cluster, Shape, count, detail, get, index_of, put, values, why};

#[tokio::test(flavor = "multi_thread")]
async fn d30_d31_with_a_zone_gone_quorums_are_met_and_a_write_to_all_says_what_it_did() {
    let mut cluster = Cluster::start(Shape::new(6, 3)).await;
    let none = Bytes::new();
    for number in 0..30 {
        cluster
            .kv(0)
            .put(put(&format!("key-{number}"), "before", &none))
            .await
            .unwrap();
    }
    for gone in [2, 5] {
        cluster.stop_node(gone).await;
    }
    for number in 0..30 {
        let key = format!("key-{number}");
        let read = cluster.kv(number % 2).get(get(&key)).await.unwrap().into_inner();
        assert_eq!(values(&read), ["before"]);
        let reply = cluster
            .accepted(3 + number % 2, put(&key, "after", &read.context))
            .await;
        // The stand-in of the zone's primary may be among those that count.
        let outcome = reply.outcome.unwrap();
        assert!(outcome.acks >= 2 && outcome.primaries >= 1, "{outcome:?}");
        assert_eq!(
            values(&cluster.kv(0).get(get(&key)).await.unwrap().into_inner()),
            ["after"]
        );
    }
    for watcher in [0, 1, 3, 4] {
        for gone in [2, 5] {
            cluster.sees_down(watcher, gone).await;
        }
    }
    // Fallbacks stand in for a zone, but not for primaries that are asked for: known before anything is sent.
    let request = v1::PutRequest {
        pw: count(3),
        ..put("key-0", "never", &none)
    };
    let status = cluster.kv(0).put(request).await.unwrap_err();
    assert_eq!(why(&status), (Code::Unavailable, "QUORUM_NOT_MET".into()));
    let outcome: v1::WriteOutcome = detail(&status, "dynamo.v1.WriteOutcome").unwrap();
    assert_eq!((outcome.state(), outcome.acks), (State::NotApplied, 0));
    assert_eq!(
        values(&cluster.kv(0).get(get("key-0")).await.unwrap().into_inner()),
        ["after"]
    );
    let request = v1::GetRequest {
        pr: count(3),
        ..get("key-0")
    };
    assert_eq!(
        cluster.kv(0).get(request).await.unwrap_err().code(),
        Code::Unavailable
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn not_found_needs_enough_primaries_to_say_so() {
    let mut cluster = Cluster::start(Shape::new(3, 3)).await;
    for gone in [1, 2] {
        cluster.stop_node(gone).await;
    }
    let one = v1::GetRequest {
        r: count(1),
        ..get("nothing")
    };
    let status = cluster.kv(0).get(one).await.unwrap_err();
    assert_eq!(
        status.code(),
        Code::Unavailable,
        "one empty replica of three proves nothing: {}",
        status.message()
    );
    let request = v1::PutRequest {
        w: count(1),
        ..put("key", "value", &Bytes::new())
    };
    let reply = cluster.accepted(0, request).await;
    assert_eq!(reply.outcome.unwrap().acks, 1);
    let one = v1::GetRequest {
        r: count(1),
        ..get("key")
    };
    assert_eq!(
        values(&cluster.kv(0).get(one).await.unwrap().into_inner()),
        ["value"]
    );
    let status = cluster
        .kv(0)
        .put(put("key", "value", &Bytes::new()))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn d33_d34_pw_and_dw_are_counted_on_who_answered() {
    let cluster = Cluster::start(Shape::new(3, 0)).await;
    let request = v1::PutRequest {
        pw: count(3),
        dw: count(3),
        ..put("key", "value", &Bytes::new())
    };
    let outcome = cluster.accepted(0, request).await.outcome.unwrap();
    assert_eq!(
        (outcome.state(), outcome.primaries, outcome.durable),
        (State::Applied, 3, 3)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn with_durability_interval_an_ack_is_not_called_durable_unless_dw_asks_for_it() {
    let cluster = Cluster::start(Shape {
        configure: |config| {
            config.durability.mode = dynamo_node::config::DurabilityMode::Interval;
            config.durability.interval_ms = 60_000;
        },
        ..Shape::new(3, 0)
    })
    .await;
    let outcome = cluster
        .accepted(0, put("key", "value", &Bytes::new()))
        .await
        .outcome
        .unwrap();
    assert!(outcome.acks >= 2 && outcome.durable == 0, "{outcome:?}");
    let request = v1::PutRequest {
        dw: count(2),
        ..put("key", "value", &Bytes::new())
    };
    let outcome = cluster.accepted(0, request).await.outcome.unwrap();
    assert!(outcome.durable >= 2, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_goes_past_a_dead_primary() {
    let mut cluster = Cluster::start(Shape::new(6, 3)).await;
    let key = (0..).map(|number| format!("key-{number}")).next().unwrap();
    let (primaries, fallbacks) = cluster.preference_list(key.as_bytes()).await;
    cluster.stop_node(index_of(&primaries[0])).await;
    let receiver = index_of(&fallbacks[0]);
    for _ in 0..3 {
        let info = cluster
            .accepted(receiver, put(&key, "value", &Bytes::new()))
            .await
            .info
            .unwrap();
        assert_eq!((info.coordinator.as_str(), info.hops), (primaries[1].as_str(), 1));
    }
}
