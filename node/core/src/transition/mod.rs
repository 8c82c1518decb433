//! How one ring gives way to the next while clients go on writing and reading. Paper: §4.9, §6.2 (which move partitions
//! without saying how a request finds them meanwhile). Differs: two rings side by side, as Garage has it.
//!
//! ```text
//!                   reads from   writes to     given when
//!   (proposed)      base         base
//!   known           base         base + new    all that was begun for the base ring alone has ended
//!   synced          base         base + new    everybody is `known`; since then all that it newly holds was pulled and compared
//!   reading         new          base + new    everybody is `synced`
//!   (retired)       new          new           everybody is `reading`: the new ring is the base of the next one
//! ```
//!
//! Each step is a [`Mark`] that a member gives once and keeps on disk before it speaks of it; marks only ever become more
//! and spread by gossip, so that no step needs a leader. A mark counts for one life of its member: who lost its disk gives
//! it again, once it is true again.
//!
//! **Change of mind.** A member that has not marked `reading` may propose another ring on the same base. Its missing mark is
//! the lock: the base cannot have retired, and the mark is never given afterwards. The larger ring wins; what it supersedes is
//! written to until everybody knows the new one, for somebody may read from it.
//!
//! **Forgetting.** A member that lost its disk may have proposed a ring, or have begun to read from one, and not know it. Until
//! it has heard from everybody in this life, it proposes nothing, marks no `reading` and coordinates no reads. Nobody waits to hear
//! from the dead; a proposal may be what names them.
//!
//! **A ring that lists the dead.** Who dies when all others read from a ring is named dead in that ring, and it comes to serve all the
//! same. What its slots had is then with those that hold it by the rings before. These are *kept*: their members are not let go, have a
//! say, and are pulled from, until a ring serves that lists nobody who is dead.
//!
//! Random histories of all this, and of what goes wrong without each rule: `tests/transition`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::membership::RingVersion;
use crate::ring::Ring;
use crate::types::{Incarnation, MemberId};

mod codec;
mod layouts;
mod queue;
mod slots;
mod strays;
mod sync;

pub use layouts::{Fenced, Layouts};
pub use slots::{Slot, slots};
pub use strays::Strays;
pub use sync::{Sync, SyncProgress};

/// Rings that a newer one may supersede at a time: all of them are written to. One more may be proposed with each further member
/// that is declared dead.
pub const SUPERSEDED_MAX: usize = 2;

/// A ring that is to follow another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The ring.
    pub ring: Arc<Ring>,
    /// The ring that it follows.
    pub base: RingVersion,
    /// Members, by an administrator's word gone for good: nobody waits for them, and what only they held is lost. They become more
    /// where [that is said](Transition::declare_dead) of a ring that is read from already.
    pub dead: BTreeSet<MemberId>,
}

/// How far a member is with a ring; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Everything that it begins is written to this ring too, and nothing else is under way.
    Known,
    /// It has everything that this ring makes it hold.
    Synced,
    /// It reads from this ring.
    Reading,
}

impl Step {
    /// All, in the order in which they are taken.
    pub const ALL: [Self; 3] = [Self::Known, Self::Synced, Self::Reading];
}

/// A member's word that it has taken a step.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Of which ring.
    pub ring: RingVersion,
    /// Who.
    pub member: MemberId,
    /// In which of its lives.
    pub incarnation: Incarnation,
    /// Which.
    pub step: Step,
}

/// Most proposals that one message tells of: more than members that keep to [`SUPERSEDED_MAX`] can make.
pub const PROPOSALS_MAX: usize = 64;

/// Rings before the base that are [kept](Followers::kept) at most; the newest ones.
pub const KEPT_MAX: usize = 8;

/// What members tell each other: the whole of a transition's state. Merging is idempotent and commutative.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Serves as long as nobody has retired it.
    pub base: Arc<Ring>,
    /// What is to follow it.
    pub followers: Followers,
}

/// The rings that are to follow another one, and how far its members are with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Followers {
    /// The rings, at most [`PROPOSALS_MAX`], ascending by version.
    pub proposals: Vec<Proposal>,
    /// Of those rings.
    pub marks: BTreeSet<Mark>,
    /// Rings before the base, which came to serve though it lists members that were declared dead: each with the base that keeps it, and
    /// with those dead. At most [`KEPT_MAX`], ascending by version.
    pub kept: Vec<Proposal>,
}

