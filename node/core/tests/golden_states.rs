//! What format version 1 looks like, for ever: every later release reads these bytes, and writes them as long as it
//! writes version 1.
//!
//! `UPDATE_GOLDEN=1 cargo test -p dynamo-core --test golden_states` writes the files of new cases. It never rewrites
//! one: a format that changes gets a new version and files of its own.

// Clippy knows test functions, not their helpers in a crate of tests.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use dynamo_core::bucket::{BucketPolicy, Buckets, Conflict, ReadRepair};
use dynamo_core::crdt::{
    self, DataType, FieldOperation, LeafOperation, LeafType, Operation, TypedUpdate, Value,
};
use dynamo_core::listing::Position;
use dynamo_core::replica::{EpochEntry, Minter};
use dynamo_core::types::{ClusterId, Incarnation, KeyHash};
use dynamo_core::version::{Actor, COUNTER_MAX, Content, Context, Dot, KeyState, Seen, Sibling, Stamp};
use dynamo_core::wire::DecodeError;

const CLUSTER: ClusterId = ClusterId([
    0x6b, 0x1f, 0x0c, 0x52, 0x9d, 0x3e, 0x4a, 0x77, 0x8c, 0x21, 0x5d, 0x0e, 0xf3, 0x94, 0xa8, 0xb6,
]);

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "testdata", "golden"]
        .iter()
        .collect()
}

fn dot(incarnation: u64, epoch: u64, counter: u64) -> Dot {
    Dot {
        actor: Actor { incarnation, epoch },
        counter,
    }
}

fn value(bytes: impl Into<Bytes>) -> Sibling {
    let stamp = Stamp(1_700_000_000_000 << 16 | 3);
    Sibling {
        stamp,
        expires_at_ms: None,
        op_id: None,
        content: Content::Value(bytes.into()),
    }
}

fn merged(writes: impl IntoIterator<Item = KeyState>) -> KeyState {
    let mut state = KeyState::new();
    for write in writes {
        state.merge(&write);
    }
    state
}

fn sets() -> Vec<(&'static str, Seen)> {
    let x = 0x1122_3344_5566_7788;
    vec![
        ("empty", Seen::new()),
        (
            "vector",
            (1..=300)
                .map(|counter| dot(x, 0, counter))
                .chain([dot(x, 7, 1), dot(u64::MAX, 1, 1)])
                .collect(),
        ),
        (
            "gaps",
            [1, 2, 4, 9, 10, 11, 1_000, COUNTER_MAX]
                .map(|counter| dot(x, 1 << 33, counter))
                .into_iter()
                .collect(),
        ),
    ]
}

fn states() -> Vec<(&'static str, KeyState)> {
    let (x, y) = (0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff00);
    let write = |context: &[Dot], dot, sibling| {
        KeyState::from_write(&context.iter().copied().collect(), dot, sibling)
    };
    let tombstone = Sibling {
        content: Content::Tombstone,
        ..value("")
    };
    let full = Sibling {
        expires_at_ms: Some(1_800_000_000_000),
        op_id: Some([0xab; 16]),
        ..value("with everything")
    };
    let long: Vec<u8> = (0..1_000u32).map(|index| (index * 7) as u8).collect();
    vec![
        ("empty", KeyState::new()),
        ("value", write(&[], dot(x, 0, 1), value("potato"))),
        ("empty-value", write(&[dot(x, 0, 1)], dot(x, 0, 2), value(""))),
        (
            "tombstone",
            write(&[dot(x, 0, 1), dot(y, 3, 1)], dot(y, 3, 2), tombstone.clone()),
        ),
        (
            "siblings",
            merged([
                write(&[dot(x, 0, 1)], dot(x, 0, 2), value("potato")),
                write(&[dot(x, 0, 1)], dot(y, 0, 5), value("onion")),
                write(&[], dot(y, 1, 200), full.clone()),
                write(
                    &[],
                    dot(y, 1, 201),
                    Sibling {
                        expires_at_ms: Some(0),
                        ..tombstone
                    },
                ),
            ]),
        ),
        (
            "op-id",
            write(
                &[],
                dot(x, 0, 1),
                Sibling {
                    expires_at_ms: None,
                    ..full
                },
            ),
        ),
        (
            "long-value",
            write(&[], dot(u64::MAX, u64::MAX, COUNTER_MAX), value(long)),
        ),
    ]
}

