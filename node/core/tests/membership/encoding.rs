//! The persisted form of a view.

use std::sync::Arc;

use bytes::Bytes;
use dynamo_core::membership::{Claim, Digest, Life, MemberEntry, Policy, RingVersion, View};
use dynamo_core::ring::{Member, Ring, RingParts};
use dynamo_core::transition::{Mark, Step};
use dynamo_core::types::{ClusterId, Incarnation, MemberId, Zone};
use dynamo_core::wire::DecodeError;

use super::support::{CLUSTER, Random, entry, exchange, ring, view};

/// Written by an independent encoder (Python: struct, hashlib and a table-driven CRC-32C).
const FORMAT_1: &str = include_str!("../../testdata/membership/view-format-1.hex");
const FORMAT_2: &str = include_str!("../../testdata/membership/view-format-2.hex");
const FORMAT_3: &str = include_str!("../../testdata/membership/view-format-3.hex");

fn unhex(text: &str) -> Bytes {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}

fn with_checksum(mut body: Vec<u8>) -> Bytes {
    body.extend_from_slice(&crc32c::crc32c(&body).to_be_bytes());
    body.into()
}

#[test]
fn golden_view_of_format_version_1() {
    let golden = unhex(FORMAT_1);
    let view = View::decode(golden.clone()).unwrap();
    // It is written in the form of today and read back the same.
    let renewed = view.encode();
    assert_eq!(renewed[0], 3);
    assert_eq!(View::decode(renewed).unwrap(), view);
    assert_eq!(view.policies().len(), 0);
    assert_eq!(
        view.cluster_id(),
        ClusterId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
    );
    let me = MemberEntry {
        member: MemberId::new("b.1").unwrap(),
        incarnation: Incarnation {
            generation: 2,
            id: 0xfedc_ba98_7654_3210,
        },
        version: 300,
        peer_address: "[2001:db8::1]:7701".into(),
        client_address: String::new(),
        admin_address: String::new(),
        zone: Zone::default(),
        release: String::new(),
        starts: 5,
        synced: 0,
    };
    assert_eq!(view.me(), &me);
    assert_eq!(
        view.members()
            .map(|entry| entry.member.as_str())
            .collect::<Vec<_>>(),
        ["a-0", "b.1"]
    );
    assert_eq!(view.ring().unwrap().version(), (300, 0xbcbc_a182_bd8e_4de3));
    let log: Vec<_> = view
        .log()
        .map(|entry| (entry.epoch, entry.hash, entry.members.len()))
        .collect();
    assert_eq!(
        log,
        [(1, 0x0102_0304_0506_0708, 1), (300, 0xbcbc_a182_bd8e_4de3, 3)]
    );
}

#[test]
fn golden_view_of_format_version_2() {
    let golden = unhex(FORMAT_2);
    let view = View::decode(golden.clone()).unwrap();
    assert_eq!(View::decode(view.encode()).unwrap(), view);
    let synced: Vec<u64> = view.members().map(|entry| entry.synced).collect();
    assert_eq!(synced, [70_000, 128]);
    let policies: Vec<_> = view.policies().collect();
    let cart = Policy {
        version: 300,
        bytes: Bytes::from_static(&[1, 0, 255]),
    };
    let empty = Policy {
        version: 1,
        bytes: Bytes::new(),
    };
    assert_eq!(policies, [("cart", &cart), ("z", &empty)]);
    // What is known of a-0's life before is not lost: it contradicts a volume of then.
    let claim = Claim {
        member: MemberId::new("a-0").unwrap(),
        lives: vec![Life {
            incarnation: Incarnation { generation: 0, id: 9 },
            synced: 4,
        }],
    };
    let digest = Digest {
        claim: Some(claim),
        ..view.digest()
    };
    let told: Vec<u64> = view
        .answer(&digest)
        .delta
        .members
        .iter()
        .map(|entry| entry.synced)
        .collect();
    // The present life is none that it accounts for either.
    assert_eq!(told, [70_000, 5]);
    // Otherwise as in version 1.
    let old = View::decode(unhex(FORMAT_1)).unwrap();
    assert_eq!(view.ring(), old.ring());
    assert!(view.log().eq(old.log()));
    let transition = view.transition().unwrap();
    assert!(transition.followers().is_empty() && transition.remembers());
}

#[test]
fn golden_view_of_format_version_3() {
    let golden = unhex(FORMAT_3);
    let view = View::decode(golden.clone()).unwrap();
    assert_eq!(view.encode(), golden);
    let transition = view.transition().unwrap();
    let next = transition.next().unwrap();
    assert_eq!(transition.base().epoch(), 300);
    assert_eq!(next.ring.version(), (301, 0xa5e3_9238_6d57_1dc9));
    assert_eq!(next.base, RingVersion::from(transition.base().as_ref()));
    assert_eq!(next.dead, [MemberId::new("a-0").unwrap()].into());
    let mark = Mark {
        ring: next.version(),
        member: MemberId::new("b.1").unwrap(),
        incarnation: view.me().incarnation,
        step: Step::Known,
    };
    assert_eq!(transition.followers().marks, [mark].into());
    let unheard: Vec<_> = transition.unheard().into_iter().map(MemberId::as_str).collect();
    assert_eq!(unheard, ["c2"], "the dead are not waited for, a-0 was heard");
    // Otherwise as in version 2.
    let old = View::decode(unhex(FORMAT_2)).unwrap();
    assert_eq!(view.ring(), old.ring());
    assert!(view.log().eq(old.log()) && view.policies().eq(old.policies()));
}

