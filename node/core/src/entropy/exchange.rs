//! The exchange of one partition between two replicas, run by the one that begins it. Paper: §4.7.
//!
//! ```text
//!   begins it                              peer
//!   root, then children of nodes that differ ──▶   AskHashes   16 levels at most; equal roots end it: one message
//!   keys of leaves that differ               ──▶   AskKeys     both lists are read side by side, page by page
//!   keys that only the peer has, or differ   ◀──   Pull        merged here
//!   keys that only we have, or that the peer
//!   lacks something of after the pull        ──▶   Push        merged there
//! ```
//!
//! Both replicas go on taking writes. The tree here is a copy from the beginning; everything else is asked for when it
//! is needed. A key that changes meanwhile is compared as it is then, and one that is gone meanwhile, because it was
//! reaped, is no error and is not brought back.
//!
//! A suspect replica has lost writes and cannot be told from one that never had them, so it only ever receives
//! (see [`crate::recovery`]): as the one that begins, by [`Mode::PullOnly`]; as the peer, nothing is pulled from it.

use std::collections::VecDeque;

use super::lists::{Keys, Lists, Whose};
use super::tree::Tree;
use crate::listing::Position;
use crate::version::KeyState;

/// Hashes that one message asks for at most.
pub const HASHES_PER_MESSAGE: usize = 256;
/// Leaves that one message asks for keys of at most: each is a seek in the store.
pub const LEAVES_PER_MESSAGE: usize = 64;
/// Keys that one message lists at most.
pub const KEYS_PER_MESSAGE: usize = 256;
/// Records that one effect pulls or pushes at most. The caller sends fewer at a time where they are large.
pub const RECORDS_PER_TRANSFER: usize = 256;

/// What an exchange may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Both replicas have everything afterwards.
    Both,
    /// This store is suspect: what it holds may be older than what was reaped, and is not shown to others.
    PullOnly,
}

/// A record in a list of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySummary {
    /// Names the key.
    pub position: Position,
    /// Its [`record_hash`](super::record_hash).
    pub hash: u64,
}

/// Keys of some leaves. Records that are marked for reaping are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPage {
    /// Strictly ascending by position, at most [`KEYS_PER_MESSAGE`]; fewer where reading them would take long.
    pub keys: Vec<KeySummary>,
    /// More keys may follow behind the last one, so there is a last one.
    pub more: bool,
}

/// What became of a key that was to be pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullResult {
    /// The peer's state came and is merged, durably.
    Merged {
        /// The merged state has something that the peer's had not.
        peer_lacks: bool,
    },
    /// The peer was told what is here and has no more than that, so it sent nothing. See [`has_news_for`].
    NoNews,
    /// The peer has the key no longer: it was reaped.
    Gone,
    /// It could not be read, sent or merged.
    Failed,
}

/// What became of a key that was to be pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushResult {
    /// The peer has merged it, durably.
    Merged,
    /// It is here no longer, or marked for reaping: nothing was sent.
    Gone,
    /// It could not be read, sent or merged.
    Failed,
}

/// What happens to an exchange: the answer to the last effect, or a failure in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExchangeEvent {
    /// The first event.
    Start,
    /// The answer to `AskHashes`.
    PeerHashes {
        /// In the order of the nodes.
        hashes: Vec<u64>,
        /// The peer's store is suspect in this partition.
        suspect: bool,
    },
    /// The answer to `AskKeys`.
    PeerKeys {
        /// What the peer has now.
        page: KeyPage,
        /// As above.
        suspect: bool,
    },
    /// The answer to `LocalKeys`.
    LocalKeys(KeyPage),
    /// The answer to `Pull`.
    Pulled {
        /// For the first of the positions, at least one; the others are asked for again.
        results: Vec<PullResult>,
        /// As above: a peer that lost its disk meanwhile has every key no longer.
        suspect: bool,
    },
    /// The answer to `Push`: for the first of the positions, at least one; the others are asked for again.
    Pushed(Vec<PushResult>),
    /// The answer to whatever was asked of the peer: its tree is being rebuilt, or it keeps none.
    PeerNotReady,
    /// The effect could not be performed: the peer failed, or the local store.
    Failed,
}

