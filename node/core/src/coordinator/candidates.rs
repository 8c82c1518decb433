//! The nodes of one key, and who stands in for a primary that cannot answer. Paper: §4.6.

use crate::types::{MemberId, Zone};

/// A node of a key's preference list, as the coordinator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub member: MemberId,
    /// Its failure domain.
    pub zone: Zone,
    /// False while the local failure detector holds it unreachable (§4.8.3): it is not asked, and counts as failed.
    pub reachable: bool,
}

/// A key's whole preference list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Candidates {
    /// The N nodes that hold the key, in preference order.
    pub primaries: Vec<Candidate>,
    /// While another ring is to follow, its nodes that are not among the primaries, each with the primary that it is [paired
    /// with](crate::transition::Slot) by its index; one beyond the last primary stands for itself. Gets do not ask them.
    pub partners: Vec<(usize, Candidate)>,
    /// All others, in walk order.
    pub fallbacks: Vec<Candidate>,
}

impl Candidates {
    /// The first N reachable nodes of the whole list, in order: who may coordinate a write (§4.5, §4.6).
    pub fn top_reachable(&self) -> Vec<&Candidate> {
        let all = self.primaries.iter().chain(&self.fallbacks);
        all.filter(|candidate| candidate.reachable)
            .take(self.primaries.len())
            .collect()
    }
}

/// The reachable fallbacks that nobody uses yet, in walk order. Each is given out once.
#[derive(Debug, Clone)]
pub(super) struct StandIns {
    unused: Vec<Candidate>,
}

impl StandIns {
    /// Those of `fallbacks` that are reachable; not the members for which `taken` is true.
    pub(super) fn new(fallbacks: Vec<Candidate>, taken: impl Fn(&MemberId) -> bool) -> Self {
        let mut unused: Vec<Candidate> = Vec::with_capacity(fallbacks.len());
        for fallback in fallbacks {
            let repeated = unused.iter().any(|known| known.member == fallback.member);
            if fallback.reachable && !repeated && !taken(&fallback.member) {
                unused.push(fallback);
            }
        }
        Self { unused }
    }

    /// The next one in that zone: hints stay in the failed primary's failure domain as long as it has room.
    pub(super) fn next_in(&mut self, zone: &Zone) -> Option<Candidate> {
        self.next_where(|fallback| fallback.zone == *zone)
    }

    /// The next one, those in `zone` first, then those in a zone that is `wanted`, then in walk order.
    pub(super) fn next(&mut self, zone: &Zone, wanted: impl Fn(&Zone) -> bool) -> Option<Candidate> {
        self.next_in(zone)
            .or_else(|| self.next_where(|fallback| wanted(&fallback.zone)))
            .or_else(|| self.next_where(|_| true))
    }

    /// The zones of all that are left, with repetitions.
    pub(super) fn zones(&self) -> impl Iterator<Item = &Zone> {
        self.unused.iter().map(|fallback| &fallback.zone)
    }

    fn next_where(&mut self, fits: impl Fn(&Candidate) -> bool) -> Option<Candidate> {
        let index = self.unused.iter().position(fits)?;
        Some(self.unused.remove(index))
    }
}
