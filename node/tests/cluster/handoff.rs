//! Sloppy quorums and hinted handoff (§4.6): test H, and the outages of test Q.

use bytes::Bytes;
use dynamo_proto::v1::{self, write_outcome::State};
use tonic::Code;

use crate::harness::{Cluster, Shape, count, detail, get, put, until, values, why};

#[tokio::test(flavor = "multi_thread")]
async fn h_d36_a_hint_survives_its_holder_and_goes_to_the_primary_as_soon_as_that_is_back() {
    let mut cluster = Cluster::start(Shape::quick(5, 0)).await;
    let key = cluster.key_with(|primaries, _| primaries[0] != 0).await;
    let (primaries, fallbacks) = cluster.placed(&key).await;
    let (away, holder) = (primaries[0], fallbacks[0]);
    cluster.stop_node(away).await;
    let outcome = cluster
        .accepted(primaries[1], put(&key, "value", &Bytes::new()))
        .await
        .outcome
        .unwrap();
    assert_eq!(outcome.state(), State::Applied);
    // The stand-in may be asked for after the reply.
    until("the first fallback keeps one hint", || async {
        cluster.hint_count(holder).await == 1
    })
    .await;
    let hints = cluster.hints(holder).await;
    assert_eq!(hints.owners[0].member_id, Cluster::id(away));
    assert!(hints.bytes > 0 && hints.bytes < hints.bytes_max);
    assert!(
        !cluster.present(holder, &key).await,
        "a hint is no data of its own"
    );
    cluster.restart_node(holder).await;
    assert_eq!(cluster.hint_count(holder).await, 1, "it survives");

    cluster.start_node(away).await;
    until("the owner has the value", || async {
        cluster.local_values(away, &key).await == ["value"]
    })
    .await;
    until("the hint is gone", || async {
        cluster.hint_count(holder).await == 0
    })
    .await;
    assert!(!cluster.present(holder, &key).await);
    assert_eq!(
        cluster.metric(holder, "dynamo_hints_delivered_total", "").await,
        1
    );
    cluster.equal("", &key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h_a_fallback_whose_budget_is_spent_declines_and_the_next_takes_over() {
    let mut cluster = Cluster::start(Shape {
        configure_node: |index, config| {
            if index == 4 {
                config.hints.bytes_max = 0;
            }
        },
        ..Shape::quick(5, 0)
    })
    .await;
    let key = cluster
        .key_with(|primaries, fallbacks| fallbacks[0] == 4 && primaries[0] != 0 && fallbacks[1] != 0)
        .await;
    let (primaries, fallbacks) = cluster.placed(&key).await;
    cluster.stop_node(primaries[0]).await;
    let all = v1::PutRequest {
        w: count(3),
        ..put(&key, "value", &Bytes::new())
    };
    let outcome = cluster.kv(primaries[1]).put(all.clone()).await.unwrap();
    let outcome = outcome.into_inner().outcome.unwrap();
    assert_eq!(
        (outcome.acks, outcome.primaries, outcome.fallbacks_counted),
        (3, 2, 1)
    );
    assert_eq!(cluster.hint_count(4).await, 0);
    assert_eq!(cluster.hints(4).await.declined, 1);
    assert_eq!(cluster.metric(4, "dynamo_hints_declined", "").await, 1);
    assert_eq!(cluster.hint_count(fallbacks[1]).await, 1);

    // With nobody left who takes hints only W = 3 fails, and says that some may hold the write.
    cluster.stop_node(fallbacks[1]).await;
    cluster.sees_down(primaries[1], fallbacks[1]).await;
    let status = cluster.kv(primaries[1]).put(all).await.unwrap_err();
    assert_eq!(why(&status), (Code::Unavailable, "QUORUM_NOT_MET".into()));
    let outcome: v1::WriteOutcome = detail(&status, "dynamo.v1.WriteOutcome").unwrap();
    assert_eq!(outcome.state(), State::Partial);
    let two = put(&key, "value", &Bytes::new());
    let outcome = cluster.accepted(primaries[1], two).await.outcome.unwrap();
    assert_eq!((outcome.acks, outcome.fallbacks_counted), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn q_d32_d33_with_two_of_three_primaries_down_w_2_succeeds_and_pw_2_does_not() {
    let mut cluster = Cluster::start(Shape::quick(5, 0)).await;
    let key = cluster
        .key_with(|primaries, _| !primaries[..2].contains(&0))
        .await;
    let (primaries, fallbacks) = cluster.placed(&key).await;
    for gone in &primaries[..2] {
        cluster.stop_node(*gone).await;
    }
    // At a fallback: it forwards to the primary that is left.
    let reply = cluster
        .accepted(fallbacks[0], put(&key, "value", &Bytes::new()))
        .await;
    let (outcome, info) = (reply.outcome.unwrap(), reply.info.unwrap());
    assert_eq!(
        (info.coordinator, info.hops),
        (Cluster::id(primaries[2]), 1),
        "the primary that is left"
    );
    // Whose disk was faster: the coordinator's own, or those of both fallbacks.
    assert_eq!(
        (outcome.acks, outcome.primaries + outcome.fallbacks_counted),
        (2, 2)
    );
    assert!(outcome.fallbacks_counted >= 1, "{outcome:?}");
    assert_eq!(info.fallbacks_counted, outcome.fallbacks_counted);
    assert_eq!(
        cluster.read(fallbacks[1], &key).await.unwrap(),
        ["value"],
        "readable at R = 2"
    );

    let strict = v1::PutRequest {
        pw: count(2),
        ..put(&key, "never counted", &Bytes::new())
    };
    let status = cluster.kv(primaries[2]).put(strict).await.unwrap_err();
    assert_eq!(why(&status), (Code::Unavailable, "QUORUM_NOT_MET".into()));
    let outcome: v1::WriteOutcome = detail(&status, "dynamo.v1.WriteOutcome").unwrap();
    assert!(
        matches!(outcome.state(), State::NotApplied | State::Partial),
        "{outcome:?}"
    );
    let strict = v1::GetRequest {
        pr: count(2),
        ..get(&key)
    };
    assert_eq!(
        cluster.kv(primaries[2]).get(strict).await.unwrap_err().code(),
        Code::Unavailable
    );

    for gone in &primaries[..2] {
        cluster.start_node(*gone).await;
    }
    for fallback in fallbacks {
        until("all hints are delivered", || async {
            cluster.hint_count(fallback).await == 0
        })
        .await;
    }
    cluster.equal("", &key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d32_without_any_primary_fallbacks_coordinate_and_keep_the_write() {
    let mut cluster = Cluster::start(Shape::quick(6, 0)).await;
    let key = cluster.key_with(|primaries, _| !primaries.contains(&0)).await;
    let (primaries, fallbacks) = cluster.placed(&key).await;
    for gone in &primaries {
        cluster.stop_node(*gone).await;
    }
    for gone in &primaries {
        cluster.sees_down(fallbacks[2], *gone).await;
    }
    let reply = cluster
        .accepted(fallbacks[2], put(&key, "value", &Bytes::new()))
        .await;
    let outcome = reply.outcome.unwrap();
    assert_eq!(
        (outcome.state(), outcome.primaries),
        (State::Applied, 0),
        "{outcome:?}"
    );
    assert_eq!(outcome.acks, outcome.fallbacks_counted);
    // The one that has seen it knows a successor by its context, although nobody else does.
    let next = put(&key, "next", &reply.context);
    cluster.kv(fallbacks[2]).put(next).await.unwrap();
    for gone in &primaries {
        cluster.start_node(*gone).await;
    }
    for primary in &primaries {
        until("every primary has the last value alone", || async {
            cluster.local_values(*primary, &key).await == ["next"]
        })
        .await;
    }
    for fallback in &fallbacks {
        until("all hints are delivered", || async {
            cluster.hint_count(*fallback).await == 0
        })
        .await;
        assert!(!cluster.present(*fallback, &key).await);
    }
    cluster.equal("", &key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d35_zones_that_must_have_accepted_a_write_include_those_of_fallbacks() {
    let mut cluster = Cluster::start(Shape::quick(6, 3)).await;
    let key = cluster
        .key_with(|primaries, _| !primaries[1..].contains(&0))
        .await;
    let (primaries, fallbacks) = cluster.placed(&key).await;
    let zones = |zones| v1::PutRequest {
        w: count(zones),
        zones: count(zones),
        ..put(&key, "value", &Bytes::new())
    };
    for gone in &primaries[1..] {
        cluster.stop_node(*gone).await;
    }
    // The other nodes of those zones stand in.
    let outcome = cluster.accepted(primaries[0], zones(3)).await.outcome.unwrap();
    assert_eq!(
        (outcome.zones, outcome.primaries, outcome.fallbacks_counted),
        (3, 1, 2)
    );
    let zone = |index: usize| cluster.zone(index);
    let others: Vec<usize> = fallbacks
        .into_iter()
        .filter(|index| zone(*index) != zone(primaries[0]))
        .collect();
    // Node 0 is in the zone that stays, or one of its others.
    for gone in &others {
        cluster.stop_node(*gone).await;
    }
    for gone in &others {
        cluster.sees_down(primaries[0], *gone).await;
    }
    let status = cluster.kv(primaries[0]).put(zones(2)).await.unwrap_err();
    assert_eq!(why(&status), (Code::Unavailable, "QUORUM_NOT_MET".into()));
    let one_zone = v1::PutRequest {
        zones: count(1),
        ..put(&key, "value", &Bytes::new())
    };
    let outcome = cluster.accepted(primaries[0], one_zone).await.outcome.unwrap();
    assert_eq!((outcome.acks, outcome.zones), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn q_d40_with_one_live_node_w_1_succeeds_and_survives_a_full_restart() {
    let mut cluster = Cluster::start(Shape::quick(3, 3)).await;
    for gone in [1, 2] {
        cluster.stop_node(gone).await;
    }
    let request = v1::PutRequest {
        w: count(1),
        dw: count(1),
        ..put("key", "value", &Bytes::new())
    };
    let outcome = cluster.accepted(0, request).await.outcome.unwrap();
    assert_eq!((outcome.acks, outcome.durable), (1, 1));
    cluster.stop_node(0).await;
    for index in [2, 0, 1] {
        cluster.start_node(index).await;
    }
    cluster.all_valid().await;
    for index in 0..3 {
        until("anti-entropy brings it everywhere", || async {
            cluster.local_values(index, "key").await == ["value"]
        })
        .await;
    }
    assert_eq!(
        values(&cluster.kv(1).get(get("key")).await.unwrap().into_inner()),
        ["value"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn x_a_zone_goes_and_comes_back_under_load() {
    let mut cluster = Cluster::start(Shape::quick(6, 3)).await;
    let write = async |cluster: &Cluster, at: usize, round: usize| {
        for number in 0..30 {
            let key = format!("key-{number}");
            let context = match cluster.kv(at).get(get(&key)).await {
                Ok(found) => found.into_inner().context,
                Err(status) => {
                    assert_eq!((status.code(), round), (Code::NotFound, 0), "{status}");
                    Bytes::new()
                }
            };
            cluster
                .kv(at)
                .put(put(&key, &format!("round-{round}"), &context))
                .await
                .unwrap();
        }
    };
    write(&cluster, 0, 0).await;
    for gone in [1, 4] {
        cluster.stop_node(gone).await;
    }
    write(&cluster, 2, 1).await;
    write(&cluster, 3, 2).await;
    let mut hints = 0;
    for index in cluster.up() {
        hints += cluster.hint_count(index).await;
    }
    assert!(hints > 0, "stand-ins keep hints for the zone");
    for back in [4, 1] {
        cluster.start_node(back).await;
    }
    write(&cluster, 5, 3).await;
    for index in cluster.up() {
        until("hints drain", || async { cluster.hint_count(index).await == 0 }).await;
    }
    for number in 0..30 {
        let key = format!("key-{number}");
        cluster.equal("", &key).await;
        assert_eq!(cluster.read(1, &key).await.unwrap(), ["round-3"]);
    }
}
