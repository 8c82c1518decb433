//! What travels besides members and the ring: the log of rings (D59), policies, and how far storage is synced (Z3).

use std::sync::Arc;

use bytes::Bytes;
use dynamo_core::membership::history::ANNOUNCE_INTERVAL_MS;
use dynamo_core::membership::log::{DELTA_LOG_MEMBERS_MAX, LOG_ENTRIES_MAX};
use dynamo_core::membership::policies::{POLICIES_MAX, POLICY_BYTES_MAX};
use dynamo_core::membership::{
    Announcer, Changes, Delta, Digest, LogEntry, MemberEntry, Policy, PolicyError, Refusal, SelfHistory, View,
};
use dynamo_core::types::Incarnation;

use super::support::{CLUSTER, Random, delta, entry, exchange, id, ring, view};

/// Messages without contents.
fn silent(first: &View, second: &View) -> bool {
    let answer = second.answer(&first.digest());
    answer.delta == delta(Vec::new()) && answer.wanted == dynamo_core::membership::Wanted::default()
}

fn epochs(view: &View) -> Vec<u64> {
    view.log().map(|entry| entry.epoch).collect()
}

#[test]
fn d59_a_member_that_was_away_gets_the_rings_that_it_missed() {
    for away_begins in [true, false] {
        let mut stayed = View::new(CLUSTER, entry(0), Some(Arc::new(ring(3, 1))));
        let mut away = View::new(CLUSTER, entry(1), None);
        exchange(&mut stayed, &mut away);
        for epoch in 2..=6 {
            stayed.adopt(Arc::new(ring(3, epoch)));
        }
        if away_begins {
            exchange(&mut away, &mut stayed);
        } else {
            exchange(&mut stayed, &mut away);
        }
        assert_eq!(epochs(&away), [1, 2, 3, 4, 5, 6]);
        assert!(away.log().eq(stayed.log()));
        // D58: now they are equal, and nothing but digests is sent.
        assert!(silent(&stayed, &away) && silent(&away, &stayed));
        // It survives a restart.
        assert!(View::decode(away.encode()).unwrap().log().eq(stayed.log()));
    }
}

#[test]
fn d59_logs_are_the_same_everywhere_after_concurrent_and_missed_rings() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut views: Vec<View> = (0..6)
            .map(|number| View::new(CLUSTER, entry(number), Some(Arc::new(ring(3, 1)))))
            .collect();
        for step in 0..60u64 {
            let (one, other) = (random.below(6), random.below(6));
            if step < 20 && step % 4 == 0 {
                let epoch = views[one].ring().unwrap().epoch() + 1;
                views[one].adopt(Arc::new(ring(1 + random.below(6), epoch)));
            } else if one != other {
                // Half of the answers, or of what follows them, is lost.
                let answer = views[other].answer(&views[one].digest());
                let back = views[one].delta_for(&answer.wanted);
                if random.below(2) == 0 {
                    views[one].merge(answer.delta);
                }
                if random.below(2) == 0 {
                    views[other].merge(back);
                }
            }
        }
        for _ in 0..2 {
            for one in 0..6 {
                for other in (0..6).filter(|other| *other != one) {
                    let (mut first, mut second) = (views[one].clone(), views[other].clone());
                    exchange(&mut first, &mut second);
                    (views[one], views[other]) = (first, second);
                }
            }
        }
        assert!(epochs(&views[0]).len() > 2, "seed {seed}");
        for view in &views {
            assert!(view.log().eq(views[0].log()), "seed {seed}");
            assert_eq!(view.ring(), views[0].ring(), "seed {seed}");
            assert_eq!(view.ring().unwrap().epoch(), *epochs(view).last().unwrap());
        }
    }
}

fn logged(epoch: u64, members: usize) -> LogEntry {
    LogEntry {
        epoch,
        hash: epoch,
        members: (0..members).map(id).collect(),
    }
}

fn log_delta(log: Vec<LogEntry>) -> Delta {
    Delta {
        log,
        ..delta(Vec::new())
    }
}