/// What the caller must do for an exchange; it answers each with one event, and may take its time before it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExchangeEffect {
    /// Ask the peer for hashes of its tree: see [`Tree::hashes_of`].
    AskHashes {
        /// 0 for the root.
        level: u32,
        /// Ascending, at most [`HASHES_PER_MESSAGE`].
        nodes: Vec<u32>,
    },
    /// Ask the peer for a page of its keys.
    AskKeys {
        /// Ascending, at most [`LEAVES_PER_MESSAGE`].
        leaves: Vec<u32>,
        /// The page begins behind it; `None`: with the first key of the leaves.
        after: Option<Position>,
    },
    /// Read a page of the keys here, as they are now.
    LocalKeys {
        /// Ascending, at most [`LEAVES_PER_MESSAGE`].
        leaves: Vec<u32>,
        /// As above.
        after: Option<Position>,
    },
    /// Get these records from the peer and merge them durably. At most [`RECORDS_PER_TRANSFER`].
    Pull {
        /// Names the keys; all are records that the peer had.
        positions: Vec<Position>,
    },
    /// Send these records, as they are now, for the peer to merge. At most [`RECORDS_PER_TRANSFER`].
    Push {
        /// Names the keys.
        positions: Vec<Position>,
    },
    /// The exchange is over.
    Done(ExchangeReport),
}

/// What an exchange came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExchangeReport {
    /// Records that the peer sent.
    pub keys_pulled: u64,
    /// Records that were sent to the peer.
    pub keys_pushed: u64,
    /// Hashes of the peer's tree that were compared.
    pub hashes_compared: u64,
    /// Keys whose hashes were compared.
    pub keys_compared: u64,
    /// Everything that differed was dealt with as far as the mode and the peer's standing allow; nothing failed.
    pub finished: bool,
    /// Everything that the peer had when the exchange began is merged here; and `finished`. Never true with a peer that
    /// is suspect. What was pulled is durable; records that were equal may have come by a write that is not synced
    /// yet, so whoever relies on this syncs the store first.
    pub complete: bool,
}

/// One exchange with one peer over one partition. One effect at a time is under way.
#[derive(Debug)]
pub struct Exchange {
    tree: Tree,
    mode: Mode,
    peer_suspect: bool,
    /// A key was left undone; the others go on.
    key_failed: bool,
    stage: Stage,
    /// Nodes that differ and have not been looked below, by level. At the leaves' level: leaves to list.
    differing: Vec<VecDeque<u32>>,
    lists: Option<Lists>,
    pulls: VecDeque<Position>,
    pushes: VecDeque<Position>,
    report: ExchangeReport,
}

/// The effect that is under way.
#[derive(Debug)]
enum Stage {
    New,
    Hashes { level: u32, nodes: Vec<u32> },
    PeerKeys,
    LocalKeys,
    Pull(Vec<Position>),
    Push(Vec<Position>),
    Done,
}

/// Whether a merge of `mine` would change the holder of `theirs`, which may come
/// [without values](KeyState::without_values): what a replica asks itself before it sends a record of which the other
/// side already has some state. It is only asked about records whose hashes differ as they are now.
///
/// So a key that one side is behind in travels once, in the right direction.
pub fn has_news_for(mine: &KeyState, theirs: &KeyState) -> bool {
    let mine = mine.without_values();
    let mut merged = theirs.without_values();
    // Records that differ in nothing but values are damage; both sides settle on one by a merge of the whole.
    merged.merge(&mine) || mine == theirs.without_values()
}

impl Exchange {
    /// An exchange that compares a copy of this replica's tree, made no later than the exchange begins.
    pub fn new(tree: Tree, mode: Mode) -> Self {
        let levels = tree.shape().leaf_level() as usize + 1;
        Self {
            tree,
            mode,
            peer_suspect: false,
            key_failed: false,
            stage: Stage::New,
            differing: vec![VecDeque::new(); levels],
            lists: None,
            pulls: VecDeque::new(),
            pushes: VecDeque::new(),
            report: ExchangeReport::default(),
        }
    }

