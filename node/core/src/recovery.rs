//! How a store that cannot be trusted becomes whole again. Paper: none (§4.6 and §4.7 take a returning store at its
//! word).
//!
//! A store is *suspect* when it has lost writes that it acknowledged: it is empty where it was not, or peers know of
//! later synced writes than it has. It takes writes at once. But it fills no quorum of a read, is no source for other
//! replicas and has no say in reaping, until each of its partitions is whole: until it has pulled everything from so
//! many of the other primaries that one of them is among any W which acknowledged a write.
//!
//! ```text
//!   start ── longest request deadline ──▶ earliest ── pull-only exchanges ──▶ min(N - 1, N - W + 1) sources: whole
//!            a request that counted the lost                   begun from here on, with primaries that are
//!            disk's answer may still be under way               not suspect themselves
//! ```
//!
//! An exchange that begins sooner may look at a peer before a write reaches it that the lost disk and that peer
//! acknowledge: the write would be on one replica that reads may leave out.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::entropy::ExchangeReport;
use crate::ring::{PARTITIONS_MAX, Placement};
use crate::types::{MemberId, PartitionId};
use crate::version::{open_frame, seal_frame};
use crate::wire::{DecodeError, Reader, put_bytes, put_varint};

const FORMAT_VERSION: u8 = 1;
/// Number, wholeness and number of sources.
const PARTITION_BYTES_MIN: usize = 3;
/// A length and a letter.
const SOURCE_BYTES_MIN: usize = 2;

/// What a suspect store has pulled and what it needs before it is believed. Times are monotonic, in milliseconds.
///
/// Exists from the moment that a store is found suspect until it [is whole](Self::is_whole) and
/// [may be trusted](crate::transition::Transition::may_be_trusted). It is persisted whenever [`ended`](Self::ended) returns
/// true, after the store is synced, and belongs to this one suspicion: a store that is found to have lost writes *again*
/// begins anew and does not read what it has persisted.
#[derive(Debug)]
pub struct Recovery {
    earliest_ms: u64,
    partitions: BTreeMap<PartitionId, Partition>,
    /// No placement has been told of: nothing is known to be whole.
    placed: bool,
    running: BTreeSet<PartitionId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Partition {
    whole: bool,
    /// The other primaries.
    others: BTreeSet<MemberId>,
    /// How many of them must have been pulled from.
    needed: usize,
    /// Those that have been.
    pulled: BTreeSet<MemberId>,
}

/// How far a store has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecoveryProgress {
    /// Partitions that this node is a primary of.
    pub partitions: usize,
    /// Of these, partitions that are whole.
    pub whole: usize,
    /// Exchanges that the others still need.
    pub exchanges_left: usize,
}

impl Recovery {
    /// Begins for a process that started at `start_ms`. `longest_deadline_ms` is the longest time that any request,
    /// at any node, may take.
    pub fn begin(start_ms: u64, longest_deadline_ms: u64) -> Self {
        Self {
            earliest_ms: start_ms.saturating_add(longest_deadline_ms),
            partitions: BTreeMap::new(),
            placed: false,
            running: BTreeSet::new(),
        }
    }

    /// Takes over a ring: the partitions that `me` is a primary of, and who else is. `lowest_w` is the lowest W that
    /// any bucket or request may ask for. What is whole stays whole; of what was pulled, only what came from
    /// members that are still primaries counts. Nobody waits for the `dead`: what only they held is lost.
    pub fn place(&mut self, placement: &Placement, me: &MemberId, lowest_w: u32, dead: &BTreeSet<MemberId>) {
        let ring = placement.ring();
        let me = ring.index_of(me);
        let mut partitions = BTreeMap::new();
        for partition in me.into_iter().flat_map(|me| placement.partitions_of(me)) {
            let others = placement
                .primaries(partition)
                .iter()
                .map(|other| usize::from(*other));
            let others = others.filter(|other| Some(*other) != me);
            let others = others.map(|other| ring.members()[other].id.clone()).collect();
            partitions.insert(partition, others);
        }
        self.take_over(partitions, lowest_w, dead);
    }

