//! The rings that a node works with at one moment, each with the primaries of its partitions worked out: what requests and
//! upkeep look things up in.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Slot, Transition, slots};
use crate::membership::RingVersion;
use crate::ring::{Placement, Ring};
use crate::types::{KeyHash, MemberId, PartitionId};

/// What a [`Transition`] says about where keys are. Cheap to make again: placements of rings that stay are taken over.
#[derive(Clone, Debug)]
pub struct Layouts {
    base: Arc<Placement>,
    /// Of the rings beside the base that writes go to, ascending by version: the last one is of the newest ring.
    followers: Vec<Arc<Placement>>,
    /// Of those that are to follow the base no more, or that are kept from before it: nothing is written to them, but their holders may
    /// have what died with a member of the base.
    superseded: Vec<Arc<Placement>>,
    /// Members that were declared dead in the base ring before it came to serve: also if they are back, the rings that are kept have what
    /// their slots had.
    lost: BTreeSet<MemberId>,
    reading: Option<RingVersion>,
    /// Members of the base and of all rings that anybody was told of or that are kept: the next one waits for them, also where it
    /// superseded the only ring that lists them, and they may have hints to deliver before they can go.
    listed: BTreeSet<MemberId>,
    dead: BTreeSet<MemberId>,
    /// The newest ring that this member has given a mark for, in any life that its volume remembers.
    marked: Option<RingVersion>,
}

/// Why a message about data is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fenced {
    /// No ring lists the sender, or an administrator has declared it dead.
    #[error("the sender is not a member of this cluster's ring")]
    NotAMember,
    /// The sender goes by a ring that was retired.
    #[error("the sender goes by a ring that was retired")]
    Retired,
}

impl Layouts {
    /// As `transition` stands.
    pub fn of(transition: &Transition, before: Option<&Self>) -> Self {
        let known = |version: RingVersion| {
            let all = before.into_iter().flat_map(Self::shared);
            all.into_iter()
                .find(|known| RingVersion::from(known.ring().as_ref()) == version)
        };
        let place = |ring: &Arc<Ring>| {
            let version = RingVersion::from(ring.as_ref());
            known(version).map_or_else(|| Arc::new(Placement::new(Arc::clone(ring))), Arc::clone)
        };
        let mut written = transition.written().map(place);
        let base = written
            .next()
            .unwrap_or_else(|| Arc::new(Placement::new(Arc::clone(transition.base()))));
        Self {
            base,
            followers: written.collect(),
            superseded: transition
                .superseded()
                .chain(transition.kept().map(|kept| &kept.ring))
                .map(place)
                .collect(),
            lost: transition
                .kept()
                .flat_map(|kept| kept.dead.iter().cloned())
                .collect(),
            reading: transition.read().map(|ring| RingVersion::from(ring.as_ref())),
            listed: transition.members().cloned().collect(),
            dead: transition
                .next()
                .map(|next| next.dead.clone())
                .unwrap_or_default(),
            marked: transition.marked(),
        }
    }

    /// The ring that serves until all read from the next.
    pub fn base(&self) -> &Placement {
        &self.base
    }

    /// The newest ring, if one is to follow the base.
    pub fn next(&self) -> Option<&Placement> {
        self.followers.last().map(AsRef::as_ref)
    }

    /// The rings beside the base that are written to, the newest one last.
    pub fn followers(&self) -> impl DoubleEndedIterator<Item = &Placement> {
        self.followers.iter().map(AsRef::as_ref)
    }

    /// The base, and the rings beside it that are written to.
    pub fn written(&self) -> impl Iterator<Item = &Placement> {
        std::iter::once(self.base()).chain(self.followers())
    }

    /// The rings that were to follow the base before the newest one was proposed, written to or not, and those that are kept.
    pub(super) fn superseded(&self) -> impl Iterator<Item = &Placement> {
        let newest = self.followers.len().saturating_sub(1);
        let all = self.superseded.iter().chain(&self.followers[..newest]);
        all.map(AsRef::as_ref)
    }

    /// The ring that reads go to; `None` as long as this node must not coordinate any, see [`Transition::read`].
    pub fn reading(&self) -> Option<&Placement> {
        let reading = self.reading?;
        self.written()
            .find(|placement| RingVersion::from(placement.ring().as_ref()) == reading)
    }

    /// Whom an administrator has declared gone for good.
    pub fn dead(&self) -> &BTreeSet<MemberId> {
        &self.dead
    }

    /// Whether a member has everything that its slots had, as far as is known.
    pub(super) fn is_complete(&self, member: &MemberId) -> bool {
        !self.dead.contains(member) && !self.lost.contains(member)
    }

    /// Whether what these rings make a member pull is to be pulled from others than by those before, of the same version.
    pub fn has_other_sources(&self, before: &Self) -> bool {
        self.dead != before.dead || self.lost != before.lost
    }

