//! Gossip, probes and the delivery of hints. Paper: §4.6, §4.8.

use std::rc::Rc;

use bytes::Bytes;
use dynamo_core::admission::Task;
use dynamo_core::coordinator::{Ack, FailureKind, ReplicaFailure};
use dynamo_core::membership::{Changes, Delta, Target, Wanted};
use dynamo_core::recovery::Recovery;
use dynamo_core::replica::Minter;
use dynamo_core::types::{Incarnation, MemberId};
use dynamo_core::version::KeyState;

use super::{Exit, Live, boot};
use crate::disk::{Place, Value};
use crate::invariants::i09_released_on_a_synced_word;
use crate::keys::KeyIx;
use crate::messages::{NodeIx, Reply, Request};
use crate::mistakes::Mistake;
use crate::shared::Timer;

const GOSSIP_MS: u64 = 1000;
const JOINING_MS: u64 = 200;
/// While a ring is to follow, its members wait for each other's news.
const TRANSITION_MS: u64 = 250;
const PROBE_MS: u64 = 250;
const HINTS_MS: u64 = 500;
/// Hints under way at once.
pub const HINTS_IN_FLIGHT: usize = 16;

impl Live<'_> {
    /// One exchange of news with a peer or seed.
    pub fn gossip_round(&mut self) {
        let synced = self.disk.synced();
        // What peers remember must be heard before it is overwritten.
        if self.p.view.me().synced < synced && !self.unconfirmed() {
            // The real shell says so every ten seconds only.
            self.p.view.update_self(|me| me.synced = synced);
        }
        let random = self.sh.rng.bits();
        let target = self.p.gossip.next_target(&self.p.view, &self.p.detector, random);
        let peer = target.map(|target| match target {
            Target::Member(member) => self.sh.index_of(&member),
            Target::Seed(seed) => seed,
        });
        if let Some(peer) = peer
            && peer != self.me
        {
            self.gossip_with(peer);
        }
        if peer.is_none_or(|peer| peer == self.me) {
            self.p.gossip_rounds += 1;
        }
        self.look_for_strays();
        self.advance();
        let pause_ms = if !self.serving() || self.unconfirmed() {
            JOINING_MS
        } else if self.in_transition() {
            TRANSITION_MS
        } else {
            GOSSIP_MS
        };
        self.timer(pause_ms, Timer::Gossip);
    }

    /// A peer goes by a later ring than this node: it tells which.
    pub fn catch_up(&mut self, peer: NodeIx) {
        if self.p.catching_up.insert(peer) {
            self.gossip_with(peer);
        }
    }

    /// It hears and tells no news now.
    pub fn is_deaf(&self) -> bool {
        self.sh.now_us < self.sh.deaf_until_us[self.me]
    }

    fn gossip_with(&mut self, peer: NodeIx) {
        if self.is_deaf() {
            self.p.catching_up.remove(&peer);
            return;
        }
        let digest = Box::new(self.p.view.digest());
        let timeout_ms = self.sh.knobs.call_timeout_ms;
        let life = self.p.view.me().incarnation;
        let told = self.p.told.get(&peer) == Some(&life);
        self.call(peer, timeout_ms, Request::Digest(digest), move |live, result| {
            live.p.gossip_rounds += 1;
            live.p.catching_up.remove(&peer);
            let Ok(Reply::Gossip {
                answer,
                forgetful,
                unconfirmed,
            }) = result
            else {
                return;
            };
            live.take_news(answer.delta, |_| {});
            // The word of a peer that began with nothing, or lost its memory, counts only when nobody else seems to be there.
            if live.serving() && (!forgetful || live.waited()) {
                live.confirm();
            }
            let wanted = answer.wanted;
            let heard_of_me = told || !wanted.members.contains(&live.sh.members[live.me]);
            // What an old copy of the peer's disk has forgotten it cannot tell.
            if heard_of_me && !unconfirmed && live.p.view.me().incarnation == life {
                live.heard_from(peer);
            }
            if wanted.ring || !wanted.members.is_empty() {
                live.tell_news(peer, &wanted);
            }
        });
    }

    /// Sends what a peer lacks. Once it has taken that down it knows of this life, and what it says from then on counts.
    fn tell_news(&mut self, peer: NodeIx, wanted: &Wanted) {
        let delta = Box::new(self.p.view.delta_for(wanted));
        let life = self.p.view.me().incarnation;
        let of_me = wanted.members.contains(&self.sh.members[self.me]);
        let timeout_ms = self.sh.knobs.call_timeout_ms;
        self.call(peer, timeout_ms, Request::Delta(delta), move |live, result| {
            if of_me && result.is_ok() {
                live.p.told.insert(peer, life);
            }
        });
    }

    /// A peer that knew of this life has answered.
    fn heard_from(&mut self, peer: NodeIx) {
        let member: MemberId = self.sh.members[peer].clone();
        if self.remembers() || self.p.view.transition().is_none() {
            return;
        }
        self.p.view.heard_from(&member);
        self.keep_view(false, |_, _| {});
        self.rings_changed();
    }

    /// Takes what gossip brought, keeps it, and begins another life if peers remember a later one. `then` once it is kept.
    pub fn take_news(&mut self, delta: Delta, then: impl FnOnce(&mut Live<'_>) + 'static) {
        let changes = self.p.view.merge(delta);
        if changes == Changes::default() {
            then(self);
            return;
        }
        let now_ms = self.now_ms();
        for member in &changes.members {
            self.p.detector.sign_of_life(member, now_ms);
        }
        if let Some(remembered) = changes.self_superseded
            && self.sh.knobs.mistake != Some(Mistake::SameIncarnationAfterLoss)
        {
            self.exposed(remembered);
        }
        if changes.ring || !changes.members.is_empty() {
            self.rings_changed();
        }
        // Who is told that its life is known goes by it.
        self.keep_view(true, move |live, result| {
            if result.is_ok() {
                then(live);
            }
        });
    }

    /// A peer has told what it remembers of this member.
    fn confirm(&mut self) {
        if !self.p.confirmed && self.p.exit.is_none() {
            self.p.confirmed = true;
            self.enqueue(
                0,
                true,
                |_, group| {
                    group.set(Place::Meta(boot::CONFIRMED), Some(Value::Bytes(Bytes::new())));
                    group.set(Place::Meta(boot::PAST), None);
                    Ok(())
                },
                |_, _| {},
            );
        }
    }

    /// Peers remember a life of this member that its disk does not, or more of it: the disk was emptied, or put back in
    /// time. An empty one goes on as another incarnation and gets back what it lost; an old one is set aside first.
    pub fn exposed(&mut self, remembered: Incarnation) {
        let (me, now_us) = (self.me, self.sh.now_us);
        self.sh.trace.line(now_us, || {
            format!("n{me} is exposed: peers remember {remembered}")
        });
        // More of the very life that this disk goes on with: then it is an old copy, be it ever so young.
        if !self.p.fresh || remembered.id == self.p.incarnation.id {
            self.p.exit = Some(Exit::SetAside);
            return;
        }
        let generation = self.p.incarnation.generation.max(remembered.generation) + 1;
        let id = self.sh.rng.bits();
        let incarnation = Incarnation { generation, id };
        self.sh.stats.incarnations += 1;
        self.p.view.update_self(|me| me.incarnation = incarnation);
        self.p.view.forget();
        let mut suspect = None;
        if self.p.recovery.is_none() {
            let mut recovery = Recovery::begin(self.now_ms(), self.sh.knobs.recovery_after_ms());
            if let Some(rings) = &self.p.rings {
                let (base, dead) = (&rings.base().placement, rings.layouts.dead());
                recovery.place(base, &self.sh.members[me], self.sh.knobs.w, dead);
            }
            suspect = Some(recovery.encode());
            self.p.recovery = Some(recovery);
        }
        // What was pulled before may have been pulled too soon.
        self.plan_sync();
        self.enqueue(
            0,
            true,
            move |live, group| {
                let bytes = boot::incarnation_bytes(incarnation);
                group.set(boot::incarnation_place(), Some(Value::Bytes(bytes)));
                if let Some(suspect) = suspect {
                    group.set(Place::Meta(boot::RECOVERY), Some(Value::Bytes(suspect)));
                }
                live.write_view(group);
                live.renew(Minter::new(incarnation, 1));
                Ok(())
            },
            |_, _| {},
        );
        self.rings_changed();
    }

    /// Asks unreachable peers for a sign of life.
    pub fn probe_round(&mut self) {
        let now_ms = self.now_ms();
        self.p.quiet.runs(now_ms);
        for member in self.p.detector.probes_due(now_ms) {
            let peer = self.sh.index_of(&member);
            let timeout_ms = self.sh.knobs.call_timeout_ms;
            self.call(peer, timeout_ms, Request::Probe, |_, _| {});
        }
        self.timer(PROBE_MS, Timer::Probe);
    }

    /// Delivers hints to owners that answer; all hints are looked at each time, also those from before a restart.
    pub fn hints_round(&mut self) {
        let listed = self.serving();
        let mut due: Vec<(NodeIx, KeyIx, Rc<KeyState>)> = Vec::new();
        // Those of an old volume may hold what was removed everywhere since.
        let doubtful = self.doubtful() && self.sh.knobs.mistake != Some(Mistake::GhostAdmitted);
        for (place, value) in self.hints.iter().filter(|_| !doubtful) {
            if let (Place::Hint(owner, key), Value::State(state)) = (*place, value)
                && listed
                && !self.p.delivering.contains(&(owner, key))
                && self.targets_reachable(owner, key)
                && self.p.delivering.len() + due.len() < HINTS_IN_FLIGHT
            {
                due.push((owner, key, Rc::clone(state)));
            }
        }
        for (owner, key, state) in due {
            if !self.has_turn(Task::Hints, 1) {
                break;
            }
            self.deliver(owner, key, &state);
        }
        self.next_round(HINTS_MS, Timer::Hints);
    }

    /// Who must have a hint before it goes.
    fn hint_targets(&self, owner: NodeIx, key: KeyIx) -> Vec<NodeIx> {
        let Some(rings) = &self.p.rings else {
            return Vec::new();
        };
        let hash = self.sh.keys.get(key).hash;
        let targets = rings.layouts.hint_targets(&self.sh.members[owner], hash);
        targets.iter().map(|target| self.sh.index_of(target)).collect()
    }

    fn targets_reachable(&self, owner: NodeIx, key: KeyIx) -> bool {
        let reachable = |node: &NodeIx| self.p.detector.reachable(&self.sh.members[*node]);
        let targets = self.hint_targets(owner, key);
        targets.iter().all(|node| *node == self.me || reachable(node))
    }

    fn deliver(&mut self, owner: NodeIx, key: KeyIx, state: &Rc<KeyState>) {
        let targets = self.hint_targets(owner, key);
        if targets.is_empty() {
            return;
        }
        let delivery = self.sh.fresh();
        self.begins(delivery);
        self.p.delivering.insert((owner, key));
        let receivers = Rc::new(targets.clone());
        if self.sh.knobs.mistake == Some(Mistake::HintDeletedEarly) {
            self.delete_hint(owner, key, Rc::clone(state), Rc::clone(&receivers));
        }
        let left = Rc::new(std::cell::Cell::new(targets.len()));
        let good = Rc::new(std::cell::Cell::new(true));
        for target in targets {
            let (left, good, kept) = (Rc::clone(&left), Rc::clone(&good), Rc::clone(state));
            let receivers = Rc::clone(&receivers);
            let ended = move |live: &mut Live<'_>, result: Result<Ack, ReplicaFailure>| {
                good.set(good.get() && result.is_ok_and(|ack| ack.durable));
                left.set(left.get() - 1);
                if left.get() == 0 {
                    live.p.delivering.remove(&(owner, key));
                    if good.get() {
                        live.delete_hint(owner, key, kept, receivers);
                    }
                    live.has_ended(delivery);
                }
            };
            let state = self.on_the_way(Rc::clone(state));
            if target == self.me {
                self.merge(key, state, None, true, ended);
                continue;
            }
            let message = Request::Write {
                key,
                state,
                hint_for: None,
                sync: true,
            };
            let timeout_ms = self.sh.knobs.call_timeout_ms;
            self.call(target, timeout_ms, message, move |live, result| {
                let result = match result {
                    Ok(Reply::Written { durable }) => Ok(Ack { durable }),
                    Ok(_) => Err(ReplicaFailure {
                        sent: true,
                        kind: FailureKind::Storage,
                    }),
                    Err(failure) => Err(failure),
                };
                ended(live, result);
            });
        }
    }

    /// Deletes a hint if nothing has been added to it meanwhile.
    fn delete_hint(
        &mut self,
        owner: NodeIx,
        key: KeyIx,
        delivered: Rc<KeyState>,
        receivers: Rc<Vec<NodeIx>>,
    ) {
        let place = Place::Hint(owner, key);
        self.enqueue(
            1,
            false,
            move |live, group| {
                if let Ok(Some(state)) = live.state_in_group(group, place)
                    && *state == *delivered
                {
                    live.sh.stats.hints_delivered += 1;
                    let me = live.me;
                    i09_released_on_a_synced_word::check(live.sh, me, &receivers, key, &state);
                    group.set(place, None);
                }
                Ok(())
            },
            |live, _| live.advance(),
        );
    }
}
