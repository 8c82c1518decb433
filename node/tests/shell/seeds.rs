//! Random faults under writers, from a seed: what was acknowledged is there afterwards, replicas are equal, nothing is left
//! in flight, and the same seed is the same run, message by message.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    env,
    path::Path,
    process::{Command, Output},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use dynamo_history::{Findings, History, Outcome, Write};
use dynamo_proto::v1::{self, WriteOutcome, key_value_client::KeyValueClient, write_outcome::State};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status, transport::Channel};

use crate::{
    harness::{Chance, Cluster, Shape, World, count, detail, get, id, put, until, values, within},
    trace::Trace,
};

/// Names of the environment: the seed of [`one_seed`], and the file into which it writes what happened.
const SEED: &str = "DYNAMO_TEST_SEED";
const TRACE: &str = "DYNAMO_TEST_TRACE";
/// Seeds of every run of the tests.
const SEEDS: u64 = 100;
const KEYS: u64 = 6;
const CLIENTS: u64 = 3;
/// Of either kind: on the network, and of processes.
const FAULTS: u32 = 4;
/// What a client waits for an answer.
const TIMEOUT: Duration = Duration::from_millis(1500);

/// What the hosts of one run share.
#[derive(Default)]
struct Shared {
    history: RefCell<History>,
    values: Cell<u64>,
    faults_over: Cell<bool>,
    clients_left: Cell<u64>,
    /// What clients were told, in order.
    told: RefCell<Vec<String>>,
}

fn run(seed: u64) -> Vec<String> {
    let shape = Shape::new(3 + (seed % 3) as usize);
    let shared = Rc::new(Shared::default());
    shared.clients_left.set(CLIENTS);
    let mut world = World::new(shape, seed);
    world.client("nemesis", |cluster| nemesis(cluster, Rc::clone(&shared), seed));
    for number in 0..CLIENTS {
        let name = format!("client-{number}");
        world.client(&name, |cluster| {
            client(cluster, Rc::clone(&shared), Chance::new(seed, number))
        });
    }
    world.run();
    shared.told.take()
}

async fn nemesis(cluster: Cluster, shared: Rc<Shared>, seed: u64) {
    cluster.assign().await;
    let (network, processes) = (Chance::new(seed, 100), Chance::new(seed, 101));
    futures::join!(cut_links(&cluster, network), end_processes(&cluster, processes));
    shared.faults_over.set(true);
    until("all clients have their last answer", || async {
        shared.clients_left.get() == 0
    })
    .await;
    cluster.all_well().await;
    for index in 0..cluster.len() {
        until("all hints are delivered", || async {
            cluster.status(index).await.unwrap().hints == 0
        })
        .await;
        until("nothing is in flight", || async {
            cluster.in_flight(index).await == 0
        })
        .await;
    }
    judge(&cluster, &shared.history.take(), seed).await;
}

/// One network fault after the other, each healed before the next.
async fn cut_links(cluster: &Cluster, mut chance: Chance) {
    for _ in 0..FAULTS {
        sleep(chance.ms(100, 800)).await;
        let one = chance.below(cluster.len());
        let other = (one + 1 + chance.below(cluster.len() - 1)) % cluster.len();
        let others = (0..cluster.len()).filter(|index| *index != one);
        let (a, b) = (id(one), id(other));
        let lasts = chance.ms(100, 3000);
        match chance.below(4) {
            0 => {
                turmoil::partition(a.as_str(), b.as_str());
                sleep(lasts).await;
                turmoil::repair(a, b);
            }
            1 => {
                turmoil::partition_oneway(a.as_str(), b.as_str());
                sleep(lasts).await;
                turmoil::repair_oneway(a, b);
            }
            2 => {
                turmoil::hold(a.as_str(), b.as_str());
                sleep(lasts).await;
                turmoil::release(a, b);
            }
            _ => {
                others
                    .clone()
                    .for_each(|other| turmoil::partition(id(one), id(other)));
                sleep(lasts).await;
                others.for_each(|other| turmoil::repair(id(one), id(other)));
            }
        }
    }
}

/// One node after the other is killed or stopped, and started again.
async fn end_processes(cluster: &Cluster, mut chance: Chance) {
    for _ in 0..FAULTS {
        sleep(chance.ms(100, 2000)).await;
        let one = chance.below(cluster.len());
        if chance.below(3) == 0 {
            cluster.stop(one);
            cluster.stopped(one).await;
        } else {
            cluster.kill(one).await;
        }
        sleep(chance.ms(0, 2000)).await;
        cluster.start(one).await;
    }
}

async fn client(cluster: Cluster, shared: Rc<Shared>, mut chance: Chance) {
    let nodes: Vec<_> = (0..cluster.len()).map(|index| cluster.kv(index)).collect();
    while !shared.faults_over.get() {
        let key = format!("key-{}", chance.below(KEYS as usize));
        let node = chance.below(cluster.len());
        let begun = Instant::now();
        let told = operate(nodes[node].clone(), &shared, &mut chance, &key).await;
        // A get and a put at most.
        assert!(begun.elapsed() <= 2 * TIMEOUT, "{:?}", begun.elapsed());
        let now = turmoil::sim_elapsed().unwrap().as_micros();
        shared
            .told
            .borrow_mut()
            .push(format!("{now} {node} {key} {told}"));
        sleep(chance.ms(1, 50)).await;
    }
    shared.clients_left.set(shared.clients_left.get() - 1);
}

