//! Test C: random operations on three replicas with splits, retries and losses, against an oracle that knows for each
//! copy which writes it has heard of and what they come to.

use std::collections::{BTreeMap, BTreeSet};

use dynamo_core::crdt::{
    self, DataType, FieldOperation, LeafOperation, LeafType, OP_IDS_MAX, Operation, TypedUpdate, View,
};
use dynamo_core::version::{Dot, KeyState, Seen, Stamp};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

use super::replicas::{
    COUNTER, Replica, bytes, cluster, field, heal, in_field, increment, minter, op_id, update,
};

const NODES: usize = 3;
const CLIENTS: usize = 2;
const ELEMENTS: [&str; 3] = ["onion", "potato", "leek"];
const COUNTERS: [&str; 2] = ["n", "m"];

#[derive(Debug, Clone, Copy)]
enum Step {
    Write {
        client: usize,
        node: usize,
        what: What,
        reaches: u8,
    },
    /// The client repeats an earlier operation, perhaps elsewhere.
    Retry {
        which: usize,
        node: usize,
        reaches: u8,
    },
    Get {
        client: usize,
        nodes: u8,
    },
    Sync {
        from: usize,
        to: usize,
    },
    /// Nothing passes between the nodes in the mask and the others.
    Split {
        side: u8,
    },
    /// An unclean stop: a new incarnation.
    Crash {
        node: usize,
    },
    /// After another node has heard of all that it holds.
    LoseDisk {
        node: usize,
    },
    LoseRecord {
        node: usize,
    },
    LoseEntry {
        node: usize,
    },
    /// Keeps a copy of the record, or puts the last copy in its place.
    Copy {
        node: usize,
    },
    PutBack {
        node: usize,
    },
}

#[derive(Debug, Clone, Copy)]
enum What {
    Increment { counter: usize, amount: i64 },
    Add { element: usize },
    Remove { element: usize },
    RemoveAll,
}

/// A write as the oracle knows it.
#[derive(Debug, Clone)]
struct Event {
    operation: usize,
    what: What,
    /// The writes that its client had seen.
    known: BTreeSet<Dot>,
}

/// What a client asked for, to be repeated.
#[derive(Debug, Clone)]
struct Asked {
    what: What,
    context: Seen,
    known: BTreeSet<Dot>,
}

#[derive(Debug, Default)]
struct Client {
    context: Seen,
    known: BTreeSet<Dot>,
}

#[derive(Debug)]
struct World {
    nodes: [Replica; NODES],
    /// What each copy has heard of.
    logs: [BTreeSet<Dot>; NODES],
    clients: [Client; CLIENTS],
    events: BTreeMap<Dot, Event>,
    asked: Vec<Asked>,
    /// Per node, an older record and what it has heard of.
    copies: [Option<(KeyState, BTreeSet<Dot>)>; NODES],
    side: u8,
    lives: u64,
}

impl World {
    fn new() -> Self {
        Self {
            nodes: cluster(DataType::Map),
            logs: Default::default(),
            clients: Default::default(),
            events: BTreeMap::new(),
            asked: Vec::new(),
            copies: Default::default(),
            side: 0,
            lives: 100,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write {
                client,
                node,
                what,
                reaches,
            } => {
                let Client { context, known } = &self.clients[client];
                let (context, known) = (context.clone(), known.clone());
                self.asked.push(Asked { what, context, known });
                let (dot, context) = self.write(self.asked.len() - 1, node, reaches);
                let client = &mut self.clients[client];
                if context.contains(&dot) {
                    client.known.insert(dot);
                }
                client.context = context;
            }
            Step::Retry { which, node, reaches } => {
                let asked = which.checked_rem(self.asked.len());
                if let Some(operation) = asked.filter(|operation| has_op_id(*operation)) {
                    self.write(operation, node, reaches);
                }
            }
            Step::Get { client, nodes } => self.get(client, nodes),
            Step::Sync { from, to } => {
                if self.connected(from, to) {
                    self.push(from, to);
                }
            }
            Step::Split { side } => self.side = side,
            Step::Crash { node } => self.new_life(node),
            Step::LoseDisk { node } => {
                self.lose_record(node);
                self.nodes[node].entry = None;
                self.new_life(node);
            }
            Step::LoseRecord { node } => self.lose_record(node),
            Step::LoseEntry { node } => self.nodes[node].entry = None,
            Step::Copy { node } => {
                let copy = (self.nodes[node].state(), self.logs[node].clone());
                self.copies[node] = Some(copy);
            }
            Step::PutBack { node } => {
                if let Some((record, log)) = self.copies[node].take() {
                    self.lose_record(node);
                    self.nodes[node].record = Some(record);
                    self.logs[node] = log;
                }
            }
        }
        (0..NODES).for_each(|node| self.check(node));
    }

