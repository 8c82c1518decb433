//! What two views tell each other, and what they believe.

use std::sync::Arc;

use bytes::Bytes;
use dynamo_core::membership::entry::{ADDRESS_BYTES_MAX, COUNTER_MAX};
use dynamo_core::membership::log::LOG_ENTRIES_MAX;
use dynamo_core::membership::message::DELTA_ENTRIES_MAX;
use dynamo_core::membership::view::MEMBERS_MAX;
use dynamo_core::membership::{Delta, EntryError, MemberEntry, Refusal, SelfHistory, View};
use dynamo_core::types::{ClusterId, Incarnation, MemberId};

use super::support::{CLUSTER, Random, delta, entry, exchange, id, ring, ring_of, view};

fn ring_delta(bytes: Bytes) -> Delta {
    Delta {
        ring: Some(bytes),
        ..delta(Vec::new())
    }
}

/// The view of node 0 that knows all of 0..count.
fn knowing(count: usize) -> View {
    let mut view = view(0);
    view.merge(delta((1..count).map(entry).collect()));
    view
}

#[test]
fn d58_equal_peers_exchange_digests_only() {
    let mut first = knowing(40);
    first.adopt(Arc::new(ring(5, 3)));
    let mut second = view(1);
    while exchange(&mut first, &mut second) > 0 {}
    let answer = second.answer(&first.digest());
    assert!(answer.delta.members.is_empty() && answer.delta.ring.is_none());
    assert!(answer.wanted.members.is_empty() && !answer.wanted.ring);
    assert_eq!(exchange(&mut first, &mut second), 0);
}

#[test]
fn d58_k_newer_entries_are_exactly_what_is_sent() {
    for newer in 0..=39 {
        for newer_at_first in [true, false] {
            let mut first = knowing(40);
            let mut second = View::new(CLUSTER, entry(0), None);
            second.merge(delta((1..40).map(entry).collect()));
            let ahead = if newer_at_first { &mut first } else { &mut second };
            let changed: Vec<MemberEntry> = (1..=newer)
                .map(|number| MemberEntry {
                    version: 2,
                    starts: 7,
                    ..entry(number)
                })
                .collect();
            assert_eq!(ahead.merge(delta(changed)).members.len(), newer);

            let answer = second.answer(&first.digest());
            let (sent, wanted) = (answer.delta.members.len(), answer.wanted.members.len());
            assert_eq!(
                (sent, wanted),
                if newer_at_first { (0, newer) } else { (newer, 0) }
            );
            assert_eq!(exchange(&mut first, &mut second), newer);
            assert_eq!(first.digest(), second.digest());
        }
    }
}

#[test]
fn d58_each_side_gets_what_it_lacks() {
    let (mut first, mut second) = (knowing(20), view(30));
    second.merge(delta((21..30).map(entry).collect()));
    assert_eq!(exchange(&mut first, &mut second), 30);
    assert_eq!(
        first.members().collect::<Vec<_>>(),
        second.members().collect::<Vec<_>>()
    );
    assert_eq!(first.members().len(), 30);
}

#[test]
fn newer_means_incarnation_then_version() {
    let mut view = view(0);
    let with = |generation, id, version, starts| MemberEntry {
        incarnation: Incarnation { generation, id },
        version,
        starts,
        ..entry(1)
    };
    for (known, heard, taken) in [
        (with(1, 5, 3, 1), with(1, 5, 4, 2), true),
        (with(1, 5, 4, 2), with(1, 5, 4, 3), false),
        (with(1, 5, 4, 2), with(1, 5, 3, 3), false),
        (with(1, 5, 4, 2), with(1, 6, 1, 3), true),
        (with(1, 6, 1, 3), with(2, 1, 1, 4), true),
        (with(2, 1, 1, 4), with(1, 9, 99, 5), false),
    ] {
        view.merge(delta(vec![known.clone()]));
        assert_eq!(view.get(&id(1)), Some(&known));
        let changes = view.merge(delta(vec![heard.clone()]));
        assert_eq!(
            changes.members,
            if taken { vec![id(1)] } else { vec![] },
            "{heard:?} after {known:?}"
        );
        assert_eq!(view.get(&id(1)), Some(if taken { &heard } else { &known }));
    }
}

