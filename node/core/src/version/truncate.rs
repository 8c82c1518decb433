//! Shorter clocks: what may be forgotten about nodes that write no more. Paper: §4.4 (clock truncation).

use std::collections::{BTreeMap, BTreeSet};

use super::dot::Actor;
use super::state::KeyState;

/// Proposes the record with at most `threshold` actors in what it has seen; `None` if it is short enough, or if
/// nothing may be dropped. As many actors as are allowed to go, if they are too few. Row D51.
///
/// Dropped are actors that will write no more and have no sibling here: those whom `retired` names (their incarnation
/// is over), and earlier epochs of an incarnation that has a later one in this record. Lower epochs go first, then
/// smaller incarnations: clocks hold no times (the paper's oldest entry first would need one).
///
/// Only a proposal. Whoever has forgotten a dot takes its value for new when it comes back, so the record is replaced
/// on all primaries at once, by the two phases of reaping, and never in a merge: there, a copy that still knows the
/// dots would bring them back, and the replicas would never agree. Should an overwritten value survive somewhere in
/// spite of that, it shows as a sibling too many; no acknowledged write is lost. Equal records give equal proposals.
pub fn truncated(state: &KeyState, threshold: usize, retired: &dyn Fn(Actor) -> bool) -> Option<KeyState> {
    let excess = state.seen().actors().count().checked_sub(threshold)?;
    let live: BTreeSet<Actor> = state.siblings().keys().map(|dot| dot.actor).collect();
    let latest: BTreeMap<u64, u64> = state
        .seen()
        .actors()
        .map(|actor| (actor.incarnation, actor.epoch))
        .collect();
    let superseded = |actor: &Actor| {
        latest
            .get(&actor.incarnation)
            .is_some_and(|epoch| actor.epoch < *epoch)
    };
    let mut droppable: Vec<Actor> = state
        .seen()
        .actors()
        .filter(|actor| !live.contains(actor) && (superseded(actor) || retired(*actor)))
        .collect();
    droppable.sort_unstable_by_key(|actor| (actor.epoch, actor.incarnation));
    droppable.truncate(excess);
    if droppable.is_empty() {
        return None;
    }
    let dropped: BTreeSet<Actor> = droppable.into_iter().collect();
    let seen = state.seen().without_actors(&dropped);
    Some(KeyState::from_parts(seen, state.siblings().clone()))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::version::{Content, Dot, Seen, Sibling, Stamp};

    fn dot(incarnation: u64, epoch: u64, counter: u64) -> Dot {
        Dot {
            actor: Actor { incarnation, epoch },
            counter,
        }
    }

    fn value(bytes: &'static str) -> Sibling {
        Sibling {
            stamp: Stamp(0),
            expires_at_ms: None,
            op_id: None,
            content: Content::Value(Bytes::from_static(bytes.as_bytes())),
        }
    }

    /// One write by each of so many nodes, each knowing the one before.
    fn chain(nodes: u64) -> KeyState {
        let mut state = KeyState::new();
        for node in 1..=nodes {
            state.merge(&KeyState::from_write(
                &state.seen().clone(),
                dot(node, 0, 1),
                value("v"),
            ));
        }
        state
    }

    fn actors(state: &KeyState) -> Vec<u64> {
        state.seen().actors().map(|actor| actor.incarnation).collect()
    }

    /// D51: threshold 10 and 12 retired coordinators besides the one whose value is live.
    #[test]
    fn as_many_retired_actors_are_dropped_as_exceed_the_threshold() {
        let state = chain(13);
        let short = truncated(&state, 10, &|_| true).unwrap();
        assert_eq!(actors(&short), (4..=13).collect::<Vec<_>>());
        assert_eq!(short.siblings(), state.siblings());
        assert_eq!(truncated(&short, 10, &|_| true), None, "short enough");
        assert_eq!(KeyState::decode(short.encode()), Ok(short));
    }

    #[test]
    fn whoever_may_write_again_or_has_a_sibling_is_kept() {
        let state = chain(13);
        assert_eq!(truncated(&state, 10, &|_| false), None);
        let some = truncated(&state, 10, &|actor| actor.incarnation == 7).unwrap();
        assert_eq!(actors(&some), (1..=13).filter(|n| *n != 7).collect::<Vec<_>>());
        assert_eq!(actors(&truncated(&state, 0, &|_| true).unwrap()), [13]);
    }

    #[test]
    fn an_earlier_epoch_of_the_same_incarnation_is_retired_by_itself() {
        let mut state = KeyState::new();
        for epoch in [3, 5, 9] {
            let seen: Seen = state.seen().clone();
            state.merge(&KeyState::from_write(&seen, dot(1, epoch, 1), value("v")));
        }
        let seen: Seen = state.seen().clone();
        state.merge(&KeyState::from_write(&seen, dot(2, 0, 1), value("w")));
        let short = truncated(&state, 1, &|_| false).unwrap();
        let left: Vec<Actor> = short.seen().actors().collect();
        assert_eq!(left, [dot(1, 9, 1).actor, dot(2, 0, 1).actor]);
    }

    /// Why it is no part of a merge: one that knows the dots brings them back. And why it is safe: the ancestor that
    /// comes back is a sibling too many, and the live value stays.
    #[test]
    fn what_was_forgotten_comes_back_beside_the_live_value() {
        let state = chain(3);
        let mut short = truncated(&state, 1, &|_| true).unwrap();
        short.merge(&KeyState::from_write(
            &Seen::new(),
            dot(1, 0, 1),
            value("overwritten"),
        ));
        assert_eq!(short.siblings().len(), 2);
        assert!(short.siblings().contains_key(&dot(3, 0, 1)));
        short.merge(&state);
        assert_eq!(short, state);
    }
}
