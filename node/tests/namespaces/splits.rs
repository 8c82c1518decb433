//! Nodes that cannot reach each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use dynamo_client::{Client, Context, Outcome as Told, WriteOptions};
use dynamo_history::{Findings, History, Outcome, Write};
use dynamo_proto::{
    admin::{Bucket, bucket},
    fault::{PeerFault, SetRequest},
};
use futures::future::join_all;

use crate::{
    support::{Writers, all_is_kept, numbers},
    world::{Shape, World, name, scenario, until},
};

/// A blind put, a get, and a put that replaces what it found: one side's history of a key.
async fn put_twice(client: &Client, key: &str, first: u64, history: &mut History) {
    client
        .put(key, first.to_string(), &Context::none())
        .await
        .unwrap();
    let found = client.get(key).await.unwrap();
    let second = first + 1;
    client.put(key, second.to_string(), &found.context).await.unwrap();
    let saw = numbers(found.values()).into_iter().collect();
    for (value, saw) in [(first, vec![]), (second, saw)] {
        let write = Write {
            value: Some(value),
            saw,
            outcome: Outcome::Acknowledged,
        };
        history.write(key, write);
    }
}

/// Both sides of a split 2 | 3 take writes of the same keys, from the first moment on; afterwards each key has the siblings of
/// both, on all its primaries.
#[test]
fn c01_both_sides_of_a_split_take_writes_and_all_are_there_afterwards() {
    scenario(Shape::FIVE, async |mut world: World| {
        let sides = [vec![1, 2], vec![3, 4, 5]];
        let clients = [world.client_of(&sides[0]).await, world.client_of(&sides[1]).await];
        let rings = world.rings().await;
        world.network.split(&sides[0], &sides[1]);
        for number in 0..20 {
            for (client, value) in clients.iter().zip(["10", "20"]) {
                let key = format!("at-once-{number}");
                client.put(key, value, &Context::none()).await.unwrap();
            }
        }
        for (here, there) in [(&sides[0], &sides[1]), (&sides[1], &sides[0])] {
            for (watcher, other) in here
                .iter()
                .flat_map(|one| there.iter().map(move |other| (one, other)))
            {
                world.sees_down(*watcher, *other).await;
            }
        }
        let mut history = History::default();
        for number in 0..20 {
            for (client, first) in clients.iter().zip([10, 20]) {
                put_twice(client, &format!("contended-{number}"), first, &mut history).await;
            }
        }
        world.network.heal();
        world.until_equal().await;
        let mut findings = Findings::default();
        for key in history.keys() {
            let found = numbers(clients[0].get(key).await.unwrap().values());
            assert_eq!(found, BTreeSet::from([11, 21]), "{key}");
            history.judge(key, &found, &mut findings);
        }
        assert!(findings.is_clean(), "{findings:#?}");
        for number in 0..20 {
            let found = clients[1].get(format!("at-once-{number}")).await.unwrap();
            assert_eq!(numbers(found.values()), BTreeSet::from([10, 20]));
        }
        assert_eq!(world.rings().await, rings);
    });
}

/// A coordinator is cut off from all others with a write that it alone has: its client is told so, and once a read has shown the
/// value, with blocking read repair, every later one does; in the end it is everywhere.
#[test]
fn c02_the_write_of_a_coordinator_that_is_cut_off_never_comes_and_goes() {
    scenario(Shape::FIVE, async |mut world: World| {
        let policy = Bucket {
            name: "blocking".into(),
            conflict: bucket::Conflict::Siblings.into(),
            read_repair: bucket::ReadRepair::Blocking.into(),
            ..Bucket::default()
        };
        world.set_bucket(1, policy).await;
        world.all_know_bucket(&world.all(), "blocking").await;
        let keys = world.keys_in("blocking", 1, 20).await;
        let alone = world.client_of(&[1]).await.with_bucket("blocking");
        let others = world.client_of(&[2, 3, 4, 5]).await.with_bucket("blocking");
        world.network.split(&[1], &[2, 3, 4, 5]);
        let soon = WriteOptions {
            deadline: Some(Duration::from_millis(1500)),
            ..WriteOptions::default()
        };
        let context = Context::none();
        let told = join_all(keys.iter().map(|key| alone.put_with(key, "7", &context, &soon))).await;
        for (key, told) in keys.iter().zip(told) {
            let outcome = told.unwrap_err().outcome();
            assert_ne!(outcome, Told::NotApplied, "{key} was written there");
            assert!(others.get(key).await.unwrap_err().is_not_found(), "{key}");
        }
        world.network.heal();
        let mut shown = BTreeMap::new();
        until("every key is shown", async || {
            for key in &keys {
                let found = others.get(key).await;
                let there = found.is_ok_and(|found| numbers(found.values()) == BTreeSet::from([7]));
                let before = shown.insert(key, there).unwrap_or(false);
                assert!(there || !before, "{key} was there and is gone");
            }
            shown.values().all(|there| *there)
        })
        .await;
        world.until_equal().await;
        for key in &keys {
            for node in world.placed("blocking", key).await.0 {
                assert_eq!(
                    world.local("blocking", node, key).await.versions.len(),
                    1,
                    "{key}"
                );
            }
        }
    });
}

