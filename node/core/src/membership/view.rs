//! Everything one node knows about the cluster: the members' statements, the ring, and the rings before it.
//!
//! Two nodes bring each other up to date in three messages, and equal ones in two that hold digests alone:
//! the first sends its [`Digest`]; the second answers with what it knows better ([`Delta`]) and what it wants
//! ([`Wanted`]); the first sends that. Merging is idempotent and commutative, so lost, repeated and reordered messages
//! do no harm. Paper: §4.8.1.
//!
//! Of policies the digest holds a count and a hash; where these differ, each side sends all of its policies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::codec;
use super::displaced::{Displaced, is_another_life, rivals};
use super::entry::{EntryError, MemberEntry};
use super::history::{Claim, LIVES_MAX, Life, SelfHistory};
use super::log::{LOG_ENTRIES_MAX, Log, LogEntry};
use super::message::{Answer, DELTA_ENTRIES_MAX, Delta, Digest, MemberDigest, RingVersion, Wanted};
use super::policies::{POLICIES_MAX, Policies, Policy, PolicyError};
use crate::ring::Ring;
use crate::transition::{Followers, Local, Mark, ProposeRefused, Told, Transition};
use crate::types::{ClusterId, Incarnation, MemberId};
use crate::wire::DecodeError;

/// Most members that a view holds.
pub const MEMBERS_MAX: usize = crate::ring::MEMBERS_MAX;

/// One node's knowledge. Only [`View::update_self`] changes what it says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    cluster: ClusterId,
    me: MemberId,
    entries: BTreeMap<MemberId, MemberEntry>,
    displaced: Displaced,
    /// `None` before the first ring.
    transition: Option<Transition>,
    log: Log,
    policies: Policies,
    /// Not persisted: every start finds out anew.
    history: Option<SelfHistory>,
}

/// What a view is made of, for its persisted form.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) cluster: ClusterId,
    pub(super) me: MemberId,
    pub(super) entries: BTreeMap<MemberId, MemberEntry>,
    pub(super) displaced: Displaced,
    pub(super) transition: Option<Transition>,
    pub(super) log: Log,
    pub(super) policies: Policies,
}

