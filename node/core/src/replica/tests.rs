use super::*;

const CAPS: SiblingCaps = SiblingCaps {
    siblings: 100,
    bytes: 1000,
};

/// One node's share in one record.
struct Node {
    minter: Minter,
    state: Option<KeyState>,
    entry: Option<EpochEntry>,
}

impl Node {
    fn new(id: u64) -> Self {
        Self {
            minter: Minter::new(Incarnation { generation: 1, id }, 0),
            state: None,
            entry: None,
        }
    }

    fn try_write(&mut self, update: Update, caps: SiblingCaps) -> Result<Coordinated, UpdateRefused> {
        let done = coordinate(
            self.state.as_ref(),
            self.entry.as_ref(),
            &mut self.minter,
            update,
            caps,
        )?;
        self.state = Some(done.state.clone());
        self.entry = done.entry.or(self.entry);
        Ok(done)
    }

    fn write(&mut self, update: Update) -> Coordinated {
        self.try_write(update, CAPS).unwrap()
    }

    fn take_in(&mut self, incoming: &KeyState) {
        self.state = Some(merge(self.state.take(), incoming).state);
    }

    fn values(&self) -> Vec<Bytes> {
        let live = self.state.as_ref().map(|state| state.live(0)).unwrap_or_default();
        live.into_iter()
            .map(|(_, sibling)| sibling.value().unwrap().clone())
            .collect()
    }
}

fn put(value: &'static str) -> Update {
    let content = Content::Value(Bytes::from_static(value.as_bytes()));
    Update {
        content,
        context: Seen::new(),
        op_id: None,
        stamp: Stamp(0),
        expires_at_ms: None,
    }
}

fn dot(incarnation: u64, epoch: u64, counter: u64) -> Dot {
    Dot {
        actor: Actor { incarnation, epoch },
        counter,
    }
}

#[test]
fn a_record_s_dots_count_on_within_its_epoch() {
    let mut node = Node::new(1);
    let dots: Vec<Dot> = (0..3).map(|_| node.write(put("x")).dot).collect();
    assert_eq!(dots, [dot(1, 0, 1), dot(1, 0, 2), dot(1, 0, 3)]);
    assert_eq!(
        node.entry,
        Some(EpochEntry {
            actor: dots[0].actor,
            counter: 3
        })
    );
    assert_eq!(node.minter.next_epoch(), 1);
}

#[test]
fn two_records_of_a_node_have_two_epochs() {
    let mut node = Node::new(1);
    node.write(put("x"));
    (node.state, node.entry) = (None, None);
    assert_eq!(node.write(put("x")).dot, dot(1, 1, 1));
}

#[test]
fn another_life_of_the_node_begins_an_epoch() {
    let mut node = Node::new(1);
    node.write(put("x"));
    node.minter = Minter::new(Incarnation { generation: 2, id: 2 }, 0);
    assert_eq!(node.write(put("y")).dot, dot(2, 0, 1));
}

/// The record, the context, or both know a write of this node's actor that its entry does not: an older copy of the
/// entry came back.
#[test]
fn meeting_its_own_actor_beyond_its_counter_begins_an_epoch() {
    let own = |counter| Seen::from_iter([dot(1, 0, counter)]);
    for (in_record, in_context) in [(true, false), (false, true), (true, true)] {
        let mut node = Node::new(1);
        node.write(put("x"));
        if in_record {
            node.take_in(&KeyState::from_write(&own(5), dot(9, 0, 1), sibling("z")));
        }
        let context = if in_context { own(5) } else { Seen::new() };
        assert_eq!(
            node.write(Update { context, ..put("y") }).dot,
            dot(1, 1, 1),
            "{in_record} {in_context}"
        );
    }
}

#[test]
fn knowing_its_own_writes_is_no_reason_to_begin_an_epoch() {
    let mut node = Node::new(1);
    let first = node.write(put("x"));
    let context = first.state.context_seen();
    assert_eq!(node.write(Update { context, ..put("y") }).dot, dot(1, 0, 2));
}

#[test]
fn a_forged_context_cannot_make_a_dot_that_it_covers() {
    let mut node = Node::new(1);
    let context: Seen = (0..5).map(|epoch| dot(1, epoch, COUNTER_MAX)).collect();
    let done = node.write(Update { context, ..put("x") });
    assert_eq!(done.dot, dot(1, 5, 1));
    assert_eq!(node.values(), ["x"]);
}