#[test]
fn d59_full_logs_settle_on_the_newest_rings() {
    let (mut first, mut second) = (view(0), view(1));
    let count = LOG_ENTRIES_MAX as u64;
    first.merge(log_delta((1..=count).map(|epoch| logged(epoch, 1)).collect()));
    second.merge(log_delta(
        (500..500 + count).map(|epoch| logged(epoch, 1)).collect(),
    ));
    exchange(&mut first, &mut second);
    let newest: Vec<u64> = (500..500 + count).collect();
    assert_eq!((epochs(&first), epochs(&second)), (newest.clone(), newest));
    assert!(
        silent(&first, &second),
        "older rings are not offered again and again"
    );
}

#[test]
fn d59_large_logs_come_in_bounded_parts() {
    let (mut first, mut second) = (view(0), view(1));
    let (size, count) = (99, 300);
    for epoch in 1..=count {
        first.merge(log_delta(vec![logged(epoch, size)]));
    }
    let mut exchanges = 0;
    while !silent(&first, &second) {
        let part = first.answer(&second.digest()).delta;
        let members: usize = part.log.iter().map(|entry| entry.members.len()).sum();
        assert!(members <= DELTA_LOG_MEMBERS_MAX);
        exchange(&mut first, &mut second);
        exchanges += 1;
    }
    assert_eq!(exchanges, (300 * 99) / DELTA_LOG_MEMBERS_MAX + 1);
    assert!(first.log().eq(second.log()));
}

#[test]
fn rings_that_cannot_be_are_not_logged() {
    let mut view = view(0);
    let mut disordered = logged(3, 2);
    disordered.members.reverse();
    let changes = view.merge(log_delta(vec![logged(1, 0), disordered, logged(2, 2)]));
    assert_eq!(changes.refused, [Refusal::Log(1), Refusal::Log(3)]);
    assert!(changes.log);
    assert_eq!(epochs(&view), [2]);
}

fn policy(version: u64, bytes: &'static [u8]) -> Policy {
    Policy {
        version,
        bytes: Bytes::from_static(bytes),
    }
}

#[test]
fn policies_reach_everybody_and_the_larger_wins() {
    let (mut first, mut second) = (view(0), view(1));
    assert_eq!(first.put_policy("cart", policy(1, b"a")), Ok(true));
    assert_eq!(first.put_policy("cart", policy(1, b"a")), Ok(false));
    assert_eq!(second.put_policy("cart", policy(1, b"b")), Ok(true));
    assert_eq!(second.put_policy("log", policy(1, b"x")), Ok(true));
    assert_eq!(first.put_policy("log", policy(2, b"")), Ok(true));
    exchange(&mut first, &mut second);
    let expected = [("cart", &policy(1, b"b")), ("log", &policy(2, b""))];
    assert!(first.policies().eq(expected) && second.policies().eq(expected));
    // D58: equal again, and nothing but digests is sent.
    assert!(silent(&first, &second) && silent(&second, &first));
    // What has changed is named, once.
    let mut third = view(2);
    let changes = third.merge(first.answer(&third.digest()).delta);
    assert_eq!(changes.policies, ["cart", "log"]);
    assert_eq!(
        third.merge(second.answer(&third.digest()).delta),
        Changes::default()
    );
    assert_eq!(third.policy("log"), Some(&policy(2, b"")));
    assert_eq!(View::decode(third.encode()).unwrap(), third);
    // A node that knows nothing of policies is sent none.
    let digest = Digest {
        policies: None,
        ..view(3).digest()
    };
    let answer = first.answer(&digest);
    assert!(answer.delta.policies.is_empty() && !answer.wanted.policies);
}

