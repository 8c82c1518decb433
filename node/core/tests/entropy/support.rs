//! Replicas of one partition in memory, and two of them in an exchange whose messages are counted and checked.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use dynamo_core::entropy::exchange::{
    HASHES_PER_MESSAGE, KEYS_PER_MESSAGE, LEAVES_PER_MESSAGE, RECORDS_PER_TRANSFER,
};
use dynamo_core::entropy::{
    Exchange, ExchangeEffect, ExchangeEvent, ExchangeReport, KeyPage, KeySummary, Mode, PullResult,
    PushResult, Tree, TreeShape, Trees, has_news_for, record_hash,
};
use dynamo_core::listing::Position;
use dynamo_core::replica::{self, EpochEntry, Minter, Update};
use dynamo_core::types::{Incarnation, MemberId, PartitionId};
use dynamo_core::version::{Content, KeyState, Seen, Stamp};

/// Q: 4096 leaves for each partition.
pub(crate) const Q: u32 = 8;
pub(crate) const PARTITION: PartitionId = PartitionId(5);
/// What a message costs beyond what it carries.
const MESSAGE_BYTES: usize = 64;

/// A random sequence that a seed replays.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_F491_4F6C_DD1D) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, count: usize) -> usize {
        ((self.next() >> 16) % count as u64) as usize
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

