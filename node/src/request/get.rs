//! Gets: coordinated by whoever receives them, with read repair behind the answer. Paper: §4.5, §4.6, §5.

use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};

use dynamo_core::{
    coordinator::{FailureKind, GetCoordinator, GetEffect, GetEvent, GetOutcome, ReadRepair, ReplicaFailure},
    quorum::Quorum,
    types::MemberId,
    version::KeyState,
};
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::Instant;

use super::{Deadline, Served, UNKNOWN_ADDRESS};
use crate::{
    clock,
    grpc::status::Failure,
    node::{Node, Placed},
    peers::{Known, Replication},
    storage::DataKey,
};

/// A get, checked.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    pub(crate) key: DataKey,
    pub(crate) quorum: Quorum,
    pub(crate) read_repair: ReadRepair,
    pub(crate) ask: Ask,
}

/// Which primaries a get asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// As many as it needs, if this node's own copy is one of them and in memory; others if one of these is late or fails. Who is
    /// left out is [compared](crate::background::checks) afterwards.
    Enough,
    /// All at once.
    All,
}

/// No read is late before: below, timers and schedulers decide more than nodes.
const LATE_MIN: Duration = Duration::from_millis(1);
/// Of a primary that was left out, after the reply.
const NOT_ASKED: ReplicaFailure = ReplicaFailure {
    sent: false,
    kind: FailureKind::Unreachable,
};
/// How many calls' time a get goes on after its reply: the slowest answer, and the repairs.
const FOLLOW_UP_CALLS: u32 = 2;

/// Reads a key from its primaries, and fallbacks for those that fail, until the quorum is met or cannot be met any more.
/// Late answers and repairs go on by themselves after the reply.
///
/// # Errors
/// UNAVAILABLE while this node must not coordinate reads.
pub(crate) async fn coordinate(
    node: &Arc<Node>,
    placed: &Arc<Placed>,
    query: Query,
    deadline: Deadline,
) -> Result<(GetOutcome, Served), Failure> {
    let candidates = node.get_candidates(placed, &query.key)?;
    let quorum = query.quorum;
    let mut read = Read {
        primaries: candidates
            .primaries
            .iter()
            .map(|primary| primary.member.clone())
            .collect(),
        fastest: None,
        absent: BTreeSet::new(),
        machine: GetCoordinator::new(quorum, query.read_repair, candidates, clock::wall_ms()),
        needed: quorum.r.max(quorum.pr) as usize,
        repairs: query.read_repair,
        node: Arc::clone(node),
        me: placed.me().clone(),
        placed: Arc::clone(placed),
        key: query.key,
        ask: query.ask,
        known: None,
        running: FuturesUnordered::new(),
        held_back: Vec::new(),
        late_at: Instant::now(),
        awaited: Vec::new(),
    };
    let outcome = read.until_reply(deadline).await;
    read.leave_out();
    let served = Served {
        fastest: read.fastest.clone(),
        ..placed.served(&quorum, outcome.acks)
    };
    if !read.machine.finished() {
        tokio::spawn(read.follow_up());
    }
    Ok((outcome, served))
}

/// Whether a replica cannot say what it holds, or cannot be believed.
fn is_setback(event: &GetEvent) -> bool {
    matches!(event, GetEvent::ReplicaDone { result, .. } if result.as_ref().map_or(true, |read| read.suspect))
}

/// One get while it runs.
struct Read {
    node: Arc<Node>,
    me: MemberId,
    placed: Arc<Placed>,
    key: DataKey,
    primaries: Vec<MemberId>,
    /// The primary that answered first with a state.
    fastest: Option<MemberId>,
    /// Those that hold no record at all.
    absent: BTreeSet<MemberId>,
    /// Answers of primaries that suffice, if they show a value.
    needed: usize,
    repairs: ReadRepair,
    machine: GetCoordinator,
    ask: Ask,
    /// What this node holds.
    known: Option<Arc<Known>>,
    /// Reads and repairs under way.
    running: FuturesUnordered<BoxFuture<'static, GetEvent>>,
    /// Primaries that are not asked unless those that are asked fail, or have not answered when they should have.
    held_back: Vec<MemberId>,
    late_at: Instant,
    /// Those that must have answered by then.
    awaited: Vec<MemberId>,
}

