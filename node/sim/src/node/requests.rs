//! Puts and gets of clients: drives the core's coordinators as `node/src/request` does. Paper: §4.5, §4.6, §5.

use std::cell::OnceCell;
use std::rc::Rc;

use dynamo_core::bucket::Conflict;
use dynamo_core::coordinator::{
    Ack, FailureKind, GetCoordinator, GetEffect, GetEvent, GetResult, PutCoordinator, PutEffect, PutEvent,
    ReplicaFailure, ReplicaRead, WriteOutcome, WriteState,
};
use dynamo_core::crdt::TypedUpdate;
use dynamo_core::quorum::Quorum;
use dynamo_core::replica::{Coordinated, Update};
use dynamo_core::types::MemberId;
use dynamo_core::version::{Context, Dot, KeyState, Seen};

use super::writer::Intent;
use super::{CallResult, Live};
use crate::invariants::{i11_nothing_late, i17_last_write_wins, i19_the_dead_have_no_part};
use crate::keys::KeyIx;
use crate::ledger::Built;
use crate::messages::{Ask, CallId, Epochs, NodeIx, PutCommand, PutReply, Reply, Request, Told};
use crate::mistakes::Mistake;
use crate::shared::Timer;

/// Who waits for an answer.
#[derive(Clone, Copy, Debug)]
pub enum Asker {
    /// A client, and which of its operations.
    Client(usize, u64),
    /// A node that has passed a write on.
    Node(NodeIx, CallId),
}

/// A put that this node coordinates.
pub struct PutRequest {
    machine: PutCoordinator,
    command: PutCommand,
    asker: Asker,
    prepared: Option<(Dot, Rc<KeyState>)>,
    /// What the mistake of that name would answer with.
    merged: Option<Seen>,
    ends_ms: u64,
}

/// A get that this node coordinates.
pub struct GetRequest {
    machine: GetCoordinator,
    key: KeyIx,
    /// Of the rings when it began.
    epochs: Epochs,
    /// The client and its operation; none of a repair that nobody waits for.
    asker: Option<(usize, u64)>,
    ends_ms: u64,
}

/// A put that was passed on.
pub struct Forward {
    command: PutCommand,
    asker: Asker,
    targets: Vec<NodeIx>,
    ends_ms: u64,
}

/// As nodes are configured by default.
const VALUE_BYTES_MAX: usize = 1 << 20;
const BROKEN: ReplicaFailure = ReplicaFailure {
    sent: true,
    kind: FailureKind::Storage,
};

