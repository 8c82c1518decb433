//! What the paper says about versions, told with test actors. Paper: §4.1, §4.4. Rows D1-D3, D44-D46, D50, test V.

// Clippy knows test functions, not their helpers in a crate of tests.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::collections::BTreeMap;

use bytes::Bytes;
use dynamo_core::replica::{self, EpochEntry, Minter, Update};
use dynamo_core::types::Incarnation;
use dynamo_core::version::{Content, Context, KeyState, Seen, Stamp};

/// One node's share in one record.
struct Node {
    minter: Minter,
    record: Option<KeyState>,
    entry: Option<EpochEntry>,
}

/// What a put sends to the other replicas, and what its client gets.
struct Done {
    delta: KeyState,
    context: Seen,
}

impl Node {
    fn new(incarnation: u64) -> Self {
        let minter = Minter::new(
            Incarnation {
                generation: 1,
                id: incarnation,
            },
            0,
        );
        Self {
            minter,
            record: None,
            entry: None,
        }
    }

    fn write(&mut self, context: &Seen, content: Content) -> Done {
        let update = Update {
            content,
            context: context.clone(),
            op_id: None,
            stamp: Stamp(0),
            expires_at_ms: None,
        };
        let (record, entry) = (self.record.as_ref(), self.entry.as_ref());
        let done = replica::coordinate(
            record,
            entry,
            &mut self.minter,
            update,
            replica::SiblingCaps::NONE,
        )
        .unwrap();
        (self.record, self.entry) = (Some(done.state), done.entry);
        Done {
            delta: done.delta,
            context: Context::of_reply(context, done.dot).seen,
        }
    }

    fn put(&mut self, context: &Seen, value: &str) -> Done {
        self.write(context, Content::Value(Bytes::from(value.to_owned())))
    }

    fn take_in(&mut self, incoming: &KeyState) {
        self.record = Some(replica::merge(self.record.take(), incoming).state);
    }

    fn record(&self) -> KeyState {
        self.record.clone().unwrap_or_default()
    }

    /// The values, sorted, and the context of a get.
    fn get(&self) -> (Vec<String>, Seen) {
        (values(&self.record()), self.record().context_seen())
    }
}

fn values(state: &KeyState) -> Vec<String> {
    let live = state.live(0).into_iter();
    let mut values: Vec<String> = live
        .map(|(_, sibling)| String::from_utf8(sibling.value().unwrap().to_vec()).unwrap())
        .collect();
    values.sort();
    values
}

/// A clock as the paper writes it: incarnation and counter.
fn clock(seen: &Seen) -> BTreeMap<u64, u64> {
    let entries = seen.entries();
    entries
        .map(|entry| {
            assert!(entry.beyond.is_empty(), "no gaps");
            (entry.actor.incarnation, entry.counter)
        })
        .collect()
}

/// D44, test V: figure 3 of the paper. Each write is a new immutable version under its node's next counter.
#[test]
fn the_lecture_example() {
    let (mut sx, mut sy, mut sz) = (Node::new(0x58), Node::new(0x59), Node::new(0x5a));
    let d1 = sx.put(&Seen::new(), "D1");
    assert_eq!(clock(&d1.context), BTreeMap::from([(0x58, 1)]));
    let d2 = sx.put(&d1.context, "D2");
    assert_eq!(clock(&d2.context), BTreeMap::from([(0x58, 2)]));
    assert_eq!(sx.get().0, ["D2"], "D2 descends from D1 and overwrites it");
    for node in [&mut sy, &mut sz] {
        node.take_in(&d2.delta);
    }

    // Two clients read D2 and write through different nodes.
    let d3 = sy.put(&sy.get().1, "D3");
    let d4 = sz.put(&sz.get().1, "D4");
    assert_eq!(clock(&d3.context), BTreeMap::from([(0x58, 2), (0x59, 1)]));
    assert_eq!(clock(&d4.context), BTreeMap::from([(0x58, 2), (0x5a, 1)]));
    assert!(d3.context.concurrent(&d4.context));
    assert!(d3.context.dominates(&d2.context) && d4.context.dominates(&d2.context));

    // A node that knows D1 or D2 forgets it on receiving D3 or D4, and keeps both of these.
    sx.take_in(&d3.delta);
    assert_eq!(sx.get().0, ["D3"]);
    sx.take_in(&d4.delta);
    let (siblings, context) = sx.get();
    assert_eq!(siblings, ["D3", "D4"]);
    assert_eq!(
        clock(&context),
        BTreeMap::from([(0x58, 2), (0x59, 1), (0x5a, 1)]),
        "a summary of both clocks"
    );

    let d5 = sx.put(&context, "D5");
    assert_eq!(
        clock(&d5.context),
        BTreeMap::from([(0x58, 3), (0x59, 1), (0x5a, 1)])
    );
    for node in [&mut sy, &mut sz] {
        node.take_in(&d5.delta);
        assert_eq!(node.get().0, ["D5"]);
    }
    assert_eq!(sy.record(), sx.record());
}

/// D1, test V.
#[test]
fn two_blind_puts_are_siblings_and_a_reply_s_context_replaces_its_own_value_alone() {
    let mut node = Node::new(1);
    let v1 = node.put(&Seen::new(), "v1");
    node.put(&Seen::new(), "v2");
    let (both, context) = node.get();
    assert_eq!(both, ["v1", "v2"]);
    node.put(&v1.context, "v3");
    assert_eq!(node.get().0, ["v2", "v3"]);
    node.put(&context, "v4");
    assert_eq!(node.get().0, ["v3", "v4"], "the get had not seen v3");
    node.put(&node.get().1, "v5");
    assert_eq!(node.get().0, ["v5"]);
}