#[test]
fn an_epoch_ends_with_its_last_counter() {
    let mut node = Node::new(1);
    node.entry = Some(EpochEntry {
        actor: node.minter.mint(),
        counter: COUNTER_MAX - 1,
    });
    assert_eq!(node.write(put("x")).dot, dot(1, 0, COUNTER_MAX));
    assert_eq!(node.write(put("y")).dot, dot(1, 1, 1));
    assert_eq!(node.values(), ["x", "y"]);
}

#[test]
fn a_delta_is_the_write_alone() {
    let mut node = Node::new(1);
    let seen_by_client = node.write(put("old")).dot;
    node.write(put("not seen"));
    let context = Seen::from_iter([seen_by_client]);
    let done = node.write(Update {
        context,
        ..put("new")
    });
    assert_eq!(
        done.delta.siblings().keys().copied().collect::<Vec<_>>(),
        [done.dot]
    );
    assert_eq!(*done.delta.seen(), Seen::from_iter([seen_by_client, done.dot]));
    assert_eq!(node.values(), ["not seen", "new"]);
}

/// D1: without a context nothing is overwritten.
#[test]
fn a_blind_put_makes_a_sibling() {
    let mut node = Node::new(1);
    node.write(put("x"));
    node.write(put("y"));
    assert_eq!(node.values(), ["x", "y"]);
}

/// D3.
#[test]
fn a_delete_is_a_write_of_a_tombstone() {
    let mut node = Node::new(1);
    let context = node.write(put("x")).state.context_seen();
    let deleted = node.write(Update {
        content: Content::Tombstone,
        context,
        ..put("")
    });
    assert!(deleted.state.is_deleted(0));
    let context = deleted.state.context_seen();
    node.write(Update {
        context,
        ..put("again")
    });
    assert_eq!(node.values(), ["again"]);
    assert!(!node.state.as_ref().unwrap().has_tombstone());
}

#[test]
fn a_retry_gets_the_first_dot_and_sends_its_delta_again() {
    let operation = Update {
        op_id: Some([7; 16]),
        ..put("x")
    };
    let mut node = Node::new(1);
    let first = node.write(operation.clone());
    node.write(put("other"));
    let again = node.write(Update {
        stamp: Stamp(99),
        ..operation.clone()
    });
    assert!(!first.replayed && again.replayed);
    assert_eq!(
        (again.dot, &again.delta, again.entry),
        (first.dot, &first.delta, None)
    );
    assert_eq!(node.values(), ["x", "other"]);

    // Another coordinator that has the first write answers the same; one that has not makes a sibling of it, which
    // readers do not see.
    let mut informed = Node::new(2);
    informed.take_in(&first.delta);
    assert_eq!(informed.write(operation.clone()).dot, first.dot);
    let mut uninformed = Node::new(3);
    let second = uninformed.write(operation.clone());
    assert!(!second.replayed);
    informed.take_in(&second.delta);
    assert_eq!(informed.values(), ["x"]);
    assert_eq!(informed.write(operation).dot, first.dot);
}

#[test]
fn what_only_looks_like_a_retry_is_a_write() {
    let operation = Update {
        op_id: Some([7; 16]),
        ..put("x")
    };
    let covers_the_first = Seen::from_iter([dot(1, 0, 1)]);
    let covers_the_unknown = Seen::from_iter([dot(9, 0, 1)]);
    let cases = [
        ("another value", put("y").content, Seen::new()),
        (
            "supersedes the first",
            operation.content.clone(),
            covers_the_first,
        ),
        ("has news", operation.content.clone(), covers_the_unknown),
    ];
    for (case, content, context) in cases {
        let mut node = Node::new(1);
        node.write(operation.clone());
        let done = node.write(Update {
            content,
            context,
            ..operation.clone()
        });
        assert!(!done.replayed, "{case}");
        assert_eq!(done.dot, dot(1, 0, 2), "{case}");
    }
}