    /// Takes what happened and says what is to be done next. After `Done` it says the same again.
    ///
    /// An answer to something else than what was asked, or one that breaks the rules, ends the exchange unfinished.
    pub fn step(&mut self, event: ExchangeEvent) -> ExchangeEffect {
        let stage = std::mem::replace(&mut self.stage, Stage::Done);
        let understood = match (stage, event) {
            (Stage::New, ExchangeEvent::Start) => return self.ask_hashes(0, vec![0]),
            (Stage::Hashes { level, nodes }, ExchangeEvent::PeerHashes { hashes, suspect }) => {
                self.peer_suspect |= suspect;
                self.compare_hashes(level, &nodes, &hashes)
            }
            (Stage::PeerKeys, ExchangeEvent::PeerKeys { page, suspect }) => {
                self.peer_suspect |= suspect;
                self.take_keys(Whose::Peer, page)
            }
            (Stage::LocalKeys, ExchangeEvent::LocalKeys(page)) => self.take_keys(Whose::Local, page),
            (Stage::Pull(positions), ExchangeEvent::Pulled { results, suspect }) => {
                self.peer_suspect |= suspect;
                self.pulled(positions, &results)
            }
            (Stage::Push(positions), ExchangeEvent::Pushed(results)) => self.pushed(positions, &results),
            _ => false,
        };
        if understood {
            self.next()
        } else {
            ExchangeEffect::Done(self.report)
        }
    }

    /// What it came to so far; the whole after `Done`.
    pub fn report(&self) -> ExchangeReport {
        self.report
    }

    fn may_push(&self) -> bool {
        self.mode == Mode::Both
    }

    fn may_pull(&self) -> bool {
        !self.peer_suspect
    }

    /// What is known to be needed comes before looking for more, so that little is kept at any time.
    fn next(&mut self) -> ExchangeEffect {
        if !self.may_push() && !self.may_pull() {
            return self.done();
        }
        if !self.may_pull() {
            // It turned out suspect meanwhile. What it shares with us is still good for it.
            let pulls = std::mem::take(&mut self.pulls);
            self.pushes.extend(pulls);
        }
        let listed = self.lists.is_none() && self.differing.iter().all(VecDeque::is_empty);
        if self.pulls.len() >= RECORDS_PER_TRANSFER || (listed && !self.pulls.is_empty()) {
            let positions = take(&mut self.pulls, RECORDS_PER_TRANSFER);
            self.stage = Stage::Pull(positions.clone());
            return ExchangeEffect::Pull { positions };
        }
        if self.pushes.len() >= RECORDS_PER_TRANSFER || (listed && !self.pushes.is_empty()) {
            let positions = take(&mut self.pushes, RECORDS_PER_TRANSFER);
            self.stage = Stage::Push(positions.clone());
            return ExchangeEffect::Push { positions };
        }
        self.look_further()
    }

    /// The deepest nodes first: the list of differing nodes stays short.
    fn look_further(&mut self) -> ExchangeEffect {
        if let Some(lists) = self.lists.take() {
            return self.ask_keys(lists);
        }
        let shape = self.tree.shape();
        let Some(level) = self.differing.iter().rposition(|nodes| !nodes.is_empty()) else {
            return self.done();
        };
        let differing = &mut self.differing[level];
        if level as u32 == shape.leaf_level() {
            let leaves = take(differing, LEAVES_PER_MESSAGE);
            return self.ask_keys(Lists::new(shape, leaves));
        }
        let mut children = Vec::with_capacity(HASHES_PER_MESSAGE);
        while let Some(node) = differing.front() {
            let of_node = shape.children(level as u32, *node);
            if children.len() + of_node.size_hint().0 > HASHES_PER_MESSAGE {
                break;
            }
            children.extend(of_node);
            differing.pop_front();
        }
        self.ask_hashes(level as u32 + 1, children)
    }