/// A node that all others hear, and that hears nobody: others take it for down, all writes are accepted, gossip goes on among
/// them, and the ring stays; when it hears again it learns what it has missed.
#[test]
fn c03_a_node_that_hears_nobody_stops_nothing() {
    scenario(Shape::FIVE, async |mut world: World| {
        let client = world.client().await;
        let rings = world.rings().await;
        let deaf = PeerFault {
            drop_arrivals: true,
            ..PeerFault::default()
        };
        let unheard = PeerFault {
            member_id: name(1),
            drop_replies: true,
            ..PeerFault::default()
        };
        let faults = |fault: &PeerFault| SetRequest {
            peers: vec![fault.clone()],
            ..SetRequest::default()
        };
        world.faults(1, faults(&deaf)).await;
        for node in 2..=5 {
            world.faults(node, faults(&unheard)).await;
        }
        let writers = Writers::start(&client, 4, 20, 3);
        for node in 2..=5 {
            world.sees_down(node, 1).await;
            world.sees_down(1, node).await;
        }
        let policy = Bucket {
            name: "meanwhile".into(),
            conflict: bucket::Conflict::Lww.into(),
            ..Bucket::default()
        };
        world.set_bucket(2, policy).await;
        world.all_know_bucket(&[3, 4, 5], "meanwhile").await;
        assert!(!world.knows_bucket(1, "meanwhile").await, "it hears nobody");
        let did = writers.stop().await;
        let (acknowledged, unknown, refused) = did.counts();
        assert_eq!((unknown, refused), (0, 0), "{:?}", did.failures);
        assert!(acknowledged > 100, "{acknowledged}");
        for node in world.all() {
            world.faults(node, SetRequest::default()).await;
        }
        world.all_know_bucket(&[1], "meanwhile").await;
        world.until_equal().await;
        all_is_kept(&client, &did.history).await;
        assert_eq!(world.rings().await, rings);
    });
}

/// A node comes and goes, again and again: no write fails, hints do not pile up, the ring stays.
#[test]
fn c04_a_flapping_node_piles_up_no_hints() {
    scenario(Shape::FIVE, async |mut world: World| {
        const FLAPS: usize = 12;
        const KEYS: u32 = 20;
        let client = world.client().await;
        let rings = world.rings().await;
        let writers = Writers::start(&client, 4, KEYS, 4);
        for _ in 0..FLAPS {
            world.network.split(&[1], &[2, 3, 4, 5]);
            // Time that passes is what this is about.
            tokio::time::sleep(Duration::from_millis(400)).await;
            world.network.heal();
            // As above.
            tokio::time::sleep(Duration::from_millis(400)).await;
            let mut hints = 0;
            for node in 2..=5 {
                hints += world.hints_for(node, 1).await;
            }
            // At the most one of each key at each of its two fallbacks.
            assert!(hints <= u64::from(4 * KEYS * 2), "{hints}");
        }
        let did = writers.stop().await;
        world.until_equal().await;
        let (acknowledged, unknown, refused) = did.counts();
        assert_eq!((unknown, refused), (0, 0), "{:?}", did.failures);
        assert!(acknowledged > 100, "{acknowledged}");
        all_is_kept(&client, &did.history).await;
        assert_eq!(world.rings().await, rings);
    });
}
