//! Where one write stands at each node that it concerns, and what that comes to.
//!
//! Every primary has a *place*; the primary itself or a fallback that stands in for it fills the place, and a place
//! counts once, whoever fills it. While another ring is to follow, its primaries have places too, and a primary of the base
//! ring and those that it is paired with make one *slot*: it counts once all its places are filled. So W acknowledgements are
//! W different nodes for W different primaries of every ring, and never more than N.

use std::collections::{BTreeMap, BTreeSet};

use super::candidates::{Candidates, StandIns};
use super::{FailedReplica, FailureKind, ReplicaFailure};
use crate::types::{MemberId, Zone};

/// Where the write to one node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// To be asked.
    Idle,
    /// Asked; may or may not have the write.
    Waiting,
    Accepted {
        durable: bool,
    },
    Failed(ReplicaFailure),
}

/// All nodes that one write concerns.
#[derive(Debug, Clone)]
pub(super) struct Copies {
    nodes: BTreeMap<MemberId, Node>,
    /// The primaries in preference order, then those of other rings.
    places: Vec<MemberId>,
    /// Slots with their places, as pairs of indexes: rings that supersede each other may pair one node with several primaries.
    slots: Vec<(usize, usize)>,
    /// So many places are of the base ring's primaries; they come first.
    base: usize,
    stand_ins: StandIns,
    /// Stand-ins are looked for in zones that the write does not reach yet.
    spread: bool,
}

#[derive(Debug, Clone)]
struct Node {
    zone: Zone,
    /// Index of the primary that this node is or stands in for.
    place: usize,
    progress: Progress,
}

/// What nodes have done, or could have done in the best case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Slots in which the write is accepted.
    pub(super) acks: u32,
    /// Of these, those where the primaries themselves have it.
    pub(super) primaries: u32,
    /// Of these, those where it is synced to disk.
    pub(super) durable: u32,
    /// Distinct zones of the nodes that have it.
    pub(super) zones: u32,
}

/// What is known of one place.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    /// A node has it, for this place.
    accepted: bool,
    /// On its disk.
    durable: bool,
    /// The primary has it.
    own: bool,
    /// A node may yet have it.
    open: bool,
    /// The primary may.
    own_open: bool,
}

impl Copies {
    /// `me` counts as reachable, whatever is said about it. As a fallback it takes the place of an unreachable
    /// primary; with none, it shares the place of the first. `spread`: see [`super::Quorum::zones`].
    pub(super) fn new(candidates: Candidates, me: &MemberId, spread: bool) -> Self {
        let Candidates {
            primaries,
            partners,
            fallbacks,
        } = candidates;
        let mut nodes = BTreeMap::new();
        let (mut places, mut slots) = (Vec::new(), Vec::new());
        let base = primaries.len();
        for (slot, primary) in primaries.into_iter().enumerate().chain(partners) {
            let unreachable = Progress::Failed(ReplicaFailure {
                sent: false,
                kind: FailureKind::Unreachable,
            });
            if let Some(node) = nodes.get(&primary.member) {
                let node: &Node = node;
                slots.push((slot, node.place));
                continue;
            }
            let node = Node {
                zone: primary.zone,
                place: places.len(),
                progress: if primary.reachable || primary.member == *me {
                    Progress::Idle
                } else {
                    unreachable
                },
            };
            slots.push((slot, places.len()));
            nodes.insert(primary.member.clone(), node);
            places.push(primary.member);
        }
        let my_zone = fallbacks
            .iter()
            .find(|fallback| fallback.member == *me)
            .map(|fallback| fallback.zone.clone());
        let stand_ins = StandIns::new(fallbacks, |member| member == me || nodes.contains_key(member));
        let mut copies = Self {
            nodes,
            places,
            slots,
            base,
            stand_ins,
            spread,
        };
        if !copies.nodes.contains_key(me) {
            copies.place_me(me.clone(), my_zone.unwrap_or_default());
        }
        copies.fill_places();
        copies
    }

    /// Where the write to a node stands; `None`: it is not concerned.
    pub(super) fn progress(&self, member: &MemberId) -> Option<Progress> {
        self.nodes.get(member).map(|node| node.progress)
    }

    /// Takes down what a node has done. A place that is left without a copy under way gets its next stand-in.
    pub(super) fn set(&mut self, member: &MemberId, progress: Progress) {
        if let Some(node) = self.nodes.get_mut(member) {
            node.progress = progress;
            if matches!(progress, Progress::Failed(_)) {
                self.fill_places();
            }
        }
    }

    /// The primary that a node stands in for; `None`: it is the primary itself.
    pub(super) fn hint_for(&self, member: &MemberId) -> Option<MemberId> {
        let node = self.nodes.get(member)?;
        let primary = self.places.get(node.place)?;
        (primary != member).then(|| primary.clone())
    }

