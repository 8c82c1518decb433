//! Row 5 of the reliability table: every schedule of a small cluster. Two clients with five operations, three replicas,
//! R = W = 2; each message arrives, or is lost before or after it was carried out, and a replica may crash between any two
//! steps. The machines are the real ones; states that were met before are counted, not explored again.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use dynamo_core::coordinator::{
    Ack, Candidate, Candidates, FailureKind, GetCoordinator, GetEffect, GetEvent, GetResult, PutCoordinator,
    PutEffect, PutEvent, ReadRepair, ReplicaFailure, ReplicaRead, WriteState,
};
use dynamo_core::quorum::Quorum;
use dynamo_core::replica::{self, EpochEntry, Minter, Update};
use dynamo_core::types::{Incarnation, MemberId, Zone};
use dynamo_core::version::{Content, Context, Dot, KeyState, Seen, Stamp};

const REPLICAS: usize = 3;
const LOST: ReplicaFailure = ReplicaFailure {
    sent: true,
    kind: FailureKind::TimedOut,
};

/// What a client does next.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Step {
    Get,
    /// With the context of what it saw last.
    Put,
    /// With none.
    Blind,
    Delete,
}

use Step::{Blind, Delete, Get, Put};

/// What a client does, and the replica that it asks.
type Script = (&'static [Step], usize);

#[derive(Clone, Debug)]
struct Replica {
    stored: Option<KeyState>,
    entry: Option<EpochEntry>,
    incarnation: Incarnation,
    next_epoch: u64,
    /// A coordinated write whose dot has left, and which a crash takes: client, state, entry.
    unsynced: Option<(usize, KeyState, EpochEntry)>,
}

/// A request of one replica to another; `client` waits for it, if it is still that operation.
#[derive(Clone, Debug)]
enum Message {
    Write {
        from: usize,
        to: usize,
        operation: (usize, usize),
        state: KeyState,
    },
    Read {
        from: usize,
        to: usize,
        operation: (usize, usize),
    },
}

#[derive(Clone, Debug)]
enum Running {
    Put(PutCoordinator, Option<(u32, Dot, KeyState)>),
    Get(GetCoordinator, Seen),
}

#[derive(Clone, Debug)]
struct Client {
    script: &'static [Step],
    /// The replica that it asks.
    at: usize,
    next: usize,
    running: Option<Running>,
    context: Seen,
    /// What it was truly shown.
    truth: Seen,
}

/// What truly happened.
#[derive(Clone, Debug)]
struct Write {
    dot: Dot,
    past: Seen,
    acked: bool,
}

#[derive(Clone, Debug)]
struct World {
    replicas: Vec<Replica>,
    messages: Vec<Message>,
    clients: Vec<Client>,
    writes: Vec<Write>,
    losses_left: u32,
    crashes_left: u32,
}

/// States met, and in how many ways each can go on.
#[derive(Default)]
struct Explored {
    schedules: BTreeMap<u128, u128>,
    ends: u64,
}

fn member(index: usize) -> MemberId {
    MemberId::new(format!("n{index}")).unwrap()
}

fn index(member: &MemberId) -> usize {
    member.as_str()[1..].parse().unwrap()
}

fn candidates() -> Candidates {
    let candidate = |index| Candidate {
        member: member(index),
        zone: Zone::default(),
        reachable: true,
    };
    Candidates {
        primaries: (0..REPLICAS).map(candidate).collect(),
        ..Candidates::default()
    }
}

impl World {
    fn new(scripts: [Script; 2], losses_left: u32, crashes_left: u32) -> Self {
        let replica = |index| Replica {
            stored: None,
            entry: None,
            incarnation: Incarnation {
                generation: 1,
                id: 10 * index,
            },
            next_epoch: 1,
            unsynced: None,
        };
        let client = |(script, at)| Client {
            script,
            at,
            next: 0,
            running: None,
            context: Seen::new(),
            truth: Seen::new(),
        };
        Self {
            replicas: (0..REPLICAS as u64).map(replica).collect(),
            messages: Vec::new(),
            clients: scripts.map(client).to_vec(),
            writes: Vec::new(),
            losses_left,
            crashes_left,
        }
    }

    fn begin(&mut self, who: usize) {
        let quorum = Quorum::new(3, 2, 2).unwrap();
        let client = &mut self.clients[who];
        client.next += 1;
        if client.script[client.next - 1] == Get {
            let promised = self
                .writes
                .iter()
                .filter(|write| write.acked)
                .map(|write| write.dot);
            let machine = GetCoordinator::new(quorum, ReadRepair::Off, candidates(), 0);
            client.running = Some(Running::Get(machine, promised.collect()));
            self.drive_get(who, GetEvent::Start);
        } else {
            let machine = PutCoordinator::new(quorum, member(client.at), candidates());
            client.running = Some(Running::Put(machine, None));
            self.drive_put(who, PutEvent::Start);
        }
    }

    fn drive_put(&mut self, who: usize, event: PutEvent) {
        let client = &mut self.clients[who];
        let (at, operation) = (client.at, (who, client.next));
        let Some(Running::Put(machine, given)) = &mut client.running else {
            return;
        };
        let mut effects = Vec::new();
        machine.step(event, &mut effects);
        let given = given.clone();
        for effect in effects {
            match effect {
                PutEffect::WriteLocal { .. } => self.coordinate(who),
                PutEffect::Send { member, .. } => {
                    let (to, state) = (index(&member), given.as_ref().unwrap().2.clone());
                    self.messages.push(Message::Write {
                        from: at,
                        to,
                        operation,
                        state,
                    });
                }
                PutEffect::Reply(outcome) => {
                    let client = &mut self.clients[who];
                    client.running = None;
                    if outcome.state == WriteState::Applied {
                        let (number, dot, _) = given.as_ref().unwrap();
                        let write = &mut self.writes[*number as usize];
                        write.acked = true;
                        // I4: the reply's context is the request's and the new dot.
                        client.context = Context::of_reply(&client.context, *dot).seen;
                        client.truth = write.past.clone();
                        client.truth.insert(*dot);
                        assert!(client.truth.descends(&client.context));
                    }
                }
            }
        }
    }

    /// The dot may leave before the write is synced.
    fn coordinate(&mut self, who: usize) {
        let client = &mut self.clients[who];
        let step = client.script[client.next - 1];
        if step == Blind {
            (client.context, client.truth) = (Seen::new(), Seen::new());
        }
        let number = self.writes.len() as u32;
        let content = match step {
            Delete => Content::Tombstone,
            _ => Content::Value(Bytes::copy_from_slice(&number.to_be_bytes())),
        };
        let update = Update {
            content,
            context: client.context.clone(),
            op_id: None,
            stamp: Stamp(0),
            expires_at_ms: None,
        };
        let replica = &mut self.replicas[client.at];
        let mut minter = Minter::new(replica.incarnation, replica.next_epoch);
        let stored = replica.stored.as_ref();
        let done = replica::coordinate(
            stored,
            replica.entry.as_ref(),
            &mut minter,
            update,
            replica::SiblingCaps::NONE,
        )
        .unwrap();
        replica.next_epoch = minter.next_epoch();
        replica.unsynced = Some((who, done.state, done.entry.unwrap()));
        // I3: no dot is given twice.
        assert!(self.writes.iter().all(|write| write.dot != done.dot), "{self:?}");
        self.writes.push(Write {
            dot: done.dot,
            past: self.clients[who].truth.clone(),
            acked: false,
        });
        if let Some(Running::Put(_, given)) = &mut self.clients[who].running {
            *given = Some((number, done.dot, done.delta));
        }
        self.drive_put(who, PutEvent::LocalPrepared);
    }

    fn sync(&mut self, at: usize) {
        let Some((who, state, entry)) = self.replicas[at].unsynced.take() else {
            return;
        };
        self.replicas[at].stored = Some(state);
        self.replicas[at].entry = Some(entry);
        self.drive_put(who, PutEvent::LocalDone(Ok(Ack { durable: true })));
    }

    fn drive_get(&mut self, who: usize, event: GetEvent) {
        let client = &mut self.clients[who];
        let (at, operation) = (client.at, (who, client.next));
        let Some(Running::Get(machine, promised)) = &mut client.running else {
            return;
        };
        let promised = promised.clone();
        let mut effects = Vec::new();
        machine.step(event, &mut effects);
        for effect in effects {
            match effect {
                GetEffect::Read { member, .. } if index(&member) == at => {
                    let result = Ok(self.read(at));
                    self.drive_get(who, GetEvent::ReplicaDone { member, result });
                }
                GetEffect::Read { member, .. } => {
                    let to = index(&member);
                    self.messages.push(Message::Read {
                        from: at,
                        to,
                        operation,
                    });
                }
                GetEffect::Repair { .. } | GetEffect::LeftOut { .. } => unreachable!("read repair is off"),
                GetEffect::Reply(outcome) => {
                    self.clients[who].running = None;
                    self.shown(who, outcome.result, &promised);
                }
            }
        }
    }

    fn read(&self, at: usize) -> ReplicaRead {
        ReplicaRead {
            state: self.replicas[at].stored.clone(),
            suspect: false,
        }
    }

    fn shown(&mut self, who: usize, result: GetResult, promised: &Seen) {
        let state = match result {
            GetResult::Found(state) => state,
            GetResult::Absent(state) => state.unwrap_or_default(),
            GetResult::Unavailable { .. } => return,
        };
        self.check(&state);
        // I15: R + W > N.
        assert!(
            state.seen().descends(promised),
            "{state:?} lacks {promised:?}: {self:?}"
        );
        let mut truth = Seen::new();
        for write in self
            .writes
            .iter()
            .filter(|write| state.siblings().contains_key(&write.dot))
        {
            truth.insert(write.dot);
            truth.union(&write.past);
        }
        // I4: nothing is covered that the reader was not shown.
        assert!(truth.descends(state.seen()), "{state:?}: {self:?}");
        let client = &mut self.clients[who];
        client.context = state.context_seen();
        client.truth = truth;
    }

    /// I2 and I5: siblings are writes, and none was written with knowledge of another.
    fn check(&self, state: &KeyState) {
        for dot in state.siblings().keys() {
            let write = self.writes.iter().find(|write| write.dot == *dot).unwrap();
            let seen = |other: &Dot| write.past.contains(other);
            assert!(!state.siblings().keys().any(seen), "{state:?}: {self:?}");
        }
    }

    fn merge(&mut self, at: usize, state: &KeyState) {
        let stored = self.replicas[at].stored.take();
        let merged = replica::merge(stored, state).state;
        self.check(&merged);
        self.replicas[at].stored = Some(merged);
    }

    /// A message is carried out, or not; its sender hears of it, or not.
    fn arrive(&mut self, number: usize, carried_out: bool, heard: bool) {
        let message = self.messages.swap_remove(number);
        self.losses_left -= u32::from(!carried_out || !heard);
        let waits = |world: &Self, from: usize, operation: (usize, usize)| {
            let client = &world.clients[operation.0];
            client.running.is_some() && client.next == operation.1 && client.at == from
        };
        match message {
            Message::Write {
                from,
                to,
                operation,
                state,
            } => {
                if carried_out {
                    self.merge(to, &state);
                }
                let result = if heard {
                    Ok(Ack { durable: true })
                } else {
                    Err(LOST)
                };
                if waits(self, from, operation) {
                    let member = member(to);
                    self.drive_put(operation.0, PutEvent::PeerDone { member, result });
                }
            }
            Message::Read { from, to, operation } => {
                let result = if heard { Ok(self.read(to)) } else { Err(LOST) };
                if waits(self, from, operation) {
                    let member = member(to);
                    self.drive_get(operation.0, GetEvent::ReplicaDone { member, result });
                }
            }
        }
    }

    /// What is not synced is gone, and so are the requests; the next life is another one.
    fn crash(&mut self, at: usize) {
        self.crashes_left -= 1;
        let replica = &mut self.replicas[at];
        replica.unsynced = None;
        replica.incarnation.generation += 1;
        replica.incarnation.id += 1;
        replica.next_epoch = 1;
        for client in self.clients.iter_mut().filter(|client| client.at == at) {
            client.running = None;
        }
    }

    fn next(&self) -> Vec<Self> {
        let mut next = Vec::new();
        let mut with = |change: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            next.push(world);
        };
        for (who, client) in self.clients.iter().enumerate() {
            let busy = self.replicas[client.at].unsynced.is_some();
            if client.running.is_none() && client.next < client.script.len() && !busy {
                with(&|world| world.begin(who));
            }
        }
        for (at, replica) in self.replicas.iter().enumerate() {
            if replica.unsynced.is_some() {
                with(&|world| world.sync(at));
            }
            let worth = replica.unsynced.is_some()
                || self
                    .clients
                    .iter()
                    .any(|client| client.at == at && client.running.is_some());
            if self.crashes_left > 0 && worth {
                with(&|world| world.crash(at));
            }
        }
        for (number, message) in self.messages.iter().enumerate() {
            let (Message::Write { to, .. } | Message::Read { to, .. }) = message;
            // One writer: what comes behind an unsynced write waits for it.
            if self.replicas[*to].unsynced.is_none() {
                with(&|world| world.arrive(number, true, true));
            }
            if self.losses_left > 0 {
                with(&|world| world.arrive(number, false, false));
                if self.replicas[*to].unsynced.is_none() && matches!(message, Message::Write { .. }) {
                    with(&|world| world.arrive(number, true, false));
                }
            }
        }
        next
    }

    /// I1: what was acknowledged is there, or something that truly superseded it.
    fn check_end(&self) {
        let mut merged = KeyState::new();
        for state in self.replicas.iter().filter_map(|replica| replica.stored.as_ref()) {
            merged.merge(state);
        }
        self.check(&merged);
        for lost in self.writes.iter().filter(|write| write.acked) {
            let survives = self.writes.iter().any(|write| {
                let covers = write.dot == lost.dot || write.past.contains(&lost.dot);
                covers && merged.siblings().contains_key(&write.dot)
            });
            assert!(survives, "{lost:?} is lost: {self:?}");
        }
    }

    /// Equal for equal states; the order of messages is none, and answers that nobody waits for change nothing.
    fn digest(&mut self) -> u128 {
        let clients = &self.clients;
        self.messages.retain(|message| match message {
            Message::Read {
                operation: (who, number),
                ..
            } => clients[*who].running.is_some() && clients[*who].next == *number,
            Message::Write { .. } => true,
        });
        self.messages.sort_by_cached_key(|message| format!("{message:?}"));
        let text = format!("{self:?}");
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (salt, &text).hash(&mut hasher);
            u128::from(hasher.finish())
        };
        half(0) << 64 | half(1)
    }

    fn explore(mut self, explored: &mut Explored) -> u128 {
        let digest = self.digest();
        if let Some(known) = explored.schedules.get(&digest) {
            return *known;
        }
        let next = self.next();
        if next.is_empty() {
            self.check_end();
            explored.ends += 1;
        }
        let ways = next
            .into_iter()
            .map(|world| world.explore(explored))
            .sum::<u128>()
            .max(1);
        explored.schedules.insert(digest, ways);
        ways
    }
}

#[test]
fn every_schedule_of_a_small_scope_holds() {
    // What the two clients do and whom they ask, losses and crashes at most.
    let scopes: [([Script; 2], u32, u32); 4] = [
        ([(&[Get, Put], 0), (&[Blind, Put], 1)], 1, 1),
        ([(&[Blind, Put, Put], 0), (&[Get, Delete], 0)], 1, 0),
        ([(&[Blind, Get, Delete], 0), (&[Blind, Get], 2)], 1, 0),
        ([(&[Blind, Get, Delete], 0), (&[Blind, Get], 2)], 0, 1),
    ];
    let (mut schedules, mut states) = (0, 0);
    for (scripts, losses, crashes) in scopes {
        let mut explored = Explored::default();
        let ways = World::new(scripts, losses, crashes).explore(&mut explored);
        println!(
            "{} states, {} ends, {ways} schedules",
            explored.schedules.len(),
            explored.ends
        );
        schedules += ways;
        states += explored.schedules.len();
    }
    assert!(
        schedules > 1_000_000_000 && states > 50_000,
        "{schedules} schedules, {states} states"
    );
}
