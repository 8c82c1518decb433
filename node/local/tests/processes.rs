//! Real processes on loopback: a ring is started, stopped, robbed of nodes and zones, and given back what it had.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test they are its failure")]

mod support;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use dynamo_client::Context;
use dynamo_local::{Error, LocalRing, Running, Wanted};
use dynamo_proto::admin::StatusResponse;
use support::{LIMIT, Writers, all_is_kept, alone, client, folder, settings, until_hints_are_delivered};

/// The programs of the workspace are beside those of this package.
fn dynamo_local(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dynamo-local"));
    command.args(args);
    command
}

/// Whether a process runs: also `false` for one that has ended and was not waited for.
fn lives(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .any(|line| line.starts_with("State:") && !line.contains("Z (zombie)"))
}

async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let began = Instant::now();
    while !check() {
        assert!(began.elapsed() < LIMIT, "waited {LIMIT:?} until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn until_it_answers(ring: &LocalRing, member: &str) -> StatusResponse {
    let began = Instant::now();
    loop {
        match ring.status(member).await {
            Ok(status) => return status,
            Err(error) => assert!(began.elapsed() < LIMIT, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn pids(ring: &LocalRing) -> Vec<u32> {
    let running = ring.nodes().iter().map(|node| match node.running() {
        Running::Yes { pid } => pid,
        other => panic!("{} is {other:?}", node.member()),
    });
    running.collect()
}

/// A clean stop and a crash of all nodes both keep what was acknowledged; only the crash begins new incarnations.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_start_finds_the_data_of_the_first() {
    let _alone = alone().await;
    let dir = folder();
    let mut ring = LocalRing::start(settings(dir.path(), 4, 2)).await.unwrap();
    assert!(ring.created());
    let (ports, first) = (ring.endpoints(), ring.status("node-2").await.unwrap());
    let kv = client(&ring).await;
    for number in 0..200 {
        kv.put(format!("key-{number}"), number.to_string(), &Context::none())
            .await
            .unwrap();
    }
    ring.stop("all").await.unwrap();
    drop((kv, ring));

    let mut ring = LocalRing::start(settings(dir.path(), 4, 2)).await.unwrap();
    assert!(!ring.created());
    assert_eq!(ring.endpoints(), ports);
    let second = ring.status("node-2").await.unwrap();
    assert_eq!(second.member_id, first.member_id);
    assert_eq!(
        (second.ring_epoch, second.ring_hash),
        (first.ring_epoch, first.ring_hash)
    );
    assert_eq!(
        second.incarnation_id, first.incarnation_id,
        "a clean stop keeps the incarnation"
    );
    ring.kill("all").await.unwrap();
    ring.start_again("all").await.unwrap();
    let third = ring.status("node-2").await.unwrap();
    assert_ne!(
        third.incarnation_id, second.incarnation_id,
        "a crash begins a new incarnation"
    );
    assert_eq!(third.incarnation_generation, second.incarnation_generation + 1);

    let kv = client(&ring).await;
    for number in 0..200 {
        let found = kv.get(format!("key-{number}")).await.unwrap();
        assert_eq!(found.single().unwrap(), &number.to_string());
    }
    ring.stop("all").await.unwrap();
}

/// A node that starts waits for a peer's word on its disk, or 3 s for a peer, before it coordinates reads; only then is it ready.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_ready_once_it_coordinates_reads() {
    let _alone = alone().await;
    let dir = folder();
    let mut ring = LocalRing::start(settings(dir.path(), 3, 3)).await.unwrap();
    let began = Instant::now();
    loop {
        ring.kill("all").await.unwrap();
        ring.launch("node-1").unwrap();
        if until_it_answers(&ring, "node-1").await.confirming {
            break;
        }
        assert!(began.elapsed() < LIMIT, "no peer confirms node-1");
        // A store that no peer has ever confirmed is waited for by nobody, and in a new ring nobody's word counts for 3 s.
        ring.start_again("all").await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    ring.ready().await.unwrap();
    assert!(!ring.status("node-1").await.unwrap().confirming);
}

/// D30: a whole zone is killed under load. Reads and writes go on at quorum, and nothing acknowledged is missing, then or
/// after the zone is back. K11: the ring does not change.
#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_a_zone_stops_nothing() {
    let _alone = alone().await;
    let dir = folder();
    let mut ring = LocalRing::start(settings(dir.path(), 6, 3)).await.unwrap();
    let epoch = ring.status("node-2").await.unwrap().ring_epoch;
    let kv = client(&ring).await;
    let load = Writers::start(&kv, 4, 50, 1);
    // Some writes from before the loss are to be in the history; how many does not matter.
    tokio::time::sleep(Duration::from_secs(1)).await;
    // What stand-ins alone have acknowledged, as while the ring came up, is not promised to outlive the coordinator's zone.
    until_hints_are_delivered(&ring).await;
    ring.kill("zone-a").await.unwrap();
    let watched = client(&ring).await;
    for number in 0..300 {
        let key = format!("watched-{number}");
        watched.put(&key, "x", &Context::none()).await.unwrap();
        watched.get(&key).await.unwrap();
    }
    let did = load.stop().await;
    let (acked, unknown, refused) = did.counts();
    assert_eq!((unknown, refused), (0, 0), "{:?}", did.failures);
    assert!(acked > 100, "{acked}");
    all_is_kept(&kv, &did.history).await;
    ring.start_again("zone-a").await.unwrap();
    // A write that a stand-in's acknowledgement completed may be missed until its hint is delivered.
    until_hints_are_delivered(&ring).await;
    all_is_kept(&kv, &did.history).await;
    assert_eq!(ring.status("node-1").await.unwrap().ring_epoch, epoch);
    ring.stop("all").await.unwrap();
}

/// A paused node answers nothing and holds its connections; two others are enough.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_node_is_done_without() {
    let _alone = alone().await;
    let dir = folder();
    let mut ring = LocalRing::start(settings(dir.path(), 3, 3)).await.unwrap();
    let kv = client(&ring).await;
    ring.pause("node-2").unwrap();
    assert!(matches!(ring.nodes()[1].running(), Running::Paused { .. }));
    for number in 0..50 {
        let key = format!("key-{number}");
        kv.put(&key, "x", &Context::none()).await.unwrap();
        kv.get(&key).await.unwrap();
    }
    ring.resume("node-2").unwrap();
    ring.ready().await.unwrap();
    ring.stop("all").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told() {
    let _alone = alone().await;
    let dir = folder();
    let mut ring = LocalRing::start(settings(dir.path(), 1, 1)).await.unwrap();
    let error = ring.kill("node-2").await.unwrap_err().to_string();
    assert!(error.contains("there is no node or zone 'node-2'"), "{error}");
    let error = LocalRing::start(settings(dir.path(), 1, 1)).await.unwrap_err();
    assert!(matches!(error, Error::Running { .. }), "{error}");
    ring.stop("all").await.unwrap();
    drop(ring);

    let mut other = settings(dir.path(), 2, 1);
    let error = LocalRing::start(other.clone()).await.unwrap_err().to_string();
    assert!(error.contains("NODES=2 (stored: 1)"), "{error}");
    other.wanted = Wanted::default();
    other.read_quorum = Some(2);
    let error = LocalRing::start(other.clone()).await.unwrap_err().to_string();
    assert!(error.contains("a read quorum of 2 cannot be"), "{error}");

    // A node that ends at once is shown with its last words.
    other.read_quorum = None;
    other.durability = Some("perhaps".to_owned());
    let error = LocalRing::start(other).await.unwrap_err();
    assert!(matches!(error, Error::Ended { .. }), "{error}");
    assert!(error.to_string().contains("perhaps"), "{error}");
}

/// A dropped ring takes its processes along.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_outlives_a_ring() {
    let _alone = alone().await;
    let dir = folder();
    let ring = LocalRing::start(settings(dir.path(), 3, 3)).await.unwrap();
    let pids = pids(&ring);
    assert!(pids.iter().all(|&pid| lives(pid)));
    drop(ring);
    assert!(!pids.iter().any(|&pid| lives(pid)));
}

/// `make run`'s program as a person uses it, but for the terminal.
struct Program {
    child: Child,
    out: std::io::Lines<BufReader<std::process::ChildStdout>>,
    said: Vec<String>,
}

impl Program {
    fn start(dir: &Path, args: &[&str]) -> Self {
        let dir = dir.to_str().unwrap();
        let mut command = dynamo_local(&[&["--data", dir], args].concat());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            child,
            out,
            said: Vec::new(),
        }
    }

    /// Reads until a line contains this.
    fn hear(&mut self, text: &str) {
        while !self.said.last().is_some_and(|line| line.contains(text)) {
            let Some(line) = self.out.next() else {
                panic!("ended before it said {text:?}: {:#?}", self.said)
            };
            self.said.push(line.unwrap());
        }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Process ids of the nodes, from the table.
    fn nodes(&self) -> Vec<u32> {
        let rows = self.said.iter().filter(|line| line.starts_with("node-"));
        rows.map(|line| line.split_whitespace().nth(5).unwrap().parse().unwrap())
            .collect()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }
}

/// Ctrl-C is SIGINT; both signals stop the nodes cleanly, and a second start needs no words.
#[tokio::test(flavor = "multi_thread")]
async fn signals_stop_the_program_cleanly() {
    let _alone = alone().await;
    let dir = folder();
    for (signal, args) in [("-INT", &["--nodes", "4", "--zones", "2"][..]), ("-TERM", &[])] {
        let mut program = Program::start(dir.path(), args);
        program.hear("Ctrl-C or SIGTERM stops");
        let nodes = program.nodes();
        assert_eq!(nodes.len(), 4);
        program.signal(signal);
        assert_eq!(program.child.wait().unwrap().code(), Some(0));
        assert!(!nodes.iter().any(|&pid| lives(pid)));
    }
}

/// Killed itself, the program leaves no nodes behind.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_end_when_their_program_is_killed() {
    let _alone = alone().await;
    let dir = folder();
    let mut program = Program::start(dir.path(), &["--nodes", "3"]);
    program.hear("Ctrl-C or SIGTERM stops");
    let nodes = program.nodes();
    assert!(nodes.len() == 3 && nodes.iter().all(|&pid| lives(pid)));
    program.signal("-KILL");
    program.child.wait().unwrap();
    eventually("the nodes have ended", || !nodes.iter().any(|&pid| lives(pid))).await;
}

/// The prompt's commands, through a pipe.
#[tokio::test(flavor = "multi_thread")]
async fn the_prompt_takes_zones_away_and_back() {
    let _alone = alone().await;
    let dir = folder();
    let mut program = Program::start(dir.path(), &["--nodes", "3"]);
    program.hear("Ctrl-C or SIGTERM stops");
    program.tell("dance");
    program.hear("'dance' is not a command here");
    program.tell("kill zone-b");
    program.hear("killed zone-b");
    program.tell("status");
    program.hear("node-2  zone-b  down");
    program.tell("start zone-b");
    program.hear("zone-b runs and serves");
    program.tell("quit");
    assert_eq!(program.child.wait().unwrap().code(), Some(0));
}

/// The guided tour, each step of which checks itself; with zones to lose, with nodes to lose, and with nothing to lose.
#[tokio::test(flavor = "multi_thread")]
async fn the_tour_goes_as_it_says() {
    let _alone = alone().await;
    for (args, said) in [
        (
            &["--nodes", "6", "--zones", "3"][..],
            "The whole of zone-a crashes",
        ),
        (&["--nodes", "4", "--zones", "2"], "node-1 crashes"),
        (&["--nodes", "1"], "cannot do without a node"),
    ] {
        let output = dynamo_local(&[&["--temporary", "--tour"], args].concat())
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&output.stdout);
        let told = format!(
            "{args:?} {}\n{out}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "{told}");
        for text in [said, "milk,bread,eggs", "That was the tour."] {
            assert!(out.contains(text), "{told}");
        }
    }
}

/// A command gets the ring's addresses, and its exit code is the program's.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_run_against_the_ring() {
    let _alone = alone().await;
    let script = "test -n \"$DYNAMO_ENDPOINT\" -a -n \"$DYNAMO_ADMIN\" && exit 7";
    let status = dynamo_local(&["--temporary", "--nodes", "1", "--", "sh", "-c", script])
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(7));
}
