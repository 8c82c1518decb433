//! What each data type promises, one promise at a time.

use bytes::Bytes;
use dynamo_core::crdt::{
    self, FieldOperation, LeafOperation, LeafType, OP_IDS_MAX, Operation, OperationError, TypedRefused,
    TypedUpdate, View,
};
use dynamo_core::replica::{self, Update};
use dynamo_core::version::{Content, KeyState, Seen, Stamp};

use super::replicas::{
    COUNTER, FLAG, REGISTER, Replica, SET, add, bytes, cluster, field, heal, in_field, increment, minter,
    op_id, remove, set_of, update,
};
use dynamo_core::crdt::DataType;

/// Test C: potato(2) || potato(1) = 3 with counters.
#[test]
fn c_concurrent_increments_of_a_field_add_up() {
    let mut nodes = cluster::<2>(DataType::Map);
    nodes[0].write(in_field("potato", LeafOperation::Increment(2)), None);
    nodes[1].write(in_field("potato", LeafOperation::Increment(1)), None);
    heal(&mut nodes);
    let potatoes = View::Map(vec![(field(LeafType::Counter, "potato"), View::Counter(3))]);
    assert_eq!(nodes[0].view(), potatoes);
    assert_eq!(nodes[0].state().encode(), nodes[1].state().encode());
    assert_eq!(nodes[0].state().siblings().len(), 2);

    nodes[0].write(in_field("potato", LeafOperation::Increment(4)), None);
    assert_eq!(
        nodes[0].state().siblings().len(),
        1,
        "a typed write leaves one sibling"
    );
    heal(&mut nodes);
    let potatoes = View::Map(vec![(field(LeafType::Counter, "potato"), View::Counter(7))]);
    assert_eq!(nodes[1].view(), potatoes);
}

/// Test C: {potato, onion} with sets.
#[test]
fn c_concurrent_adds_are_united() {
    let mut nodes = cluster::<2>(SET);
    nodes[0].write(add("potato"), None);
    nodes[1].write(add("onion"), None);
    heal(&mut nodes);
    assert_eq!(nodes[0].view(), set_of(&["onion", "potato"]));
    assert_eq!(nodes[0].state().encode(), nodes[1].state().encode());
}

#[test]
fn an_add_beats_a_removal_that_did_not_know_it() {
    let mut nodes = cluster::<2>(SET);
    nodes[0].write(add("x"), None);
    heal(&mut nodes);
    let seen = nodes[1].read().context;
    nodes[0].write(add("x"), None);
    nodes[1].write(remove("x"), Some(&seen));
    assert_eq!(nodes[1].view(), set_of(&[]));
    heal(&mut nodes);
    assert_eq!(nodes[0].view(), set_of(&["x"]));

    let seen = nodes[1].read().context;
    nodes[1].write(remove("x"), Some(&seen));
    heal(&mut nodes);
    assert_eq!(nodes[0].view(), set_of(&[]), "now it was seen");
}

#[test]
fn a_removal_removes_what_its_context_saw_also_where_that_comes_later() {
    let mut nodes = cluster::<3>(SET);
    nodes[0].write(add("x"), None);
    nodes[0].write(add("y"), None);
    let seen = nodes[0].read().context;
    // The second node has heard of nothing yet.
    nodes[1].write(remove("x"), Some(&seen));
    nodes[2].write(add("z"), None);
    let late = nodes[0].state();
    nodes[2].merge(&nodes[1].state());
    nodes[2].write(add("z"), None);
    nodes[2].merge(&late);
    assert_eq!(nodes[2].view(), set_of(&["y", "z"]));
    heal(&mut nodes);
    nodes[0].write(add("w"), None);
    assert_eq!(nodes[0].view(), set_of(&["w", "y", "z"]));
}

/// A client that added blindly has not seen what others had added: its reply's context does not cover the new sibling,
/// which holds that too.
#[test]
fn a_blind_write_gives_no_right_to_remove_what_was_there() {
    let mut nodes = cluster::<1>(SET);
    let first = nodes[0].write(add("x"), None);
    assert!(
        crdt::reply_context(&Seen::new(), first.dot, &first.delta).contains(&first.dot),
        "the key was empty"
    );
    let blind = nodes[0].write(add("x"), None);
    let context = crdt::reply_context(&Seen::new(), blind.dot, &blind.delta);
    assert!(!context.contains(&blind.dot));
    nodes[0].write(remove("x"), Some(&context));
    assert_eq!(nodes[0].view(), set_of(&["x"]));

    let seen = nodes[0].read().context;
    let done = nodes[0].write(add("y"), Some(&seen));
    let context = crdt::reply_context(&seen, done.dot, &done.delta);
    nodes[0].write(remove("y"), Some(&context));
    nodes[0].write(remove("x"), Some(&context));
    assert_eq!(nodes[0].view(), set_of(&[]));
}

