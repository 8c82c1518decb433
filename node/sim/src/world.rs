//! One run: the loop over events, the phases, the faults.
//!
//! ```text
//!   safety      faults of the plan, clients at work
//!   liveness    the rest heals, a minority stays broken; whoever asks the others must be answered
//!   quiescence  all heal, clients stop: hints drain, replicas become equal, within a bounded time
//!   oracle      every acknowledged write is there
//! ```

use std::sync::Arc;

use dynamo_core::admission::Task;
use dynamo_core::coordinator::ReadRepair;
use dynamo_core::membership::View;
use dynamo_core::ring::{Member, Ring};
use dynamo_core::types::{ClusterId, MemberId, Zone};

use crate::atlas;
use crate::buggify::Fired;
use crate::clients::Client;
use crate::disk::{Batch, Disk, Place, Value};
use crate::invariants::{self, i12_memory_is_bounded};
use crate::keys::KeyIx;
use crate::knobs::{Durability, Knobs};
use crate::messages::{Body, Envelope, NodeIx, Reply};
use crate::nemesis::{Fault, Plan};
use crate::network::Quality;
use crate::node::{Exit, Node, boot};
use crate::rng::Rng;
use crate::shared::{Event, Shared, Stats, Violation};
use crate::trace::Sink;

const CLUSTER: ClusterId = ClusterId([7; 16]);
/// Everything must be equal within so many simulated milliseconds.
const QUIET_WITHIN_MS: u64 = 120_000;
const QUIET_CHECK_MS: u64 = 500;
/// Time between two copies of the disks.
const COPY_MS: u64 = 1000;
/// Detectors learn what is broken; then operations must succeed.
const LIVENESS_GRACE_MS: u64 = 1500;

mod addresses;
mod dead;
mod faults;
mod members;
mod quiet;

/// Where a run stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Safety,
    Settling,
    Liveness,
    Quiescence,
    Done,
}

/// How a run is to be done.
#[derive(Default)]
pub struct Options {
    /// Gets every line of the trace.
    pub sink: Option<Sink>,
    /// Ends the run at that simulated time, in milliseconds.
    pub until_ms: Option<u64>,
}

/// What a run came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Rules that did not hold; the first ones, if there are many.
    pub violations: Vec<Violation>,
    /// Equal for equal runs.
    pub chain: u64,
    /// Events.
    pub events: u64,
    /// Counts.
    pub stats: Stats,
    /// How long it was, in simulated milliseconds.
    pub simulated_ms: u64,
    /// Whom the ring lists that serves when it ends.
    pub members: Vec<NodeIx>,
    /// Hints that are on some disk when it ends.
    pub hints_left: usize,
    /// How often each rare path was taken.
    pub fired: Fired,
    /// How long each put took, in microseconds, ascending.
    pub put_us: Vec<u64>,
    /// By key: the writes that stand in the end.
    pub standing: Vec<Vec<u32>>,
}

impl Report {
    /// What 99 of a hundred puts did not exceed, in microseconds.
    pub fn put_p99_us(&self) -> u64 {
        let index = self.put_us.len() * 99 / 100;
        self.put_us.get(index).copied().unwrap_or_default()
    }
}

/// A cluster with its clients and its faults.
pub struct World {
    sh: Shared,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    plan: Plan,
    phase: Phase,
    /// What is left to break.
    rng: Rng,
    quiet_since_us: u64,
    /// Acknowledged writes may be gone by the mode's own rules.
    excused: bool,
    broken: Vec<NodeIx>,
    /// By node: when, records, hints.
    copies: Vec<Vec<(u64, Disk, Disk)>>,
}

/// Runs a seed's knobs with a plan.
pub fn run(knobs: &Knobs, plan: &Plan, options: Options) -> Report {
    let mut world = World::new(knobs.clone(), plan.clone());
    if let Some(sink) = options.sink {
        world.sh.trace.show(sink);
    }
    world.run(options.until_ms.unwrap_or(u64::MAX).saturating_mul(1000))
}