/// Compares with the file, or writes it if it is new and that is wanted.
fn golden(name: &str, encoded: &Bytes) -> Bytes {
    let path = folder().join(format!("{name}.hex"));
    if !path.exists() && std::env::var_os("UPDATE_GOLDEN").is_some_and(|wanted| wanted == "1") {
        fs::create_dir_all(folder()).unwrap();
        fs::write(&path, to_hex(encoded)).unwrap();
    }
    let text = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("reading {}: {error}; UPDATE_GOLDEN=1 writes it", path.display()));
    let bytes = from_hex(&text);
    assert_eq!(to_hex(encoded), text, "{name} is no longer written as it was");
    bytes
}

/// 32 bytes a line.
fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(32) {
        for byte in line {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
    }
    text
}

fn from_hex(text: &str) -> Bytes {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

#[test]
fn key_states() {
    for (name, state) in states() {
        let bytes = golden(&format!("state-v1-{name}"), &state.encode());
        assert_eq!(KeyState::decode(bytes), Ok(state), "{name}");
    }
}

#[test]
fn contexts() {
    for (name, seen) in sets() {
        let key = KeyHash::of("carts", name.as_bytes());
        let context = Context { seen };
        let bytes = golden(&format!("context-v1-{name}"), &context.encode(CLUSTER, key));
        assert_eq!(Context::decode(&bytes, CLUSTER, key), Ok(context), "{name}");
    }
}

#[test]
fn epoch_entries() {
    let entries = [
        ("first", dot(1, 0, 1)),
        ("usual", dot(0x1122_3344_5566_7788, 70_000, 42)),
    ];
    let largest = ("largest", dot(u64::MAX, u64::MAX, COUNTER_MAX));
    for (name, Dot { actor, counter }) in entries.into_iter().chain([largest]) {
        let entry = EpochEntry { actor, counter };
        let bytes = golden(&format!("entry-v1-{name}"), &entry.encode());
        assert_eq!(EpochEntry::decode(bytes), Ok(entry), "{name}");
    }
}

#[test]
fn positions() {
    for (name, bucket, key) in [
        ("text", "default", b"cart/1".as_slice()),
        ("bytes", "a-b", &[0, 0xff, 0]),
    ] {
        let position = Position::new(bucket, key).unwrap();
        let bytes = golden(&format!("position-v1-{name}"), position.as_bytes());
        assert_eq!(Position::decode(bytes), Ok(position), "{name}");
    }
}

#[test]
fn bucket_policies() {
    let sparse = BucketPolicy {
        version: 1,
        ..BucketPolicy::unset("a")
    };
    let full = BucketPolicy {
        name: "carts-2".into(),
        version: 300,
        n: Some(5),
        r: Some(2),
        w: Some(4),
        conflict: Conflict::Map,
        ttl_ms: Some(86_400_000),
        read_repair: ReadRepair::Blocking,
    };
    for (name, policy) in [("sparse", &sparse), ("full", &full)] {
        let bytes = golden(&format!("bucket-v1-{name}"), &policy.encode());
        assert_eq!(BucketPolicy::decode(bytes).as_ref(), Ok(policy), "{name}");
    }
    let mut both = Buckets::new();
    both.put(sparse).unwrap();
    let bytes = golden("buckets-v1-one", &both.encode());
    assert_eq!(Buckets::decode(bytes), Ok(both));
}

/// The value that two nodes have made: one after the other, the second with an op id and a context.
fn typed(data_type: DataType, first: Operation, second: Operation) -> Value {
    let mut state = KeyState::new();
    let ahead = dot(0x99aa_bbcc_ddee_ff00, 3, 9);
    for (id, operation, op_id) in [(1, first, None), (2, second, Some([0xab; 16]))] {
        let context = state.seen().clone();
        let incarnation = Incarnation { generation: 1, id };
        let mut minter = Minter::new(incarnation, 70_000);
        let update = TypedUpdate {
            operation,
            context: Some(if id == 1 {
                context
            } else {
                Seen::from_iter([ahead])
            }),
            op_id,
            stamp: Stamp(1_700_000_000_000 << 16 | id),
            expires_at_ms: None,
            wall_ms: 0,
            value_bytes_max: 1 << 20,
        };
        state = crdt::coordinate(data_type, Some(&state), None, &mut minter, update)
            .unwrap()
            .state;
    }
    crdt::resolve(data_type, &state, 0).unwrap()
}

#[test]
fn typed_values() {
    let text = |text: &'static str| Bytes::from_static(text.as_bytes());
    let field = |name, operation| {
        let name = text(name);
        FieldOperation::Update { name, operation }
    };
    let (first, second) = (
        Operation::Map(vec![
            field("potato", LeafOperation::Increment(2)),
            field("tags", LeafOperation::Add(vec![text("fresh"), text("cheap")])),
            field("open", LeafOperation::Enable),
        ]),
        Operation::Map(vec![
            field("potato", LeafOperation::Increment(-300)),
            field("tags", LeafOperation::Remove(vec![text("fresh")])),
            field("owner", LeafOperation::Assign(text("Alice"))),
        ]),
    );
    let pair = |first, second| (Operation::Leaf(first), Operation::Leaf(second));
    let element = |name| vec![text(name)];
    let cases = [
        (
            "counter",
            LeafType::Counter,
            pair(
                LeafOperation::Increment(7),
                LeafOperation::Increment(i64::MIN + 1),
            ),
        ),
        (
            "set",
            LeafType::Set,
            pair(
                LeafOperation::Add(element("potato")),
                LeafOperation::Remove(element("onion")),
            ),
        ),
        (
            "flag",
            LeafType::Flag,
            pair(LeafOperation::Enable, LeafOperation::Disable),
        ),
        (
            "register",
            LeafType::Register,
            pair(LeafOperation::Assign(text("a")), LeafOperation::Assign(text("b"))),
        ),
    ];
    let leaves = cases
        .into_iter()
        .map(|(name, leaf_type, operations)| (name, DataType::Leaf(leaf_type), operations));
    for (name, data_type, (first, second)) in leaves.chain([("map", DataType::Map, (first, second))]) {
        let value = typed(data_type, first, second);
        let bytes = golden(&format!("typed-v1-{name}"), &value.encode());
        assert_eq!(Value::decode(bytes, data_type), Ok(value), "{name}");
    }
}

#[test]
fn digests_compare_replicas_of_different_releases() {
    let digest = |wanted| {
        states()
            .into_iter()
            .find(|(name, _)| *name == wanted)
            .unwrap()
            .1
            .digest()
    };
    let digests = [digest("value").to_be_bytes(), digest("siblings").to_be_bytes()].concat();
    golden("digest-v1-of-value-and-siblings", &digests.into());
}

/// A case that is taken out would leave its file unread.
#[test]
fn every_file_has_its_case() {
    let states = states()
        .into_iter()
        .map(|(name, _)| format!("state-v1-{name}.hex"));
    let contexts = sets()
        .into_iter()
        .map(|(name, _)| format!("context-v1-{name}.hex"));
    let cases: BTreeSet<String> = states.chain(contexts).collect();
    let files = fs::read_dir(folder())
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap());
    let ours = files.filter(|name| name.starts_with("state-v1-") || name.starts_with("context-v1-"));
    let unread: Vec<String> = ours.filter(|name| !cases.contains(name)).collect();
    assert!(unread.is_empty(), "no case reads {unread:?}");
}

#[test]
fn a_later_format_is_named_not_guessed() {
    let (_, state) = states().swap_remove(1);
    let mut later = state.encode().to_vec();
    later[0] = 2;
    assert_eq!(KeyState::decode(later.into()), Err(DecodeError::UnknownFormat(2)));
}
