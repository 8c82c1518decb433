//! Exchanges with peers that fail, are not ready, are suspect or answer nonsense. D38.

use dynamo_core::entropy::exchange::KEYS_PER_MESSAGE;
use dynamo_core::entropy::{
    ExchangeEffect, ExchangeEvent, ExchangeReport, KeyPage, Mode, PullResult, PushResult,
};
use dynamo_core::listing::Position;

use super::support::{PARTITION, Random, Replica, Session, equal_pair, exchange, keys};

/// A third each: only here, only there, differing on both sides; on top of `common` equal ones.
fn differing_pair(all: &[Position], common: usize) -> (Replica, Replica) {
    let (mut a, mut b) = equal_pair(&all[..common]);
    for (number, key) in all[common..].iter().enumerate() {
        match number % 3 {
            0 => a.put(key, "only here"),
            1 => b.put(key, "only there"),
            _ => {
                a.put(key, "here");
                b.put(key, "there");
            }
        }
    }
    (a, b)
}

/// Test A: a peer whose tree is being rebuilt says so, and nothing is repaired that is not broken.
#[test]
fn test_a_a_tree_that_is_rebuilt_causes_no_false_repairs() {
    let all = keys(600);
    let (mut a, mut b) = equal_pair(&all);
    b.trees.rebuild(PARTITION);
    for round in 0.. {
        let traffic = exchange(&mut a, &mut b, Mode::Both);
        let ExchangeReport {
            keys_pulled,
            keys_pushed,
            ..
        } = traffic.report;
        assert_eq!((keys_pulled, keys_pushed), (0, 0), "round {round}");
        assert_eq!(traffic.messages, 1);
        let ready = b.trees.ready(PARTITION).is_some();
        assert_eq!((traffic.report.finished, traffic.report.complete), (ready, ready));
        if ready {
            break;
        }
        // Writes that reach both go on.
        let key = &all[round * 7 % all.len()];
        a.put(key, "meanwhile");
        let state = a.records[key].clone();
        b.merge(key, &state);
        b.fold_page(50);
    }
    b.trees.forget(PARTITION);
    assert!(
        !exchange(&mut a, &mut b, Mode::Both).report.finished,
        "a peer without a tree"
    );
}

/// Nothing is pulled from a suspect peer, which may lack anything and hold what was reaped; it is helped all the same.
#[test]
fn a_suspect_peer_is_no_source() {
    let all = keys(900);
    let (mut a, mut b) = differing_pair(&all, 300);
    b.suspect = true;
    let mine = a.records.clone();
    let traffic = exchange(&mut a, &mut b, Mode::Both);
    assert!(traffic.report.finished);
    assert!(
        !traffic.report.complete,
        "nothing is known about what the peer had"
    );
    assert_eq!((traffic.report.keys_pulled, traffic.report.keys_pushed), (0, 400));
    assert_eq!(a.records, mine, "this replica is as it was");
    for (key, state) in &mine {
        assert!(!b.merge(key, state), "the peer has it");
    }
}

#[test]
fn two_suspect_stores_have_nothing_to_say_to_each_other() {
    let all = keys(90);
    let (mut a, mut b) = differing_pair(&all, 30);
    (a.suspect, b.suspect) = (true, true);
    let (mine, theirs) = (a.records.clone(), b.records.clone());
    let traffic = exchange(&mut a, &mut b, Mode::PullOnly);
    assert_eq!(traffic.messages, 1);
    assert!(!traffic.report.finished && !traffic.report.complete);
    assert_eq!((a.records, b.records), (mine, theirs));

    // Equal ones are no better: both may have lost the same.
    let (mut a, mut b) = equal_pair(&all);
    b.suspect = true;
    assert!(!exchange(&mut a, &mut b, Mode::PullOnly).report.complete);
    assert!(!exchange(&mut a, &mut b, Mode::Both).report.complete);
}

