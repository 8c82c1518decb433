//! Rounds of reaping: drives the core's machine, answers by its rules. Paper: none; `dynamo_core::reap` says why.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use dynamo_core::admission::Task;
use dynamo_core::listing::Position;
use dynamo_core::reap::{
    Holdings, Mark, Opinion, Proposal, ReapCoordinator, ReapEffect, ReapEvent, ReapParties, Refusal, Removal,
    Replica, Round, Standing, Target, agree, clear, commit, prepare,
};
use dynamo_core::types::{MemberId, PartitionId};
use dynamo_core::version::{Actor, KeyState, truncated};

use super::Live;
use super::rings::Rings;
use super::writer::Group;
use crate::buggify::Site;
use crate::disk::{Place, Value};
use crate::keys::KeyIx;
use crate::messages::{Reply, Request, Shortened};
use crate::mistakes::Mistake;
use crate::shared::Timer;

const ROUND_MS: u64 = 700;
const ROUND_KEYS: usize = 16;

/// The round that this node runs.
pub struct RunningReap {
    machine: ReapCoordinator,
    partition: PartitionId,
    id: u64,
    shortened: Shortened,
}

impl Live<'_> {
    /// Begins a round, if there is something to remove.
    pub fn reap_round(&mut self) {
        self.reap_work();
        self.next_round(ROUND_MS, Timer::Reap);
    }

    fn reap_work(&mut self) {
        if !self.serving() || self.in_transition() {
            return;
        }
        if !self.has_turn(Task::Reap, 1) {
            return;
        }
        self.drop_stale_marks();
        if self.sh.knobs.mistake == Some(Mistake::ReapByTimeOnly) {
            self.reap_alone();
            return;
        }
        if self.p.reap.is_some() {
            return;
        }
        let Some((partition, proposals, shortened)) = self.wanted() else {
            return;
        };
        let mistake = self.sh.knobs.mistake == Some(Mistake::ReapWithoutAskingAbsent);
        let Some(rings) = &self.p.rings else { return };
        let base = Rc::clone(rings.base());
        let members = rings.layouts.members();
        let parties = ReapParties {
            me: self.sh.members[self.me].clone(),
            primaries: base
                .of_partition(partition)
                .0
                .iter()
                .map(|node| self.sh.members[*node].clone())
                .collect(),
            members: members
                .filter(|member| !mistake || self.p.detector.reachable(member))
                .cloned()
                .collect(),
            force: false,
        };
        let id = self.sh.rng.bits();
        self.begins(id);
        let round = Round {
            epoch: self.epoch(),
            id,
        };
        let machine = ReapCoordinator::new(round, parties, proposals);
        self.p.reap = Some(RunningReap {
            machine,
            partition,
            id,
            shortened: Rc::new(shortened),
        });
        let abandoned = self.sh.buggify.fires(Site::AbandonedReap);
        let timeout_ms = if abandoned {
            self.sh.knobs.call_timeout_ms / 8
        } else {
            self.sh.knobs.call_timeout_ms * 10
        };
        self.timer(timeout_ms, Timer::ReapDeadline(id));
        self.drive_reap(ReapEvent::Start);
    }

    /// The round has taken too long.
    pub fn reap_deadline(&mut self, id: u64) {
        if self.p.reap.as_ref().is_some_and(|reap| reap.id == id) {
            self.drive_reap(ReapEvent::DeadlineReached);
        }
    }

    /// The first partition that this node leads and that has something to remove.
    fn wanted(&mut self) -> Option<(PartitionId, Vec<Proposal>, BTreeMap<Bytes, KeyState>)> {
        let (now_ms, wall_ms) = (self.now_ms(), self.wall_ms());
        let alive: BTreeSet<u64> = self
            .p
            .view
            .members()
            .map(|member| member.incarnation.id)
            .collect();
        let retired = |actor: Actor| !alive.contains(&actor.incarnation);
        let actors_max = self.sh.knobs.actors_max;
        let mut shortened = BTreeMap::new();
        let mut wanted: BTreeMap<PartitionId, Vec<Proposal>> = BTreeMap::new();
        for key in self.sh.keys.all() {
            let info = self.sh.keys.get(key);
            let base = self.p.rings.as_ref().map(Rings::base);
            let primaries = base.map(|base| &base.of(info.hash).0);
            if primaries.and_then(|primaries| primaries.first()) != Some(&self.me) {
                continue;
            }
            let Some(partition) = self.partition_of(key) else {
                continue;
            };
            let Some(state) = self.disk.peek(Place::Data(key)) else {
                continue;
            };
            let quiet_ms = self.p.quiet.quiet_ms(info.position.as_bytes(), now_ms);
            if quiet_ms < self.sh.knobs.grace_ms {
                continue;
            }
            let position = info.position.as_bytes().clone();
            let target = if state.is_reapable(wall_ms) {
                Target::Absent
            } else if let Some(shorter) = truncated(state, actors_max, &retired) {
                let digest = shorter.digest();
                shortened.insert(position.clone(), shorter);
                Target::Truncated(digest)
            } else {
                continue;
            };
            wanted.entry(partition).or_default().push(Proposal {
                position,
                digest: state.digest(),
                target,
            });
        }
        let count = wanted.len();
        let (partition, mut proposals) = wanted.into_iter().nth(self.sh.rng.index(count.max(1)))?;
        proposals.truncate(ROUND_KEYS);
        Some((partition, proposals, shortened))
    }

    fn drive_reap(&mut self, event: ReapEvent) {
        let Some(reap) = &mut self.p.reap else { return };
        let effects = reap.machine.step(event);
        let (round, partition, id) = (reap.machine.round(), reap.partition, reap.id);
        let shortened = Rc::clone(&reap.shortened);
        for effect in effects {
            match effect {
                ReapEffect::Agree { member, proposals } => {
                    if self.is_me(&member) {
                        let opinions = self.agree(round, partition, &proposals);
                        self.drive_reap(ReapEvent::Agreed { member, opinions });
                    } else {
                        let request = Request::Agree(round, partition, proposals);
                        self.ask_reap(id, member, request, |member, reply| ReapEvent::Agreed {
                            member,
                            opinions: opinions_of(reply),
                        });
                    }
                }
                ReapEffect::Clear { member } => {
                    if self.is_me(&member) {
                        let result = self.is_clear(round, partition);
                        self.drive_reap(ReapEvent::Cleared { member, result });
                    } else {
                        let request = Request::Clear(round, partition);
                        self.ask_reap(id, member, request, |member, reply| ReapEvent::Cleared {
                            member,
                            result: match reply {
                                Some(Reply::Cleared(result)) => result,
                                _ => Err(Refusal::Silent),
                            },
                        });
                    }
                }
                ReapEffect::Prepare { member, proposals } => {
                    if self.is_me(&member) {
                        self.prepare_marks(round, partition, proposals, move |live, opinions| {
                            live.drive_if(id, ReapEvent::Prepared { member, opinions });
                        });
                    } else {
                        let request = Request::Prepare(round, partition, proposals);
                        self.ask_reap(id, member, request, |member, reply| ReapEvent::Prepared {
                            member,
                            opinions: opinions_of(reply),
                        });
                    }
                }
                ReapEffect::Commit { member, proposals } => {
                    if self.is_me(&member) {
                        self.commit_marks(round, proposals, &shortened, move |live, positions| {
                            live.drive_if(id, ReapEvent::Committed { member, positions });
                        });
                    } else {
                        let request = Request::Commit(round, partition, proposals, Rc::clone(&shortened));
                        self.ask_reap(id, member, request, |member, reply| ReapEvent::Committed {
                            member,
                            positions: match reply {
                                Some(Reply::Committed(positions)) => positions,
                                _ => BTreeSet::new(),
                            },
                        });
                    }
                }
                ReapEffect::Done(report) => {
                    let (me, now_us) = (self.me, self.sh.now_us);
                    self.sh
                        .trace
                        .line(now_us, || format!("n{me} reaped {partition:?}: {report:?}"));
                    self.sh.stats.reaped += report.removed;
                    self.p.reap = None;
                    self.has_ended(id);
                }
            }
        }
    }

    fn drive_if(&mut self, id: u64, event: ReapEvent) {
        if self.p.reap.as_ref().is_some_and(|reap| reap.id == id) {
            self.drive_reap(event);
        }
    }

    fn ask_reap(
        &mut self,
        id: u64,
        member: MemberId,
        request: Request,
        event: impl FnOnce(MemberId, Option<Reply>) -> ReapEvent + 'static,
    ) {
        let peer = self.sh.index_of(&member);
        let timeout_ms = self.sh.knobs.call_timeout_ms * 2;
        self.call(peer, timeout_ms, request, move |live, result| {
            live.drive_if(id, event(member, result.ok()));
        });
    }

    fn is_me(&self, member: &MemberId) -> bool {
        *member == self.sh.members[self.me]
    }

    fn standing(&self, partition: PartitionId) -> Standing {
        Standing {
            epoch: self.epoch(),
            transition: self.in_transition(),
            suspect: self.suspect(partition),
        }
    }

    /// Answers `Agree`.
    pub fn agree(
        &mut self,
        round: Round,
        partition: PartitionId,
        proposals: &[Proposal],
    ) -> BTreeMap<Bytes, Opinion> {
        let group = Group::default();
        let standing = self.standing(partition);
        let grace_ms = self.grace_ms();
        let opinion = |proposal: &Proposal| {
            let key = self.key_at(&proposal.position)?;
            let replica = self.replica(&group, key)?;
            Some((
                proposal.position.clone(),
                agree(standing, round, proposal, &replica, grace_ms),
            ))
        };
        proposals.iter().filter_map(opinion).collect()
    }

    /// Answers `Clear`.
    pub fn is_clear(&self, round: Round, partition: PartitionId) -> Result<(), Refusal> {
        let of_partition = |key: KeyIx| self.partition_of(key) == Some(partition);
        let hints = self
            .hints
            .iter()
            .any(|(place, _)| matches!(place, Place::Hint(_, key) if of_partition(*key)));
        let primary = self.holds_partition(partition);
        let strays = !primary
            && self
                .disk
                .iter()
                .any(|(place, _)| matches!(place, Place::Data(key) if of_partition(*key)));
        let under_way =
            self.p.delivering.iter().any(|(_, key)| of_partition(*key)) || !self.p.writers[1].idle();
        let holdings = Holdings {
            hints: hints || under_way,
            strays,
            handoff: false,
        };
        clear(self.standing(partition), round, holdings)
    }

    /// Answers `Prepare` once the marks are synced.
    pub fn prepare_marks(
        &mut self,
        round: Round,
        partition: PartitionId,
        proposals: Vec<Proposal>,
        then: impl FnOnce(&mut Live<'_>, BTreeMap<Bytes, Opinion>) + 'static,
    ) {
        let opinions = Rc::new(RefCell::new(BTreeMap::new()));
        let said = Rc::clone(&opinions);
        self.enqueue(
            0,
            true,
            move |live, group| {
                let (standing, grace_ms) = (live.standing(partition), live.grace_ms());
                for proposal in proposals {
                    let Some(key) = live.key_at(&proposal.position) else {
                        continue;
                    };
                    let Some(replica) = live.replica(group, key) else {
                        continue;
                    };
                    let (opinion, mark) = prepare(standing, round, &proposal, &replica, grace_ms);
                    if let Some(mark) = mark {
                        group.set(Place::Mark(key), Some(Value::Bytes(mark.encode())));
                    }
                    opinions.borrow_mut().insert(proposal.position, opinion);
                }
                Ok(())
            },
            move |live, result| {
                let opinions = if result.is_ok() {
                    said.take()
                } else {
                    BTreeMap::new()
                };
                then(live, opinions);
            },
        );
    }

    /// Carries a commit out and answers once it is durable.
    pub fn commit_marks(
        &mut self,
        round: Round,
        proposals: Vec<Proposal>,
        shortened: &Shortened,
        then: impl FnOnce(&mut Live<'_>, BTreeSet<Bytes>) + 'static,
    ) {
        let shortened = Rc::clone(shortened);
        let positions = Rc::new(RefCell::new(BTreeSet::new()));
        let done = Rc::clone(&positions);
        self.enqueue(
            0,
            true,
            move |live, group| {
                for proposal in proposals {
                    let Some(key) = live.key_at(&proposal.position) else {
                        continue;
                    };
                    let Some(replica) = live.replica(group, key) else {
                        continue;
                    };
                    match commit(round, &replica) {
                        Ok(Removal::Delete) => live.remove(group, key),
                        Ok(Removal::Replace(digest)) => match shortened.get(&proposal.position) {
                            Some(state) if state.digest() == digest => live.shorten(group, key, state),
                            _ => continue,
                        },
                        Err(_) => continue,
                    }
                    positions.borrow_mut().insert(proposal.position);
                }
                Ok(())
            },
            move |live, result| {
                let positions = if result.is_ok() {
                    done.take()
                } else {
                    BTreeSet::new()
                };
                then(live, positions);
            },
        );
    }

    fn remove(&mut self, group: &mut Group, key: KeyIx) {
        if let Ok(Some(state)) = self.state_in_group(group, Place::Data(key)) {
            self.sh.ledger.removed(key, &state);
        }
        let (me, now_us) = (self.me, self.sh.now_us);
        self.sh.trace.line(now_us, || format!("n{me} removes key {key}"));
        group.set(Place::Data(key), None);
        group.set(Place::Epoch(key), None);
        group.set(Place::Mark(key), None);
    }

    /// A record forgets writers that are gone. Its epoch entry stays.
    fn shorten(&mut self, group: &mut Group, key: KeyIx, state: &KeyState) {
        if let Ok(Some(old)) = self.state_in_group(group, Place::Data(key)) {
            self.sh.ledger.forgotten(key, &old.seen().without(state.seen()));
        }
        let (me, now_us) = (self.me, self.sh.now_us);
        self.sh.trace.line(now_us, || {
            format!("n{me} shortens key {key} to {:?}", state.seen())
        });
        self.sh.stats.shortened += 1;
        group.set(Place::Data(key), Some(Value::State(Rc::new(state.clone()))));
        group.set(Place::Mark(key), None);
    }

    /// The mistake: old tombstones are removed by each replica for itself.
    fn reap_alone(&mut self) {
        let (now_ms, wall_ms) = (self.now_ms(), self.wall_ms());
        for key in self.sh.keys.all() {
            let position = self.sh.keys.get(key).position.as_bytes().clone();
            let old = self.p.quiet.quiet_ms(&position, now_ms) >= self.sh.knobs.grace_ms;
            let state = self.disk.peek(Place::Data(key));
            if old && state.is_some_and(|state: &Rc<KeyState>| state.is_reapable(wall_ms)) {
                self.enqueue(
                    0,
                    true,
                    move |live, group| {
                        live.remove(group, key);
                        Ok(())
                    },
                    |_, _| {},
                );
            }
        }
    }

    /// No message of an operation lives longer than the grace.
    fn grace_ms(&self) -> u64 {
        self.sh.knobs.grace_ms
    }

    fn drop_stale_marks(&mut self) {
        let life_max_ms = self.sh.knobs.grace_ms * 4;
        let now_ms = self.now_ms();
        let stale: Vec<KeyIx> = self
            .sh
            .keys
            .all()
            .filter(|key| {
                let position = self.sh.keys.get(*key).position.as_bytes();
                let age_ms = self.p.quiet.quiet_ms(position, now_ms);
                self.mark_of(*key)
                    .is_some_and(|mark| mark.is_stale(self.epoch(), age_ms, life_max_ms))
            })
            .collect();
        for key in stale {
            self.enqueue(
                0,
                false,
                move |_, group| {
                    group.set(Place::Mark(key), None);
                    Ok(())
                },
                |_, _| {},
            );
        }
    }

    /// The mark that stands beside a record.
    pub fn mark_of(&self, key: KeyIx) -> Option<Mark> {
        match self.disk.get(Place::Mark(key)) {
            Ok(Some(Value::Bytes(bytes))) => Mark::decode(bytes.clone()).ok(),
            _ => None,
        }
    }

    fn replica(&self, group: &Group, key: KeyIx) -> Option<Replica> {
        let state = self.state_in_group(group, Place::Data(key)).ok()?;
        let mark = match self.in_group(group, Place::Mark(key)) {
            Ok(Some(Value::Bytes(bytes))) => Mark::decode(bytes).ok(),
            _ => None,
        };
        let position = self.sh.keys.get(key).position.as_bytes();
        Some(Replica {
            digest: state.as_ref().map(|state| state.digest()),
            reapable: state.is_some_and(|state| state.is_reapable(self.wall_ms())),
            mark,
            quiet_ms: self.p.quiet.quiet_ms(position, self.now_ms()),
        })
    }

    fn key_at(&self, position: &Bytes) -> Option<KeyIx> {
        self.sh.keys.find(&Position::decode(position.clone()).ok()?)
    }
}

fn opinions_of(reply: Option<Reply>) -> BTreeMap<Bytes, Opinion> {
    match reply {
        Some(Reply::Opinions(opinions)) => opinions,
        _ => BTreeMap::new(),
    }
}