impl World {
    /// A cluster that has just been bootstrapped.
    pub fn new(knobs: Knobs, plan: Plan) -> Self {
        let seed = knobs.seed;
        let (ring, former) = ring(&knobs);
        let mut sh = Shared::new(knobs, Arc::new(ring));
        sh.know_former(former);
        let mut nodes: Vec<Node> = (0..sh.knobs.nodes).map(Node::new).collect();
        for node in &mut nodes {
            node.start(&mut sh);
        }
        introduce(&mut nodes);
        let clients = (0..sh.knobs.clients + sh.knobs.other_clients)
            .map(|client| Client::new(client, &mut sh))
            .collect();
        for (index, (at_ms, _)) in plan.iter().enumerate() {
            sh.queue.push(at_ms * 1000, Event::Fault(index));
        }
        if plan
            .iter()
            .any(|(_, fault)| matches!(fault, Fault::OldDisk(..) | Fault::Ghost(_)))
        {
            sh.queue.push(COPY_MS * 1000, Event::Copy);
        }
        let count = nodes.len();
        let ends_us = sh.knobs.safety_ms * 1000;
        sh.queue.push(ends_us, Event::Phase);
        Self {
            sh,
            nodes,
            clients,
            plan,
            phase: Phase::Safety,
            rng: Rng::new(seed, "phases"),
            quiet_since_us: 0,
            excused: false,
            broken: Vec::new(),
            copies: vec![Vec::new(); count],
        }
    }

    /// Runs to the end, to the first violation, or to a time.
    pub fn run(mut self, until_us: u64) -> Report {
        while let Some((at_us, event)) = self.sh.queue.pop() {
            if at_us > until_us || self.phase == Phase::Done || !self.sh.violations.is_empty() {
                break;
            }
            self.sh.now_us = at_us.max(self.sh.now_us);
            self.perform(event);
        }
        let standing = (self.sh.keys.all().map(|key| self.standing(key))).collect();
        let serving = self.sh.serving.placement.ring().members().iter();
        let members = serving.map(|member| self.sh.index_of(&member.id)).collect();
        self.sh.put_us.sort_unstable();
        Report {
            fired: self.sh.buggify.fired,
            standing,
            members,
            put_us: self.sh.put_us,
            violations: self.sh.violations,
            chain: self.sh.trace.chain(),
            events: self.sh.trace.events(),
            stats: self.sh.stats,
            simulated_ms: self.sh.now_us / 1000,
            hints_left: self.nodes.iter().map(|node| node.hints.iter().count()).sum(),
        }
    }

    fn standing(&self, key: KeyIx) -> Vec<u32> {
        let dots = &self.sh.ledger.key(key).dots;
        let state = invariants::merged(&self.sh, &self.nodes, key).unwrap_or_default();
        let owner = |dot| dots.get(dot).map(|(write, _)| *write);
        state.siblings().keys().filter_map(owner).collect()
    }

    fn perform(&mut self, event: Event) {
        let now_us = self.sh.now_us;
        match event {
            Event::Arrive(envelope) => self.arrive(envelope),
            Event::Timer { node, boot, timer } => {
                if self.nodes[node]
                    .process
                    .as_ref()
                    .is_none_or(|process| process.boot != boot)
                {
                    return;
                }
                if self.nodes[node].paused_until_us > now_us {
                    let until_us = self.nodes[node].paused_until_us;
                    self.sh.queue.push(until_us, Event::Timer { node, boot, timer });
                    return;
                }
                self.sh.trace.mix(&[now_us, 1, node as u64]);
                if let Some(mut live) = self.nodes[node].live(&mut self.sh) {
                    live.on_timer(timer);
                }
                self.after(node);
            }
            Event::FromClient {
                client,
                op,
                node,
                ask,
            } => {
                if self.nodes[node].paused_until_us > now_us {
                    let until_us = self.nodes[node].paused_until_us;
                    self.sh.queue.push(
                        until_us,
                        Event::FromClient {
                            client,
                            op,
                            node,
                            ask,
                        },
                    );
                    return;
                }
                self.sh.trace.mix(&[now_us, 2, client as u64, op, node as u64]);
                if let Some(mut live) = self.nodes[node].live(&mut self.sh) {
                    live.asked(client, op, ask);
                }
                self.after(node);
            }
            Event::ToClient { client, op, told } => {
                self.sh.trace.mix(&[now_us, 3, client as u64, op]);
                self.clients[client].told(op, told, &mut self.sh);
            }
            Event::Client { client, op } => self.clients[client].wake(op, &mut self.sh),
            Event::Fault(index) => {
                if self.phase == Phase::Safety {
                    self.begin_fault(index);
                }
            }
            Event::Undo(index) => self.undo_fault(index),
            Event::Restart(node) => {
                if self.nodes[node].down_by.is_none() {
                    self.nodes[node].start(&mut self.sh);
                }
            }
            Event::Phase => self.next_phase(),
            Event::Declare(index) => self.declare(index),
            Event::Copy => self.keep_copies(),
        }
    }

