//! The rings that a node works with, and its steps from one to the next: `dynamo_core::transition` decides them.
//!
//! What others may be told is on disk first: the view with a mark, or with a proposal, is written and synced, and only then
//! given in memory, where gossip finds it. A crash in between leaves a mark that nobody has heard of.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use dynamo_core::coordinator::{Ack, Candidate, Candidates, ReplicaFailure};
use dynamo_core::membership::{RingVersion, View, Wanted};
use dynamo_core::recovery::Recovery;
use dynamo_core::ring::Ring;
use dynamo_core::transition::{
    Layouts, Local, Mark, Proposal, ProposeRefused, Slot, Strays, Sync, Transition, slots,
};
use dynamo_core::types::{MemberId, PartitionId};

use super::writer::Group;
use super::{Exit, Live, boot};
use crate::disk::{Place, Value};
use crate::invariants::{i10_rings_only_grow, i18_one_base_per_epoch};
use crate::keys::KeyIx;
use crate::messages::{Epochs, NodeIx};
use crate::mistakes::Mistake;
use crate::shared::{Lists, Shared};

/// The rings, with their lists.
pub struct Rings {
    /// What the core says about them.
    pub layouts: Rc<Layouts>,
    /// Of the base ring, and of those beside it that are written to, the newest one last.
    written: Vec<Rc<Lists>>,
}

/// What is on its way to the disk before it is true.
#[derive(Clone)]
pub enum Pending {
    /// A step.
    Mark(Mark),
    /// A ring, planned upon that base.
    Proposal(Proposal),
}

impl Rings {
    /// Of the ring that serves until all read from the next.
    pub fn base(&self) -> &Rc<Lists> {
        &self.written[0]
    }

    /// All that are written to.
    pub fn written(&self) -> impl Iterator<Item = &Rc<Lists>> {
        self.written.iter()
    }

    /// A partition of the base ring.
    pub fn partition_of(&self, sh: &Shared, key: KeyIx) -> PartitionId {
        self.base().placement.ring().partition_of(sh.keys.get(key).hash)
    }

    fn reading(&self) -> Option<&Rc<Lists>> {
        let version = self.layouts.reading()?.ring().version();
        let mut written = self.written.iter();
        written.find(|lists| lists.placement.ring().version() == version)
    }
}