    /// True while a ring is to follow the base.
    pub fn in_transition(&self) -> bool {
        !self.followers.is_empty()
    }

    /// Whom any of the rings lists, ascending.
    pub fn members(&self) -> impl Iterator<Item = &MemberId> {
        self.listed.iter()
    }

    /// Whether a member is listed by any of the rings, also by one that was superseded or is kept, and is not written to any more.
    pub fn lists(&self, member: &MemberId) -> bool {
        self.listed.contains(member)
    }

    /// Whether a member is a primary of a key by any of the rings: what arrives for it is its own.
    pub fn holds(&self, hash: KeyHash, member: &MemberId) -> bool {
        self.written().any(|placement| {
            let index = placement.ring().index_of(member);
            index.is_some_and(|index| placement.primaries_of(hash).contains(&(index as u16)))
        })
    }

    /// The same of a partition of the base ring: all of its keys have one list in each ring.
    pub fn holds_partition(&self, partition: PartitionId, member: &MemberId) -> bool {
        self.holds(KeyHash(*self.base.ring().range(partition).start()), member)
    }

    /// Whether others may have to [pull](super::Sync) a partition of the base ring from a member: it holds it, or a ring that was
    /// superseded or is kept has made it hold it.
    pub fn may_give_partition(&self, partition: PartitionId, member: &MemberId) -> bool {
        let hash = KeyHash(*self.base.ring().range(partition).start());
        let mut superseded = self.superseded.iter();
        let gives = |placement: &Arc<Placement>| {
            primaries(placement, hash, placement.ring().factor()).any(|primary| primary == member)
        };
        self.holds(hash, member) || superseded.any(gives)
    }

    /// The first `n` primaries of a key in every ring, [paired](slots).
    pub fn slots(&self, hash: KeyHash, n: u32) -> Vec<Slot> {
        let lists: Vec<Vec<MemberId>> = self
            .written()
            .map(|placement| primaries(placement, hash, n).cloned().collect())
            .collect();
        slots(&lists)
    }

    /// Who must have a hint before it may be deleted: the owner and whom it is paired with, as long as it is a primary of
    /// the key; else all primaries. By every ring that is written to, and without the dead.
    pub fn hint_targets(&self, owner: &MemberId, hash: KeyHash) -> Vec<MemberId> {
        let mut slots = self.slots(hash, self.base.ring().factor());
        if let Some(own) = slots.iter().find(|slot| slot.members.contains(owner)) {
            let own: Vec<MemberId> = self.alive(&own.members).collect();
            if !own.is_empty() {
                return own;
            }
        }
        let mut all = Vec::new();
        for slot in &mut slots {
            all.append(&mut slot.members);
        }
        self.alive(&all).collect()
    }

    /// Whether a message about data is taken from a member that says that its base ring has epoch `base` and that it reads
    /// from the ring of epoch `reads`.
    ///
    /// One that has not heard yet that the base was retired is heard as long as it reads from what has become the base: it
    /// writes to that too. One that knows of a later ring is heard, and this node is told of that ring by gossip.
    ///
    /// # Errors
    /// If the sender has no part in the cluster, or must catch up first.
    pub fn admits(&self, sender: &MemberId, base: u64, reads: u64) -> Result<(), Fenced> {
        let mine = self.base.ring().epoch();
        if self.dead.contains(sender) || (!self.lists(sender) && base <= mine) {
            Err(Fenced::NotAMember)
        } else if base.max(reads) < mine {
            Err(Fenced::Retired)
        } else {
            Ok(())
        }
    }

    /// Whether a member whose newest ring is that one has to catch up before anything about data is taken from it. Others may
    /// pull by now what is to be theirs: what is written after that has to be written to them, too, also by a member that has
    /// forgotten that it was told.
    pub fn is_behind(&self, newest: RingVersion) -> bool {
        self.marked.is_some_and(|marked| newest < marked)
    }

    fn alive<'a>(&'a self, members: &'a [MemberId]) -> impl Iterator<Item = MemberId> + 'a {
        let alive = members.iter().filter(|member| !self.dead.contains(*member));
        alive.cloned()
    }

    fn shared(&self) -> impl Iterator<Item = &Arc<Placement>> {
        std::iter::once(&self.base)
            .chain(&self.followers)
            .chain(&self.superseded)
    }
}

/// The first `n` primaries of a key, best first.
pub(super) fn primaries(placement: &Placement, hash: KeyHash, n: u32) -> impl Iterator<Item = &MemberId> {
    let members = placement.ring().members();
    let indexes = placement.primaries_of(hash).iter().take(n as usize);
    indexes.map(|index| &members[usize::from(*index)].id)
}
