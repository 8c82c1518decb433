//! How the fake nodes change their ring: the same three steps as real ones, each taken when the test lets them.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use dynamo_core::{
    ring::{Member, Placement, Plan, Ring, Target, plan},
    types::{ClusterId, MemberId, Zone},
};
use dynamo_proto::admin as pb;

use crate::nodes::{Nodes, State, Volume};

const STEPS: [&str; 3] = ["known", "synced", "reading"];

/// A proposal beside the ring that serves.
#[derive(Clone, Debug)]
pub struct Proposal {
    base: Arc<Ring>,
    next: Arc<Ring>,
    step: usize,
}

/// Changes under way, and what the test wants of them.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    proposal: Option<Proposal>,
    /// No step is taken.
    held: bool,
    /// So many proposals are refused before one is taken.
    refusals: u32,
    /// Members of every ring that was proposed, in order.
    proposed: Vec<Vec<String>>,
}

impl Nodes {
    /// Steps of changes wait for [`Nodes::step`].
    pub fn hold(&self, held: bool) {
        self.0.lock().unwrap().changes.held = held;
    }

    /// So many proposals are refused before one is taken.
    pub fn refuse(&self, proposals: u32) {
        self.0.lock().unwrap().changes.refusals = proposals;
    }

    /// Members of every ring that was proposed.
    pub fn proposed(&self) -> Vec<Vec<String>> {
        self.0.lock().unwrap().changes.proposed.clone()
    }

    /// What passes without a word of the test.
    pub fn tick(&self) {
        if !self.0.lock().unwrap().changes.held {
            self.step();
        }
    }

    /// All members take the step that is due, if all of them can be reached. True if a change is under way still.
    pub fn step(&self) -> bool {
        let mut state = self.0.lock().unwrap();
        let reachable = state.reachable();
        let Some(proposal) = &mut state.changes.proposal else {
            return false;
        };
        if !proposal.members().is_subset(&reachable) {
            return true;
        }
        proposal.step += 1;
        if proposal.step < STEPS.len() {
            return true;
        }
        let ring = proposal.next.clone();
        state.changes.proposal = None;
        let listed = ids(&ring);
        for volume in state.volumes.values_mut() {
            // Whoever leaves has handed over its hints, too.
            if let Some((cluster, member, _)) = &volume.identity
                && *cluster == ring.cluster_id()
                && reachable.contains(member)
            {
                volume.ring = Some(ring.clone());
                if !listed.contains(member) {
                    volume.hints = 0;
                }
            }
        }
        false
    }

    /// A ring lists this member: the one that serves or the one that is proposed.
    pub fn lists(&self, member: &str) -> bool {
        let state = self.0.lock().unwrap();
        let proposed = state.changes.proposal.as_ref();
        let newest = state.volumes.values().filter_map(|volume| volume.ring.as_ref());
        let newest = newest.max_by_key(|ring| ring.version());
        proposed.is_some_and(|proposal| proposal.members().contains(member))
            || newest.is_some_and(|ring| ids(ring).contains(member))
    }

    /// Changes what is on the volume of every member.
    pub fn on_volumes(&self, change: impl Fn(&str, &mut Volume)) {
        let mut state = self.0.lock().unwrap();
        for volume in state.volumes.values_mut() {
            if let Some((_, member, _)) = volume.identity.clone() {
                change(&member, volume);
            }
        }
    }
}

impl Proposal {
    fn members(&self) -> BTreeSet<String> {
        ids(&self.base).union(&ids(&self.next)).cloned().collect()
    }
}

fn ids(ring: &Ring) -> BTreeSet<String> {
    ring.members()
        .iter()
        .map(|member| member.id.as_str().to_owned())
        .collect()
}

/// What is asked for, in the core's words.
pub fn target_of(base: &Ring, target: &pb::RingTarget) -> Target {
    let member = |member: &pb::TargetMember| Member {
        id: MemberId::new(member.member_id.clone()).unwrap(),
        zone: Zone::new(member.zone.clone()).unwrap(),
        weight: member.weight,
    };
    Target {
        members: target.members.iter().map(member).collect(),
        partitions: match target.partitions {
            0 => base.partitions(),
            partitions => partitions,
        },
        ..Target::default()
    }
}

/// The ring as an operator reads it. The same rings are read in thousands of runs.
pub(super) fn read(ring: &Arc<Ring>) -> Result<Arc<Placement>, String> {
    let read = || dynamo_operator::ring::read(dynamo_operator::ring::write(ring)).map_err(|e| e.to_string());
    READ.with_borrow_mut(|known| known.entry(name(ring)).or_insert_with(read).clone())
}

/// The plan of a change. The same changes are planned in thousands of runs.
fn worked_out(base: &Arc<Ring>, epoch: u64, target: &Target) -> Result<Arc<Plan>, String> {
    let plan = || {
        let plan = plan(&Placement::new(base.clone()), epoch, target);
        plan.map(Arc::new).map_err(|error| error.to_string())
    };
    let change = (name(base), epoch, format!("{target:?}"));
    PLANNED.with_borrow_mut(|known| known.entry(change).or_insert_with(plan).clone())
}

