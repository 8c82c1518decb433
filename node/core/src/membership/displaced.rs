//! What members said in lives before the present ones: by it a volume that was put back in time, or emptied, is found out.

use std::collections::BTreeMap;

use super::entry::MemberEntry;
use crate::types::{Incarnation, MemberId};

/// Lives before the present one that are remembered of a member.
pub(super) const DISPLACED_MAX: usize = 2;

/// Of each other member the last statement of the life before its present one, and of an earlier one that said more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Displaced {
    /// At most [`DISPLACED_MAX`] each, ascending by incarnation.
    lives: BTreeMap<MemberId, Vec<MemberEntry>>,
}

impl Displaced {
    pub(super) fn iter(&self) -> impl Iterator<Item = &MemberEntry> {
        self.lives.values().flatten()
    }

    pub(super) fn of(&self, member: &MemberId) -> impl Iterator<Item = &MemberEntry> {
        self.lives.get(member).into_iter().flatten()
    }

    pub(super) fn remove(&mut self, member: &MemberId) {
        self.lives.remove(member);
    }

    /// Adds what comes after all that is here; false if it does not, or is one too many of its member.
    pub(super) fn push(&mut self, entry: MemberEntry) -> bool {
        let last = self.lives.last_key_value().and_then(|(_, lives)| lives.last());
        if last.is_some_and(|last| (&last.member, last.incarnation) >= (&entry.member, entry.incarnation)) {
            return false;
        }
        let lives = self.lives.entry(entry.member.clone()).or_default();
        lives.push(entry);
        lives.len() <= DISPLACED_MAX
    }

    /// Keeps the last statement of a life that is over, or of a larger `synced` than the member now says.
    ///
    /// A short life after a volume was put back says less than the one before; it must not be all that is remembered. So does one that
    /// began with nothing, after its member had left or its volume was emptied; then what the life before said proves nothing any more.
    /// Nobody can tell which it is: both are kept.
    pub(super) fn keep(&mut self, entry: MemberEntry) {
        let kept = self.lives.entry(entry.member.clone()).or_default();
        let place = kept.partition_point(|known| known.incarnation < entry.incarnation);
        match kept
            .get_mut(place)
            .filter(|known| known.incarnation == entry.incarnation)
        {
            Some(known) if known.synced < entry.synced => *known = entry,
            Some(_) => {}
            None => kept.insert(place, entry),
        }
        if kept.len() > DISPLACED_MAX {
            let (old, new) = (&kept[0], &kept[1]);
            let later = new.incarnation.generation > old.incarnation.generation + 1;
            let says_more = later || new.synced >= old.synced;
            kept.remove(usize::from(!says_more));
        }
    }
}

/// Somebody else lives under this node's id, or has since.
pub(super) fn is_another_life(mine: Incarnation, theirs: Incarnation) -> bool {
    theirs.id != mine.id && theirs.generation >= mine.generation
}

/// Two lives neither of which can follow the other.
pub(super) fn rivals(one: Incarnation, other: Incarnation) -> bool {
    one.id != other.id && one.generation == other.generation
}
