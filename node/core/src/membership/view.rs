//! Everything one node knows about the cluster: the members' statements, the ring, and the rings before it.
//!
//! Two nodes bring each other up to date in three messages, and equal ones in two that hold digests alone:
//! the first sends its [`Digest`]; the second answers with what it knows better ([`Delta`]) and what it wants
//! ([`Wanted`]); the first sends that. Merging is idempotent and commutative, so lost, repeated and reordered messages
//! do no harm. Paper: §4.8.1.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::codec;
use super::entry::{EntryError, MemberEntry};
use crate::bucket::{BucketPolicy, Buckets, BucketsDigest, PolicyError};
use crate::ring::Ring;
use crate::types::{ClusterId, Incarnation, MemberId};
use crate::wire::DecodeError;

/// Most members that a view holds.
pub const MEMBERS_MAX: usize = crate::ring::MEMBERS_MAX;
/// Most entries of one delta, about 1 MB; what is left over comes with the next round.
pub const DELTA_ENTRIES_MAX: usize = 1024;
/// Most past rings of one delta.
pub const DELTA_LOG_MAX: usize = 100;
/// Rings that the membership log keeps.
pub const LOG_ENTRIES_MAX: usize = 1000;

/// One node's knowledge. Only [`View::update_self`] changes what it says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    cluster: ClusterId,
    me: MemberId,
    entries: BTreeMap<MemberId, MemberEntry>,
    ring: Option<Arc<Ring>>,
    log: VecDeque<LogEntry>,
    buckets: Buckets,
    history: SelfHistory,
}

/// What this node's disk remembers of itself, to be compared with what others do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SelfHistory {
    /// The life before this start; the same one if it goes on.
    pub previous: Option<Incarnation>,
    /// The store's sequence number as this start found it.
    pub recovered: u64,
}

/// A ring that this node has accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its epoch.
    pub epoch: u64,
    /// Its hash.
    pub hash: u64,
    /// Its members, ascending.
    pub members: Vec<MemberId>,
}

/// How new a member's statement is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberDigest {
    /// Whose.
    pub member: MemberId,
    /// Which life.
    pub incarnation: Incarnation,
    /// Which statement of that life.
    pub version: u64,
}

/// Which ring; the larger wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RingVersion {
    /// Its epoch.
    pub epoch: u64,
    /// Its hash.
    pub hash: u64,
}

/// What a node knows, without the contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// The sender's cluster.
    pub cluster: ClusterId,
    /// One for each member.
    pub members: Vec<MemberDigest>,
    /// Absent while the node has no ring.
    pub ring: Option<RingVersion>,
    /// Equal on nodes that know the same policies.
    pub buckets: BucketsDigest,
}

/// Contents for another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The sender's cluster.
    pub cluster: ClusterId,
    /// At most [`DELTA_ENTRIES_MAX`].
    pub members: Vec<MemberEntry>,
    /// An encoded ring.
    pub ring: Option<Bytes>,
    /// With the ring: those before it, oldest first, at most [`DELTA_LOG_MAX`].
    pub log: Vec<LogEntry>,
    /// Encoded policies of buckets.
    pub buckets: Option<Bytes>,
}

/// What a node lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// At most [`DELTA_ENTRIES_MAX`].
    pub members: Vec<MemberId>,
    /// The ring too.
    pub ring: bool,
    /// The policies of buckets too.
    pub buckets: bool,
}

/// The reply to a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What this node knows better.
    pub delta: Delta,
    /// What the other knows better.
    pub wanted: Wanted,
}

/// What a merge has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Whose entries are new or newer, ascending.
    pub members: Vec<MemberId>,
    /// The ring is another.
    pub ring: bool,
    /// A bucket's policy is another.
    pub buckets: bool,
    /// Somebody else lives under this node's id, or has: the largest such incarnation. This node must not go on as
    /// it is (its volume is a copy or was rolled back, or another process took its identity).
    pub self_superseded: Option<Incarnation>,
    /// Parts of the delta that were not taken; worth a line in the log.
    pub refused: Vec<Refusal>,
}

