//! Members that are gone for good: an administrator declares them dead, so that nobody waits for them. What only they held is
//! lost, and nothing more; should one come back after all, it has no part any more.

use dynamo_core::types::MemberId;

use super::members::Wanted;
use super::{Phase, World};
use crate::atlas;
use crate::knobs::Durability;
use crate::messages::NodeIx;
use crate::nemesis::Fault;
use crate::shared::Event;

/// An administrator looks so often whether a ring that names the dead is on its way.
const DECLARE_MS: u64 = 700;

impl World {
    /// The machine is gone, and an administrator takes note of it.
    pub(super) fn bury(&mut self, index: usize, node: NodeIx, back_ms: u64) {
        if !atlas::may_bury(&self.sh, self.members(), node) {
            self.sh.stats.spared += 1;
            return;
        }
        self.excused |= self.sh.knobs.durability != Durability::Every;
        self.crash(node, true);
        self.nodes[node].dark = true;
        self.nodes[node].down_by = Some(index);
        self.undo_later(index, back_ms);
        self.sh.ledger.set_gone(node, true);
        let keys = self.sh.keys.all();
        let lost: Vec<(u32, bool)> = keys
            .flat_map(|key| atlas::only_on(&self.sh, self.members(), node, key))
            .collect();
        for (number, everywhere) in lost {
            self.sh.ledger.forfeit(number, everywhere);
            let acknowledged = everywhere && self.sh.ledger.write(number).applied;
            self.sh.stats.forfeited += u64::from(acknowledged);
        }
        self.sh.buried.insert(node);
        self.sh.old[node] = Some(0);
        self.sh.stats.dead += 1;
        let now_us = self.sh.now_us;
        self.sh.queue.push(now_us + 1, Event::Declare(index));
    }

    /// It is gone for good, and the ring that serves lists it still: the others have to do without it.
    pub(super) fn is_waited_for(&self, node: NodeIx) -> bool {
        let ring = self.sh.serving.placement.ring();
        self.sh.buried.contains(&node) && ring.index_of(&self.sh.members[node]).is_some()
    }

    /// Asks for a ring without the member, until one serves.
    pub(super) fn declare(&mut self, index: usize) {
        let (_, Fault::Bury(node, random, _)) = self.plan[index] else {
            return;
        };
        if !self.is_waited_for(node) {
            if self.phase != Phase::Safety {
                // The others did without it; now it is back after all, whatever has stopped it since it died.
                self.nodes[node].down_by = self.nodes[node].down_by.map(|_| index);
                self.undo_fault(index);
            }
            return;
        }
        let member = self.sh.members[node].clone();
        let proposed = self.members().iter().any(|other| {
            let process = other.process.as_ref();
            let next = process.and_then(|process| process.view.transition()?.next());
            next.is_some_and(|next| next.dead.contains(&member))
        });
        if !proposed {
            // Each time somebody else, and others: not every wish makes a ring.
            let random = random.wrapping_add(self.sh.now_us);
            let first = random % self.sh.knobs.nodes as u64;
            self.commit(first as NodeIx, Wanted::Any(random));
        }
        let at_us = self.sh.now_us + DECLARE_MS * 1000;
        self.sh.queue.push(at_us, Event::Declare(index));
    }

    /// A member that was listed by no ring any more has nothing of then.
    pub(super) fn begins_anew(&mut self, node: NodeIx) {
        self.sh.buried.remove(&node);
        self.sh.ledger.set_gone(node, false);
    }

    /// Who is gone for good, of those whom a node's rings list.
    pub(super) fn dead_of(&self, node: NodeIx) -> impl Iterator<Item = MemberId> {
        let process = self.nodes[node].process.as_ref();
        let transition = process.and_then(|process| process.view.transition());
        let buried = self.sh.buried.iter().map(|dead| self.sh.members[*dead].clone());
        buried.filter(move |member| transition.is_some_and(|transition| transition.lists(member)))
    }
}
