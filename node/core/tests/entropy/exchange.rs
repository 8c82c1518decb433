//! Exchanges in which nothing fails. D38, test A.

use bytes::Bytes;
use dynamo_core::entropy::exchange::{HASHES_PER_MESSAGE, KEYS_PER_MESSAGE};
use dynamo_core::entropy::{ExchangeEffect, ExchangeEvent, Mode, has_news_for};
use dynamo_core::listing::Position;
use dynamo_core::version::{Content, KeyState};

use super::support::{Random, Replica, Session, Traffic, equal_pair, exchange, exchange_while, keys};

/// How a key came to differ: as many each.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Diverged {
    /// `a` has missed it.
    a_behind: u64,
    /// `b` has missed it.
    b_behind: u64,
    /// Both have something that the other lacks.
    concurrent: u64,
}

fn diverge(a: &mut Replica, b: &mut Replica, keys: &[Position], random: &mut Random) -> Diverged {
    let mut diverged = Diverged::default();
    for key in keys {
        match random.below(6) {
            0 => a.put(key, "newer at a"),
            1 => a.write(key, Content::Tombstone, None, false),
            2 => b.put(key, "newer at b"),
            3 => b.set(key, None),
            4 => a.set(key, None),
            _ => {
                a.put(key, "at a");
                b.put(key, "at b");
            }
        }
        match (a.records.get(key), b.records.get(key)) {
            (None, Some(_)) => diverged.a_behind += 1,
            (Some(_), None) => diverged.b_behind += 1,
            (Some(ours), Some(theirs)) => match (has_news_for(theirs, ours), has_news_for(ours, theirs)) {
                (true, true) => diverged.concurrent += 1,
                (true, false) => diverged.a_behind += 1,
                (false, _) => diverged.b_behind += 1,
            },
            (None, None) => unreachable!("one of them keeps it"),
        }
    }
    diverged
}

fn merged(states: [Option<&KeyState>; 2]) -> KeyState {
    let mut all = KeyState::new();
    for state in states.into_iter().flatten() {
        all.merge(state);
    }
    all
}

/// Test A: one message, and a few bytes.
#[test]
fn test_a_an_exchange_of_equal_trees_is_one_message() {
    for count in [0, 1, 20_000] {
        let (mut a, mut b) = equal_pair(&keys(count));
        let traffic = exchange(&mut a, &mut b, Mode::Both);
        assert!(traffic.report.complete && traffic.report.finished);
        assert_eq!((traffic.messages, traffic.report.hashes_compared), (1, 1));
        assert_eq!(traffic.report.keys_compared, 0);
        assert!(traffic.bytes <= 8 << 10, "{} bytes", traffic.bytes);
    }
}

/// D38: both directions. Every key that differs travels once, twice only where both sides have something new, and what
/// comes out is the merge of both.
#[test]
fn d38_replicas_that_differ_become_equal_in_one_exchange() {
    let all = keys(3000);
    for seed in 0..30 {
        let mut random = Random::new(seed);
        let (mut a, mut b) = equal_pair(&all);
        // From one key to all of them.
        let count = [1, 10, 300, 3000][seed as usize % 4];
        let begin = random.below(all.len() + 1 - count);
        let differing = &all[begin..begin + count];
        let diverged = diverge(&mut a, &mut b, differing, &mut random);
        let expected: Vec<KeyState> = all
            .iter()
            .map(|key| merged([a.records.get(key), b.records.get(key)]))
            .collect();
        let Traffic { report, .. } = exchange(&mut a, &mut b, Mode::Both);
        assert!(report.complete && report.finished, "seed {seed}");
        for (key, expected) in all.iter().zip(expected) {
            assert_eq!(a.records.get(key), Some(&expected), "seed {seed}: a");
            assert_eq!(b.records.get(key), Some(&expected), "seed {seed}: b");
        }
        assert_eq!(a.tree(), b.tree());
        assert_eq!(
            report.keys_pulled,
            diverged.a_behind + diverged.concurrent,
            "seed {seed}: {diverged:?}"
        );
        assert_eq!(
            report.keys_pushed,
            diverged.b_behind + diverged.concurrent,
            "seed {seed}: {diverged:?}"
        );
        assert_eq!(
            exchange(&mut a, &mut b, Mode::Both).messages,
            1,
            "then they are equal"
        );
    }
}