/// A peer that loses its disk in the middle has every key "no longer": that must not pass for a complete pull.
#[test]
fn a_peer_that_becomes_suspect_meanwhile_makes_no_exchange_complete() {
    let all = keys(900);
    let mut incomplete = 0;
    for moment in 1.. {
        let (mut a, mut b) = differing_pair(&all, 300);
        let before = b.records.clone();
        let mut session = Session::new(&a, Mode::PullOnly);
        let mut effect = session.step(ExchangeEvent::Start);
        let mut at = 0;
        while !matches!(effect, ExchangeEffect::Done(_)) {
            at += 1;
            if at == moment {
                for key in &all {
                    b.set(key, None);
                }
                b.suspect = true;
            }
            let event = match effect {
                // Asked while it was trusted, answered by the emptied store.
                ExchangeEffect::Pull { positions } if b.suspect => ExchangeEvent::Pulled {
                    results: vec![PullResult::Gone; positions.len()],
                    suspect: true,
                },
                effect => session.perform(effect, &mut a, &mut b),
            };
            effect = session.step(event);
        }
        let report = session.traffic.report;
        if report.complete {
            for (key, state) in &before {
                assert!(
                    !a.merge(key, state),
                    "lost at effect {moment}: complete, so everything is here"
                );
            }
        } else {
            incomplete += 1;
        }
        if at < moment {
            assert!(
                report.complete && incomplete > 20,
                "{incomplete} moments were too early"
            );
            return;
        }
    }
}

/// Whatever fails, and when: the exchange says that it is unfinished, and the next one does the rest.
#[test]
fn a_failure_at_any_moment_leaves_an_exchange_unfinished() {
    let all = keys(700);
    for failing in 1.. {
        let (mut a, mut b) = differing_pair(&all, 100);
        let mut session = Session::new(&a, Mode::Both);
        let mut effect = session.step(ExchangeEvent::Start);
        let mut at = 0;
        while !matches!(effect, ExchangeEffect::Done(_)) {
            at += 1;
            let event = if at == failing {
                ExchangeEvent::Failed
            } else {
                session.perform(effect, &mut a, &mut b)
            };
            effect = session.step(event);
        }
        let report = session.traffic.report;
        if at < failing {
            assert!(report.complete && failing > 20, "the effects have run out");
            assert_eq!(a.records, b.records);
            return;
        }
        assert_eq!(at, failing, "it ends with the failure");
        assert!(!report.finished && !report.complete);
        assert!(exchange(&mut a, &mut b, Mode::Both).report.complete);
        assert_eq!(a.records, b.records, "failed at {failing}");
    }
}

/// One key that cannot be pulled or pushed does not hold up the others, and is not forgotten in the report.
#[test]
fn a_key_that_fails_is_reported_and_the_others_go_on() {
    let all = keys(300);
    for (fail_pull, fail_push) in [(true, false), (false, true)] {
        let (mut a, mut b) = differing_pair(&all, 0);
        let mut session = Session::new(&a, Mode::Both);
        let mut effect = session.step(ExchangeEvent::Start);
        let mut failed = 0;
        while !matches!(effect, ExchangeEffect::Done(_)) {
            let event = match (effect, failed) {
                (ExchangeEffect::Pull { .. }, 0) if fail_pull => {
                    failed += 1;
                    ExchangeEvent::Pulled {
                        results: vec![PullResult::Failed],
                        suspect: false,
                    }
                }
                (ExchangeEffect::Push { .. }, 0) if fail_push => {
                    failed += 1;
                    ExchangeEvent::Pushed(vec![PushResult::Failed])
                }
                (effect, _) => session.perform(effect, &mut a, &mut b),
            };
            effect = session.step(event);
        }
        let report = session.traffic.report;
        assert!(!report.finished && !report.complete);
        let differ = all.iter().filter(|key| a.records.get(key) != b.records.get(key));
        assert_eq!(differ.count(), 1, "exactly the one that failed");
    }
}

/// A caller that sends a few records at a time, by its budget, gets the rest again.
#[test]
fn transfers_may_be_answered_in_part() {
    let all = keys(800);
    let mut random = Random::new(5);
    let (mut a, mut b) = differing_pair(&all, 0);
    let mut session = Session::new(&a, Mode::Both);
    let mut effect = session.step(ExchangeEvent::Start);
    while !matches!(effect, ExchangeEffect::Done(_)) {
        match &mut effect {
            ExchangeEffect::Pull { positions } | ExchangeEffect::Push { positions } => {
                positions.truncate(1 + random.below(40));
            }
            _ => {}
        }
        let event = session.perform(effect, &mut a, &mut b);
        effect = session.step(event);
    }
    assert!(session.traffic.report.complete);
    assert_eq!(session.traffic.report.keys_pulled, 533);
    assert_eq!(session.traffic.report.keys_pushed, 267 + 266);
    assert_eq!(a.records, b.records);
}

