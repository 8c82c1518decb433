//! Primaries that gets did not ask, compared behind them, as `node/src/background/checks.rs` does. Paper: §5.

use std::rc::Rc;

use dynamo_core::entropy::record_hash;
use dynamo_core::types::MemberId;
use dynamo_core::version::KeyState;

use super::Live;
use crate::keys::KeyIx;
use crate::messages::{NodeIx, Reply, Request};
use crate::shared::Timer;

/// How long a key waits for company.
const EVERY_MS: u64 = 50;

impl Live<'_> {
    /// A get did not ask this primary.
    pub fn left_out(&mut self, key: KeyIx, member: &MemberId) {
        self.sh.stats.left_out += 1;
        if self.p.left_out.is_empty() {
            self.timer(EVERY_MS, Timer::Compare);
        }
        let peer = self.sh.index_of(member);
        self.p.left_out.insert((peer, key));
    }

    /// Compares what gets have left out.
    pub fn compare_round(&mut self) {
        let left_out = std::mem::take(&mut self.p.left_out);
        let peers: Vec<NodeIx> = (0..self.sh.knobs.nodes)
            .filter(|peer| left_out.iter().any(|(left_out, _)| left_out == peer))
            .collect();
        for peer in peers {
            let keys = left_out.iter().filter(|(left_out, _)| *left_out == peer);
            let digests = keys.map(|(_, key)| (*key, self.digest(*key))).collect();
            let timeout_ms = self.sh.knobs.call_timeout_ms;
            self.call(peer, timeout_ms, Request::Compare(digests), |live, result| {
                // What cannot be compared now is brought by hints and exchanges.
                if let Ok(Reply::Compared(differing)) = result {
                    for key in differing {
                        live.repair_by_get(key);
                    }
                }
            });
        }
    }

    /// Those of a peer's keys of which this node has another state.
    pub fn differing(&mut self, keys: Vec<(KeyIx, Option<u64>)>) -> Vec<KeyIx> {
        let differs = |(key, digest): (KeyIx, Option<u64>)| (self.digest(key) != digest).then_some(key);
        keys.into_iter().filter_map(differs).collect()
    }

    fn digest(&mut self, key: KeyIx) -> Option<u64> {
        let state: Option<Rc<KeyState>> = self.load(key, false).ok().flatten();
        state.map(|state| record_hash(&[], &state.encode()))
    }
}