/// A blind put, or a get and what a client does with its context; says how it ended.
async fn operate(
    mut node: KeyValueClient<Channel>,
    shared: &Shared,
    chance: &mut Chance,
    key: &str,
) -> String {
    let kind = chance.below(6);
    let (mut context, mut saw) = (Bytes::new(), Vec::new());
    if kind > 0 {
        match node.get(within(TIMEOUT, get(key))).await {
            Ok(found) => {
                let found = found.into_inner();
                saw = values(&found)
                    .iter()
                    .map(|value| value.parse().unwrap())
                    .collect();
                context = found.context;
            }
            Err(status) if status.code() == Code::NotFound => {
                let found: v1::NotFound = detail(&status, "dynamo.v1.NotFound").unwrap();
                context = found.context;
            }
            Err(status) => return format!("get {:?}", status.code()),
        }
    }
    let deletes = kind == 1 && !context.is_empty();
    let value = shared.values.get() + 1;
    shared.values.set(value);
    let answer = if deletes {
        let delete = v1::DeleteRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            context,
            ..v1::DeleteRequest::default()
        };
        node.delete(within(TIMEOUT, delete))
            .await
            .map(|answer| answer.into_inner().info)
    } else {
        let mut put = put(key, &value.to_string(), 2);
        put.context = context;
        node.put(within(TIMEOUT, put))
            .await
            .map(|answer| answer.into_inner().info)
    };
    let outcome = answer.as_ref().map_or_else(refused, |_| Outcome::Acknowledged);
    // Without its metadata, in which hyper puts the real date.
    let answer = answer.map_err(|status| (status.code(), status.message().to_owned()));
    let told = format!("{value} saw {saw:?}: {outcome:?} {answer:?}");
    let value = (!deletes).then_some(value);
    let write = Write { value, saw, outcome };
    shared.history.borrow_mut().write(key, write);
    told
}

/// What a failed write's status says of it. Who got no word of a node knows nothing.
fn refused(status: &Status) -> Outcome {
    let outcome: Option<WriteOutcome> = detail(status, "dynamo.v1.WriteOutcome");
    match outcome.map(|outcome| outcome.state()) {
        Some(State::NotApplied) => Outcome::NotApplied,
        _ => Outcome::Unknown,
    }
}

async fn judge(cluster: &Cluster, history: &History, seed: u64) {
    let mut findings = Findings::default();
    for key in history.keys() {
        cluster.equal(key).await;
        let mut request = get(key);
        request.r = count(3);
        let found: BTreeSet<u64> = match cluster.kv(0).get(within(TIMEOUT, request)).await {
            Ok(found) => values(&found.into_inner())
                .iter()
                .map(|value| value.parse().unwrap())
                .collect(),
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound, "seed {seed}, {key}: {status}");
                BTreeSet::new()
            }
        };
        history.judge(key, &found, &mut findings);
    }
    assert!(findings.is_clean(), "seed {seed}: {findings:#?}");
    assert!(
        findings.acknowledged > 20,
        "seed {seed}: hardly anything was acknowledged"
    );
}

/// The run of one seed, which may be chosen: `DYNAMO_TEST_SEED=17 cargo test ... --test shell one_seed`.
#[test]
fn one_seed() {
    let seed = env::var(SEED).map_or(0, |seed| seed.parse().unwrap());
    dynamo_seeded::seed(seed);
    let mut told = Vec::new();
    if let Ok(path) = env::var(TRACE) {
        let trace = Trace::of(|| told = run(seed));
        std::fs::write(path, [trace, told.clone()].concat().join("\n")).unwrap();
    } else {
        told = run(seed);
    }
    assert!(told.len() > 50, "hardly anything was asked");
}

/// Runs a seed in a process of its own. A killed node drops its tasks in an order that depends on their numbers, which tokio
/// gives across the whole process: with other runs beside it, a run would not be the same twice.
fn apart(seed: u64, trace: &Path) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "seeds::one_seed", "--nocapture"]);
    command.env(SEED, seed.to_string());
    if trace.as_os_str().is_empty() {
        command.env_remove(TRACE);
    } else {
        command.env(TRACE, trace);
    }
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let [stdout, stderr] = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(status.success(), "seed {seed}:\n{stdout}{stderr}");
    assert!(stdout.contains("1 passed"), "no test ran:\n{stdout}");
}

/// Half of the seeds each, so that they run side by side.
fn half(odd: u64) {
    (0..SEEDS)
        .filter(|seed| seed % 2 == odd)
        .for_each(|seed| apart(seed, Path::new("")));
}

#[test]
fn acknowledged_writes_survive_random_faults_even_seeds() {
    half(0);
}

#[test]
fn acknowledged_writes_survive_random_faults_odd_seeds() {
    half(1);
}

#[test]
fn the_same_seed_is_the_same_run() {
    let dir = tempfile::tempdir().unwrap();
    let traced = |seed: u64| {
        let path = dir.path().join("trace");
        apart(seed, &path);
        std::fs::read_to_string(path).unwrap()
    };
    let mut different = BTreeSet::new();
    for seed in [1000, 1001] {
        let (first, second) = (traced(seed), traced(seed));
        assert!(first.lines().count() > 10_000, "hardly anything was traced");
        for (number, (one, other)) in first.lines().zip(second.lines()).enumerate() {
            assert_eq!(one, other, "seed {seed}, line {number}");
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
        assert!(different.insert(first), "another seed is another run");
    }
}