impl Live<'_> {
    /// What the node says of its rings with every message about data.
    pub fn epochs(&self) -> Epochs {
        let Some(rings) = &self.p.rings else {
            return (0, 0, None);
        };
        let base = rings.layouts.base().ring().epoch();
        let reading = rings.layouts.reading();
        let reads = reading.map_or(base, |reading| reading.ring().epoch());
        (base, reads, self.newest())
    }

    /// Whether a sender whose newest ring is that one has to catch up first, unless a mistake takes its word.
    pub fn is_behind(&self, newest: RingVersion) -> bool {
        let careless = [
            Mistake::KnownWithOldWritesInFlight,
            Mistake::SyncsBeforeAllAreKnown,
            Mistake::ForgottenRingNotFenced,
        ];
        let mistake = self.sh.knobs.mistake;
        let rings = self.p.rings.as_ref();
        rings.is_some_and(|rings| rings.layouts.is_behind(newest))
            && mistake.is_none_or(|mistake| !careless.contains(&mistake))
    }

    /// Whether the node is a primary of a key by any ring that is written to.
    pub fn holds(&self, key: KeyIx) -> bool {
        let (hash, me) = (self.sh.keys.get(key).hash, &self.sh.members[self.me]);
        let rings = self.p.rings.as_ref();
        rings.is_some_and(|rings| rings.layouts.holds(hash, me))
    }

    /// The same, of a partition of the base ring.
    pub fn holds_partition(&self, partition: PartitionId) -> bool {
        let (rings, me) = (self.p.rings.as_ref(), &self.sh.members[self.me]);
        rings.is_some_and(|rings| rings.layouts.holds_partition(partition, me))
    }

    /// The partition of a key by the base ring.
    pub fn partition_of(&self, key: KeyIx) -> Option<PartitionId> {
        Some(self.p.rings.as_ref()?.partition_of(self.sh, key))
    }

    /// True while a ring is to follow.
    pub fn in_transition(&self) -> bool {
        let rings = self.p.rings.as_ref();
        rings.is_some_and(|rings| rings.layouts.in_transition())
    }

    /// The ring that an operation which begins now is told apart by.
    pub fn newest(&self) -> Option<RingVersion> {
        self.p.view.transition().map(Transition::newest)
    }

    /// Something begins that `known` must wait for.
    pub fn begins(&mut self, operation: u64) {
        if let Some(newest) = self.newest() {
            self.p.under_way.insert(operation, newest);
        }
    }

    /// It has ended.
    pub fn has_ended(&mut self, operation: u64) {
        if self.p.under_way.remove(&operation).is_some() && self.in_transition() {
            self.advance();
        }
    }

    /// Who holds a key for writes, and who stands in; nobody before the first ring.
    pub fn put_candidates(&self, key: KeyIx) -> Candidates {
        let Some(rings) = &self.p.rings else {
            return Candidates::default();
        };
        let hash = self.sh.keys.get(key).hash;
        let mistake = self.sh.knobs.mistake;
        let mut written: Vec<&Rc<Lists>> = rings.written.iter().collect();
        let reads_next = rings.layouts.reading().map(|reading| reading.ring().version())
            != Some(rings.base().placement.ring().version());
        if mistake == Some(Mistake::SupersededRingDropped) && written.len() > 2 {
            written.drain(1..written.len() - 1);
        } else if mistake == Some(Mistake::BaseLeftTooEarly) && written.len() > 1 && reads_next {
            written.drain(..written.len() - 1);
        }
        let base = &written[0].of(hash).0;
        let candidate = |node: NodeIx| self.candidate(node);
        let mut partners = Vec::new();
        for (index, slot) in self.slots(&written, key).into_iter().enumerate() {
            for member in &slot.members {
                let node = self.sh.index_of(member);
                if !base.contains(&node) {
                    partners.push((index, candidate(node)));
                }
            }
        }
        let next = written.last().filter(|_| written.len() > 1);
        let stays = |node: &NodeIx| {
            let member = &self.sh.members[*node];
            next.is_none_or(|next| next.placement.ring().index_of(member).is_some())
        };
        let mut others: Vec<NodeIx> = Vec::new();
        for lists in &written {
            let (primaries, fallbacks) = lists.of(hash);
            for node in primaries.iter().chain(fallbacks) {
                let partner = partners
                    .iter()
                    .any(|(_, partner)| partner.member == self.sh.members[*node]);
                if !base.contains(node) && !partner && !others.contains(node) && stays(node) {
                    others.push(*node);
                }
            }
        }
        Candidates {
            primaries: base.iter().copied().map(candidate).collect(),
            partners,
            fallbacks: others.into_iter().map(candidate).collect(),
        }
    }

    fn slots(&self, written: &[&Rc<Lists>], key: KeyIx) -> Vec<Slot> {
        let hash = self.sh.keys.get(key).hash;
        if self.sh.knobs.mistake.is_none()
            && let Some(rings) = &self.p.rings
        {
            return rings.layouts.slots(hash, self.sh.knobs.n);
        }
        let lists: Vec<Vec<MemberId>> = written
            .iter()
            .map(|lists| {
                let primaries = lists.of(hash).0.iter();
                primaries.map(|node| self.sh.members[*node].clone()).collect()
            })
            .collect();
        slots(&lists)
    }

    /// Whom a read asks, and what it says of its rings; `None` while the node must not coordinate any.
    ///
    /// An old volume may have forgotten that it reads from another ring, so no read begins before a peer had the chance to
    /// say so. What a read says stays as it was when it began: its nodes are those of that ring.
    pub fn read_candidates(&self, key: KeyIx) -> Option<(Candidates, Epochs)> {
        let rings = self.p.rings.as_ref()?;
        let lists = rings.reading().filter(|_| !self.unconfirmed())?;
        let (primaries, fallbacks) = lists.of(self.sh.keys.get(key).hash);
        let candidates = Candidates {
            primaries: primaries.iter().map(|node| self.candidate(*node)).collect(),
            partners: Vec::new(),
            fallbacks: fallbacks.iter().map(|node| self.candidate(*node)).collect(),
        };
        Some((candidates, self.epochs()))
    }

    fn candidate(&self, node: NodeIx) -> Candidate {
        Candidate {
            member: self.sh.members[node].clone(),
            zone: self.sh.zones[node].clone(),
            reachable: node == self.me || self.p.detector.reachable(&self.sh.members[node]),
        }
    }

    /// What is known of the rings may be another.
    pub fn rings_changed(&mut self) {
        let Some(transition) = self.p.view.transition() else {
            return;
        };
        let before = self.p.rings.take();
        let layouts = Layouts::of(transition, before.as_ref().map(|rings| &*rings.layouts));
        let newest = transition.newest();
        let rings: Vec<Arc<Ring>> = layouts
            .written()
            .map(|placement| Arc::clone(placement.ring()))
            .collect();
        let written: Vec<Rc<Lists>> = rings.iter().map(|ring| self.sh.lists(ring)).collect();
        self.p.rings = Some(Rings {
            layouts: Rc::new(layouts),
            written,
        });
        let base = before
            .as_ref()
            .map(|rings| Arc::clone(rings.layouts.base().ring()));
        if base.as_ref() != Some(&rings[0]) {
            i10_rings_only_grow::check(self.sh, self.me, base.as_deref(), Some(&rings[0]));
            i18_one_base_per_epoch::check(self.sh, self.me, base.as_deref(), &rings[0]);
            self.base_changed(base.as_deref());
        }
        if self.p.exit.is_some() {
            return;
        }
        if let (Some(before), Some(rings)) = (&before, &self.p.rings)
            && rings.layouts.has_other_sources(&before.layouts)
        {
            let lists = Rc::clone(rings.base());
            self.place_recovery(&lists, false);
            // They are no sources any more.
            self.plan_sync();
        }
        self.keep_trees();
        if self.p.sync.as_ref().map(Sync::ring) != rings.get(1).map(|_| newest) {
            self.plan_sync();
            if rings.len() > 1 {
                self.drop_marks_for_transition();
            }
        }
        self.settle_recovery();
        self.advance();
    }

    /// What the newest ring makes this node pull is to be pulled from the beginning.
    pub fn plan_sync(&mut self) {
        let rings = self.p.rings.as_ref();
        self.p.sync = rings.and_then(|rings| Sync::new(&rings.layouts, &self.sh.members[self.me]));
    }

    fn base_changed(&mut self, before: Option<&Ring>) {
        let Some(rings) = &self.p.rings else { return };
        let (lists, me) = (Rc::clone(rings.base()), self.sh.members[self.me].clone());
        let ring = lists.placement.ring();
        if RingVersion::from(ring.as_ref()) > RingVersion::from(self.sh.serving.placement.ring().as_ref()) {
            self.sh.serving = Rc::clone(&lists);
            self.sh.stats.transitions += 1;
        }
        let (node, now_us) = (self.me, self.sh.now_us);
        self.sh.trace.line(now_us, || {
            let members: Vec<&str> = ring.members().iter().map(|member| member.id.as_str()).collect();
            format!("n{node} goes by ring {:?} of {members:?}", ring.version())
        });
        self.end_all_exchanges();
        self.p.strays = Strays::default();
        if self.must_leave(ring) {
            self.p.exit = Some(Exit::Left);
            return;
        }
        let (now_ms, random) = (self.now_ms(), self.sh.rng.bits());
        self.p.schedule.place(&lists.placement, &me, now_ms, random);
        let refined = before.is_some_and(|before| before.partitions() != ring.partitions());
        self.place_recovery(&lists, refined);
        self.look_for_strays();
    }

    /// Puts a suspect store's partitions as the base ring has them. Where these are others, all begins anew.
    fn place_recovery(&mut self, lists: &Lists, refined: bool) {
        let now_ms = self.now_ms();
        let Some(rings) = &self.p.rings else { return };
        let layouts = Rc::clone(&rings.layouts);
        let longest_ms = self.sh.knobs.recovery_after_ms();
        let Some(recovery) = &mut self.p.recovery else {
            return;
        };
        if refined {
            *recovery = Recovery::begin(now_ms, longest_ms);
        }
        let me = &self.sh.members[self.me];
        recovery.place(&lists.placement, me, self.sh.knobs.w, layouts.dead());
        let bytes = recovery.encode();
        self.enqueue(
            0,
            true,
            move |live, group| {
                live.write_view(group);
                group.set(Place::Meta(boot::RECOVERY), Some(Value::Bytes(bytes)));
                Ok(())
            },
            |_, _| {},
        );
    }

    /// What a mark of reaping hides from exchanges, a new holder would not be given: no round goes on in a transition.
    fn drop_marks_for_transition(&mut self) {
        let marked: Vec<KeyIx> = self
            .disk
            .iter()
            .filter_map(|(place, _)| match place {
                Place::Mark(key) => Some(*key),
                _ => None,
            })
            .collect();
        let base = self.p.rings.as_ref().map(|rings| rings.layouts.base().ring());
        let base = base.map(|ring| RingVersion::from(ring.as_ref()));
        let Some(base) = base.filter(|_| !marked.is_empty() || !self.p.writers[0].idle()) else {
            return;
        };
        let operation = self.sh.fresh();
        self.p.under_way.insert(operation, base);
        self.enqueue(
            0,
            true,
            |live, group| {
                for key in live.sh.keys.all() {
                    if matches!(live.in_group(group, Place::Mark(key)), Ok(Some(_))) {
                        group.set(Place::Mark(key), None);
                    }
                }
                Ok(())
            },
            move |live, _| live.has_ended(operation),
        );
    }

    /// Gives the mark that is due.
    pub fn advance(&mut self) {
        if !self.in_transition() || self.p.pending.is_some() || self.p.exit.is_some() || self.unconfirmed() {
            return;
        }
        let Some(mark) = self.p.view.due(self.local()) else {
            return;
        };
        self.p.pending = Some(Pending::Mark(mark.clone()));
        self.keep_view(true, move |live, result| {
            live.p.pending = None;
            if result.is_ok() {
                let (me, now_us) = (live.me, live.sh.now_us);
                live.sh.trace.line(now_us, || {
                    format!("n{me} marks {:?} of ring {:?}", mark.step, mark.ring)
                });
                live.p.view.give(mark);
                live.rings_changed();
            }
        });
    }

    fn local(&self) -> Local {
        let careless = self.sh.knobs.mistake == Some(Mistake::KnownWithOldWritesInFlight);
        let oldest = self.p.under_way.values().min().copied();
        Local {
            oldest: oldest.filter(|_| !careless),
            synced: self.synced(),
        }
    }

    /// The next ring, if everything that it makes this node hold is here, durably; and of a node that leaves, if no hint is
    /// with it.
    fn synced(&self) -> Option<RingVersion> {
        let sync = self.p.sync.as_ref()?;
        let next = self.p.rings.as_ref()?.layouts.next()?;
        let stays = next.ring().index_of(&self.sh.members[self.me]).is_some();
        let no_hints = self.hints.iter().next().is_none() && self.p.writers[1].idle();
        let whole = self.p.recovery.is_none() && !self.unconfirmed();
        (sync.is_done() && whole && (stays || no_hints)).then(|| sync.ring())
    }

    /// The view as it is to be kept: with what is about to become true.
    pub fn write_view(&self, group: &mut Group) {
        let mut view = self.p.view.clone();
        match self.p.pending.clone() {
            Some(Pending::Mark(mark)) => view.give(mark),
            Some(Pending::Proposal(proposal)) => {
                let _ = self.add_proposal(&mut view, proposal);
            }
            None => {}
        }
        group.set(Place::Meta(boot::VIEW), Some(Value::Bytes(view.encode())));
    }

    /// Writes what is known of the others, and of the rings.
    pub fn keep_view(
        &mut self,
        sync: bool,
        then: impl FnOnce(&mut Live<'_>, Result<Ack, ReplicaFailure>) + 'static,
    ) {
        let write = |live: &mut Live<'_>, group: &mut Group| {
            live.write_view(group);
            Ok(())
        };
        self.enqueue(0, sync, write, then);
    }

    fn add_proposal(&self, view: &mut View, proposal: Proposal) -> Result<(), ProposeRefused> {
        let result = view.propose(Arc::clone(&proposal.ring), proposal.dead.clone());
        if matches!(result, Err(ProposeRefused::Reading(_)))
            && self.sh.knobs.mistake == Some(Mistake::ProposesAlthoughItReads)
            && let Some(transition) = view.transition()
        {
            let mut followers = transition.followers().clone();
            followers.proposals.push(proposal);
            let mut delta = view.delta_for(&Wanted::default());
            delta.followers = Some(followers.encode());
            view.merge(delta);
            return Ok(());
        }
        result
    }

    /// An administrator asks the node to have a ring follow, and says who is dead.
    ///
    /// # Errors
    /// If it may not.
    pub fn propose(&mut self, ring: Arc<Ring>, dead: BTreeSet<MemberId>) -> Result<(), String> {
        if self.p.pending.is_some() || self.unconfirmed() || self.p.exit.is_some() {
            return Err("not now".to_owned());
        }
        let Some(base) = self.p.view.ring().map(|ring| RingVersion::from(ring.as_ref())) else {
            return Err("no ring".to_owned());
        };
        if self.p.view.declare_dead(&dead) {
            self.keep_view(true, |_, _| {});
            self.rings_changed();
            return Err("the dead are not waited for from now on".to_owned());
        }
        let proposal = Proposal { ring, base, dead };
        let mut view = self.p.view.clone();
        self.add_proposal(&mut view, proposal.clone())
            .map_err(|refused| refused.to_string())?;
        self.sh.stats.changes_of_mind += u64::from(self.in_transition());
        i18_one_base_per_epoch::proposed(self.sh, &proposal.ring, base);
        self.p.pending = Some(Pending::Proposal(proposal.clone()));
        self.keep_view(true, move |live, result| {
            live.p.pending = None;
            let now = live.p.view.ring().map(|ring| RingVersion::from(ring.as_ref()));
            // Planned upon a ring that is no longer the base, it would be another plan.
            if result.is_ok() && now == Some(base) {
                let mut view = live.p.view.clone();
                if live.add_proposal(&mut view, proposal).is_ok() {
                    live.p.view = view;
                }
            }
            live.keep_view(false, |_, _| {});
            live.rings_changed();
        });
        Ok(())
    }
}
