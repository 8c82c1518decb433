//! Changes of the ring: gives this node's steps as they are due, pulls what the next ring makes it hold, and hands over what it
//! holds no more. Paper: §4.9, §6.2.
//!
//! ```text
//!   steps     known, synced, reading: each on disk before it is told      as soon as it is due
//!   pull      partitions that are new here, each from its old holder      once everybody knows the ring
//!   strays    partitions that are not held here, to their owners;         after a change of the base ring, and now and then
//!             then they are erased
//! ```

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use dynamo_core::{
    entropy::{ExchangeReport, Mode},
    membership::RingVersion,
    transition::Step,
    types::{MemberId, PartitionId},
    version::KeyState,
};
use futures::future::join_all;
use tokio::time::Instant;

use super::{IDLE, Task, bulk, exchange, idle};
use crate::{
    clock,
    node::{Node, Placed},
    storage::{
        DataKey, StoreError,
        keys::HashRange,
        look, records,
        writer::{Expected, Swap},
    },
    tasks,
};

/// Exchanges that pull at a time: while one waits for the network, another one waits for the disk.
pub(super) const PULLS: usize = 2;
/// Strays of another origin than a change of the ring are looked for so often.
const STRAYS_INTERVAL: Duration = Duration::from_mins(1);
/// Records that are erased at a time.
const ERASED_RECORDS: usize = 256;

/// Gives the steps that are due.
pub(super) async fn steps(node: Arc<Node>) {
    loop {
        node.background().transition_changed(IDLE).await;
        while let Some(placed) = node.ring_in_use()
            && placed.layouts().in_transition()
            && !node.is_unconfirmed()
        {
            let local = node.local(&placed);
            let Some(mark) = node.membership().give_mark(node.writer(), local).await else {
                break;
            };
            tracing::info!(
                epoch = mark.ring.epoch,
                step = step_name(mark.step),
                "a step of a change of the ring is taken"
            );
            if mark.step == Step::Reading && placed.leaves() {
                // With the last of these marks it ends, and the others could not go on without its word.
                tasks::tell_all(&node).await;
            }
            node.ring_changed();
            node.catch_up();
        }
    }
}

/// The word for people.
pub(crate) fn step_name(step: Step) -> &'static str {
    match step {
        Step::Known => "known",
        Step::Synced => "synced",
        Step::Reading => "reading",
    }
}

/// Pulls partitions, one after the other.
pub(super) async fn pull(node: Arc<Node>) {
    loop {
        if !pull_next(&node).await {
            idle().await;
        }
    }
}

/// Runs the next exchange that is needed, if one can begin now. False: there is nothing to do, or it came to nothing.
async fn pull_next(node: &Arc<Node>) -> bool {
    // A request in flight may count on what a lost disk took: it is waited for, as in a recovery.
    let early = node.recovery(|recovery| clock::monotonic_ms() < recovery.earliest_ms());
    if node.is_unconfirmed() || early == Some(true) || !node.membership().may_sync() {
        return false;
    }
    let source = |member: &MemberId| node.peers().reachable(member);
    let next = node.with_sync(|sync| {
        let ring = sync.ring();
        sync.next(&source, clock::random_u64()).map(|next| (ring, next))
    });
    let Some(Some((ring, (partition, member)))) = next else {
        return false;
    };
    node.pulls();
    bulk::pull(node, Task::Transfer, partition, &member).await;
    let report = exchange::run(node, Task::Transfer, partition, &member, Mode::PullOnly).await;
    let complete = holds(node, report).await;
    node.with_sync(|sync| {
        // Not of one that has taken its place: that may only begin once everybody knows of it.
        if sync.ring() == ring {
            sync.ended(partition, &member, complete);
        }
    });
    if node.with_sync(|sync| sync.is_done()) == Some(true) {
        node.background().transition_due();
    }
    complete
}

/// Everything that the peer had is here, on the disk.
async fn holds(node: &Node, report: Option<ExchangeReport>) -> bool {
    // What was equal may have come by a write that is not synced yet.
    report.is_some_and(|report| report.complete) && node.sync().await
}