/// D16.
#[test]
fn only_a_write_that_adds_a_sibling_meets_the_limit() {
    let mut node = Node::new(1);
    let first = node.write(Update {
        op_id: Some([7; 16]),
        ..put("a")
    });
    node.write(put("b"));
    let before = (node.state.clone(), node.entry, node.minter.next_epoch());

    let caps = |siblings| SiblingCaps { siblings, ..CAPS };
    let refused = node.try_write(put("c"), caps(2)).unwrap_err();
    assert_eq!(
        refused,
        UpdateRefused::TooManySiblings {
            siblings: 2,
            siblings_max: 2
        }
    );
    assert_eq!((node.state.clone(), node.entry, node.minter.next_epoch()), before);

    assert!(
        node.try_write(
            Update {
                op_id: Some([7; 16]),
                ..put("a")
            },
            caps(2)
        )
        .unwrap()
        .replayed
    );
    let context = Seen::from_iter([first.dot]);
    node.try_write(Update { context, ..put("d") }, caps(2)).unwrap();
    // A limit that was lowered since: what makes them no more is still taken.
    let context = Seen::from_iter([dot(1, 0, 2)]);
    node.try_write(Update { context, ..put("e") }, caps(1)).unwrap();
    assert_eq!(node.values(), ["d", "e"]);

    // Merging is never refused.
    for id in 2..200 {
        node.take_in(&Node::new(id).write(put("x")).delta);
    }
    assert_eq!(node.values().len(), 200);
}

#[test]
fn entries_are_read_as_they_were_written() {
    for (incarnation, epoch, counter) in [
        (0, 0, 1),
        (u64::MAX, u64::MAX, COUNTER_MAX),
        (1 << 40, 300, 70_000),
    ] {
        let entry = EpochEntry {
            actor: Actor { incarnation, epoch },
            counter,
        };
        assert_eq!(EpochEntry::decode(entry.encode()), Ok(entry));
    }
    for counter in [0, COUNTER_MAX + 1] {
        let entry = EpochEntry {
            actor: Actor {
                incarnation: 1,
                epoch: 1,
            },
            counter,
        };
        assert_eq!(
            EpochEntry::decode(entry.encode()),
            Err(DecodeError::Invalid("counter"))
        );
    }
}

/// D48, the "password" demo: two clients change a password on two sides of a split; afterwards one of the two is in
/// force, on every replica the same, and blind puts do not pile up.
#[test]
fn the_last_write_wins_on_all_replicas() {
    let now = |ms: u64| Stamp::from_ms(ms);
    let lww_at = |node: &mut Node, value, stamp, wall_ms| {
        let update = Update { stamp, ..put(value) };
        let (state, entry) = (node.state.clone(), node.entry);
        let done = coordinate_lww(state.as_ref(), entry.as_ref(), &mut node.minter, update, wall_ms)?;
        node.state = Some(done.state.clone());
        node.entry = done.entry.or(entry);
        Ok::<_, UpdateRefused>(done)
    };
    let lww = |node: &mut Node, value, stamp| lww_at(node, value, stamp, 1_000);
    let winner = |node: &Node| {
        let (_, sibling) = node.state.as_ref()?.lww_winner(1_000)?;
        sibling.value().cloned()
    };
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    lww(&mut a, "hunter2", now(900)).unwrap();
    lww(&mut a, "hunter3", now(910)).unwrap();
    lww(&mut b, "letmein", now(905)).unwrap();
    let (from_a, from_b) = (a.state.clone().unwrap(), b.state.clone().unwrap());
    a.take_in(&from_b);
    b.take_in(&from_a);
    assert_eq!(a.state, b.state);
    assert_eq!(winner(&a), Some(Bytes::from_static(b"hunter3")));
    // Equal stamps: the larger dot.
    let mut both = from_b;
    both.merge(&KeyState::from_write(
        &Seen::new(),
        Dot {
            actor: Actor {
                incarnation: 9,
                epoch: 0,
            },
            counter: 1,
        },
        Sibling {
            stamp: now(905),
            ..sibling("tie")
        },
    ));
    let (dot, _) = both.lww_winner(1_000).unwrap();
    assert_eq!(dot.actor.incarnation, 9);

    lww(&mut a, "swordfish", now(920)).unwrap();
    assert_eq!(a.state.as_ref().unwrap().siblings().len(), 1);
    let future = now(1_000 + STAMP_AHEAD_MS_MAX);
    lww(&mut b, "soon", future).unwrap();
    assert_eq!(
        lww(&mut a, "too late", Stamp::from_ms(1_001 + STAMP_AHEAD_MS_MAX)).map(|done| done.dot),
        Err(UpdateRefused::StampAhead {
            ahead_ms: STAMP_AHEAD_MS_MAX + 1
        })
    );
    a.take_in(b.state.as_ref().unwrap());
    let passed = lww(&mut a, "today", now(1_000)).unwrap();
    assert_eq!(
        passed.delta.siblings()[&passed.dot].stamp,
        future.next(),
        "a clock that is a little behind hides no write"
    );
    assert_eq!(winner(&a), Some(Bytes::from_static(b"today")));
    assert_eq!(a.state.as_ref().unwrap().siblings().len(), 1);
    lww_at(&mut b, "tomorrow", now(90_000_000), 90_000_000).unwrap();
    a.take_in(b.state.as_ref().unwrap());
    lww(&mut a, "still today", now(1_000)).unwrap();
    assert_eq!(
        winner(&a),
        Some(Bytes::from_static(b"tomorrow")),
        "what lies ahead stays"
    );
    assert_eq!(a.state.as_ref().unwrap().siblings().len(), 2);
}

