//! A whole partition at once, for a node that has next to nothing of it. Paper: §6.2 (strategy 3).
//!
//! ```text
//!   source    page ─▶ page ─▶ page                records as they are stored, 1 MiB at a time
//!   here                 │  checked
//!                        ▼
//!                 a sorted run, a file           beside the store, no write waits for it
//!                        │  taken in
//!                        ▼
//!                 the store and its tree         what was written here meanwhile stays as it is
//! ```
//!
//! It only saves time: an exchange follows, which compares and counts. So whatever goes wrong here is left to the exchange,
//! as are records that were written here meanwhile, and those that time alone may remove.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use dynamo_core::{
    entropy::record_hash,
    types::{KeyHash, MemberId, PartitionId},
    version::KeyState,
};
use dynamo_proto::peer::{PageRequest, PageResponse, StoredState};
use futures::future::try_join_all;
use tokio::sync::mpsc;

use super::{Task, exchange};
use crate::{
    node::Node,
    peers::To,
    storage::{
        DataKey, Run, Space, StoreError,
        follower::may_go,
        keys::{HashRange, hash_of},
        look,
        run::KEPT_MAX,
        writer::has_room,
    },
};

/// A run has about so many bytes at most; if a later one fails, the exchange gets what the earlier ones have not brought.
const RUN_BYTES: u64 = 64 << 20;
/// A single page with fewer records is merged: that costs one sync.
const RUN_RECORDS_MIN: usize = 256;
/// Pages that wait for the disk.
const PAGES_AHEAD: usize = 2;

/// Gets what a member has of a partition, if there is much of it there and little here.
pub(super) async fn pull(node: &Arc<Node>, task: Task, partition: PartitionId, member: &MemberId) {
    let Some(to) = node.membership().to(member) else {
        return;
    };
    let from = Source {
        node: Arc::clone(node),
        task,
        partition,
        to,
    };
    match from.pull().await {
        Ok(0) => {}
        Ok(bytes) => {
            tracing::debug!(partition = partition.0, peer = %member, bytes, "a partition was taken in");
        }
        Err(error) => {
            tracing::debug!(partition = partition.0, peer = %member, error = format!("{error:#}"), "a partition is not taken in as a whole");
        }
    }
}

/// One partition of one member.
struct Source {
    node: Arc<Node>,
    task: Task,
    partition: PartitionId,
    to: To,
}

/// Records of a run, in order.
type Records = Vec<(Bytes, Bytes)>;

/// A run, and what a tree is to have of it.
struct Piece {
    run: Run,
    hashes: Vec<(KeyHash, u64)>,
}

impl Source {
    /// Bytes that were taken in by runs.
    async fn pull(&self) -> anyhow::Result<u64> {
        if !exchange::differs(&self.node, self.task, self.partition, &self.to).await {
            return Ok(0);
        }
        let Some(here) = self.keys_here().await? else {
            return Ok(0);
        };
        let mut page = self.page(Bytes::new()).await?;
        let known = page.states.iter().filter(|state| here.contains(&state.position));
        if known.count() * 2 > page.states.len() {
            return Ok(0);
        }
        if page.next.is_empty() && page.states.len() < RUN_RECORDS_MIN {
            self.merge(page.states).await?;
            return Ok(0);
        }
        let mut bytes = 0;
        loop {
            let (piece, next) = self.run(page).await?;
            if let Some(piece) = piece {
                bytes += piece.run.bytes();
                ensure!(self.take_in(piece).await?, "much was written here meanwhile");
            }
            match next {
                Some(next) => page = next,
                None => return Ok(bytes),
            }
        }
    }

    /// The keys of this node's records; `None` if there are many.
    async fn keys_here(&self) -> Result<Option<BTreeSet<Bytes>>, StoreError> {
        let Some(placed) = self.node.ring_in_use() else {
            return Ok(None);
        };
        let range = HashRange::all(&placed.placement().ring().range(self.partition));
        look(self.node.store(), "counting records", move |store| {
            let page = store.scan(Space::Data, range.as_range(), KEPT_MAX)?;
            let keys = page.entries.into_iter().map(|(key, _)| key).collect();
            Ok(page.done.then_some(keys))
        })
        .await
    }

