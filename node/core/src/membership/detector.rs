//! Who answers this node. Purely local: nothing here is told to others or believed from them. Paper: §4.8.3.
//!
//! Only answers to this node's own requests count. A request *from* a peer proves nothing about the way to it: a
//! network may be cut in one direction.
//!
//! ```text
//!   refused, or the connection broke    unreachable at once
//!   silent                              unreachable after three time-outs, each of a request sent after the one before,
//!                                       with nothing heard in between
//!   slow                                reachable: a probe with more patience answers in between
//! ```
//! How long a read waits follows the peer's own round trips.

use std::collections::BTreeMap;

use crate::types::MemberId;

/// An unreachable peer is probed this often.
pub const PROBE_INTERVAL_MS: u64 = 1000;
/// So many time-outs one after the other make a silent peer unreachable.
pub const TIMEOUTS_MAX: u32 = 3;
/// The shortest time-out is this part of the longest.
pub const TIMEOUT_PARTS: u64 = 2;
/// How fast a peer was longer ago says nothing of how fast it is.
pub const PACE_MS: u64 = 1000;
/// Longest reason kept.
pub const REASON_BYTES_MAX: usize = 256;

/// How a request failed to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// No connection, or it broke: nobody is there.
    Refused,
    /// Nothing came in time: nobody, or somebody slow.
    TimedOut,
}

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
    /// Its round trips; none before the first.
    trips: Option<Trips>,
    /// Time-outs one after the other, and when the last of them was noticed.
    timeouts: u32,
    timed_out_ms: u64,
    /// Present while it is unreachable.
    trouble: Option<String>,
    /// Of one that is silent or unreachable.
    probe_due_ms: u64,
}

/// How fast a peer is, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// What a read takes.
    pub mean_us: u64,
    /// A read that takes longer is late.
    pub late_us: u64,
    /// One is late, and none has been answered since.
    pub is_late: bool,
}

/// A mean of the last round trips and how far they lie from it, in microseconds, as TCP has them.
#[derive(Clone, Copy, Debug)]
struct Trips {
    mean_us: u64,
    deviation_us: u64,
    /// When the last one ended.
    last_ms: u64,
    /// Another one should have ended since.
    is_late: bool,
}

impl Trips {
    fn with(trips: Option<Self>, trip_us: u64, last_ms: u64) -> Self {
        let Some(Self {
            mean_us,
            deviation_us,
            ..
        }) = trips
        else {
            return Self {
                mean_us: trip_us,
                deviation_us: trip_us / 2,
                last_ms,
                is_late: false,
            };
        };
        Self {
            mean_us: (7 * mean_us + trip_us) / 8,
            deviation_us: (3 * deviation_us + mean_us.abs_diff(trip_us)) / 4,
            last_ms,
            is_late: false,
        }
    }
}

impl Detector {
    /// Nobody has been heard, and everybody counts as reachable. A request waits for `timeout_max_ms` at most.
    pub fn new(timeout_max_ms: u64) -> Self {
        Self {
            peers: BTreeMap::new(),
            timeout_max_ms: timeout_max_ms.max(1),
        }
    }

    /// A request that was sent at `started_ms` was answered at `now_ms`, be it with an error of the application.
    pub fn succeeded(&mut self, member: &MemberId, started_ms: u64, now_ms: u64) {
        debug_assert!(started_ms <= now_ms, "a request ends after its start");
        let peer = self.peer(member);
        peer.heard_ms = peer.heard_ms.max(Some(now_ms));
        peer.trouble = None;
        peer.timeouts = 0;
    }

    /// A read of one record at a peer took so long from its sending to its answer, which came at `now_ms`.
    pub fn round_trip(&mut self, member: &MemberId, trip_us: u64, now_ms: u64) {
        let peer = self.peer(member);
        peer.trips = Some(Trips::with(peer.trips, trip_us, now_ms));
    }

    /// A read of one record at a peer should have been answered by now.
    pub fn late(&mut self, member: &MemberId) {
        if let Some(trips) = self.peers.get_mut(member).and_then(|peer| peer.trips.as_mut()) {
            trips.is_late = true;
        }
    }