    /// Who is to be asked, in preference order.
    pub(super) fn idle(&self) -> Vec<MemberId> {
        let mut idle: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.progress == Progress::Idle)
            .map(|(member, node)| (node.place, member.clone()))
            .collect();
        idle.sort();
        idle.into_iter().map(|(_, member)| member).collect()
    }

    /// True while an answer is outstanding.
    pub(super) fn waiting(&self) -> bool {
        self.nodes.values().any(|node| node.progress == Progress::Waiting)
    }

    /// True if some node holds the write, or may come to hold it though nothing more is sent.
    pub(super) fn traces(&self) -> bool {
        self.nodes.values().any(|node| match node.progress {
            Progress::Idle => false,
            Progress::Waiting | Progress::Accepted { .. } => true,
            Progress::Failed(failure) => failure.sent,
        })
    }

    /// Who failed, and why.
    pub(super) fn failed(&self) -> Vec<FailedReplica> {
        let mut failed = Vec::new();
        for (member, node) in &self.nodes {
            if let Progress::Failed(failure) = node.progress {
                failed.push(FailedReplica {
                    member: member.clone(),
                    kind: failure.kind,
                });
            }
        }
        failed
    }

    /// What has been accepted.
    pub(super) fn tally(&self) -> Tally {
        let places = self.summary();
        Tally {
            acks: self.slots_where(&places, |place| place.accepted),
            primaries: self.slots_where(&places, |place| place.own),
            durable: self.slots_where(&places, |place| place.durable),
            zones: self.zones_where(is_accepted).len() as u32,
        }
    }

    /// What will have been accepted if all that have not failed accept and sync: the one definition of "can still
    /// succeed".
    pub(super) fn best_case(&self) -> Tally {
        let places = self.summary();
        // Any copy under way may still fail and be replaced by a stand-in in another zone: each copy that is not
        // there yet adds a zone at most, out of those that are left.
        let accepted = self.zones_where(is_accepted);
        let mut zones_left = self.zones_where(is_open);
        let copies_left = places.iter().filter(|place| place.open).count();
        if copies_left > 0 {
            zones_left.extend(self.stand_ins.zones());
        }
        let new = zones_left.difference(&accepted).count();
        Tally {
            acks: self.slots_where(&places, |place| place.accepted || place.open),
            primaries: self.slots_where(&places, |place| place.own || place.own_open),
            durable: self.slots_where(&places, |place| place.durable || place.open),
            zones: (accepted.len() + new.min(copies_left)) as u32,
        }
    }

    fn place_me(&mut self, me: MemberId, zone: Zone) {
        let failed = |node: &&Node| matches!(node.progress, Progress::Failed(_));
        let unreachable = || self.nodes.values().filter(failed);
        let in_my_zone = unreachable().filter(|node| node.zone == zone);
        let place = in_my_zone.map(|node| node.place).min();
        let place = place.or_else(|| unreachable().map(|node| node.place).min());
        if self.places.is_empty() {
            self.places.push(me.clone());
            self.slots.push((0, 0));
            self.base = 1;
        }
        let node = Node {
            zone,
            place: place.unwrap_or(0),
            progress: Progress::Idle,
        };
        self.nodes.insert(me, node);
    }

    /// Gives every place without a copy its next stand-in; first those that find one in the primary's own zone.
    fn fill_places(&mut self) {
        let summary = self.summary();
        let empty = |place: &usize| !summary[*place].accepted && !summary[*place].open;
        let mut empty: Vec<usize> = (0..summary.len()).filter(empty).collect();
        for own_zone in [true, false] {
            empty.retain(|place| !self.fill(*place, own_zone));
        }
    }

    fn fill(&mut self, place: usize, own_zone: bool) -> bool {
        let Some(primary) = self.places.get(place).and_then(|member| self.nodes.get(member)) else {
            return false;
        };
        let zone = primary.zone.clone();
        let stand_in = if own_zone {
            self.stand_ins.next_in(&zone)
        } else {
            let nodes = self.nodes.values();
            let reached: BTreeSet<Zone> = nodes
                .filter(|node| is_accepted(node.progress) || is_open(node.progress))
                .map(|node| node.zone.clone())
                .collect();
            let spread = self.spread;
            self.stand_ins
                .next(&zone, |zone| spread && !reached.contains(zone))
        };
        let Some(stand_in) = stand_in else {
            return false;
        };
        let node = Node {
            zone: stand_in.zone,
            place,
            progress: Progress::Idle,
        };
        self.nodes.insert(stand_in.member, node);
        true
    }

    fn summary(&self) -> Vec<Place> {
        let mut places = vec![Place::default(); self.places.len()];
        for (member, node) in &self.nodes {
            if let Some(place) = places.get_mut(node.place) {
                let own = self.places.get(node.place) == Some(member);
                let (accepted, open) = (is_accepted(node.progress), is_open(node.progress));
                place.accepted |= accepted;
                place.durable |= node.progress == Progress::Accepted { durable: true };
                place.own |= own && accepted;
                place.open |= open;
                place.own_open |= own && open;
            }
        }
        places
    }

    /// How many slots have only places of which that is true.
    fn slots_where(&self, places: &[Place], fits: impl Fn(&Place) -> bool) -> u32 {
        let slots = self.slots.iter().max().map_or(0, |(last, _)| last + 1);
        let of = |slot: usize| {
            let own = self.slots.iter().filter(move |(of, _)| *of == slot);
            own.filter_map(|(_, place)| places.get(*place))
        };
        let whole = |slot: &usize| of(*slot).next().is_some() && of(*slot).all(&fits);
        (0..slots).filter(whole).count() as u32
    }

    /// Zones are counted where the base ring has the write: what follows it is spread by the same rule.
    fn zones_where(&self, fits: impl Fn(Progress) -> bool) -> BTreeSet<&Zone> {
        let nodes = self.nodes.values();
        let nodes = nodes.filter(|node| node.place < self.base && fits(node.progress));
        nodes.map(|node| &node.zone).collect()
    }
}

fn is_accepted(progress: Progress) -> bool {
    matches!(progress, Progress::Accepted { .. })
}

fn is_open(progress: Progress) -> bool {
    matches!(progress, Progress::Idle | Progress::Waiting)
}
