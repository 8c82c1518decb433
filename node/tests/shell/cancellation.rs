//! A client that goes away leaves nothing behind: no request in flight, no connection.

use std::time::Duration;

use dynamo_proto::v1::{ListKeysRequest, key_value_client::KeyValueClient};
use tokio::time::{Instant, sleep};
use tonic::transport::Endpoint;

use crate::harness::{Cluster, Shape, World, connect, id, put, run, until, within};

/// Longer than anything here takes.
const PATIENT: Duration = Duration::from_secs(30);

/// Peers are waited for, so that requests stay in flight.
pub(crate) fn patient(nodes: usize) -> Shape {
    Shape {
        configure: |config| config.limits.peer_timeout_ms = 20_000,
        ..Shape::new(nodes)
    }
}

/// Stops what goes between node 0 and the two others.
pub(crate) fn hold() {
    turmoil::hold(id(0), id(1));
    turmoil::hold(id(0), id(2));
}

pub(crate) fn release() {
    turmoil::release(id(0), id(1));
    turmoil::release(id(0), id(2));
}

/// A listing of which a client has read nothing yet, and which is far longer than what may be on the way to it.
pub(crate) async fn unread_listing(
    cluster: &Cluster,
) -> tonic::Streaming<dynamo_proto::v1::ListKeysResponse> {
    let mut kv = cluster.kv(0);
    for number in 0..100 {
        let key = format!("{number:01000}");
        kv.put(within(PATIENT, put(&key, "value", 2))).await.unwrap();
    }
    let endpoint = Endpoint::from_shared(format!("http://{}:7700", id(0))).unwrap();
    let endpoint = endpoint.initial_stream_window_size(4096);
    let request = ListKeysRequest {
        page_size: 1,
        ..ListKeysRequest::default()
    };
    let listing = KeyValueClient::new(connect(endpoint)).list_keys(request).await;
    listing.unwrap().into_inner()
}

#[test]
fn requests_that_their_clients_give_up_end_at_once() {
    run(patient(3), 1, |cluster| async move {
        hold();
        let requests: Vec<_> = (0..8)
            .map(|_| {
                let mut kv = cluster.kv(0);
                tokio::spawn(async move { kv.put(within(PATIENT, put("key", "value", 3))).await })
            })
            .collect();
        until("all of them are in flight", || async {
            cluster.in_flight(0).await == 8
        })
        .await;
        requests.iter().for_each(tokio::task::JoinHandle::abort);
        let begun = Instant::now();
        until("none of them is", || async { cluster.in_flight(0).await == 0 }).await;
        assert!(
            begun.elapsed() < Duration::from_millis(500),
            "{:?}",
            begun.elapsed()
        );
        release();
        cluster.all_well().await;
    });
}

#[test]
fn a_client_that_vanishes_without_a_word_keeps_neither_place_nor_connection() {
    let mut world = World::new(Shape::new(3), 2);
    world.client("vanishing", |cluster| async move {
        cluster.settled().await;
        let _listing = unread_listing(&cluster).await;
        turmoil::partition("vanishing", id(0));
        sleep(Duration::from_secs(10)).await;
    });
    world.client("watching", |cluster| async move {
        cluster.assign().await;
        until("the listing is in flight", || async {
            cluster.in_flight(0).await == 1
        })
        .await;
        let connections = turmoil::established_tcp_stream_count_on(id(0));
        let begun = Instant::now();
        until("it is not", || async { cluster.in_flight(0).await == 0 }).await;
        // A ping after a second of silence, and two to wait for its answer.
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        until("its connection is gone", || async {
            turmoil::established_tcp_stream_count_on(id(0)) < connections
        })
        .await;
    });
    world.run();
}

#[test]
fn a_listing_that_nobody_reads_gives_its_place_back() {
    run(Shape::new(3), 3, |cluster| async move {
        let mut listing = unread_listing(&cluster).await;
        assert_eq!(cluster.in_flight(0).await, 1);
        let begun = Instant::now();
        while cluster.in_flight(0).await > 0 {
            assert!(begun.elapsed() < Duration::from_secs(40), "it is still in flight");
            sleep(Duration::from_secs(1)).await;
        }
        // It ends with an error, and not as if it were complete.
        let mut ended = listing.message().await;
        while let Ok(Some(page)) = &ended {
            assert!(!page.next_page_token.is_empty());
            ended = listing.message().await;
        }
        assert!(ended.is_err());
    });
}
