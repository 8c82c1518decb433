//! Sets of dots against plain sets.

use std::collections::BTreeSet;

use dynamo_core::version::{COUNTER_MAX, Dot, Seen};
use proptest::prelude::*;

use super::strategies::{all_dots, config, dot, dots};

fn naive(dots: &[Dot]) -> BTreeSet<Dot> {
    dots.iter().copied().collect()
}

proptest! {
    #![proptest_config(config(20_000))]

    #[test]
    fn a_seen_is_the_set_of_its_dots(dots in dots(), probe in dot()) {
        let (mut seen, mut oracle) = (Seen::new(), BTreeSet::new());
        for dot in dots {
            prop_assert_eq!(seen.insert(dot), oracle.insert(dot));
            prop_assert_eq!(seen.contains(&probe), oracle.contains(&probe));
        }
        prop_assert_eq!(seen.is_empty(), oracle.is_empty());
        let highest = oracle.iter().filter(|dot| dot.actor == probe.actor).map(|dot| dot.counter).max();
        prop_assert_eq!(seen.counter_max(probe.actor), highest.unwrap_or(0));
        prop_assert_eq!(BTreeSet::from_iter(all_dots(&seen)), oracle);
    }

    #[test]
    fn equal_sets_are_equal_values_in_whatever_order_they_grew(dots in dots(), rotation in 0..16usize) {
        let mut other = dots.clone();
        other.rotate_left(rotation.min(dots.len()));
        other.reverse();
        prop_assert_eq!(Seen::from_iter(dots), Seen::from_iter(other));
    }

    #[test]
    fn union_and_comparison_are_those_of_sets(a in dots(), b in dots(), c in dots()) {
        let (left, right) = (Seen::from_iter(a.clone()), Seen::from_iter(b.clone()));
        let (a, b) = (naive(&a), naive(&b));
        let mut union = left.clone();
        prop_assert_eq!(union.union(&right), !b.is_subset(&a));
        prop_assert_eq!(BTreeSet::from_iter(all_dots(&union)), a.union(&b).copied().collect::<BTreeSet<_>>());
        prop_assert_eq!(&union, &a.union(&b).copied().collect::<Seen>());
        prop_assert!(!union.union(&left) && !union.union(&right), "idempotent");

        let without: BTreeSet<Dot> = a.difference(&b).copied().collect();
        prop_assert_eq!(left.without(&right), without.into_iter().collect::<Seen>());
        prop_assert_eq!(left.descends(&right), b.is_subset(&a));
        prop_assert_eq!(left.dominates(&right), b.is_subset(&a) && a != b);
        prop_assert_eq!(left.concurrent(&right), !b.is_subset(&a) && !a.is_subset(&b));
        prop_assert!(union.descends(&left) && union.descends(&right));

        let third = Seen::from_iter(c);
        let (mut one, mut other) = (union, right);
        one.union(&third);
        other.union(&third);
        other.union(&left);
        prop_assert_eq!(one, other, "commutative and associative");
    }
}

#[test]
fn dots_beyond_a_gap_join_the_vector_when_it_closes() {
    let dot = |counter| Dot {
        actor: dynamo_core::version::Actor {
            incarnation: 1,
            epoch: 2,
        },
        counter,
    };
    let mut seen = Seen::from_iter([1, 2, 5, 6, 8].map(dot));
    let shape = |seen: &Seen| {
        let entries = seen.entries();
        entries
            .map(|entry| (entry.counter, format!("{:?}", entry.beyond)))
            .collect::<Vec<_>>()
    };
    assert_eq!(shape(&seen), [(2, "[5..=6, 8]".to_owned())]);
    seen.insert(dot(7));
    assert_eq!(shape(&seen), [(2, "[5..=8]".to_owned())]);
    seen.union(&Seen::from_iter([3, 4].map(dot)));
    assert_eq!(shape(&seen), [(8, "[]".to_owned())]);
    assert_eq!(shape(&Seen::from_iter([dot(4)])), [(0, "[4]".to_owned())]);
}

#[test]
fn counters_out_of_bounds_are_no_dots() {
    let dot = |counter| Dot {
        actor: dynamo_core::version::Actor {
            incarnation: 1,
            epoch: 2,
        },
        counter,
    };
    let mut seen = Seen::new();
    assert!(!seen.insert(dot(0)) && !seen.insert(dot(COUNTER_MAX + 1)) && !seen.insert(dot(u64::MAX)));
    assert!(seen.insert(dot(COUNTER_MAX)) && seen.insert(dot(COUNTER_MAX - 1)));
    assert_eq!(seen.counter_max(dot(1).actor), COUNTER_MAX);
}
