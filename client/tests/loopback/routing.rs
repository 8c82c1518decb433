//! Where requests go: to replicas, past silent nodes, and after the ring.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::support::{self, Act, Cluster, Seen, eventually, of_cluster, with_epoch};
use dynamo_client::{Builder, Client, Context};
use dynamo_core::{
    ring::{Member, Ring},
    types::{ClusterId, KeyHash, MemberId, Zone},
};

const ATTEMPT: Duration = Duration::from_millis(400);

/// For tests in which no node is silent: a busy machine must not make one look so, or slow.
fn patient(cluster: &Cluster) -> Builder {
    builder(cluster)
        .hedge_percent(0)
        .attempt_timeout(Duration::from_secs(20))
        .deadline(Duration::from_mins(1))
}

fn builder(cluster: &Cluster) -> Builder {
    Client::builder()
        .endpoint(&cluster.nodes[0].address)
        .attempt_timeout(ATTEMPT)
        .deadline(Duration::from_secs(10))
        .probe_interval(Duration::from_millis(50))
}

#[tokio::test]
async fn d8_requests_go_to_the_first_primary_without_a_hop() {
    let cluster = Cluster::start(6).await;
    let client = patient(&cluster).connect().await.unwrap();
    for index in 0..100 {
        let key = format!("key-{index}");
        let written = client.put(&key, "v", &Context::none()).await.unwrap();
        assert_eq!(written.info.hops, 0);
        assert_eq!(
            written.info.coordinator,
            format!("n{}", cluster.primaries(&key)[0])
        );
        client.get(&key).await.unwrap();
    }
    assert_eq!(cluster.data_requests(), 200);
    assert!(cluster.nodes.iter().all(|node| !node.data_requests().is_empty()));
}

#[tokio::test]
async fn d32_without_primaries_a_write_goes_to_the_first_fallback() {
    let cluster = Cluster::start(6).await;
    let key = cluster.key_at(0);
    let ring = Cluster::ring_of(6);
    let partition = ring.partition_of(KeyHash::of("default", key.as_bytes()));
    let list = ring.preference_list(partition);
    let mut addresses = cluster.addresses();
    for primary in list.primaries {
        addresses[primary] = support::refused().await;
    }
    cluster.set_ring(&ring, &addresses);
    let first = list.fallbacks[0];
    let builder = Client::builder().endpoint(&cluster.nodes[first].address);
    let client = builder
        .attempt_timeout(Duration::from_secs(20))
        .deadline(Duration::from_mins(1))
        .connect()
        .await
        .unwrap();
    for _ in 0..5 {
        client.put(&key, "v", &Context::none()).await.unwrap();
    }
    assert_eq!(cluster.nodes[first].data_requests().len(), 5);
    assert_eq!(cluster.data_requests(), 5);
}

#[tokio::test]
async fn the_own_zone_is_preferred() {
    let cluster = Cluster::start(6).await;
    let client = patient(&cluster).zone("b").connect().await.unwrap();
    for index in 0..50 {
        client
            .put(format!("key-{index}"), "v", &Context::none())
            .await
            .unwrap();
    }
    let of = |index: usize| cluster.nodes[index].data_requests().len();
    assert_eq!(of(1) + of(4), 50);
}

#[tokio::test]
async fn without_a_ring_only_endpoints_are_used() {
    let cluster = Cluster::start(3).await;
    let client = patient(&cluster).ring_aware(false).connect().await.unwrap();
    for index in 0..20 {
        client
            .put(format!("key-{index}"), "v", &Context::none())
            .await
            .unwrap();
    }
    assert!(client.ring().is_none());
    assert_eq!(cluster.nodes[0].data_requests().len(), 20);
}