/// Why a part of a delta was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The whole delta: it belongs to another cluster.
    #[error("gossip of cluster {0} refused: this node belongs to another")]
    ForeignCluster(ClusterId),
    /// The ring: its bytes are damaged or break a rule.
    #[error("a ring received by gossip was refused: {0}")]
    RingDamaged(DecodeError),
    /// The ring: it belongs to another cluster.
    #[error("a ring of cluster {0} refused: this node belongs to another")]
    RingForeign(ClusterId),
    /// The policies of buckets: their bytes are damaged or break a rule.
    #[error("policies of buckets received by gossip were refused: {0}")]
    BucketsDamaged(DecodeError),
    /// An entry is out of bounds.
    #[error("an entry received by gossip was refused: {0}")]
    Entry(#[from] EntryError),
    /// There is no room for another member.
    #[error("the entry of member {0} was refused: {MEMBERS_MAX} members are known already")]
    Full(MemberId),
}

impl From<&Ring> for RingVersion {
    fn from(ring: &Ring) -> Self {
        Self {
            epoch: ring.epoch(),
            hash: ring.hash(),
        }
    }
}

impl View {
    /// What a node knows that has just been told its identity; `me` must be within bounds.
    pub fn new(cluster: ClusterId, me: MemberEntry, ring: Option<Arc<Ring>>) -> Self {
        let mut view = Self {
            cluster,
            me: me.member.clone(),
            entries: BTreeMap::from([(me.member.clone(), me)]),
            ring: None,
            log: VecDeque::new(),
            buckets: Buckets::new(),
            history: SelfHistory::default(),
        };
        if let Some(ring) = ring {
            view.adopt(ring);
        }
        view
    }

