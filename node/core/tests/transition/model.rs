//! One partition of a cluster whose ring changes all the time. Values are sets of writes, so that a read is stale if it lacks any
//! write that was acknowledged before it began.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dynamo_core::membership::RingVersion;
use dynamo_core::ring::Ring;
use dynamo_core::transition::{Layouts, Local, Proposal, ProposeRefused, Told, Transition, slots};
use dynamo_core::types::{Incarnation, MemberId};

use node::{N, Node, Running, W, list, number, version};
pub(crate) use node::{name, ring};

mod node;

pub(crate) const NODES: usize = 6;
const R: usize = 2;
/// Longest time that a request takes.
const DEADLINE: u64 = 120;
/// Longest time that a message about data takes; news take a few.
const DELAY: u64 = 100;
const NEWS_DELAY: u64 = 4;
/// Longest time that a node hears and tells no news.
const DEAFNESS: u64 = 300;

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    None,
    SyncsBeforeAllAreKnown,
    KnownWithOldWritesInFlight,
    StopsWritingToTheBaseBeforeAllRead,
    DropsASupersededRingAtOnce,
    ProposesAlthoughItReads,
    CountsSuspectReads,
    PullsFromSuspects,
    RecoversBeforeTheLongestDeadline,
    ForgetsThatItForgot,
}

type Value = BTreeSet<u32>;
type Op = u64;
/// The epochs of the base ring and of the one that is read from.
type Rings = (u64, u64);

#[derive(Clone, Debug)]
enum Request {
    Write(u32),
    Read,
    /// For a new holder, or a suspect one.
    Pull,
    Gossip(Told, BTreeMap<MemberId, Incarnation>),
}

#[derive(Clone, Debug)]
enum Reply {
    Written,
    Value { value: Value, suspect: bool },
    Gossip(Told, BTreeMap<MemberId, Incarnation>),
}

enum Event {
    Tick(usize),
    Ask {
        from: usize,
        life: Incarnation,
        to: usize,
        op: Op,
        rings: Option<Rings>,
        request: Request,
    },
    Answer {
        from: usize,
        to: usize,
        life: Incarnation,
        op: Op,
        reply: Reply,
    },
    Deadline {
        node: usize,
        life: Incarnation,
        op: Op,
    },
    Operation(usize),
    Propose(usize),
    Crash(usize),
    LoseDisk(usize),
    /// It hears and tells no news for a while, but goes on with data.
    Deafen(usize),
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) reads: u64,
    pub(crate) stale: u64,
    pub(crate) writes: u64,
    pub(crate) proposed: u64,
    pub(crate) locked: u64,
    pub(crate) retired: u64,
    pub(crate) lost_disks: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.reads += other.reads;
        self.stale += other.stale;
        self.writes += other.writes;
        self.proposed += other.proposed;
        self.locked += other.locked;
        self.retired += other.retired;
        self.lost_disks += other.lost_disks;
    }
}

pub(crate) struct World {
    random: u64,
    now: u64,
    queue: BTreeMap<(u64, u64), Event>,
    next: u64,
    nodes: Vec<Node>,
    acked: Value,
    writes: u32,
    /// Messages are lost and slow.
    stormy: bool,
    mistake: Mistake,
    pub(crate) counts: Counts,
}

impl World {
    pub(crate) fn new(seed: u64, mistake: Mistake) -> Self {
        let life = |node: usize| Incarnation {
            generation: 1,
            id: 100 + node as u64,
        };
        let first = Arc::new(ring(1, &[0, 1, 2]));
        let lives: BTreeMap<_, _> = (0..N).map(|node| (name(node), life(node))).collect();
        let node = |node: usize| {
            let transition = (node < N).then(|| {
                let mut transition = Transition::new(name(node), life(node), Arc::clone(&first), false);
                for (member, life) in &lives {
                    transition.lives(member, *life);
                }
                transition
            });
            let mut lives = lives.clone();
            lives.insert(name(node), life(node));
            Node {
                id: name(node),
                life: life(node),
                began: 0,
                deaf_until: 0,
                transition,
                lives,
                value: Value::new(),
                suspect: false,
                pulled: BTreeMap::new(),
                running: BTreeMap::new(),
            }
        };
        let mut world = Self {
            random: seed,
            now: 0,
            queue: BTreeMap::new(),
            next: 0,
            nodes: (0..NODES).map(node).collect(),
            acked: Value::new(),
            writes: 0,
            stormy: true,
            mistake,
            counts: Counts::default(),
        };
        for node in 0..NODES {
            world.later(10, Event::Tick(node));
        }
        world
    }