/// What a merge has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Whose entries are new or newer, ascending.
    pub members: Vec<MemberId>,
    /// The base ring is another, or there is news of what follows it.
    pub ring: bool,
    /// The log has rings that it did not have.
    pub log: bool,
    /// Whose policies are new or newer, ascending.
    pub policies: Vec<String>,
    /// Somebody else lives under this node's id, or has: the largest such incarnation. This node must not go on as
    /// it is (its volume is a copy or was rolled back, or another process took its identity): it needs a new
    /// incarnation, and its store is suspect.
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
    /// An entry is out of bounds.
    #[error("an entry received by gossip was refused: {0}")]
    Entry(#[from] EntryError),
    /// There is no room for another member.
    #[error("the entry of member {0} was refused: {MEMBERS_MAX} members are known already")]
    Full(MemberId),
    /// A ring of the log has no members, too many, or not in order.
    #[error("ring {0} of the log received by gossip was refused: its members are not as a ring has them")]
    Log(u64),
    /// A policy breaks a bound.
    #[error("a policy received by gossip was refused: {0}")]
    Policy(#[from] PolicyError),
}

impl View {
    /// What a node knows that has just been told its identity; `me` must be within bounds.
    pub fn new(cluster: ClusterId, me: MemberEntry, ring: Option<Arc<Ring>>) -> Self {
        let mut view = Self {
            cluster,
            me: me.member.clone(),
            entries: BTreeMap::from([(me.member.clone(), me)]),
            displaced: Displaced::default(),
            transition: None,
            log: Log::default(),
            policies: Policies::default(),
            history: None,
        };
        if let Some(ring) = ring {
            view.adopt(ring);
        }
        view
    }

    /// Adds what this node knows of its own past: from then on a statement of `previous` or of the present life with a
    /// larger `synced` than this node can account for is reported as [`Changes::self_superseded`].
    ///
    /// To be called at every start, after [`View::update_self`] has set the incarnation and `synced`.
    #[must_use]
    pub fn with_history(mut self, history: SelfHistory) -> Self {
        self.history = Some(history);
        self
    }

    /// The cluster.
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster
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

    /// The base ring: the one that serves until all members read from the next.
    pub fn ring(&self) -> Option<&Arc<Ring>> {
        self.transition.as_ref().map(Transition::base)
    }

    /// The base ring and what follows it; `None` before the first ring.
    pub fn transition(&self) -> Option<&Transition> {
        self.transition.as_ref()
    }

    /// Proposes on this node that a ring follows. To be on disk before anybody is told of it.
    ///
    /// # Errors
    /// If the plan is stale, or this member may not; [`ProposeRefused::NoMember`] also before the first ring.
    pub fn propose(&mut self, ring: Arc<Ring>, dead: BTreeSet<MemberId>) -> Result<(), ProposeRefused> {
        let transition = self.transition.as_mut().ok_or(ProposeRefused::NoMember)?;
        transition.propose(ring, dead)
    }

    /// Takes an administrator's word that members are gone for good; see [`Transition::declare_dead`].
    pub fn declare_dead(&mut self, dead: &BTreeSet<MemberId>) -> bool {
        let transition = self.transition.as_mut();
        let news = transition.is_some_and(|transition| transition.declare_dead(dead));
        self.log_base();
        news
    }

    /// The mark that this member has to give next; see [`Transition::due`].
    pub fn due(&self, local: Local) -> Option<Mark> {
        self.transition.as_ref()?.due(local)
    }

    /// Gives a mark. To be on disk before anybody is told of it.
    pub fn give(&mut self, mark: Mark) {
        if let Some(transition) = &mut self.transition {
            transition.give(mark);
        }
        self.log_base();
    }

    /// A member whose own store waits for nobody's word has answered this life, and what it knows has been merged. True if this
    /// member therefore [remembers](Transition::remembers) everything again.
    pub fn heard_from(&mut self, member: &MemberId) -> bool {
        let Some(transition) = &mut self.transition else {
            return false;
        };
        let before = transition.remembers();
        transition.heard_from(member);
        !before && transition.remembers()
    }

    /// Whether its word counts that another member has lost nothing: not while it has lost its own memory of what that announced.
    pub fn vouches(&self) -> bool {
        self.transition.as_ref().is_some_and(Transition::remembers)
    }

    /// The volume is not that of the last life; see [`Transition::forget`].
    pub fn forget(&mut self) {
        if let Some(transition) = &mut self.transition {
            transition.forget();
        }
    }

    /// Rings that some node has accepted, oldest first, the last [`LOG_ENTRIES_MAX`](super::log::LOG_ENTRIES_MAX).
    pub fn log(&self) -> impl ExactSizeIterator<Item = &LogEntry> {
        self.log.entries()
    }

    /// All policies with their names, ascending by name.
    pub fn policies(&self) -> impl ExactSizeIterator<Item = (&str, &Policy)> {
        self.policies.iter()
    }

    /// The policy of that name.
    pub fn policy(&self, name: &str) -> Option<&Policy> {
        self.policies.get(name)
    }

    /// Takes a policy set on this node; false if the one known is the same or larger.
    ///
    /// # Errors
    /// If the policy is out of bounds or there is no room for another.
    pub fn put_policy(&mut self, name: &str, policy: Policy) -> Result<bool, PolicyError> {
        self.policies.put(name, policy)
    }

    /// Changes what this node says about itself; the statement becomes newer than the last.
    ///
    /// The id cannot be changed. With another incarnation the lives before it are no longer compared: what they have
    /// lost is known by then.
    pub fn update_self(&mut self, change: impl FnOnce(&mut MemberEntry)) {
        if let Some(entry) = self.entries.get_mut(&self.me) {
            let before = entry.incarnation;
            change(entry);
            entry.member = self.me.clone();
            entry.version += 1;
            let incarnation = entry.incarnation;
            if incarnation != before
                && let Some(history) = &mut self.history
            {
                history.previous = None;
            }
            if let Some(transition) = &mut self.transition {
                transition.lives(&self.me, incarnation);
            }
        }
    }

    /// Takes a ring that serves already, or is the cluster's first; `false` if it is not the largest known or belongs to
    /// another cluster.
    pub fn adopt(&mut self, ring: Arc<Ring>) -> bool {
        ring.cluster_id() == self.cluster && self.hear_of_base(ring)
    }

    /// True if that changed anything.
    fn hear_of_base(&mut self, base: Arc<Ring>) -> bool {
        let told = Told {
            base,
            followers: Followers::default(),
        };
        if let Some(transition) = &mut self.transition {
            let before = RingVersion::from(transition.base().as_ref());
            transition.hear(told);
            if before == RingVersion::from(transition.base().as_ref()) {
                return false;
            }
        } else {
            // Whoever hears of its first ring may have had a part in others, and lost its memory of that.
            let me = self.me();
            let mut transition = Transition::new(me.member.clone(), me.incarnation, told.base, true);
            for entry in self.entries.values() {
                transition.lives(&entry.member, entry.incarnation);
            }
            self.transition = Some(transition);
        }
        self.log_base();
        true
    }

    /// True if that changed anything.
    fn hear_of_followers(&mut self, followers: Followers) -> bool {
        let Some(transition) = &mut self.transition else {
            return false;
        };
        let before = (
            RingVersion::from(transition.base().as_ref()),
            transition.followers().clone(),
        );
        transition.hear_followers(followers);
        let changed =
            before.0 != RingVersion::from(transition.base().as_ref()) || before.1 != *transition.followers();
        self.log_base();
        changed
    }

    fn log_base(&mut self) -> bool {
        let base = self
            .transition
            .as_ref()
            .map(|transition| LogEntry::from(transition.base().as_ref()));
        base.is_some_and(|entry| self.log.insert(entry))
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
            ring: self.ring().map(|ring| RingVersion::from(ring.as_ref())),
            followers: self.followers_hash(),
            log: self.log.versions(),
            policies: Some(self.policies.digest()),
            claim: self.claim(),
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
        let my_ring = self.ring().map(|ring| RingVersion::from(ring.as_ref()));
        let followers_differ = my_ring == digest.ring && self.followers_hash() != digest.followers;
        wanted.ring = my_ring < digest.ring || followers_differ;
        if my_ring > digest.ring || followers_differ {
            self.add_ring(&mut delta);
        }
        wanted.log = self.log.lacks(&digest.log);
        delta.log = self.log.beyond(&digest.log);
        wanted.policies = digest
            .policies
            .is_some_and(|theirs| theirs != self.policies.digest());
        if wanted.policies {
            delta.policies = self.all_policies();
        }
        if let Some(claim) = &digest.claim {
            // First, so that it is sent; what is cut off comes with the next round.
            delta.members.splice(0..0, self.contradicts(claim).cloned());
            delta.members.truncate(DELTA_ENTRIES_MAX);
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
        delta.log = self.log.select(&wanted.log);
        if wanted.policies {
            delta.policies = self.all_policies();
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
        // The ring goes first: its members are those for whom room is made.
        if let Some(bytes) = delta.ring {
            match self.check_ring(bytes) {
                Ok(ring) => {
                    // The sender has accepted it, so it belongs to the log also if it comes too late to be used.
                    changes.log |= self.log.insert(LogEntry::from(&ring));
                    changes.ring |= self.hear_of_base(Arc::new(ring));
                }
                Err(refusal) => changes.refused.push(refusal),
            }
        }
        self.hear_of_rings(delta.log, &mut changes);
        self.hear_of_policies(delta.policies, &mut changes);
        for entry in delta.members.into_iter().take(DELTA_ENTRIES_MAX) {
            if let Err(error) = entry.check() {
                changes.refused.push(error.into());
            } else if entry.member == self.me {
                self.hear_of_myself(&entry, &mut changes);
            } else {
                self.hear_of(entry, &mut changes);
            }
        }
        // Marks go last: they count for the lives that the entries tell of.
        if let Some(bytes) = delta.followers {
            match Followers::decode(bytes, self.cluster) {
                Ok(followers) => changes.ring |= self.hear_of_followers(followers),
                Err(error) => changes.refused.push(Refusal::RingDamaged(error)),
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

    pub(super) fn from_parts(mut parts: Parts) -> Self {
        if let Some(transition) = &mut parts.transition {
            for entry in parts.entries.values() {
                transition.lives(&entry.member, entry.incarnation);
            }
        }
        Self {
            cluster: parts.cluster,
            me: parts.me,
            entries: parts.entries,
            displaced: parts.displaced,
            transition: parts.transition,
            log: parts.log,
            policies: parts.policies,
            history: None,
        }
    }

    pub(super) fn displaced(&self) -> &Displaced {
        &self.displaced
    }

    pub(super) fn policy_set(&self) -> &Policies {
        &self.policies
    }

    fn all_policies(&self) -> Vec<(String, Policy)> {
        let all = self.policies.iter();
        all.map(|(name, policy)| (name.to_owned(), policy.clone()))
            .collect()
    }

    /// How far this node can account for its own lives; nothing before it knows its past.
    fn claim(&self) -> Option<Claim> {
        let history = self.history.as_ref()?;
        let me = self.me();
        let present = Life {
            incarnation: me.incarnation,
            synced: history.recovered.max(me.synced),
        };
        let before = history.previous.map(|incarnation| Life {
            incarnation,
            synced: history.recovered,
        });
        Some(Claim {
            member: self.me.clone(),
            lives: std::iter::once(present).chain(before).collect(),
        })
    }

    /// Statements of the claim's sender, from a life that it names, of more than it can account for, or from one that it
    /// should know of and does not.
    fn contradicts<'a>(&'a self, claim: &'a Claim) -> impl Iterator<Item = &'a MemberEntry> {
        let present = self.entries.get(&claim.member).into_iter();
        let known = present.chain(self.displaced.of(&claim.member));
        known.filter(|entry| {
            let lives = || claim.lives.iter().take(LIVES_MAX);
            let less =
                lives().any(|life| life.incarnation == entry.incarnation && life.synced < entry.synced);
            // A life that it does not know of, no older than one that it claims: its volume was emptied. Random ids do
            // not order lives of one generation, so that its newer statement proves nothing.
            let unknown = lives().all(|life| life.incarnation.id != entry.incarnation.id)
                && lives().any(|life| life.incarnation.generation <= entry.incarnation.generation);
            less || unknown
        })
    }

    fn empty_delta(&self) -> Delta {
        Delta {
            cluster: self.cluster,
            members: Vec::new(),
            ring: None,
            followers: None,
            log: Vec::new(),
            policies: Vec::new(),
        }
    }

    fn followers_hash(&self) -> u64 {
        self.transition
            .as_ref()
            .map_or(0, |transition| transition.followers().hash())
    }

    /// Adds the base ring and what follows it, and before all entries the lives that rival a present one: whoever gets a ring begins to serve, and so
    /// does whoever gets it from there. Had one of them another life, it must hear of that first.
    fn add_ring(&self, delta: &mut Delta) {
        delta.ring = self.ring().map(|ring| ring.encode());
        let followers = self.transition.as_ref().map(Transition::followers);
        delta.followers = followers
            .filter(|followers| !followers.is_empty())
            .map(Followers::encode);
        let displaced = self.displaced.iter().filter(|entry| {
            let present = self.entries.get(&entry.member);
            present.is_some_and(|present| rivals(present.incarnation, entry.incarnation))
        });
        delta.members.splice(0..0, displaced.cloned());
        delta.members.truncate(DELTA_ENTRIES_MAX);
    }

    fn hear_of_rings(&mut self, rings: Vec<LogEntry>, changes: &mut Changes) {
        for entry in rings.into_iter().take(LOG_ENTRIES_MAX) {
            if entry.is_sound() {
                changes.log |= self.log.insert(entry);
            } else {
                changes.refused.push(Refusal::Log(entry.epoch));
            }
        }
    }

    fn hear_of_policies(&mut self, policies: Vec<(String, Policy)>, changes: &mut Changes) {
        for (name, policy) in policies.into_iter().take(POLICIES_MAX) {
            match self.policies.merge(&name, policy) {
                Ok(true) => changes.policies.push(name),
                Ok(false) => {}
                Err(error) => changes.refused.push(error.into()),
            }
        }
        changes.policies.sort();
        changes.policies.dedup();
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
        if let Some(known) = known.filter(|known| *known >= entry.order()) {
            // Of two lives that began from the same one the other may be the true one: its node has to hear of it, also
            // from those who met the false one first.
            if rivals(known.0, entry.incarnation) {
                self.displaced.keep(entry);
            }
            return;
        }
        if known.is_none() && !self.make_room(&entry.member) {
            changes.refused.push(Refusal::Full(entry.member));
            return;
        }
        changes.members.push(entry.member.clone());
        let (incarnation, synced) = (entry.incarnation, entry.synced);
        if known.is_none_or(|known| known.0 != incarnation)
            && let Some(transition) = &mut self.transition
        {
            // Marks of the life before count no more, those of this one do: they may be what was waited for.
            changes.ring |= transition.next().is_some();
            transition.lives(&entry.member, incarnation);
        }
        if let Some(before) = self.entries.insert(entry.member.clone(), entry)
            && (before.incarnation != incarnation || before.synced > synced)
        {
            self.displaced.keep(before);
        }
    }

    fn hear_of_myself(&mut self, entry: &MemberEntry, changes: &mut Changes) {
        let Some(me) = self.entries.get_mut(&self.me) else {
            return;
        };
        let (mine, theirs) = (me.incarnation, entry.incarnation);
        let another_life = is_another_life(mine, theirs);
        // The same life has been started more often than this volume remembers: an older copy of it runs here.
        let later_start = theirs.id == mine.id && entry.starts > me.starts;
        // A life that this volume remembers has synced more than is found here.
        let rolled_back = self.history.as_ref().is_some_and(|history| {
            let before = history.previous == Some(theirs) && entry.synced > history.recovered;
            before
                || history.lacks(mine, theirs)
                || (theirs == mine && entry.synced > history.recovered.max(me.synced))
        });
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
        let Some(transition) = &self.transition else {
            return false;
        };
        if !transition.lists(member) {
            return false;
        }
        let stranger = self
            .entries
            .keys()
            .find(|id| **id != self.me && !transition.lists(id))
            .cloned();
        stranger.is_some_and(|id| {
            self.displaced.remove(&id);
            self.entries.remove(&id).is_some()
        })
    }
}
