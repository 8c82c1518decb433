//! What a node holds by no ring any more: given to its owners, then erased. `dynamo_core::transition::Strays` decides it.
//!
//! A node that the ring does not list has no part in the cluster: it erases everything at once, so that it brings nothing
//! old along if it joins again.

use std::collections::BTreeMap;
use std::rc::Rc;

use dynamo_core::entropy::{Due, ExchangeReport, Mode};
use dynamo_core::membership::RingVersion;
use dynamo_core::ring::Ring;
use dynamo_core::types::{MemberId, PartitionId};
use dynamo_core::version::KeyState;

use super::Live;
use super::entropy::Purpose;
use crate::disk::Place;
use crate::invariants::i09_released_on_a_synced_word;
use crate::keys::KeyIx;
use crate::messages::NodeIx;
use crate::mistakes::Mistake;

/// What was found of a partition that is to go, for the invariants: what an owner gives meanwhile, it has.
pub type Found = Vec<(KeyIx, Rc<KeyState>)>;

impl Live<'_> {
    /// The ring in use does not list the node, and it holds what it had by another.
    pub fn must_leave(&self, base: &Ring) -> bool {
        let lives_on = self.sh.knobs.mistake == Some(Mistake::GhostAdmitted);
        let listed = base.index_of(&self.sh.members[self.me]).is_some();
        let joining = self.p.view.transition().is_some_and(|transition| {
            // At a start, what it holds may be what it has pulled for a ring to come.
            let me = &self.sh.members[self.me];
            transition.keeps(me) || (self.p.starting && transition.lists(me))
        });
        let records = || {
            self.disk
                .iter()
                .any(|(place, _)| matches!(place, Place::Data(_) | Place::Epoch(_)))
        };
        !listed && !joining && !lives_on && (records() || self.hints.iter().next().is_some())
    }

    /// Partitions with records that no ring gives to this node; not before those that were found last have been erased, and what is
    /// about to be erased by the ring before is none of them.
    pub fn look_for_strays(&mut self) {
        let idle = self.p.strays.count() == 0 && !self.p.erasing;
        let Some(rings) = self.p.rings.as_ref().filter(|_| idle) else {
            return;
        };
        let mut strays: BTreeMap<PartitionId, Found> = BTreeMap::new();
        for (place, _) in self.disk.iter() {
            if let Place::Data(key) = place
                && !self.holds(*key)
            {
                let found = strays.entry(rings.partition_of(self.sh, *key)).or_default();
                found.extend(self.disk.peek(*place).map(|state| (*key, Rc::clone(state))));
            }
        }
        let (layouts, me) = (Rc::clone(&rings.layouts), &self.sh.members[self.me]);
        self.p.strays.place(&layouts, me, strays.keys().copied());
        self.p.found = strays;
        self.keep_trees();
    }

    /// Begins to give a partition to one of its owners, or to erase one that all of them have.
    pub fn begin_release(&mut self) {
        if self.p.recovery.is_some() || self.unconfirmed() {
            return;
        }
        let Some(rings) = &self.p.rings else { return };
        let layouts = Rc::clone(&rings.layouts);
        if let Some(partition) = self.p.strays.safe(&layouts) {
            self.erase(partition);
            return;
        }
        let careless = self.sh.knobs.mistake == Some(Mistake::FreedErasedEarly);
        let random = self.sh.rng.bits();
        let detector = &self.p.detector;
        let reachable = |member: &MemberId| careless || detector.reachable(member);
        let Some((partition, peer)) = self.p.strays.next(&layouts, &reachable, random) else {
            return;
        };
        if careless {
            let complete = ExchangeReport {
                complete: true,
                ..ExchangeReport::default()
            };
            self.end_release(partition, &peer, &complete);
            return;
        }
        self.begin_exchange(Due { partition, peer }, Mode::Both, Purpose::Release);
    }

    /// An exchange with an owner is over; whatever began under another base ring has ended with that.
    pub fn end_release(&mut self, partition: PartitionId, peer: &MemberId, report: &ExchangeReport) {
        let base = self.p.view.ring().map(|ring| RingVersion::from(ring.as_ref()));
        if let Some(base) = base {
            self.p.strays.ended(base, partition, peer, report.complete);
        }
    }

    fn erase(&mut self, partition: PartitionId) {
        let Some(rings) = self.p.rings.as_ref().filter(|_| !self.p.erasing) else {
            return;
        };
        self.p.erasing = true;
        let base = rings.base().placement.ring();
        let (version, range) = (base.version(), base.range(partition));
        let owners: Vec<NodeIx> = rings.base().of_partition(partition).0.clone();
        let found = self.p.found.remove(&partition).unwrap_or_default();
        self.enqueue(
            0,
            true,
            move |live, group| {
                let same = live.p.view.ring().is_some_and(|ring| ring.version() == version);
                if !same || live.holds_partition(partition) {
                    return Ok(());
                }
                let (keys, me) = (Rc::clone(&live.sh.keys), live.me);
                for (key, state) in &found {
                    i09_released_on_a_synced_word::check_freed(live.sh, me, &owners, *key, state);
                }
                for key in keys.in_range(&range) {
                    for place in [Place::Data(key), Place::Epoch(key), Place::Mark(key)] {
                        if !matches!(live.in_group(group, place), Ok(None)) {
                            group.set(place, None);
                        }
                    }
                }
                Ok(())
            },
            move |live, result| {
                live.p.erasing = false;
                let same = live.p.view.ring().is_some_and(|ring| ring.version() == version);
                if same && result.is_ok() {
                    live.p.strays.erased(partition);
                    live.sh.stats.released += 1;
                }
                live.look_for_strays();
                live.keep_trees();
            },
        );
    }
}