    /// The cluster.
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster
    }

    /// Says what this node's disk remembers: a delta then exposes a store that was put back in time.
    pub fn set_history(&mut self, history: SelfHistory) {
        self.history = history;
    }

    /// The policies of the cluster's buckets.
    pub fn buckets(&self) -> &Buckets {
        &self.buckets
    }

    /// Takes an administrator's new policy of a bucket.
    ///
    /// # Errors
    /// If it is none, or was made from an old one; see [`Buckets::put`].
    pub fn put_bucket(&mut self, policy: BucketPolicy) -> Result<(), PolicyError> {
        self.buckets.put(policy)
    }

    pub(super) fn set_buckets(&mut self, buckets: Buckets) {
        self.buckets = buckets;
    }

    /// What this node says about itself.
    pub fn me(&self) -> &MemberEntry {
        &self.entries[&self.me]
    }

    /// All members that ever said something, this node included, ascending by id.
    pub fn members(&self) -> impl ExactSizeIterator<Item = &MemberEntry> {
        self.entries.values()
    }

    /// What a member says about itself.
    pub fn get(&self, member: &MemberId) -> Option<&MemberEntry> {
        self.entries.get(member)
    }

    /// The newest ring known.
    pub fn ring(&self) -> Option<&Arc<Ring>> {
        self.ring.as_ref()
    }

    /// Rings that this node has accepted, oldest first, the last [`LOG_ENTRIES_MAX`].
    pub fn log(&self) -> impl ExactSizeIterator<Item = &LogEntry> {
        self.log.iter()
    }

    /// Changes what this node says about itself; the statement becomes newer than the last.
    ///
    /// The id cannot be changed.
    pub fn update_self(&mut self, change: impl FnOnce(&mut MemberEntry)) {
        if let Some(entry) = self.entries.get_mut(&self.me) {
            change(entry);
            entry.member = self.me.clone();
            entry.version += 1;
        }
    }

    /// Takes a ring minted on this node; `false` if it is not the largest known or belongs to another cluster.
    pub fn adopt(&mut self, ring: Arc<Ring>) -> bool {
        let newer = self
            .ring
            .as_ref()
            .is_none_or(|mine| mine.version() < ring.version());
        if !newer || ring.cluster_id() != self.cluster {
            return false;
        }
        if self.log.len() == LOG_ENTRIES_MAX {
            self.log.pop_front();
        }
        self.log.push_back(LogEntry {
            epoch: ring.epoch(),
            hash: ring.hash(),
            members: ring.members().iter().map(|member| member.id.clone()).collect(),
        });
        self.ring = Some(ring);
        true
    }

    /// What this node knows, without the contents.
    pub fn digest(&self) -> Digest {
        let digest = |entry: &MemberEntry| MemberDigest {
            member: entry.member.clone(),
            incarnation: entry.incarnation,
            version: entry.version,
        };
        Digest {
            cluster: self.cluster,
            members: self.entries.values().map(digest).collect(),
            ring: self.ring.as_deref().map(RingVersion::from),
            buckets: self.buckets.digest(),
        }
    }

    /// Another life of this member than its own, no earlier one, that another node knows of: see
    /// [`Changes::self_superseded`]. To be asked before the [answer](Self::answer), which would make the other node forget it.
    pub fn exposed_by(&self, digest: &Digest) -> Option<Incarnation> {
        let mine = self.me().incarnation;
        let mut lives = digest.members.iter().filter(|entry| entry.member == self.me);
        let known = lives.next()?.incarnation;
        (digest.cluster == self.cluster && is_another_life(mine, known)).then_some(known)
    }

    /// Compares another node's knowledge with this one's. A foreign digest is answered with nothing.
    ///
    /// What is known of two lives that began from the same one is told even if the other's is the larger: one of them
    /// is that of a volume which was emptied or copied, and its node has to hear of it.
    pub fn answer(&self, digest: &Digest) -> Answer {
        let mut delta = self.empty_delta();
        let mut wanted = Wanted::default();
        if digest.cluster != self.cluster {
            return Answer { delta, wanted };
        }
        let theirs: BTreeMap<&MemberId, (Incarnation, u64)> = digest
            .members
            .iter()
            .take(MEMBERS_MAX)
            .map(|entry| (&entry.member, (entry.incarnation, entry.version)))
            .collect();
        let newer = |entry: &&MemberEntry| {
            theirs
                .get(&entry.member)
                .is_none_or(|order| *order < entry.order() || rivals(order.0, entry.incarnation))
        };
        delta.members = self
            .entries
            .values()
            .filter(newer)
            .take(DELTA_ENTRIES_MAX)
            .cloned()
            .collect();
        let older = |id: &MemberId, order| self.entries.get(id).is_none_or(|entry| entry.order() < order);
        wanted.members = theirs
            .into_iter()
            .filter(|(id, order)| older(id, *order))
            .take(DELTA_ENTRIES_MAX)
            .map(|(id, _)| id.clone())
            .collect();
        let my_ring = self.ring.as_deref().map(RingVersion::from);
        wanted.ring = my_ring < digest.ring;
        if my_ring > digest.ring {
            self.add_ring(&mut delta);
        }
        if digest.buckets != self.buckets.digest() {
            delta.buckets = Some(self.buckets.encode());
            wanted.buckets = true;
        }
        Answer { delta, wanted }
    }

    /// The contents that another node asked for.
    pub fn delta_for(&self, wanted: &Wanted) -> Delta {
        let mut delta = self.empty_delta();
        let known = wanted
            .members
            .iter()
            .take(DELTA_ENTRIES_MAX)
            .filter_map(|id| self.entries.get(id));
        delta.members = known.cloned().collect();
        if wanted.ring {
            self.add_ring(&mut delta);
        }
        if wanted.buckets {
            delta.buckets = Some(self.buckets.encode());
        }
        delta
    }

    /// Takes what is newer. Nothing in a delta changes what this node says about itself, except that its version is
    /// raised above one that is already out, so that the next change is heard.
    pub fn merge(&mut self, delta: Delta) -> Changes {
        let mut changes = Changes::default();
        if delta.cluster != self.cluster {
            changes.refused.push(Refusal::ForeignCluster(delta.cluster));
            return changes;
        }
        if let Some(bytes) = delta.buckets {
            match Buckets::decode(bytes) {
                Ok(buckets) => changes.buckets = self.buckets.merge(&buckets),
                Err(error) => changes.refused.push(Refusal::BucketsDamaged(error)),
            }
        }
        let log = delta.log;
        // The ring goes first: its members are those for whom room is made.
        if let Some(bytes) = delta.ring {
            match self.check_ring(bytes) {
                Ok(ring) => changes.ring = self.adopt(Arc::new(ring)),
                Err(refusal) => changes.refused.push(refusal),
            }
        }
        self.remember(log);
        for entry in delta.members.into_iter().take(DELTA_ENTRIES_MAX) {
            if let Err(error) = entry.check() {
                changes.refused.push(error.into());
            } else if entry.member == self.me {
                self.hear_of_myself(&entry, &mut changes);
            } else {
                self.hear_of(entry, &mut changes);
            }
        }
        changes.members.sort();
        changes.members.dedup();
        changes
    }

    /// The persisted form, with a format version and a checksum.
    pub fn encode(&self) -> Bytes {
        codec::encode(self)
    }

    /// Reads what [`View::encode`] wrote. The node then says what is new about itself by [`View::update_self`].
    ///
    /// # Errors
    /// If the bytes are damaged or of an unknown format.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        codec::decode(bytes)
    }

    pub(super) fn from_parts(
        cluster: ClusterId,
        me: MemberId,
        entries: BTreeMap<MemberId, MemberEntry>,
        ring: Option<Arc<Ring>>,
        log: VecDeque<LogEntry>,
    ) -> Self {
        Self {
            cluster,
            me,
            entries,
            ring,
            log,
            buckets: Buckets::new(),
            history: SelfHistory::default(),
        }
    }

    fn add_ring(&self, delta: &mut Delta) {
        delta.ring = self.ring.as_ref().map(|ring| ring.encode());
        let skipped = self.log.len().saturating_sub(DELTA_LOG_MAX);
        delta.log = self.log.iter().skip(skipped).cloned().collect();
    }

    /// Adds past rings that this node has missed, so that all nodes tell the same history.
    fn remember(&mut self, past: Vec<LogEntry>) {
        let newest = self.ring.as_deref().map(RingVersion::from);
        for entry in past.into_iter().take(DELTA_LOG_MAX) {
            let order = (entry.epoch, entry.hash);
            let place = self
                .log
                .partition_point(|known| (known.epoch, known.hash) < order);
            let known = self
                .log
                .get(place)
                .is_some_and(|known| (known.epoch, known.hash) == order);
            let past = newest.is_some_and(|newest| (newest.epoch, newest.hash) > order);
            if !known && past && self.log.len() < LOG_ENTRIES_MAX && entry.members.len() <= MEMBERS_MAX {
                self.log.insert(place, entry);
            }
        }
    }

    fn empty_delta(&self) -> Delta {
        Delta {
            cluster: self.cluster,
            members: Vec::new(),
            ring: None,
            log: Vec::new(),
            buckets: None,
        }
    }

    fn check_ring(&self, bytes: Bytes) -> Result<Ring, Refusal> {
        let ring = Ring::decode(bytes).map_err(Refusal::RingDamaged)?;
        if ring.cluster_id() == self.cluster {
            Ok(ring)
        } else {
            Err(Refusal::RingForeign(ring.cluster_id()))
        }
    }

    fn hear_of(&mut self, entry: MemberEntry, changes: &mut Changes) {
        let known = self.entries.get(&entry.member).map(MemberEntry::order);
        if known.is_some_and(|known| known >= entry.order()) {
            return;
        }
        if known.is_none() && !self.make_room(&entry.member) {
            changes.refused.push(Refusal::Full(entry.member));
            return;
        }
        changes.members.push(entry.member.clone());
        self.entries.insert(entry.member.clone(), entry);
    }

    fn hear_of_myself(&mut self, entry: &MemberEntry, changes: &mut Changes) {
        let Some(me) = self.entries.get_mut(&self.me) else {
            return;
        };
        let (mine, theirs) = (me.incarnation, entry.incarnation);
        let another_life = is_another_life(mine, theirs);
        // The same life has been started more often than this volume remembers: an older copy of it runs here.
        let later_start = theirs.id == mine.id && entry.starts > me.starts;
        // The life that this disk goes on from has had more on it than was found.
        // What this life has said itself, since it began, comes back, too: that is no older than what is known.
        let not_mine = theirs != mine || entry.version > me.version;
        let rolled_back =
            self.history.previous == Some(theirs) && not_mine && entry.synced > self.history.recovered;
        if another_life || later_start || rolled_back {
            changes.self_superseded = changes.self_superseded.max(Some(theirs));
        } else if theirs == mine && entry.version > me.version {
            me.version = entry.version + 1;
            changes.members.push(entry.member.clone());
        }
    }

    /// A member of the ring displaces one that is not in it; others find room only below the bound.
    fn make_room(&mut self, member: &MemberId) -> bool {
        if self.entries.len() < MEMBERS_MAX {
            return true;
        }
        let Some(ring) = &self.ring else { return false };
        if ring.index_of(member).is_none() {
            return false;
        }
        let stranger = self
            .entries
            .keys()
            .find(|id| **id != self.me && ring.index_of(id).is_none())
            .cloned();
        stranger.is_some_and(|id| self.entries.remove(&id).is_some())
    }
}

/// Somebody else lives under this node's id, or has since.
fn is_another_life(mine: Incarnation, theirs: Incarnation) -> bool {
    theirs.id != mine.id && theirs.generation >= mine.generation
}

/// Two lives neither of which can follow the other.
fn rivals(one: Incarnation, other: Incarnation) -> bool {
    one.id != other.id && one.generation == other.generation
}