/// Two volumes were emptied at once, and met each other before they met anybody who remembers: when they do, each can
/// tell the other.
#[test]
fn of_two_lives_the_one_that_is_heard_of_later_is_told_too() {
    let life = |id, synced| MemberEntry {
        incarnation: Incarnation { generation: 1, id },
        synced,
        ..entry(1)
    };
    let (old, emptied) = (life(5, 78), life(9, 1));
    for order in [[&old, &emptied], [&emptied, &old]] {
        let mut witness = view(0);
        for entry in order {
            witness.merge(delta(vec![entry.clone()]));
        }
        let history = SelfHistory {
            previous: None,
            since: Vec::new(),
            recovered: 0,
        };
        let view = View::new(CLUSTER, emptied.clone(), None).with_history(history);
        let told = witness.answer(&view.digest()).delta.members;
        assert!(told.contains(&old), "{order:?}: {told:?}");
    }
}

#[test]
fn a_member_alone_says_what_it_is() {
    let mut view = view(0);
    let lie = MemberEntry {
        peer_address: "evil:1".into(),
        version: 50,
        ..entry(0)
    };
    let changes = view.merge(delta(vec![lie.clone()]));
    assert_eq!(changes.self_superseded, None);
    assert_eq!(view.me().peer_address, entry(0).peer_address);
    // Its own words become newer than the lie, and are heard by those who believed it.
    assert_eq!(view.me().version, 51);
    assert_eq!(changes.members, [id(0)]);
    let mut other = super::support::view(1);
    other.merge(delta(vec![lie]));
    exchange(&mut view, &mut other);
    assert_eq!(other.get(&id(0)), Some(view.me()));
}

#[test]
fn an_older_entry_about_myself_means_nothing() {
    let mut view = view(0);
    view.update_self(|me| me.starts = 3);
    let before = view.clone();
    let older_life = MemberEntry {
        incarnation: Incarnation {
            generation: 0,
            id: 77,
        },
        version: 99,
        ..entry(0)
    };
    let changes = view.merge(delta(vec![entry(0), older_life]));
    assert_eq!((changes.members, changes.self_superseded), (vec![], None));
    assert_eq!(view, before);
}

#[test]
fn somebody_else_under_my_name_is_noticed() {
    let mine = entry(0).incarnation;
    for (theirs, noticed) in [
        (
            Incarnation {
                generation: mine.generation,
                id: mine.id + 1,
            },
            true,
        ),
        (
            Incarnation {
                generation: mine.generation,
                id: mine.id - 1,
            },
            true,
        ),
        (
            Incarnation {
                generation: mine.generation + 1,
                id: 3,
            },
            true,
        ),
        (
            Incarnation {
                generation: mine.generation - 1,
                id: 3,
            },
            false,
        ),
    ] {
        let mut view = view(0);
        let changes = view.merge(delta(vec![MemberEntry {
            incarnation: theirs,
            ..entry(0)
        }]));
        assert_eq!(changes.self_superseded, noticed.then_some(theirs));
        assert_eq!(view.me(), &entry(0), "it is for the node to act");
    }
}

#[test]
fn a_volume_rolled_back_is_noticed() {
    let mut view = view(0);
    let later = MemberEntry {
        starts: 2,
        version: 9,
        ..entry(0)
    };
    assert_eq!(
        view.merge(delta(vec![later])).self_superseded,
        Some(entry(0).incarnation)
    );
}

#[test]
fn updates_of_myself_are_newer() {
    let mut view = view(0);
    view.update_self(|me| {
        me.client_address = "new:7700".into();
        me.member = id(5);
    });
    assert_eq!((view.me().version, view.me().member.clone()), (2, id(0)));
    assert_eq!(view.me().client_address, "new:7700");
}