#[tokio::test]
async fn d8_a_reply_from_a_newer_ring_brings_the_ring() {
    let cluster = Cluster::start(4).await;
    let three = Cluster::ring_of(3);
    cluster.set_ring(&three, &cluster.addresses()[..3]);
    let client = patient(&cluster)
        .ring_refresh_interval(Duration::from_hours(1))
        .connect()
        .await
        .unwrap();
    assert_eq!(client.ring().unwrap().epoch(), 1);
    let four = with_epoch(&Cluster::ring_of(4), 2);
    cluster.set_ring(&four, &cluster.addresses());
    client.put("k", "v", &Context::none()).await.unwrap();
    eventually("the new ring", || client.ring().unwrap().epoch() == 2).await;
    let key = cluster.key_at(3);
    client.put(&key, "v", &Context::none()).await.unwrap();
    assert_eq!(cluster.nodes[3].data_requests().len(), 1);
    // Afterwards the client names what it has, so that the ring is not sent again.
    client.refresh_ring().await.unwrap();
    let asked = cluster.nodes.iter().flat_map(support::FakeNode::seen);
    assert!(
        asked
            .into_iter()
            .any(|seen| seen == Seen::GetRing { known_epoch: 2 })
    );
}

/// The same ring with another epoch.
#[tokio::test]
async fn older_and_foreign_rings_are_not_taken() {
    let cluster = Cluster::start(3).await;
    let ring = Cluster::ring_of(3);
    cluster.set_ring(&with_epoch(&ring, 5), &cluster.addresses());
    let client = patient(&cluster)
        .ring_refresh_interval(Duration::from_hours(1))
        .connect()
        .await
        .unwrap();
    let foreign = of_cluster(&ring, 9, ClusterId([9; 16]));
    for other in [with_epoch(&ring, 4), foreign] {
        cluster.set_ring(&other, &cluster.addresses());
        client.refresh_ring().await.unwrap();
        let held = client.ring().unwrap();
        assert_eq!((held.epoch(), held.cluster_id()), (5, ClusterId([7; 16])));
    }
}

/// Another cluster has got the address of a member: it must not get its data.
#[tokio::test]
async fn a_node_of_another_cluster_gets_nothing() {
    let cluster = Cluster::start(3).await;
    let client = patient(&cluster).connect().await.unwrap();
    cluster.nodes[1].foreign(true);
    let key = cluster.key_at(1);
    client.put(&key, "v", &Context::none()).await.unwrap();
    assert_eq!(client.get(&key).await.unwrap().single().unwrap(), "v");
    assert_eq!(cluster.nodes[1].data_requests(), []);
    cluster.nodes[1].foreign(false);
    // That a probe has come does not mean that its answer has arrived.
    let begin = Instant::now();
    while cluster.nodes[1].data_requests().is_empty() {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "the member is not asked again"
        );
        client.get(&key).await.unwrap();
    }
    assert_eq!(cluster.nodes[1].data_requests().len(), 1);
}

