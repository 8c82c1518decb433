//! Who answers this node, and how fast. Purely local: nothing here is told to others or believed from them.
//! Paper: §4.8.3.
//!
//! Only answers to this node's own requests count. A request *from* a peer proves nothing about the way to it: a
//! network may be cut in one direction.
//!
//! Slow is not down. How long to wait for a peer follows its round trips; a time-out makes the next wait longer, and
//! only [`TIMEOUTS_UNTIL_UNREACHABLE`] time-outs of requests that were sent one after another, with no answer to
//! anything in between, make it unreachable. A connection that is refused or breaks does so at once.

use std::collections::BTreeMap;

use crate::types::MemberId;

/// An unreachable peer is probed this often.
pub const PROBE_INTERVAL_MS: u64 = 1000;
/// Shortest wait for an answer, unless the configured longest one is shorter.
pub const TIMEOUT_MIN_MS: u64 = 250;
/// Longest wait for an answer where none is configured.
pub const TIMEOUT_MAX_MS: u64 = 2000;
/// So many time-outs in a row, each of a request that was sent after the one before had ended.
pub const TIMEOUTS_UNTIL_UNREACHABLE: u32 = 3;
/// Longest reason kept.
pub const REASON_BYTES_MAX: usize = 256;

/// Every time-out in a row multiplies the wait by this.
const BACKOFF: u64 = 4;
/// Round trips are averaged in sixteenths of a millisecond.
const SCALE: u64 = 16;
/// A round trip longer than this is counted as this, so that one paused process does not spoil the average.
const ROUND_TRIP_MAX_MS: u64 = 60_000;

/// What this node's own requests have shown. Times are milliseconds of one monotonic clock.
#[derive(Clone, Debug)]
pub struct Detector {
    peers: BTreeMap<MemberId, Peer>,
    timeout_max_ms: u64,
}

#[derive(Clone, Debug, Default)]
struct Peer {
    /// When it last answered.
    heard_ms: Option<u64>,
    /// How long its answers take.
    pace: Option<Pace>,
    /// Time-outs in a row.
    timeouts: u32,
    /// When the last one that counted ended.
    timed_out_ms: u64,
    /// Present while it is unreachable.
    trouble: Option<Trouble>,
}

/// Smoothed round trip and its mean deviation, both scaled, as TCP keeps them (RFC 6298).
#[derive(Clone, Copy, Debug)]
struct Pace {
    mean: u64,
    deviation: u64,
}

#[derive(Clone, Debug)]
struct Trouble {
    reason: String,
    probe_due_ms: u64,
}

impl Default for Detector {
    fn default() -> Self {
        Self::new()
    }
}

impl Detector {
    /// Nobody has been heard, and everybody counts as reachable. Waits up to [`TIMEOUT_MAX_MS`].
    pub fn new() -> Self {
        Self::with_timeout_max(TIMEOUT_MAX_MS)
    }

    /// Like [`Detector::new`], with another longest wait; 0 counts as 1.
    pub fn with_timeout_max(timeout_max_ms: u64) -> Self {
        Self {
            peers: BTreeMap::new(),
            timeout_max_ms: timeout_max_ms.max(1),
        }
    }

    /// A request that was sent at `started_ms` was answered at `now_ms`, be it with an error of the application, and be
    /// it after its time-out.
    pub fn succeeded(&mut self, member: &MemberId, started_ms: u64, now_ms: u64) {
        debug_assert!(started_ms <= now_ms, "a request ends after its start");
        let peer = self.peer(member);
        let round_trip_ms = now_ms.saturating_sub(started_ms).min(ROUND_TRIP_MAX_MS);
        peer.pace = Some(Pace::after(peer.pace, round_trip_ms * SCALE));
        peer.heard_ms = peer.heard_ms.max(Some(now_ms));
        peer.timeouts = 0;
        peer.trouble = None;
    }

    /// A request that was sent at `started_ms` failed at `now_ms` for good: the connection was refused or broke, or
    /// somebody else answered there.
    ///
    /// The peer becomes unreachable, unless it has answered something after that request was sent: then the failure
    /// says less than the answer.
    pub fn failed(&mut self, member: &MemberId, started_ms: u64, now_ms: u64, reason: String) {
        debug_assert!(started_ms <= now_ms, "a request ends after its start");
        let peer = self.peer(member);
        if peer.heard_ms.is_none_or(|heard_ms| heard_ms <= started_ms) {
            peer.give_up(now_ms, reason);
        }
    }

