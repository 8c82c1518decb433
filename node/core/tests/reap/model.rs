//! Every history of a small world: three primaries, one fallback, one client; the real machine and the real rules.
//!
//! A (0) coordinates the client's writes and the rounds. B (1) loses what it has not synced when it crashes. C (2) may lose
//! its disk. F (3) may hold a hint for C. Messages wait any time up to the grace, come twice, or never;
//! questions of a round wait without limit. States are sets of three dots: v, t which supersedes it, w which comes
//! after the removal.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use bytes::Bytes;
use dynamo_core::reap::{
    Mark, Proposal, ReapCoordinator, ReapEffect, ReapEvent, ReapParties, Round, Target, visible_to_exchange,
};
use dynamo_core::types::MemberId;

mod answers;

use answers::{silence, target_of};

pub(super) const V: u8 = 1;
pub(super) const T: u8 = 2;
pub(super) const W: u8 = 4;
const A: usize = 0;
const B: usize = 1;
const C: usize = 2;
const F: usize = 3;
const GRACE_MS: u64 = 1000;

/// A `KeyState` of three dots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct State {
    pub(super) seen: u8,
    pub(super) live: u8,
}

/// What is removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Job {
    /// t is a tombstone: the record goes.
    Reap,
    /// t is a value, v's writer is retired: v's dot goes.
    Truncate,
}

/// What a wrong implementation would do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mistake {
    None,
    /// The fault hook: nobody is asked whether it is clear (test Z2).
    Forced,
    /// Each primary removes by itself what has been quiet for the grace.
    TimeOnly,
    /// A member that does not answer counts as clear.
    AbsentMembersNotAsked,
    /// A merge leaves the mark, and the commit looks at nothing else.
    MarkNotCleared,
    /// Every merge drops the retired writer's dots.
    TruncationInMerge,
    /// What `Agree` has found is removed: neither `Prepare` nor the commit looks again.
    OnePhase,
    /// `Prepare` compares the state, not the quiet.
    PrepareNotQuiet,
    /// A merge that changes nothing leaves the record quiet.
    ChangesOnly,
    /// The mark is not synced before it is spoken of.
    PrepareNotSynced,
    /// The grace is shorter than a message's life.
    ShortGrace,
    /// After a removal the writer counts from the start again, under its old name.
    DotsAgain,
}

/// How much of each kind of trouble a history may hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Budget {
    pub(super) rounds: u8,
    pub(super) crashes: u8,
    pub(super) disks: u8,
    pub(super) pushes: u8,
    pub(super) attempts: u8,
    pub(super) copies: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Node {
    record: Option<State>,
    mark: Option<Mark>,
    /// What a crash leaves. Equal to the above except on B.
    synced: (Option<State>, Option<Mark>),
    quiet: bool,
    suspect: bool,
}

/// One moment of a history.
#[derive(Clone, Hash, Debug)]
pub(super) struct World {
    nodes: [Node; 3],
    hint: Option<State>,
    /// Data under way: to whom, what.
    data: BTreeSet<(usize, State)>,
    /// Questions of rounds that were given up, still under way.
    late: BTreeSet<(usize, ReapEffect, Round)>,
    machine: Option<ReapCoordinator>,
    /// Questions of the present round, in order.
    asks: Vec<ReapEffect>,
    left: Budget,
    rounds: u64,
    deleted: bool,
    /// w's dot, once it is written.
    again: Option<u8>,
}

/// What a search has found.
pub(super) struct Found {
    pub(super) worlds: usize,
    /// Worlds in which the key is gone from all primaries.
    pub(super) removed: usize,
    pub(super) violation: Option<String>,
    /// v lives again somewhere.
    pub(super) zombies: usize,
}

#[derive(Clone, Copy)]
pub(super) struct Model {
    pub(super) job: Job,
    pub(super) mistake: Mistake,
}

impl State {
    pub(super) fn merge(self, other: Self) -> Self {
        let live = self.live & other.live | self.live & !other.seen | other.live & !self.seen;
        Self {
            seen: self.seen | other.seen,
            live,
        }
    }

    fn digest(self) -> u64 {
        u64::from(self.seen) << 8 | u64::from(self.live)
    }