    /// A request that was sent at `started_ms` got no answer by `now_ms`.
    ///
    /// A peer that refuses becomes unreachable, and so does one that is silent for the third time; unless it has answered
    /// something after that request was sent: then the failure says less than the answer. Of requests that wait at the
    /// same time one counts, and none whose caller waited for less than the shortest time-out.
    pub fn failed(
        &mut self,
        member: &MemberId,
        silence: Silence,
        (started_ms, now_ms): (u64, u64),
        reason: String,
    ) {
        debug_assert!(started_ms <= now_ms, "a request ends after its start");
        let patience_ms = self.timeout_max_ms / TIMEOUT_PARTS;
        let peer = self.peer(member);
        if peer.heard_ms.is_some_and(|heard_ms| heard_ms > started_ms) {
            return;
        }
        let calm = peer.trouble.is_none() && peer.timeouts == 0;
        if silence == Silence::TimedOut && peer.trouble.is_none() {
            let another = peer.timeouts == 0 || peer.timed_out_ms <= started_ms;
            if !another || now_ms - started_ms < patience_ms {
                return;
            }
            peer.timeouts += 1;
            peer.timed_out_ms = now_ms;
            if calm {
                // One that may be only slow is asked at once.
                peer.probe_due_ms = now_ms;
            }
            if peer.timeouts < TIMEOUTS_MAX {
                return;
            }
        } else if calm {
            peer.probe_due_ms = now_ms + PROBE_INTERVAL_MS;
        }
        // A failing probe does not shift the rhythm of probing.
        peer.trouble = Some(shortened(reason));
    }

    /// How long a read of one record at the peer should wait for its answer: by its round trips, and twice as long after each
    /// time-out; between half of the longest and the longest, which also holds while nothing is known.
    /// Not for writes: they wait for a disk, whose next sync may take much longer than the last ones.
    pub fn timeout_ms(&self, member: &MemberId) -> u64 {
        let most = self.timeout_max_ms;
        let Some((trips, timeouts)) = self
            .peers
            .get(member)
            .and_then(|peer| Some((peer.trips?, peer.timeouts)))
        else {
            return most;
        };
        let usual_ms = (trips.mean_us + 8 * trips.deviation_us).div_ceil(1000);
        let least = (most / TIMEOUT_PARTS).max(1);
        (usual_ms.max(least) << timeouts.min(TIMEOUTS_MAX)).min(most)
    }

    /// How long the peer's last reads took, and from when on one is late: what TCP would wait for, four deviations beyond
    /// the mean, which is rare. `None` if there was none within [`PACE_MS`].
    pub fn pace(&self, member: &MemberId, now_ms: u64) -> Option<Pace> {
        let trips = self.peers.get(member)?.trips?;
        (now_ms.saturating_sub(trips.last_ms) <= PACE_MS).then_some(Pace {
            mean_us: trips.mean_us,
            late_us: trips.mean_us + 4 * trips.deviation_us,
            is_late: trips.is_late,
        })
    }

    /// Whether requests to the peer are worth sending; unknown peers count as reachable.
    pub fn reachable(&self, member: &MemberId) -> bool {
        self.peers.get(member).is_none_or(|peer| peer.trouble.is_none())
    }

    /// Why the peer is unreachable; `None` if it is not.
    pub fn last_error(&self, member: &MemberId) -> Option<&str> {
        self.peers.get(member)?.trouble.as_deref()
    }

    /// All unreachable peers, ascending by id.
    pub fn unreachable(&self) -> impl Iterator<Item = &MemberId> {
        self.peers
            .iter()
            .filter(|(_, peer)| peer.trouble.is_some())
            .map(|(member, _)| member)
    }

    /// The peer has asked something, or others have news of it: it runs. Whether it also answers shows a probe, which is due
    /// at once if the peer is doubted.
    pub fn sign_of_life(&mut self, member: &MemberId, now_ms: u64) {
        if let Some(peer) = self.peers.get_mut(member) {
            peer.probe_due_ms = peer.probe_due_ms.min(now_ms);
        }
    }

    /// The unreachable and the silent peers to probe now: each once in [`PROBE_INTERVAL_MS`], however often this is asked.
    /// A probe should wait longer than the longest time-out: what answers it late is slow, not gone.
    pub fn probes_due(&mut self, now_ms: u64) -> Vec<MemberId> {
        let mut due = Vec::new();
        for (member, peer) in &mut self.peers {
            let doubted = peer.trouble.is_some() || peer.timeouts > 0;
            if doubted && peer.probe_due_ms <= now_ms {
                peer.probe_due_ms = now_ms + PROBE_INTERVAL_MS;
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
