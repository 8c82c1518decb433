//! Processes that are killed or stopped.

use std::{collections::BTreeSet, time::Duration};

use dynamo_client::{Context, Replicas, WriteOptions};
use dynamo_proto::fault::{PeerFault, SetRequest};
use futures::future::join_all;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng, seq::SliceRandom as _};

use crate::{
    support::{Writers, all_is_kept, numbers},
    world::{Shape, World, name, scenario, until, w},
};

/// Both other primaries have applied a write, and are killed before they say so: the client's retry makes no second value, and
/// what replaces the value replaces all of it.
#[test]
fn c05_a_retry_after_replicas_were_killed_between_apply_and_answer_counts_once() {
    scenario(Shape::FIVE, async |mut world: World| {
        let (primaries, _) = world.placed("", "key").await;
        let [coordinator, others @ ..] = &primaries[..] else {
            panic!("no primaries")
        };
        let silent = SetRequest {
            peers: vec![PeerFault {
                drop_replies: true,
                ..PeerFault::default()
            }],
            ..SetRequest::default()
        };
        for node in others {
            world.faults(*node, silent.clone()).await;
        }
        let client = world.client_of(&[*coordinator]).await;
        let all = WriteOptions {
            deadline: Some(Duration::from_secs(20)),
            ..w(3)
        };
        let context = Context::none();
        let put = client.put_with("key", "1", &context, &all);
        let kill = async {
            for node in others {
                until("the write is applied", async || {
                    world.local_values(*node, "key").await == ["1"]
                })
                .await;
            }
            for node in others {
                world.ring.kill(&name(*node)).await.unwrap();
            }
            world.ring.start_again("all").await.unwrap();
        };
        let (written, ()) = tokio::join!(put, kill);
        let written = written.unwrap();
        assert!(written.acks >= 3);
        world.until_equal().await;
        let found = client.get("key").await.unwrap();
        assert_eq!(numbers(found.values()), BTreeSet::from([1]));
        client.put_with("key", "2", &written.context, &all).await.unwrap();
        world.until_equal().await;
        for node in primaries {
            assert_eq!(world.local_values(node, "key").await, ["2"]);
        }
    });
}

/// Guarantee 9: all nodes are killed at once under load, again and again, and start in any order: what was acknowledged is there.
#[test]
fn c06_nothing_acknowledged_is_lost_when_all_are_killed_at_once() {
    scenario(Shape::FIVE, async |mut world: World| {
        const KILLS: u32 = 50;
        let mut random = SmallRng::seed_from_u64(6);
        let client = world.client().await;
        let writers = Writers::start(&client, 8, 50, 6);
        let mut order = world.all();
        for round in 0..KILLS {
            until("the ring takes writes", async || {
                client
                    .put(format!("round-{round}"), round.to_string(), &Context::none())
                    .await
                    .is_ok()
            })
            .await;
            // Random moments are what this is about.
            tokio::time::sleep(Duration::from_millis(random.random_range(0..200))).await;
            world.ring.kill("all").await.unwrap();
            order.shuffle(&mut random);
            for node in &order {
                world.ring.launch(&name(*node)).unwrap();
            }
        }
        world.ring.ready().await.unwrap();
        let did = writers.stop().await;
        // What is read now has been read back from every disk.
        world.ring.kill("all").await.unwrap();
        world.ring.start_again("all").await.unwrap();
        world.until_equal().await;
        let (acknowledged, unknown, refused) = did.counts();
        println!(
            "{KILLS} kills of all: {acknowledged} acknowledged, {unknown} unknown, {refused} not applied"
        );
        assert!(acknowledged > 1000, "{acknowledged}");
        all_is_kept(&client, &did.history).await;
        for round in 0..KILLS {
            let found = client.get(format!("round-{round}")).await.unwrap();
            assert!(numbers(found.values()).contains(&u64::from(round)));
        }
    });
}

/// The power of all nodes is lost at once. What was durable is there; with syncs on a timer what came after the last one is gone,
/// and every node goes on as another life.
#[test]
fn c07_a_loss_of_power_takes_what_was_not_synced_and_nothing_else() {
    const KEYS: u64 = 30;
    let shape = Shape {
        configure: |config| {
            config.durability.mode = dynamo_node::config::DurabilityMode::Interval;
            config.durability.interval_ms = 60_000;
        },
        ..Shape::FIVE
    };
    scenario(shape, async |mut world: World| {
        let client = world.client().await;
        let before = generations(&world).await;
        let unsynced = SetRequest {
            lose_unsynced: true,
            ..SetRequest::default()
        };
        for node in world.all() {
            world.faults(node, unsynced.clone()).await;
        }
        let durable = WriteOptions {
            dw: Some(Replicas::All),
            ..w(3)
        };
        let context = Context::none();
        for number in 0..KEYS {
            client
                .put_with(format!("synced-{number}"), "1", &context, &durable)
                .await
                .unwrap();
        }
        for number in 0..KEYS {
            let written = client
                .put_with(format!("written-{number}"), "1", &context, &w(3))
                .await;
            assert!(written.unwrap().durable < 3, "it was synced");
        }
        for node in world.all() {
            world.crash(node).await;
        }
        world.until_equal().await;
        let mut lost = 0;
        for number in 0..KEYS {
            let found = client.get(format!("synced-{number}")).await.unwrap();
            assert_eq!(numbers(found.values()), BTreeSet::from([1]));
            let written = client.get(format!("written-{number}")).await;
            lost += u32::from(written.is_err_and(|error| error.is_not_found()));
        }
        assert!(lost > 0, "nothing was lost, so that this shows nothing");
        let after = generations(&world).await;
        assert!(
            before.iter().zip(&after).all(|(before, after)| after > before),
            "{after:?}"
        );
    });
}

async fn generations(world: &World) -> Vec<u32> {
    let mut generations = Vec::new();
    for node in world.all() {
        generations.push(world.status(node).await.incarnation_generation);
    }
    generations
}

/// A process stands still for longer than every time-out, and goes on: what it answers then is too late, and it catches up.
#[test]
fn c14_a_process_that_stood_still_catches_up() {
    scenario(Shape::FIVE, async |mut world: World| {
        let client = world.client().await;
        let rings = world.rings().await;
        let before = world.status(2).await;
        let writers = Writers::start(&client, 4, 20, 14);
        world.ring.pause(&name(2)).unwrap();
        for node in [1, 3, 4, 5] {
            world.sees_down(node, 2).await;
        }
        // Longer than any request lasts.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let watched = world.client().await;
        let context = Context::none();
        let keys: Vec<String> = (0..50).map(|number| format!("watched-{number}")).collect();
        for put in join_all(keys.iter().map(|key| watched.put(key, "1", &context))).await {
            put.unwrap();
        }
        world.ring.resume(&name(2)).unwrap();
        for key in &keys {
            if world.placed("", key).await.0.contains(&2) {
                until("it has what it missed", async || {
                    world.local_values(2, key).await == ["1"]
                })
                .await;
            }
        }
        let did = writers.stop().await;
        let (_, unknown, refused) = did.counts();
        assert_eq!((unknown, refused), (0, 0), "{:?}", did.failures);
        world.until_equal().await;
        all_is_kept(&client, &did.history).await;
        let after = world.status(2).await;
        assert_eq!(after.incarnation_id, before.incarnation_id, "the same life");
        assert_eq!(world.rings().await, rings);
    });
}