#[test]
fn a_removal_without_a_context_is_refused() {
    let map = |part| Operation::Map(vec![part]);
    let field = field(LeafType::Set, "f");
    for (data_type, operation) in [
        (SET, remove("x")),
        (FLAG, Operation::Leaf(LeafOperation::Disable)),
        (DataType::Map, in_field("f", LeafOperation::Disable)),
        (DataType::Map, map(FieldOperation::Remove(field))),
    ] {
        let refused = Replica::new(data_type, 1).update(update(operation));
        assert_eq!(refused, Err(TypedRefused::ContextMissing));
    }
}

#[test]
fn an_enable_beats_a_disable_that_did_not_know_it() {
    let (enable, disable) = (
        Operation::Leaf(LeafOperation::Enable),
        Operation::Leaf(LeafOperation::Disable),
    );
    let mut nodes = cluster::<2>(FLAG);
    nodes[0].write(enable.clone(), None);
    heal(&mut nodes);
    let seen = nodes[0].read().context;
    nodes[0].write(disable.clone(), Some(&seen));
    assert_eq!(nodes[0].view(), View::Flag(false));
    nodes[1].write(enable, None);
    heal(&mut nodes);
    assert_eq!(nodes[0].view(), View::Flag(true));
    let seen = nodes[0].read().context;
    nodes[0].write(disable, Some(&seen));
    heal(&mut nodes);
    assert_eq!(nodes[1].view(), View::Flag(false));
}

#[test]
fn of_concurrent_assignments_the_last_one_shows_and_both_are_replaced_by_the_next() {
    let assign = |value: &str, stamp| TypedUpdate {
        stamp: Stamp(stamp),
        ..update(Operation::Leaf(LeafOperation::Assign(bytes(value))))
    };
    let mut nodes = cluster::<2>(REGISTER);
    nodes[0].update(assign("late", 9)).unwrap();
    nodes[1].update(assign("early", 5)).unwrap();
    heal(&mut nodes);
    assert_eq!(nodes[1].view(), View::Register(Some(bytes("late"))));
    // One who knows both replaces them, whatever the clocks say.
    nodes[1].update(assign("next", 1)).unwrap();
    heal(&mut nodes);
    assert_eq!(nodes[0].view(), View::Register(Some(bytes("next"))));
}

/// D53: a retry counts once, here, elsewhere, and where the two attempts meet.
#[test]
fn a_retried_increment_counts_once() {
    let attempt = || TypedUpdate {
        op_id: Some(op_id(7)),
        ..update(increment(5))
    };
    let mut nodes = cluster::<3>(COUNTER);
    let first = nodes[0].update(attempt()).unwrap();
    let again = nodes[0].update(attempt()).unwrap();
    assert!(again.replayed && again.dot == first.dot);
    assert_eq!(nodes[0].view(), View::Counter(5));

    // The second node has not heard of it.
    assert!(!nodes[1].update(attempt()).unwrap().replayed);
    nodes[1].write(increment(100), None);
    nodes[0].write(increment(1_000), None);
    heal(&mut nodes);
    assert_eq!(nodes[2].view(), View::Counter(1_105));
    assert_eq!(nodes[2].update(attempt()).unwrap().dot, first.dot);

    // Taking it out for good, while another copy still has both.
    nodes[0].write(increment(10_000), None);
    heal(&mut nodes);
    assert_eq!(nodes[1].view(), View::Counter(11_105));
    assert!(nodes[1].update(attempt()).unwrap().replayed);
}

/// A context that knows more of this node's own writes than the node does: its dots are not given again, or the removal
/// that claims them would take what was added later.
#[test]
fn a_dot_that_a_removal_claims_is_never_given() {
    let mut node = Replica::new(SET, 1);
    let older = (node.write(add("y"), None).state, node.entry);
    node.write(add("x"), None);
    let seen = node.read().context;
    // The volume is an older one, and nothing shows it but the context.
    (node.record, node.entry) = (Some(older.0), older.1);
    node.write(remove("x"), Some(&seen));
    node.write(add("x"), None);
    node.write(add("x"), None);
    assert_eq!(node.view(), set_of(&["x", "y"]));
}