#[test]
fn d9_the_larger_ring_wins_everywhere() {
    // Two rings of one epoch: the hash decides, whichever comes first.
    let (a, b) = (ring(3, 2), ring(4, 2));
    let winner = if a.hash() > b.hash() { &a } else { &b };
    for order in [[&a, &b], [&b, &a]] {
        let mut view = view(0);
        for ring in order {
            view.merge(ring_delta(ring.encode()));
        }
        assert_eq!(view.ring().unwrap().as_ref(), winner);
        // A smaller one changes nothing; the same one neither.
        assert!(!view.merge(ring_delta(ring(5, 1).encode())).ring);
        assert!(!view.merge(ring_delta(winner.encode())).ring);
        assert!(view.merge(ring_delta(ring(2, 3).encode())).ring);
        assert_eq!(view.ring().unwrap().epoch(), 3);
    }
}

#[test]
fn rings_travel_to_who_lacks_them() {
    let mut first = View::new(CLUSTER, entry(0), Some(Arc::new(ring(2, 4))));
    let mut second = view(1);
    let answer = second.answer(&first.digest());
    assert!(answer.wanted.ring && answer.delta.ring.is_none());
    exchange(&mut first, &mut second);
    assert_eq!(first.ring(), second.ring());
    // And the other way round.
    second.adopt(Arc::new(ring(2, 5)));
    exchange(&mut first, &mut second);
    assert_eq!(first.ring().unwrap().epoch(), 5);
}

#[test]
fn damaged_and_foreign_rings_are_refused() {
    let mut view = View::new(CLUSTER, entry(0), Some(Arc::new(ring(2, 1))));
    let before = view.clone();
    let mut damaged = ring(3, 9).encode().to_vec();
    damaged[40] ^= 1;
    let changes = view.merge(ring_delta(damaged.into()));
    assert!(matches!(changes.refused[..], [Refusal::RingDamaged(_)]) && !changes.ring);
    let foreign = ring_of(ClusterId([8; 16]), 3, 9);
    let changes = view.merge(ring_delta(foreign.encode()));
    assert_eq!(changes.refused, [Refusal::RingForeign(ClusterId([8; 16]))]);
    assert!(!view.adopt(Arc::new(foreign)));
    assert_eq!(view, before);
}

#[test]
fn m_a_foreign_cluster_is_refused() {
    let mut view = View::new(CLUSTER, entry(0), Some(Arc::new(ring(2, 1))));
    let before = view.clone();
    let stranger = View::new(
        ClusterId([8; 16]),
        entry(1),
        Some(Arc::new(ring_of(ClusterId([8; 16]), 3, 9))),
    );
    let answer = view.answer(&stranger.digest());
    assert!(answer.delta.members.is_empty() && answer.delta.ring.is_none());
    assert!(answer.wanted.members.is_empty() && !answer.wanted.ring);
    let changes = view.merge(stranger.answer(&super::support::view(5).digest()).delta);
    assert_eq!(changes.refused, [Refusal::ForeignCluster(ClusterId([8; 16]))]);
    assert_eq!(view, before);
}

#[test]
fn entries_out_of_bounds_are_refused_and_the_others_taken() {
    let mut view = view(0);
    let long = MemberEntry {
        peer_address: "x".repeat(ADDRESS_BYTES_MAX + 1),
        ..entry(1)
    };
    let late = MemberEntry {
        version: COUNTER_MAX,
        ..entry(2)
    };
    let started = MemberEntry {
        starts: u64::MAX,
        ..entry(3)
    };
    let changes = view.merge(delta(vec![long, late, started, entry(4)]));
    assert_eq!(changes.members, [id(4)]);
    assert_eq!(changes.refused.len(), 3);
    assert!(matches!(
        changes.refused[0],
        Refusal::Entry(EntryError::TooLong { bytes: 265, .. })
    ));
    assert!(matches!(
        changes.refused[1],
        Refusal::Entry(EntryError::TooLarge { field: "version", .. })
    ));
    assert_eq!(view.members().len(), 2);
}