impl Read {
    async fn until_reply(&mut self, deadline: Deadline) -> GetOutcome {
        let mut late = pin!(deadline.reached());
        let mut effects = Vec::new();
        self.machine.step(GetEvent::Start, &mut effects);
        loop {
            while !effects.is_empty() {
                if let Some(outcome) = self.perform(&mut effects) {
                    return outcome;
                }
            }
            if self.running.is_empty() {
                self.ask_held_back();
            }
            let event = tokio::select! {
                Some(event) = self.running.next() => event,
                () = tokio::time::sleep_until(self.late_at), if !self.held_back.is_empty() => {
                    self.node.metrics().read_hedged();
                    self.node.peers().late(&self.awaited);
                    self.ask_held_back();
                    continue;
                }
                () = &mut late => GetEvent::DeadlineReached,
            };
            if let GetEvent::ReplicaDone { member, .. } = &event {
                self.awaited.retain(|awaited| awaited != member);
            }
            if is_setback(&event) {
                self.ask_held_back();
            }
            self.note(&event);
            self.machine.step(event, &mut effects);
        }
    }

    fn note(&mut self, event: &GetEvent) {
        let GetEvent::ReplicaDone {
            member,
            result: Ok(read),
        } = event
        else {
            return;
        };
        if read.state.is_none() {
            self.absent.insert(member.clone());
        } else if self.fastest.is_none() && self.primaries.contains(member) {
            self.fastest = Some(member.clone());
        }
    }

    /// After the reply: who lacks something of what was found gets it.
    async fn follow_up(mut self) {
        let deadline = Deadline::after(self.node.peers().call_timeout() * FOLLOW_UP_CALLS);
        let mut late = pin!(deadline.reached());
        let mut effects = Vec::new();
        while !self.machine.finished() {
            let event = tokio::select! {
                Some(event) = self.running.next() => event,
                () = &mut late => GetEvent::DeadlineReached,
            };
            let last = matches!(event, GetEvent::DeadlineReached);
            self.note(&event);
            self.machine.step(event, &mut effects);
            while !effects.is_empty() {
                self.perform(&mut effects);
            }
            if last {
                return;
            }
        }
    }

    /// Carries out all effects, which may cause new ones; gives the outcome if one of them is the reply.
    fn perform(&mut self, effects: &mut Vec<GetEffect>) -> Option<GetOutcome> {
        let mut asked = std::mem::take(effects);
        let me = |effect: &GetEffect| matches!(effect, GetEffect::Read { member, .. } if *member == self.me);
        if asked.iter().any(me) {
            self.read_here(effects);
            self.hold_back(&mut asked);
        }
        let mut outcome = None;
        for effect in asked {
            match effect {
                GetEffect::Read { member, .. } if member == self.me => {}
                GetEffect::Read { member, fallback } => self.read_from(member, fallback),
                // No record reads like a tombstone. It may be that the tombstone is being removed: not to be brought back.
                GetEffect::Repair { member, state }
                    if self.absent.contains(&member) && state.is_reapable(clock::wall_ms()) =>
                {
                    let result = Ok(());
                    self.machine
                        .step(GetEvent::RepairDone { member, result }, effects);
                }
                GetEffect::Repair { member, state } => self.repair(member, &state),
                GetEffect::Reply(reply) => outcome = Some(reply),
            }
        }
        outcome
    }

    /// Reads the own copy: before the others are asked, so that they need not send the same, unless it is on the disk.
    fn read_here(&mut self, effects: &mut Vec<GetEffect>) {
        let member = self.me.clone();
        let Some((read, digest)) = self.node.read_now(&self.key) else {
            let (node, key) = (Arc::clone(&self.node), self.key.clone());
            self.running.push(Box::pin(async move {
                let result = node.read_local(&key).await;
                GetEvent::ReplicaDone { member, result }
            }));
            return;
        };
        self.known = digest
            .zip(read.state.clone())
            .filter(|_| !read.suspect)
            .map(|(digest, state)| Arc::new(Known { digest, state }));
        let result = Ok(read);
        let event = GetEvent::ReplicaDone { member, result };
        self.note(&event);
        self.machine.step(event, effects);
    }