    /// Like [`place`](Self::place), for partitions and other primaries from elsewhere.
    pub fn set_partitions(&mut self, others: BTreeMap<PartitionId, BTreeSet<MemberId>>, lowest_w: u32) {
        self.take_over(others, lowest_w, &BTreeSet::new());
    }

    fn take_over(
        &mut self,
        others: BTreeMap<PartitionId, BTreeSet<MemberId>>,
        lowest_w: u32,
        dead: &BTreeSet<MemberId>,
    ) {
        self.placed = true;
        let mut before = std::mem::take(&mut self.partitions);
        for (partition, mut others) in others {
            let mut kept = before.remove(&partition).unwrap_or_default();
            let n = others.len() + 1;
            others.retain(|member| !dead.contains(member));
            kept.needed = others.len().min(n + 1 - (lowest_w as usize).clamp(1, n));
            kept.pulled.retain(|member| others.contains(member));
            kept.others = others;
            kept.settle();
            self.partitions.insert(partition, kept);
        }
    }

    /// Whether this replica of a partition may fill a read's quorum, be a source for others and agree to a reaping.
    /// Of partitions that it is no primary of by the base ring: not before the suspicion is over, for what another ring
    /// makes it hold it may never have had.
    pub fn answers_reads(&self, partition: PartitionId) -> bool {
        let partition = self.partitions.get(&partition);
        partition.is_some_and(|partition| partition.whole)
    }

    /// Nothing is left to get back of what the ring taken over makes this node hold.
    pub fn is_whole(&self) -> bool {
        self.placed && self.partitions.values().all(|partition| partition.whole)
    }

    /// The pull-only exchange to begin now: of a random partition that is not whole, with a random one of its
    /// primaries that has not been pulled from and is a `source`: reachable, and not suspect as far as is known.
    ///
    /// Whoever takes it says by [`ended`](Self::ended) what became of it; until then its partition is not given out
    /// again. Each exchange must begin, and copy this replica's tree, no sooner than this call.
    pub fn next(
        &mut self,
        now_ms: u64,
        source: &dyn Fn(&MemberId) -> bool,
        random: u64,
    ) -> Option<(PartitionId, MemberId)> {
        if now_ms < self.earliest_ms {
            return None;
        }
        let open = |(id, partition): &(&PartitionId, &Partition)| {
            !partition.whole && !self.running.contains(id) && partition.sources(source).next().is_some()
        };
        let count = self.partitions.iter().filter(open).count() as u64;
        if count == 0 {
            return None;
        }
        let picked = (random % count) as usize;
        let (id, partition) = self.partitions.iter().filter(open).nth(picked)?;
        let sources: Vec<&MemberId> = partition.sources(source).collect();
        let member = sources[(random / count % sources.len() as u64) as usize].clone();
        let id = *id;
        self.running.insert(id);
        Some((id, member))
    }

    /// An exchange that began at `began_ms` has ended. True if it counts, so that the new state is to be persisted.
    ///
    /// It counts if it was complete, which it never is with a suspect source, began in time, and was with a
    /// primary.
    pub fn ended(
        &mut self,
        partition: PartitionId,
        source: &MemberId,
        began_ms: u64,
        report: &ExchangeReport,
    ) -> bool {
        self.running.remove(&partition);
        let Some(partition) = self.partitions.get_mut(&partition) else {
            return false;
        };
        let counts = report.complete && began_ms >= self.earliest_ms && partition.others.contains(source);
        if counts {
            partition.pulled.insert(source.clone());
            partition.settle();
        }
        counts
    }

    /// An administrator's word that nobody else can tell more: a partition counts as whole. True if it did not before:
    /// acknowledged writes may be lost, and that must be reported.
    pub fn accept_loss(&mut self, partition: PartitionId) -> bool {
        let partition = self.partitions.get_mut(&partition);
        partition.is_some_and(|partition| !std::mem::replace(&mut partition.whole, true))
    }