/// The window is bounded, so the value is; nothing is lost or counted twice as op ids are forgotten.
#[test]
fn forgetting_op_ids_forgets_no_increment() {
    let mut nodes = cluster::<2>(COUNTER);
    let mut largest = 0;
    let writes = i64::try_from(3 * OP_IDS_MAX).unwrap();
    for number in 0..writes {
        let attempt = TypedUpdate {
            op_id: Some(op_id(number.cast_unsigned())),
            ..update(increment(1))
        };
        let done = nodes[0].update(attempt.clone()).unwrap();
        if number % 7 == 0 {
            nodes[1].merge(&done.delta);
            assert!(nodes[1].update(attempt).unwrap().replayed);
        }
        largest = largest.max(nodes[0].state().encode().len());
        assert_eq!(nodes[0].view(), View::Counter(number + 1));
    }
    heal(&mut nodes);
    assert_eq!(nodes[1].view(), View::Counter(writes));
    assert!(largest < 40 * OP_IDS_MAX, "{largest} bytes");
}

/// Nodes come and go: what they leave behind is bounded, and counts.
#[test]
fn many_actors_share_the_op_ids_that_are_remembered() {
    let mut node = Replica::new(COUNTER, 1);
    let mut number = 0;
    for life in 0..20 {
        node.minter = minter(life);
        for _ in 0..100 {
            number += 1;
            let attempt = TypedUpdate {
                op_id: Some(op_id(number)),
                ..update(increment(1))
            };
            node.update(attempt.clone()).unwrap();
            assert!(node.update(attempt).unwrap().replayed);
        }
    }
    assert_eq!(node.view(), View::Counter(2_000));
    let bytes = node.state().encode().len();
    assert!(bytes < 45_000, "{bytes} bytes");
}

/// Amnesia: a store that lost the record, or that is older than its own memory, never takes its total back.
#[test]
fn a_lost_record_takes_no_increment_with_it() {
    let mut nodes = cluster::<2>(COUNTER);
    nodes[0].write(increment(1), None);
    let old = nodes[0].state();
    nodes[0].write(increment(10), None);
    nodes[1].merge(&nodes[0].state());
    // The record is gone, the entry is not.
    nodes[0].record = None;
    nodes[0].write(increment(100), None);
    heal(&mut nodes);
    assert_eq!(nodes[1].view(), View::Counter(111));
    // The record is an older one.
    nodes[0].record = Some(old);
    nodes[0].write(increment(1_000), None);
    heal(&mut nodes);
    assert_eq!(nodes[0].view(), View::Counter(1_111));
    // Everything is gone.
    nodes[0] = Replica::new(COUNTER, 99);
    nodes[0].write(increment(10_000), None);
    heal(&mut nodes);
    assert_eq!(nodes[0].view(), View::Counter(11_111));
}

#[test]
fn a_map_changes_all_its_fields_at_once_and_loses_one_as_it_was_seen() {
    let mut nodes = cluster::<2>(DataType::Map);
    let part = |name, operation| FieldOperation::Update {
        name: bytes(name),
        operation,
    };
    let all = Operation::Map(vec![
        part("a", LeafOperation::Increment(-3)),
        part("a", LeafOperation::Add(vec![bytes("x"), bytes("y")])),
        part("on", LeafOperation::Enable),
        part("name", LeafOperation::Assign(bytes("cart"))),
    ]);
    nodes[0].write(all, None);
    heal(&mut nodes);
    let seen = nodes[1].read().context;
    nodes[0].write(in_field("a", LeafOperation::Add(vec![bytes("z")])), None);
    let gone = Operation::Map(vec![
        FieldOperation::Remove(field(LeafType::Set, "a")),
        FieldOperation::Remove(field(LeafType::Counter, "a")),
        FieldOperation::Remove(field(LeafType::Register, "name")),
    ]);
    nodes[1].write(gone, Some(&seen));
    heal(&mut nodes);
    let left = View::Map(vec![
        (field(LeafType::Set, "a"), set_of(&["z"])),
        (field(LeafType::Flag, "on"), View::Flag(true)),
    ]);
    assert_eq!(nodes[0].view(), left);
    assert_eq!(nodes[0].state().encode(), nodes[1].state().encode());
}

