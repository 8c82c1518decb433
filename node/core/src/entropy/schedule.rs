//! Which two replicas compare which partition next, and when each pair last did. Paper: §4.7; row D39.
//!
//! Each pair of this node and a co-replica is due again at a random moment of the second half of its period, which is
//! `interval` × (N - 1), so that a partition is exchanged with one random co-replica per interval or more often. The
//! rest of the period is for pairs that have to wait. The one that is due longest comes first.

use std::collections::{BTreeMap, BTreeSet};

use crate::ring::Placement;
use crate::types::{MemberId, PartitionId};

/// A period is counted in this many parts.
const PARTS: u64 = 16;
/// A pair is due again between `DUE_FIRST` and `DUE_LAST` parts after its exchange began.
const DUE_FIRST: u64 = 9;
const DUE_LAST: u64 = 13;
/// A new pair is due within so many parts, so that a node that starts does not do everything at once.
const SPREAD: u64 = 8;

/// When this node exchanges what with whom. All times are monotonic, in milliseconds.
#[derive(Debug)]
pub struct Schedule {
    interval_ms: u64,
    period_ms: u64,
    paused: bool,
    peers: BTreeMap<MemberId, Peer>,
    /// Partitions of which an exchange is under way that this node began: one at a time, or two peers are asked for the same key.
    running: BTreeSet<PartitionId>,
    /// Partitions of which a peer has begun one that found a difference, and until when nobody else is let in.
    held: BTreeMap<PartitionId, (MemberId, u64)>,
}

/// An exchange to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Of what.
    pub partition: PartitionId,
    /// With whom.
    pub peer: MemberId,
}

/// About 80 bytes a pair: 16,384 partitions with two co-replicas each take less than 3 MiB.
#[derive(Debug, Default)]
struct Peer {
    /// By the moment they are due.
    queue: BTreeSet<(u64, PartitionId)>,
    pairs: BTreeMap<PartitionId, Pair>,
}

#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "three moments, with their unit")]
struct Pair {
    due_ms: u64,
    since_ms: u64,
    /// When the last finished exchange began.
    last_ms: Option<u64>,
}

impl Schedule {
    /// Nothing to exchange yet. `interval_ms` is the time in which a partition is exchanged with one co-replica.
    pub fn new(interval_ms: u64) -> Self {
        Self {
            interval_ms,
            period_ms: interval_ms,
            paused: false,
            peers: BTreeMap::new(),
            running: BTreeSet::new(),
            held: BTreeMap::new(),
        }
    }

    /// Takes over the pairs of a ring: the co-replicas of each partition of which `me` is a primary. Pairs that stay
    /// keep their times.
    pub fn place(&mut self, placement: &Placement, me: &MemberId, now_ms: u64, random: u64) {
        let ring = placement.ring();
        let mut pairs = BTreeSet::new();
        if let Some(me) = ring.index_of(me) {
            for partition in placement.partitions_of(me) {
                let others = placement
                    .primaries(partition)
                    .iter()
                    .map(|other| usize::from(*other));
                let others = others.filter(|other| *other != me);
                pairs.extend(others.map(|other| (ring.members()[other].id.clone(), partition)));
            }
        }
        self.set_pairs(&pairs, ring.factor(), now_ms, random);
    }

    /// Like [`place`](Self::place), for pairs of another origin. `n` replicas of each partition.
    pub fn set_pairs(&mut self, pairs: &BTreeSet<(MemberId, PartitionId)>, n: u32, now_ms: u64, random: u64) {
        self.period_ms = self.interval_ms.saturating_mul(u64::from(n.max(2) - 1));
        for (member, peer) in &mut self.peers {
            let wanted = |partition| pairs.contains(&(member.clone(), partition));
            peer.pairs.retain(|partition, _| wanted(*partition));
            peer.queue.retain(|(_, partition)| wanted(*partition));
        }
        self.peers.retain(|_, peer| !peer.pairs.is_empty());
        let spread_ms = self.parts(SPREAD);
        let mut random = Randoms(random);
        for (member, partition) in pairs {
            let peer = self.peers.entry(member.clone()).or_default();
            if !peer.pairs.contains_key(partition) {
                let pair = Pair {
                    due_ms: now_ms + random.up_to(spread_ms),
                    since_ms: now_ms,
                    last_ms: None,
                };
                peer.put(*partition, pair);
            }
        }
    }