#[test]
fn policies_are_bounded_and_concurrent_ones_beyond_the_bound_end_alike() {
    let name = |number: usize| format!("b{number:05}");
    let full = |first: usize| {
        let mut view = view(first % 7);
        for number in first..first + POLICIES_MAX {
            view.put_policy(&name(number), policy(1, b"")).unwrap();
        }
        view
    };
    let (mut first, mut second) = (full(0), full(300));
    assert_eq!(
        first.put_policy("zz", policy(1, b"")),
        Err(PolicyError::Full("zz".into()))
    );
    assert_eq!(
        first.put_policy(&name(3), policy(2, b"")),
        Ok(true),
        "a known one may change"
    );
    exchange(&mut first, &mut second);
    assert!(first.policies().eq(second.policies()));
    assert_eq!(first.policies().len(), POLICIES_MAX);
    assert_eq!(second.policy(&name(3)), Some(&policy(2, b"")));

    let mut view = view(0);
    let long = Policy {
        version: 1,
        bytes: vec![0; POLICY_BYTES_MAX + 1].into(),
    };
    assert!(matches!(
        view.put_policy("b", long),
        Err(PolicyError::TooLong { bytes: 513, .. })
    ));
    assert_eq!(view.put_policy("", policy(1, b"")), Err(PolicyError::Name(0)));
}

#[test]
fn d58_a_busy_member_announces_what_is_synced_every_ten_seconds_and_an_idle_one_never() {
    let mut view = view(0);
    let mut announcer = Announcer::new();
    let mut announced = Vec::new();
    for now_ms in (5_000..65_000u64).step_by(100) {
        // It writes for half a minute.
        let synced = now_ms.min(35_000);
        if announcer.announce(&mut view, synced, now_ms) {
            announced.push((now_ms, view.me().synced));
        }
    }
    assert_eq!(ANNOUNCE_INTERVAL_MS, 10_000);
    assert_eq!(
        announced,
        [
            (5_000, 5_000),
            (15_000, 15_000),
            (25_000, 25_000),
            (35_000, 35_000)
        ]
    );
    assert_eq!(view.me().version, 5);
    // Others hear of it, and then there is nothing to say.
    let mut other = super::support::view(1);
    exchange(&mut other, &mut view);
    assert_eq!(other.get(&id(0)).unwrap().synced, 35_000);
    assert!(silent(&other, &view));
    assert!(
        !announcer.announce(&mut view, 34_000, 1_000_000),
        "it never goes back"
    );
}

const FIRST: Incarnation = Incarnation {
    generation: 1,
    id: 1000,
};
const SECOND: Incarnation = Incarnation { generation: 2, id: 5 };

/// Node 0 in its first life, with so much synced.
fn of_first_life(synced: u64) -> MemberEntry {
    MemberEntry {
        synced,
        version: 9,
        ..entry(0)
    }
}

/// Node 0 in its second life, that began with what was found on the disk.
fn restarted(recovered: u64) -> View {
    let mut view = view(0);
    view.update_self(|me| {
        me.incarnation = SECOND;
        me.starts = 2;
    });
    view.with_history(SelfHistory {
        previous: Some(FIRST),
        since: Vec::new(),
        recovered,
    })
}

#[test]
fn z3_a_volume_put_back_in_time_shows_after_an_unclean_stop() {
    for (recovered, noticed) in [(99, true), (100, false), (101, false)] {
        // Whoever begins, and although the others have taken up the new life's statement before.
        for peers_hear_first in [true, false] {
            let mut me = restarted(recovered);
            let mut peer = view(1);
            peer.merge(delta(vec![of_first_life(100)]));
            if peers_hear_first {
                exchange(&mut peer, &mut me);
                assert_eq!(peer.get(&id(0)).unwrap().incarnation, SECOND);
                peer = View::decode(peer.encode()).unwrap();
            }
            let changes = me.merge(peer.answer(&me.digest()).delta);
            assert_eq!(
                changes.self_superseded,
                noticed.then_some(FIRST),
                "{recovered} {peers_hear_first}"
            );
            if noticed {
                // The node goes on as a third life, and then all is said.
                me.update_self(|me| {
                    me.incarnation = Incarnation { generation: 3, id: 6 };
                });
            }
            exchange(&mut me, &mut peer);
            assert!(silent(&me, &peer) && silent(&peer, &me));
        }
    }
}

