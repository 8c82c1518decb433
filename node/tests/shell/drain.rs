//! A node that is asked to stop answers what is in flight, takes nothing new, and does not wait for the dead.

use std::time::Duration;

use dynamo_proto::v1::{ListKeysRequest, key_value_client::KeyValueClient};
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::{
    cancellation::{hold, patient, release, unread_listing},
    harness::{Shape, World, channel, get, id, put, run, until, within},
};

#[test]
fn requests_in_flight_are_answered_and_new_ones_refused() {
    run(patient(3), 1, |cluster| async move {
        let lived = cluster.status(0).await.unwrap();
        hold();
        let mut kv = cluster.kv(0);
        let mut same = kv.clone();
        let written = tokio::spawn(async move {
            kv.put(within(Duration::from_secs(20), put("key", "value", 3)))
                .await
        });
        until("it is in flight", || async { cluster.in_flight(0).await == 1 }).await;
        cluster.stop(0);
        sleep(Duration::from_millis(200)).await;
        for kv in [&mut same, &mut cluster.kv(0)] {
            let refused = kv
                .get(within(Duration::from_secs(1), get("key")))
                .await
                .unwrap_err();
            // Not the node's word: its connections are closing, and it listens no more.
            assert!(
                matches!(refused.code(), Code::Unavailable | Code::Cancelled),
                "{refused}"
            );
            assert!(std::error::Error::source(&refused).is_some(), "{refused}");
        }
        assert!(!cluster.has_stopped(0) && !written.is_finished());
        release();
        assert_eq!(
            written.await.unwrap().unwrap().into_inner().outcome.unwrap().acks,
            3
        );
        cluster.stopped(0).await;

        cluster.start(0).await;
        cluster.all_well().await;
        let lives = cluster.status(0).await.unwrap();
        assert_eq!(lives.incarnation_id, lived.incarnation_id, "the stop was clean");
    });
}

#[test]
fn neither_idle_nor_dead_connections_hold_a_stop_up() {
    let mut world = World::new(Shape::new(3), 2);
    world.client("vanishing", |cluster| async move {
        let mut kv = KeyValueClient::new(channel(0, 7700));
        until("the node serves", || {
            let mut kv = kv.clone();
            async move { kv.put(put("key", "value", 1)).await.is_ok() }
        })
        .await;
        turmoil::partition("vanishing", id(0));
        drop(cluster);
        kv.get(within(Duration::from_secs(10), get("key")))
            .await
            .unwrap_err();
    });
    world.client("stopping", |cluster| async move {
        cluster.assign().await;
        let mut kv = cluster.kv(0);
        until("the other client has vanished", || {
            let mut kv = kv.clone();
            async move { kv.get(get("key")).await.is_ok() }
        })
        .await;
        sleep(Duration::from_millis(100)).await;
        cluster.stop(0);
        let begun = Instant::now();
        cluster.stopped(0).await;
        // The time in which a dead connection is noticed; the grace is ten seconds.
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        kv.list_keys(ListKeysRequest::default()).await.unwrap_err();
    });
    world.run();
}

#[test]
fn what_does_not_end_within_the_grace_is_dropped() {
    let shape = Shape {
        configure: |config| config.shutdown_grace_s = 2,
        ..Shape::new(3)
    };
    run(shape, 3, |cluster| async move {
        let mut listing = unread_listing(&cluster).await;
        cluster.stop(0);
        let begun = Instant::now();
        cluster.stopped(0).await;
        let elapsed = begun.elapsed();
        assert!((2000..2200).contains(&elapsed.as_millis()), "{elapsed:?}");
        while listing.message().await.is_ok_and(|page| page.is_some()) {}
        cluster.start(0).await;
        cluster.all_well().await;
    });
}
