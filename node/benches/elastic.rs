//! What a change of the ring costs (§6.2): how fast data move, against a plain copy of the same files; how much, against the
//! least; and what clients notice. Prints figures, judges none.
//!
//! `make bench-elastic`; `MIB=256` of values of `VALUE=1024` bytes, `RATE=200` client operations a second. Background work goes as
//! fast as it can; with `THROTTLED=1` it gives way to clients as a node's defaults say.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot go on has nothing to print"
)]

#[path = "../tests/cluster/harness.rs"]
#[expect(
    dead_code,
    reason = "a benchmark needs less of a cluster than all the tests together"
)]
mod harness;

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use dynamo_node::Config;
use dynamo_proto::{
    admin::{CommitRequest, PlanRequest, PlanResponse, RingTarget, TargetMember, TransitionRequest},
    v1::key_value_client::KeyValueClient,
};
use futures::{StreamExt as _, stream};
use harness::{Cluster, Shape, get, put};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

/// The ring before; one more member joins.
const NODES: usize = 3;
const WRITES_AT_ONCE: usize = 64;
/// The pace of background work follows clients' latencies of the last minute: that of the loading is to be over.
const IDLE: Duration = Duration::from_secs(80);
const POLL: Duration = Duration::from_millis(20);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect(name))
}

fn configure(config: &mut Config) {
    if setting("THROTTLED", 0) == 0 {
        config.background.operations_per_s_max = 1_000_000;
        config.background.p99_target_ms = 30_000;
    }
    config.limits.block_cache_bytes = 64 << 20;
}

#[tokio::main]
async fn main() {
    let (mib, value_bytes) = (setting("MIB", 256), setting("VALUE", 1024) as usize);
    let count = (mib << 20) / value_bytes as u64;
    let shape = Shape {
        partitions: 256,
        configure,
        ..Shape::new(NODES + 1, 0).with_first(NODES)
    };
    let cluster = Cluster::start(shape).await;
    let began = Instant::now();
    stream::iter(0..count)
        .for_each_concurrent(WRITES_AT_ONCE, |number| {
            let mut client = cluster.kv(number as usize % NODES);
            async move {
                let request = put(&key(number), &value(number, value_bytes), &Bytes::new());
                client.put(request).await.expect("loading");
            }
        })
        .await;
    println!(
        "{count} records of {value_bytes} bytes on {NODES} nodes in {:.0?}",
        began.elapsed()
    );

    let clients: Vec<_> = (0..NODES).map(|index| cluster.kv(index)).collect();
    let idle = Foreground::start(&clients, count);
    tokio::time::sleep(IDLE).await;
    let idle = idle.end().await;

    let busy = Foreground::start(&clients, count);
    let (plan, took) = grow(&cluster).await;
    let busy = busy.end().await;
    println!("client operations without the change  {}", summary(&idle));
    println!("client operations during the change   {}", summary(&busy));
    println!("from the commit to the new ring alone {took:.1?}");

    let mut pulled = 0;
    for by in ["run", "page", "exchange"] {
        let mut bytes = 0;
        for index in 0..=NODES {
            let label = format!("by=\"{by}\"");
            bytes += cluster.metric(index, "dynamo_pulled_bytes_total", &label).await;
        }
        println!("bytes pulled by {by:<9} {bytes}");
        pulled += bytes;
    }
    println!(
        "replica-partitions moved {} / fewest that any ring moves {} = {:.3}; planned bytes {}, pulled / planned = {:.2}",
        plan.moves,
        plan.moves_min,
        f64::from(plan.moves) / f64::from(plan.moves_min),
        plan.bytes,
        pulled as f64 / plan.bytes as f64,
    );
    let rate = pulled as f64 / took.as_secs_f64() / 1e6;
    let (bytes, copying) = copy_over_loopback(cluster.dir(NODES)).expect("copying files");
    let copy_rate = bytes as f64 / copying.as_secs_f64() / 1e6;
    println!(
        "{rate:.1} MB/s / {copy_rate:.1} MB/s of {bytes} bytes of the new node's files over loopback = {:.2}",
        rate / copy_rate
    );
}

