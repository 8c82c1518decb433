//! Writes while another ring is to follow: a slot counts once every node of it has the write.

use super::*;

/// `nodes` as in [`candidates`]; the last ones of the primaries are partners of these slots instead.
fn put(nodes: &str, partners: &[usize]) -> Put {
    let mut candidates = candidates(nodes);
    let first = candidates.primaries.len() - partners.len();
    let others = candidates.primaries.split_off(first);
    candidates.partners = partners.iter().copied().zip(others).collect();
    let mut put = Put(PutCoordinator::new(quorum(3, 2, 2), member(0), candidates));
    assert_eq!(put.step(PutEvent::Start), [WRITE_LOCAL]);
    put
}

fn refused() -> Result<Ack, ReplicaFailure> {
    Err(failure(false, FailureKind::Unreachable))
}

#[test]
fn a_slot_needs_its_old_node_and_its_new_one() {
    // Node 3 is to take the place of node 2; node 1 does not answer.
    let mut put = put("++++", &[2]);
    assert_eq!(put.step(PutEvent::LocalPrepared), [send(1), send(2), send(3)]);
    assert_eq!(put.step(PutEvent::LocalDone(ACK)), []);
    assert_eq!(
        put.peer(2, ACK),
        [],
        "node 3 may read from the next ring, and has not got it"
    );
    assert_eq!(put.peer(3, ACK), reply(WriteState::Applied, 2, 2, None));
}

#[test]
fn two_slots_of_one_node_each_are_enough() {
    let mut put = put("++++", &[2]);
    put.step(PutEvent::LocalPrepared);
    put.step(PutEvent::LocalDone(ACK));
    assert_eq!(put.peer(1, ACK), reply(WriteState::Applied, 2, 2, None));
}

#[test]
fn a_new_node_that_is_down_has_its_own_stand_in() {
    let mut put = put("+++-|+", &[2]);
    let effects = put.step(PutEvent::LocalPrepared);
    assert_eq!(effects, [send(1), send(2), send_hint(4, 3)]);
    put.step(PutEvent::LocalDone(ACK));
    put.peer(2, ACK);
    let [PutEffect::Reply(outcome)] = &put.peer(4, ACK)[..] else {
        panic!("the slot of nodes 2 and 3 is filled by 2 and by 4 for 3")
    };
    assert_eq!(
        (outcome.acks, outcome.primaries, outcome.fallbacks_counted),
        (2, 1, 1)
    );
}

#[test]
fn a_write_that_the_next_ring_cannot_have_is_refused_before_it_leaves_a_trace() {
    // All slots but the first have a new node, and these are down: one slot is left.
    let mut candidates = candidates("+++--");
    let others = candidates.primaries.split_off(3);
    candidates.partners = [1, 2].into_iter().zip(others).collect();
    let mut put = Put(PutCoordinator::new(quorum(3, 2, 2), member(0), candidates));
    let [PutEffect::Reply(outcome)] = &put.step(PutEvent::Start)[..] else {
        panic!("it is sent")
    };
    assert_eq!(outcome.state, WriteState::NotApplied);
}

/// Two rings that supersede each other may pair one node with two primaries: it fills its part of both.
#[test]
fn a_node_in_two_slots_is_asked_once_and_missing_in_both() {
    let mut candidates = candidates("++++");
    let shared = candidates.primaries.pop().unwrap();
    candidates.partners = vec![(1, shared.clone()), (2, shared)];
    let mut put = Put(PutCoordinator::new(quorum(3, 2, 2), member(0), candidates));
    assert_eq!(put.step(PutEvent::Start), [WRITE_LOCAL]);
    assert_eq!(put.step(PutEvent::LocalPrepared), [send(1), send(2), send(3)]);
    put.step(PutEvent::LocalDone(ACK));
    put.peer(1, ACK);
    assert_eq!(put.peer(2, ACK), [], "both slots lack node 3");
    assert_eq!(put.peer(3, ACK), reply(WriteState::Applied, 3, 3, None));
}

#[test]
fn the_write_fails_once_too_few_slots_can_be_filled() {
    let mut put = put("+++++", &[1, 2]);
    put.step(PutEvent::LocalPrepared);
    put.step(PutEvent::LocalDone(ACK));
    assert_eq!(put.peer(3, refused()), [], "the slots of nodes 0 and 2 may do");
    let [PutEffect::Reply(outcome)] = &put.peer(4, refused())[..] else {
        panic!("one slot is left")
    };
    assert_eq!(outcome.state, WriteState::Partial);
}
