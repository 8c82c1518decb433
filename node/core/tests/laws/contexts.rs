//! What a client passes back is checked, and covers no more than it has seen. Row D2.

use bytes::Bytes;
use dynamo_core::types::{ClusterId, KeyHash};
use dynamo_core::version::{CONTEXT_BYTES_MAX, Context, ContextError, Dot, KeyState, Seen};
use dynamo_core::wire::DecodeError;
use proptest::prelude::*;

use super::strategies::{any_state, config, dot, seen, wide_seen};

const CLUSTER: ClusterId = ClusterId(*b"a test's cluster");
const KEY: KeyHash = KeyHash(0x0123_4567_89ab_cdef);

proptest! {
    #![proptest_config(config(10_000))]

    #[test]
    fn contexts_are_read_as_they_were_written(seen in wide_seen(), cluster: [u8; 16], key: u64) {
        let context = Context { seen };
        let bytes = context.encode(ClusterId(cluster), KeyHash(key));
        prop_assert_eq!(Context::decode(&bytes, ClusterId(cluster), KeyHash(key)), Ok(context));
        if ClusterId(cluster) != CLUSTER {
            prop_assert_eq!(Context::decode(&bytes, CLUSTER, KeyHash(key)), Err(ContextError::ForeignCluster));
        }
        if KeyHash(key) != KEY {
            prop_assert_eq!(Context::decode(&bytes, ClusterId(cluster), KEY), Err(ContextError::ForeignKey));
        }
    }

    /// D2: any bit flip, truncation or addition.
    #[test]
    fn a_context_that_was_touched_is_refused(seen in seen(), extra: u8) {
        let bytes = Context { seen }.encode(CLUSTER, KEY);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(matches!(decode(flipped), Err(ContextError::Damaged(_))), "bit {}", bit);
        }
        for length in 0..bytes.len() {
            let truncated = decode(bytes[..length].to_vec());
            prop_assert!(matches!(truncated, Err(ContextError::Damaged(_))), "{} bytes", length);
        }
        let longer = decode([&bytes, &[extra][..]].concat());
        prop_assert_eq!(longer, Err(ContextError::Damaged(DecodeError::Checksum)));
    }

    /// A record on disk, likewise: what is damaged is an error, and neither served nor taken for absent.
    #[test]
    fn a_record_that_was_touched_is_refused(state in any_state(), bit: prop::sample::Index, cut: prop::sample::Index) {
        let bytes = state.encode();
        let (bit, cut) = (bit.index(bytes.len() * 8), cut.index(bytes.len()));
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(KeyState::decode(flipped.into()).is_err());
        prop_assert!(KeyState::decode(bytes.slice(..cut)).is_err());
    }

    /// The reply of a put covers what its request covered and the new write: never a sibling that the client has not
    /// seen, whatever the coordinator knows.
    #[test]
    fn a_reply_s_context_covers_nothing_unseen(request in seen(), dot in dot(), other in dot()) {
        let reply = Context::of_reply(&request, dot);
        prop_assert_eq!(reply.seen.contains(&other), request.contains(&other) || other == dot);
    }
}

fn decode(bytes: Vec<u8>) -> Result<Context, ContextError> {
    Context::decode(&Bytes::from(bytes), CLUSTER, KEY)
}

#[test]
fn contexts_have_a_limit() {
    let actor = |epoch| dynamo_core::version::Actor {
        incarnation: 1,
        epoch,
    };
    let long: Seen = (0..10_000)
        .map(|epoch| Dot {
            actor: actor(epoch),
            counter: 1,
        })
        .collect();
    let bytes = Context { seen: long }.encode(CLUSTER, KEY);
    assert!(bytes.len() > CONTEXT_BYTES_MAX);
    assert_eq!(
        Context::decode(&bytes, CLUSTER, KEY),
        Err(ContextError::TooLong(bytes.len()))
    );
}

/// Thousands of puts on the replies of earlier ones make no longer a context than the first.
#[test]
fn a_chain_of_puts_keeps_its_context_short() {
    let actor = dynamo_core::version::Actor {
        incarnation: 1,
        epoch: 1,
    };
    let mut context = Context::default();
    for counter in 500..10_000 {
        context = Context::of_reply(&context.seen, Dot { actor, counter });
    }
    assert!(context.encode(CLUSTER, KEY).len() < 50);
}
