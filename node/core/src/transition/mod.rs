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
//! it has heard from everybody in this life, it proposes nothing, marks no `reading` and coordinates no reads.
//!
//! Random histories of all this, and of what goes wrong without each rule: `tests/transition`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::membership::RingVersion;
use crate::ring::Ring;
use crate::types::{Incarnation, MemberId};

mod slots;

pub use slots::{Slot, slots};

/// Rings that a newer one may supersede at a time: all of them are written to.
pub const SUPERSEDED_MAX: usize = 2;

/// A ring that is to follow another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The ring.
    pub ring: Arc<Ring>,
    /// The ring that it follows.
    pub base: RingVersion,
    /// Members of the base ring, by an administrator's word gone for good: nobody waits for them, and what only they held is lost.
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

/// What members tell each other: the whole of a transition's state. Merging is idempotent and commutative.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Serves as long as nobody has retired it.
    pub base: Arc<Ring>,
    /// Rings that are to follow it.
    pub proposals: Vec<Proposal>,
    /// Of those rings.
    pub marks: BTreeSet<Mark>,
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
    /// This member lost its memory, and has not yet heard from everybody.
    #[error("this member lost its disk and has not heard from all members since; ask another one")]
    Forgetful,
    /// Too many rings are written to.
    #[error(
        "{SUPERSEDED_MAX} superseded rings are still written to, until all members know of the newest; ask again then"
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
    /// Ascending by version.
    proposals: Vec<Proposal>,
    marks: BTreeSet<Mark>,
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
            proposals: Vec::new(),
            marks: BTreeSet::new(),
            heard: forgetful.then(BTreeSet::new),
        }
    }

    /// The ring that serves until all read from the next.
    pub fn base(&self) -> &Arc<Ring> {
        &self.base
    }

    /// The ring that is to follow, if one is proposed.
    pub fn next(&self) -> Option<&Proposal> {
        self.proposals.last()
    }

    /// The version of the newest ring: what an operation that begins now is [told apart](Local::oldest) by.
    pub fn newest(&self) -> RingVersion {
        self.next().map_or_else(|| self.base_version(), Proposal::version)
    }

    /// What others are told.
    pub fn told(&self) -> Told {
        Told {
            base: Arc::clone(&self.base),
            proposals: self.proposals.clone(),
            marks: self.marks.clone(),
        }
    }

    /// A member lives in this incarnation now. Marks of an earlier one count no more.
    pub fn lives(&mut self, member: &MemberId, incarnation: Incarnation) {
        let known = self.lives.entry(member.clone()).or_insert(incarnation);
        *known = incarnation.max(*known);
        self.settle();
    }

    /// Takes what another member told.
    pub fn hear(&mut self, told: Told) {
        let (mine, theirs) = (self.base_version(), RingVersion::from(told.base.as_ref()));
        if theirs < mine {
            return;
        }
        if theirs > mine {
            self.base = told.base;
        }
        for proposal in told.proposals {
            self.insert(proposal);
        }
        self.marks.extend(told.marks);
        self.settle();
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
        if !self.remembers() {
            return Err(ProposeRefused::Forgetful);
        }
        if !self.everybody().contains(&self.me) {
            return Err(ProposeRefused::NoMember);
        }
        let reads = |proposal: &&Proposal| self.has_marked(&self.me, proposal.version(), Step::Reading);
        if let Some(read) = self.proposals.iter().find(reads) {
            return Err(ProposeRefused::Reading(read.ring.epoch()));
        }
        if self.written().count() > SUPERSEDED_MAX + 1 {
            return Err(ProposeRefused::TooMany);
        }
        let base = self.base_version();
        self.insert(Proposal { ring, base, dead });
        Ok(())
    }

    /// The rings that a write goes to: the base and all that follow it.
    pub fn written(&self) -> impl Iterator<Item = &Arc<Ring>> {
        let next = self.newest();
        let superseded_by_all = self.all(next, Step::Known);
        let followers = self
            .proposals
            .iter()
            .filter(move |proposal| !superseded_by_all || proposal.version() == next);
        std::iter::once(&self.base).chain(followers.map(|proposal| &proposal.ring))
    }

    /// The ring that a read goes to. `None`: this member must not coordinate reads, for it may have forgotten that it reads
    /// from another one.
    pub fn read(&self) -> Option<&Arc<Ring>> {
        let Some(next) = self.next() else {
            return Some(&self.base);
        };
        if !self.remembers() {
            return None;
        }
        let reading = self.has_marked(&self.me, next.version(), Step::Reading);
        Some(if reading { &next.ring } else { &self.base })
    }

    /// False until a member that lost its memory has heard from everybody: see the module.
    pub fn remembers(&self) -> bool {
        self.heard.is_none()
    }

    /// True if a request of a node whose base ring is of that version is served: one that was retired is read and written by
    /// nobody else.
    pub fn admits(&self, base: RingVersion) -> bool {
        base >= self.base_version()
    }

    /// True once pulling what the next ring makes this member hold may begin: whatever begins from now on is written to its new
    /// holder.
    pub fn may_sync(&self) -> bool {
        self.next()
            .is_some_and(|next| self.all(next.version(), Step::Known))
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
        let given = |step| self.marks.contains(&mark(step));
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
        self.marks.insert(mark);
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

    /// Whose marks count: the members of all rings that anybody may use, but for the dead.
    fn everybody(&self) -> BTreeSet<&MemberId> {
        let rings = std::iter::once(&self.base).chain(self.proposals.iter().map(|proposal| &proposal.ring));
        let members = rings.flat_map(|ring| ring.members()).map(|member| &member.id);
        let dead = |member: &&MemberId| self.next().is_some_and(|next| next.dead.contains(*member));
        members.filter(|member| !dead(member)).collect()
    }

    fn all(&self, ring: RingVersion, step: Step) -> bool {
        self.everybody()
            .into_iter()
            .all(|member| self.has_marked(member, ring, step))
    }

    fn has_marked(&self, member: &MemberId, ring: RingVersion, step: Step) -> bool {
        self.lives.get(member).is_some_and(|incarnation| {
            self.marks.contains(&Mark {
                ring,
                member: member.clone(),
                incarnation: *incarnation,
                step,
            })
        })
    }

    fn base_version(&self) -> RingVersion {
        RingVersion::from(self.base.as_ref())
    }

    fn insert(&mut self, proposal: Proposal) {
        let version = proposal.version();
        let place = self.proposals.partition_point(|known| known.version() < version);
        let known = self
            .proposals
            .get(place)
            .is_some_and(|known| known.version() == version);
        if !known && version > self.base_version() {
            self.proposals.insert(place, proposal);
        }
    }

    /// Retires the base ring if everybody reads from the next, and forgets what belongs to rings that are no more.
    fn settle(&mut self) {
        if let Some(next) = self.next().cloned()
            && next.base == self.base_version()
            && self.all(next.version(), Step::Reading)
        {
            self.base = next.ring;
        }
        let base = self.base_version();
        self.proposals.retain(|proposal| proposal.base == base);
        let followers: BTreeSet<_> = self.proposals.iter().map(Proposal::version).collect();
        self.marks.retain(|mark| followers.contains(&mark.ring));
        if let Some(heard) = &self.heard
            && self
                .everybody()
                .into_iter()
                .all(|member| *member == self.me || heard.contains(member))
        {
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