type Name = (ClusterId, (u64, u64));

fn name(ring: &Ring) -> Name {
    (ring.cluster_id(), ring.version())
}

/// A base, the next epoch, and what is wanted.
type Wanted = (Name, u64, String);
type Known<K, V> = RefCell<BTreeMap<K, Result<Arc<V>, String>>>;

thread_local! {
    static READ: Known<Name, Placement> = const { RefCell::new(BTreeMap::new()) };
    static PLANNED: Known<Wanted, Plan> = const { RefCell::new(BTreeMap::new()) };
}

/// What a node answers about a plan, but for what it knows of the newest ring and of bytes.
pub fn plan_response(plan: &Plan) -> pb::PlanResponse {
    let members = plan.shares.iter().map(|(id, share)| pb::MemberChange {
        member_id: id.as_str().into(),
        weight_before: share.weight.0,
        weight_after: share.weight.1,
        tokens_before: share.tokens.0,
        tokens_after: share.tokens.1,
        gets: share.gets,
        ..pb::MemberChange::default()
    });
    pb::PlanResponse {
        ring: dynamo_operator::ring::write(&plan.ring).ring,
        moves: plan.moves,
        moves_min: plan.moves_min,
        zone_violations_before: plan.zone_violations.0,
        zone_violations_after: plan.zone_violations.1,
        members: members.collect(),
        ..pb::PlanResponse::default()
    }
}

impl State {
    pub(super) fn told(&self, volume: &Volume) -> pb::TransitionResponse {
        let Some(base) = &volume.ring else {
            return pb::TransitionResponse::default();
        };
        let mut told = pb::TransitionResponse {
            base_epoch: base.epoch(),
            base_hash: base.hash(),
            base_members: ids(base).into_iter().collect(),
            ..pb::TransitionResponse::default()
        };
        let proposal = self.changes.proposal.as_ref();
        if let Some(proposal) = proposal.filter(|proposal| proposal.base == *base) {
            let reachable = self.reachable();
            let lacking: Vec<String> = proposal.members().difference(&reachable).cloned().collect();
            told.next_epoch = proposal.next.epoch();
            told.next_hash = proposal.next.hash();
            told.next_members = ids(&proposal.next).into_iter().collect();
            told.step = STEPS[proposal.step].into();
            told.waits_for = if lacking.is_empty() {
                proposal.members().into_iter().collect()
            } else {
                lacking
            };
            told.pulls = 4;
            told.pulled = if proposal.step == 0 { 0 } else { 4 };
        }
        told
    }

    pub(super) fn planned(
        &self,
        base: &Arc<Ring>,
        target: &pb::RingTarget,
    ) -> Result<pb::PlanResponse, String> {
        let newest = self
            .changes
            .proposal
            .as_ref()
            .map_or(base, |proposal| &proposal.next);
        let wanted = target_of(base, target);
        let plan = worked_out(base, newest.epoch() + 1, &wanted)?;
        let mut members = wanted.members.clone();
        members.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(pb::PlanResponse {
            expected_epoch: newest.epoch(),
            bytes: u64::from(plan.moves) << 20,
            unchanged: members == newest.members() && wanted.partitions == newest.partitions(),
            ..plan_response(&plan)
        })
    }

    pub(super) fn proposed(
        &mut self,
        volume: &Volume,
        request: &pb::CommitRequest,
    ) -> Result<pb::CommitResponse, String> {
        let base = volume.ring.clone().ok_or("no ring")?;
        let (_, member, _) = volume.identity.clone().ok_or("no identity")?;
        if !ids(&base).contains(&member) {
            return Err("this node is no member; ask another node".into());
        }
        if self.changes.refusals > 0 {
            self.changes.refusals -= 1;
            return Err("this node has begun to read from the proposed ring; ask another node".into());
        }
        let target = request.target.clone().unwrap();
        let plan = self.planned(&base, &target)?;
        let ring = plan.ring.unwrap();
        if plan.expected_epoch != request.expected_epoch || ring.hash != request.expected_hash {
            return Err("the plan is stale; ask for another".into());
        }
        let reachable = self.reachable();
        for wanted in &target.members {
            if !ids(&base).contains(&wanted.member_id) && !reachable.contains(&wanted.member_id) {
                return Err(format!("{} has not joined; ask again", wanted.member_id));
            }
        }
        let answer = |proposed| pb::CommitResponse {
            epoch: ring.epoch,
            hash: ring.hash,
            proposed,
        };
        if plan.unchanged {
            return Ok(answer(false));
        }
        let next = worked_out(&base, ring.epoch, &target_of(&base, &target))?;
        self.changes.proposed.push(ids(&next.ring).into_iter().collect());
        self.changes.proposal = Some(Proposal {
            base,
            next: next.ring.clone(),
            step: 0,
        });
        Ok(answer(true))
    }
}