    /// A request that was sent at `started_ms` had no answer by `now_ms`, and nobody waits any longer.
    ///
    /// It counts if nothing was heard since it was sent, and if it was sent after the last one that counted: many
    /// requests that wait at the same time are one time-out.
    pub fn timed_out(&mut self, member: &MemberId, started_ms: u64, now_ms: u64) {
        debug_assert!(started_ms <= now_ms, "a request ends after its start");
        let peer = self.peer(member);
        let answered = peer.heard_ms.is_some_and(|heard_ms| heard_ms > started_ms);
        let at_the_same_time = peer.timeouts > 0 && started_ms < peer.timed_out_ms;
        if answered || at_the_same_time {
            return;
        }
        peer.timeouts = peer.timeouts.saturating_add(1);
        peer.timed_out_ms = now_ms;
        if peer.timeouts >= TIMEOUTS_UNTIL_UNREACHABLE || peer.trouble.is_some() {
            let waited_ms = now_ms.saturating_sub(started_ms);
            peer.give_up(
                now_ms,
                format!(
                    "{} requests in a row had no answer, the last one within {waited_ms} ms",
                    peer.timeouts
                ),
            );
        }
    }

    /// How long to wait for the peer's next answer: well above its usual round trip, longer after a time-out. The
    /// configured longest wait for a peer that never answered or is unreachable.
    pub fn timeout_ms(&self, member: &MemberId) -> u64 {
        let known = self.peers.get(member).filter(|peer| peer.trouble.is_none());
        let Some((peer, pace)) = known.and_then(|peer| Some((peer, peer.pace?))) else {
            return self.timeout_max_ms;
        };
        let usual_ms = (2 * pace.mean + 4 * pace.deviation).div_ceil(SCALE);
        let backoff = BACKOFF.saturating_pow(peer.timeouts);
        usual_ms
            .max(TIMEOUT_MIN_MS)
            .saturating_mul(backoff)
            .min(self.timeout_max_ms)
    }

    /// The peer's usual round trip; `None` if it never answered.
    pub fn round_trip_ms(&self, member: &MemberId) -> Option<u64> {
        Some(self.peers.get(member)?.pace?.mean.div_ceil(SCALE))
    }

    /// After how long an answer is later than about 95 of 100: when to ask somebody else as well. `None` as above.
    pub fn hedge_after_ms(&self, member: &MemberId) -> Option<u64> {
        let pace = self.peers.get(member)?.pace?;
        // The mean deviation is about 0.8 standard deviations, and 95 % lie below 1.65 of these.
        Some((pace.mean + 2 * pace.deviation).div_ceil(SCALE).max(1))
    }

    /// Who of these usually answers first: reachable ones before others, measured ones before unmeasured ones; among
    /// equals the first named.
    pub fn fastest<'a>(&self, members: &'a [MemberId]) -> Option<&'a MemberId> {
        members.iter().min_by_key(|member| {
            let peer = self.peers.get(*member);
            let mean = peer.and_then(|peer| peer.pace).map(|pace| pace.mean);
            (!self.reachable(member), mean.is_none(), mean)
        })
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

impl Peer {
    fn give_up(&mut self, now_ms: u64, reason: String) {
        // A failing probe does not shift the rhythm of probing.
        let probe_due_ms = self
            .trouble
            .as_ref()
            .map_or(now_ms + PROBE_INTERVAL_MS, |trouble| trouble.probe_due_ms);
        self.trouble = Some(Trouble {
            reason: shortened(reason),
            probe_due_ms,
        });
    }
}

impl Pace {
    /// Takes another round trip into the average.
    fn after(before: Option<Self>, sample: u64) -> Self {
        let Some(Self { mean, deviation }) = before else {
            return Self {
                mean: sample,
                deviation: sample / 2,
            };
        };
        Self {
            mean: (7 * mean + sample) / 8,
            deviation: (3 * deviation + mean.abs_diff(sample)) / 4,
        }
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
