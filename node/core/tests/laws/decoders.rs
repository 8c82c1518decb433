//! Decoders survive what nobody should have sent: 1,000,000 random and mutated inputs in a release build.
//!
//! They may refuse or accept, but never panic; and what they accept they write back as it was, so that there is one
//! spelling of everything.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use dynamo_core::bucket::{BucketPolicy, Buckets, Conflict, ReadRepair};
use dynamo_core::crdt::{
    self, DataType, FieldOperation, LeafOperation, LeafType, Operation, TypedUpdate, Value,
};
use dynamo_core::listing::Position;
use dynamo_core::replica::{EpochEntry, Minter};
use dynamo_core::types::{ClusterId, Incarnation, KeyHash};
use dynamo_core::version::{Actor, Content, Context, Dot, KeyState, Seen, Sibling, Stamp};
use dynamo_core::wire::{DecodeError, Reader, put_bytes, put_varint};

const CLUSTER: ClusterId = ClusterId([7; 16]);
const KEY: KeyHash = KeyHash(42);

/// A million, fewer in a debug build, or `DYNAMO_FUZZ_INPUTS`.
fn inputs() -> u32 {
    let default = if cfg!(debug_assertions) { 30_000 } else { 1_000_000 };
    std::env::var("DYNAMO_FUZZ_INPUTS").map_or(default, |text| text.parse().unwrap())
}

struct XorShift(u64);

impl XorShift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        ((self.next() >> 32) as usize) % bound.max(1)
    }

    /// Small numbers mostly, and now and then the largest.
    fn number(&mut self) -> u64 {
        match self.below(8) {
            0 => self.next(),
            1 => (1 << 48) - 1 - self.below(3) as u64,
            _ => self.below(5) as u64,
        }
    }
}

fn dot(random: &mut XorShift) -> Dot {
    let actor = Actor {
        incarnation: random.number(),
        epoch: random.number(),
    };
    Dot {
        actor,
        counter: 1 + random.number() % ((1 << 48) - 1),
    }
}

fn seen(random: &mut XorShift) -> Seen {
    (0..random.below(6)).map(|_| dot(random)).collect()
}

fn state(random: &mut XorShift) -> KeyState {
    let mut state = KeyState::new();
    for _ in 0..random.below(4) {
        let value = Content::Value(vec![random.next() as u8; random.below(20)].into());
        let content = if random.below(4) == 0 {
            Content::Tombstone
        } else {
            value
        };
        let op_id = (random.below(2) == 0).then_some([random.next() as u8; 16]);
        let expires_at_ms = (random.below(2) == 0).then(|| random.number());
        let sibling = Sibling {
            stamp: Stamp(random.number()),
            expires_at_ms,
            op_id,
            content,
        };
        let mut context = seen(random);
        let dot = loop {
            let dot = dot(random);
            if context.insert(dot) {
                break dot;
            }
        };
        state.merge(&KeyState::from_write(&context, dot, sibling));
    }
    state
}

const DATA_TYPES: [DataType; 5] = [
    DataType::Leaf(LeafType::Counter),
    DataType::Leaf(LeafType::Set),
    DataType::Leaf(LeafType::Flag),
    DataType::Leaf(LeafType::Register),
    DataType::Map,
];

