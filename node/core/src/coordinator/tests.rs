use bytes::Bytes;

use super::*;
use crate::quorum::Quorum;
use crate::types::Zone;
use crate::version::{Actor, Content, Dot, KeyState, Seen, Sibling, Stamp};

/// Tables of the put machine among primaries.
mod put;

/// Tables of the get machine among primaries.
mod get;

/// Tables of both machines with fallbacks.
mod fallbacks;

/// Read repair, after the reply and before it.
mod repair;
mod slots;

/// Every outcome of every replica in every order, against what must hold.
mod every_put;

/// The same for gets.
mod every_get;

const ACK: Result<Ack, ReplicaFailure> = Ok(Ack { durable: true });

const WRITE_LOCAL: PutEffect = PutEffect::WriteLocal { hint_for: None };

fn member(index: usize) -> MemberId {
    MemberId::new(format!("node-{index}")).unwrap()
}

/// One sign per node: `+` or `-` for reachable or not, then perhaps a letter for its zone. What comes after `|` are
/// fallbacks; members are numbered through.
fn candidates(nodes: &str) -> Candidates {
    let (mut candidates, mut index) = (Candidates::default(), 0);
    let (primaries, fallbacks) = nodes.split_once('|').unwrap_or((nodes, ""));
    let lists = [
        (primaries, &mut candidates.primaries),
        (fallbacks, &mut candidates.fallbacks),
    ];
    for (text, list) in lists {
        for sign in text.chars() {
            match (sign, list.last_mut()) {
                ('+' | '-', _) => {
                    list.push(Candidate {
                        member: member(index),
                        zone: Zone::default(),
                        reachable: sign == '+',
                    });
                    index += 1;
                }
                (zone, Some(last)) => last.zone = Zone::new(zone.to_string()).unwrap(),
                (_, None) => panic!("{nodes}"),
            }
        }
    }
    candidates
}

fn quorum(n: u32, r: u32, w: u32) -> Quorum {
    Quorum::new(n, r, w).unwrap()
}

fn failure(sent: bool, kind: FailureKind) -> ReplicaFailure {
    ReplicaFailure { sent, kind }
}

fn failed(index: usize, kind: FailureKind) -> FailedReplica {
    FailedReplica {
        member: member(index),
        kind,
    }
}

/// All lists of `length` items out of `items`.
fn lists<T: Copy>(items: &[T], length: usize) -> Vec<Vec<T>> {
    (0..length).fold(vec![Vec::new()], |lists, _| {
        let longer = |list: Vec<T>| items.iter().map(move |item| [list.as_slice(), &[*item]].concat());
        lists.into_iter().flat_map(longer).collect()
    })
}

/// A put on its way.
#[derive(Clone)]
struct Put(PutCoordinator);

impl Put {
    /// Node 0 coordinates.
    fn new(quorum: Quorum, nodes: &str) -> Self {
        Self::at(0, quorum, nodes)
    }

    fn at(me: usize, quorum: Quorum, nodes: &str) -> Self {
        Self(PutCoordinator::new(quorum, member(me), candidates(nodes)))
    }

    fn step(&mut self, event: PutEvent) -> Vec<PutEffect> {
        let mut effects = Vec::new();
        self.0.step(event, &mut effects);
        effects
    }

    fn peer(&mut self, index: usize, result: Result<Ack, ReplicaFailure>) -> Vec<PutEffect> {
        self.step(PutEvent::PeerDone {
            member: member(index),
            result,
        })
    }

    /// Up to where the delta has left.
    fn sent(quorum: Quorum, nodes: &str) -> Self {
        let mut put = Self::new(quorum, nodes);
        assert_eq!(put.step(PutEvent::Start), [WRITE_LOCAL]);
        put.step(PutEvent::LocalPrepared);
        put
    }
}

fn send(index: usize) -> PutEffect {
    PutEffect::Send {
        member: member(index),
        hint_for: None,
    }
}

fn send_hint(index: usize, primary: usize) -> PutEffect {
    PutEffect::Send {
        member: member(index),
        hint_for: Some(member(primary)),
    }
}

/// Of a write that primaries alone have accepted, without zones.
fn reply(state: WriteState, acks: u32, durable: u32, failure: Option<WriteFailure>) -> Vec<PutEffect> {
    vec![PutEffect::Reply(WriteOutcome {
        state,
        acks,
        primaries: acks,
        fallbacks_counted: 0,
        durable,
        zones: acks.min(1),
        failure,
    })]
}

/// A get on its way.
#[derive(Clone)]
struct Get(GetCoordinator);

impl Get {
    fn new(quorum: Quorum, read_repair: ReadRepair, nodes: &str) -> Self {
        Self(GetCoordinator::new(
            quorum,
            read_repair,
            candidates(nodes),
            NOW_MS,
        ))
    }

    fn started(quorum: Quorum, read_repair: ReadRepair, nodes: &str) -> Self {
        let mut get = Self::new(quorum, read_repair, nodes);
        get.step(GetEvent::Start);
        get
    }

    fn step(&mut self, event: GetEvent) -> Vec<GetEffect> {
        let mut effects = Vec::new();
        self.0.step(event, &mut effects);
        effects
    }
}

/// The wall clock of all gets.
const NOW_MS: u64 = 1_000_000;

fn read(index: usize) -> GetEffect {
    GetEffect::Read {
        member: member(index),
        fallback: false,
    }
}

fn read_fallback(index: usize) -> GetEffect {
    GetEffect::Read {
        member: member(index),
        fallback: true,
    }
}

fn answer(index: usize, state: Option<KeyState>) -> GetEvent {
    let suspect = false;
    GetEvent::ReplicaDone {
        member: member(index),
        result: Ok(ReplicaRead { state, suspect }),
    }
}

fn suspect(index: usize, state: Option<KeyState>) -> GetEvent {
    let suspect = true;
    GetEvent::ReplicaDone {
        member: member(index),
        result: Ok(ReplicaRead { state, suspect }),
    }
}

fn unreadable(index: usize) -> GetEvent {
    GetEvent::ReplicaDone {
        member: member(index),
        result: Err(failure(true, FailureKind::Storage)),
    }
}

fn found(acks: u32, state: KeyState) -> GetEffect {
    GetEffect::Reply(GetOutcome {
        acks,
        result: GetResult::Found(state),
    })
}

fn absent(acks: u32, state: Option<KeyState>) -> GetEffect {
    GetEffect::Reply(GetOutcome {
        acks,
        result: GetResult::Absent(state),
    })
}

fn unavailable(needed: u32, got: u32, timed_out: bool, failed: Vec<FailedReplica>) -> GetOutcome {
    GetOutcome {
        acks: got,
        result: GetResult::Unavailable {
            needed,
            got,
            timed_out,
            failed,
        },
    }
}

/// A record whose only write is the `counter`th of one actor, after those before it.
fn record(counter: u64, content: Content) -> KeyState {
    record_until(counter, content, None)
}

fn record_until(counter: u64, content: Content, expires_at_ms: Option<u64>) -> KeyState {
    let actor = Actor {
        incarnation: 1,
        epoch: 0,
    };
    let context: Seen = (1..counter).map(|counter| Dot { actor, counter }).collect();
    let sibling = Sibling {
        stamp: Stamp(0),
        expires_at_ms,
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
