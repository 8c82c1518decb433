//! A request is answered before its client stops waiting, with the truth, and nothing is begun for one that has.

use std::time::Duration;

use dynamo_node::Config;
use dynamo_proto::v1::{WriteOutcome, write_outcome::State};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use crate::{
    cancellation::{hold, patient, release},
    harness::{Cluster, Shape, count, detail, get, id, put, run, until, why, within},
};

const TIMEOUT: Duration = Duration::from_millis(400);

fn outcome(status: &Status) -> (State, u32) {
    let outcome: WriteOutcome = detail(status, "dynamo.v1.WriteOutcome").unwrap();
    (outcome.state(), outcome.acks)
}

#[test]
fn the_truth_comes_before_the_deadline_that_the_client_names() {
    run(patient(3), 1, |cluster| async move {
        cluster.kv(0).put(put("key", "first", 3)).await.unwrap();
        hold();
        let begun = Instant::now();
        let written = cluster.kv(0).put(within(TIMEOUT, put("key", "second", 2))).await;
        let status = written.unwrap_err();
        assert!(begun.elapsed() < TIMEOUT, "{:?}", begun.elapsed());
        assert_eq!(
            why(&status),
            (Code::DeadlineExceeded, "WRITE_TIMED_OUT".to_owned())
        );
        assert_eq!(outcome(&status), (State::Partial, 1));
        let begun = Instant::now();
        let mut request = get("key");
        request.r = count(2);
        let status = cluster.kv(0).get(within(TIMEOUT, request)).await.unwrap_err();
        assert!(begun.elapsed() < TIMEOUT, "{:?}", begun.elapsed());
        assert_eq!(
            why(&status),
            (Code::DeadlineExceeded, "READ_TIMED_OUT".to_owned())
        );
        release();
        cluster.all_well().await;
        cluster.equal("key").await;
    });
}

#[test]
fn a_client_that_names_no_deadline_gets_the_default() {
    let configure = |config: &mut Config| {
        config.limits.peer_timeout_ms = 20_000;
        config.limits.request_timeout_ms = 700;
    };
    let shape = Shape {
        configure,
        ..Shape::new(3)
    };
    run(shape, 2, |cluster| async move {
        hold();
        let begun = Instant::now();
        let status = cluster.kv(0).put(put("key", "value", 2)).await.unwrap_err();
        let elapsed = begun.elapsed();
        assert!((600..700).contains(&elapsed.as_millis()), "{elapsed:?}");
        assert_eq!(
            why(&status),
            (Code::DeadlineExceeded, "WRITE_TIMED_OUT".to_owned())
        );
    });
}

/// A key of which node 0 is no primary, and the node to which it forwards writes of it.
async fn forwarded(cluster: &Cluster) -> (String, usize) {
    let key = cluster.key_with(|primaries| !primaries.contains(&0)).await;
    let written = cluster
        .kv(0)
        .put(put(&key, "first", 3))
        .await
        .unwrap()
        .into_inner();
    let info = written.info.unwrap();
    assert_eq!(info.hops, 1);
    let coordinator = info.coordinator.strip_prefix("node-").unwrap().parse();
    (key, coordinator.unwrap())
}

#[test]
fn a_hop_leaves_its_coordinator_less_time_and_passes_its_truth_on() {
    run(patient(5), 3, |cluster| async move {
        let (key, coordinator) = forwarded(&cluster).await;
        for other in (1..5).filter(|other| *other != coordinator) {
            turmoil::hold(id(coordinator), id(other));
        }
        let begun = Instant::now();
        let written = cluster.kv(0).put(within(TIMEOUT, put(&key, "second", 2))).await;
        let status = written.unwrap_err();
        assert!(begun.elapsed() < TIMEOUT, "{:?}", begun.elapsed());
        assert_eq!(
            why(&status),
            (Code::DeadlineExceeded, "WRITE_TIMED_OUT".to_owned())
        );
        assert_eq!(outcome(&status), (State::Partial, 1));
    });
}

/// The values of a key once its primaries agree.
async fn agreed(cluster: &Cluster, key: &str) -> Vec<String> {
    cluster.all_well().await;
    cluster.equal(key).await;
    let mut request = get(key);
    request.r = count(3);
    crate::harness::values(&cluster.kv(0).get(request).await.unwrap().into_inner())
}

#[test]
fn a_write_that_comes_after_its_client_has_gone_is_not_begun() {
    run(Shape::new(3), 4, |cluster| async move {
        let mut kv = cluster.kv(0);
        kv.put(put("key", "first", 3)).await.unwrap();
        turmoil::hold("client", id(0));
        kv.put(within(TIMEOUT, put("key", "late", 1))).await.unwrap_err();
        sleep(TIMEOUT).await;
        turmoil::release("client", id(0));
        // Behind it on the same connection.
        kv.get(get("key")).await.unwrap();
        assert_eq!(agreed(&cluster, "key").await, ["first"]);
    });
}

#[test]
fn a_write_that_comes_to_its_coordinator_too_late_is_not_begun() {
    run(patient(5), 5, |cluster| async move {
        let (key, coordinator) = forwarded(&cluster).await;
        turmoil::hold(id(0), id(coordinator));
        let written = cluster.kv(0).put(within(TIMEOUT, put(&key, "late", 1))).await;
        // Nobody here can know that it never will be begun.
        assert_eq!(outcome(&written.unwrap_err()).0, State::Partial);
        sleep(TIMEOUT).await;
        turmoil::release(id(0), id(coordinator));
        until("the nodes talk again", || async {
            let status = cluster.status(0).await.unwrap();
            status.peers_down.is_empty()
        })
        .await;
        assert_eq!(agreed(&cluster, &key).await, ["first"]);
    });
}