/// A value of any type after a few operations by two nodes.
fn typed(random: &mut XorShift) -> Bytes {
    let data_type = DATA_TYPES[random.below(5)];
    let mut state = KeyState::new();
    for _ in 0..=random.below(3) {
        let leaf_type = match data_type {
            DataType::Leaf(leaf_type) => leaf_type,
            DataType::Map => [
                LeafType::Counter,
                LeafType::Set,
                LeafType::Flag,
                LeafType::Register,
            ][random.below(4)],
        };
        let element = Bytes::from(vec![random.next() as u8; random.below(3)]);
        let leaf = match (leaf_type, random.below(2)) {
            (LeafType::Counter, _) => LeafOperation::Increment((random.number() >> 8).cast_signed()),
            (LeafType::Set, 0) => LeafOperation::Add(vec![element]),
            (LeafType::Set, _) => LeafOperation::Remove(vec![element]),
            (LeafType::Flag, 0) => LeafOperation::Enable,
            (LeafType::Flag, _) => LeafOperation::Disable,
            (LeafType::Register, _) => LeafOperation::Assign(element),
        };
        let operation = match data_type {
            DataType::Leaf(_) => Operation::Leaf(leaf),
            DataType::Map => Operation::Map(vec![FieldOperation::Update {
                name: Bytes::from_static(b"f"),
                operation: leaf,
            }]),
        };
        let update = TypedUpdate {
            operation,
            context: Some(seen(random)),
            op_id: (random.below(2) == 0).then_some([random.below(3) as u8; 16]),
            stamp: Stamp(random.number()),
            expires_at_ms: None,
            wall_ms: 0,
            value_bytes_max: 1 << 20,
        };
        let mut minter = Minter::new(
            Incarnation {
                generation: 1,
                id: random.below(2) as u64,
            },
            random.below(2) as u64,
        );
        if let Ok(done) = crdt::coordinate(data_type, Some(&state), None, &mut minter, update) {
            state.merge(&done.delta);
        }
    }
    crdt::resolve(data_type, &state, 0).unwrap().encode()
}

fn policy(random: &mut XorShift, name: &str) -> BucketPolicy {
    BucketPolicy {
        name: name.into(),
        version: 1,
        n: (random.below(2) == 0).then_some(3),
        r: None,
        w: (random.below(2) == 0).then_some(2),
        conflict: [Conflict::Siblings, Conflict::Map][random.below(2)],
        ttl_ms: (random.below(2) == 0).then(|| 1 + random.number() % 1_000_000),
        read_repair: ReadRepair::Async,
    }
}

/// Bytes that are, or once were, an encoding of something.
fn input(random: &mut XorShift) -> Vec<u8> {
    let valid = match random.below(9) {
        0 => Context { seen: seen(random) }.encode(CLUSTER, KEY),
        1 => EpochEntry {
            actor: dot(random).actor,
            counter: dot(random).counter,
        }
        .encode(),
        2 | 8 => Position::new(["a", "b-c"][random.below(2)], &[0; 9][..random.below(9)])
            .unwrap()
            .as_bytes()
            .clone(),
        3 => typed(random),
        4 => policy(random, "a-bucket").encode(),
        5 => {
            let mut buckets = Buckets::new();
            for name in &["a", "b-c", "d"][..random.below(4)] {
                buckets.put(policy(random, name)).unwrap();
            }
            buckets.encode()
        }
        _ => state(random).encode(),
    };
    let mut bytes = valid.to_vec();
    match random.below(8) {
        0 => {}
        1 => bytes = (0..random.below(80)).map(|_| random.next() as u8).collect(),
        _ => (0..=random.below(3)).for_each(|_| mutate(random, &mut bytes)),
    }
    // Most mutated bodies get a checksum that matches, or none would reach the fields.
    if random.below(8) != 0 && bytes.len() >= 5 {
        if random.below(16) != 0 {
            bytes[0] = 1;
        }
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..1]), &bytes[5..]);
        bytes[1..5].copy_from_slice(&checksum.to_be_bytes());
    }
    bytes
}

fn mutate(random: &mut XorShift, bytes: &mut Vec<u8>) {
    let at = random.below(bytes.len() + 1);
    let end = (at + random.below(12)).min(bytes.len());
    match random.below(7) {
        0 => bytes.truncate(at),
        1 => bytes.insert(at, random.next() as u8),
        2 => bytes.splice(at..at, [0xff; 9]).for_each(drop),
        3 => bytes.drain(at..end).for_each(drop),
        4 => {
            let copied = bytes[at..end].to_vec();
            bytes.splice(at..at, copied).for_each(drop);
        }
        5 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
        _ if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        _ => {}
    }
}

