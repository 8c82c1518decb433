use std::collections::BTreeSet;

use super::*;
use crate::types::Zone;
use crate::version::{Actor, Content, Dot, Sibling, Stamp};

/// A replica's records in the order of the ring.
type Replica = BTreeMap<Position, KeyState>;

const NODES: usize = 3;

fn member(index: usize) -> MemberId {
    MemberId::new(format!("node-{index}")).unwrap()
}

fn candidates(reachable: [bool; NODES]) -> Vec<Candidate> {
    let all = reachable.into_iter().enumerate();
    all.map(|(index, reachable)| Candidate {
        member: member(index),
        zone: Zone::default(),
        reachable,
    })
    .collect()
}

fn dot(counter: u64) -> Dot {
    Dot {
        actor: Actor {
            incarnation: 1,
            epoch: 0,
        },
        counter,
    }
}

fn state(context: &[Dot], dot: Dot, content: Content) -> KeyState {
    let sibling = Sibling {
        stamp: Stamp(0),
        expires_at_ms: None,
        op_id: None,
        content,
    };
    KeyState::from_write(&context.iter().copied().collect(), dot, sibling)
}

fn value() -> KeyState {
    state(&[], dot(1), Content::Value(Bytes::from_static(b"x")))
}

fn tombstone() -> KeyState {
    state(&[dot(1)], dot(2), Content::Tombstone)
}

fn position(key: u32) -> Position {
    Position::new("default", &key.to_be_bytes()).unwrap()
}

/// What a node answers that looks at `look_max` records per page.
fn page(replica: &Replica, after: Option<&Position>, look_max: usize) -> ScanPage {
    let beyond = replica
        .iter()
        .filter(|(position, _)| after.is_none_or(|after| *position > after));
    let looked: Vec<_> = beyond.take(look_max).collect();
    let scanned = |(position, state): &(&Position, &KeyState)| ScannedKey {
        position: (*position).clone(),
        state: state.without_values(),
    };
    ScanPage {
        entries: looked.iter().map(scanned).collect(),
        position: looked.last().map(|(position, _)| (*position).clone()),
        done: looked.len() < look_max,
    }
}

/// Drives a listing to its end; `answer` gives the page or the failure.
fn run(
    listing: &mut RangeListing,
    mut answer: impl FnMut(&PageRequest) -> Result<ScanPage, FailureKind>,
) -> (Vec<Position>, Progress) {
    let mut keys = Vec::new();
    for _ in 0..10_000 {
        for request in listing.next_requests() {
            let page = answer(&request);
            listing.add_page(&request.member, page);
        }
        while let Some(key) = listing.next_key() {
            keys.push(key);
        }
        if listing.progress() != Progress::Pages {
            return (keys, listing.progress());
        }
    }
    panic!("the listing does not end");
}

fn index_of(member: &MemberId) -> usize {
    member.as_str().trim_start_matches("node-").parse().unwrap()
}

struct XorShift(u64);