    /// Takes those out that are not needed if all goes well.
    fn hold_back(&mut self, asked: &mut Vec<GetEffect>) {
        let plain = |effect: &GetEffect| matches!(effect, GetEffect::Read { fallback: false, .. });
        let may = self.ask == Ask::Enough
            && self.repairs != ReadRepair::Blocking
            && self.known.is_some()
            && asked.iter().all(plain)
            && !self.placed.layouts().in_transition()
            && self.node.checks().has_room();
        if !may {
            return;
        }
        let others = asked.iter().filter_map(|effect| match effect {
            GetEffect::Read { member, .. } if *member != self.me => Some(member),
            _ => None,
        });
        let now_ms = clock::monotonic_ms();
        let paces = self.node.peers().with_detector(|detector| {
            let pace = |member: &MemberId| Some((member.clone(), detector.pace(member, now_ms)?));
            others.map(pace).collect::<Option<Vec<_>>>()
        });
        // Who has not been asked for a while may be slow, or fast again.
        let Some(mut others) = paces else {
            return;
        };
        let fastest_us = others
            .iter()
            .map(|(_, pace)| pace.mean_us)
            .min()
            .unwrap_or_default();
        // In preference order, so that all are asked alike; but those that are slow by more than chance, or stand still, come last.
        others.sort_by_key(|(_, pace)| {
            pace.is_late || pace.mean_us > 2 * fastest_us + LATE_MIN.as_micros() as u64
        });
        let held_back = others.split_off(self.needed.saturating_sub(1).min(others.len()));
        self.held_back = held_back.into_iter().map(|(member, _)| member).collect();
        let late_us = others
            .iter()
            .map(|(_, pace)| pace.late_us)
            .max()
            .unwrap_or_default();
        self.late_at = Instant::now() + Duration::from_micros(late_us).max(LATE_MIN);
        self.awaited = others.into_iter().map(|(member, _)| member).collect();
        asked.retain(
            |effect| !matches!(effect, GetEffect::Read { member, .. } if self.held_back.contains(member)),
        );
    }

    fn ask_held_back(&mut self) {
        for member in std::mem::take(&mut self.held_back) {
            self.read_from(member, false);
        }
    }

    /// After the reply: nothing is to be expected of those that were held back.
    fn leave_out(&mut self) {
        let mut effects = Vec::new();
        for member in std::mem::take(&mut self.held_back) {
            if self.repairs == ReadRepair::Async {
                self.node.checks().left_out(member.clone(), &self.key);
            }
            let result = Err(NOT_ASKED);
            self.machine
                .step(GetEvent::ReplicaDone { member, result }, &mut effects);
        }
        while !effects.is_empty() {
            self.perform(&mut effects);
        }
    }

    fn read_from(&self, member: MemberId, fallback: bool) {
        // By the rings that the get began with.
        let to = self
            .node
            .membership()
            .to(&member)
            .map(|to| self.placed.stamped(to));
        let (node, key, known) = (Arc::clone(&self.node), self.key.clone(), self.known.clone());
        self.running.push(Box::pin(async move {
            let result = match to {
                Some(to) => node.peers().read(&to, &key, fallback, known.as_deref()).await,
                None => Err(UNKNOWN_ADDRESS),
            };
            node.behind(&result);
            GetEvent::ReplicaDone { member, result }
        }));
    }

    fn repair(&self, member: MemberId, state: &KeyState) {
        let to = self.node.membership().to(&member);
        let (node, key) = (Arc::clone(&self.node), self.key.clone());
        let (local, state) = (member == self.me, state.clone());
        self.running.push(Box::pin(async move {
            let result = if local {
                node.merge_local(key, state, false).await
            } else if let Some(to) = to {
                let written = node
                    .peers()
                    .write(&to, &key, state.encode(), Replication::default());
                written.await
            } else {
                Err(UNKNOWN_ADDRESS)
            };
            let result = result.map(drop);
            if result.is_ok() {
                node.metrics().read_repair();
            }
            GetEvent::RepairDone { member, result }
        }));
    }
}