    /// Performs an operation at a node; the delta reaches some of the others.
    fn write(&mut self, operation: usize, node: usize, reaches: u8) -> (Dot, Seen) {
        let asked = self.asked[operation].clone();
        let request = TypedUpdate {
            context: Some(asked.context.clone()),
            op_id: has_op_id(operation).then(|| op_id(operation as u64)),
            stamp: Stamp(operation as u64),
            ..update(operation_of(asked.what))
        };
        let done = self.nodes[node].update(request).unwrap();
        if !done.replayed {
            let Asked { what, known, .. } = asked.clone();
            let event = Event {
                operation,
                what,
                known,
            };
            assert!(
                self.events.insert(done.dot, event).is_none(),
                "{} was given twice",
                done.dot
            );
            self.logs[node].insert(done.dot);
        }
        for to in (0..NODES).filter(|to| reaches & (1 << to) != 0) {
            if self.connected(node, to) {
                self.nodes[to].merge(&done.delta);
                let log = self.logs[node].clone();
                self.logs[to].extend(log);
            }
        }
        (done.dot, crdt::reply_context(&asked.context, &done))
    }

    fn get(&mut self, client: usize, nodes: u8) {
        let mut state = KeyState::new();
        let mut known = BTreeSet::new();
        for (node, replica) in self
            .nodes
            .iter()
            .enumerate()
            .filter(|(node, _)| nodes & (1 << node) != 0)
        {
            state.merge(&replica.state());
            known.extend(self.logs[node].clone());
        }
        let read = crdt::read(DataType::Map, &state, 0).unwrap();
        assert_eq!(read.as_ref().map(|read| read.view.clone()), self.expected(&known));
        let context = read.map_or_else(Seen::new, |read| read.context);
        self.clients[client] = Client { context, known };
    }

    fn connected(&self, from: usize, to: usize) -> bool {
        (self.side >> from) & 1 == (self.side >> to) & 1
    }

    fn push(&mut self, from: usize, to: usize) {
        let (state, log) = (self.nodes[from].state(), self.logs[from].clone());
        self.nodes[to].merge(&state);
        self.logs[to].extend(log);
    }

    fn lose_record(&mut self, node: usize) {
        self.push(node, (node + 1) % NODES);
        self.nodes[node].record = None;
        self.logs[node].clear();
    }

    fn new_life(&mut self, node: usize) {
        self.lives += 1;
        self.nodes[node].minter = minter(self.lives);
    }

    fn check(&self, node: usize) {
        let read = crdt::read(DataType::Map, &self.nodes[node].state(), 0).unwrap();
        let found = read.map(|read| read.view);
        assert_eq!(found, self.expected(&self.logs[node]), "node {node}");
        assert!(self.nodes[node].state().siblings().len() <= NODES + self.lives as usize);
    }

    /// What the writes of a log come to: each operation's increments once, and every element with an add that no
    /// removal in the log knew.
    fn expected(&self, log: &BTreeSet<Dot>) -> Option<View> {
        if log.is_empty() {
            return None;
        }
        let events = || log.iter().map(|dot| (dot, &self.events[dot]));
        let mut sums: BTreeMap<&str, i64> = BTreeMap::new();
        let mut counted = BTreeSet::new();
        let mut elements = BTreeSet::new();
        for (dot, event) in events() {
            match event.what {
                What::Increment { counter, amount } if counted.insert(event.operation) => {
                    *sums.entry(COUNTERS[counter]).or_default() += amount;
                }
                What::Add { element } => {
                    let removed = events().any(|(_, other)| {
                        other.known.contains(dot)
                            && match other.what {
                                What::Remove { element: gone } => gone == element,
                                What::RemoveAll => true,
                                _ => false,
                            }
                    });
                    if !removed {
                        elements.insert(bytes(ELEMENTS[element]));
                    }
                }
                _ => {}
            }
        }
        let sums = sums.into_iter();
        let mut fields: Vec<_> = sums
            .map(|(name, sum)| (field(LeafType::Counter, name), View::Counter(sum)))
            .collect();
        if !elements.is_empty() {
            let elements = View::Set(elements.into_iter().collect());
            fields.push((field(LeafType::Set, "s"), elements));
        }
        Some(View::Map(fields))
    }

