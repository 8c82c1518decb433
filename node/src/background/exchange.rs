//! Anti-entropy: runs the core's exchange machine against a peer. Paper: §4.7.

use std::sync::Arc;

use bytes::Bytes;
use dynamo_core::{
    entropy::{
        Exchange, ExchangeEffect, ExchangeEvent, ExchangeReport, KeyPage, KeySummary, Mode, PullResult,
        PushResult, Tree, has_news_for, record_hash,
    },
    listing::Position,
    types::{MemberId, PartitionId},
    version::KeyState,
};
use dynamo_proto::peer::{self, fetched::Result as Fetched};
use futures::future::join_all;

use super::Task;
use crate::{
    node::Node,
    peers::{CallError, To},
    storage::{DataKey, StoreError},
};

/// Bytes of records in one message at most, beside its first one.
pub(crate) const TRANSFER_BYTES_MAX: usize = 1 << 20;

/// Compares one partition with one peer and makes both equal as far as the mode allows. `None`: this node's own tree is
/// not ready, or the peer's address is not known.
pub(crate) async fn run(
    node: &Arc<Node>,
    task: Task,
    partition: PartitionId,
    member: &MemberId,
    mode: Mode,
) -> Option<ExchangeReport> {
    let tree = node.tree(partition)?;
    let with = With {
        to: node.membership().to(member)?,
        node: Arc::clone(node),
        partition,
        task,
    };
    let mut machine = Exchange::new(tree, mode);
    let mut effect = machine.step(ExchangeEvent::Start);
    loop {
        let event = match effect {
            ExchangeEffect::AskHashes { level, nodes } => with.hashes(level, nodes).await,
            ExchangeEffect::AskKeys { leaves, after } => with.peer_keys(leaves, after).await,
            ExchangeEffect::LocalKeys { leaves, after } => with.local_keys(leaves, after).await,
            ExchangeEffect::Pull { positions } => with.pull(positions).await,
            ExchangeEffect::Push { positions } => with.push(positions).await,
            ExchangeEffect::Done(report) => {
                node.metrics().exchange(&report);
                return Some(report);
            }
        };
        effect = machine.step(event);
    }
}

/// Whether a peer's copy of a partition is another one than this node's, as far as both have trees.
pub(super) async fn differs(node: &Arc<Node>, task: Task, partition: PartitionId, to: &To) -> bool {
    let Some(root) = node.trees().with(partition, Tree::root) else {
        return false;
    };
    let with = With {
        to: to.clone(),
        node: Arc::clone(node),
        partition,
        task,
    };
    let answer = with.hashes(0, vec![0]).await;
    matches!(answer, ExchangeEvent::PeerHashes { hashes, .. } if hashes != [root])
}

/// One exchange's surroundings.
struct With {
    node: Arc<Node>,
    to: To,
    partition: PartitionId,
    task: Task,
}

impl With {
    async fn hashes(&self, level: u32, nodes: Vec<u32>) -> ExchangeEvent {
        self.node.background().wait_turn(self.task, 1, 0).await;
        let request = peer::TreeHashesRequest {
            header: Some(self.to.header()),
            partition: self.partition.0,
            level,
            nodes,
        };
        match self.node.peers().tree_hashes(&self.to, request).await {
            Ok(response) if response.not_ready => ExchangeEvent::PeerNotReady,
            Ok(response) => ExchangeEvent::PeerHashes {
                hashes: response.hashes,
                suspect: response.suspect,
            },
            Err(error) => self.failed("comparing hashes", &error),
        }
    }

    async fn peer_keys(&self, leaves: Vec<u32>, after: Option<Position>) -> ExchangeEvent {
        self.node.background().wait_turn(self.task, 1, 0).await;
        let request = peer::TreeKeysRequest {
            header: Some(self.to.header()),
            partition: self.partition.0,
            leaves,
            after: after
                .map(|position| position.as_bytes().clone())
                .unwrap_or_default(),
        };
        let response = match self.node.peers().tree_keys(&self.to, request).await {
            Ok(response) if response.not_ready => return ExchangeEvent::PeerNotReady,
            Ok(response) => response,
            Err(error) => return self.failed("listing keys", &error),
        };
        let mut keys = Vec::with_capacity(response.keys.len());
        for key in response.keys {
            let Ok(place) = DataKey::parse(key.position) else {
                return ExchangeEvent::Failed;
            };
            keys.push(KeySummary {
                position: place.position(),
                hash: key.hash,
            });
        }
        ExchangeEvent::PeerKeys {
            page: KeyPage {
                keys,
                more: response.more,
            },
            suspect: response.suspect,
        }
    }

    async fn local_keys(&self, leaves: Vec<u32>, after: Option<Position>) -> ExchangeEvent {
        self.node.background().wait_turn(self.task, 1, 0).await;
        match self.node.keys_of_leaves(self.partition, leaves, after).await {
            Ok(page) => ExchangeEvent::LocalKeys(page),
            Err(error) => {
                tracing::warn!(partition = self.partition.0, %error, "an exchange cannot list keys");
                ExchangeEvent::Failed
            }
        }
    }

