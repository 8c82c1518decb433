//! Connections over which nothing comes any more are given up and made anew, whether they are in use or not.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::Status;

use crate::harness::{Cluster, Shape, get, id, put, run, until, within};

/// A dead connection is noticed within the silence before a ping and the wait for its answer, a second each; then comes the
/// next probe, once a second, which may wait as long as four calls.
const BACK: Duration = Duration::from_secs(6);

/// A write on all three of three nodes, each taking it itself.
async fn write_everywhere(cluster: &Cluster, coordinator: usize) -> Result<(), Status> {
    let put = within(Duration::from_secs(1), put("key", "value", 3));
    let written = cluster.kv(coordinator).put(put).await?.into_inner();
    assert_eq!(written.info.unwrap().fallbacks_counted, 0);
    Ok(())
}

#[test]
fn peers_reach_each_other_soon_after_a_split_has_healed() {
    for seed in 0..5 {
        run(Shape::new(3), seed, |cluster| async move {
            turmoil::partition(id(0), id(1));
            turmoil::partition(id(0), id(2));
            for (watcher, other) in [(0, 1), (0, 2), (1, 0), (2, 0)] {
                until("both sides see the split", || async {
                    cluster
                        .status(watcher)
                        .await
                        .unwrap()
                        .peers_down
                        .contains(&id(other))
                })
                .await;
            }
            write_everywhere(&cluster, 0).await.unwrap_err();
            write_everywhere(&cluster, 1).await.unwrap_err();
            turmoil::repair(id(0), id(1));
            turmoil::repair(id(0), id(2));
            let healed = Instant::now();
            cluster.all_well().await;
            write_everywhere(&cluster, 0).await.unwrap();
            write_everywhere(&cluster, 1).await.unwrap();
            assert!(healed.elapsed() < BACK, "{:?}", healed.elapsed());
        });
    }
}

#[test]
fn dead_connections_are_given_up_by_both_ends_also_while_idle() {
    run(Shape::new(3), 5, |cluster| async move {
        let mut kv = cluster.kv(0);
        kv.put(put("key", "value", 3)).await.unwrap();
        cluster.settled().await;
        let connections = turmoil::established_tcp_stream_count_on(id(0));
        turmoil::partition("client", id(0));
        // Nobody asks for anything meanwhile.
        sleep(Duration::from_secs(4)).await;
        assert!(turmoil::established_tcp_stream_count_on(id(0)) < connections);
        turmoil::repair("client", id(0));
        kv.get(within(Duration::from_secs(1), get("key"))).await.unwrap();
    });
}

/// TCP needs both directions, so both ends of a one-way cut see each other down, and nobody else sees anything.
#[test]
fn f_a_link_that_is_cut_one_way_concerns_its_two_ends() {
    run(Shape::new(4), 6, |cluster| async move {
        turmoil::partition_oneway(id(0), id(1));
        for (watcher, other) in [(0, 1), (1, 0)] {
            until("its ends see it", || async {
                cluster.status(watcher).await.unwrap().peers_down == [id(other)]
            })
            .await;
        }
        for index in 0..4 {
            let key = format!("key of {index}");
            let put = within(Duration::from_secs(2), put(&key, "value", 3));
            cluster.kv(index).put(put).await.unwrap();
        }
        for watcher in [2, 3] {
            assert!(cluster.status(watcher).await.unwrap().peers_down.is_empty());
        }
        turmoil::repair_oneway(id(0), id(1));
        let healed = Instant::now();
        cluster.all_well().await;
        assert!(healed.elapsed() < BACK, "{:?}", healed.elapsed());
        for index in 0..4 {
            cluster.equal(&format!("key of {index}")).await;
        }
    });
}

#[test]
fn a_link_that_stalls_for_less_than_a_call_may_take_costs_nothing() {
    run(Shape::new(3), 7, |cluster| async move {
        cluster.settled().await;
        let connections = turmoil::established_tcp_stream_count_on(id(0));
        for _ in 0..5 {
            turmoil::hold(id(0), id(1));
            let mut kv = cluster.kv(0);
            let written = tokio::spawn(async move {
                kv.put(within(Duration::from_secs(2), put("key", "value", 3)))
                    .await
            });
            sleep(Duration::from_millis(300)).await;
            assert!(!written.is_finished());
            turmoil::release(id(0), id(1));
            let written = written.await.unwrap().unwrap().into_inner();
            assert_eq!(written.info.unwrap().fallbacks_counted, 0);
            assert!(cluster.status(0).await.unwrap().peers_down.is_empty());
        }
        until("no connection was added", || async {
            turmoil::established_tcp_stream_count_on(id(0)) <= connections
        })
        .await;
    });
}

#[test]
fn a_killed_node_comes_back_as_another_life_and_is_reached_again() {
    run(Shape::new(3), 8, |cluster| async move {
        cluster.kv(0).put(put("key", "value", 3)).await.unwrap();
        let lived = cluster.status(1).await.unwrap();
        cluster.kill(1).await;
        let refused = cluster
            .kv(1)
            .get(within(Duration::from_secs(1), get("key")))
            .await
            .unwrap_err();
        assert!(std::error::Error::source(&refused).is_some(), "{refused}");
        until("the others see it", || async {
            cluster.status(0).await.unwrap().peers_down == [id(1)]
        })
        .await;
        cluster.start(1).await;
        let started = Instant::now();
        cluster.all_well().await;
        write_everywhere(&cluster, 0).await.unwrap();
        write_everywhere(&cluster, 1).await.unwrap();
        assert!(started.elapsed() < BACK, "{:?}", started.elapsed());
        let lives = cluster.status(1).await.unwrap();
        assert_eq!(lives.incarnation_generation, lived.incarnation_generation + 1);
    });
}
