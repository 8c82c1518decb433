//! Who answers this node. Purely local: nothing here is told to others or believed from them. Paper: §4.8.3.
//!
//! Only answers to this node's own requests count. A request *from* a peer proves nothing about the way to it: a
//! network may be cut in one direction.

use std::collections::BTreeMap;

use crate::types::MemberId;

/// An unreachable peer is probed this often.
pub const PROBE_INTERVAL_MS: u64 = 1000;
/// Longest reason kept.
pub const REASON_BYTES_MAX: usize = 256;

/// What this node's own requests have shown. Times are milliseconds of one monotonic clock.
#[derive(Clone, Debug, Default)]
pub struct Detector {
    peers: BTreeMap<MemberId, Peer>,
}

#[derive(Clone, Debug, Default)]
struct Peer {
    /// When it last answered.
    heard_ms: Option<u64>,
    /// Present while it is unreachable.
    trouble: Option<Trouble>,
}

#[derive(Clone, Debug)]
struct Trouble {
    reason: String,
    probe_due_ms: u64,
}

impl Detector {
    /// Nobody has been heard, and everybody counts as reachable.
    pub fn new() -> Self {
        Self::default()
    }

    /// A request that was sent at `started_ms` was answered at `now_ms`, be it with an error of the application.
    pub fn succeeded(&mut self, member: &MemberId, started_ms: u64, now_ms: u64) {
        debug_assert!(started_ms <= now_ms, "a request ends after its start");
        let peer = self.peer(member);
        peer.heard_ms = peer.heard_ms.max(Some(now_ms));
        peer.trouble = None;
    }

    /// A request that was sent at `started_ms` got no answer by `now_ms`.
    ///
    /// The peer becomes unreachable, unless it has answered something after that request was sent: then the failure
    /// says less than the answer.
    pub fn failed(&mut self, member: &MemberId, started_ms: u64, now_ms: u64, reason: String) {
        debug_assert!(started_ms <= now_ms, "a request ends after its start");
        let peer = self.peer(member);
        if peer.heard_ms.is_some_and(|heard_ms| heard_ms > started_ms) {
            return;
        }
        // A failing probe does not shift the rhythm of probing.
        let probe_due_ms = peer
            .trouble
            .as_ref()
            .map_or(now_ms + PROBE_INTERVAL_MS, |trouble| trouble.probe_due_ms);
        peer.trouble = Some(Trouble {
            reason: shortened(reason),
            probe_due_ms,
        });
    }

    /// Whether requests to the peer are worth sending; unknown peers count as reachable.
    pub fn reachable(&self, member: &MemberId) -> bool {
        self.peers.get(member).is_none_or(|peer| peer.trouble.is_none())
    }

    /// Why the peer is unreachable; `None` if it is not.
    pub fn last_error(&self, member: &MemberId) -> Option<&str> {
        Some(self.peers.get(member)?.trouble.as_ref()?.reason.as_str())
    }

    /// All unreachable peers, ascending by id.
    pub fn unreachable(&self) -> impl Iterator<Item = &MemberId> {
        self.peers
            .iter()
            .filter(|(_, peer)| peer.trouble.is_some())
            .map(|(member, _)| member)
    }

    /// The unreachable peers to probe now: each once in [`PROBE_INTERVAL_MS`], however often this is asked.
    pub fn probes_due(&mut self, now_ms: u64) -> Vec<MemberId> {
        let mut due = Vec::new();
        for (member, peer) in &mut self.peers {
            if let Some(trouble) = peer
                .trouble
                .as_mut()
                .filter(|trouble| trouble.probe_due_ms <= now_ms)
            {
                trouble.probe_due_ms = now_ms + PROBE_INTERVAL_MS;
                due.push(member.clone());
            }
        }
        due
    }

    /// Forgets the peers that `keep` refuses, such as those that have left.
    pub fn retain(&mut self, keep: impl Fn(&MemberId) -> bool) {
        self.peers.retain(|member, _| keep(member));
    }

    fn peer(&mut self, member: &MemberId) -> &mut Peer {
        self.peers.entry(member.clone()).or_default()
    }
}

fn shortened(mut reason: String) -> String {
    if reason.len() > REASON_BYTES_MAX {
        let end = (0..=REASON_BYTES_MAX)
            .rev()
            .find(|end| reason.is_char_boundary(*end))
            .unwrap_or(0);
        reason.truncate(end);
    }
    reason
}