impl Live<'_> {
    /// A client asks.
    pub fn asked(&mut self, client: usize, op: u64, ask: Ask) {
        if !self.serving() || (matches!(ask, Ask::Put(..)) && !self.may_coordinate()) {
            self.sh.tell(client, op, Told::NotServing);
            return;
        }
        match ask {
            Ask::Get {
                key,
                quorum,
                timeout_ms,
            } => {
                if !self.coordinate_get(key, quorum, timeout_ms, Some((client, op))) {
                    self.sh.tell(client, op, Told::NotServing);
                }
            }
            Ask::Put(mut command) => {
                command.context = self.context_on_the_way(command.key, command.context);
                self.accept_put(*command, Asker::Client(client, op));
            }
        }
    }

    /// Begins a get; false if this node must not coordinate it. One that nobody waits for asks all primaries at once.
    fn coordinate_get(
        &mut self,
        key: KeyIx,
        quorum: Quorum,
        timeout_ms: u64,
        asker: Option<(usize, u64)>,
    ) -> bool {
        let Some((candidates, epochs)) = self.get_candidates(key) else {
            return false;
        };
        let rings = self.p.rings.as_ref();
        let layouts = rings.map(|rings| Rc::clone(&rings.layouts));
        i19_the_dead_have_no_part::serves(self.sh, self.me, layouts.as_deref());
        let read_repair = self.sh.knobs.read_repair;
        let mut machine = GetCoordinator::new(quorum, read_repair, candidates, self.wall_ms());
        let request = self.sh.fresh();
        if asker.is_some() && self.may_hold_back(key) {
            let (me, now_ms) = (&self.sh.members[self.me], self.now_ms());
            let late_us = machine.hold_back(Some(me), |member| self.p.detector.pace(member, now_ms));
            if let Some(late_us) = late_us {
                self.timer(late_us.div_ceil(1000), Timer::Late(request));
            }
        }
        let ends_ms = self.now_ms() + within(timeout_ms);
        let get = GetRequest {
            machine,
            key,
            epochs,
            asker,
            ends_ms,
        };
        self.p.gets.insert(request, get);
        self.timer(within(timeout_ms), Timer::Deadline(request));
        self.drive_get(request, GetEvent::Start);
        true
    }

    /// Where everything is plain: this node has a copy that it trusts, and the ring does not change.
    fn may_hold_back(&mut self, key: KeyIx) -> bool {
        self.holds(key)
            && !self.in_transition()
            && !self.unconfirmed()
            && !self.suspect_reader(key)
            && matches!(self.load(key, false), Ok(Some(_)))
    }

    /// Reads that should have been answered have not.
    pub fn late(&mut self, request: u64) {
        let Some(get) = self.p.gets.get(&request).filter(|get| get.machine.holds_back()) else {
            return;
        };
        self.sh.stats.hedged += 1;
        for member in get.machine.awaited() {
            self.p.detector.late(member);
        }
        self.drive_get(request, GetEvent::Late);
    }

    /// A get that nobody waits for: a primary that another one left out differs.
    pub fn repair_by_get(&mut self, key: KeyIx) {
        let (quorum, timeout_ms) = (self.sh.knobs.quorum(), self.sh.knobs.call_timeout_ms);
        if self.serving() {
            self.coordinate_get(key, quorum, timeout_ms, None);
        }
    }

    /// A client's context, in some runs by way of its encoding.
    fn context_on_the_way(&mut self, key: KeyIx, seen: Seen) -> Seen {
        if !self.sh.knobs.through_codec {
            return seen;
        }
        let (cluster, hash) = (self.sh.ring.cluster_id(), self.sh.keys.get(key).hash);
        let context = Context { seen };
        match Context::decode(&context.encode(cluster, hash), cluster, hash) {
            Ok(decoded) if decoded == context => {}
            other => self
                .sh
                .violated("I13", format!("{context:?} is decoded as {other:?}")),
        }
        context.seen
    }

    /// Coordinates a put if this node is one of the first N reachable of the key's list; else passes it on.
    fn accept_put(&mut self, command: PutCommand, asker: Asker) {
        let candidates = self.put_candidates(command.key);
        let top = candidates.top_reachable();
        let me = &self.sh.members[self.me];
        if top.iter().any(|candidate| candidate.member == *me) {
            self.coordinate_put(command, asker);
            return;
        }
        let targets: Vec<NodeIx> = top
            .iter()
            .map(|candidate| self.sh.index_of(&candidate.member))
            .collect();
        let request = self.sh.fresh();
        let ends_ms = self.now_ms() + within(command.timeout_ms);
        self.p.forwards.insert(
            request,
            Forward {
                command,
                asker,
                targets,
                ends_ms,
            },
        );
        self.forward(request);
    }

    /// Hands a put to the next of its targets. One that may have been carried out is never handed on again.
    fn forward(&mut self, request: u64) {
        let now_ms = self.now_ms();
        let Some(forward) = self.p.forwards.get_mut(&request) else {
            return;
        };
        let left_ms = forward.ends_ms.saturating_sub(now_ms);
        if forward.targets.is_empty() || left_ms == 0 {
            self.end_forward(request, unknown(false));
            return;
        }
        let target = forward.targets.remove(0);
        let mut command = forward.command.clone();
        command.timeout_ms = left_ms;
        self.call(
            target,
            left_ms,
            Request::Coordinate(Box::new(command)),
            move |live, result| match result {
                Ok(Reply::Put(reply)) => live.end_forward(request, *reply),
                Err(failure) if !failure.sent => live.forward(request),
                _ => live.end_forward(request, unknown(true)),
            },
        );
    }

    fn end_forward(&mut self, request: u64, reply: PutReply) {
        if let Some(Forward { asker, .. }) = self.p.forwards.remove(&request) {
            self.answer_put(asker, reply);
        }
    }

    /// A forwarded put arrives: it is coordinated here or refused, so that it hops once at most.
    pub fn forwarded(&mut self, from: NodeIx, call: CallId, command: PutCommand) {
        let candidates = self.put_candidates(command.key);
        let me = &self.sh.members[self.me];
        let top = candidates.top_reachable();
        if self.may_coordinate() && top.iter().any(|candidate| candidate.member == *me) {
            self.coordinate_put(command, Asker::Node(from, call));
        } else {
            self.reply(from, call, Reply::NotServing);
        }
    }

    fn coordinate_put(&mut self, command: PutCommand, asker: Asker) {
        let candidates = self.put_candidates(command.key);
        let me = self.sh.members[self.me].clone();
        let machine = PutCoordinator::new(command.quorum, me, candidates);
        let request = self.sh.fresh();
        let patience_ms = within(command.timeout_ms);
        let put = PutRequest {
            machine,
            asker,
            prepared: None,
            merged: None,
            ends_ms: self.now_ms() + patience_ms,
            command,
        };
        self.p.puts.insert(request, put);
        self.begins(request);
        self.timer(patience_ms, Timer::Deadline(request));
        self.drive_put(request, PutEvent::Start);
    }

    /// The end of somebody's patience.
    pub fn deadline(&mut self, request: u64) {
        if self.p.puts.contains_key(&request) {
            self.drive_put(request, PutEvent::DeadlineReached);
            self.put_is_over(request);
        } else if self.p.gets.contains_key(&request) {
            self.drive_get(request, GetEvent::DeadlineReached);
        }
    }

    fn drive_put(&mut self, request: u64, event: PutEvent) {
        let mut effects = Vec::new();
        let Some(put) = self.p.puts.get_mut(&request) else {
            return;
        };
        put.machine.step(event, &mut effects);
        for effect in effects {
            match effect {
                PutEffect::WriteLocal { hint_for } => self.write_local(request, hint_for.as_ref()),
                PutEffect::Send { member, hint_for } => self.send_delta(request, member, hint_for.as_ref()),
                PutEffect::Reply(outcome) => self.reply_put(request, outcome),
            }
        }
        if self
            .p
            .puts
            .get(&request)
            .is_some_and(|put| put.machine.replied() && !put.machine.waiting())
        {
            self.put_is_over(request);
        }
    }

    fn put_is_over(&mut self, request: u64) {
        self.p.puts.remove(&request);
        self.has_ended(request);
    }

    fn write_local(&mut self, request: u64, hint_for: Option<&MemberId>) {
        let Some(put) = self.p.puts.get(&request) else {
            return;
        };
        let forget = self.sh.knobs.mistake == Some(Mistake::ForgetOpIds);
        let wall_ms = self.clock.wall_ms(self.sh.now_us);
        let (context, op_id) = (put.command.context.clone(), put.command.op_id.filter(|_| !forget));
        let stamp = self.p.hlc.tick(wall_ms);
        let intent = match &put.command.operation {
            Some(operation) => Intent::Typed(TypedUpdate {
                operation: operation.clone(),
                context: Some(context),
                op_id,
                stamp,
                expires_at_ms: None,
                wall_ms,
                value_bytes_max: VALUE_BYTES_MAX,
            }),
            None => Intent::Plain(Update {
                content: put.command.content.clone(),
                context,
                op_id,
                stamp,
                expires_at_ms: put.command.expires_at_ms,
            }),
        };
        let (key, write, sync) = (put.command.key, put.command.write, put.command.quorum.dw > 0);
        let hint_for = hint_for.map(|owner| self.sh.index_of(owner));
        let delta = Rc::new(OnceCell::new());
        let given = Rc::clone(&delta);
        self.coordinate(
            key,
            intent,
            hint_for,
            sync,
            move |live, coordinated| {
                let _ = given.set(Rc::new(coordinated.delta.clone()));
                live.prepared(request, write, coordinated);
            },
            move |live, result| {
                let done = move |live: &mut Live<'_>, result| {
                    live.drive_put(request, PutEvent::LocalDone(result));
                };
                match delta.get() {
                    Some(delta) if hint_for.is_none() => {
                        live.keep_for_itself(key, Rc::clone(delta), result, done);
                    }
                    _ => done(live, result),
                }
            },
        );
    }

    fn prepared(&mut self, request: u64, write: u32, coordinated: Coordinated) {
        let Coordinated {
            dot, delta, state, ..
        } = coordinated;
        self.sh.ledger.named(write, dot);
        self.note_built(write, dot, &delta);
        let (me, now_us) = (self.me, self.sh.now_us);
        self.sh
            .trace
            .line(now_us, || format!("n{me} names write {write} {dot}"));
        let delta = self.on_the_way(Rc::new(delta));
        let Some(put) = self.p.puts.get_mut(&request) else {
            return;
        };
        put.prepared = Some((dot, delta));
        put.merged = Some(state.context_seen());
        self.drive_put(request, PutEvent::LocalPrepared);
    }

    /// What the name supersedes, where that is more than its client has seen.
    fn note_built(&mut self, write: u32, dot: Dot, delta: &KeyState) {
        let conflict = self.sh.keys.get(self.sh.ledger.write(write).key).conflict;
        // A retry that was recognised has been noted before.
        let Some(sibling) = delta.siblings().get(&dot) else {
            return;
        };
        if conflict == Conflict::Siblings {
            return;
        }
        let own: Seen = std::iter::once(dot).collect();
        let built = Built {
            stamp: sibling.stamp,
            upon: delta.seen().without(&own),
        };
        self.sh.ledger.built(write, dot, built);
        if conflict == Conflict::Lww {
            i17_last_write_wins::check_named(self.sh, write, dot);
        }
    }

    fn send_delta(&mut self, request: u64, member: MemberId, hint_for: Option<&MemberId>) {
        let Some(put) = self.p.puts.get(&request) else {
            return;
        };
        let Some((_, delta)) = &put.prepared else { return };
        let delta = Rc::clone(delta);
        let (key, sync) = (put.command.key, put.command.quorum.dw > 0);
        let peer = self.sh.index_of(&member);
        let owner = hint_for.map(|owner| self.sh.index_of(owner));
        let twice = hint_for
            .cloned()
            .filter(|_| self.sh.knobs.mistake == Some(Mistake::HintCountedTwice));
        let message = Request::Write {
            key,
            state: delta,
            hint_for: owner,
            sync,
        };
        let timeout_ms = self.sh.knobs.call_timeout_ms;
        self.call(peer, timeout_ms, message, move |live, result| {
            let result = as_ack(&result);
            live.drive_put(request, PutEvent::PeerDone { member, result });
            if let (Some(owner), Ok(_)) = (twice, result) {
                let other = live.sh.index_of(&owner);
                live.drive_put_count_again(request, other, result);
            }
        });
    }

    /// The mistake: somebody who was not asked, or has failed, is counted for the sake of a hint.
    fn drive_put_count_again(&mut self, request: u64, _owner: NodeIx, result: Result<Ack, ReplicaFailure>) {
        let Some(put) = self.p.puts.get(&request) else {
            return;
        };
        if put.machine.replied() || result.is_err() {
            return;
        }
        let quorum = put.command.quorum;
        let acks = quorum.w;
        let outcome = WriteOutcome {
            state: WriteState::Applied,
            acks,
            primaries: acks - 1,
            fallbacks_counted: 1,
            durable: acks,
            zones: 1,
            failure: None,
        };
        self.reply_put(request, outcome);
        self.put_is_over(request);
    }

    fn reply_put(&mut self, request: u64, outcome: WriteOutcome) {
        let Some(put) = self.p.puts.get(&request) else {
            return;
        };
        let asker = put.asker;
        let applied = outcome.state == WriteState::Applied;
        self.sh.ledger.write_mut(put.command.write).applied |= applied;
        if applied {
            let (write, w) = (put.command.write, self.sh.knobs.w);
            let gone = self.sh.ledger.acknowledged(write, w, self.me);
            self.sh.stats.dead_acks += u64::from(gone);
        }
        let dot = put.prepared.as_ref().map(|(dot, _)| *dot).filter(|_| applied);
        let typed = put.command.operation.is_some();
        let mut context = match &put.prepared {
            Some((dot, delta)) if applied && typed => {
                dynamo_core::crdt::reply_context(&put.command.context, *dot, delta)
            }
            Some((dot, _)) if applied => Context::of_reply(&put.command.context, *dot).seen,
            _ => put.command.context.clone(),
        };
        if self.sh.knobs.mistake == Some(Mistake::MergedContextReply)
            && let Some(merged) = &put.merged
        {
            context.union(merged);
        }
        let (patience_ms, ends_ms) = (within(put.command.timeout_ms), put.ends_ms);
        let late_ms = self.now_ms().saturating_sub(ends_ms);
        let reply = PutReply {
            not_applied: outcome.state == WriteState::NotApplied,
            outcome: Some(outcome),
            dot,
            context,
        };
        self.foreground(patience_ms, ends_ms);
        i11_nothing_late::check(self.sh, self.me, late_ms);
        self.answer_put(asker, reply);
    }

    fn answer_put(&mut self, asker: Asker, reply: PutReply) {
        match asker {
            Asker::Client(client, op) => self.sh.tell(client, op, Told::Put(Box::new(reply))),
            Asker::Node(node, call) => self.reply(node, call, Reply::Put(Box::new(reply))),
        }
    }

    fn drive_get(&mut self, request: u64, event: GetEvent) {
        let mut effects = Vec::new();
        let Some(get) = self.p.gets.get_mut(&request) else {
            return;
        };
        let key = get.key;
        get.machine.step(event, &mut effects);
        for effect in effects {
            match effect {
                GetEffect::Read { member, fallback } => self.read_replica(request, key, member, fallback),
                GetEffect::Repair { member, state } => self.repair_replica(request, key, member, state),
                GetEffect::Reply(outcome) => self.reply_get(request, outcome.result),
                GetEffect::LeftOut { member } => self.left_out(key, &member),
            }
        }
        if self
            .p
            .gets
            .get(&request)
            .is_some_and(|get| get.machine.finished())
        {
            self.p.gets.remove(&request);
        }
    }

    fn read_replica(&mut self, request: u64, key: KeyIx, member: MemberId, fallback: bool) {
        let peer = self.sh.index_of(&member);
        if peer == self.me {
            let result = self.read_here(key, fallback);
            self.drive_get(request, GetEvent::ReplicaDone { member, result });
            return;
        }
        let timeout_ms = self.sh.knobs.call_timeout_ms;
        let epochs = self.p.gets.get(&request).map_or((0, 0, None), |get| get.epochs);
        self.call_by(
            peer,
            epochs,
            timeout_ms,
            Request::Read { key, fallback },
            move |live, result| {
                let result = match result {
                    Ok(Reply::Read { state, suspect }) => Ok(ReplicaRead {
                        state: state.map(|state| (*state).clone()),
                        suspect,
                    }),
                    Ok(_) => Err(BROKEN),
                    Err(failure) => Err(failure),
                };
                live.drive_get(request, GetEvent::ReplicaDone { member, result });
            },
        );
    }

    fn read_here(&mut self, key: KeyIx, fallback: bool) -> Result<ReplicaRead, ReplicaFailure> {
        // Given away since the read began.
        if !fallback && !self.holds(key) {
            return Err(ReplicaFailure {
                sent: false,
                kind: FailureKind::StaleEpoch,
            });
        }
        let suspect = self.suspect_reader(key);
        let state = self.load(key, fallback).map_err(|_| ReplicaFailure {
            sent: false,
            ..BROKEN
        })?;
        Ok(ReplicaRead {
            // What an old copy holds may have been removed everywhere since.
            state: state
                .filter(|_| !self.unconfirmed())
                .map(|state| (*state).clone()),
            suspect,
        })
    }

    fn repair_replica(&mut self, request: u64, key: KeyIx, member: MemberId, state: KeyState) {
        let peer = self.sh.index_of(&member);
        let state = self.on_the_way(Rc::new(state));
        self.sh.stats.repairs += 1;
        if peer == self.me && !self.holds(key) {
            let result = Err(ReplicaFailure {
                sent: false,
                ..BROKEN
            });
            self.drive_get(request, GetEvent::RepairDone { member, result });
            return;
        }
        if peer == self.me {
            self.merge(key, state, None, false, move |live, result| {
                let result = result.map(|_| ());
                live.drive_get(request, GetEvent::RepairDone { member, result });
            });
            return;
        }
        let message = Request::Write {
            key,
            state,
            hint_for: None,
            sync: false,
        };
        let timeout_ms = self.sh.knobs.call_timeout_ms;
        self.call(peer, timeout_ms, message, move |live, result| {
            let result = as_ack(&result).map(|_| ());
            live.drive_get(request, GetEvent::RepairDone { member, result });
        });
    }

    fn reply_get(&mut self, request: u64, result: GetResult) {
        let Some(get) = self.p.gets.get(&request) else {
            return;
        };
        let Some((client, op)) = get.asker else {
            return;
        };
        if self.sh.buried.contains(&self.me) {
            // It has not heard yet: the others have retired the ring that it reads from without its word.
            self.sh.old_read_us = Some(self.sh.now_us);
        }
        let ends_ms = get.ends_ms;
        let late_ms = self.now_ms().saturating_sub(ends_ms);
        let told = match result {
            GetResult::Found(state) => Told::Found(Rc::new(state)),
            GetResult::Absent(state) => Told::Absent(state.map(Rc::new)),
            GetResult::Unavailable { .. } => Told::Unavailable,
        };
        self.foreground(within(self.sh.knobs.timeout_ms), ends_ms);
        i11_nothing_late::check(self.sh, self.me, late_ms);
        self.sh.tell(client, op, told);
    }

    fn get_candidates(&self, key: KeyIx) -> Option<(dynamo_core::coordinator::Candidates, Epochs)> {
        let (mut candidates, epochs) = self.read_candidates(key)?;
        if self.sh.knobs.mistake == Some(Mistake::EmptyFallbackIsPrimary) {
            let top: Vec<_> = candidates.top_reachable().into_iter().cloned().collect();
            if top.len() == candidates.primaries.len() {
                candidates.primaries = top;
            }
        }
        Some((candidates, epochs))
    }
}

fn as_ack(result: &CallResult) -> Result<Ack, ReplicaFailure> {
    match result {
        Ok(Reply::Written { durable }) => Ok(Ack { durable: *durable }),
        Ok(_) => Err(BROKEN),
        Err(failure) => Err(*failure),
    }
}

/// A little less than the asker waits, as the real shell does.
fn within(timeout_ms: u64) -> u64 {
    timeout_ms - (timeout_ms / 10).min(50)
}

fn unknown(sent: bool) -> PutReply {
    PutReply {
        outcome: None,
        not_applied: !sent,
        dot: None,
        context: Seen::new(),
    }
}