/// What a node knows of itself, that a mark depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// The [newest ring](Transition::newest) when the oldest operation under way here began; the present one if there is none.
    pub oldest: Option<RingVersion>,
    /// The newest ring of which everything that it makes this node hold is here, durably.
    pub synced: Option<RingVersion>,
}

/// Why no ring is proposed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeRefused {
    /// Something was proposed or retired since the plan was made.
    #[error(
        "the newest ring has epoch {newest}, but the plan was made for {expected}; look at it again, then commit it anew"
    )]
    Stale {
        /// What the administrator expects.
        expected: u64,
        /// The newest ring's epoch.
        newest: u64,
    },
    /// This member reads from the newest ring already: it may have retired what the proposal would build on.
    #[error(
        "this member has begun to read from ring {0}; ask again when it has retired the one before, or ask another member"
    )]
    Reading(u64),
    /// This member began without a memory, or lost it, and has not yet heard from everybody.
    #[error(
        "this member remembers no earlier ring and has not heard from all members since it began; ask again in a moment, ask \
         another one, or declare dead who is gone for good"
    )]
    Forgetful,
    /// Too many rings are written to.
    #[error(
        "{SUPERSEDED_MAX} superseded rings are still written to, until all members know of the newest; ask again then, or declare dead \
         who is gone for good"
    )]
    TooMany,
    /// Only who has a part in the present rings may propose the next.
    #[error("this node is no member of the ring; ask one that is")]
    NoMember,
}

/// One member's view of the base ring and of those that are to follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    me: MemberId,
    base: Arc<Ring>,
    followers: Followers,
    /// Of everybody the latest life that is known.
    lives: BTreeMap<MemberId, Incarnation>,
    /// Whom this life has heard from; `None`: the volume remembers.
    heard: Option<BTreeSet<MemberId>>,
}

impl Transition {
    /// Begins with a ring that serves. `forgetful`: this life of the member found no memory of another ring, and may have had
    /// one.
    pub fn new(me: MemberId, life: Incarnation, base: Arc<Ring>, forgetful: bool) -> Self {
        Self {
            lives: [(me.clone(), life)].into(),
            me,
            base,
            followers: Followers::default(),
            heard: forgetful.then(BTreeSet::new),
        }
    }

    /// The ring that serves until all read from the next.
    pub fn base(&self) -> &Arc<Ring> {
        &self.base
    }

    /// The ring that is to follow, if one is proposed.
    pub fn next(&self) -> Option<&Proposal> {
        self.followers.proposals.last()
    }

    /// The version of the newest ring: what an operation that begins now is [told apart](Local::oldest) by.
    pub fn newest(&self) -> RingVersion {
        self.next().map_or_else(|| self.base_version(), Proposal::version)
    }

    /// The rings that are to follow the base, and all marks.
    pub fn followers(&self) -> &Followers {
        &self.followers
    }

    /// What others are told.
    pub fn told(&self) -> Told {
        Told {
            base: Arc::clone(&self.base),
            followers: self.followers.clone(),
        }
    }

    /// A member lives in this incarnation now. Marks of an earlier one count no more.
    pub fn lives(&mut self, member: &MemberId, incarnation: Incarnation) {
        let known = self.lives.entry(member.clone()).or_insert(incarnation);
        // Of two lives of one generation that nobody has compared yet the present one may have the smaller id; a member knows
        // which is its own, or it would give marks for the other.
        *known = if *member == self.me {
            incarnation
        } else {
            incarnation.max(*known)
        };
        self.settle();
    }

    /// Takes what another member told.
    pub fn hear(&mut self, told: Told) {
        let (mine, theirs) = (self.base_version(), RingVersion::from(told.base.as_ref()));
        if theirs < mine {
            return;
        }
        if theirs > mine {
            self.serve(told.base);
        }
        self.hear_followers(told.followers);
    }

    /// Takes what another member told of rings that are to follow; those that follow another base ring are of no use here.
    pub fn hear_followers(&mut self, followers: Followers) {
        for proposal in followers.proposals.into_iter().take(PROPOSALS_MAX) {
            self.insert(proposal);
        }
        for kept in followers.kept.into_iter().take(KEPT_MAX) {
            self.keep(kept);
        }
        self.followers.marks.extend(followers.marks);
        self.settle();
    }

    /// The volume is not that of the last life: what it remembers may be less than what others were told.
    pub fn forget(&mut self) {
        self.heard = Some(BTreeSet::new());
    }