    fn bits(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, count: u64) -> u64 {
        self.bits() % count
    }

    fn node(&mut self) -> usize {
        self.below(NODES as u64) as usize
    }

    fn at(&mut self, at: u64, event: Event) {
        self.next += 1;
        self.queue.insert((at, self.next), event);
    }

    fn later(&mut self, most: u64, event: Event) {
        let at = self.now + 1 + self.below(most);
        self.at(at, event);
    }

    fn send(&mut self, event: Event, news: bool) {
        if !self.stormy || self.below(8) > 0 {
            // Most are fast, so that a slow one stands out.
            let slow = self.stormy && !news && self.below(4) == 0;
            self.later(if slow { DELAY } else { NEWS_DELAY }, event);
        }
    }

    fn is_deaf(&self, node: usize) -> bool {
        self.stormy && self.now < self.nodes[node].deaf_until
    }

    /// A storm of so many things that happen, each some time after the last one.
    pub(crate) fn storm(&mut self, things: u64) {
        let mut at = self.now;
        // Few of a kind let transitions end, many disturb them.
        let most = match self.mistake {
            Mistake::PullsFromSuspects => [15, 1, 60, 1],
            Mistake::ProposesAlthoughItReads => [60, 1, 1, 150],
            _ => [30, 15, 15, 50],
        };
        let [proposals, crashes, lost_disks, deafened] = most.map(|most| 3 + self.below(most));
        for _ in 0..things {
            at += 1 + self.below(8);
            let node = self.node();
            let mut chance = self.below(1000);
            let mut falls = |share: u64| {
                let falls = chance < share;
                chance = chance.saturating_sub(share);
                falls
            };
            let event = if falls(proposals) {
                Event::Propose(node)
            } else if falls(crashes) {
                Event::Crash(node)
            } else if falls(lost_disks) {
                Event::LoseDisk(node)
            } else if falls(deafened) {
                Event::Deafen(node)
            } else {
                Event::Operation(node)
            };
            self.at(at, event);
        }
        self.run_to(at + DEADLINE + DELAY);
    }

    /// No faults and no proposals any more, until everybody serves by one ring or the time is over. True if they do.
    pub(crate) fn calm(&mut self) -> bool {
        self.stormy = false;
        for _ in 0..100 {
            let end = self.now + 50;
            self.run_to(end);
            if self.agreed() {
                return true;
            }
        }
        false
    }

    fn agreed(&self) -> bool {
        let of = |node: &Node| {
            node.transition
                .as_ref()
                .map(|it| (version(it.base()), it.next().is_none()))
        };
        let serving = self.nodes.iter().filter_map(of).max();
        let Some((newest, _)) = serving else { return false };
        let members = self.nodes.iter().filter(|node| {
            let ring = self.nodes.iter().find_map(|node| {
                let base = node.transition.as_ref()?.base();
                (version(base) == newest).then_some(base)
            });
            ring.is_some_and(|ring| ring.index_of(&node.id).is_some())
        });
        members
            .into_iter()
            .all(|node| of(node) == Some((newest, true)) && !node.suspect)
    }

