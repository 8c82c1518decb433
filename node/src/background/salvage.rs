//! Merges what a set-aside store held into the cluster again, by an administrator's word. Paper: §4.7, of which this is the
//! direction that the node does not take by itself: what was deleted and reaped since would come back.

use std::sync::Arc;

use dynamo_core::{types::MemberId, version::KeyState};
use dynamo_proto::admin::SalvageProgress;
use futures::future::join_all;
use tokio::{sync::mpsc, task::spawn_blocking};
use tonic::Status;

use super::{Task, hints::bring};
use crate::{
    grpc::status::{Failure, Reason},
    node::{Node, Placed},
    storage::{
        DataKey,
        salvage::{Portion, Salvage},
        set_aside,
    },
};

/// Reports that wait for the administrator.
const REPORTS: usize = 2;

/// What is told of the progress.
pub(crate) type Reports = mpsc::Receiver<Result<SalvageProgress, Status>>;

/// Begins to merge a store, or only to read it. It ends early if nobody reads the reports any more.
///
/// # Errors
/// If there is no store of that name, it cannot be opened, or it is another cluster's.
pub(crate) async fn start(
    node: &Arc<Node>,
    placed: Arc<Placed>,
    name: String,
    dry_run: bool,
) -> Result<Reports, Failure> {
    let salvage = open(node, &placed, name.clone()).await?;
    tracing::warn!(
        store = name,
        dry_run,
        "an administrator has a store that was set aside merged again"
    );
    let (reports_in, reports) = mpsc::channel(REPORTS);
    let node = Arc::clone(node);
    tokio::spawn(async move {
        tokio::select! {
            () = run(&node, &placed, salvage, dry_run, &reports_in) => {}
            () = reports_in.closed() => tracing::warn!(store = name, "merging it was given up: nobody waits for it"),
        }
    });
    Ok(reports)
}

async fn open(node: &Node, placed: &Placed, name: String) -> Result<Salvage, Failure> {
    let data_dir = node.config().data_dir.clone();
    let cluster = placed.cluster_id();
    let work = move || {
        let cannot = |why: String| Failure::new(Reason::Storage, format!("cannot read {name}: {why}"));
        let names = set_aside::names(&data_dir).map_err(|error| cannot(error.to_string()))?;
        if !names.contains(&name) {
            let there = match names.join(", ") {
                none if none.is_empty() => "no store was set aside on this node".to_owned(),
                names => format!("there are {names}"),
            };
            return Err(Failure::invalid(format!(
                "there is no store {name:?} to salvage: {there}"
            )));
        }
        let salvage = Salvage::open(&data_dir.join(&name)).map_err(|error| cannot(error.to_string()))?;
        match salvage.cluster() {
            Some(other) if other != cluster => Err(Failure::new(
                Reason::ForeignCluster,
                format!("{name} holds data of cluster {other}, this node is one of {cluster}"),
            )),
            _ => Ok(salvage),
        }
    };
    spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Failure::new(Reason::Storage, error.to_string())))
}

async fn run(
    node: &Arc<Node>,
    placed: &Placed,
    mut salvage: Salvage,
    dry_run: bool,
    reports: &mpsc::Sender<Result<SalvageProgress, Status>>,
) {
    let mut progress = SalvageProgress::default();
    loop {
        let read = spawn_blocking(move || (salvage.portion(), salvage));
        let Ok((Some(portion), rest)) = read.await else {
            return;
        };
        salvage = rest;
        add(&mut progress, &portion);
        if !dry_run {
            let merges = portion
                .records
                .into_iter()
                .map(|(key, state)| merge(node, placed, key, state));
            progress.merged += join_all(merges).await.into_iter().map(u64::from).sum::<u64>();
        }
        if reports.send(Ok(progress)).await.is_err() {
            return;
        }
    }
}

fn add(progress: &mut SalvageProgress, portion: &Portion) {
    progress.records += portion.records.len() as u64;
    progress.damaged += portion.damaged;
    progress.gaps += u64::from(portion.gap);
    progress.percent = portion.percent;
}

/// True once all primaries of the key have taken the state durably.
async fn merge(node: &Arc<Node>, placed: &Placed, key: DataKey, state: KeyState) -> bool {
    let primaries: Vec<MemberId> = placed.primaries_of(placed.partition_of(&key)).cloned().collect();
    bring(node, placed, Task::Salvage, &primaries, &key, &state).await
}