    fn truncated(self) -> Self {
        let keep = self.live | !V;
        Self {
            seen: self.seen & keep,
            live: self.live,
        }
    }
}

fn join(stored: Option<State>, incoming: State) -> State {
    stored.map_or(incoming, |stored| stored.merge(incoming))
}

fn names() -> [MemberId; 4] {
    ["a", "b", "c", "f"].map(|name| MemberId::new(name).unwrap())
}

fn index(member: &MemberId) -> usize {
    names().iter().position(|name| name == member).unwrap()
}

fn position() -> Bytes {
    Bytes::from_static(b"k")
}

impl Model {
    fn is(self, mistake: Mistake) -> bool {
        self.mistake == mistake
    }

    fn reapable(self, state: State) -> bool {
        self.job == Job::Reap && state.live & !T == 0
    }

    fn target(self, state: State) -> Option<Target> {
        match self.job {
            Job::Reap => self.reapable(state).then_some(Target::Absent),
            Job::Truncate => {
                let after = state.truncated();
                (after != state).then(|| Target::Truncated(after.digest()))
            }
        }
    }

    /// All histories from the worlds in which v was written: everywhere or not at C, with or without a hint, with or without
    /// messages still under way to C and F. Stops at the first violation.
    pub(super) fn search(self, budget: Budget) -> Found {
        let mut stack = Self::beginnings(budget);
        let mut known = BTreeSet::new();
        let mut found = Found {
            worlds: 0,
            removed: 0,
            violation: None,
            zombies: 0,
        };
        while let Some(world) = stack.pop() {
            let mut hasher = DefaultHasher::new();
            world.hash(&mut hasher);
            let fingerprint = hasher.finish();
            if !known.insert(fingerprint) {
                continue;
            }
            found.worlds += 1;
            found.removed += usize::from(world.is_removed());
            found.zombies += usize::from(world.is_zombie());
            found.violation = self.violation(&world);
            if found.violation.is_none() && self.is(Mistake::None) && fingerprint.is_multiple_of(16) {
                found.violation = self.violation_after_healing(&world);
            }
            if found.violation.is_some() {
                return found;
            }
            self.successors(&world, &mut stack);
        }
        found
    }

    fn beginnings(left: Budget) -> Vec<World> {
        let v = State { seen: V, live: V };
        let mut worlds = Vec::new();
        for bits in 0..16 {
            let node = |record| Node {
                record,
                synced: (record, None),
                ..Node::default()
            };
            worlds.push(World {
                nodes: [node(Some(v)), node(Some(v)), node((bits & 1 > 0).then_some(v))],
                hint: (bits & 2 > 0).then_some(v),
                data: [(4, C), (8, F)]
                    .into_iter()
                    .filter_map(|(bit, to)| (bits & bit > 0).then_some((to, v)))
                    .collect(),
                late: BTreeSet::new(),
                machine: None,
                asks: Vec::new(),
                left,
                rounds: 0,
                deleted: false,
                again: None,
            });
        }
        worlds
    }

    fn violation(self, world: &World) -> Option<String> {
        if world.is_zombie() && !self.is(Mistake::Forced) {
            return Some(format!("v is back: {world:?}"));
        }
        let lost = world.again.is_some_and(|dot| world.everything().live & dot == 0);
        if lost {
            return Some(format!("w is lost: {world:?}"));
        }
        // Where t is a value, it may go only for w.
        let gone = self.job == Job::Truncate && world.deleted && world.everything().live & (T | W) == 0;
        gone.then(|| format!("t is lost: {world:?}"))
    }