/// Hands over what is nobody's here.
pub(super) async fn strays(node: Arc<Node>) {
    let mut looked: Option<Instant> = None;
    loop {
        let placed = node
            .ring_in_use()
            .filter(|_| !node.is_doubtful() && !node.is_suspect_anywhere());
        let Some(placed) = placed else {
            idle().await;
            continue;
        };
        let none_left = node.with_strays(|strays| strays.count()) == 0;
        if none_left && looked.is_none_or(|at| at.elapsed() > STRAYS_INTERVAL) {
            match find(&node, &placed).await {
                Ok(found) => {
                    looked = Some(Instant::now());
                    if !found.is_empty() {
                        let partitions = found.len();
                        tracing::info!(
                            partitions,
                            "records that this node does not hold are handed to their owners"
                        );
                        node.stray(&placed, found);
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot look for strays"),
            }
        }
        if !hand_over_next(&node, &placed).await && !erase_next(&node, &placed).await {
            idle().await;
        }
    }
}

/// The partitions of which this node has records though it holds them by no ring.
async fn find(node: &Arc<Node>, placed: &Arc<Placed>) -> Result<BTreeSet<PartitionId>, StoreError> {
    let placed = Arc::clone(placed);
    look(node.store(), "looking for strays", move |store| {
        let ring = placed.placement().ring();
        let mut found = BTreeSet::new();
        for partition in (0..ring.partitions()).map(PartitionId) {
            let hashes = ring.range(partition);
            if !placed.has_a_part_in(partition) && records::any(store, &HashRange::all(&hashes))? {
                found.insert(partition);
            }
        }
        Ok(found)
    })
    .await
}

async fn hand_over_next(node: &Arc<Node>, placed: &Placed) -> bool {
    let base = RingVersion::from(placed.placement().ring().as_ref());
    let reachable = |member: &MemberId| node.peers().reachable(member);
    let next = node.with_strays(|strays| strays.next(placed.layouts(), &reachable, clock::random_u64()));
    let Some((partition, owner)) = next else {
        return false;
    };
    let report = exchange::run(node, Task::Transfer, partition, &owner, Mode::Both).await;
    let complete = report.is_some_and(|report| report.complete);
    node.with_strays(|strays| strays.ended(base, partition, &owner, complete));
    complete
}

async fn erase_next(node: &Arc<Node>, placed: &Placed) -> bool {
    let Some(partition) = node.with_strays(|strays| strays.safe(placed.layouts())) else {
        return false;
    };
    match erase(node, partition).await {
        Ok(records) => {
            tracing::info!(
                partition = partition.0,
                records,
                "a partition that this node holds no more is erased"
            );
            node.erased(partition);
            true
        }
        Err(error) => {
            tracing::warn!(partition = partition.0, %error, "cannot erase a partition");
            false
        }
    }
}

/// Erases a partition's records as they are now, but for those that change meanwhile.
async fn erase(node: &Arc<Node>, partition: PartitionId) -> anyhow::Result<usize> {
    let (mut after, mut erased) = (None, 0);
    loop {
        node.background()
            .wait_turn(Task::Transfer, ERASED_RECORDS as u32, 0)
            .await;
        let placed = node.ring_in_use();
        if placed.is_none_or(|placed| placed.has_a_part_in(partition)) {
            // It is to hold the partition again.
            return Ok(erased);
        }
        let page = node.page(partition, after.take(), ERASED_RECORDS).await?;
        after = page.entries.last().map(|(key, _)| key.clone());
        let removals = page.entries.iter().map(|(key, state)| remove(node, key, state));
        for removed in join_all(removals).await {
            erased += usize::from(removed?);
        }
        if page.done || after.is_none() {
            return Ok(erased);
        }
    }
}

async fn remove(node: &Node, key: &DataKey, state: &KeyState) -> anyhow::Result<bool> {
    let expected = Expected {
        digest: state.digest(),
        mark: None,
    };
    let removed = node.writer().swap(key, expected, Swap::Delete, true).await?;
    Ok(removed.is_some())
}

/// Why a node that is joining does not serve yet.
pub(crate) fn joining(node: &Node, placed: &Placed) -> String {
    let Some(next) = placed.layouts().next() else {
        return "leaving: keeps what it holds until a ring without the dead takes the place of the one that serves".to_owned();
    };
    let epoch = next.ring().epoch();
    let progress = node.with_sync(|sync| sync.progress()).unwrap_or_default();
    let waits = node.membership().transition().and_then(|transition| {
        transition.waits_for().map(|(step, members)| {
            let members: Vec<&str> = members.into_iter().map(MemberId::as_str).collect();
            format!("waits for step {} of {}", step_name(step), members.join(", "))
        })
    });
    format!(
        "joining: ring {epoch} is to list it; {} of {} partitions are here; {}",
        progress.done,
        progress.partitions,
        waits.unwrap_or_default()
    )
}
