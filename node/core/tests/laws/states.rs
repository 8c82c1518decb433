//! Laws of the one replica operation. Paper: §4.4; rows D44, D46.

use bytes::Bytes;
use dynamo_core::replica::{self, Minter, Update};
use dynamo_core::types::Incarnation;
use dynamo_core::version::{Content, Dot, KeyState, Seen, Stamp};
use proptest::prelude::*;

use super::strategies::{any_state, config, content, merged, seen, state};

fn dots(state: &KeyState) -> Vec<Dot> {
    state.siblings().keys().copied().collect()
}

/// A put at a node that has coordinated nothing before.
fn put(stored: &KeyState, context: Seen, content: Content) -> replica::Coordinated {
    let mut minter = Minter::new(
        Incarnation {
            generation: 1,
            id: 77,
        },
        0,
    );
    let update = Update {
        content,
        context,
        op_id: None,
        stamp: Stamp(1),
        expires_at_ms: None,
    };
    replica::coordinate(
        Some(stored),
        None,
        &mut minter,
        update,
        replica::SiblingCaps::NONE,
    )
    .unwrap()
}

proptest! {
    #![proptest_config(config(15_000))]

    #[test]
    fn merge_is_idempotent_commutative_and_associative(a in any_state(), b in any_state(), c in any_state()) {
        prop_assert_eq!(&merged(&a, &a), &a);
        prop_assert_eq!(&merged(&a, &b), &merged(&b, &a));
        let (left, right) = (merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
        prop_assert_eq!(left.encode(), right.encode(), "byte for byte");
        prop_assert_eq!(left, right);
        prop_assert_eq!(merged(&a, &KeyState::new()), a);
    }

    /// The same in a cluster that works, where a dot names one write. A merge reports a change exactly if there is
    /// one, and what has been merged once never changes anything again.
    #[test]
    fn merge_only_climbs(a in state(), b in state(), c in state()) {
        let mut both = a.clone();
        prop_assert_eq!(both.merge(&b), both != a);
        prop_assert_eq!(merged(&both, &c), merged(&a, &merged(&b, &c)));
        prop_assert!(!both.clone().merge(&a) && !both.clone().merge(&b));
        prop_assert!(both.seen().descends(a.seen()) && both.seen().descends(b.seen()));
        for dot in both.siblings().keys() {
            prop_assert!(both.seen().contains(dot));
            let known_dead = |state: &KeyState| state.seen().contains(dot) && !state.siblings().contains_key(dot);
            prop_assert!(!known_dead(&a) && !known_dead(&b), "D46: {} was superseded", dot);
        }
    }

    /// A put drops what its context covers and nothing else, at the coordinator and wherever its delta goes; sending
    /// the delta or the whole record comes to the same.
    #[test]
    fn a_put_supersedes_exactly_what_its_context_covers(
        here in state(), there in state(), context in seen(), content in content(),
    ) {
        let done = put(&here, context.clone(), content);
        let expect = |before: &KeyState| -> Vec<Dot> {
            let mut dots: Vec<Dot> = dots(before).into_iter().filter(|dot| !context.contains(dot)).collect();
            dots.push(done.dot);
            dots
        };
        prop_assert_eq!(dots(&done.state), expect(&here));
        prop_assert_eq!(dots(&merged(&there, &done.delta)), expect(&there));
        prop_assert_eq!(merged(&here, &done.delta), done.state.clone());
        prop_assert_eq!(
            merged(&merged(&there, &here), &done.delta), merged(&there, &done.state), "delta or record"
        );
        let mut known = here.seen().clone();
        known.union(&context);
        prop_assert!(known.insert(done.dot), "the dot is new");
        prop_assert_eq!(done.state.seen(), &known);
    }

    /// What a reader gets: every value that has not expired, except that a retry shows once; and its context covers
    /// all of them. Neither bytes nor digest know the time (D17).
    #[test]
    fn a_reader_gets_every_value_once_and_a_context_for_all(state in any_state(), wall_ms in any::<u64>()) {
        let live = state.live(wall_ms);
        let shown = |sibling| live.iter().any(|(_, other)| *other == sibling || other.same_operation(sibling));
        for sibling in state.siblings().values() {
            let expired = sibling.expires_at_ms.is_some_and(|at| at <= wall_ms);
            prop_assert!(shown(sibling) || sibling.content == Content::Tombstone || expired);
        }
        for (index, (_, sibling)) in live.iter().enumerate() {
            prop_assert!(sibling.expires_at_ms.is_none_or(|at| at > wall_ms) && sibling.value().is_some());
            prop_assert!(live[..index].iter().all(|(_, earlier)| !earlier.same_operation(sibling)));
        }
        prop_assert_eq!(state.is_deleted(wall_ms), live.is_empty());
        prop_assert_eq!(state.is_reapable(wall_ms), live.is_empty());
        let done = put(&state, state.context_seen(), Content::Value(Bytes::from_static(b"resolved")));
        prop_assert_eq!(dots(&done.state), [done.dot]);
    }

    /// D48: replicas that have heard of the same writes, in whatever order, name the same winner; nothing that any of
    /// them keeps is later than it.
    #[test]
    fn the_last_write_is_the_same_on_all_replicas(a in any_state(), b in any_state(), wall_ms in any::<u64>()) {
        let (left, right) = (merged(&a, &b), merged(&b, &a));
        let winner = left.lww_winner(wall_ms);
        prop_assert_eq!(winner, right.lww_winner(wall_ms));
        let last = left.siblings().iter().map(|(dot, sibling)| (sibling.stamp, *dot)).max();
        match winner {
            Some((dot, sibling)) => {
                prop_assert_eq!(Some((sibling.stamp, dot)), last);
                prop_assert!(sibling.is_live(wall_ms));
            }
            None => prop_assert!(last.is_none_or(|(_, dot)| !left.siblings()[&dot].is_live(wall_ms))),
        }
    }

    #[test]
    fn records_are_read_as_they_were_written(state in any_state(), other in any_state()) {
        let bytes = state.encode();
        let decoded = KeyState::decode(bytes.clone());
        prop_assert_eq!(decoded.as_ref(), Ok(&state));
        prop_assert_eq!(decoded.map(|state| state.encode()), Ok(bytes.clone()));
        prop_assert_eq!(state == other, bytes == other.encode());
        prop_assert_eq!(state == other, state.digest() == other.digest());
    }
}