    /// A member has answered this life, after it had been told of it; to be called after [`hear`](Self::hear).
    pub fn heard_from(&mut self, member: &MemberId) {
        if let Some(heard) = &mut self.heard {
            heard.insert(member.clone());
        }
        self.settle();
    }

    /// Proposes that a ring of the next epoch follows the base, in place of what was proposed before.
    ///
    /// # Errors
    /// If the plan is stale, or this member may not.
    pub fn propose(&mut self, ring: Arc<Ring>, dead: BTreeSet<MemberId>) -> Result<(), ProposeRefused> {
        let newest = self.newest();
        if ring.epoch() != newest.epoch + 1 {
            return Err(ProposeRefused::Stale {
                expected: ring.epoch() - 1,
                newest: newest.epoch,
            });
        }
        if self.unheard().into_iter().any(|member| !dead.contains(member)) {
            return Err(ProposeRefused::Forgetful);
        }
        if !self.everybody().contains(&self.me) {
            return Err(ProposeRefused::NoMember);
        }
        let reads = |proposal: &&Proposal| self.has_ever_read(proposal.version());
        if let Some(read) = self.followers.proposals.iter().find(reads) {
            return Err(ProposeRefused::Reading(read.ring.epoch()));
        }
        if self.written().count() > SUPERSEDED_MAX + 1 && !self.names_more_dead(&dead) {
            return Err(ProposeRefused::TooMany);
        }
        let base = self.base_version();
        self.insert(Proposal { ring, base, dead });
        Ok(())
    }

    /// Takes an administrator's word that members are gone for good where this member may propose no other ring, since it reads
    /// from one already: the newest ring follows without them. Nobody else could say so, if all that are left read. True if that
    /// is news.
    pub fn declare_dead(&mut self, dead: &BTreeSet<MemberId>) -> bool {
        let news = self.names_more_dead(&self.with_dead(dead)) && !dead.contains(&self.me);
        let mut proposals = self.followers.proposals.iter();
        let reads = proposals.any(|proposal| self.has_ever_read(proposal.version()));
        let next = self.followers.proposals.last_mut();
        let Some(next) = next.filter(|_| news && reads) else {
            return false;
        };
        next.dead.extend(dead.iter().cloned());
        self.settle();
        true
    }

    fn with_dead(&self, dead: &BTreeSet<MemberId>) -> BTreeSet<MemberId> {
        let known = self.next().into_iter().flat_map(|next| &next.dead);
        known.chain(dead).cloned().collect()
    }

    /// Whether somebody is declared dead whom the newest ring still waits for: were that refused, the rings before it would be
    /// written to for ever.
    fn names_more_dead(&self, dead: &BTreeSet<MemberId>) -> bool {
        let everybody = self.everybody();
        let more = dead.iter().any(|member| everybody.contains(member));
        more && self.next().is_none_or(|next| next.dead.is_subset(dead))
    }

    /// The rings that a write goes to: the base and all that follow it.
    pub fn written(&self) -> impl Iterator<Item = &Arc<Ring>> {
        let next = self.newest();
        let superseded_by_all = self.all(next, Step::Known);
        let proposals = self.followers.proposals.iter();
        let rings = proposals.filter(move |proposal| !superseded_by_all || proposal.version() == next);
        std::iter::once(&self.base).chain(rings.map(|proposal| &proposal.ring))
    }

    /// The rings that were to follow the base and are written to no more: everybody knows the one that took their place.
    pub(super) fn superseded(&self) -> impl Iterator<Item = &Arc<Ring>> {
        let next = self.newest();
        let superseded_by_all = self.all(next, Step::Known);
        let proposals = self.followers.proposals.iter();
        let rings = proposals.filter(move |proposal| superseded_by_all && proposal.version() != next);
        rings.map(|proposal| &proposal.ring)
    }

    /// The ring that a read goes to. `None`: this member must not coordinate reads, for it may have forgotten that it reads
    /// from another one; or it is declared dead, so that the others retire the base without its word.
    pub fn read(&self) -> Option<&Arc<Ring>> {
        let Some(next) = self.next() else {
            return Some(&self.base);
        };
        if !self.remembers() || next.dead.contains(&self.me) {
            return None;
        }
        let reading = self.has_ever_read(next.version());
        Some(if reading { &next.ring } else { &self.base })
    }

    /// False until a member that lost its memory has heard from everybody: see the module.
    pub fn remembers(&self) -> bool {
        self.heard.is_none()
    }