#[test]
fn z3_a_volume_put_back_in_time_shows_in_the_same_life() {
    // A copy taken in the middle of a life, with its marker of a clean stop; the starts do not tell.
    for (recovered, noticed) in [(99, true), (100, false)] {
        let mut me = view(0).with_history(SelfHistory {
            previous: None,
            since: Vec::new(),
            recovered,
        });
        let mut peer = view(1);
        peer.merge(delta(vec![of_first_life(100)]));
        let changes = me.merge(peer.answer(&me.digest()).delta);
        assert_eq!(changes.self_superseded, noticed.then_some(FIRST));
    }
    // What it has announced itself since comes back to it and means nothing.
    let mut me = view(0).with_history(SelfHistory {
        previous: None,
        since: Vec::new(),
        recovered: 100,
    });
    Announcer::new().announce(&mut me, 500, 0);
    let mut peer = view(1);
    exchange(&mut me, &mut peer);
    assert!(silent(&me, &peer));
    let echo = vec![me.me().clone()];
    assert_eq!(me.merge(delta(echo)), Changes::default());
}

#[test]
fn z3_what_nobody_contradicts_is_not_talked_about() {
    let mut me = restarted(100);
    let mut peer = view(1);
    peer.merge(delta(vec![of_first_life(100)]));
    exchange(&mut me, &mut peer);
    assert!(silent(&me, &peer) && silent(&peer, &me));
    // Without a history nothing is claimed and nothing compared.
    let mut ignorant = view(0);
    assert_eq!(ignorant.digest().claim, None);
    ignorant.update_self(|me| me.incarnation = SECOND);
    let changes = ignorant.merge(delta(vec![of_first_life(100)]));
    assert_eq!(changes.self_superseded, None);
}

/// A life that began with nothing, since its member had left and joined again, says less than the one before. It is the one that a volume
/// put back in time betrays, and what said more is kept beside it: between the two there may be a volume that was put back, too.
#[test]
fn z3_a_volume_put_back_shows_also_if_an_earlier_life_had_synced_more() {
    let third = Incarnation { generation: 3, id: 7 };
    let said = |incarnation, synced| MemberEntry {
        incarnation,
        ..of_first_life(synced)
    };
    let mut peer = view(1);
    for heard in [said(FIRST, 800), said(SECOND, 163), said(third, 69)] {
        peer.merge(delta(vec![heard]));
        peer = View::decode(peer.encode()).unwrap();
    }
    for (previous, since, recovered, lost) in [
        (SECOND, vec![], 69, Some(SECOND)),
        (SECOND, vec![], 163, None),
        (FIRST, vec![SECOND], 69, Some(FIRST)),
    ] {
        let mut me = view(0);
        me.update_self(|me| me.incarnation = third);
        let mut me = me.with_history(SelfHistory {
            previous: Some(previous),
            since,
            recovered,
        });
        let changes = me.merge(peer.answer(&me.digest()).delta);
        assert_eq!(changes.self_superseded, lost, "{recovered} of {previous}");
    }
}

/// A member in one of several first lives.
fn life(id: u64) -> MemberEntry {
    MemberEntry {
        incarnation: Incarnation { generation: 1, id },
        ..entry(2)
    }
}

/// The same with an empty disk: it does not know of its other lives.
fn emptied() -> View {
    View::new(CLUSTER, life(9), None).with_history(SelfHistory {
        previous: None,
        since: Vec::new(),
        recovered: 0,
    })
}

/// Random ids do not order two lives of one generation: the life before a disk was emptied may be the smaller one. Whoever
/// hears of it last remembers it all the same, and tells it with the ring, before the emptied member serves.
#[test]
fn a_smaller_rival_life_is_remembered_and_goes_with_the_ring() {
    let mut emptied = emptied();
    let mut between = View::new(CLUSTER, entry(1), Some(Arc::new(ring(3, 1))));
    between.merge(delta(vec![life(9)]));
    between.merge(delta(vec![life(5)]));
    let mut between = View::decode(between.encode()).unwrap();

    let answer = between.answer(&emptied.digest());
    assert!(answer.delta.members.contains(&life(5)), "to a claim");
    // It asks for the ring in answer to a digest that lists its present life.
    let wanted = emptied.answer(&between.digest()).wanted;
    assert!(wanted.ring);
    let changes = emptied.merge(between.delta_for(&wanted));
    assert_eq!(changes.self_superseded, Some(life(5).incarnation));
    assert!(changes.ring);
    between.merge(delta(vec![life(5)]));
    assert_eq!(between.get(&id(2)), Some(&life(9)), "and the larger one holds");
}