pub(crate) fn member(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

/// The first keys of the partition.
pub(crate) fn keys(count: usize) -> Vec<Position> {
    let shape = TreeShape::for_partitions(Q);
    let all = (0u64..).map(|number| Position::new("bucket", &number.to_be_bytes()).unwrap());
    all.filter(|key| shape.partition_of(key.hash()) == PARTITION)
        .take(count)
        .collect()
}

/// One replica of the partition, its tree kept as a node's writer keeps it.
pub(crate) struct Replica {
    pub(crate) records: BTreeMap<Position, KeyState>,
    pub(crate) trees: Trees,
    pub(crate) suspect: bool,
    /// Prepared for reaping: out of the tree and of every list.
    pub(crate) marked: BTreeSet<Position>,
    entries: BTreeMap<Position, EpochEntry>,
    minter: Minter,
}

impl Replica {
    pub(crate) fn new(id: u64) -> Self {
        let mut trees = Trees::new(Q);
        trees.add_empty(PARTITION);
        let incarnation = Incarnation { generation: 1, id };
        Self {
            records: BTreeMap::new(),
            trees,
            suspect: false,
            marked: BTreeSet::new(),
            entries: BTreeMap::new(),
            minter: Minter::new(incarnation, 0),
        }
    }

    pub(crate) fn write(
        &mut self,
        key: &Position,
        content: Content,
        expires_at_ms: Option<u64>,
        blind: bool,
    ) {
        let stored = self.records.get(key);
        let context = stored
            .filter(|_| !blind)
            .map_or_else(Seen::new, KeyState::context_seen);
        let update = Update {
            content,
            context,
            op_id: None,
            stamp: Stamp(0),
            expires_at_ms,
        };
        let entry = self.entries.get(key);
        let done = replica::coordinate(
            stored,
            entry,
            &mut self.minter,
            update,
            replica::SiblingCaps::NONE,
        )
        .unwrap();
        self.entries.insert(key.clone(), done.entry.unwrap());
        self.set(key, Some(done.state));
    }

    /// Supersedes what is there.
    pub(crate) fn put(&mut self, key: &Position, value: &str) {
        self.write(key, Content::Value(Bytes::from(value.to_owned())), None, false);
    }

    /// True if it changed anything.
    pub(crate) fn merge(&mut self, key: &Position, state: &KeyState) -> bool {
        let merged = replica::merge(self.records.get(key).cloned(), state);
        if merged.changed {
            self.set(key, Some(merged.state));
        }
        merged.changed
    }

    pub(crate) fn set(&mut self, key: &Position, state: Option<KeyState>) {
        let shown =
            |marked: &BTreeSet<Position>, state: &KeyState| (!marked.contains(key)).then(|| state.encode());
        let old = self.records.get(key).and_then(|old| shown(&self.marked, old));
        self.marked.remove(key);
        let new = state.as_ref().map(KeyState::encode);
        self.trees.changed(key, old.as_deref(), new.as_deref());
        match state {
            Some(state) => self.records.insert(key.clone(), state),
            None => self.records.remove(key),
        };
    }

    pub(crate) fn mark(&mut self, key: &Position) {
        if let Some(state) = self.records.get(key)
            && self.marked.insert(key.clone())
        {
            self.trees.changed(key, Some(&state.encode()), None);
        }
    }

    /// Records that others may see.
    pub(crate) fn shown(&self) -> impl Iterator<Item = (&Position, &KeyState)> {
        self.records.iter().filter(|(key, _)| !self.marked.contains(*key))
    }

    /// The next page of a fold, as the writer reads it.
    pub(crate) fn fold_page(&mut self, count: usize) {
        let Some((partition, after)) = self.trees.next_rebuild() else {
            return;
        };
        let after = after.cloned();
        let behind = self
            .records
            .iter()
            .filter(|(key, _)| after.as_ref().is_none_or(|after| *key > after));
        let page: Vec<&Position> = behind.map(|(key, _)| key).take(count).collect();
        let looked = (page.len() == count).then(|| page[count - 1].clone());
        let shown = page.into_iter().filter(|key| !self.marked.contains(*key));
        let hashes: Vec<(Position, u64)> = shown.map(|key| (key.clone(), self.hash(key))).collect();
        self.trees.fold(partition, hashes, looked);
    }

    /// The tree made from the records alone.
    pub(crate) fn fold(&self) -> Tree {
        let mut tree = Tree::new(TreeShape::for_partitions(Q));
        for (key, _) in self.shown() {
            tree.update(key.hash(), None, Some(self.hash(key)));
        }
        tree
    }

    pub(crate) fn tree(&self) -> &Tree {
        self.trees.ready(PARTITION).expect("the tree is ready")
    }

    fn hash(&self, key: &Position) -> u64 {
        record_hash(key.as_bytes(), &self.records[key].encode())
    }

    fn page(&self, leaves: &[u32], after: Option<&Position>) -> KeyPage {
        let shape = self.trees.shape();
        let in_leaves = |key: &Position| leaves.contains(&shape.leaf_of(key.hash()));
        let first = shape.leaf_range(PARTITION, leaves[0]);
        let last = shape.leaf_range(PARTITION, leaves[leaves.len() - 1]);
        let behind = self.shown().map(|(key, _)| key);
        let mut found = behind
            .skip_while(|key| key.hash().0 < *first.start())
            .take_while(|key| key.hash().0 <= *last.end())
            .filter(|key| in_leaves(key) && after.is_none_or(|after| *key > after));
        let keys: Vec<KeySummary> = found
            .by_ref()
            .take(KEYS_PER_MESSAGE)
            .map(|key| KeySummary {
                position: key.clone(),
                hash: self.hash(key),
            })
            .collect();
        KeyPage {
            keys,
            more: found.next().is_some(),
        }
    }
}

/// An exchange and what its messages took.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Traffic {
    pub(crate) report: ExchangeReport,
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

/// Performs the effects of `a`'s exchange with `b`.
pub(crate) struct Session {
    machine: Exchange,
    pub(crate) traffic: Traffic,
}

impl Session {
    pub(crate) fn new(a: &Replica, mode: Mode) -> Self {
        Self {
            machine: Exchange::new(a.tree().clone(), mode),
            traffic: Traffic::default(),
        }
    }

    pub(crate) fn step(&mut self, event: ExchangeEvent) -> ExchangeEffect {
        let effect = self.machine.step(event);
        if let ExchangeEffect::Done(report) = &effect {
            self.traffic.report = *report;
            assert_eq!(*report, self.machine.report());
            let again = self.machine.step(ExchangeEvent::Failed);
            assert_eq!(again, effect, "an exchange ends once");
        }
        effect
    }

    /// The answer to an effect; not to `Done`.
    pub(crate) fn perform(
        &mut self,
        effect: ExchangeEffect,
        a: &mut Replica,
        b: &mut Replica,
    ) -> ExchangeEvent {
        if !matches!(effect, ExchangeEffect::LocalKeys { .. }) {
            self.traffic.messages += 1;
            self.traffic.bytes += 2 * MESSAGE_BYTES;
        }
        match effect {
            ExchangeEffect::AskHashes { level, nodes } => {
                assert!((1..=HASHES_PER_MESSAGE).contains(&nodes.len()));
                self.traffic.bytes += nodes.len() * 12;
                let Some(tree) = b.trees.ready(PARTITION) else {
                    return ExchangeEvent::PeerNotReady;
                };
                ExchangeEvent::PeerHashes {
                    hashes: tree.hashes_of(level, &nodes).unwrap(),
                    suspect: b.suspect,
                }
            }
            ExchangeEffect::AskKeys { leaves, after } => {
                assert!((1..=LEAVES_PER_MESSAGE).contains(&leaves.len()));
                let page = b.page(&leaves, after.as_ref());
                self.traffic.bytes += leaves.len() * 4;
                self.traffic.bytes += page
                    .keys
                    .iter()
                    .map(|key| key.position.as_bytes().len() + 8)
                    .sum::<usize>();
                ExchangeEvent::PeerKeys {
                    page,
                    suspect: b.suspect,
                }
            }
            ExchangeEffect::LocalKeys { leaves, after } => {
                assert!((1..=LEAVES_PER_MESSAGE).contains(&leaves.len()));
                ExchangeEvent::LocalKeys(a.page(&leaves, after.as_ref()))
            }
            ExchangeEffect::Pull { positions } => {
                assert!((1..=RECORDS_PER_TRANSFER).contains(&positions.len()));
                assert!(!b.suspect, "nothing is pulled from a suspect peer");
                ExchangeEvent::Pulled {
                    results: positions.iter().map(|key| self.pull(key, a, b)).collect(),
                    suspect: b.suspect,
                }
            }
            ExchangeEffect::Push { positions } => {
                assert!((1..=RECORDS_PER_TRANSFER).contains(&positions.len()));
                ExchangeEvent::Pushed(positions.iter().map(|key| self.push(key, a, b)).collect())
            }
            ExchangeEffect::Done(_) => panic!("nothing is left to do"),
        }
    }

    fn pull(&mut self, key: &Position, a: &mut Replica, b: &Replica) -> PullResult {
        let Some(theirs) = b.records.get(key).filter(|_| !b.marked.contains(key)) else {
            return PullResult::Gone;
        };
        let no_news = |ours: &KeyState| ours == theirs || !has_news_for(theirs, ours);
        if a.records.get(key).is_some_and(no_news) {
            return PullResult::NoNews;
        }
        self.traffic.bytes += key.as_bytes().len() + theirs.encode().len();
        a.merge(key, theirs);
        PullResult::Merged {
            peer_lacks: a.records[key] != *theirs,
        }
    }

    fn push(&mut self, key: &Position, a: &Replica, b: &mut Replica) -> PushResult {
        let Some(ours) = a.records.get(key).filter(|_| !a.marked.contains(key)) else {
            return PushResult::Gone;
        };
        self.traffic.bytes += key.as_bytes().len() + ours.encode().len();
        b.merge(key, ours);
        PushResult::Merged
    }
}

/// A whole exchange; `between` happens before each answer is given.
pub(crate) fn exchange_while(
    a: &mut Replica,
    b: &mut Replica,
    mode: Mode,
    mut between: impl FnMut(&mut Replica, &mut Replica),
) -> Traffic {
    let mut session = Session::new(a, mode);
    let mut effect = session.step(ExchangeEvent::Start);
    while !matches!(effect, ExchangeEffect::Done(_)) {
        between(a, b);
        let event = session.perform(effect, a, b);
        effect = session.step(event);
        assert!(session.traffic.messages < 100_000, "the exchange does not end");
    }
    session.traffic
}

pub(crate) fn exchange(a: &mut Replica, b: &mut Replica, mode: Mode) -> Traffic {
    exchange_while(a, b, mode, |_, _| {})
}

/// Two replicas with the same `count` records.
pub(crate) fn equal_pair(keys: &[Position]) -> (Replica, Replica) {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    for key in keys {
        a.put(key, "first");
        let state = a.records[key].clone();
        b.merge(key, &state);
    }
    (a, b)
}