    /// Whether a suspect store may be trusted that has got back what the base ring makes it hold. `pulled`: the newest ring of
    /// which everything that it makes this member hold is here.
    ///
    /// The life before may have given marks for a ring that this one has not heard of, so that it serves already. While a ring is to
    /// follow, this life must therefore have heard from everybody, and pulled; and as long as no ring lists the member, from
    /// everybody all the same: there is nothing to get back only as far as it knows.
    pub fn may_be_trusted(&self, pulled: Option<RingVersion>) -> bool {
        match self.next() {
            Some(next) => self.remembers() && pulled >= Some(next.version()),
            None => self.remembers() || self.base.index_of(&self.me).is_some(),
        }
    }

    /// True once pulling what the next ring makes this member hold may begin: whatever begins from now on is written to its new
    /// holder.
    pub fn may_sync(&self) -> bool {
        self.next()
            .is_some_and(|next| self.all(next.version(), Step::Known))
    }

    /// Whom a member that lost its memory has not heard yet; nobody, if it remembers.
    pub fn unheard(&self) -> Vec<&MemberId> {
        let Some(heard) = &self.heard else {
            return Vec::new();
        };
        let everybody = self.everybody().into_iter();
        everybody
            .filter(|member| **member != self.me && !heard.contains(*member))
            .collect()
    }

    /// The mark to be given next: to be [given](Self::give) once it is on disk.
    pub fn due(&self, local: Local) -> Option<Mark> {
        let next = self.next()?.version();
        let mark = |step| Mark {
            ring: next,
            member: self.me.clone(),
            incarnation: self.lives[&self.me],
            step,
        };
        let given = |step| self.followers.marks.contains(&mark(step));
        let due = |step| match step {
            Step::Known => local.oldest.is_none_or(|oldest| oldest >= next),
            Step::Synced => local.synced >= Some(next) && self.all(next, Step::Known),
            Step::Reading => self.all(next, Step::Synced) && self.all(next, Step::Known) && self.remembers(),
        };
        let step = Step::ALL.into_iter().find(|step| !given(*step))?;
        due(step).then(|| mark(step))
    }

    /// A mark of this member is on disk.
    pub fn give(&mut self, mark: Mark) {
        self.followers.marks.insert(mark);
        self.settle();
    }

    /// The step that is waited for, and by whom it is not taken yet. `None` while nothing is proposed.
    pub fn waits_for(&self) -> Option<(Step, Vec<&MemberId>)> {
        let next = self.next()?.version();
        Step::ALL.into_iter().find_map(|step| {
            let lacks = |member: &&MemberId| !self.has_marked(member, next, step);
            let lacking: Vec<_> = self.everybody().into_iter().filter(lacks).collect();
            (!lacking.is_empty()).then_some((step, lacking))
        })
    }

    /// All other members that are concerned by the rings, ascending: who has to hear of the newest one.
    pub fn told_to(&self) -> BTreeSet<MemberId> {
        let others = self.everybody().into_iter().filter(|member| **member != self.me);
        others.cloned().collect()
    }

    /// Rings before the base whose holders may have what died with members that the base lists; see the module.
    pub(super) fn kept(&self) -> impl Iterator<Item = &Proposal> {
        self.followers.kept.iter()
    }

    /// Whether a member is not let go though the base ring lists it no more: what it holds may have died with its new holder.
    pub fn keeps(&self, member: &MemberId) -> bool {
        self.kept_members().contains(member)
    }

    /// Whom the base ring lists no more, and who are [not let go](Self::keeps).
    pub fn kept_members(&self) -> BTreeSet<&MemberId> {
        let listed = self.kept().flat_map(|kept| kept.ring.members());
        let gone = listed.map(|member| &member.id);
        gone.filter(|member| self.base.index_of(member).is_none())
            .collect()
    }

    /// Whether a member is listed by the base ring, by any that is to follow it, or by one that is kept.
    pub fn lists(&self, member: &MemberId) -> bool {
        self.members().any(|listed| listed == member)
    }

    /// Whose marks count: the members of all rings that anybody may use, but for the dead.
    fn everybody(&self) -> BTreeSet<&MemberId> {
        let dead = |member: &&MemberId| self.next().is_some_and(|next| next.dead.contains(*member));
        self.members().filter(|member| !dead(member)).collect()
    }