/// A ring that goes to one who has none may be carried on: the rival lives of all members go with it.
#[test]
fn rival_lives_go_with_the_ring_through_others() {
    let mut emptied = emptied();
    let mut knows = View::new(CLUSTER, entry(1), Some(Arc::new(ring(3, 1))));
    knows.merge(delta(vec![life(5)]));
    knows.merge(delta(vec![life(9)]));
    let mut courier = View::new(CLUSTER, entry(0), None);

    exchange(&mut courier, &mut knows);
    let answer = courier.answer(&emptied.digest());
    assert!(answer.delta.ring.is_some());
    let changes = emptied.merge(answer.delta);
    assert_eq!(changes.self_superseded, Some(life(5).incarnation));
}

/// A volume that was put back in time and started twice before anybody compared it has a later generation than the life that it
/// lost. It knows which lives it began since the copy was made: any other one betrays it.
#[test]
fn z3_a_copy_that_was_started_twice_is_found_out_by_a_life_that_it_does_not_know() {
    let life = |generation, id| Incarnation { generation, id };
    let (copied, begun, present) = (life(1, 5), life(2, 6), life(3, 7));
    let entry = |incarnation| MemberEntry {
        incarnation,
        ..entry(0)
    };
    let told = |remembered| {
        let mut me = View::new(CLUSTER, entry(present), None).with_history(SelfHistory {
            previous: Some(copied),
            since: vec![begun],
            recovered: 100,
        });
        me.merge(delta(vec![entry(remembered)])).self_superseded
    };
    assert_eq!(told(life(2, 9)), Some(life(2, 9)));
    assert_eq!(told(life(3, 9)), Some(life(3, 9)));
    assert_eq!(told(begun), None, "its own");
    assert_eq!(told(copied), None, "nothing of it is lost");
    assert_eq!(told(life(1, 9)), None, "before the copy");
}

/// Two volumes are put back in time. The second one has forgotten what the first had announced, hears of its new life alone, and
/// would say that nothing is missing.
#[test]
fn z3_who_has_lost_its_own_memory_does_not_vouch_for_others() {
    let first_ring = || Some(Arc::new(ring(3, 1)));
    let mut knows = View::new(CLUSTER, entry(2), first_ring());
    knows.merge(delta(vec![of_first_life(100)]));
    let mut voucher = View::new(CLUSTER, entry(1), first_ring());
    voucher.merge(delta(vec![of_first_life(99)]));
    for view in [&mut knows, &mut voucher] {
        assert!(!view.vouches(), "it began without memory");
        (0..3).for_each(|other| _ = view.heard_from(&id(other)));
        assert!(view.vouches());
    }
    let mut put_back = restarted(99);
    exchange(&mut knows, &mut put_back);

    voucher.forget();
    exchange(&mut voucher, &mut knows);
    assert_eq!(voucher.get(&id(0)).unwrap().incarnation, SECOND);
    let answer = |peer: &View| peer.answer(&put_back.digest()).delta.members;
    assert!(!answer(&voucher).contains(&of_first_life(100)), "it cannot know");
    assert!(!voucher.vouches());
    assert!(answer(&knows).contains(&of_first_life(100)) && knows.vouches());

    voucher.heard_from(&id(2));
    assert!(!voucher.vouches(), "member 0 waits for a word itself");
    voucher.heard_from(&id(0));
    assert!(voucher.vouches());
    assert!(!View::new(CLUSTER, entry(1), None).vouches(), "without a ring");
}