    /// Who holds things up.
    pub(crate) fn held_up(&self) -> String {
        let of = |node: &Node| {
            let it = node.transition.as_ref()?;
            Some(format!(
                "{}: base {} next {:?} waits for {:?} suspect {}\n",
                node.id,
                it.base().epoch(),
                it.next().map(|next| (next.ring.epoch(), list(&next.ring))),
                it.waits_for(),
                node.suspect
            ))
        };
        self.nodes.iter().filter_map(of).collect()
    }

    fn run_to(&mut self, end: u64) {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.happen(event);
        }
        self.now = end;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(node) => self.tick(node),
            Event::Operation(node) => self.operation(node),
            Event::Propose(node) => self.propose(node),
            Event::Crash(node) => self.restart(node, false),
            Event::LoseDisk(node) => self.lose_disk(node),
            Event::Deafen(node) => self.nodes[node].deaf_until = self.now + self.below(DEAFNESS),
            Event::Deadline { node, life, op } => {
                if self.nodes[node].life == life {
                    self.nodes[node].running.remove(&op);
                }
            }
            Event::Ask {
                from,
                life,
                to,
                op,
                rings,
                request,
            } => self.serve(from, life, to, op, rings, request),
            Event::Answer {
                from,
                to,
                life,
                op,
                reply,
            } => {
                if self.nodes[to].life == life {
                    self.take(to, from, op, reply);
                }
            }
        }
    }

    fn ask(&mut self, from: usize, to: usize, op: Op, request: Request) {
        let rings = self.nodes[from].transition.as_ref().map(|it| {
            let reads = it.read().unwrap_or(it.base());
            (it.base().epoch(), reads.epoch())
        });
        let life = self.nodes[from].life;
        let news = matches!(request, Request::Gossip(..));
        self.send(
            Event::Ask {
                from,
                life,
                to,
                op,
                rings,
                request,
            },
            news,
        );
    }

    fn begin(&mut self, node: usize, running: Running) -> Op {
        self.next += 1;
        let op = self.next;
        let life = self.nodes[node].life;
        self.nodes[node].running.insert(op, running);
        let at = self.now + DEADLINE;
        self.at(at, Event::Deadline { node, life, op });
        op
    }

    fn serve(
        &mut self,
        from: usize,
        life: Incarnation,
        to: usize,
        op: Op,
        rings: Option<Rings>,
        request: Request,
    ) {
        let (mistake, deaf) = (self.mistake, self.is_deaf(to));
        let node = &mut self.nodes[to];
        // Words of a life that is known to be over.
        if node.lives.get(&name(from)).is_some_and(|known| *known > life) {
            return;
        }
        let gossip = matches!(request, Request::Gossip(..));
        if gossip && deaf {
            return;
        }
        let reply = match request {
            Request::Gossip(told, lives) => {
                node.hear(told, lives, mistake);
                let Some(it) = &node.transition else { return };
                Reply::Gossip(it.told(), node.lives.clone())
            }
            Request::Write(_) | Request::Read | Request::Pull => {
                let Some(it) = &node.transition else { return };
                let layouts = Layouts::of(it, None);
                let admitted = |(base, reads)| layouts.admits(&name(from), base, reads).is_ok();
                if !rings.is_some_and(admitted) {
                    return;
                }
                if let Request::Write(id) = request {
                    node.value.insert(id);
                    Reply::Written
                } else {
                    Reply::Value {
                        value: node.value.clone(),
                        suspect: node.suspect,
                    }
                }
            }
        };
        self.send(
            Event::Answer {
                from: to,
                to: from,
                life,
                op,
                reply,
            },
            gossip,
        );
        if gossip {
            self.advance(to);
        }
    }

    fn take(&mut self, me: usize, from: usize, op: Op, reply: Reply) {
        let mistake = self.mistake;
        let node = &mut self.nodes[me];
        let Some(running) = node.running.get_mut(&op) else {
            return;
        };
        match (running, reply) {
            (Running::Gossip, Reply::Gossip(told, lives)) => {
                node.running.remove(&op);
                node.hear(told, lives, mistake);
                if let Some(it) = &mut node.transition {
                    it.heard_from(&name(from));
                }
            }
            (Running::Write { id, slots, acks, .. }, Reply::Written) => {
                acks.insert(from);
                let whole = |slot: &&Vec<usize>| slot.iter().all(|node| acks.contains(node));
                if slots.iter().filter(whole).count() >= W {
                    self.acked.insert(*id);
                    self.counts.writes += 1;
                    node.running.remove(&op);
                }
            }
            (
                Running::Read {
                    promised, answers, ..
                },
                Reply::Value { value, suspect },
            ) => {
                if !suspect || mistake == Mistake::CountsSuspectReads {
                    answers.insert(from, value);
                }
                if answers.len() >= R {
                    self.counts.reads += 1;
                    let known = |id: &u32| answers.values().any(|value| value.contains(id));
                    self.counts.stale += u64::from(!promised.iter().all(known));
                    node.running.remove(&op);
                }
            }
            (Running::Pull { version, for_base }, Reply::Value { value, suspect }) => {
                let place = (*version, *for_base);
                node.running.remove(&op);
                if !suspect || mistake == Mistake::PullsFromSuspects {
                    node.value.extend(value);
                    node.pulled.entry(place).or_default().insert(from);
                }
            }
            _ => {}
        }
        self.advance(me);
    }

    fn tick(&mut self, me: usize) {
        self.later(10, Event::Tick(me));
        self.advance(me);
        self.pull(me);
        let peer = self.node();
        let node = &self.nodes[me];
        if peer == me || self.is_deaf(me) {
            return;
        }
        // One who knows nothing is told by others.
        if let Some(it) = &node.transition {
            let request = Request::Gossip(it.told(), node.lives.clone());
            let op = self.begin(me, Running::Gossip);
            self.ask(me, peer, op, request);
        }
    }

    /// Gives the marks that are due, and sees whether what was pulled is enough.
    fn advance(&mut self, me: usize) {
        let mistake = self.mistake;
        let node = &mut self.nodes[me];
        node.settle();
        let base = node.transition.as_ref().map(|it| version(it.base()));
        loop {
            let tags = node.running.values().filter_map(Running::tag);
            let oldest = tags
                .min()
                .filter(|_| mistake != Mistake::KnownWithOldWritesInFlight);
            let synced = node.synced();
            let Some(it) = &mut node.transition else { return };
            let Some(mark) = it.due(Local { oldest, synced }) else {
                break;
            };
            it.give(mark);
        }
        let now = node.transition.as_ref().map(|it| version(it.base()));
        self.counts.retired += u64::from(now != base);
    }

    fn operation(&mut self, me: usize) {
        let Some(it) = &self.nodes[me].transition else {
            return;
        };
        let known: Vec<Arc<Ring>> = it.written().cloned().collect();
        if !known.iter().any(|ring| ring.index_of(&name(me)).is_some()) {
            return;
        }
        let (tag, read) = (it.newest(), it.read().cloned());
        let superseded = it.next().map(|next| Arc::clone(&next.ring));
        if self.below(2) == 0 {
            let Some(ring) = read else { return };
            let promised = self.acked.clone();
            let op = self.begin(
                me,
                Running::Read {
                    promised,
                    answers: BTreeMap::new(),
                    tag,
                },
            );
            for to in list(&ring) {
                self.ask(me, to, op, Request::Read);
            }
            return;
        }
        let mut rings = known;
        match (self.mistake, superseded) {
            (Mistake::DropsASupersededRingAtOnce, Some(next)) => {
                let base = Arc::clone(&rings[0]);
                rings = vec![base, next];
            }
            (Mistake::StopsWritingToTheBaseBeforeAllRead, Some(next)) if read.as_ref() == Some(&next) => {
                rings = vec![next];
            }
            _ => {}
        }
        let lists: Vec<Vec<MemberId>> = rings
            .iter()
            .map(|ring| list(ring).into_iter().map(name).collect())
            .collect();
        let slots: Vec<Vec<usize>> = slots(&lists)
            .into_iter()
            .map(|slot| slot.members.iter().map(number).collect())
            .collect();
        self.writes += 1;
        let id = self.writes;
        let to: BTreeSet<usize> = slots.iter().flatten().copied().collect();
        let op = self.begin(
            me,
            Running::Write {
                id,
                slots,
                acks: BTreeSet::new(),
                tag,
            },
        );
        for to in to {
            self.ask(me, to, op, Request::Write(id));
        }
    }

    fn propose(&mut self, me: usize) {
        let members = 3 + self.below(4) as usize;
        let mut order: Vec<usize> = (0..NODES).collect();
        for index in (1..NODES).rev() {
            let other = self.below(index as u64 + 1) as usize;
            order.swap(index, other);
        }
        order.truncate(members);
        if self.nodes[me].suspect {
            return;
        }
        let Some(it) = &mut self.nodes[me].transition else {
            return;
        };
        let ring = Arc::new(ring(it.newest().epoch + 1, &order));
        match it.propose(Arc::clone(&ring), BTreeSet::new()) {
            Ok(()) => self.counts.proposed += 1,
            Err(ProposeRefused::Reading(_)) => {
                self.counts.locked += 1;
                if self.mistake == Mistake::ProposesAlthoughItReads {
                    let base = version(it.base());
                    let mut told = it.told();
                    told.followers.proposals.push(Proposal {
                        ring,
                        base,
                        dead: BTreeSet::new(),
                    });
                    it.hear(told);
                }
            }
            Err(_) => {}
        }
        self.advance(me);
    }

    /// The process ends and begins again.
    fn restart(&mut self, me: usize, emptied: bool) {
        let id = self.bits();
        let now = self.now;
        let node = &mut self.nodes[me];
        node.running.clear();
        node.life = Incarnation {
            generation: node.life.generation + 1,
            id,
        };
        node.began = now;
        if emptied {
            node.value.clear();
            node.pulled.clear();
            node.transition = None;
            node.lives.clear();
            node.suspect = true;
        }
        let (member, life) = (node.id.clone(), node.life);
        node.lives.insert(member.clone(), life);
        if let Some(it) = &mut node.transition {
            it.lives(&member, life);
        }
    }

    /// Never a second one before the first is whole again: else what two of three hold could be gone.
    fn lose_disk(&mut self, me: usize) {
        let all_whole = self.nodes.iter().all(|node| !node.suspect);
        if all_whole && self.nodes[me].transition.is_some() {
            self.counts.lost_disks += 1;
            self.restart(me, true);
        }
    }

    /// Asks for what a new or suspect holder lacks.
    fn pull(&mut self, me: usize) {
        let node = &self.nodes[me];
        let Some(it) = &node.transition else { return };
        let early = self.mistake == Mistake::RecoversBeforeTheLongestDeadline;
        if node.suspect && self.now < node.began + DEADLINE && !early {
            return;
        }
        let mut asks = Vec::new();
        let base = list(it.base());
        if node.suspect && base.contains(&me) {
            asks.extend(base.iter().map(|peer| (*peer, version(it.base()), true)));
        }
        if let Some(next) = it.next()
            && (it.may_sync() || self.mistake == Mistake::SyncsBeforeAllAreKnown)
            && list(&next.ring).contains(&me)
            && !node.has_pulled_for_next()
        {
            asks.extend(base.iter().map(|peer| (*peer, next.version(), false)));
        }
        let pulled = |ask: &(usize, RingVersion, bool)| node.pulled.get(&(ask.1, ask.2));
        asks.retain(|ask| ask.0 != me && !pulled(ask).is_some_and(|from| from.contains(&ask.0)));
        // One at a time, so that what one source lacks is not made good by another by chance.
        if !asks.is_empty() {
            let chosen = self.below(asks.len() as u64) as usize;
            let (peer, version, for_base) = asks[chosen];
            let op = self.begin(me, Running::Pull { version, for_base });
            self.ask(me, peer, op, Request::Pull);
        }
    }
}