    /// The members of the base ring, of all that are to follow it, and of those that are kept, with repetitions.
    pub(super) fn members(&self) -> impl Iterator<Item = &MemberId> {
        let others = self.followers.proposals.iter().chain(self.kept());
        let rings = std::iter::once(&self.base).chain(others.map(|proposal| &proposal.ring));
        rings.flat_map(|ring| ring.members()).map(|member| &member.id)
    }

    fn all(&self, ring: RingVersion, step: Step) -> bool {
        self.everybody()
            .into_iter()
            .all(|member| self.has_marked(member, ring, step))
    }

    fn has_marked(&self, member: &MemberId, ring: RingVersion, step: Step) -> bool {
        self.lives.get(member).is_some_and(|incarnation| {
            self.followers.marks.contains(&Mark {
                ring,
                member: member.clone(),
                incarnation: *incarnation,
                step,
            })
        })
    }

    /// The newest ring that this member has given a mark for, in any life that this volume remembers.
    pub(super) fn marked(&self) -> Option<RingVersion> {
        let own = self.followers.marks.iter().filter(|mark| mark.member == self.me);
        own.map(|mark| mark.ring).max()
    }

    /// In this life or an earlier one that this volume remembers: others may have retired the base ring on that word.
    fn has_ever_read(&self, ring: RingVersion) -> bool {
        let mut marks = self.followers.marks.iter();
        marks.any(|mark| mark.ring == ring && mark.member == self.me && mark.step == Step::Reading)
    }

    fn base_version(&self) -> RingVersion {
        RingVersion::from(self.base.as_ref())
    }

    fn insert(&mut self, proposal: Proposal) {
        let (version, base) = (proposal.version(), self.base_version());
        let proposals = &mut self.followers.proposals;
        let place = proposals.partition_point(|known| known.version() < version);
        let known = proposals
            .get(place)
            .is_some_and(|known| known.version() == version);
        if known {
            proposals[place].dead.extend(proposal.dead);
        } else if version > base {
            proposals.insert(place, proposal);
        }
    }

    /// A ring takes the base's place. Where it lists members that are known to be dead, what was written to until now is kept.
    fn serve(&mut self, ring: Arc<Ring>) {
        let version = RingVersion::from(ring.as_ref());
        let before = std::mem::replace(&mut self.base, ring);
        let proposals = std::mem::take(&mut self.followers.proposals);
        let (served, superseded): (Vec<_>, Vec<_>) = proposals
            .into_iter()
            .partition(|proposal| proposal.version() == version);
        let named = served.into_iter().flat_map(|served| served.dead);
        let dead: BTreeSet<_> = named
            .filter(|member| self.base.index_of(member).is_some())
            .collect();
        let kept = std::mem::take(&mut self.followers.kept);
        if dead.is_empty() {
            self.followers.proposals = superseded;
            return;
        }
        let rings = kept.into_iter().chain(superseded).map(|proposal| proposal.ring);
        for ring in rings.chain([before]) {
            let dead = dead.clone();
            self.keep(Proposal {
                ring,
                base: version,
                dead,
            });
        }
    }

    fn keep(&mut self, proposal: Proposal) {
        let (version, base) = (proposal.version(), self.base_version());
        if proposal.base != base || version >= base {
            return;
        }
        let kept = &mut self.followers.kept;
        let place = kept.partition_point(|known| known.version() < version);
        match kept.get_mut(place).filter(|known| known.version() == version) {
            Some(known) => known.dead.extend(proposal.dead),
            None => kept.insert(place, proposal),
        }
        let older = kept.len().saturating_sub(KEPT_MAX);
        kept.drain(..older);
    }

    /// Retires the base ring if everybody reads from the next, and forgets what belongs to rings that are no more.
    fn settle(&mut self) {
        if let Some(next) = self.next().cloned()
            && next.base == self.base_version()
            && self.all(next.version(), Step::Reading)
        {
            self.serve(next.ring);
        }
        let base = self.base_version();
        self.followers.proposals.retain(|proposal| proposal.base == base);
        self.followers.kept.retain(|kept| kept.base == base);
        let rings: BTreeSet<_> = self.followers.proposals.iter().map(Proposal::version).collect();
        self.followers.marks.retain(|mark| rings.contains(&mark.ring));
        if self.heard.is_some() && self.unheard().is_empty() {
            self.heard = None;
        }
    }
}

impl Proposal {
    /// Which ring.
    pub fn version(&self) -> RingVersion {
        RingVersion::from(self.ring.as_ref())
    }
}
