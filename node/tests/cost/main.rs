//! What one put and one get cost a ring of three nodes, in counts that are the same on every machine: messages, bytes, look-ups,
//! log, allocations. Nothing here is a time. If a change of the code changes a figure, it changes [`COSTS`] as well.
//!
//! One operation is under way at a time, so nothing shares a message or a commit by chance; and the servers' clock stands
//! still meanwhile, so that gossip, probes, pings and background work do not come in between.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "../cluster/harness.rs"]
#[allow(dead_code, reason = "the other test target uses all of it")]
mod harness;

mod client;

mod host;

mod still;

use std::{fmt::Write as _, sync::Arc};

use client::{Client, Kind, Measured, OPERATIONS};
use dynamo_node::Config;
use futures::FutureExt as _;
use harness::{Cluster, Shape};
use host::InLine;
use still::Still;
use tokio::{runtime, sync::oneshot};

/// Counts what every thread of this program allocates.
#[global_allocator]
static ALLOCATOR: alloc_tracker::Allocator<std::alloc::System> = alloc_tracker::Allocator::system();

/// What one operation costs all three nodes together: N=3, R=W=2, durability `every`, keys of 24 bytes, values of 1,024, no
/// faults. To bring it up to date, put what a failing run prints in its place, and say in the commit why it is more, or less.
#[rustfmt::skip]
const COSTS: &[Cost] = &[
    // What is counted             put new, over,   get   off
    ("bytes of client requests",  [  1062,   1107,     33],   0),
    ("bytes of client responses", [    86,     86,   1121],   0),
    ("client requests",           [     1,      1,      1],   0),
    ("forwarded writes",          [     0,      0,      0],   0),
    ("read repairs",              [     0,      0,      0],   0),
    ("requests to replicas",      [     2,      2,      1],   0),
    ("messages with requests",    [     2,      2,      1],   0),
    ("bytes of requests",         [  2346,   2346,    120],   0),
    ("messages with answers",     [     2,      2,      1],   0),
    ("bytes of answers",          [    18,     18,      9],   0),
    ("look-ups in stores",        [     4,      4,      2],   0),
    ("bytes read",                [     0,   3187,   2114],   0),
    ("batches written",           [     3,      3,      0],   0),
    ("changes written",           [     4,      4,      0],   0),
    ("log bytes",                 [  3402,   3402,      0],   0),
    ("log syncs",                 [     3,      3,      0],   0),
    ("allocations",               [   154,    170,     75],   1),
    ("bytes allocated",           [ 53192,  59259,  23293], 200),
];

/// A figure: its name; of a put of a new key, a put with the context of what it replaces, a get; by how much it may be off.
type Cost = (&'static str, [u64; 3], u64);

/// Background work at its longest intervals; calls may take as long as they do.
fn quiet(config: &mut Config) {
    const DAY_MS: u64 = 86_400_000;
    config.background.hints_interval_ms = DAY_MS / 24;
    config.background.exchange_interval_ms = DAY_MS;
    config.background.reap_interval_ms = DAY_MS;
    config.limits.peer_timeout_ms = 30_000;
    config.limits.request_timeout_ms = 30_000;
}

#[test]
fn a_put_and_a_get_cost_what_the_table_says() {
    still::simulate();
    let servers = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let measured = servers.block_on(async {
        let cluster = Arc::new(
            Cluster::start(Shape {
                configure: quiet,
                start: |config| dynamo_node::start_on(InLine, config).boxed(),
                ..Shape::new(3, 0)
            })
            .await,
        );
        let standing = Still::new();
        let (done, measured) = oneshot::channel();
        let (handle, for_client) = (runtime::Handle::current(), Arc::clone(&cluster));
        let client = std::thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let figures = runtime.block_on(async { Client::new(for_client, handle).await.measure().await });
            done.send(figures).unwrap();
        });
        let measured = measured.await;
        client.join().unwrap();
        drop(standing);
        let mut cluster = Arc::into_inner(cluster).unwrap();
        for index in 0..3 {
            cluster.stop_node(index).await;
        }
        measured.unwrap()
    });
    let differences = differences(&measured);
    assert!(
        differences.is_empty(),
        "an operation costs something else than COSTS in node/tests/cost/main.rs say:\n{differences}\nThe table as it is now:\n{}",
        table(&measured)
    );
}

/// Says which figures are not those of [`COSTS`].
fn differences(measured: &[Measured; 3]) -> String {
    let mut text = String::new();
    let mut listed = COSTS.iter();
    for (row, (name, _)) in measured[0].iter().enumerate() {
        let Some((_, expected, off)) = listed.next().filter(|(listed, ..)| listed == name) else {
            return format!("row {row} must be {name:?}\n");
        };
        for ((kind, figures), expected) in Kind::ALL.iter().zip(measured).zip(expected) {
            let total = figures[row].1;
            if total.abs_diff(expected * OPERATIONS) > off * OPERATIONS {
                let found = total as f64 / OPERATIONS as f64;
                writeln!(text, "{name} of a {kind:?}: {found}, was {expected}").unwrap();
            }
        }
    }
    assert!(listed.next().is_none(), "COSTS has a row that nothing counts");
    text
}

/// [`COSTS`] as they would be now.
fn table(measured: &[Measured; 3]) -> String {
    let mut text = String::new();
    for (row, (name, _)) in measured[0].iter().enumerate() {
        let listed = COSTS.iter().find(|(listed, ..)| listed == name);
        let off = listed.map_or(0, |(_, _, off)| *off);
        let [new, over, get] = [0, 1, 2].map(|kind| (measured[kind][row].1 + OPERATIONS / 2) / OPERATIONS);
        let name = format!("{name:?},");
        writeln!(text, "    ({name:<29}[{new:>6}, {over:>6}, {get:>6}], {off:>3}),").unwrap();
    }
    text
}
