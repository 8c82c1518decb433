//! Gets: coordinated by whoever receives them. Paper: §4.5, §5.

use std::sync::Arc;

use dynamo_core::{
    coordinator::{
        Candidates, FailureKind, GetCoordinator, GetEffect, GetEvent, GetOutcome, ReadRepair, ReplicaFailure,
        ReplicaRead,
    },
    quorum::Quorum,
    types::MemberId,
    version::KeyState,
};
use tokio::sync::mpsc;

use super::{ARRIVALS_MAX, Deadline, Served};
use crate::{
    clock,
    node::{Node, Placed},
    storage::DataKey,
};

type Answer = (MemberId, Result<Option<KeyState>, ReplicaFailure>);

/// Reads a key from its primaries until the quorum is met or cannot be met any more.
pub(crate) async fn coordinate(
    node: &Arc<Node>,
    placed: &Placed,
    key: &DataKey,
    quorum: Quorum,
    deadline: Deadline,
) -> (GetOutcome, Served) {
    let candidates = Candidates {
        primaries: node.candidates(placed, key),
        fallbacks: Vec::new(),
    };
    let mut machine = GetCoordinator::new(quorum, ReadRepair::Off, candidates, clock::wall_ms());
    let (answers_in, mut answers) = mpsc::channel::<Answer>(ARRIVALS_MAX);
    let mut effects = Vec::new();
    machine.step(GetEvent::Start, &mut effects);
    loop {
        // The local read comes after the requests to peers have left, since it may have to wait for the disk.
        let mut local = false;
        for effect in std::mem::take(&mut effects) {
            match effect {
                GetEffect::Read { member, .. } if member == *placed.me() => local = true,
                GetEffect::Read { member, .. } => spawn_read(node, key, member, answers_in.clone()),
                // Off, so there are none.
                GetEffect::Repair { .. } => {}
                GetEffect::Reply(outcome) => {
                    let served = placed.served(&quorum, outcome.acks);
                    return (outcome, served);
                }
            }
        }
        if local {
            let (member, result) = (placed.me().clone(), whole(node.read_local(key).await));
            machine.step(GetEvent::ReplicaDone { member, result }, &mut effects);
        }
        if !effects.is_empty() {
            continue;
        }
        tokio::select! {
            answer = answers.recv() => match answer {
                Some((member, result)) => {
                    let result = whole(result);
                    machine.step(GetEvent::ReplicaDone { member, result }, &mut effects);
                }
                None => machine.step(GetEvent::DeadlineReached, &mut effects),
            },
            () = deadline.reached() => machine.step(GetEvent::DeadlineReached, &mut effects),
        }
    }
}

/// The answer of a store that has lost nothing.
fn whole(result: Result<Option<KeyState>, ReplicaFailure>) -> Result<ReplicaRead, ReplicaFailure> {
    result.map(|state| ReplicaRead {
        state,
        suspect: false,
    })
}

fn spawn_read(node: &Arc<Node>, key: &DataKey, member: MemberId, answers: mpsc::Sender<Answer>) {
    let to = node.membership().to(&member);
    let (node, key) = (Arc::clone(node), key.clone());
    tokio::spawn(async move {
        let result = match to {
            Some(to) => node.peers().read(&to, &key).await,
            None => Err(ReplicaFailure {
                sent: false,
                kind: FailureKind::Unreachable,
            }),
        };
        // A request that is answered already no longer listens.
        let _ = answers.send((member, result)).await;
    });
}