/// Test A in small: one of three replicas has missed updates, whichever of them begins.
#[test]
fn test_a_keys_shipped_are_the_keys_that_diverged() {
    let all = keys(20_000);
    for behind_begins in [true, false] {
        let (mut behind, mut ahead) = equal_pair(&all);
        let diverged = 1000;
        for key in all.iter().step_by(all.len() / diverged) {
            ahead.put(key, "missed by the other");
        }
        let Traffic { report, bytes, .. } = if behind_begins {
            exchange(&mut behind, &mut ahead, Mode::Both)
        } else {
            exchange(&mut ahead, &mut behind, Mode::Both)
        };
        assert_eq!(behind.records, ahead.records);
        let shipped = report.keys_pulled + report.keys_pushed;
        assert!(
            shipped <= diverged as u64 * 105 / 100,
            "{shipped} keys for {diverged} that diverged"
        );
        assert!(
            report.keys_compared <= 40 * diverged as u64,
            "{} keys listed",
            report.keys_compared
        );
        assert!(bytes <= 1 << 20, "{bytes} bytes");
    }
}

/// A few keys cost a walk to their leaves and no more.
#[test]
fn one_key_is_found_among_many_by_a_few_messages() {
    let all = keys(20_000);
    let (mut a, mut b) = equal_pair(&all);
    b.put(&all[77], "newer");
    let traffic = exchange(&mut a, &mut b, Mode::Both);
    // Root, three levels, one list of keys, one record.
    assert_eq!(traffic.messages, 6);
    assert_eq!(traffic.report.hashes_compared, 1 + 3 * 16);
    assert_eq!((traffic.report.keys_pulled, traffic.report.keys_pushed), (1, 0));
    assert!(traffic.bytes <= 8 << 10, "{} bytes", traffic.bytes);
}

/// Leaves with more keys than fit into one message, on both sides or on one alone; every effect's size is checked
/// while it is performed.
#[test]
fn long_lists_are_read_page_by_page() {
    let all = keys(30_000);
    assert!(
        all.len() / 4096 * 64 > KEYS_PER_MESSAGE,
        "64 leaves do not fit into a message"
    );
    let (mut a, mut b) = equal_pair(&all);
    let mut empty = Replica::new(3);
    let traffic = exchange(&mut empty, &mut b, Mode::Both);
    assert_eq!(traffic.report.keys_pulled, all.len() as u64);
    assert_eq!(traffic.report.keys_pushed, 0);
    assert_eq!(empty.records, b.records);

    let mut empty = Replica::new(4);
    let traffic = exchange(&mut a, &mut empty, Mode::Both);
    assert_eq!(traffic.report.keys_pushed, all.len() as u64);
    assert_eq!(empty.records, a.records);

    for (number, key) in all.iter().enumerate() {
        if number % 3 == 0 {
            a.put(key, "newer");
        }
        if number % 4 == 0 {
            b.set(key, None);
        }
    }
    let traffic = exchange(&mut a, &mut b, Mode::Both);
    assert_eq!(traffic.report.keys_pushed, 15_000, "newer, missing or both");
    assert_eq!(traffic.report.keys_pulled, 0);
    assert_eq!(a.records, b.records);
    assert!(traffic.report.hashes_compared > 4096 && HASHES_PER_MESSAGE == 256);
}

/// A store that may hold what others have reaped shows it to nobody.
#[test]
fn pull_only_never_pushes() {
    let all = keys(500);
    for seed in 0..10 {
        let mut random = Random::new(seed);
        let (mut a, mut b) = equal_pair(&all);
        a.suspect = true;
        diverge(&mut a, &mut b, &all, &mut random);
        let (mine, before) = (a.records.clone(), b.records.clone());
        let Traffic { report, .. } = exchange(&mut a, &mut b, Mode::PullOnly);
        assert!(report.complete);
        assert_eq!(report.keys_pushed, 0);
        assert!(report.keys_pulled > 0);
        assert_eq!(b.records, before, "seed {seed}: the peer is as it was");
        for key in &all {
            let expected = merged([mine.get(key), before.get(key)]);
            assert_eq!(a.records[key], expected, "seed {seed}: everything was pulled");
        }
    }
}

/// D38: both replicas take writes, and reap, while they are compared. What the peer had at the beginning is here at
/// the end, and what was reaped stays away.
#[test]
fn an_exchange_over_a_moving_target_is_complete() {
    let all = keys(2000);
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let (mut a, mut b) = equal_pair(&all[..1800]);
        diverge(&mut a, &mut b, &all[..600], &mut random);
        let before = b.records.clone();
        let mut reaped = Vec::new();
        let traffic = exchange_while(&mut a, &mut b, Mode::Both, |a, b| {
            for _ in 0..20 {
                let key = &all[random.below(all.len())];
                match random.below(4) {
                    0 => a.put(key, "meanwhile at a"),
                    1 => b.put(key, "meanwhile at b"),
                    2 => b.write(key, Content::Value(Bytes::from_static(b"beside")), None, true),
                    _ => {
                        // The last two hundred are reaped, by both at once, and written by nobody else.
                        let key = &all[1600 + random.below(200)];
                        a.set(key, None);
                        b.set(key, None);
                        reaped.push(key.clone());
                    }
                }
            }
            // What is written after it was reaped is another record.
            reaped.retain(|key| !a.records.contains_key(key) && !b.records.contains_key(key));
        });
        assert!(traffic.report.complete, "seed {seed}");
        for (key, theirs) in &before {
            let index = all.iter().position(|other| other == key).unwrap();
            if !(1600..1800).contains(&index) {
                let mut ours = a.records[key].clone();
                assert!(
                    !ours.merge(theirs),
                    "seed {seed}: {key:?} was there at the beginning"
                );
            }
        }
        assert!(!reaped.is_empty());
        for key in &reaped {
            assert!(
                !a.records.contains_key(key) && !b.records.contains_key(key),
                "seed {seed}"
            );
        }
        assert_eq!(*a.tree(), a.fold());
        exchange(&mut a, &mut b, Mode::Both);
        assert_eq!(a.records, b.records, "seed {seed}: the next one meets them quiet");
    }
}

