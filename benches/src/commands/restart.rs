//! `kvbench restart`: how long a node is away that is killed and started again at once, beside a node of a peer with the same records;
//! and what the nodes of both hold in memory before. G25, G28.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::rounds::{Bar, Round, Section, measure, publish};
use crate::{
    bed::{Bed, say},
    cli,
    load::workload::Workload,
    stats::{Bars, Better},
    system::Target,
};

/// Between two attempts to read.
const PAUSE: Duration = Duration::from_millis(2);
/// Of one attempt, with its connection.
const ATTEMPT: Duration = Duration::from_secs(2);
/// For the first read.
const LIMIT: Duration = Duration::from_mins(5);

const OURS: &str = "ours, s from kill -9 to the first get";
const PEER: &str = "peer, s from kill -9 to the first get";
const OURS_MIB: &str = "ours, MiB (PSS)";
const PEER_MIB: &str = "peer, MiB (PSS)";

const RESTART: [Bar; 1] = [Bar {
    name: "G25",
    what: "from kill -9 of a node to the first get that it answers, ours / peer",
    better: Better::Lower,
    bars: Bars {
        floor: Some(0.3),
        aim: Some(0.1),
    },
    of: |round| round.ratio(OURS, PEER),
}];

const MEMORY: [Bar; 1] = [Bar {
    name: "G28",
    what: "memory of a node (PSS) with all records loaded and warm, ours / peer",
    better: Better::Lower,
    bars: Bars {
        floor: Some(0.25),
        aim: Some(0.1),
    },
    of: |round| round.ratio(OURS_MIB, PEER_MIB),
}];

pub(crate) async fn run(options: &cli::Restart) -> Result<()> {
    let bench = &options.bench;
    let shape = bench.shape(Workload::A);
    let mut beds = [
        Bed::prepare(crate::servers::Kind::Ours, shape, Workload::A, bench).await?,
        Bed::prepare(options.peer, shape, Workload::A, bench).await?,
    ];
    let memory = memory(&beds)?;
    // From here on, one runs at a time: the other is stopped.
    for bed in &beds {
        bed.pause()?;
    }
    let rounds = measure(options.rounds, async |number| {
        let mut round = Round::default();
        let victim = (number - 1) as usize % usize::from(shape.nodes);
        for (bed, name) in beds.iter_mut().zip([OURS, PEER]) {
            round.set(name, away(bed, victim, bench.settle()).await?);
        }
        Ok(round)
    })
    .await?;
    let note = format!(
        "ours: {}\n{} (peer): {}\n{} records; one node of each is killed, in turn, and its system alone runs",
        beds[0].guarantee(),
        options.peer,
        beds[1].guarantee(),
        bench.records
    );
    let sections = [
        Section {
            note,
            rounds,
            bars: &RESTART,
        },
        Section {
            note: "one round for each pair of nodes, before any was killed".to_owned(),
            rounds: memory,
            bars: &MEMORY,
        },
    ];
    let about = json!({
        "plan": bench.plan(Workload::A),
        "shape": shape,
        "peer": options.peer,
        "warm_up": [&beds[0].warm, &beds[1].warm],
    });
    for bed in beds {
        bed.resume().await?;
        bed.stop().await?;
    }
    publish("restart", bench, about, &sections)
}

/// Of each node beside the peer's of the same number.
fn memory([ours, peer]: &[Bed; 2]) -> Result<Vec<Round>> {
    let pairs = ours.memory()?.into_iter().zip(peer.memory()?);
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok(pairs
        .map(|(ours, peer)| {
            let mut round = Round::default();
            round.set(OURS_MIB, mebibytes(ours.pss_bytes));
            round.set(PEER_MIB, mebibytes(peer.pss_bytes));
            round
        })
        .collect())
}

/// Seconds for which a node does not answer.
async fn away(bed: &mut Bed, victim: usize, settle: Duration) -> Result<f64> {
    bed.resume().await?;
    sleep(settle).await;
    let began = Instant::now();
    bed.kill(victim).await?;
    bed.launch(victim)?;
    while !answers(bed, victim).await {
        ensure!(
            began.elapsed() < LIMIT,
            "{}: node {} does not answer {} s after its start",
            bed.kind,
            victim + 1,
            LIMIT.as_secs()
        );
        sleep(PAUSE).await;
    }
    let took = began.elapsed().as_secs_f64();
    say(&format!(
        "{}: node {} was away for {took:.2} s",
        bed.kind,
        victim + 1
    ));
    // All of its clients are back before it is stopped.
    bed.resume().await?;
    bed.pause()?;
    Ok(took)
}

/// Whether the node itself reads a record that is there; it may ask others for it, as for any read.
async fn answers(bed: &Bed, number: usize) -> bool {
    let reading = async {
        let target: Arc<dyn Target> = bed.connect_to(number).await?;
        target.get(bed.load().key(0)).await
    };
    matches!(timeout(ATTEMPT, reading).await, Ok(Ok(Some(_))))
}