    async fn page(&self, after: Bytes) -> anyhow::Result<PageResponse> {
        let background = self.node.background();
        background.wait_turn(self.task, 1, 0).await;
        let request = PageRequest {
            header: Some(self.to.header()),
            partition: self.partition.0,
            after,
        };
        let page = self.node.peers().page(&self.to, request).await;
        let page = page.map_err(|error| anyhow::anyhow!("asking for a page: {}", error.status.message()))?;
        background.wait_turn(self.task, 0, bytes_of(&page.states)).await;
        Ok(page)
    }

    /// Writes a page and those that follow it to a run; gives the first page that is no part of it.
    async fn run(&self, first: PageResponse) -> anyhow::Result<(Option<Piece>, Option<PageResponse>)> {
        let (pages, mut arriving) = mpsc::channel::<Records>(PAGES_AHEAD);
        let store = Arc::clone(self.node.store());
        let least = self.node.config().storage.free_bytes_min;
        ensure!(
            has_room(&*store, least, 2 * RUN_BYTES),
            "the disk has no room for it"
        );
        let writing = tokio::task::spawn_blocking(move || {
            let mut hashes = Vec::new();
            let records = std::iter::from_fn(|| arriving.blocking_recv()).flatten();
            let mut records = records.inspect(|(key, state)| {
                hashes.push((hash_of(key), record_hash(key, state)));
            });
            let run = store.write_run(&mut records);
            run.map(|run| run.map(|run| Piece { run, hashes }))
        });
        let (mut page, mut bytes, mut last) = (first, 0, Bytes::new());
        let rest = loop {
            bytes += bytes_of(&page.states);
            let records = self.checked(page.states, &mut last)?;
            // Why it does not take them, it says below.
            if pages.send(records).await.is_err() || page.next.is_empty() {
                break None;
            }
            page = self.page(page.next).await?;
            if bytes >= RUN_BYTES {
                break Some(page);
            }
        };
        drop(pages);
        let run = writing.await.context("writing a sorted run")??;
        Ok((run, rest))
    }

    /// A page's records, but for those that are left to the exchange.
    fn checked(&self, states: Vec<StoredState>, last: &mut Bytes) -> anyhow::Result<Records> {
        let mut records = Vec::with_capacity(states.len());
        for StoredState { position, state } in states {
            let (key, decoded) = parsed(position.clone(), state.clone())?;
            let placed = self.node.ring_in_use();
            let here = placed.is_some_and(|placed| placed.partition_of(&key) == self.partition);
            ensure!(here && position > *last, "a record is not where it belongs");
            last.clone_from(&position);
            if !may_go(&decoded, self.node.config().background.actors_max) {
                records.push((position, state));
            }
        }
        Ok(records)
    }

    async fn merge(&self, states: Vec<StoredState>) -> anyhow::Result<()> {
        self.node.metrics().pulled("page", bytes_of(&states));
        let merges = states.into_iter().map(|StoredState { position, state }| async {
            let (key, state) = parsed(position, state)?;
            anyhow::Ok(self.node.writer().merge(key, state, true).await?)
        });
        try_join_all(merges).await.map(drop)
    }

    /// On the writer's thread, so that nobody writes meanwhile.
    async fn take_in(&self, Piece { run, hashes }: Piece) -> anyhow::Result<bool> {
        let (trees, partition, bytes) = (Arc::clone(self.node.trees()), self.partition, run.bytes());
        let taken = self.node.writer().look(move |store| {
            let Some(kept) = store.take_in(&run)? else {
                return Ok(false);
            };
            let kept: BTreeSet<KeyHash> = kept.iter().map(|key| hash_of(key)).collect();
            trees.add(
                partition,
                hashes.into_iter().filter(|(key, _)| !kept.contains(key)),
            );
            Ok::<_, StoreError>(true)
        });
        let taken = taken.await??;
        if taken {
            self.node.metrics().pulled("run", bytes);
        }
        Ok(taken)
    }
}

fn bytes_of(states: &[StoredState]) -> u64 {
    let bytes = states
        .iter()
        .map(|state| state.position.len() + state.state.len());
    bytes.sum::<usize>() as u64
}

fn parsed(position: Bytes, state: Bytes) -> anyhow::Result<(DataKey, KeyState)> {
    let key = DataKey::parse(position).context("a record's place cannot be read")?;
    let state = KeyState::decode(state).context("a record cannot be read")?;
    Ok((key, state))
}