    /// The splits heal, everybody hears everything.
    fn heal(&mut self) {
        self.side = 0;
        for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 1)] {
            self.push(from, to);
            self.check(to);
        }
        let encoded = self.nodes[0].state().encode();
        assert!(
            self.nodes.iter().all(|node| node.state().encode() == encoded),
            "byte for byte"
        );
        let heard: BTreeSet<Dot> = self.events.keys().copied().collect();
        assert_eq!(self.logs[0], heard, "every acknowledged write was heard of");
    }
}

/// A client that sends none does not retry.
fn has_op_id(operation: usize) -> bool {
    !operation.is_multiple_of(3)
}

fn operation_of(what: What) -> Operation {
    match what {
        What::Increment { counter, amount } => in_field(COUNTERS[counter], LeafOperation::Increment(amount)),
        What::Add { element } => in_field("s", LeafOperation::Add(vec![bytes(ELEMENTS[element])])),
        What::Remove { element } => in_field("s", LeafOperation::Remove(vec![bytes(ELEMENTS[element])])),
        What::RemoveAll => Operation::Map(vec![FieldOperation::Remove(field(LeafType::Set, "s"))]),
    }
}

fn what() -> impl Strategy<Value = What> {
    let element = 0..ELEMENTS.len();
    prop_oneof![
        5 => (0..COUNTERS.len(), -3..=9i64).prop_map(|(counter, amount)| What::Increment { counter, amount }),
        4 => element.clone().prop_map(|element| What::Add { element }),
        3 => element.prop_map(|element| What::Remove { element }),
        1 => Just(What::RemoveAll),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let (client, node, mask) = (0..CLIENTS, 0..NODES, 0..1u8 << NODES);
    prop_oneof![
        12 => (client.clone(), node.clone(), what(), mask.clone())
            .prop_map(|(client, node, what, reaches)| Step::Write { client, node, what, reaches }),
        4 => (any::<usize>(), node.clone(), mask.clone())
            .prop_map(|(which, node, reaches)| Step::Retry { which, node, reaches }),
        5 => (client, mask.clone()).prop_map(|(client, nodes)| Step::Get { client, nodes }),
        4 => (node.clone(), node.clone()).prop_map(|(from, to)| Step::Sync { from, to }),
        2 => mask.prop_map(|side| Step::Split { side }),
        1 => node.clone().prop_map(|node| Step::Crash { node }),
        1 => node.clone().prop_map(|node| Step::LoseDisk { node }),
        1 => node.clone().prop_map(|node| Step::LoseRecord { node }),
        1 => node.clone().prop_map(|node| Step::LoseEntry { node }),
        1 => node.clone().prop_map(|node| Step::Copy { node }),
        1 => node.prop_map(|node| Step::PutBack { node }),
    ]
}

fn config(cases: u32) -> Config {
    let seed = std::env::var("DYNAMO_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    Config {
        cases: if cfg!(debug_assertions) { cases / 20 } else { cases },
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed.unwrap_or(0xc0_0001)),
        ..Config::default()
    }
}

proptest! {
    #![proptest_config(config(3_000))]

    /// Rows D53, D54: at every moment each copy shows what the writes that it has heard of come to, every increment
    /// once; and all copies end up equal.
    #[test]
    fn c_random_histories_count_every_acknowledged_operation_once(
        steps in prop::collection::vec(step(), 1..50),
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.heal();
    }
}

/// So many increments that op ids are forgotten all the time, while deltas are lost and clients retry elsewhere what
/// they asked for a little earlier.
#[test]
fn c_long_histories_count_every_increment_once() {
    let mut random = 0x1234_5678_9abc_def1_u64;
    let mut below = move |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 20) % bound
    };
    let mut nodes = cluster::<NODES>(COUNTER);
    let mut sum = 0;
    let amount = |number: u64| (number % 10).cast_signed();
    for number in 0..2_000 {
        let node = below(NODES as u64) as usize;
        let attempt = |number| TypedUpdate {
            op_id: Some(op_id(number)),
            ..update(increment(amount(number)))
        };
        let delta = nodes[node].update(attempt(number)).unwrap().delta;
        sum += amount(number);
        if below(2) == 0 {
            let elsewhere = below(NODES as u64) as usize;
            nodes[elsewhere]
                .update(attempt(number.saturating_sub(below(20))))
                .unwrap();
        }
        if below(4) == 0 {
            nodes[below(NODES as u64) as usize].merge(&delta);
        }
        if below(50) == 0 {
            heal(&mut nodes);
            assert_eq!(nodes[node].view(), View::Counter(sum), "after {number}");
        }
    }
    heal(&mut nodes);
    assert_eq!(nodes[0].view(), View::Counter(sum));
    let bytes = nodes[0].state().encode().len();
    assert!(bytes < 3 * NODES * 25 * OP_IDS_MAX, "{bytes} bytes");
}
