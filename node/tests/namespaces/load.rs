//! Many writes: of one key at once, and through all kinds of trouble.

use std::sync::Arc;

use bytes::Bytes;
use dynamo_client::{Client, Context};
use dynamo_proto::fault::SetRequest;
use futures::{StreamExt as _, future::join_all, stream};

use crate::{
    support::{numbers, peak_kib},
    world::{Shape, World, name, scenario},
};

/// What a node may take at most, as resident memory.
const RSS_KIB_MAX: u64 = 256 << 10;

/// 500 writers put a value each under one key, blindly and at once: the caps refuse what is too much, of that key alone.
#[test]
fn c25_a_hot_key_hurts_itself_only() {
    scenario(Shape::FIVE, async |mut world: World| {
        const WRITERS: usize = 500;
        let client = world.client().await;
        let value = Bytes::from(vec![7; 1 << 20]);
        let context = Context::none();
        let hot = join_all((0..WRITERS).map(|_| client.put("hot", value.clone(), &context)));
        let others = async {
            let watched = world.client().await;
            for number in 0..100 {
                watched
                    .put(format!("other-{number}"), "1", &context)
                    .await
                    .unwrap();
            }
        };
        let (hot, ()) = tokio::join!(hot, others);
        let refused = hot.iter().filter_map(|put| put.as_ref().err());
        let capped = refused
            .filter(|error| error.reason() == "TOO_MANY_SIBLINGS")
            .count();
        let accepted = hot.iter().flatten().count();
        let peaks: Vec<u64> = world
            .all()
            .iter()
            .map(|node| peak_kib(&world.ring, *node - 1))
            .collect();
        println!("{accepted} accepted, {capped} refused by the cap; RSS {peaks:?} KiB at most");
        assert!(
            accepted > 0 && capped > 0,
            "{:?}",
            hot.iter().find(|put| put.is_err())
        );
        assert!(peaks.iter().all(|peak| *peak < RSS_KIB_MAX), "{peaks:?}");
        world.until_equal().await;
        let siblings = client.get("hot").await.unwrap().versions.len();
        assert!(siblings >= accepted, "{siblings}");
    });
}

/// Puts numbers below `total` that `next` gives, 32 at a time, and returns how many were not accepted within their deadline.
async fn put_numbers(client: &Client, range: std::ops::Range<u64>) -> Vec<String> {
    let context = Context::none();
    let puts = stream::iter(range).map(|number| {
        let context = &context;
        async move {
            client
                .put(format!("n-{number}"), number.to_string(), context)
                .await
                .err()
        }
    });
    let errors = puts
        .buffer_unordered(32)
        .filter_map(async |error| Some(error?.to_string()));
    errors.collect().await
}

/// Guarantee 6: every put is accepted within its deadline, while a zone is gone, a disk for hints is full, and nodes are killed
/// one after the other. `PUTS=200000` is the long form.
#[test]
fn g6_every_put_is_accepted_while_nodes_and_zones_come_and_go() {
    let shape = Shape {
        nodes: 6,
        ..Shape::FIVE
    };
    scenario(shape, async |mut world: World| {
        // So many that their hints are delivered within the limit.
        const ROUND: u64 = 20_000;
        let total: u64 = std::env::var("PUTS").map_or(20_000, |puts| puts.parse().unwrap());
        let client = Arc::new(world.client().await);
        let began = std::time::Instant::now();
        let puts = |range: std::ops::Range<u64>| {
            let client = Arc::clone(&client);
            tokio::spawn(async move { put_numbers(&client, range).await })
        };
        let mut failed = Vec::new();
        for first in (0..total).step_by(ROUND as usize) {
            // A zone is gone, and the disk of one node is full, so that it takes no hints either.
            let full = SetRequest {
                disk_full: true,
                ..SetRequest::default()
            };
            world.faults(2, full).await;
            let load = puts(first..first + ROUND / 4);
            world.ring.kill("zone-a").await.unwrap();
            failed.extend(load.await.unwrap());
            world.ring.start_again("zone-a").await.unwrap();
            world.faults(2, SetRequest::default()).await;
            // A zone is cut off.
            let load = puts(first + ROUND / 4..first + ROUND / 2);
            world.network.split(&[3, 6], &[1, 2, 4, 5]);
            failed.extend(load.await.unwrap());
            world.network.heal();
            world.until_equal().await;
            // Each node is killed, and comes back before the next goes.
            let load = puts(first + ROUND / 2..first + ROUND);
            while !load.is_finished() {
                for node in world.all() {
                    world.ring.kill(&name(node)).await.unwrap();
                    world.ring.start_again("all").await.unwrap();
                }
            }
            failed.extend(load.await.unwrap());
            world.until_equal().await;
        }
        println!(
            "{total} puts in {:.0} s, {} failed",
            began.elapsed().as_secs_f64(),
            failed.len()
        );
        assert!(
            failed.is_empty(),
            "{} of {total}: {:?}",
            failed.len(),
            &failed[..failed.len().min(5)]
        );
        world.until_equal().await;
        let keys = (0..total).map(|number| (number, format!("n-{number}")));
        let reads = stream::iter(keys).map(|(number, key)| {
            let client = &client;
            async move { numbers(client.get(&key).await.unwrap().values()).contains(&number) }
        });
        let missing = reads
            .buffer_unordered(32)
            .filter(|there| std::future::ready(!there))
            .count()
            .await;
        assert_eq!(missing, 0);
    });
}