/// D45: two clients that never read each other's values write in turn, each on its own last reply. With clocks of
/// nodes (and the merged clock in each reply) one would erase the other, or siblings would grow with every put.
#[test]
fn a_thousand_interleaved_put_pairs_leave_exactly_two_siblings() {
    let mut node = Node::new(1);
    let mut other = Node::new(2);
    let (mut a, mut b) = (Seen::new(), Seen::new());
    for round in 0..1_000 {
        let from_a = node.put(&a, &format!("a{round}"));
        let from_b = node.put(&b, &format!("b{round}"));
        (a, b) = (from_a.context, from_b.context);
        // The other replica hears of every second pair, later one first.
        if round % 2 == 0 {
            other.take_in(&from_b.delta);
            other.take_in(&from_a.delta);
        }
        assert_eq!(node.record().siblings().len(), 2);
    }
    assert_eq!(node.get().0, ["a999", "b999"]);
    other.take_in(&node.record());
    assert_eq!(other.record(), node.record());
    assert_eq!(clock(node.record().seen()), BTreeMap::from([(1, 2_000)]));
}

/// D45 once more, with the two clients at two nodes that tell each other everything.
#[test]
fn interleaved_puts_at_two_nodes_leave_two_siblings_as_well() {
    let (mut x, mut y) = (Node::new(1), Node::new(2));
    let (mut a, mut b) = (Seen::new(), Seen::new());
    for round in 0..1_000 {
        let (from_a, from_b) = (x.put(&a, &format!("a{round}")), y.put(&b, &format!("b{round}")));
        y.take_in(&from_a.delta);
        x.take_in(&from_b.delta);
        (a, b) = (from_a.context, from_b.context);
    }
    assert_eq!(x.get().0, ["a999", "b999"]);
    assert_eq!(x.record(), y.record());
}

/// D46: a stale replica's ancestor never appears next to its descendant, whichever arrives first.
#[test]
fn an_ancestor_never_stands_beside_its_descendant() {
    let mut writer = Node::new(1);
    let mut records = vec![writer.record()];
    let mut context = Seen::new();
    for value in ["v1", "v2", "v3", "v4"] {
        let done = writer.put(&context, value);
        context = done.context;
        records.push(writer.record());
        records.push(done.delta);
    }
    for first in &records {
        for second in &records {
            let mut stale = Node::new(2);
            stale.take_in(first);
            stale.take_in(second);
            assert!(stale.record().siblings().len() <= 1, "{first:?} {second:?}");
            stale.take_in(&writer.record());
            assert_eq!(stale.get().0, ["v4"]);
        }
    }
}

/// D3: a delete is a version. What was put meanwhile stays, and says that a delete was concurrent.
#[test]
fn a_delete_supersedes_what_it_saw() {
    let (mut x, mut y) = (Node::new(1), Node::new(2));
    let v1 = x.put(&Seen::new(), "v1");
    y.take_in(&v1.delta);
    let deleted = x.write(&v1.context, Content::Tombstone);
    assert!(x.record().is_deleted(0));
    let v2 = y.put(&v1.context, "v2");
    x.take_in(&v2.delta);
    y.take_in(&deleted.delta);
    assert_eq!(x.record(), y.record());
    assert_eq!(x.get().0, ["v2"]);
    assert!(x.record().has_tombstone());

    let mut late = Node::new(3);
    late.take_in(&deleted.delta);
    late.take_in(&v1.delta);
    assert!(
        late.record().is_deleted(0),
        "the value that the delete saw does not come back"
    );
    x.put(&x.get().1, "v3");
    assert_eq!(
        (x.get().0, x.record().has_tombstone()),
        (vec!["v3".to_owned()], false)
    );
}

/// Test V, D50: a node that lost its copy, its counting, or its whole disk writes on; no reader takes the new value for
/// an old one, and no acknowledged value is lost.
#[test]
fn a_node_that_forgot_its_counter_loses_nobody_s_value() {
    type Loss = fn(&mut Node);
    let losses: [(&str, Loss); 4] = [
        ("the record", |node| node.record = None),
        ("the entry", |node| node.entry = None),
        ("both", |node| (node.record, node.entry) = (None, None)),
        ("the disk", |node| *node = Node::new(99)),
    ];
    for (lost, lose) in losses {
        let (mut a, mut b) = (Node::new(1), Node::new(2));
        b.take_in(&a.put(&Seen::new(), "v1").delta);
        lose(&mut a);
        b.take_in(&a.put(&Seen::new(), "v2").delta);
        a.take_in(&b.record());
        assert_eq!(a.get().0, ["v1", "v2"], "lost: {lost}");
        assert_eq!(a.record(), b.record(), "lost: {lost}");
    }
}

/// The same for an old copy of record and entry together, once the node meets its own later writes: in a context that
/// a client brings, or in another node's record.
#[test]
fn an_old_copy_of_a_node_s_disk_does_not_count_again() {
    for by_context in [true, false] {
        let (mut a, mut b) = (Node::new(1), Node::new(2));
        let v1 = a.put(&Seen::new(), "v1");
        let old = (a.record.clone(), a.entry);
        let v2 = a.put(&v1.context, "v2");
        let other = a.put(&v1.context, "other");
        for done in [&v1, &v2, &other] {
            b.take_in(&done.delta);
        }
        (a.record, a.entry) = old;
        let context = if by_context {
            v2.context
        } else {
            a.take_in(&v2.delta);
            Seen::new()
        };
        b.take_in(&a.put(&context, "v3").delta);
        let expected = if by_context {
            ["other", "v3"].as_slice()
        } else {
            &["other", "v2", "v3"]
        };
        assert_eq!(b.get().0, expected, "by context: {by_context}");
    }
}