    /// All trouble ends: does the removal come to its end, and is everybody equal?
    fn violation_after_healing(self, world: &World) -> Option<String> {
        if !world.deleted {
            return None;
        }
        let mut healed = world.clone();
        (healed.machine, healed.asks) = (None, Vec::new());
        healed.data.clear();
        healed.late.clear();
        if healed.nodes[C].suspect {
            self.recover(&mut healed);
        }
        if let Some(hint) = healed.hint.take() {
            self.merge(&mut healed, C, hint);
        }
        for to in 0..3 {
            healed.nodes[to].mark = None;
        }
        let all: Vec<State> = healed.nodes.iter().filter_map(|node| node.record).collect();
        for to in 0..3 {
            for state in &all {
                self.merge(&mut healed, to, *state);
            }
            healed.nodes[to].quiet = true;
        }
        self.begin_round(&mut healed);
        while let Some(ask) = (!healed.asks.is_empty()).then(|| healed.asks.remove(0)) {
            let event = self.perform(&mut healed, &ask, None);
            healed.feed(event);
        }
        let records: BTreeSet<Option<State>> = healed.nodes.iter().map(|node| node.record).collect();
        let expected_gone = self.job == Job::Reap && world.again.is_none();
        let good = records.len() == 1
            && records
                .first()
                .is_some_and(|record| match (record, expected_gone) {
                    (None, gone) => gone,
                    (Some(state), gone) => !gone && self.target(*state).is_none() && state.live & V == 0,
                });
        (!good).then(|| format!("not settled: {healed:?} from {world:?}"))
    }

    fn successors(self, world: &World, out: &mut Vec<World>) {
        self.client(world, out);
        self.messages(world, out);
        self.background(world, out);
        self.faults(world, out);
        self.rounds(world, out);
    }

    fn client(self, world: &World, out: &mut Vec<World>) {
        if !world.deleted {
            let delta = State { seen: V | T, live: T };
            for third in [C, F] {
                let mut next = world.clone();
                next.deleted = true;
                self.merge(&mut next, A, delta);
                next.data.extend([(B, delta), (third, delta)]);
                out.push(next);
            }
        } else if world.again.is_none() {
            let anew = self.is(Mistake::DotsAgain) && world.nodes[A].record.is_none();
            let dot = if anew { V } else { W };
            let contexts: &[u8] = if anew { &[0] } else { &[0, V | T] };
            for context in contexts {
                let delta = State {
                    seen: context | dot,
                    live: dot,
                };
                for third in [C, F] {
                    let mut next = world.clone();
                    next.again = Some(dot);
                    self.merge(&mut next, A, delta);
                    next.data.insert((third, delta));
                    out.push(next);
                }
            }
        }
    }

    fn messages(self, world: &World, out: &mut Vec<World>) {
        for message in &world.data {
            let mut lost = world.clone();
            lost.data.remove(message);
            let mut delivered = lost.clone();
            self.deliver(&mut delivered, *message);
            if world.left.copies > 0 {
                let mut copied = world.clone();
                copied.left.copies -= 1;
                self.deliver(&mut copied, *message);
                out.push(copied);
            }
            out.extend([lost, delivered]);
        }
        for call in &world.late {
            let mut next = world.clone();
            next.late.remove(call);
            let _unheard = self.perform(&mut next, &call.1, Some(call.2));
            out.push(next);
        }
    }

    fn background(self, world: &World, out: &mut Vec<World>) {
        if let Some(hint) = world.hint {
            let mut acknowledged = world.clone();
            acknowledged.hint = None;
            self.merge(&mut acknowledged, C, hint);
            out.push(acknowledged);
            if world.left.attempts > 0 {
                let mut attempted = world.clone();
                attempted.left.attempts -= 1;
                attempted.data.insert((C, hint));
                out.push(attempted);
            }
        }
        for (from, node) in world.nodes.iter().enumerate() {
            let free = visible_to_exchange(node.mark.as_ref()) && !node.suspect && world.left.pushes > 0;
            for to in (0..3).filter(|to| *to != from && free) {
                let mut next = world.clone();
                next.left.pushes -= 1;
                next.data.extend(node.record.map(|record| (to, record)));
                out.push(next);
            }
            if node.mark.is_some() && world.machine.is_none() {
                let mut next = world.clone();
                next.nodes[from].mark = None;
                next.settle(from);
                out.push(next);
            }
            if self.is(Mistake::TimeOnly)
                && node.quiet
                && node.record.is_some_and(|state| self.target(state).is_some())
            {
                let mut next = world.clone();
                next.nodes[from].record = None;
                next.settle(from);
                out.push(next);
            }
        }
        let mut next = world.clone();
        next.nodes.iter_mut().for_each(|node| node.quiet = true);
        if !self.is(Mistake::ShortGrace) {
            next.data.clear();
        }
        out.push(next);
        let mut synced = world.clone();
        synced.sync(B);
        out.push(synced);
    }