#[tokio::test]
async fn a_silent_node_costs_one_attempt_and_is_skipped_until_it_answers() {
    let cluster = Cluster::start(3).await;
    let client = builder(&cluster).connect().await.unwrap();
    cluster.nodes[1].freeze(true);
    for index in 0..60 {
        client
            .put(format!("key-{index}"), "v", &Context::none())
            .await
            .unwrap();
    }
    assert_eq!(cluster.nodes[1].data_requests().len(), 1);
    // The background asks it again and again, and the foreground returns when it answers.
    let probes = || cluster.nodes[1].seen().len() - cluster.nodes[1].data_requests().len();
    let before = probes();
    eventually("a probe", || probes() > before + 1).await;
    cluster.nodes[1].freeze(false);
    let key = cluster.key_at(1);
    let begin = Instant::now();
    while cluster.nodes[1].data_requests().len() == 1 {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "the node is not used again"
        );
        client.get(&key).await.ok();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_port_that_accepts_and_never_answers_costs_one_attempt() {
    let cluster = Cluster::start(3).await;
    let mut addresses = cluster.addresses();
    addresses[2] = support::black_hole().await;
    cluster.set_ring(&Cluster::ring_of(3), &addresses);
    let client = builder(&cluster).connect().await.unwrap();
    let begin = Instant::now();
    for index in 0..60 {
        client
            .put(format!("key-{index}"), "v", &Context::none())
            .await
            .unwrap();
    }
    let took = begin.elapsed();
    // About 20 of the 60 keys have the hole as their first primary: 4 s if each had paid for it.
    assert!(took >= ATTEMPT && took < ATTEMPT * 8, "{took:?}");
}

#[tokio::test]
async fn no_operation_fails_while_one_zone_of_three_is_a_black_hole() {
    let cluster = Arc::new(Cluster::start(6).await);
    let client = Client::builder()
        .endpoints(cluster.addresses())
        .probe_interval(Duration::from_millis(50))
        .connect()
        .await
        .unwrap();
    let load = |client: Client| async move {
        let tasks = (0..8).map(|task| {
            let client = client.clone();
            tokio::spawn(async move {
                for index in 0..50 {
                    let key = format!("key-{task}-{index}");
                    client.put(&key, "v", &Context::none()).await.unwrap();
                    client.get(&key).await.unwrap();
                }
            })
        });
        futures::future::try_join_all(tasks).await.unwrap();
    };
    load(client.clone()).await;
    for index in [2, 5] {
        cluster.nodes[index].freeze(true);
    }
    load(client.clone()).await;
    for index in [2, 5] {
        cluster.nodes[index].freeze(false);
    }
    load(client).await;
}

#[tokio::test]
async fn a_node_that_stops_is_left_at_once() {
    let mut cluster = Cluster::start(3).await;
    let client = patient(&cluster).connect().await.unwrap();
    let key = cluster.key_at(2);
    client.put(&key, "v", &Context::none()).await.unwrap();
    cluster.nodes[2].stop();
    let begin = Instant::now();
    for _ in 0..20 {
        client.get(&key).await.unwrap();
    }
    assert!(begin.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn endpoints_that_do_not_answer_are_passed_over() {
    let cluster = Cluster::start(3).await;
    let client = Client::builder()
        .endpoint(support::refused().await)
        .endpoint(support::black_hole().await)
        .endpoint(&cluster.nodes[0].address)
        .attempt_timeout(ATTEMPT)
        .connect()
        .await
        .unwrap();
    client.put("k", "v", &Context::none()).await.unwrap();
}

#[tokio::test]
async fn members_that_cannot_be_reached_leave_the_endpoint() {
    // As behind a port-forward: the ring names addresses of another network, or none yet.
    let cluster = Cluster::start(3).await;
    let addresses = [
        support::refused().await,
        String::new(),
        "no such address".to_owned(),
    ];
    cluster.set_ring(&Cluster::ring_of(3), &addresses);
    let client = patient(&cluster).connect().await.unwrap();
    for index in 0..20 {
        client
            .put(format!("key-{index}"), "v", &Context::none())
            .await
            .unwrap();
    }
    assert_eq!(cluster.nodes[0].data_requests().len(), 20);
    // Addresses that become known without a new epoch are learnt.
    cluster.set_ring(&Cluster::ring_of(3), &cluster.addresses());
    client.refresh_ring().await.unwrap();
    let key = cluster.key_at(1);
    client.get(&key).await.ok();
    assert_eq!(cluster.nodes[1].data_requests().len(), 1);
}

#[tokio::test]
async fn a_hung_request_does_not_condemn_a_node_that_answers_others() {
    let cluster = Cluster::start(1).await;
    let members = vec![Member {
        id: MemberId::new("n0").unwrap(),
        zone: Zone::default(),
        weight: 1,
    }];
    let ring = Ring::bootstrap(ClusterId([7; 16]), members, 8, 1).unwrap();
    cluster.set_ring(&ring, &cluster.addresses());
    let client = builder(&cluster).connect().await.unwrap();
    cluster.nodes[0].script([Act::Hang]);
    // The only node: put aside or not, it is asked again, and the operation succeeds within its deadline.
    client.put("k", "v", &Context::none()).await.unwrap();
    assert_eq!(cluster.data_requests(), 2);
}

#[tokio::test]
async fn dropping_the_last_handle_ends_the_background_work() {
    let cluster = Cluster::start(3).await;
    cluster.nodes[1].freeze(true);
    let client = builder(&cluster).connect().await.unwrap();
    let key = cluster.key_at(1);
    client.put(&key, "v", &Context::none()).await.unwrap();
    let copy = client.with_bucket("other");
    drop(client);
    let probes = || cluster.nodes[1].seen().len();
    let before = probes();
    eventually("a probe by the copy", || probes() > before).await;
    drop(copy);
    // A probe that is under way may still be counted; with 50 ms between probes, many more would come.
    let after = probes();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(probes() <= after + 1);
}