/// The peer has reaped, and this replica as well, between the list of keys and the transfer.
#[test]
fn a_key_that_is_gone_meanwhile_is_no_error() {
    let all = keys(40);
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    for key in &all[..20] {
        a.put(key, "only here");
    }
    for key in &all[20..] {
        b.put(key, "only there");
    }
    let mut messages = 0;
    let traffic = exchange_while(&mut a, &mut b, Mode::Both, |a, b| {
        messages += 1;
        // Each list has at most 40 leaves in it: hashes take five effects, lists two.
        if messages == 8 {
            for key in &all {
                a.set(key, None);
                b.set(key, None);
            }
        }
    });
    assert!(messages >= 9, "keys were to be pulled and pushed");
    assert!(traffic.report.complete);
    assert_eq!((traffic.report.keys_pulled, traffic.report.keys_pushed), (0, 0));
    assert!(
        a.records.is_empty() && b.records.is_empty(),
        "nothing is brought back"
    );
}

/// The peer is further with a reaping than this replica: it must not get the record back.
#[test]
fn a_key_that_the_peer_has_reaped_is_not_sent_back_to_it() {
    let all = keys(30);
    let (mut a, mut b) = equal_pair(&all);
    for key in &all {
        a.put(key, "here");
        b.put(key, "there");
    }
    let mut session = Session::new(&a, Mode::Both);
    let mut effect = session.step(ExchangeEvent::Start);
    while !matches!(effect, ExchangeEffect::Done(_)) {
        if matches!(effect, ExchangeEffect::Pull { .. }) {
            for key in &all {
                b.set(key, None);
            }
        }
        let event = session.perform(effect, &mut a, &mut b);
        effect = session.step(event);
    }
    let report = session.traffic.report;
    assert!(report.complete);
    assert_eq!((report.keys_pulled, report.keys_pushed), (0, 0));
    assert!(b.records.is_empty());
}

/// Records that both have marked for reaping are in no tree and in no list.
#[test]
fn what_is_marked_for_reaping_is_not_exchanged() {
    let all = keys(50);
    let (mut a, mut b) = equal_pair(&all);
    for key in &all[..10] {
        a.mark(key);
        b.mark(key);
    }
    // One of the replicas has gone on to the second phase.
    for key in &all[..10] {
        b.set(key, None);
    }
    b.put(&all[20], "newer");
    let traffic = exchange(&mut a, &mut b, Mode::Both);
    assert!(traffic.report.complete);
    assert_eq!((traffic.report.keys_pulled, traffic.report.keys_pushed), (1, 0));
    assert_eq!(b.records.len(), 40, "what was reaped was not brought back");
}

/// What a replica decides to send is what the other one lacks, for all pairs of a random history.
#[test]
fn has_news_for_is_what_a_merge_would_change() {
    let key = &keys(1)[0];
    for seed in 0..50 {
        let mut random = Random::new(seed);
        let mut replicas = [Replica::new(1), Replica::new(2), Replica::new(3)];
        let mut states = Vec::new();
        for _ in 0..12 {
            let (one, other) = (random.below(3), random.below(3));
            match random.below(4) {
                0 => replicas[one].put(key, "value"),
                1 => replicas[one].write(key, Content::Tombstone, None, random.chance(50)),
                2 => replicas[one].write(key, Content::Value(Bytes::from_static(b"beside")), None, true),
                _ => {
                    if let Some(state) = replicas[other].records.get(key).cloned() {
                        replicas[one].merge(key, &state);
                    }
                }
            }
            states.extend(replicas[one].records.get(key).cloned());
        }
        for mine in &states {
            for theirs in states.iter().filter(|theirs| *theirs != mine) {
                let changes = theirs.clone().merge(mine);
                assert_eq!(has_news_for(mine, theirs), changes, "seed {seed}");
                assert_eq!(
                    has_news_for(mine, &theirs.without_values()),
                    changes,
                    "seed {seed}"
                );
            }
        }
    }
}