    fn arrive(&mut self, envelope: Box<Envelope>) {
        let (from, call) = (envelope.from, envelope.call);
        let now_us = self.sh.now_us;
        let to = match (&envelope.body, self.sh.net.at[envelope.to]) {
            (Body::Request(_), None) => return self.stranger(&envelope),
            (Body::Request(_), Some(found)) => found,
            // Replies come along the connection of the request.
            (Body::Reply(_), _) => envelope.to,
        };
        let node = &mut self.nodes[to];
        if node.paused_until_us > now_us && node.process.is_some() {
            self.sh.queue.push(node.paused_until_us, Event::Arrive(envelope));
            return;
        }
        let print = match &envelope.body {
            Body::Request(request) => request.fingerprint(),
            Body::Reply(reply) => {
                let [kind, what] = reply.fingerprint();
                [kind, what, 0]
            }
        };
        self.sh.trace.mix(&[
            now_us,
            4,
            (from * 64 + to) as u64,
            call,
            print[0],
            print[1],
            print[2],
        ]);
        let dark = node.dark;
        match node.live(&mut self.sh) {
            Some(mut live) => live.arrive(*envelope),
            // The machine says that nobody listens; one without power says nothing.
            None if !dark && matches!(envelope.body, Body::Request(_)) => {
                let nobody = Body::Reply(Reply::Broken { sent: false });
                let life = (envelope.incarnation, (0, 0, None));
                self.sh.send(to, life, from, call, nobody);
            }
            None => {}
        }
        self.after(to);
    }

    /// A process that must end does.
    fn after(&mut self, node: NodeIx) {
        if let Some(process) = &mut self.nodes[node].process
            && std::mem::take(&mut process.whole_again)
        {
            self.nodes[node].unwhole = false;
        }
        i12_memory_is_bounded::check(&mut self.sh, &self.nodes[node]);
        let exit = self.nodes[node].process.as_ref().and_then(|process| process.exit);
        let Some(exit) = exit else { return };
        let now_us = self.sh.now_us;
        self.sh.trace.line(now_us, || format!("n{node} ends: {exit:?}"));
        self.excused |= self.sh.knobs.durability != Durability::Every;
        let view: Option<View> = self.nodes[node]
            .process
            .as_ref()
            .map(|process| process.view.clone());
        self.crash(node, true);
        self.nodes[node].dark = false;
        match (exit, view) {
            (Exit::SetAside, _) => {
                self.nodes[node].set_aside(&self.sh);
                self.sh.old[node] = None;
            }
            (Exit::Left, Some(view)) => {
                self.nodes[node].leave(&self.sh, &view);
                self.sh.old[node] = None;
                self.sh.stats.left += 1;
                self.begins_anew(node);
            }
            _ => {}
        }
        boot::restart_later(&mut self.sh, node, 200);
    }

    fn crash(&mut self, node: NodeIx, power: bool) {
        if self.nodes[node].process.is_none() {
            return;
        }
        self.nodes[node].crash(&mut self.sh, power);
        self.nodes[node].dark = power;
        if !power {
            self.break_calls(node);
        }
    }

    /// Connections to a process that is gone break at once.
    fn break_calls(&mut self, gone: NodeIx) {
        for other in 0..self.nodes.len() {
            let Some(process) = &self.nodes[other].process else {
                continue;
            };
            let incarnation = process.incarnation;
            let calls: Vec<u64> = process
                .calls
                .iter()
                .filter(|(_, call)| call.peer == gone)
                .map(|(id, _)| *id)
                .collect();
            for call in calls {
                let broken = Body::Reply(Reply::Broken { sent: true });
                self.sh
                    .send(gone, (incarnation, (0, 0, None)), other, call, broken);
            }
        }
    }

    fn next_phase(&mut self) {
        let now_us = self.sh.now_us;
        let (next, after_ms) = match self.phase {
            Phase::Safety => {
                self.heal();
                self.break_minority();
                self.sh.buggify.stop();
                (Phase::Settling, LIVENESS_GRACE_MS)
            }
            Phase::Settling => {
                let whole = self.sh.buried.is_empty()
                    && self.nodes.iter().all(|node| {
                        self.broken.contains(&node.me)
                            || (atlas::is_whole(node) && node.disk.corrupted().next().is_none())
                    });
                for client in &mut self.clients {
                    client.live = whole;
                }
                (Phase::Liveness, self.sh.knobs.liveness_ms)
            }
            Phase::Liveness => {
                for client in &mut self.clients {
                    client.stopped = true;
                    client.live = false;
                }
                self.heal();
                self.sh.knobs.anti_entropy = true;
                self.quiet_since_us = now_us;
                (Phase::Quiescence, QUIET_CHECK_MS)
            }
            Phase::Quiescence | Phase::Done => {
                self.look_for_quiet();
                (self.phase, QUIET_CHECK_MS)
            }
        };
        if next != self.phase {
            let broken = &self.broken;
            self.sh
                .trace
                .line(now_us, || format!("PHASE {next:?}, broken {broken:?}"));
        }
        self.phase = next;
        self.sh.queue.push(now_us + after_ms * 1000, Event::Phase);
    }