/// Of letters that a compressor gains little from.
fn value(number: u64, bytes: usize) -> String {
    let letters = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let letter = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(letters[(state % 64) as usize])
    };
    (0..bytes).map(letter).collect()
}

fn key(number: u64) -> String {
    format!("key-{number:010}")
}

async fn grow(cluster: &Cluster) -> (PlanResponse, Duration) {
    let member = |index: usize| TargetMember {
        member_id: Cluster::id(index),
        weight: Shape::weight(index),
        ..TargetMember::default()
    };
    let target = Some(RingTarget {
        members: (0..=NODES).map(member).collect(),
        ..RingTarget::default()
    });
    let asked = PlanRequest {
        target: target.clone(),
    };
    let plan = cluster.admin(0).plan(asked).await.expect("planning").into_inner();
    let commit = CommitRequest {
        target,
        expected_epoch: plan.expected_epoch,
        expected_hash: 0,
    };
    let began = Instant::now();
    cluster.admin(0).commit(commit).await.expect("committing");
    for index in 0..=NODES {
        loop {
            let at = cluster.admin(index).transition(TransitionRequest {}).await;
            if at
                .is_ok_and(|at| at.get_ref().next_epoch == 0 && at.get_ref().base_epoch > plan.expected_epoch)
            {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
    }
    (plan, began.elapsed())
}

/// An open loop: operations begin when they are due, whether earlier ones are answered or not, and a latency counts from then.
struct Foreground {
    stop: Arc<AtomicBool>,
    running: JoinHandle<Vec<Duration>>,
}

impl Foreground {
    fn start(clients: &[KeyValueClient<Channel>], count: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, clients) = (Arc::clone(&stop), clients.to_vec());
        let gap = Duration::from_secs(1) / setting("RATE", 200) as u32;
        let running = tokio::spawn(async move {
            let mut operations = Vec::new();
            let mut due = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                due += gap;
                tokio::time::sleep_until(due.into()).await;
                let number = operations.len();
                let mut client = clients[number % clients.len()].clone();
                let key = key(number as u64 * 7919 % count);
                operations.push(tokio::spawn(async move {
                    let context = client.get(get(&key)).await.expect("get").into_inner().context;
                    if number % 2 == 1 {
                        client.put(put(&key, "changed", &context)).await.expect("put");
                    }
                    due.elapsed()
                }));
            }
            let mut latencies = Vec::with_capacity(operations.len());
            for operation in operations {
                latencies.push(operation.await.expect("an operation"));
            }
            latencies.sort_unstable();
            latencies
        });
        Self { stop, running }
    }

    async fn end(self) -> Vec<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        self.running.await.expect("the load")
    }
}

fn summary(latencies: &[Duration]) -> String {
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    format!(
        "{:6}  p50 {:.2?}  p99 {:.2?}  p99.9 {:.2?}",
        latencies.len(),
        at(0.5),
        at(0.99),
        at(0.999)
    )
}

/// Reads a node's table files, sends them through a connection, and writes and syncs them at the other end.
fn copy_over_loopback(directory: &Path) -> io::Result<(u64, Duration)> {
    let files = tables(directory)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let target = tempfile::tempdir()?;
    let began = Instant::now();
    let sending = std::thread::spawn(move || -> io::Result<()> {
        let mut to = TcpStream::connect(address)?;
        for file in files {
            io::copy(&mut fs::File::open(file)?, &mut to)?;
        }
        to.flush()
    });
    let (mut from, _) = listener.accept()?;
    let mut file = fs::File::create(target.path().join("copy"))?;
    let (mut buffer, mut bytes) = (vec![0; 1 << 20], 0);
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        file.write_all(&buffer[..read])?;
        bytes += read as u64;
    }
    file.sync_all()?;
    sending.join().expect("sending")?;
    Ok((bytes, began.elapsed()))
}

fn tables(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.append(&mut tables(&path)?);
        } else if path.extension().is_some_and(|kind| kind == "sst") {
            found.push(path);
        }
    }
    Ok(found)
}