impl XorShift {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// D14: each key and each delete reaches any W = 2 of 3 replicas; each page is of any size; one replica may fail at
/// any moment. Listed are exactly the keys put and not deleted, in order, each once.
#[test]
fn any_two_of_three_replicas_list_what_two_of_three_acknowledged() {
    let mut random = XorShift(0x5eed_1157);
    for round in 0..500 {
        let mut replicas = [Replica::new(), Replica::new(), Replica::new()];
        let mut live = BTreeSet::new();
        for key in 0..random.below(60) as u32 {
            let deleted = random.below(3) == 0;
            let misses = (random.below(NODES), random.below(NODES));
            for (node, replica) in replicas.iter_mut().enumerate() {
                let record = replica.entry(position(key)).or_default();
                if node != misses.0 {
                    record.merge(&value());
                }
                if deleted && node != misses.1 {
                    record.merge(&tombstone());
                }
            }
            if !deleted {
                live.insert(position(key));
            }
        }
        for replica in &mut replicas {
            replica.retain(|_, record| *record != KeyState::new());
        }
        let fails = random.below(2 * NODES);
        let mut patience = random.below(6);
        let mut listing = RangeListing::new(candidates([true; NODES]), 2, None, 0);
        let (keys, end) = run(&mut listing, |request| {
            let node = index_of(&request.member);
            if node == fails && patience == 0 {
                return Err(FailureKind::Unreachable);
            }
            patience = patience.saturating_sub(1);
            Ok(page(&replicas[node], request.after.as_ref(), 1 + random.below(8)))
        });
        assert_eq!(end, Progress::Done, "round {round}");
        assert_eq!(keys, live.into_iter().collect::<Vec<_>>(), "round {round}");
    }
}

#[test]
fn a_listing_goes_on_after_the_last_key_of_an_earlier_one() {
    let replica: Replica = (0..20).map(|key| (position(key), value())).collect();
    let all: Vec<Position> = replica.keys().cloned().collect();
    for after in [0, 7, 19] {
        let mut listing = RangeListing::new(candidates([true; NODES]), 2, Some(all[after].clone()), 0);
        let (keys, end) = run(&mut listing, |request| {
            Ok(page(&replica, request.after.as_ref(), 3))
        });
        assert_eq!((keys.as_slice(), end), (&all[after + 1..], Progress::Done));
    }
}

#[test]
fn a_source_that_is_ahead_waits() {
    let long: Replica = (0..100).map(|key| (position(key), value())).collect();
    let mut listing = RangeListing::new(candidates([true; NODES]), 2, None, 0);
    let requests = listing.next_requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(listing.next_requests(), [], "each page is asked for once");
    listing.add_page(&member(0), Ok(page(&long, None, 10)));
    assert_eq!(listing.next_key(), None, "the other one has not looked yet");
    assert_eq!(listing.next_requests(), []);
    let behind = page(&long, None, 4);
    listing.add_page(&member(1), Ok(behind.clone()));
    let requests = listing.next_requests();
    assert_eq!(
        requests,
        [PageRequest {
            member: member(1),
            after: behind.position
        }]
    );
    assert_eq!(std::iter::from_fn(|| listing.next_key()).count(), 4);
}

#[test]
fn too_few_replicas_are_said_so() {
    let mut listing = RangeListing::new(candidates([true, false, false]), 2, None, 0);
    assert_eq!(listing.next_requests(), []);
    let unreachable = |index| FailedReplica {
        member: member(index),
        kind: FailureKind::Unreachable,
    };
    let failed = vec![unreachable(2), unreachable(1)];
    assert_eq!(
        listing.progress(),
        Progress::Unavailable {
            needed: 2,
            got: 1,
            failed
        }
    );
}

#[test]
fn a_page_that_leads_nowhere_is_a_failure() {
    let replica: Replica = (0..9).map(|key| (position(key), value())).collect();
    let good = page(&replica, None, 5);
    let stuck = ScanPage {
        entries: Vec::new(),
        position: None,
        done: false,
    };
    let backwards = ScanPage {
        entries: good.entries.iter().rev().cloned().collect(),
        ..good.clone()
    };
    let beyond = ScanPage {
        position: good.entries.first().map(|entry| entry.position.clone()),
        ..good
    };
    for bad in [stuck, backwards, beyond] {
        let mut listing = RangeListing::new(candidates([true; NODES]), 1, None, 0);
        let (keys, end) = run(&mut listing, |request| match index_of(&request.member) {
            0 => Ok(bad.clone()),
            _ => Ok(page(&replica, request.after.as_ref(), 5)),
        });
        assert_eq!((keys.len(), end), (9, Progress::Done));

        let mut alone = RangeListing::new(candidates([true, false, false]), 1, None, 0);
        let (keys, end) = run(&mut alone, |_| Ok(bad.clone()));
        assert!(
            keys.is_empty()
                && matches!(
                    end,
                    Progress::Unavailable {
                        needed: 1,
                        got: 0,
                        ..
                    }
                )
        );
    }
}

#[test]
fn what_one_replica_alone_says_is_not_decided() {
    let replica: Replica = (0..9).map(|key| (position(key), value())).collect();
    let mut listing = RangeListing::new(candidates([true, true, false]), 2, None, 0);
    assert_eq!(listing.next_requests().len(), 2);
    listing.add_page(&member(0), Ok(page(&replica, None, 20)));
    listing.add_page(&member(1), Err(FailureKind::TimedOut));
    assert_eq!(listing.next_key(), None, "the other one may hold a delete");
    assert!(matches!(
        listing.progress(),
        Progress::Unavailable {
            needed: 2,
            got: 1,
            ..
        }
    ));
}

#[test]
fn late_and_unknown_pages_are_ignored() {
    let mut listing = RangeListing::new(candidates([true; NODES]), 1, None, 0);
    listing.add_page(&member(0), Err(FailureKind::TimedOut));
    listing.add_page(
        &member(2),
        Ok(ScanPage {
            entries: Vec::new(),
            position: None,
            done: true,
        }),
    );
    assert_eq!(listing.progress(), Progress::Pages);
}

#[test]
fn positions_are_ordered_as_their_parts_and_read_back() {
    let keys = [b"".as_slice(), b"a", b"a\0", b"ab", b"\0", b"\xff\xff"];
    let buckets = ["a", "a-b", "ab", "default"];
    let mut all: Vec<Position> = buckets
        .iter()
        .flat_map(|bucket| keys.iter().map(|key| Position::new(bucket, key).unwrap()))
        .collect();
    for position in &all {
        assert_eq!(position.hash(), KeyHash::of(position.bucket(), &position.key()));
        assert_eq!(
            Position::decode(position.as_bytes().clone()).as_ref(),
            Ok(position)
        );
    }
    all.sort();
    let parts = |position: &Position| {
        (
            position.hash(),
            position.bucket().len(),
            position.bucket().to_owned(),
            position.key(),
        )
    };
    assert!(all.windows(2).all(|pair| parts(&pair[0]) < parts(&pair[1])));
    assert!(all.windows(2).all(|pair| pair[0].as_bytes() < pair[1].as_bytes()));
    assert!(Position::new(&"b".repeat(255), b"").is_ok() && Position::new(&"b".repeat(256), b"").is_err());
}
