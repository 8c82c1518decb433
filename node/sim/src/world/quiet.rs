//! Quiescence: hints drain, stores become whole, replicas become equal, within a bounded time.

use dynamo_core::transition::{Sync, Transition};

use super::{Phase, QUIET_WITHIN_MS, World};
use crate::disk::Place;
use crate::invariants::{self, i10_rings_only_grow};
use crate::messages::NodeIx;
use crate::node::Node;
use crate::node::writer::Writer;

impl World {
    pub(super) fn look_for_quiet(&mut self) {
        let waited_ms = (self.sh.now_us - self.quiet_since_us) / 1000;
        match self.unquiet() {
            None => {
                self.sh.stats.quiet_after_ms = waited_ms;
                let members = &self.nodes[..self.sh.knobs.nodes];
                invariants::at_end(&mut self.sh, members, !self.excused);
                self.phase = Phase::Done;
            }
            Some(what) if waited_ms > QUIET_WITHIN_MS => {
                self.sh.violated(
                    "I13",
                    format!("not quiet {waited_ms} ms after all faults: {what}"),
                );
                self.phase = Phase::Done;
            }
            Some(_) => {}
        }
    }

    /// What is still under way.
    fn unquiet(&self) -> Option<String> {
        if let Some(client) = self.clients.iter().find(|client| !client.idle()) {
            return Some(format!("a client waits, idle {}", client.idle()));
        }
        for node in self.members() {
            let me = node.me;
            let Some(process) = &node.process else {
                return Some(format!("n{me} is down"));
            };
            if node.hints.iter().next().is_some() {
                return Some(format!("n{me} holds hints"));
            }
            if process.recovery.is_some() {
                return Some(format!("n{me} is suspect"));
            }
            if process
                .view
                .transition()
                .is_some_and(|transition| transition.next().is_some())
            {
                let waits = process.view.transition().and_then(Transition::waits_for);
                let held_up: Vec<String> = self.members().iter().filter_map(Self::held_up).collect();
                return Some(format!("n{me} waits for a ring: {waits:?}; {held_up:?}"));
            }
            if process.strays.count() > 0 || process.pending.is_some() {
                return Some(format!("n{me} has yet to give something away"));
            }
            if node.disk.corrupted().next().is_some() {
                return Some(format!("n{me} has unreadable records"));
            }
            if !process.puts.is_empty() || !process.gets.is_empty() || process.reap.is_some() {
                return Some(format!("n{me} is at work"));
            }
            if process.trees.next_rebuild().is_some() || !process.writers.iter().all(Writer::idle) {
                return Some(format!("n{me} folds or writes"));
            }
        }
        i10_rings_only_grow::behind(self.members())
            .or_else(|| self.strays())
            .or_else(|| self.unequal())
    }

    /// What may keep a node from its next step.
    fn held_up(node: &Node) -> Option<String> {
        let process = node.process.as_ref()?;
        let transition = process.view.transition()?;
        let sync = process
            .sync
            .as_ref()
            .map(|sync| (sync.ring().epoch, sync.progress()));
        let idle =
            process.recovery.is_none() && process.under_way.is_empty() && node.hints.iter().next().is_none();
        let done = process.sync.as_ref().is_none_or(Sync::is_done);
        if idle && done && transition.remembers() && process.confirmed {
            return None;
        }
        Some(format!(
            "n{} base {} newest {:?} sync {sync:?} suspect {} unheard {:?} hints {} under way {} pending {} confirmed {}",
            node.me,
            transition.base().epoch(),
            transition.newest().epoch,
            process.recovery.is_some(),
            transition.unheard(),
            node.hints.iter().count(),
            process.under_way.len(),
            process.pending.is_some(),
            process.confirmed
        ))
    }

    /// Records that nobody should hold.
    fn strays(&self) -> Option<String> {
        for node in self.members() {
            for (place, _) in node.disk.iter() {
                if let Place::Data(key) = place
                    && !self.sh.is_primary(*key, node.me)
                {
                    return Some(format!("n{} still holds key {key}", node.me));
                }
            }
        }
        None
    }

    fn unequal(&self) -> Option<String> {
        for key in self.sh.keys.all() {
            let primaries = &self.sh.preference_of(key).0;
            let of = |node: &NodeIx| self.nodes[*node].disk.peek(Place::Data(key));
            let first = primaries.first().and_then(of);
            if let Some(other) = primaries.iter().find(|node| of(node) != first) {
                return Some(format!("n{} and n{other} differ in key {key}", primaries[0]));
            }
        }
        None
    }
}