    /// The exchange to begin now, if one is due with a peer that is `reachable`. Whoever takes it says by
    /// [`ended`](Self::ended) what became of it; until then its partition is not given out again.
    pub fn next(&mut self, now_ms: u64, reachable: &dyn Fn(&MemberId) -> bool) -> Option<Due> {
        if self.paused {
            return None;
        }
        self.held.retain(|_, (_, until_ms)| now_ms < *until_ms);
        let due = |(member, peer): (&MemberId, &Peer)| {
            let free = |(_, partition): &&(u64, PartitionId)| {
                !self.running.contains(partition) && !self.held.contains_key(partition)
            };
            let (due_ms, partition) = *peer.queue.iter().find(free)?;
            (due_ms <= now_ms && reachable(member)).then(|| (due_ms, partition, member.clone()))
        };
        let (due_ms, partition, member) = self.peers.iter().filter_map(due).min()?;
        if let Some(peer) = self.peers.get_mut(&member) {
            peer.queue.remove(&(due_ms, partition));
        }
        self.running.insert(partition);
        Some(Due {
            partition,
            peer: member,
        })
    }

    /// An exchange that began at `began_ms` is over. `finished` as in the
    /// [report](super::ExchangeReport::finished); one that is not is tried again soon.
    pub fn ended(&mut self, due: &Due, began_ms: u64, finished: bool, now_ms: u64, random: u64) {
        self.running.remove(&due.partition);
        let part_ms = self.parts(1);
        let (first_ms, spread_ms) = (self.parts(DUE_FIRST), self.parts(DUE_LAST - DUE_FIRST));
        let Some(peer) = self.peers.get_mut(&due.peer) else {
            return;
        };
        let Some(pair) = peer.pairs.get(&due.partition).copied() else {
            return;
        };
        let mut random = Randoms(random);
        let pair = if finished {
            Pair {
                due_ms: began_ms + first_ms + random.up_to(spread_ms),
                last_ms: Some(began_ms),
                ..pair
            }
        } else {
            let due_ms = now_ms + 1 + part_ms / 2 + random.up_to(part_ms / 2);
            Pair { due_ms, ..pair }
        };
        peer.put(due.partition, pair);
    }

    /// Whether a peer whose exchange of a partition found that something differs may go on with it. One at a time: two would
    /// compare the same keys. Whoever is let in keeps others out for a sixteenth of the period from its last question;
    /// whoever is not tries again soon.
    pub fn lets_in(&mut self, partition: PartitionId, peer: &MemberId, now_ms: u64) -> bool {
        let held = self.held.get(&partition);
        let by_another = held.is_some_and(|(holder, until_ms)| holder != peer && now_ms < *until_ms);
        if by_another || self.running.contains(&partition) {
            return false;
        }
        let until_ms = now_ms + self.parts(1);
        self.held.insert(partition, (peer.clone(), until_ms));
        true
    }

    /// Stops giving out exchanges; those under way are the caller's to stop.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Gives out exchanges again; what has become due meanwhile is due now.
    pub fn resume(&mut self) {
        self.paused = false;
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Makes all exchanges of a partition due at once: an administrator's `Repair`.
    pub fn hurry(&mut self, partition: PartitionId) {
        for peer in self.peers.values_mut() {
            if let Some(pair) = peer.pairs.get(&partition).copied()
                && peer.queue.contains(&(pair.due_ms, partition))
            {
                peer.put(partition, Pair { due_ms: 0, ..pair });
            }
        }
    }

    /// The time in which each pair is exchanged once: interval × (N - 1).
    pub fn period_ms(&self) -> u64 {
        self.period_ms
    }

    /// When the last finished exchange of a pair began; `None`: never, or no such pair.
    pub fn last_ms(&self, partition: PartitionId, peer: &MemberId) -> Option<u64> {
        self.peers.get(peer)?.pairs.get(&partition)?.last_ms
    }

    /// All pairs, with the beginning of their last finished exchange.
    pub fn pairs(&self) -> impl Iterator<Item = (&MemberId, PartitionId, Option<u64>)> {
        self.peers.iter().flat_map(|(member, peer)| {
            let pairs = peer.pairs.iter();
            pairs.map(move |(partition, pair)| (member, *partition, pair.last_ms))
        })
    }

    /// Pairs that had no exchange for more than a period, counted from the moment they became pairs: 0 is what row D39
    /// asks for while all peers answer.
    pub fn overdue(&self, now_ms: u64) -> usize {
        let pairs = self.peers.values().flat_map(|peer| peer.pairs.values());
        let latest_ms = |pair: &Pair| pair.last_ms.unwrap_or(pair.since_ms);
        pairs
            .filter(|pair| now_ms.saturating_sub(latest_ms(pair)) > self.period_ms)
            .count()
    }

    fn parts(&self, count: u64) -> u64 {
        self.period_ms.saturating_mul(count) / PARTS
    }
}

impl Peer {
    fn put(&mut self, partition: PartitionId, pair: Pair) {
        if let Some(before) = self.pairs.insert(partition, pair) {
            self.queue.remove(&(before.due_ms, partition));
        }
        self.queue.insert((pair.due_ms, partition));
    }
}

/// Makes many random numbers of one (SplitMix64).
struct Randoms(u64);

impl Randoms {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// 0 to `most`, both included.
    fn up_to(&mut self, most: u64) -> u64 {
        match most.checked_add(1) {
            Some(count) => self.next() % count,
            None => self.next(),
        }
    }
}