/// Which decoders accept the input.
fn decode_all(input: &Bytes, random: &mut XorShift) -> [bool; 7] {
    let state = KeyState::decode(input.clone());
    if let Ok(state) = &state {
        assert_eq!(state.encode(), *input);
        assert!(state.siblings().keys().all(|dot| state.seen().contains(dot)));
        assert_eq!(state.is_deleted(3), state.live(3).is_empty());
        assert!(!state.clone().merge(state));
    }
    let context = Context::decode(input, CLUSTER, KEY);
    if let Ok(context) = &context {
        assert_eq!(context.encode(CLUSTER, KEY), *input);
    }
    let entry = EpochEntry::decode(input.clone());
    if let Ok(entry) = &entry {
        assert_eq!(entry.encode(), *input);
    }
    let position = Position::decode(input.clone());
    if let Ok(position) = &position {
        assert_eq!(
            Position::new(position.bucket(), &position.key()).as_ref(),
            Ok(position)
        );
    }
    let policy = BucketPolicy::decode(input.clone());
    if let Ok(policy) = &policy {
        assert_eq!(policy.encode(), *input);
        assert_eq!(policy.check(), Ok(()));
    }
    let buckets = Buckets::decode(input.clone());
    if let Ok(buckets) = &buckets {
        assert_eq!(buckets.encode(), *input);
    }
    read_fields(input, random);
    [
        state.is_ok(),
        context.is_ok(),
        entry.is_ok(),
        position.is_ok(),
        policy.is_ok(),
        buckets.is_ok(),
        DATA_TYPES
            .map(|data_type| typed_is_ok(input, data_type))
            .contains(&true),
    ]
}

/// What is accepted as a value can also be read, merged and written upon.
fn typed_is_ok(input: &Bytes, data_type: DataType) -> bool {
    let Ok(value) = Value::decode(input.clone(), data_type) else {
        return false;
    };
    assert_eq!(value.encode(), *input);
    value.view();
    let mut merged = value.clone();
    merged.merge(&value);
    assert_eq!(merged, value);
    true
}

/// Reads random fields until one is refused; what was read is what would have been written.
fn read_fields(input: &Bytes, random: &mut XorShift) {
    let mut reader = Reader::new(input.clone());
    loop {
        let before = reader.remaining();
        let mut written = Vec::new();
        let field = match random.below(6) {
            0 => reader.byte().map(|byte| written.push(byte)),
            1 => reader.varint().map(|value| put_varint(&mut written, value)),
            2 => reader.bytes().map(|bytes| put_bytes(&mut written, &bytes)),
            3 => reader
                .fixed_u64()
                .map(|value| written.extend(value.to_be_bytes())),
            4 => reader.take(random.below(40)).map(|bytes| written.extend(bytes)),
            _ => reader.array::<3>().map(|bytes| written.extend(bytes)),
        };
        if field.is_err() {
            break;
        }
        let start = input.len() - before;
        assert_eq!(input[start..input.len() - reader.remaining()], written);
        if reader.remaining() == 0 {
            break;
        }
    }
    let left = reader.remaining();
    if let Ok(count) = reader.count(3) {
        assert!(count <= left / 3);
    }
    let _ = reader.finish();
}

#[test]
fn decoders_survive_random_and_mutated_inputs() {
    let mut random = XorShift(0x000d_ecad_e5ee_d001);
    let mut accepted = [0u32; 7];
    let inputs = inputs();
    for number in 0..inputs {
        let input = Bytes::from(input(&mut random));
        let Ok(accepts) = catch_unwind(AssertUnwindSafe(|| decode_all(&input, &mut random))) else {
            panic!("input {number} broke a decoder: {input:02x?}");
        };
        for (sum, accepts) in accepted.iter_mut().zip(accepts) {
            *sum += u32::from(accepts);
        }
    }
    // The inputs are worth something only if many of each kind go through.
    assert!(accepted.iter().all(|count| *count > inputs / 400), "{accepted:?}");
}

