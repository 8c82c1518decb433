//! Whom to gossip with. Once a second the shell asks for a target and exchanges views with it. Paper: §4.8.1, §4.8.2.

use super::{Detector, View};
use crate::types::MemberId;

/// One round in so many goes to a seed, so that groups which do not know each other meet.
pub const SEED_ROUND_EVERY: u64 = 10;

/// The choice of partners, for a node with some configured seeds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gossip {
    seeds: usize,
}

/// With whom to exchange views in this round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A member, at the peer address of its entry.
    Member(MemberId),
    /// An address of the configuration, by its index; who answers there may be anybody, this node too.
    Seed(usize),
}

impl Gossip {
    /// For a configuration of that many seeds.
    pub fn new(seeds: usize) -> Self {
        Self { seeds }
    }

    /// One random peer that answers; a seed in one round of [`SEED_ROUND_EVERY`] and while no peer answers.
    ///
    /// A member that [lost its memory](crate::transition) first hears those whom it has not heard yet. Without seeds, a node
    /// that reaches nobody tries any peer. `random` is 64 fresh random bits. `None`: there is
    /// nobody to talk to.
    pub fn next_target(&self, view: &View, detector: &Detector, random: u64) -> Option<Target> {
        let me = &view.me().member;
        let others = || {
            view.members()
                .map(|entry| &entry.member)
                .filter(|member| *member != me)
        };
        let (lottery, pick) = (random >> 32, random & 0xffff_ffff);
        let reachable: Vec<&MemberId> = others().filter(|member| detector.reachable(member)).collect();
        if self.seeds > 0 && (reachable.is_empty() || lottery % SEED_ROUND_EVERY == 0) {
            return Some(Target::Seed((pick % self.seeds as u64) as usize));
        }
        let unheard: Vec<&MemberId> = view.transition().map_or_else(Vec::new, |transition| {
            let unheard = transition.unheard().into_iter();
            unheard.filter(|member| reachable.contains(member)).collect()
        });
        let candidates = if !unheard.is_empty() {
            unheard
        } else if reachable.is_empty() {
            others().collect()
        } else {
            reachable
        };
        let index = pick.checked_rem(candidates.len() as u64)? as usize;
        candidates
            .get(index)
            .map(|member| Target::Member((*member).clone()))
    }
}
