//! What a node holds by no ring any more: given to its owners, then erased.
//!
//! A partition that the ring in use gives to others is exchanged with each of its primaries; when all of them have what is
//! here, it goes. A node that the ring does not list has no part in the cluster: it erases everything at once, so that it
//! brings nothing old along if it joins again.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use dynamo_core::entropy::{Due, ExchangeReport, Mode};
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

/// A partition that is to go.
pub struct Release {
    /// Its primaries that may lack something that is here.
    left: BTreeSet<MemberId>,
    /// An exchange with one of them is under way, or the records are being erased.
    busy: bool,
    /// What was here when it began, for the invariants: what an owner gives meanwhile, it has.
    found: Vec<(KeyIx, Rc<KeyState>)>,
}

impl Live<'_> {
    /// The ring in use does not list the node, and it holds what it had by another.
    pub fn must_leave(&self, base: &Ring) -> bool {
        let lives_on = self.sh.knobs.mistake == Some(Mistake::GhostAdmitted);
        let listed = base.index_of(&self.sh.members[self.me]).is_some();
        let joining = self.p.view.transition().is_some_and(|transition| {
            // At a start, what it holds may be what it has pulled for a ring to come.
            self.p.starting && transition.lists(&self.sh.members[self.me])
        });
        let records = || {
            self.disk
                .iter()
                .any(|(place, _)| matches!(place, Place::Data(_) | Place::Epoch(_)))
        };
        !listed && !joining && !lives_on && (records() || self.hints.iter().next().is_some())
    }

    /// Partitions with records that no ring gives to this node.
    pub fn look_for_strays(&mut self) {
        let Some(rings) = &self.p.rings else { return };
        let base = Rc::clone(rings.base());
        let ring = base.placement.ring();
        let mut strays: BTreeMap<PartitionId, Vec<(KeyIx, Rc<KeyState>)>> = BTreeMap::new();
        for (place, _) in self.disk.iter() {
            if let Place::Data(key) = place
                && !self.holds(*key)
            {
                let found = strays.entry(rings.partition_of(self.sh, *key)).or_default();
                found.extend(self.disk.peek(*place).map(|state| (*key, Rc::clone(state))));
            }
        }
        self.p
            .releases
            .retain(|partition, _| strays.contains_key(partition));
        for (partition, found) in strays {
            let primaries = base.placement.primaries(partition).iter();
            let left = primaries
                .map(|index| ring.members()[usize::from(*index)].id.clone())
                .collect();
            let release = Release {
                left,
                busy: false,
                found,
            };
            self.p.releases.entry(partition).or_insert(release);
        }
        self.keep_trees();
    }

    /// Begins to give a partition to one of its owners. True if an exchange began.
    pub fn begin_release(&mut self) -> bool {
        if self.p.recovery.is_some() || self.unconfirmed() {
            return false;
        }
        let careless = self.sh.knobs.mistake == Some(Mistake::FreedErasedEarly);
        let detector = &self.p.detector;
        let mut open = Vec::new();
        for (partition, release) in self.p.releases.iter().filter(|(_, release)| !release.busy) {
            let peers = release.left.iter().filter(|member| detector.reachable(member));
            open.extend(peers.map(|peer| (*partition, peer.clone())));
            if careless {
                open.push((*partition, self.sh.members[self.me].clone()));
            }
        }
        if open.is_empty() {
            return false;
        }
        let (partition, peer) = open.swap_remove(self.sh.rng.index(open.len()));
        if let Some(release) = self.p.releases.get_mut(&partition) {
            release.busy = true;
        }
        if careless {
            self.erase(partition);
            return false;
        }
        let due = Due { partition, peer };
        self.begin_exchange(due, Mode::Both, Purpose::Release);
        true
    }

    /// An exchange with an owner is over.
    pub fn end_release(&mut self, partition: PartitionId, peer: &MemberId, report: &ExchangeReport) {
        let Some(release) = self.p.releases.get_mut(&partition) else {
            return;
        };
        release.busy = false;
        if report.complete {
            release.left.remove(peer);
        }
        if release.left.is_empty() {
            release.busy = true;
            self.erase(partition);
        }
    }

    fn erase(&mut self, partition: PartitionId) {
        let Some(rings) = &self.p.rings else { return };
        let base = rings.base().placement.ring();
        let (version, range) = (base.version(), base.range(partition));
        let owners: Vec<NodeIx> = rings.base().of_partition(partition).0.clone();
        let found = self
            .p
            .releases
            .get(&partition)
            .map(|release| release.found.clone());
        self.enqueue(
            0,
            true,
            move |live, group| {
                let same = live.p.view.ring().is_some_and(|ring| ring.version() == version);
                if !same || live.holds_partition(partition) {
                    return Ok(());
                }
                let (keys, me) = (Rc::clone(&live.sh.keys), live.me);
                for (key, state) in found.iter().flatten() {
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
                let same = live.p.view.ring().is_some_and(|ring| ring.version() == version);
                if same && live.p.releases.remove(&partition).is_some() && result.is_ok() {
                    live.sh.stats.released += 1;
                }
                live.look_for_strays();
            },
        );
    }
}