/// D48: a delete is a write like any other, and a retry is the write that it repeats.
#[test]
fn a_later_tombstone_wins_and_a_retry_is_found() {
    let mut node = Node::new(1);
    let attempt = |stamp| Update {
        op_id: Some([7; 16]),
        stamp: Stamp::from_ms(stamp),
        ..put("x")
    };
    let first = coordinate_lww(None, None, &mut node.minter, attempt(5), 10).unwrap();
    let entry = first.entry;
    let again = coordinate_lww(
        Some(&first.state),
        entry.as_ref(),
        &mut node.minter,
        attempt(8),
        10,
    )
    .unwrap();
    assert!(again.replayed && again.dot == first.dot);
    // A write of another client came between the two, by way of another node.
    let between = Update {
        stamp: Stamp::from_ms(7),
        ..put("y")
    };
    let mut other = Minter::new(Incarnation { generation: 1, id: 3 }, 0);
    let between = coordinate_lww(None, None, &mut other, between, 10).unwrap();
    let merged = merge(Some(first.state.clone()), &between.state).state;
    let again = coordinate_lww(Some(&merged), entry.as_ref(), &mut node.minter, attempt(9), 10).unwrap();
    assert!(again.replayed);
    assert_eq!(
        merge(Some(merged), &again.delta).state.lww_winner(10).unwrap().0,
        between.dot,
        "the first attempt is not the last write"
    );
    let delete = Update {
        content: Content::Tombstone,
        stamp: Stamp::from_ms(9),
        ..put("")
    };
    let elsewhere = coordinate_lww(
        None,
        None,
        &mut Minter::new(Incarnation { generation: 1, id: 2 }, 0),
        delete,
        10,
    );
    let both = merge(Some(first.state), &elsewhere.unwrap().state).state;
    assert_eq!(both.lww_winner(10), None);
    assert!(
        !both.is_deleted(10),
        "to a reader who keeps siblings it would live"
    );
}

fn sibling(value: &'static str) -> Sibling {
    let Update {
        content,
        op_id,
        stamp,
        expires_at_ms,
        ..
    } = put(value);
    Sibling {
        stamp,
        expires_at_ms,
        op_id,
        content,
    }
}

/// D16, D52: what the cap is for is the size of the record.
#[test]
fn only_a_write_that_adds_a_sibling_meets_the_limit_in_bytes() {
    let mut node = Node::new(1);
    let caps = SiblingCaps { bytes: 10, ..CAPS };
    node.try_write(put("more than all of it"), caps).unwrap();
    let context = node.state.clone().unwrap().seen().clone();
    node.try_write(
        Update {
            context,
            ..put("123456")
        },
        caps,
    )
    .unwrap();
    node.try_write(put("7890"), caps).unwrap();
    let refused = UpdateRefused::SiblingsTooLarge {
        bytes: 10,
        bytes_max: 10,
    };
    assert_eq!(node.try_write(put("x"), caps).unwrap_err(), refused);
    let context = node.state.clone().unwrap().seen().clone();
    let update = Update {
        context,
        ..put("resolved, and large")
    };
    node.try_write(update, caps).unwrap();
    assert_eq!(node.state.unwrap().siblings().len(), 1);
}
