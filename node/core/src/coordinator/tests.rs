use bytes::Bytes;

use super::*;
use crate::quorum::Quorum;
use crate::version::{Actor, Content, Dot, KeyState, Seen, Sibling, Stamp};

/// Tables of both machines: small cases by hand.
mod scripts;

/// Every outcome of every replica in every order, against what must hold.
mod exhaustive;

fn member(index: usize) -> MemberId {
    MemberId::new(format!("node-{index}")).unwrap()
}

/// `reachable` has one letter per primary: `+` or `-`.
fn candidates(reachable: &str) -> Vec<Candidate> {
    let letters = reachable.chars().enumerate();
    letters
        .map(|(index, letter)| Candidate {
            member: member(index),
            reachable: letter == '+',
        })
        .collect()
}

fn failure(sent: bool, kind: FailureKind) -> ReplicaFailure {
    ReplicaFailure { sent, kind }
}

/// A record whose only write is the `counter`th of one actor, after those before it.
fn record(counter: u64, content: Content) -> KeyState {
    let actor = Actor {
        incarnation: 1,
        epoch: 0,
    };
    let context: Seen = (1..counter).map(|counter| Dot { actor, counter }).collect();
    let sibling = Sibling {
        stamp: Stamp(0),
        expires_at_ms: None,
        op_id: None,
        content,
    };
    KeyState::from_write(&context, Dot { actor, counter }, sibling)
}

fn value(counter: u64) -> KeyState {
    record(counter, Content::Value(Bytes::from(counter.to_string())))
}

fn tombstone(counter: u64) -> KeyState {
    record(counter, Content::Tombstone)
}