    /// All faults end.
    fn heal(&mut self) {
        self.sh.net.mend_all();
        self.sh.net.quality = Quality {
            loss: 0,
            repeat: 0,
            ..self.sh.net.quality
        };
        self.broken.clear();
        self.sh.deaf_until_us.fill(0);
        let awaited: Vec<bool> = (0..self.nodes.len())
            .map(|node| self.is_waited_for(node))
            .collect();
        for (node, _) in self.nodes.iter_mut().zip(awaited).filter(|(_, awaited)| !awaited) {
            node.disk.full = false;
            node.hints.full = false;
            node.disk.slow_us = 0;
            node.hints.slow_us = 0;
            node.disk.read_errors = false;
            node.disk.fail_sync = false;
            node.paused_until_us = 0;
            node.down_by = None;
            node.dark = false;
            let process = node.process.as_mut();
            if let Some(admission) = process.and_then(|process| process.admission.as_mut()) {
                for task in Task::ALL {
                    admission.pause(task, false);
                }
            }
            node.start(&mut self.sh);
        }
    }

    /// A minority that the others can do without stays broken: dead, or cut off in one direction.
    fn break_minority(&mut self) {
        let knobs = &self.sh.knobs;
        let mut most = (knobs.n - knobs.w).min(knobs.n - knobs.r).min(knobs.w - 1);
        if knobs.read_repair == ReadRepair::Blocking {
            most = most.min(knobs.r - 1);
        }
        let count = self.sh.knobs.nodes;
        let unwhole = self.nodes.iter().any(|node| !atlas::is_whole(node));
        // A node may belong to two replicas of a key while rings supersede each other.
        let superseded = self
            .nodes
            .iter()
            .filter_map(|node| node.process.as_ref())
            .any(|process| {
                let transition = process.view.transition();
                transition.is_some_and(|transition| transition.followers().proposals.len() > 1)
            });
        if unwhole || superseded || !self.sh.buried.is_empty() || most == 0 {
            return;
        }
        for _ in 0..self.rng.below(u64::from(most) + 1) {
            let node = self.rng.index(count);
            if self.broken.contains(&node) {
                continue;
            }
            self.broken.push(node);
            match self.rng.index(3) {
                0 => {
                    self.excused |= self.sh.knobs.durability != Durability::Every;
                    self.crash(node, true);
                    self.nodes[node].down_by = Some(usize::MAX);
                }
                1 => self.each_cut(Fault::OneWay(node, true, 0), |sh, from, to| sh.net.cut(from, to)),
                _ => self.each_cut(Fault::OneWay(node, false, 0), |sh, from, to| sh.net.cut(from, to)),
            }
        }
        let healthy: Vec<NodeIx> = (0..count).filter(|node| !self.broken.contains(node)).collect();
        for client in &mut self.clients {
            client.nodes.clone_from(&healthy);
        }
    }
}

/// The cluster has been up for a while: everybody has heard of everybody.
fn introduce(nodes: &mut [Node]) {
    let known: Vec<_> = nodes
        .iter()
        .filter_map(|node| Some(node.process.as_ref()?.view.clone()))
        .collect();
    for node in nodes {
        let Some(process) = &mut node.process else {
            continue;
        };
        for view in &known {
            let answer = view.answer(&process.view.digest());
            process.view.merge(answer.delta);
        }
        for view in &known {
            process.view.heard_from(&view.me().member);
        }
        let mut batch = Batch::default();
        batch.put(Place::Meta(boot::VIEW), Value::Bytes(process.view.encode()));
        node.disk.write(batch);
        node.disk.sync();
    }
}

/// The ring of the run, and the one before it if a ghost is to come back.
fn ring(knobs: &Knobs) -> (Ring, Option<Ring>) {
    let mut members: Vec<Member> = knobs.members().take(knobs.nodes - knobs.outside).collect();
    members.extend(
        (knobs.nodes..knobs.nodes + usize::from(knobs.ghost)).filter_map(|node| {
            Some(Member {
                id: MemberId::new(format!("n{node}")).ok()?,
                zone: Zone::new(format!("z{}", node % knobs.zones)).ok()?,
                weight: 1,
            })
        }),
    );
    let first = match Ring::bootstrap(CLUSTER, members.clone(), knobs.partitions, knobs.n) {
        Ok(ring) => ring,
        Err(error) => unreachable!("knobs make a ring: {error}"),
    };
    if !knobs.ghost {
        return (first, None);
    }
    members.truncate(knobs.nodes);
    match first.with_members(members) {
        Ok(ring) => (ring, Some(first)),
        Err(error) => unreachable!("a ring without the ghost: {error}"),
    }
}
