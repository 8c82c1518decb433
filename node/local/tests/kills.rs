//! Nodes killed at random moments under load lose no acknowledged write.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test they are its failure")]

mod support;

use std::time::{Duration, Instant};

use dynamo_local::LocalRing;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use support::{Writers, client, folder, judge, settings, until_hints_are_delivered};

/// The issue asks for so many.
const KILLS: u32 = 100;
/// Between a kill and the next one, at random. A node needs about this long to open its store, so that some are killed while they
/// recover, and at times two or three are down at once.
const PAUSE_MS: std::ops::Range<u64> = 100..500;
/// How long a killed node stays down.
const DOWN_MS: std::ops::Range<u64> = 0..200;
const NODES: u32 = 5;
const WRITERS: u32 = 8;
const KEYS_PER_WRITER: u32 = 100;
/// Fewer would prove little.
const ACKED_MIN: u64 = 2_000;

/// Durability `every`: kill -9 of a node at random moments under load, 100 times: 0 acknowledged writes lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_kills_lose_no_acknowledged_write() {
    let seed = std::env::var("SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!(
        "seed {seed} (set SEED to choose it; the moments of the operating system's scheduler are not replayed)"
    );
    let mut random = SmallRng::seed_from_u64(seed);
    let dir = folder();
    let mut ring = LocalRing::start(settings(dir.path(), NODES, 3)).await.unwrap();
    let client = client(&ring).await;
    let writers = Writers::start(&client, WRITERS, KEYS_PER_WRITER, seed);

    let began = Instant::now();
    for _ in 0..KILLS {
        // Random moments are what this test is about, so here time passes and no condition is waited for.
        tokio::time::sleep(Duration::from_millis(random.random_range(PAUSE_MS))).await;
        let victim = format!("node-{}", random.random_range(1..=NODES));
        ring.kill(&victim).await.unwrap();
        // As above.
        tokio::time::sleep(Duration::from_millis(random.random_range(DOWN_MS))).await;
        ring.launch(&victim).unwrap();
        let ended = ring.ended();
        assert!(
            ended.is_empty(),
            "seed {seed}: a node ended by itself: {}",
            ended[0]
        );
    }
    let killing = began.elapsed();
    ring.ready().await.unwrap();
    let did = writers.stop().await;

    // What is read now has been read back from every disk.
    ring.kill("all").await.unwrap();
    ring.start_again("all").await.unwrap();
    until_hints_are_delivered(&ring).await;
    let findings = judge(&client, &did.history).await;
    let (acked, unknown, refused) = did.counts();
    println!(
        "{KILLS} kills in {:.0} s; {acked} writes acknowledged, {unknown} with unknown outcome, {refused} not applied, over {} keys",
        killing.as_secs_f32(),
        findings.keys,
    );
    assert!(findings.nothing_lost(), "seed {seed}: {findings:#?}");
    assert!(
        acked >= ACKED_MIN,
        "seed {seed}: only {acked} writes were acknowledged: {:?}",
        did.failures
    );
    ring.stop("all").await.unwrap();
}
