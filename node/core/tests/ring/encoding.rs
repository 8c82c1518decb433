//! The bytes of rings.

use bytes::Bytes;
use dynamo_core::ring::{Member, Ring, RingParts};
use dynamo_core::types::{ClusterId, MemberId, PartitionId, Zone, digest_u64};
use dynamo_core::wire::DecodeError;

use super::support::{CLUSTER, Random, members_in};

/// Written by an independent encoder (Python: struct, hashlib and a table-driven CRC-32C).
const FORMAT_1: &str = include_str!("../../testdata/ring/format-1.hex");
const FORMAT_1_HASH: u64 = 0xbcbc_a182_bd8e_4de3;

fn format_1_parts() -> RingParts {
    let member = |id, zone, weight| Member {
        id: MemberId::new(id).unwrap(),
        zone: Zone::new(zone).unwrap(),
        weight,
    };
    RingParts {
        cluster_id: ClusterId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
        epoch: 300,
        factor: 2,
        members: vec![
            member("a-0", "eu-1", 1),
            member("b.1", "", 100),
            member("c2", "Zone_C", 7),
        ],
        owners: vec![0, 1, 2, 0, 1, 2, 2, 1],
    }
}

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
fn golden_ring_of_format_version_1() {
    let ring = Ring::new(format_1_parts()).unwrap();
    let golden = unhex(FORMAT_1);
    assert_eq!(ring.encode(), golden);
    assert_eq!(Ring::decode(golden.clone()).unwrap(), ring);
    assert_eq!(ring.hash(), FORMAT_1_HASH);
    assert_eq!(
        ring.hash(),
        digest_u64(&golden[..golden.len() - 4]),
        "the hash leaves the checksum out"
    );
}

#[test]
fn encoding_is_canonical_and_the_hash_covers_everything() {
    let change: [fn(&mut RingParts); 7] = [
        |p| p.cluster_id.0[15] ^= 1,
        |p| p.epoch += 1,
        |p| p.factor += 1,
        |p| p.members[0].id = MemberId::new("a-1").unwrap(),
        |p| p.members[0].zone = Zone::default(),
        |p| p.members[0].weight += 1,
        |p| p.owners.swap(0, 1),
    ];
    let plain = Ring::new(format_1_parts()).unwrap();
    for (number, change) in change.into_iter().enumerate() {
        let mut parts = format_1_parts();
        change(&mut parts);
        let ring = Ring::new(parts).unwrap();
        assert_ne!(ring.hash(), plain.hash(), "change {number}");
        assert_eq!(Ring::decode(ring.encode()).unwrap(), ring, "change {number}");
    }
}

#[test]
fn large_rings_fit_their_bound() {
    // G19: the map of a large cluster.
    let owners = (0..16_384u32).map(|p| (p % 1000) as u16).collect();
    let parts = RingParts {
        cluster_id: CLUSTER,
        epoch: 9,
        factor: 3,
        members: members_in(&[334, 333, 333]),
        owners,
    };
    let ring = Ring::new(parts).unwrap();
    let bytes = ring.encode();
    println!("16384 partitions, 1000 members: {} bytes", bytes.len());
    assert!(bytes.len() <= 98 << 10);
    assert_eq!(
        Ring::decode(bytes)
            .unwrap()
            .preference_list(PartitionId(16_383))
            .primaries
            .len(),
        3
    );
}

#[test]
fn every_damaged_byte_and_every_truncation_is_noticed() {
    let golden = unhex(FORMAT_1);
    for at in 0..golden.len() {
        for bit in 0..8 {
            let mut damaged = golden.to_vec();
            damaged[at] ^= 1 << bit;
            assert!(Ring::decode(damaged.into()).is_err(), "bit {bit} of byte {at}");
        }
        assert!(Ring::decode(golden.slice(..at)).is_err(), "cut at {at}");
    }
    let mut longer = golden.to_vec();
    longer.push(0);
    assert!(Ring::decode(longer.into()).is_err());
}

#[test]
fn errors_say_what_is_wrong() {
    let body = || unhex(FORMAT_1)[..unhex(FORMAT_1).len() - 4].to_vec();
    assert_eq!(Ring::decode(Bytes::new()), Err(DecodeError::Truncated));
    assert_eq!(
        Ring::decode(Bytes::from_static(&[2, 0, 0])),
        Err(DecodeError::UnknownFormat(2))
    );
    assert_eq!(
        Ring::decode(Bytes::from_static(&[1, 0, 0, 0, 0, 0])),
        Err(DecodeError::Checksum)
    );
    let mut longer = body();
    longer.push(0);
    assert_eq!(Ring::decode(with_checksum(longer)), Err(DecodeError::Trailing));
    let mut owner = body();
    let last = owner.len() - 1;
    owner[last] = 3;
    assert_eq!(
        Ring::decode(with_checksum(owner)),
        Err(DecodeError::Invalid("ring"))
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
    let seeds: Vec<Bytes> = [
        unhex(FORMAT_1),
        Ring::bootstrap(CLUSTER, members_in(&[2, 1]), 16, 2)
            .unwrap()
            .encode(),
    ]
    .into_iter()
    .map(|bytes| bytes.slice(..bytes.len() - 4))
    .collect();
    let mut random = Random::new(1_000_000);
    let mut decoded = 0;
    for round in 0..rounds {
        let mut body = if round % 4 == 0 {
            let length = random.below(120);
            (0..length)
                .map(|index| if index == 0 { 1 } else { random.next() as u8 })
                .collect()
        } else {
            seeds[random.below(seeds.len())].to_vec()
        };
        for _ in 0..random.below(4) {
            mutate(&mut body, &mut random);
        }
        // Most with a right checksum, which would hide the rest of the decoder otherwise.
        let bytes = if round % 16 == 1 {
            body.into()
        } else {
            with_checksum(body)
        };
        if let Ok(ring) = Ring::decode(bytes.clone()) {
            assert_eq!(ring.encode(), bytes, "a ring has one encoding");
            let list = ring.preference_list(PartitionId(round as u32));
            assert_eq!(list.primaries.len(), ring.factor() as usize);
            decoded += 1;
        }
    }
    println!("{decoded} of {rounds} inputs were rings");
    assert!(decoded > rounds / 10 && decoded < rounds);
}

fn mutate(body: &mut Vec<u8>, random: &mut Random) {
    if body.is_empty() {
        return;
    }
    let at = random.below(body.len());
    match random.below(6) {
        0 => body[at] ^= 1 << random.below(8),
        1 => body[at] = random.next() as u8,
        2 => body.truncate(at),
        3 => body.insert(at, random.next() as u8),
        4 => {
            body.remove(at);
        }
        _ => body[at] = [0, 0x7f, 0x80, 0xff][random.below(4)],
    }
}