/// Ways to break an answer.
const LIES: [fn(&mut ExchangeEvent, &Position) -> bool; 8] = [
    |event, _| match event {
        ExchangeEvent::PeerHashes { hashes, .. } => hashes.pop().is_some(),
        _ => false,
    },
    |event, _| match event {
        ExchangeEvent::PeerHashes { hashes, .. } => {
            hashes.push(1);
            true
        }
        _ => false,
    },
    |event, _| {
        page(event).is_some_and(|page| {
            page.keys.len() > 1 && {
                page.keys.reverse();
                true
            }
        })
    },
    |event, _| {
        page(event).is_some_and(|page| {
            !page.keys.is_empty() && {
                page.keys.push(page.keys[0].clone());
                true
            }
        })
    },
    |event, elsewhere| {
        page(event).is_some_and(|page| {
            !page.keys.is_empty() && {
                page.keys[0].position = elsewhere.clone();
                true
            }
        })
    },
    |event, _| {
        page(event).is_some_and(|page| {
            *page = KeyPage {
                keys: Vec::new(),
                more: true,
            };
            true
        })
    },
    |event, _| match event {
        ExchangeEvent::Pulled { results, .. } => {
            results.push(PullResult::NoNews);
            true
        }
        _ => false,
    },
    |event, _| match event {
        ExchangeEvent::Pushed(results) => {
            results.clear();
            true
        }
        _ => false,
    },
];

fn page(event: &mut ExchangeEvent) -> Option<&mut KeyPage> {
    match event {
        ExchangeEvent::PeerKeys { page, .. } => Some(page),
        _ => None,
    }
}

#[test]
fn an_answer_that_breaks_the_rules_ends_the_exchange() {
    let all = keys(400);
    // Its leaf is equal on both sides, so that nobody asks for it.
    let elsewhere = &all[0];
    for (number, lie) in LIES.iter().enumerate() {
        let (mut a, mut b) = differing_pair(&all, 1);
        let mut session = Session::new(&a, Mode::Both);
        let mut effect = session.step(ExchangeEvent::Start);
        let mut lied = false;
        while !matches!(effect, ExchangeEffect::Done(_)) {
            assert!(!lied, "lie {number} was believed");
            let mut event = session.perform(effect, &mut a, &mut b);
            lied = lie(&mut event, elsewhere);
            effect = session.step(event);
        }
        assert!(lied, "lie {number} was not told");
        assert!(!session.traffic.report.finished && !session.traffic.report.complete);
    }
}

/// A list of more keys than one message may hold, and an answer to another question.
#[test]
fn answers_out_of_bounds_or_out_of_turn_end_the_exchange() {
    let all = keys(40_000);
    let (a, mut b) = (Replica::new(1), Replica::new(2));
    for key in &all {
        b.put(key, "value");
    }
    let mut a = a;
    let mut session = Session::new(&a, Mode::Both);
    let mut effect = session.step(ExchangeEvent::Start);
    loop {
        let event = session.perform(effect, &mut a, &mut b);
        if let ExchangeEvent::PeerKeys { mut page, suspect } = event {
            assert!(page.more && page.keys.len() == KEYS_PER_MESSAGE);
            let mut next = page.keys[KEYS_PER_MESSAGE - 1].clone();
            let behind = b.records.range(next.position.clone()..).nth(1).unwrap();
            next.position = behind.0.clone();
            page.keys.push(next);
            effect = session.step(ExchangeEvent::PeerKeys { page, suspect });
            break;
        }
        effect = session.step(event);
    }
    assert!(matches!(effect, ExchangeEffect::Done(report) if !report.finished));

    let mut session = Session::new(&a, Mode::Both);
    session.step(ExchangeEvent::Start);
    let effect = session.step(ExchangeEvent::Pushed(vec![PushResult::Merged]));
    assert!(matches!(effect, ExchangeEffect::Done(report) if !report.finished && report.keys_pushed == 0));
}
