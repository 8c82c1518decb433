//! Gets: coordinated by whoever receives them, with read repair behind the answer. Paper: §4.5, §4.6, §5.

use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};

use dynamo_core::{
    coordinator::{GetCoordinator, GetEffect, GetEvent, GetOutcome, ReadRepair, ReplicaRead},
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
        node: Arc::clone(node),
        me: placed.me().clone(),
        placed: Arc::clone(placed),
        key: query.key,
        own: None,
        known: None,
        running: FuturesUnordered::new(),
        late_at: Instant::now(),
    };
    read.look_here();
    if query.ask == Ask::Enough {
        read.hold_back();
    }
    let outcome = read.until_reply(deadline).await;
    let served = Served {
        fastest: read.fastest.clone(),
        ..placed.served(&quorum, outcome.acks)
    };
    if !read.machine.finished() {
        tokio::spawn(read.follow_up());
    }
    Ok((outcome, served))
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
    machine: GetCoordinator,
    /// What this node holds, until the machine takes it.
    own: Option<ReplicaRead>,
    /// The same, for those that need not send it.
    known: Option<Arc<Known>>,
    /// Reads and repairs under way.
    running: FuturesUnordered<BoxFuture<'static, GetEvent>>,
    /// While primaries are held back: when those that are asked should have answered.
    late_at: Instant,
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
            let event = tokio::select! {
                Some(event) = self.running.next() => event,
                () = tokio::time::sleep_until(self.late_at), if self.machine.holds_back() => self.late(),
                () = &mut late => GetEvent::DeadlineReached,
            };
            self.note(&event);
            self.machine.step(event, &mut effects);
        }
    }

    fn late(&self) -> GetEvent {
        self.node.metrics().read_hedged();
        self.node.peers().late(self.machine.awaited());
        GetEvent::Late
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
        let mut outcome = None;
        for effect in std::mem::take(effects) {
            match effect {
                GetEffect::Read { member, .. } if member == self.me => self.read_here(effects),
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
                GetEffect::LeftOut { member } => self.node.checks().left_out(member, &self.key),
            }
        }
        outcome
    }

    /// Takes the own copy if it is in memory: before the others are asked, so that they need not send the same.
    fn look_here(&mut self) {
        if !self.primaries.contains(&self.me) {
            return;
        }
        let Some((read, digest)) = self.node.read_now(&self.key) else {
            return;
        };
        self.known = digest
            .zip(read.state.clone())
            .filter(|_| !read.suspect)
            .map(|(digest, state)| Arc::new(Known { digest, state }));
        self.own = Some(read);
    }

    /// Asks no more primaries than are needed if all goes well, where everything is plain.
    fn hold_back(&mut self) {
        let may =
            self.known.is_some() && !self.placed.layouts().in_transition() && self.node.checks().has_room();
        if !may {
            return;
        }
        let now_ms = clock::monotonic_ms();
        let late_us = self.node.peers().with_detector(|detector| {
            self.machine
                .hold_back(Some(&self.me), |member| detector.pace(member, now_ms))
        });
        if let Some(late_us) = late_us {
            self.late_at = Instant::now() + Duration::from_micros(late_us);
        }
    }

    fn read_here(&mut self, effects: &mut Vec<GetEffect>) {
        let member = self.me.clone();
        let Some(read) = self.own.take() else {
            let (node, key) = (Arc::clone(&self.node), self.key.clone());
            self.running.push(Box::pin(async move {
                let result = node.read_local(&key).await;
                GetEvent::ReplicaDone { member, result }
            }));
            return;
        };
        let result = Ok(read);
        let event = GetEvent::ReplicaDone { member, result };
        self.note(&event);
        self.machine.step(event, effects);
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