    fn ask_hashes(&mut self, level: u32, nodes: Vec<u32>) -> ExchangeEffect {
        self.stage = Stage::Hashes {
            level,
            nodes: nodes.clone(),
        };
        ExchangeEffect::AskHashes { level, nodes }
    }

    fn compare_hashes(&mut self, level: u32, nodes: &[u32], theirs: &[u64]) -> bool {
        let Some(ours) = self.tree.hashes_of(level, nodes) else {
            return false;
        };
        if ours.len() != theirs.len() {
            return false;
        }
        self.report.hashes_compared += theirs.len() as u64;
        let differ = nodes.iter().zip(ours.iter().zip(theirs));
        let differ = differ.filter(|(_, (ours, theirs))| ours != theirs);
        self.differing[level as usize].extend(differ.map(|(node, _)| *node));
        true
    }

    fn ask_keys(&mut self, lists: Lists) -> ExchangeEffect {
        let leaves = lists.leaves().to_vec();
        let Some((whose, after)) = lists.next() else {
            return self.look_further();
        };
        self.lists = Some(lists);
        match whose {
            Whose::Peer => {
                self.stage = Stage::PeerKeys;
                ExchangeEffect::AskKeys { leaves, after }
            }
            Whose::Local => {
                self.stage = Stage::LocalKeys;
                ExchangeEffect::LocalKeys { leaves, after }
            }
        }
    }

    fn take_keys(&mut self, whose: Whose, page: KeyPage) -> bool {
        let Some(mut lists) = self.lists.take() else {
            return false;
        };
        if !lists.take(whose, page) {
            return false;
        }
        let (peer, local) = lists.decided();
        self.lists = lists.next().is_some().then_some(lists);
        self.compare_keys(peer, local);
        true
    }

    fn compare_keys(&mut self, peer: Keys, mut local: Keys) {
        for (position, theirs) in peer {
            self.report.keys_compared += 1;
            match local.remove(&position) {
                Some(ours) if ours == theirs => {}
                Some(_) if !self.may_pull() => self.pushes.push_back(position),
                None if !self.may_pull() => {}
                Some(_) | None => self.pulls.push_back(position),
            }
        }
        self.report.keys_compared += local.len() as u64;
        if self.may_push() {
            self.pushes.extend(local.into_keys());
        }
    }

    fn pulled(&mut self, mut positions: Vec<Position>, results: &[PullResult]) -> bool {
        if results.is_empty() || results.len() > positions.len() {
            return false;
        }
        for position in positions.drain(results.len()..).rev() {
            self.pulls.push_front(position);
        }
        for (position, result) in positions.into_iter().zip(results) {
            let push = match result {
                PullResult::Merged { peer_lacks } => {
                    self.report.keys_pulled += 1;
                    *peer_lacks
                }
                PullResult::NoNews => true,
                PullResult::Gone => false,
                PullResult::Failed => {
                    self.key_failed = true;
                    false
                }
            };
            if push && self.may_push() {
                self.pushes.push_back(position);
            }
        }
        true
    }

    fn pushed(&mut self, mut positions: Vec<Position>, results: &[PushResult]) -> bool {
        if results.is_empty() || results.len() > positions.len() {
            return false;
        }
        for position in positions.drain(results.len()..).rev() {
            self.pushes.push_front(position);
        }
        for result in results {
            match result {
                PushResult::Merged => self.report.keys_pushed += 1,
                PushResult::Gone => {}
                PushResult::Failed => self.key_failed = true,
            }
        }
        true
    }

    fn done(&mut self) -> ExchangeEffect {
        self.stage = Stage::Done;
        self.report.finished = !self.key_failed && (self.may_push() || self.may_pull());
        self.report.complete = self.report.finished && !self.peer_suspect;
        ExchangeEffect::Done(self.report)
    }
}

fn take<T>(queue: &mut VecDeque<T>, count: usize) -> Vec<T> {
    queue.drain(..queue.len().min(count)).collect()
}
