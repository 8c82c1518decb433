use bytes::Bytes;

use super::*;
use crate::version::{Actor, Stamp};

fn dot(incarnation: u64, counter: u64) -> Dot {
    Dot {
        actor: Actor {
            incarnation,
            epoch: 0,
        },
        counter,
    }
}

fn value(bytes: &'static str) -> Sibling {
    let content = Content::Value(Bytes::from_static(bytes.as_bytes()));
    Sibling {
        stamp: Stamp(0),
        expires_at_ms: None,
        op_id: None,
        content,
    }
}

fn tombstone() -> Sibling {
    Sibling {
        content: Content::Tombstone,
        ..value("")
    }
}

fn operation(id: u8, bytes: &'static str) -> Sibling {
    Sibling {
        op_id: Some([id; 16]),
        ..value(bytes)
    }
}

/// The state of one write.
fn write(context: &[Dot], dot: Dot, sibling: Sibling) -> KeyState {
    KeyState::from_write(&context.iter().copied().collect(), dot, sibling)
}

fn merged(a: &KeyState, b: &KeyState) -> KeyState {
    let mut state = a.clone();
    state.merge(b);
    state
}

fn live(state: &KeyState) -> Vec<(Dot, &[u8])> {
    let live = state.live(0);
    live.into_iter()
        .map(|(dot, sibling)| (dot, sibling.value().unwrap().as_ref()))
        .collect()
}

/// If merge dropped the larger dot of two siblings with one op id, A ⊔ B would forget d2, the overwrite A' of d1
/// would then leave {d3}, while A ⊔ (B ⊔ A') would leave {d2, d3}. Ours keeps both in the record and drops the retry
/// from what a reader gets.
#[test]
fn retries_collapse_on_read_because_collapsing_in_a_merge_is_not_associative() {
    let (d1, d2, d3) = (dot(1, 1), dot(2, 1), dot(1, 2));
    let a = write(&[], d1, operation(7, "x"));
    let b = write(&[], d2, operation(7, "x"));
    let a_overwritten = write(&[d1], d3, value("y"));

    let left = merged(&merged(&a, &b), &a_overwritten);
    let right = merged(&a, &merged(&b, &a_overwritten));
    assert_eq!(left, right);
    assert_eq!(left.siblings().keys().copied().collect::<Vec<_>>(), [d3, d2]);

    assert_eq!(live(&merged(&a, &b)), [(d1, b"x".as_slice())]);
    assert_eq!(live(&left), [(d3, b"y".as_slice()), (d2, b"x".as_slice())]);

    // The rule that was rejected, written out, fails on the same three states.
    let collapse = |state: &KeyState| {
        let live: Vec<Dot> = state.live(0).into_iter().map(|(dot, _)| dot).collect();
        let mut siblings = state.siblings().clone();
        siblings.retain(|dot, _| live.contains(dot));
        KeyState {
            seen: state.seen.clone(),
            siblings,
        }
    };
    let rejected = |a: &KeyState, b: &KeyState| collapse(&merged(a, b));
    assert_ne!(
        rejected(&rejected(&a, &b), &a_overwritten),
        rejected(&a, &rejected(&b, &a_overwritten))
    );
}

#[test]
fn one_op_id_with_two_values_hides_neither() {
    let state = merged(
        &write(&[], dot(1, 1), operation(7, "x")),
        &write(&[], dot(2, 1), operation(7, "y")),
    );
    assert_eq!(live(&state).len(), 2);
}

#[test]
fn equal_values_without_an_op_id_are_two_writes() {
    let state = merged(
        &write(&[], dot(1, 1), value("x")),
        &write(&[], dot(2, 1), value("x")),
    );
    assert_eq!(live(&state).len(), 2);
}

/// D3: the value stays, flagged.
#[test]
fn a_tombstone_beside_a_value_is_a_concurrent_delete() {
    let first = write(&[], dot(1, 1), value("x"));
    let deleted = merged(&first, &write(&[dot(1, 1)], dot(2, 1), tombstone()));
    assert!(deleted.is_deleted(0) && deleted.has_tombstone() && live(&deleted).is_empty());

    let put_meanwhile = write(&[dot(1, 1)], dot(3, 1), value("y"));
    let both = merged(&deleted, &put_meanwhile);
    assert!(!both.is_deleted(0) && both.has_tombstone());
    assert_eq!(live(&both), [(dot(3, 1), b"y".as_slice())]);
}

/// D17: at its time a value counts as deleted on every replica, with no change of what replicas compare.
#[test]
fn an_expired_value_reads_as_deleted_and_changes_no_digest() {
    let expiring = Sibling {
        expires_at_ms: Some(1_000),
        ..value("x")
    };
    let state = write(&[], dot(1, 1), expiring);
    let digest = state.digest();
    assert!(!state.is_deleted(999) && state.live(999).len() == 1 && !state.is_reapable(999));
    assert!(state.is_deleted(1_000) && state.live(1_000).is_empty() && state.is_reapable(1_000));
    assert_eq!(
        (state.lww_winner(999).is_some(), state.lww_winner(1_000)),
        (true, None)
    );
    assert!(!state.has_tombstone());
    assert_eq!(KeyState::decode(state.encode()).unwrap().digest(), digest);

    let both = merged(&state, &write(&[], dot(2, 1), value("stays")));
    assert_eq!(live(&both), [(dot(1, 1), b"x".as_slice()), (dot(2, 1), b"stays")]);
    assert_eq!(both.live(1_000).len(), 1);
    assert!(!both.is_reapable(1_000));
}

#[test]
fn a_merge_says_whether_it_changed_anything() {
    let old = write(&[], dot(1, 1), value("x"));
    let new = write(&[dot(1, 1)], dot(1, 2), value("y"));
    let mut state = old.clone();
    assert!(!state.merge(&old));
    assert!(state.merge(&new));
    assert!(!state.merge(&new));
    assert!(!state.merge(&old), "an ancestor changes nothing");
    assert!(!state.merge(&KeyState::new()));
    assert_eq!(state, new);
}

#[test]
fn damage_that_gave_two_values_one_dot_still_converges() {
    let (a, b) = (
        write(&[], dot(1, 1), value("a")),
        write(&[], dot(1, 1), value("b")),
    );
    assert_eq!(merged(&a, &b), merged(&b, &a));
    assert_eq!(live(&merged(&a, &b)), [(dot(1, 1), b"b".as_slice())]);
}

#[test]
fn a_state_without_values_says_the_same_about_what_lives() {
    let state = merged(
        &write(&[], dot(1, 1), value("x")),
        &write(&[], dot(2, 1), tombstone()),
    );
    let hollow = state.without_values();
    assert_eq!(hollow.seen(), state.seen());
    assert!(!hollow.is_deleted(0) && hollow.has_tombstone());
    assert_eq!(live(&hollow), [(dot(1, 1), b"".as_slice())]);
}

#[test]
fn decoded_values_share_the_record_s_memory() {
    let bytes = write(&[], dot(1, 1), value("a value that is not copied")).encode();
    let decoded = KeyState::decode(bytes.clone()).unwrap();
    let value = decoded.siblings()[&dot(1, 1)].value().unwrap().as_ptr_range();
    assert!(bytes.as_ptr_range().start <= value.start && value.end <= bytes.as_ptr_range().end);
}
