//! G18: more load than a ring can serve costs those who are refused, not those who are served, and leaves nothing behind.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test they are its failure")]

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use dynamo_local::LocalRing;
use support::{
    Did, Writers, all_is_kept, alone, client, folder, peak_kib, settings, until_hints_are_delivered,
};

/// Writers that write as fast as they can: more than all nodes let in, however fast they are.
const CROWD: u32 = NODES * 1024 + 2000;
const NODES: u32 = 6;
/// Connections carry a bounded number of requests.
const PER_CLIENT: u32 = 500;
/// Of these the ring is to serve every write.
const FEW: u32 = 16;
/// In which the ring must be well again.
const RECOVERY: Duration = Duration::from_secs(10);
/// What the crowd may add to the most memory that a node ever had.
const GROWTH_KIB: u64 = 192 << 10;

/// Seconds of overload: `OVERLOAD_S`, or few.
fn seconds() -> u64 {
    std::env::var("OVERLOAD_S").map_or(5, |seconds| seconds.parse().unwrap())
}

async fn writes(ring: &LocalRing, phase: u32, writers: u32, time: Duration) -> (Did, f64) {
    let mut all = Vec::new();
    for part in 0..writers.div_ceil(PER_CLIENT) {
        let count = PER_CLIENT.min(writers - part * PER_CLIENT);
        // Nobody else's keys.
        let first = phase * CROWD + part * PER_CLIENT;
        let client = client(ring).await;
        all.push(Writers::start_from(&client, first, count, 4, 1));
    }
    let began = Instant::now();
    // What they do in this time is what is measured.
    tokio::time::sleep(time).await;
    let mut did = Did::default();
    for writers in all {
        did.merge(writers.stop().await);
    }
    let per_s = did.counts().0 as f64 / began.elapsed().as_secs_f64();
    (did, per_s)
}

/// Most memory that a node of the ring ever had, in KiB.
fn highest_peak_kib(ring: &LocalRing) -> u64 {
    let peaks = (0..ring.nodes().len()).map(|index| peak_kib(ring, index));
    peaks.max().unwrap()
}

fn metrics(http: SocketAddr) -> String {
    let mut stream = TcpStream::connect(http).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Puts that all nodes have ended so.
fn puts(ring: &LocalRing, result: &str) -> u64 {
    let wanted = [
        "dynamo_request_duration_seconds_count".to_owned(),
        r#"op="put""#.to_owned(),
        format!(r#"result="{result}""#),
    ];
    let nodes = ring.nodes().iter().map(|node| {
        let text = metrics(node.addresses().http);
        let lines = text
            .lines()
            .filter(|line| wanted.iter().all(|part| line.contains(part)));
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum::<u64>()
    });
    nodes.sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn g18_overload_is_refused_early_and_leaves_nothing_behind() {
    let _alone = alone().await;
    let dir = folder();
    let mut ring = LocalRing::start(settings(dir.path(), NODES, 3)).await.unwrap();
    let (calm, calm_per_s) = writes(&ring, 0, FEW, Duration::from_secs(2)).await;
    assert_eq!(calm.counts().1 + calm.counts().2, 0, "{:?}", calm.failures);
    let before = highest_peak_kib(&ring);

    let (crowd, crowd_per_s) = writes(&ring, 1, CROWD, Duration::from_secs(seconds())).await;
    let (acked, unknown, refused) = crowd.counts();
    let (served, late) = (puts(&ring, "ok"), puts(&ring, "WRITE_TIMED_OUT"));
    println!(
        "{CROWD} writers, {} s: {acked} acknowledged, {refused} refused, {unknown} unknown; at the nodes {served} in time, {late} too late; \
         acknowledged a second / by {FEW} writers alone: {:.2}; {} KiB at most, before {before}",
        seconds(),
        crowd_per_s / calm_per_s,
        highest_peak_kib(&ring)
    );
    assert!(refused > 1000, "that was no overload");
    assert!(
        late * 4 < served,
        "{late} of {served} puts were begun and not ended in time: {:?}",
        crowd.failures
    );
    let grown = highest_peak_kib(&ring) - before;
    assert!(grown <= GROWTH_KIB, "{grown} KiB more than before");

    // Afterwards a whole second without a failure comes soon.
    let ended = Instant::now();
    for phase in 2.. {
        let (did, _) = writes(&ring, phase, FEW, Duration::from_secs(1)).await;
        let (acked, unknown, refused) = did.counts();
        if acked > 0 && unknown + refused == 0 {
            break;
        }
        assert!(ended.elapsed() < RECOVERY, "still {:?}", did.failures);
    }
    assert!(ring.ended().is_empty());
    until_hints_are_delivered(&ring).await;
    all_is_kept(&client(&ring).await, &crowd.history).await;
    ring.stop("all").await.unwrap();
}
