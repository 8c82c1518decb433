//! Random histories of three replicas and three clients, with losses of disks, records and messages, against an
//! oracle that keeps true causality: every write with the explicit set of writes that its client had seen.
//! Rows D45, D46, D50.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use dynamo_core::replica::{self, EpochEntry, Minter, Update};
use dynamo_core::types::Incarnation;
use dynamo_core::version::{Content, Context, Dot, KeyState, Seen, Stamp};
use proptest::prelude::*;

use super::strategies::{all_dots, config};

const NODES: usize = 3;
const CLIENTS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    /// A client puts or deletes at a node; the delta reaches some of the others (a bit each).
    Write {
        client: usize,
        node: usize,
        delete: bool,
        reaches: u8,
    },
    /// As it forgot its context.
    BlindPut {
        client: usize,
        node: usize,
        reaches: u8,
    },
    /// The client repeats its last write, perhaps elsewhere.
    Retry {
        client: usize,
        node: usize,
        reaches: u8,
    },
    /// A client reads and merges some nodes.
    Get {
        client: usize,
        nodes: u8,
    },
    /// One node sends another its whole record.
    Sync {
        from: usize,
        to: usize,
    },
    /// The node's disk is new: record, entry and incarnation.
    LoseDisk {
        node: usize,
    },
    /// Only the record or only the entry is gone.
    LoseRecord {
        node: usize,
    },
    LoseEntry {
        node: usize,
    },
}

/// One node's share in the record, beside what the oracle says about it.
struct Node {
    minter: Minter,
    record: Option<KeyState>,
    entry: Option<EpochEntry>,
    /// All writes whose news has reached the record.
    log: BTreeSet<Dot>,
}

#[derive(Default)]
struct Client {
    context: Seen,
    /// Its last write: where it came from, in case it is repeated.
    last: Option<(Update, Dot)>,
}

/// All writes that ever were: what the client had seen, and the operation's number.
#[derive(Default)]
struct Oracle {
    writes: BTreeMap<Dot, (BTreeSet<Dot>, u8)>,
}

struct History {
    nodes: Vec<Node>,
    clients: Vec<Client>,
    oracle: Oracle,
    lives: u64,
    operations: u8,
}

impl Oracle {
    fn seen(&self, log: &BTreeSet<Dot>) -> BTreeSet<Dot> {
        log.iter()
            .flat_map(|dot| self.writes[dot].0.iter().copied().chain([*dot]))
            .collect()
    }

    fn live(&self, log: &BTreeSet<Dot>) -> BTreeSet<Dot> {
        let superseded = |dot: &Dot| log.iter().any(|other| self.writes[other].0.contains(dot));
        log.iter().filter(|dot| !superseded(dot)).copied().collect()
    }

    fn check(&self, log: &BTreeSet<Dot>, state: &KeyState) {
        assert_eq!(
            BTreeSet::from_iter(all_dots(state.seen())),
            self.seen(log),
            "seen"
        );
        assert_eq!(
            state.siblings().keys().copied().collect::<BTreeSet<_>>(),
            self.live(log),
            "siblings"
        );
        for (dot, sibling) in state.siblings() {
            assert_eq!(
                sibling.stamp.0,
                u64::from(self.writes[dot].1),
                "the value of {dot}"
            );
        }
    }
}

impl Node {
    fn new(id: u64) -> Self {
        let minter = Minter::new(Incarnation { generation: 1, id }, 0);
        Self {
            minter,
            record: None,
            entry: None,
            log: BTreeSet::new(),
        }
    }

    fn take_in(&mut self, incoming: &KeyState, news: &BTreeSet<Dot>) {
        self.record = Some(replica::merge(self.record.take(), incoming).state);
        self.log.extend(news);
    }
}

impl History {
    fn new() -> Self {
        Self {
            nodes: (0..NODES as u64).map(Node::new).collect(),
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            oracle: Oracle::default(),
            lives: NODES as u64,
            operations: 0,
        }
    }

    fn update(&mut self, context: Seen, delete: bool) -> Update {
        self.operations += 1;
        let value = Content::Value(Bytes::from(vec![self.operations]));
        let content = if delete { Content::Tombstone } else { value };
        let op_id = Some([self.operations; 16]);
        Update {
            content,
            context,
            op_id,
            stamp: Stamp(u64::from(self.operations)),
            expires_at_ms: None,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Write {
                client,
                node,
                delete,
                reaches,
            } => {
                let update = self.update(self.clients[client].context.clone(), delete);
                self.write(client, node, update, reaches);
            }
            Step::BlindPut {
                client,
                node,
                reaches,
            } => {
                let update = self.update(Seen::new(), false);
                self.write(client, node, update, reaches);
            }
            Step::Retry {
                client,
                node,
                reaches,
            } => {
                if let Some((update, _)) = self.clients[client].last.clone() {
                    self.write(client, node, update, reaches);
                }
            }
            Step::Get { client, nodes } => self.get(client, nodes),
            Step::Sync { from, to } => {
                let source = &self.nodes[from];
                if let (Some(record), log) = (source.record.clone(), source.log.clone()) {
                    self.nodes[to].take_in(&record, &log);
                }
            }
            Step::LoseDisk { node } => {
                self.nodes[node] = Node::new(self.lives);
                self.lives += 1;
            }
            Step::LoseRecord { node } => {
                self.nodes[node].record = None;
                self.nodes[node].log.clear();
            }
            Step::LoseEntry { node } => self.nodes[node].entry = None,
        }
    }