    /// Gets records from the peer and merges them, durably.
    async fn pull(&self, positions: Vec<Position>) -> ExchangeEvent {
        let mut keys = Vec::with_capacity(positions.len());
        for position in &positions {
            let Ok(known) = self.known(position).await else {
                return ExchangeEvent::Failed;
            };
            let hash_of = |state: &KeyState| record_hash(position.as_bytes(), &state.encode());
            keys.push(peer::FetchKey {
                position: position.as_bytes().clone(),
                known_hash: known.as_ref().map(hash_of).unwrap_or_default(),
                known: known.map(|state| state.without_values().encode()),
            });
        }
        self.node
            .background()
            .wait_turn(self.task, positions.len() as u32, 0)
            .await;
        let request = peer::FetchRequest {
            header: Some(self.to.header()),
            keys,
        };
        let response = match self.node.peers().fetch(&self.to, request).await {
            Ok(response) => response,
            Err(error) => return self.failed("fetching records", &error),
        };
        let mut bytes = 0;
        // All at once, so that the writer syncs them together.
        let merges = positions
            .into_iter()
            .zip(response.fetched)
            .map(|(position, fetched)| {
                if let Some(Fetched::State(state)) = &fetched.result {
                    bytes += state.len() as u64;
                }
                self.take(position, fetched)
            });
        let results = join_all(merges).await;
        self.node.metrics().pulled("exchange", bytes);
        self.node.background().wait_turn(self.task, 0, bytes).await;
        if results.is_empty() {
            return ExchangeEvent::Failed;
        }
        ExchangeEvent::Pulled {
            results,
            suspect: response.suspect,
        }
    }

    async fn take(&self, position: Position, fetched: peer::Fetched) -> PullResult {
        match fetched.result {
            Some(Fetched::State(state)) => self.merge(position, state).await,
            Some(Fetched::NoNews(_)) => PullResult::NoNews,
            Some(Fetched::Gone(_)) => PullResult::Gone,
            None => PullResult::Failed,
        }
    }

    async fn merge(&self, position: Position, state: Bytes) -> PullResult {
        let (Ok(key), Ok(state)) = (
            DataKey::parse(position.as_bytes().clone()),
            KeyState::decode(state),
        ) else {
            tracing::warn!(peer = %self.to.member, "a peer sent a record that cannot be read");
            return PullResult::Failed;
        };
        let merged = self.node.merge_local(key, state.clone(), true).await;
        match (merged, self.read(&position).await) {
            (Ok(_), Ok(Some(mine))) => PullResult::Merged {
                peer_lacks: mine != state && has_news_for(&mine, &state),
            },
            (Ok(_), Ok(None)) => PullResult::Merged { peer_lacks: false },
            _ => PullResult::Failed,
        }
    }

    /// Sends records as they are now; the peer answers once they are on its disk.
    async fn push(&self, positions: Vec<Position>) -> ExchangeEvent {
        let mut results = Vec::new();
        let mut states = Vec::new();
        let mut bytes = 0;
        for position in positions {
            if bytes > TRANSFER_BYTES_MAX {
                break;
            }
            match self.read(&position).await {
                Ok(Some(state)) => {
                    let state = state.encode();
                    bytes += state.len();
                    let position = position.as_bytes().clone();
                    states.push(peer::StoredState { position, state });
                    results.push(PushResult::Merged);
                }
                Ok(None) => results.push(PushResult::Gone),
                Err(()) => results.push(PushResult::Failed),
            }
        }
        if states.is_empty() {
            return ExchangeEvent::Pushed(results);
        }
        let background = self.node.background();
        background
            .wait_turn(self.task, states.len() as u32, bytes as u64)
            .await;
        let request = peer::StoreRequest {
            header: Some(self.to.header()),
            states,
        };
        match self.node.peers().store(&self.to, request).await {
            Ok(_) => ExchangeEvent::Pushed(results),
            Err(error) => self.failed("storing records", &error),
        }
    }

    /// This node's record, also if it is marked to be removed: only news may clear the mark, not what was marked and comes
    /// from a peer that the round has not reached yet.
    async fn known(&self, position: &Position) -> Result<Option<KeyState>, ()> {
        let key = DataKey::parse(position.as_bytes().clone()).map_err(drop)?;
        self.node
            .load(&key)
            .await
            .map_err(|error| cannot_read(&key, &error))
    }

    /// This node's record as exchanges see it.
    async fn read(&self, position: &Position) -> Result<Option<KeyState>, ()> {
        let key = DataKey::parse(position.as_bytes().clone()).map_err(drop)?;
        let read = self.node.load_unmarked(&key).await;
        read.map_err(|error| cannot_read(&key, &error))
    }

    fn failed(&self, attempted: &str, error: &CallError) -> ExchangeEvent {
        tracing::debug!(
            peer = %self.to.member,
            partition = self.partition.0,
            error = error.status.message(),
            "an exchange failed {attempted}"
        );
        ExchangeEvent::Failed
    }
}

fn cannot_read(key: &DataKey, error: &StoreError) {
    tracing::warn!(key_hash = %key.hash(), %error, "an exchange cannot read a record");
}