/// A frame whose checksum matches, around any body.
fn framed(body: &[u8]) -> Bytes {
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&[1]), body);
    [&[1], checksum.to_be_bytes().as_slice(), body].concat().into()
}

/// Other spellings of a state, and things that are none, each one byte or two away from a good one.
#[test]
fn what_no_encoder_writes_is_refused() {
    let x = [0, 0, 0, 0, 0, 0, 0, 1, 5].as_slice();
    let y = [0, 0, 0, 0, 0, 0, 0, 2, 5].as_slice();
    let stamp = [0; 8].as_slice();
    let check = |parts: &[&[u8]]| KeyState::decode(framed(&parts.concat()));
    // One actor with counters 1..=3, of which 2 and 3 are tombstones.
    let good: [&[u8]; 9] = [&[1], x, &[1, 0, 2], &[2, 0, 2], stamp, &[1], &[0, 3], stamp, &[1]];
    assert_eq!(check(&good).unwrap().siblings().len(), 2);
    assert!(check(&[&[2], x, &[1, 0, 2], y, &[1, 0, 2], &[0]]).is_ok());
    assert!(
        check(&[&[1], x, &[2, 0, 0, 0, 0], &[0]]).is_ok(),
        "counters 1 and 3"
    );

    let invalid = |what| Err(DecodeError::Invalid(what));
    assert_eq!(
        check(&[&[2], x, &[1, 0, 2], x, &[1, 0, 2], &[0]]),
        invalid("order of actors"),
        "twice"
    );
    assert_eq!(
        check(&[&[2], y, &[1, 0, 2], x, &[1, 0, 2], &[0]]),
        invalid("order of actors")
    );
    assert_eq!(check(&[&[1], x, &[0], &[0; 9]]), invalid("actor without dots"));
    assert_eq!(
        check(&[&[1], x, &[0x81, 0, 0, 2], &[0]]),
        invalid("varint"),
        "longer than it must be"
    );
    let with = |index: usize, part: &'static [u8]| {
        let mut parts = good;
        parts[index] = part;
        check(&parts)
    };
    assert_eq!(with(6, &[0, 2]), invalid("order of siblings"), "twice");
    assert_eq!(with(3, &[2, 0, 3]), invalid("order of siblings"));
    assert_eq!(with(6, &[0, 4]), invalid("sibling that was not seen"));
    assert_eq!(with(3, &[2, 0, 0]), invalid("sibling that was not seen"));
    assert_eq!(with(6, &[1, 3]), invalid("actor of a sibling"));
    assert_eq!(with(5, &[9]), invalid("flags of a sibling"));
    assert_eq!(with(8, &[1, 0]), Err(DecodeError::Trailing));
    assert_eq!(
        with(8, &[0]),
        Err(DecodeError::Truncated),
        "a value without its length"
    );
    let largest = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f];
    assert!(check(&[&[1], x, &[1, 0], &largest[..6], &[0x1f], &[0]]).is_ok());
    assert_eq!(check(&[&[1], x, &[1, 1], &largest, &[0]]), invalid("counter"));
}

/// A length that claims more than there is makes an error, not an allocation.
#[test]
fn hostile_lengths_are_refused() {
    for claimed in [1 << 20, 1 << 32, 1 << 47, u64::MAX >> 1, u64::MAX] {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, claimed);
        bytes.extend([0; 30]);
        assert!(Reader::new(bytes.clone().into()).bytes().is_err());
        assert!(Reader::new(bytes.clone().into()).count(1).is_err());
        for before in [[].as_slice(), &[0], &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert!(KeyState::decode(framed(&[before, &bytes].concat())).is_err());
        }
    }
}