#[test]
fn a_full_view_makes_room_for_members_of_the_ring_only() {
    let stranger = |number: usize| MemberEntry {
        member: MemberId::new(format!("s{number}")).unwrap(),
        ..entry(1)
    };
    let mut view = View::new(CLUSTER, entry(0), Some(Arc::new(ring(3, 1))));
    for first in (0..MEMBERS_MAX - 1).step_by(DELTA_ENTRIES_MAX) {
        let last = (first + DELTA_ENTRIES_MAX).min(MEMBERS_MAX - 1);
        view.merge(delta((first..last).map(stranger).collect()));
    }
    assert_eq!(view.members().len(), MEMBERS_MAX);
    let changes = view.merge(delta(vec![stranger(9999), entry(2)]));
    assert_eq!(changes.members, [id(2)]);
    assert_eq!(changes.refused, [Refusal::Full(stranger(9999).member)]);
    assert_eq!(view.members().len(), MEMBERS_MAX);
    assert!(view.get(&id(0)).is_some() && view.get(&id(2)).is_some());
}

#[test]
fn large_differences_come_in_bounded_parts() {
    let named = |number: usize| MemberEntry {
        member: MemberId::new(format!("n{number:05}")).unwrap(),
        ..entry(1)
    };
    let (mut first, mut second) = (view(0), view(1));
    let all: Vec<MemberEntry> = (0..2500).map(named).collect();
    for part in all.chunks(DELTA_ENTRIES_MAX) {
        first.merge(delta(part.to_vec()));
    }
    let sent: Vec<usize> = (0..4).map(|_| exchange(&mut first, &mut second)).collect();
    assert_eq!(sent, [1024 + 1, 1024, 453, 0]);
    assert_eq!(first.digest(), second.digest());
    // More than the bound in one message is not read.
    let mut third = view(2);
    assert_eq!(third.merge(delta(all)).members.len(), DELTA_ENTRIES_MAX);
}

#[test]
fn merging_is_idempotent_and_commutative() {
    let mut random = Random::new(3);
    for round in 0..500 {
        let mut deltas: Vec<Delta> = (0..6)
            .map(|_| {
                let members = (0..random.below(5)).map(|_| MemberEntry {
                    incarnation: Incarnation {
                        generation: 1 + random.below(2) as u32,
                        id: random.below(3) as u64,
                    },
                    version: 1 + random.below(3) as u64,
                    ..entry(1 + random.below(4))
                });
                let members = members
                    .map(|entry| MemberEntry {
                        starts: entry.version,
                        ..entry
                    })
                    .collect();
                let ring = (random.below(2) == 0)
                    .then(|| ring(1 + random.below(3), 1 + random.below(3) as u64).encode());
                Delta {
                    ring,
                    ..delta(members)
                }
            })
            .collect();
        let apply = |deltas: &[Delta]| {
            let mut view = view(0);
            for delta in deltas {
                view.merge(delta.clone());
                let again = view.merge(delta.clone());
                assert!(again.members.is_empty() && !again.ring, "round {round}");
            }
            view.digest()
        };
        let forwards = apply(&deltas);
        deltas.reverse();
        assert_eq!(apply(&deltas), forwards, "round {round}");
    }
}

#[test]
fn d59_the_log_lists_accepted_rings_and_is_bounded() {
    let mut view = View::new(CLUSTER, entry(0), Some(Arc::new(ring(1, 1))));
    view.adopt(Arc::new(ring(2, 2)));
    view.merge(ring_delta(ring(3, 3).encode()));
    view.merge(ring_delta(ring(3, 2).encode()));
    let log: Vec<_> = view
        .log()
        .map(|entry| (entry.epoch, entry.members.len()))
        .collect();
    // The one that came too late to be used was in use at its sender. Of one epoch, the hash decides the order.
    let concurrent = if ring(2, 2).hash() < ring(3, 2).hash() {
        [(2, 2), (2, 3)]
    } else {
        [(2, 3), (2, 2)]
    };
    assert_eq!(log, [(1, 1), concurrent[0], concurrent[1], (3, 3)]);
    assert_eq!(view.log().last().unwrap().hash, ring(3, 3).hash());
    for epoch in 4..=LOG_ENTRIES_MAX as u64 + 10 {
        view.adopt(Arc::new(ring(1, epoch)));
    }
    assert_eq!(view.log().len(), LOG_ENTRIES_MAX);
    assert_eq!(view.log().next().unwrap().epoch, 11);
}
