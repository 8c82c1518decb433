//! Random values from a small universe, so that coincidences are common.

use std::collections::BTreeMap;

use bytes::Bytes;
use dynamo_core::version::{Actor, Content, Dot, KeyState, Seen, Sibling, Stamp};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

/// Settings of a property that runs `cases` times in a release build.
pub(crate) fn config(cases: u32) -> Config {
    let seed = std::env::var("DYNAMO_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    Config {
        cases: if cfg!(debug_assertions) { cases / 20 } else { cases },
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed.unwrap_or(0xd1_4a30)),
        ..Config::default()
    }
}

pub(crate) fn actor() -> impl Strategy<Value = Actor> {
    (0..2u64, 0..2u64).prop_map(|(incarnation, epoch)| Actor { incarnation, epoch })
}

pub(crate) fn dot() -> impl Strategy<Value = Dot> {
    (actor(), 1..=6u64).prop_map(|(actor, counter)| Dot { actor, counter })
}

pub(crate) fn dots() -> impl Strategy<Value = Vec<Dot>> {
    prop::collection::vec(dot(), 0..16)
}

pub(crate) fn seen() -> impl Strategy<Value = Seen> {
    dots().prop_map(Seen::from_iter)
}

/// Sets as wide as the format allows.
pub(crate) fn wide_seen() -> impl Strategy<Value = Seen> {
    let counter = prop_oneof![1..=9u64, 1..=1_000_000u64, (1 << 48) - 9..=(1u64 << 48) - 1];
    let wide = (any::<u64>(), any::<u64>()).prop_map(|(incarnation, epoch)| Actor { incarnation, epoch });
    let dot = (prop_oneof![actor(), wide], counter).prop_map(|(actor, counter)| Dot { actor, counter });
    prop::collection::vec(dot, 0..12).prop_map(Seen::from_iter)
}

pub(crate) fn content() -> impl Strategy<Value = Content> {
    let value = prop_oneof![
        Just(Vec::new()),
        Just(b"x".to_vec()),
        prop::collection::vec(any::<u8>(), 0..40)
    ];
    prop_oneof![
        Just(Content::Tombstone),
        value.prop_map(|value| Content::Value(Bytes::from(value)))
    ]
}

pub(crate) fn sibling() -> impl Strategy<Value = Sibling> {
    let op_id = prop::option::of((0..3u8).prop_map(|id| [id; 16]));
    (any::<u64>(), prop::option::of(any::<u64>()), op_id, content()).prop_map(
        |(stamp, expires_at_ms, op_id, content)| Sibling {
            stamp: Stamp(stamp),
            expires_at_ms,
            op_id,
            content,
        },
    )
}

/// The one write that bears a dot: equal dots have equal values.
pub(crate) fn written(dot: Dot) -> Sibling {
    let content = match dot.counter % 4 {
        0 => Content::Tombstone,
        _ => Content::Value(Bytes::from(dot.to_string())),
    };
    let op_id = (dot.counter.is_multiple_of(3)).then_some([1; 16]);
    Sibling {
        stamp: Stamp(dot.counter),
        expires_at_ms: None,
        op_id,
        content,
    }
}

/// A state that has seen `dead` and holds `siblings`; with no siblings, only sets of other than one dot can be built.
pub(crate) fn state_of(dead: &Seen, siblings: &BTreeMap<Dot, Sibling>) -> KeyState {
    let mut state = KeyState::new();
    for (dot, sibling) in siblings {
        // Merged apart from `dead`, which a sibling's own dot must not be in.
        state.merge(&KeyState::from_write(&Seen::new(), *dot, sibling.clone()));
    }
    let dead: Vec<Dot> = all_dots(dead)
        .into_iter()
        .filter(|dot| !siblings.contains_key(dot))
        .collect();
    match siblings.iter().next() {
        Some((dot, sibling)) => {
            state.merge(&KeyState::from_write(
                &Seen::from_iter(dead),
                *dot,
                sibling.clone(),
            ));
        }
        None => {
            // Each of two writes supersedes the other: contexts can be forged.
            if let [first, .., last] = dead.as_slice() {
                for (own, other) in [(*first, *last), (*last, *first)] {
                    let rest = dead.iter().copied().filter(|dot| *dot != own).chain([other]);
                    state.merge(&KeyState::from_write(&rest.collect(), own, written(own)));
                }
            }
        }
    }
    state
}

/// States in which a dot always names the same write, as in a running cluster.
pub(crate) fn state() -> impl Strategy<Value = KeyState> {
    (dots(), dots()).prop_map(|(dead, live)| {
        let live = live.into_iter().take(5).map(|dot| (dot, written(dot))).collect();
        state_of(&Seen::from_iter(dead), &live)
    })
}

/// States in which a dot may name anything, as after damage; numbers as wide as the format allows.
pub(crate) fn any_state() -> impl Strategy<Value = KeyState> {
    let dead =
        prop_oneof![seen(), wide_seen()].prop_filter("few enough dots", |seen| seen.entries().len() < 20);
    (dead, prop::collection::btree_map(dot(), sibling(), 0..5))
        .prop_map(|(dead, siblings)| state_of(&dead, &siblings))
}

/// Every dot of a small set; of a large one, the ends of its runs.
pub(crate) fn all_dots(seen: &Seen) -> Vec<Dot> {
    let mut dots = Vec::new();
    for entry in seen.entries() {
        let vector = (entry.counter > 0).then_some((1, entry.counter));
        let beyond = entry.beyond.iter().map(|run| (run.first, run.last));
        for (first, last) in vector.into_iter().chain(beyond) {
            let counters = if last - first < 100 {
                (first..=last).collect()
            } else {
                vec![first, last]
            };
            dots.extend(counters.into_iter().map(|counter| Dot {
                actor: entry.actor,
                counter,
            }));
        }
    }
    dots
}

pub(crate) fn merged(a: &KeyState, b: &KeyState) -> KeyState {
    let mut merged = a.clone();
    merged.merge(b);
    merged
}