#[test]
fn a_deleted_key_begins_anew_and_an_update_beats_a_delete_that_did_not_know_it() {
    let mut nodes = cluster::<2>(COUNTER);
    nodes[0].write(increment(5), None);
    heal(&mut nodes);
    let delete = Update {
        content: Content::Tombstone,
        context: nodes[1].read().context,
        op_id: None,
        stamp: Stamp(2),
        expires_at_ms: None,
    };
    let done = replica::coordinate(
        nodes[1].record.as_ref(),
        None,
        &mut minter(50),
        delete,
        replica::SiblingCaps::NONE,
    )
    .unwrap();
    let before = nodes[0].state();
    nodes[1].merge(&done.state);
    assert_eq!(crdt::read(COUNTER, &nodes[1].state(), 0), Ok(None));
    nodes[1].write(increment(1), None);
    nodes[0].merge(&nodes[1].state());
    nodes[0].merge(&before);
    assert_eq!(nodes[0].view(), View::Counter(1));
    nodes[0].write(increment(2), None);
    assert_eq!(nodes[0].view(), View::Counter(3));
}

/// D17: an expired value counts for nothing, also for the next write.
#[test]
fn an_expired_value_is_not_built_upon() {
    let mut node = Replica::new(COUNTER, 1);
    let expiring = TypedUpdate {
        expires_at_ms: Some(1_000),
        ..update(increment(5))
    };
    node.update(expiring).unwrap();
    assert_eq!(
        crdt::read(COUNTER, &node.state(), 999).unwrap().unwrap().view,
        View::Counter(5)
    );
    assert_eq!(crdt::read(COUNTER, &node.state(), 1_000), Ok(None));
    let later = TypedUpdate {
        wall_ms: 1_000,
        ..update(increment(2))
    };
    node.update(later).unwrap();
    assert_eq!(
        crdt::read(COUNTER, &node.state(), 1_000).unwrap().unwrap().view,
        View::Counter(2)
    );
}

#[test]
fn what_breaks_a_limit_changes_nothing() {
    let check = |data_type, operation: Operation| operation.check(data_type).unwrap_err();
    assert_eq!(check(SET, increment(1)), OperationError::WrongType(SET));
    assert_eq!(
        check(DataType::Map, add("x")),
        OperationError::WrongType(DataType::Map)
    );
    assert_eq!(
        check(DataType::Map, Operation::Map(vec![])),
        OperationError::Parts(0)
    );
    let nameless = in_field("", LeafOperation::Enable);
    assert_eq!(check(DataType::Map, nameless), OperationError::FieldName(0));
    let long = Operation::Leaf(LeafOperation::Add(vec![Bytes::from(vec![0; 70_000])]));
    assert_eq!(check(SET, long), OperationError::Element(70_000));

    let mut node = Replica::new(COUNTER, 1);
    node.write(increment(i64::MAX - 1), None);
    let before = node.state();
    assert_eq!(node.update(update(increment(2))), Err(TypedRefused::Overflow));
    assert_eq!(
        node.update(update(increment(i64::MIN))),
        Err(TypedRefused::Overflow)
    );
    assert_eq!(node.state(), before);

    let mut node = Replica::new(SET, 1);
    let tight = |operation, context| TypedUpdate {
        value_bytes_max: 60,
        context,
        ..update(operation)
    };
    node.update(tight(add("short"), None)).unwrap();
    let refused = node.update(tight(add("much longer than that which was added before"), None));
    assert!(
        matches!(refused, Err(TypedRefused::TooLong { bytes_max: 60, .. })),
        "{refused:?}"
    );
    let seen = node.read().context;
    let mut tighter = tight(remove("short"), Some(seen));
    tighter.value_bytes_max = 1;
    node.update(tighter).unwrap();
    assert_eq!(node.view(), set_of(&[]), "removals are always possible");
}

#[test]
fn what_is_no_value_is_an_error_and_never_an_empty_one() {
    let plain = Update {
        content: Content::Value(bytes("plain bytes")),
        context: Seen::new(),
        op_id: None,
        stamp: Stamp(1),
        expires_at_ms: None,
    };
    let state: KeyState = replica::coordinate(None, None, &mut minter(7), plain, replica::SiblingCaps::NONE)
        .unwrap()
        .state;
    assert!(crdt::read(COUNTER, &state, 0).is_err());
    let mut node = Replica::new(COUNTER, 1);
    node.merge(&state);
    assert!(matches!(
        node.update(update(increment(1))),
        Err(TypedRefused::Damaged { .. })
    ));
    let mut set = Replica::new(SET, 1);
    set.write(add("x"), None);
    assert!(crdt::read(COUNTER, &set.state(), 0).is_err(), "of another type");
}