    /// The partitions that are not whole, ascending.
    pub fn open(&self) -> impl Iterator<Item = PartitionId> {
        let open = self.partitions.iter().filter(|(_, partition)| !partition.whole);
        open.map(|(id, _)| *id)
    }

    /// How far it has come.
    pub fn progress(&self) -> RecoveryProgress {
        let left = |partition: &Partition| partition.needed.saturating_sub(partition.pulled.len());
        let open = || self.partitions.values().filter(|partition| !partition.whole);
        RecoveryProgress {
            partitions: self.partitions.len(),
            whole: self.partitions.len() - open().count(),
            exchanges_left: open().map(left).sum(),
        }
    }

    /// When the first exchange may begin.
    pub fn earliest_ms(&self) -> u64 {
        self.earliest_ms
    }

    /// What survives a restart, format version 1: a checksummed frame around
    /// ```text
    /// varint   number of partitions, then for each, ascending: varint id, 1 byte whole,
    ///          varint number of sources that were pulled from, then their ids, ascending, with their lengths
    /// ```
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        seal_frame(&mut out, FORMAT_VERSION, |out| {
            put_varint(out, self.partitions.len() as u64);
            for (id, partition) in &self.partitions {
                put_varint(out, u64::from(id.0));
                out.push(u8::from(partition.whole));
                put_varint(out, partition.pulled.len() as u64);
                for member in &partition.pulled {
                    put_bytes(out, member.as_str().as_bytes());
                }
            }
        });
        out.into()
    }

    /// Goes on after a restart with what [`encode`](Self::encode) wrote; [`place`](Self::place) must follow. The times
    /// are as in [`begin`](Self::begin): of the new process, so that no exchange begins while a request is under way
    /// that the old one took part in.
    ///
    /// # Errors
    /// If the bytes are not the encoding of a recovery. The store is then suspect from the beginning.
    pub fn decode(bytes: Bytes, start_ms: u64, longest_deadline_ms: u64) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(open_frame(bytes, FORMAT_VERSION)?);
        let mut recovery = Self::begin(start_ms, longest_deadline_ms);
        let count = reader.count(PARTITION_BYTES_MIN)?;
        for _ in 0..count {
            let id = u32::try_from(reader.varint()?).ok();
            let id = id.filter(|id| *id < PARTITIONS_MAX).map(PartitionId);
            let id = id.ok_or(DecodeError::Invalid("partition"))?;
            let last = recovery.partitions.last_key_value();
            if last.is_some_and(|(last, _)| *last >= id) {
                return Err(DecodeError::Invalid("order of partitions"));
            }
            recovery.partitions.insert(id, read_partition(&mut reader)?);
        }
        reader.finish()?;
        Ok(recovery)
    }
}

impl Partition {
    fn sources<'a>(&'a self, source: &'a dyn Fn(&MemberId) -> bool) -> impl Iterator<Item = &'a MemberId> {
        let left = self.others.difference(&self.pulled);
        left.filter(move |member| source(member))
    }

    /// Whole once, whole for good: what was pulled is here.
    fn settle(&mut self) {
        self.whole |= self.pulled.len() >= self.needed;
    }
}

fn read_partition(reader: &mut Reader) -> Result<Partition, DecodeError> {
    let whole = match reader.byte()? {
        0 => false,
        1 => true,
        _ => return Err(DecodeError::Invalid("wholeness of a partition")),
    };
    let mut pulled = BTreeSet::new();
    for _ in 0..reader.count(SOURCE_BYTES_MIN)? {
        let member = String::from_utf8(reader.bytes()?.to_vec()).ok();
        let member = member.and_then(|member| MemberId::new(member).ok());
        let member = member.ok_or(DecodeError::Invalid("member id"))?;
        if pulled.last().is_some_and(|last| *last >= member) {
            return Err(DecodeError::Invalid("order of sources"));
        }
        pulled.insert(member);
    }
    Ok(Partition {
        whole,
        pulled,
        ..Partition::default()
    })
}