#[test]
fn views_survive_a_restart() {
    let mut before = View::new(CLUSTER, entry(0), None);
    assert_eq!(View::decode(before.encode()).unwrap(), before);
    for number in 1..20 {
        exchange(&mut before, &mut view(number));
    }
    before.adopt(Arc::new(ring(3, 1)));
    before.adopt(Arc::new(ring(5, 2)));
    let mut after = View::decode(before.encode()).unwrap();
    assert_eq!(after, before);
    after.update_self(|me| me.starts += 1);
    assert_eq!((after.me().starts, after.me().version), (2, 2));
    // The others hear of it.
    let mut other = view(1);
    exchange(&mut other, &mut after);
    assert_eq!(other.get(&entry(0).member).unwrap().starts, 2);
}

#[test]
fn largest_views_are_of_bounded_size() {
    let name = |number: usize| MemberId::new(format!("{number:063}")).unwrap();
    let zone = Zone::new("z".repeat(63)).unwrap();
    let members: Vec<Member> = (0..4096)
        .map(|number| Member {
            id: name(number),
            zone: zone.clone(),
            weight: 100,
        })
        .collect();
    let owners = (0..16_384u32)
        .map(|partition| (partition % 4096) as u16)
        .collect();
    let ring = Ring::new(RingParts {
        cluster_id: CLUSTER,
        epoch: 1,
        factor: 7,
        members,
        owners,
    })
    .unwrap();
    let view = View::new(
        CLUSTER,
        MemberEntry {
            member: name(0),
            ..entry(0)
        },
        Some(Arc::new(ring)),
    );
    assert_eq!(View::decode(view.encode()).unwrap(), view);
    let bytes = view.encode().len();
    println!("view with the largest ring: {bytes} bytes");
    assert!(bytes < 1 << 20);
}

#[test]
fn damage_is_noticed() {
    for golden in [unhex(FORMAT_1), unhex(FORMAT_2), unhex(FORMAT_3)] {
        for at in 0..golden.len() {
            for bit in 0..8 {
                let mut damaged = golden.to_vec();
                damaged[at] ^= 1 << bit;
                assert!(View::decode(damaged.into()).is_err(), "bit {bit} of byte {at}");
            }
            assert!(View::decode(golden.slice(..at)).is_err(), "cut at {at}");
        }
    }
    assert_eq!(View::decode(Bytes::new()), Err(DecodeError::Truncated));
    assert_eq!(
        View::decode(Bytes::from_static(&[9])),
        Err(DecodeError::UnknownFormat(9))
    );
}

/// A million, fewer in a debug build, or `DYNAMO_FUZZ_INPUTS`.
fn inputs() -> usize {
    let default = if cfg!(debug_assertions) { 30_000 } else { 1_000_000 };
    std::env::var("DYNAMO_FUZZ_INPUTS").map_or(default, |text| text.parse().unwrap())
}

#[test]
fn decoder_survives_a_million_random_and_mutated_inputs() {
    let rounds = inputs();
    let mut grown = View::new(CLUSTER, entry(0), Some(Arc::new(ring(2, 1))));
    exchange(&mut grown, &mut view(1));
    let seeds = [unhex(FORMAT_1), unhex(FORMAT_3), view(3).encode(), grown.encode()];
    let mut random = Random::new(11);
    let mut decoded = 0;
    for round in 0..rounds {
        let mut body: Vec<u8> = if round % 4 == 0 {
            let length = random.below(160);
            (0..length)
                .map(|index| if index == 0 { 3 } else { random.next() as u8 })
                .collect()
        } else {
            let seed = &seeds[random.below(seeds.len())];
            seed[..seed.len() - 4].to_vec()
        };
        for _ in 0..random.below(4) {
            if body.is_empty() {
                break;
            }
            let at = random.below(body.len());
            match random.below(5) {
                0 => body[at] ^= 1 << random.below(8),
                1 => body[at] = random.next() as u8,
                2 => body.truncate(at),
                3 => body.insert(at, random.next() as u8),
                _ => {
                    body.remove(at);
                }
            }
        }
        let bytes = if round % 16 == 1 {
            body.into()
        } else {
            with_checksum(body)
        };
        if let Ok(view) = View::decode(bytes.clone()) {
            if bytes[0] == 3 {
                assert_eq!(view.encode(), bytes, "a view has one encoding");
            } else {
                assert_eq!(
                    View::decode(view.encode()),
                    Ok(view),
                    "and keeps what an older one said"
                );
            }
            decoded += 1;
        }
    }
    println!("{decoded} of {rounds} inputs were views");
    assert!(decoded > rounds / 10 && decoded < rounds);
}
