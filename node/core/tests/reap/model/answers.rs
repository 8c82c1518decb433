//! What the members of the model do with what reaches them, by the real rules.

use std::collections::{BTreeMap, BTreeSet};

use dynamo_core::reap::{
    Holdings, Opinion, Proposal, ReapCoordinator, ReapEffect, ReapEvent, Refusal, Removal, Replica, Round,
    Standing, agree, clear, commit, prepare,
};

use super::{A, B, C, F, GRACE_MS, Mistake, Model, State, World, index, join, position};

impl Model {
    /// A member does what it is asked, and answers.
    pub(super) fn perform(self, world: &mut World, ask: &ReapEffect, late: Option<Round>) -> ReapEvent {
        let round = late
            .or_else(|| world.machine.as_ref().map(ReapCoordinator::round))
            .unwrap();
        match ask {
            ReapEffect::Agree { member, proposals } => {
                let (standing, replica) = self.view(world, index(member));
                let opinion = agree(standing, round, &proposals[0], &replica, GRACE_MS);
                ReapEvent::Agreed {
                    member: member.clone(),
                    opinions: BTreeMap::from([(position(), opinion)]),
                }
            }
            ReapEffect::Clear { member } => ReapEvent::Cleared {
                member: member.clone(),
                result: self.clears(world, index(member), round),
            },
            ReapEffect::Prepare { member, proposals } => ReapEvent::Prepared {
                member: member.clone(),
                opinions: BTreeMap::from([(
                    position(),
                    self.prepares(world, index(member), round, &proposals[0]),
                )]),
            },
            ReapEffect::Commit { member, .. } => ReapEvent::Committed {
                member: member.clone(),
                positions: self
                    .commits(world, index(member), round)
                    .then(position)
                    .into_iter()
                    .collect(),
            },
            ReapEffect::Done(_) => unreachable!("the world forgets a finished machine"),
        }
    }

    fn view(self, world: &World, member: usize) -> (Standing, Replica) {
        let node = &world.nodes[member];
        let standing = Standing {
            epoch: 1,
            transition: false,
            suspect: node.suspect,
        };
        let replica = Replica {
            digest: node.record.map(State::digest),
            reapable: node.record.is_some_and(|state| self.reapable(state)),
            mark: node.mark,
            quiet_ms: if node.quiet { GRACE_MS } else { 0 },
        };
        (standing, replica)
    }

    fn clears(self, world: &World, member: usize, round: Round) -> Result<(), Refusal> {
        let standing = Standing {
            epoch: 1,
            transition: false,
            suspect: member != F && world.nodes[member].suspect,
        };
        let holdings = Holdings {
            hints: member == F && world.hint.is_some() && !self.is(Mistake::AbsentMembersNotAsked),
            ..Holdings::default()
        };
        clear(standing, round, holdings)
    }

    fn prepares(self, world: &mut World, member: usize, round: Round, proposal: &Proposal) -> Opinion {
        let (standing, mut replica) = self.view(world, member);
        if self.is(Mistake::OnePhase) {
            replica.digest = Some(proposal.digest);
            replica.reapable = true;
        }
        if self.is(Mistake::PrepareNotQuiet) || self.is(Mistake::OnePhase) {
            replica.quiet_ms = GRACE_MS;
        }
        let (opinion, mark) = prepare(standing, round, proposal, &replica, GRACE_MS);
        if mark.is_some() {
            world.nodes[member].mark = mark;
            if !self.is(Mistake::PrepareNotSynced) {
                world.sync(member);
            }
            world.settle(member);
        }
        opinion
    }

    fn commits(self, world: &mut World, member: usize, round: Round) -> bool {
        let (_, mut replica) = self.view(world, member);
        if self.is(Mistake::MarkNotCleared) || self.is(Mistake::OnePhase) {
            replica.digest = replica.mark.map(|mark| mark.digest);
        }
        let node = &mut world.nodes[member];
        let done = match commit(round, &replica) {
            Ok(Removal::Delete) => {
                node.record = None;
                true
            }
            Ok(Removal::Replace(digest)) => {
                let after = node.record.map(State::truncated);
                let right = after.map(State::digest) == Some(digest) || self.is(Mistake::MarkNotCleared);
                if right {
                    node.record = after;
                }
                right
            }
            Err(_) => false,
        };
        if done {
            node.mark = None;
            world.settle(member);
        }
        done
    }

    pub(super) fn merge(self, world: &mut World, to: usize, incoming: State) {
        let node = &mut world.nodes[to];
        let mut merged = join(node.record, incoming);
        if self.is(Mistake::TruncationInMerge) {
            merged = merged.truncated();
        }
        let changed = node.record != Some(merged);
        node.record = Some(merged);
        if changed || !self.is(Mistake::ChangesOnly) {
            node.quiet = false;
        }
        if !self.is(Mistake::MarkNotCleared) {
            node.mark = None;
        }
        world.settle(to);
    }

    pub(super) fn deliver(self, world: &mut World, (to, state): (usize, State)) {
        if to == F {
            world.hint = Some(join(world.hint, state));
        } else {
            self.merge(world, to, state);
        }
    }

    /// C has pulled all that the others have, marked or not; by then no message of its former life is under way.
    pub(super) fn recover(self, world: &mut World) {
        for from in [A, B] {
            if let Some(state) = world.nodes[from].record {
                self.merge(world, C, state);
            }
        }
        world.nodes[C].suspect = false;
        world.data.clear();
    }
}

pub(super) fn target_of(ask: &ReapEffect) -> usize {
    match ask {
        ReapEffect::Agree { member, .. }
        | ReapEffect::Clear { member }
        | ReapEffect::Prepare { member, .. }
        | ReapEffect::Commit { member, .. } => index(member),
        ReapEffect::Done(_) => A,
    }
}

/// What a machine hears of a call that fails.
pub(super) fn silence(ask: &ReapEffect) -> ReapEvent {
    match ask.clone() {
        ReapEffect::Agree { member, .. } => ReapEvent::Agreed {
            member,
            opinions: BTreeMap::new(),
        },
        ReapEffect::Clear { member } => ReapEvent::Cleared {
            member,
            result: Err(Refusal::Silent),
        },
        ReapEffect::Prepare { member, .. } => ReapEvent::Prepared {
            member,
            opinions: BTreeMap::new(),
        },
        ReapEffect::Commit { member, .. } => ReapEvent::Committed {
            member,
            positions: BTreeSet::new(),
        },
        ReapEffect::Done(_) => ReapEvent::DeadlineReached,
    }
}
