//! Rounds step by step: who is asked what, and what stops a key.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use dynamo_core::reap::{
    Holdings, Mark, Opinion, Proposal, QuietTable, ROUND_KEYS_MAX, ReapCoordinator, ReapEffect, ReapEvent,
    ReapParties, ReapReport, Refusal, Removal, Replica, Round, Standing, Target, agree, clear, commit,
    prepare, visible_to_exchange,
};
use dynamo_core::replica::{EpochEntry, Minter, SiblingCaps, Update, coordinate, merge};
use dynamo_core::types::{Incarnation, MemberId};
use dynamo_core::version::{Actor, Content, Dot, KeyState, Seen, Sibling, Stamp};

use super::model::State;

const ROUND: Round = Round { epoch: 7, id: 1 };
const GRACE_MS: u64 = 1000;
const WHOLE: Standing = Standing {
    epoch: 7,
    transition: false,
    suspect: false,
};

fn id(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

fn key(name: &'static str) -> Bytes {
    Bytes::from_static(name.as_bytes())
}

fn proposal(name: &'static str) -> Proposal {
    Proposal {
        position: key(name),
        digest: 5,
        target: Target::Absent,
    }
}

/// A round of a over keys, with primaries a, b, c and one more member f.
fn round(keys: &[&'static str]) -> ReapCoordinator {
    let parties = ReapParties {
        me: id("a"),
        primaries: vec![id("a"), id("b"), id("c")],
        members: vec![id("a"), id("b"), id("c"), id("f")],
        force: false,
    };
    ReapCoordinator::new(ROUND, parties, keys.iter().map(|name| proposal(name)).collect())
}

fn asked(effects: &[ReapEffect]) -> String {
    let words = effects.iter().map(|effect| match effect {
        ReapEffect::Agree { member, proposals } => format!("agree {member} {}", proposals.len()),
        ReapEffect::Clear { member } => format!("clear {member}"),
        ReapEffect::Prepare { member, proposals } => format!("prepare {member} {}", proposals.len()),
        ReapEffect::Commit { member, proposals } => format!("commit {member} {}", proposals.len()),
        ReapEffect::Done(_) => "done".to_owned(),
    });
    words.collect::<Vec<_>>().join(", ")
}

fn agreed(member: &str, opinions: &[(&'static str, Opinion)]) -> ReapEvent {
    ReapEvent::Agreed {
        member: id(member),
        opinions: opinions
            .iter()
            .map(|(name, opinion)| (key(name), *opinion))
            .collect(),
    }
}

fn prepared(member: &str, opinions: &[(&'static str, Opinion)]) -> ReapEvent {
    ReapEvent::Prepared {
        member: id(member),
        opinions: opinions
            .iter()
            .map(|(name, opinion)| (key(name), *opinion))
            .collect(),
    }
}

fn cleared(member: &str, result: Result<(), Refusal>) -> ReapEvent {
    ReapEvent::Cleared {
        member: id(member),
        result,
    }
}

fn committed(member: &str, names: &[&'static str]) -> ReapEvent {
    ReapEvent::Committed {
        member: id(member),
        positions: names.iter().map(|name| key(name)).collect(),
    }
}

/// Feeds events, returns what the last one led to.
fn feed(machine: &mut ReapCoordinator, events: impl IntoIterator<Item = ReapEvent>) -> Vec<ReapEffect> {
    let mut last = Vec::new();
    for event in events {
        last = machine.step(event);
    }
    last
}

fn report(effects: &[ReapEffect]) -> ReapReport {
    match effects {
        [ReapEffect::Done(report)] => report.clone(),
        other => unreachable!("the round should be over, not at {other:?}"),
    }
}

const HOLDS: Opinion = Opinion::Holds { marked: false };
const MARKED: Opinion = Opinion::Holds { marked: true };
const DIFFERS: Opinion = Opinion::Refuses(Refusal::Differs);

fn agree_all(names: &[&'static str], opinion: Opinion) -> Vec<ReapEvent> {
    let opinions: Vec<_> = names.iter().map(|name| (*name, opinion)).collect();
    ["a", "b", "c"].map(|member| agreed(member, &opinions)).into()
}

fn prepare_all(names: &[&'static str]) -> Vec<ReapEvent> {
    let opinions: Vec<_> = names.iter().map(|name| (*name, HOLDS)).collect();
    ["a", "b", "c"].map(|member| prepared(member, &opinions)).into()
}

fn clear_all() -> [ReapEvent; 4] {
    ["a", "b", "c", "f"].map(|member| cleared(member, Ok(())))
}

#[test]
fn d55_every_question_waits_for_all_answers_to_the_one_before() {
    let mut machine = round(&["k"]);
    let effects = machine.step(ReapEvent::Start);
    assert_eq!(asked(&effects), "agree a 1, agree b 1, agree c 1");
    let effects = feed(&mut machine, agree_all(&["k"], HOLDS));
    assert_eq!(asked(&effects), "clear a, clear b, clear c, clear f");
    let effects = feed(&mut machine, clear_all());
    assert_eq!(asked(&effects), "prepare a 1, prepare b 1, prepare c 1");
    let effects = feed(&mut machine, prepare_all(&["k"]));
    assert_eq!(
        asked(&effects),
        "commit b 1, commit c 1",
        "the round's own member goes last"
    );
    let effects = feed(&mut machine, [committed("b", &["k"]), committed("c", &["k"])]);
    assert_eq!(asked(&effects), "commit a 1");
    let report = report(&machine.step(committed("a", &["k"])));
    assert_eq!((report.removed, report.unfinished), (1, 0));
    assert!(machine.finished());
    assert!(
        machine.step(ReapEvent::DeadlineReached).is_empty(),
        "done comes once"
    );
}

#[test]
fn z1_a_member_that_is_down_blocks_for_as_long_as_it_is() {
    let mut machine = round(&["k", "l"]);
    machine.step(ReapEvent::Start);
    feed(&mut machine, agree_all(&["k", "l"], HOLDS));
    let effects = feed(
        &mut machine,
        ["a", "b", "c"].map(|member| cleared(member, Ok(()))),
    );
    assert!(effects.is_empty(), "f has not answered");
    let report = report(&machine.step(ReapEvent::DeadlineReached));
    assert_eq!(report.not_clear, Some((id("f"), Refusal::Silent)));
    assert_eq!(
        (report.removed, report.refused),
        (0, BTreeMap::from([(Refusal::Silent, 2)]))
    );
}

#[test]
fn z2_a_hint_anywhere_stops_the_round() {
    let hints = Holdings {
        hints: true,
        ..Holdings::default()
    };
    let strays = Holdings {
        strays: true,
        ..Holdings::default()
    };
    let handoff = Holdings {
        handoff: true,
        ..Holdings::default()
    };
    for holdings in [hints, strays, handoff] {
        assert_eq!(clear(WHOLE, ROUND, holdings), Err(Refusal::NotClear));
    }
    assert_eq!(clear(WHOLE, ROUND, Holdings::default()), Ok(()));
    let mut machine = round(&["k"]);
    machine.step(ReapEvent::Start);
    feed(&mut machine, agree_all(&["k"], HOLDS));
    let report = report(&machine.step(cleared("f", Err(Refusal::NotClear))));
    assert_eq!(report.not_clear, Some((id("f"), Refusal::NotClear)));
}

#[test]
fn z3_suspects_other_epochs_and_ring_changes_answer_nothing_but_no() {
    let standings = [
        (
            Standing {
                suspect: true,
                ..WHOLE
            },
            Refusal::Suspect,
        ),
        (Standing { epoch: 8, ..WHOLE }, Refusal::OtherEpoch),
        (
            Standing {
                transition: true,
                ..WHOLE
            },
            Refusal::Transition,
        ),
    ];
    let replica = held(5);
    for (standing, refusal) in standings {
        let opinion = Opinion::Refuses(refusal);
        assert_eq!(
            agree(standing, ROUND, &proposal("k"), &replica, GRACE_MS),
            opinion
        );
        assert_eq!(
            prepare(standing, ROUND, &proposal("k"), &replica, GRACE_MS),
            (opinion, None)
        );
        assert_eq!(clear(standing, ROUND, Holdings::default()), Err(refusal));
    }
}

#[test]
fn a_key_is_stopped_by_itself() {
    let mut machine = round(&["k", "l"]);
    machine.step(ReapEvent::Start);
    let effects = feed(
        &mut machine,
        [
            agreed("a", &[("k", HOLDS), ("l", HOLDS)]),
            agreed("b", &[("k", HOLDS), ("l", DIFFERS)]),
            agreed("c", &[("k", HOLDS), ("l", HOLDS)]),
        ],
    );
    assert_eq!(effects.len(), 4, "k goes on");
    let effects = feed(&mut machine, clear_all());
    assert_eq!(asked(&effects), "prepare a 1, prepare b 1, prepare c 1");
    // An answer without the key is none.
    let effects = feed(&mut machine, [prepared("a", &[("k", HOLDS)]), prepared("b", &[])]);
    let report = report(&effects);
    assert_eq!(report.removed, 0);
    assert_eq!(
        report.refused,
        BTreeMap::from([(Refusal::Differs, 1), (Refusal::Silent, 1)])
    );
}

#[test]
fn d55_the_next_round_finishes_what_one_left() {
    // b has committed, c has not, so a has not been asked: both hold their marks.
    let mut machine = round(&["k"]);
    machine.step(ReapEvent::Start);
    let effects = feed(
        &mut machine,
        [
            agreed("a", &[("k", MARKED)]),
            agreed("b", &[("k", Opinion::AtTarget)]),
            agreed("c", &[("k", MARKED)]),
        ],
    );
    assert_eq!(asked(&effects), "clear a, clear b, clear c, clear f");
    feed(&mut machine, clear_all());
    let effects = feed(
        &mut machine,
        [
            prepared("a", &[("k", MARKED)]),
            prepared("b", &[("k", Opinion::AtTarget)]),
            prepared("c", &[("k", MARKED)]),
        ],
    );
    assert_eq!(asked(&effects), "commit c 1", "b has nothing left to commit");
    let effects = machine.step(committed("c", &["k"]));
    assert_eq!(asked(&effects), "commit a 1");
    assert_eq!(report(&machine.step(committed("a", &["k"]))).removed, 1);
}

#[test]
fn absence_without_a_mark_anywhere_is_no_agreement() {
    let mut machine = round(&["k"]);
    machine.step(ReapEvent::Start);
    let effects = feed(
        &mut machine,
        [
            agreed("a", &[("k", HOLDS)]),
            agreed("b", &[("k", Opinion::AtTarget)]),
            agreed("c", &[("k", HOLDS)]),
        ],
    );
    assert_eq!(report(&effects).refused, BTreeMap::from([(Refusal::Differs, 1)]));
}

#[test]
fn a_record_that_comes_or_goes_within_a_round_stops_it() {
    let mut machine = round(&["k"]);
    machine.step(ReapEvent::Start);
    feed(&mut machine, agree_all(&["k"], MARKED));
    feed(&mut machine, clear_all());
    let effects = machine.step(prepared("b", &[("k", Opinion::AtTarget)]));
    assert_eq!(report(&effects).refused, BTreeMap::from([(Refusal::Differs, 1)]));
}

#[test]
fn the_round_s_own_record_stays_if_another_primary_fails_to_commit() {
    let mut machine = round(&["k", "l"]);
    machine.step(ReapEvent::Start);
    feed(&mut machine, agree_all(&["k", "l"], HOLDS));
    feed(&mut machine, clear_all());
    feed(&mut machine, prepare_all(&["k", "l"]));
    let effects = feed(
        &mut machine,
        [committed("b", &["k", "l"]), committed("c", &["l"])],
    );
    assert_eq!(asked(&effects), "commit a 1", "k stays on a's list");
    let report = report(&machine.step(ReapEvent::DeadlineReached));
    assert_eq!((report.removed, report.unfinished), (0, 2));
}

#[test]
fn answers_to_other_questions_and_repetitions_are_ignored() {
    let mut machine = round(&["k"]);
    machine.step(ReapEvent::Start);
    machine.step(agreed("a", &[("k", HOLDS)]));
    for event in [
        agreed("a", &[("k", DIFFERS)]),
        agreed("f", &[("k", DIFFERS)]),
        cleared("b", Err(Refusal::NotClear)),
        prepared("b", &[("k", DIFFERS)]),
        committed("b", &[]),
        ReapEvent::Start,
    ] {
        assert!(machine.step(event.clone()).is_empty(), "{event:?}");
    }
    let effects = feed(
        &mut machine,
        [agreed("b", &[("k", HOLDS)]), agreed("c", &[("k", HOLDS)])],
    );
    assert_eq!(effects.len(), 4);
}

#[test]
fn a_round_of_nothing_and_one_of_too_much() {
    assert_eq!(asked(&round(&[]).step(ReapEvent::Start)), "done");
    let parties = ReapParties {
        me: id("a"),
        primaries: vec![id("a")],
        members: vec![id("a")],
        force: false,
    };
    let many = (0..1000u32).map(|number| Proposal {
        position: Bytes::copy_from_slice(&number.to_be_bytes()),
        ..proposal("k")
    });
    let mut machine = ReapCoordinator::new(ROUND, parties, many.collect());
    assert_eq!(
        asked(&machine.step(ReapEvent::Start)),
        format!("agree a {ROUND_KEYS_MAX}")
    );
}

fn held(digest: u64) -> Replica {
    Replica {
        digest: Some(digest),
        reapable: true,
        mark: None,
        quiet_ms: GRACE_MS,
    }
}

#[test]
fn a_replica_judges_by_its_own_record() {
    let opinion = |replica| agree(WHOLE, ROUND, &proposal("k"), &replica, GRACE_MS);
    assert_eq!(opinion(held(5)), HOLDS);
    assert_eq!(opinion(held(6)), DIFFERS);
    let live = Replica {
        reapable: false,
        ..held(5)
    };
    assert_eq!(opinion(live), DIFFERS, "by its clock the value has not expired");
    let busy = Replica {
        quiet_ms: GRACE_MS - 1,
        ..held(5)
    };
    assert_eq!(opinion(busy), Opinion::Refuses(Refusal::NotQuiet));
    let absent = Replica {
        digest: None,
        reapable: false,
        ..held(5)
    };
    assert_eq!(opinion(absent), Opinion::AtTarget);
    let truncation = Proposal {
        target: Target::Truncated(6),
        ..proposal("k")
    };
    let of_values = |replica| agree(WHOLE, ROUND, &truncation, &replica, GRACE_MS);
    assert_eq!(of_values(live), HOLDS, "a record of values is truncated too");
    assert_eq!(of_values(held(6)), Opinion::AtTarget);
    assert_eq!(of_values(absent), DIFFERS);
}

#[test]
fn a_commit_is_compare_and_set_on_mark_and_digest() {
    let (opinion, mark) = prepare(WHOLE, ROUND, &proposal("k"), &held(5), GRACE_MS);
    assert_eq!(opinion, HOLDS);
    let marked = Replica { mark, ..held(5) };
    assert_eq!(agree(WHOLE, ROUND, &proposal("k"), &marked, GRACE_MS), MARKED);
    assert_eq!(commit(ROUND, &marked), Ok(Removal::Delete));
    let other = Round { id: 2, ..ROUND };
    assert_eq!(commit(other, &marked), Err(Refusal::NotMarked));
    assert_eq!(commit(ROUND, &held(5)), Err(Refusal::NotMarked));
    let changed = Replica {
        digest: Some(6),
        ..marked
    };
    assert_eq!(commit(ROUND, &changed), Err(Refusal::Differs));
    let truncation = Proposal {
        target: Target::Truncated(6),
        ..proposal("k")
    };
    let (_, mark) = prepare(WHOLE, ROUND, &truncation, &marked, GRACE_MS);
    let remarked = Replica { mark, ..held(5) };
    assert_eq!(commit(ROUND, &remarked), Ok(Removal::Replace(6)));
    assert!(!visible_to_exchange(mark.as_ref()));
    assert!(visible_to_exchange(None));
}

#[test]
fn marks_survive_the_disk_and_go_stale() {
    for target in [Target::Absent, Target::Truncated(u64::MAX)] {
        let mark = Mark {
            round: ROUND,
            digest: 5,
            target,
        };
        let bytes = mark.encode();
        assert_eq!(Mark::decode(bytes.clone()), Ok(mark));
        for length in 0..bytes.len() {
            assert!(Mark::decode(bytes.slice(..length)).is_err(), "{length} bytes");
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Mark::decode(damaged.into()).is_err(), "bit {bit}");
        }
        assert!(!mark.is_stale(7, 100, 100));
        assert!(mark.is_stale(8, 0, 100), "another ring");
        assert!(mark.is_stale(7, 101, 100), "left behind");
    }
}

#[test]
fn quiet_counts_from_the_last_arrival_and_errs_towards_waiting() {
    let mut table = QuietTable::new(100, 2);
    let [k, l, m] = ["k", "l", "m"].map(key);
    assert_eq!(table.quiet_ms(&k, 150), 50, "unknown: since the start");
    table.touch(&k, 200);
    table.touch(&l, 300);
    table.touch(&k, 400);
    assert_eq!((table.quiet_ms(&k, 500), table.quiet_ms(&l, 500)), (100, 200));
    table.touch(&m, 450);
    assert_eq!(table.len(), 2);
    assert_eq!(
        table.quiet_ms(&l, 500),
        200,
        "forgotten: since it was touched at least"
    );
    assert_eq!(
        table.quiet_ms(&key("n"), 500),
        200,
        "never heard of: not longer than that"
    );
    table.prune(1400, 1000);
    assert!(table.len() == 1 && table.quiet_ms(&k, 1400) >= 1000);
    table.prune(1450, 1000);
    assert!(table.is_empty());
}

/// A process that stood still for longer than any grace has heard nothing, which says nothing: old writes may wait in its
/// sockets.
#[test]
fn a_standstill_is_no_quiet() {
    let mut table = QuietTable::new(0, 9);
    table.touch(&key("k"), 100);
    for now_ms in (0..60_000).step_by(250) {
        table.runs(now_ms);
    }
    assert_eq!(table.quiet_ms(&key("k"), 60_000), 59_900);
    // Asked before the process has noticed by itself, and after.
    assert_eq!(table.quiet_ms(&key("k"), 660_000), 0);
    table.runs(660_000);
    assert!(table.is_empty());
    for name in ["k", "never heard of"] {
        assert_eq!(table.quiet_ms(&key(name), 661_000), 1000);
    }
}

/// The model's merge is the record's.
#[test]
fn the_model_merges_as_records_do() {
    let dot = |bit: u8| Dot {
        actor: Actor {
            incarnation: u64::from(bit),
            epoch: 0,
        },
        counter: 1,
    };
    let sibling = || Sibling {
        stamp: Stamp::default(),
        expires_at_ms: None,
        op_id: None,
        content: Content::Tombstone,
    };
    let bits = |set: u8| (0..3).map(|bit| 1 << bit).filter(move |bit| set & bit > 0);
    // A state is the merge of writes that were superseded, then those that live.
    let real = |state: State| {
        let mut record = KeyState::new();
        let gone: Seen = bits(state.seen & !state.live).map(dot).collect();
        for bit in bits(state.live) {
            record.merge(&KeyState::from_write(&gone, dot(bit), sibling()));
        }
        record
    };
    let states: BTreeSet<State> = (1..8u8)
        .flat_map(|seen| {
            (1..8u8).map(move |live| State {
                seen,
                live: seen & live,
            })
        })
        .filter(|state| state.live > 0)
        .collect();
    for left in &states {
        for right in &states {
            let mut merged = real(*left);
            merged.merge(&real(*right));
            let expected = left.merge(*right);
            let live: BTreeSet<Dot> = bits(expected.live).map(dot).collect();
            let seen: Seen = bits(expected.seen).map(dot).collect();
            assert!(
                merged.siblings().keys().eq(&live) && *merged.seen() == seen,
                "{left:?} {right:?}"
            );
        }
    }
}

/// By the real records: v, its delete, a removal forced past a hint with v, a new put, then the hint.
#[test]
fn z2_a_new_actor_keeps_a_recreated_record_from_old_states() {
    let incarnation = Incarnation { generation: 1, id: 9 };
    let mut minter = Minter::new(incarnation, 0);
    let mut write = |record: Option<&KeyState>, entry: Option<&EpochEntry>, content, context: &Seen| {
        let update = Update {
            content,
            context: context.clone(),
            op_id: None,
            stamp: Stamp::default(),
            expires_at_ms: None,
        };
        coordinate(record, entry, &mut minter, update, SiblingCaps::NONE).unwrap()
    };
    let value = |text: &'static str| Content::Value(Bytes::from_static(text.as_bytes()));
    let v = write(None, None, value("v"), &Seen::new());
    let deleted = write(
        Some(&v.state),
        v.entry.as_ref(),
        Content::Tombstone,
        v.state.seen(),
    );
    // Record and epoch entry are gone together.
    let blind = write(None, None, value("w"), &Seen::new());
    let informed = write(None, None, value("w"), deleted.state.seen());
    for old in [&v.delta, &deleted.state] {
        let after = merge(Some(blind.state.clone()), old).state;
        assert!(
            after.siblings().contains_key(&blind.dot),
            "no old state knows the new actor"
        );
        let after = merge(Some(informed.state.clone()), old).state;
        assert!(
            after.siblings().keys().eq([&informed.dot]),
            "whoever has read the delete gets no zombie"
        );
    }
}