    fn faults(self, world: &World, out: &mut Vec<World>) {
        if world.left.crashes > 0 {
            let mut next = world.clone();
            next.left.crashes -= 1;
            let mut first = next.clone();
            first.nodes[A].quiet = false;
            (first.machine, first.asks) = (None, Vec::new());
            let node = &mut next.nodes[B];
            (node.record, node.mark) = node.synced;
            node.quiet = false;
            out.extend([first, next]);
        }
        if world.left.disks > 0 {
            let mut next = world.clone();
            next.left.disks -= 1;
            next.nodes[C] = Node {
                suspect: true,
                ..Node::default()
            };
            out.push(next);
        }
        if world.nodes[C].suspect {
            let mut next = world.clone();
            self.recover(&mut next);
            out.push(next);
        }
    }

    fn rounds(self, world: &World, out: &mut Vec<World>) {
        if world.machine.is_none() && world.left.rounds > 0 {
            let mut next = world.clone();
            next.left.rounds -= 1;
            if self.begin_round(&mut next) {
                out.push(next);
            }
        }
        let (Some(machine), Some(ask)) = (&world.machine, world.asks.first()) else {
            return;
        };
        let mut asked = world.clone();
        asked.asks.remove(0);
        let mut answered = asked.clone();
        let event = self.perform(&mut answered, ask, None);
        let mut silent = asked;
        if matches!(ask, ReapEffect::Prepare { .. } | ReapEffect::Commit { .. }) {
            let call = (target_of(ask), ask.clone(), machine.round());
            for (mut next, heard) in [(answered.clone(), event.clone()), (silent.clone(), silence(ask))] {
                if next.late.len() < 2 && next.late.insert(call.clone()) {
                    next.feed(heard);
                    out.push(next);
                }
            }
        }
        answered.feed(event);
        silent.feed(silence(ask));
        out.extend([answered, silent]);
    }

    fn begin_round(self, world: &mut World) -> bool {
        let Some(state) = world.nodes[A].record else {
            return false;
        };
        let Some(target) = self.target(state).filter(|_| world.deleted) else {
            return false;
        };
        let [a, b, c, f] = names();
        let parties = ReapParties {
            me: a.clone(),
            primaries: vec![a.clone(), b.clone(), c.clone()],
            members: vec![a, b, c, f],
            force: self.is(Mistake::Forced),
        };
        world.rounds += 1;
        let round = Round {
            epoch: 1,
            id: world.rounds,
        };
        let proposal = Proposal {
            position: position(),
            digest: state.digest(),
            target,
        };
        world.machine = Some(ReapCoordinator::new(round, parties, vec![proposal]));
        world.feed(ReapEvent::Start);
        true
    }
}

impl World {
    /// The machine hears of something.
    fn feed(&mut self, event: ReapEvent) {
        let Some(machine) = &mut self.machine else {
            return;
        };
        self.asks.extend(machine.step(event));
        if machine.finished() {
            (self.machine, self.asks) = (None, Vec::new());
        }
    }

    /// All but B sync whatever they write.
    fn settle(&mut self, member: usize) {
        if member != B {
            self.sync(member);
        }
    }

    fn sync(&mut self, member: usize) {
        let node = &mut self.nodes[member];
        node.synced = (node.record, node.mark);
    }

    /// What the whole world knows.
    fn everything(&self) -> State {
        let records = self.nodes.iter().filter_map(|node| node.record).chain(self.hint);
        let nothing = State { seen: 0, live: 0 };
        records
            .chain(self.data.iter().map(|(_, state)| *state))
            .fold(nothing, State::merge)
    }

    fn is_zombie(&self) -> bool {
        self.deleted && self.again != Some(V) && self.everything().live & V > 0
    }

    fn is_removed(&self) -> bool {
        let gone = |record: &Option<State>| record.is_none_or(|state| state.seen & V == 0);
        self.deleted && self.nodes.iter().all(|node| gone(&node.record) && !node.suspect)
    }
}