    fn write(&mut self, client: usize, node: usize, update: Update, reaches: u8) {
        let at = &mut self.nodes[node];
        let before = at.record.clone().unwrap_or_default();
        let done = replica::coordinate(
            at.record.as_ref(),
            at.entry.as_ref(),
            &mut at.minter,
            update.clone(),
            replica::SiblingCaps::NONE,
        )
        .unwrap();
        let operation = update.stamp.0 as u8;
        if done.replayed {
            assert_eq!(
                self.oracle.writes[&done.dot].1, operation,
                "a replay is of the same operation"
            );
            assert_eq!((&done.state, done.entry), (&before, None));
        } else {
            let context = BTreeSet::from_iter(all_dots(&update.context));
            let first = self.oracle.writes.insert(done.dot, (context, operation));
            assert_eq!(first, None, "{} was given twice", done.dot);
            assert!(!before.seen().contains(&done.dot) && !update.context.contains(&done.dot));
            at.entry = done.entry;
            at.log.insert(done.dot);
        }
        for (dot, _) in before
            .siblings()
            .iter()
            .filter(|(dot, _)| !update.context.contains(dot))
        {
            assert!(
                done.state.siblings().contains_key(dot),
                "{dot} was not seen and is gone"
            );
        }
        at.record = Some(done.state);
        for (index, other) in self.nodes.iter_mut().enumerate() {
            if index != node && reaches & (1 << index) != 0 {
                other.take_in(&done.delta, &BTreeSet::from([done.dot]));
            }
        }
        let client = &mut self.clients[client];
        client.context = Context::of_reply(&update.context, done.dot).seen;
        client.last = Some((update, done.dot));
    }

    fn get(&mut self, client: usize, nodes: u8) {
        let mut state = KeyState::new();
        let mut log = BTreeSet::new();
        for (index, node) in self.nodes.iter().enumerate() {
            if let Some(record) = node.record.as_ref().filter(|_| nodes & (1 << index) != 0) {
                state.merge(record);
                log.extend(&node.log);
            }
        }
        self.oracle.check(&log, &state);
        // Each live operation is shown once, however many dots its retries have.
        let shown: Vec<u8> = state
            .live(0)
            .iter()
            .map(|(dot, _)| self.oracle.writes[dot].1)
            .collect();
        let operations: BTreeSet<u8> = shown.iter().copied().collect();
        assert_eq!(shown.len(), operations.len(), "a retry is shown twice: {shown:?}");
        self.clients[client].context = state.context_seen();
    }

    fn check(&self) {
        for node in &self.nodes {
            self.oracle
                .check(&node.log, node.record.as_ref().unwrap_or(&KeyState::new()));
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let (client, node, mask) = (0..CLIENTS, 0..NODES, 0..1u8 << NODES);
    prop_oneof![
        6 => (client.clone(), node.clone(), prop::bool::weighted(0.2), mask.clone())
            .prop_map(|(client, node, delete, reaches)| Step::Write { client, node, delete, reaches }),
        2 => (client.clone(), node.clone(), mask.clone())
            .prop_map(|(client, node, reaches)| Step::BlindPut { client, node, reaches }),
        2 => (client.clone(), node.clone(), mask.clone())
            .prop_map(|(client, node, reaches)| Step::Retry { client, node, reaches }),
        4 => (client, mask).prop_map(|(client, nodes)| Step::Get { client, nodes }),
        2 => (node.clone(), node.clone()).prop_map(|(from, to)| Step::Sync { from, to }),
        1 => node.clone().prop_map(|node| Step::LoseDisk { node }),
        1 => node.clone().prop_map(|node| Step::LoseRecord { node }),
        1 => node.prop_map(|node| Step::LoseEntry { node }),
    ]
}

proptest! {
    #![proptest_config(config(10_000))]

    #[test]
    fn records_are_what_true_causality_says(steps in prop::collection::vec(step(), 1..40)) {
        let mut history = History::new();
        for step in &steps {
            history.step(step);
            history.check();
        }
        // Whatever was delivered in whatever order: after all have told all, copies are equal byte for byte.
        for (from, to) in [(0, 1), (1, 2), (2, 0), (2, 1)] {
            history.step(&Step::Sync { from, to });
        }
        history.check();
        let records: BTreeSet<Option<Bytes>> =
            history.nodes.iter().map(|node| node.record.as_ref().map(KeyState::encode)).collect();
        prop_assert_eq!(records.len(), 1);
    }
}
