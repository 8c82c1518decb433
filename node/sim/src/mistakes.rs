//! Classic mistakes that can be made on purpose, one at a time, to see that the oracle notices.
//!
//! Only mistakes of the shell are here; those inside the core's machines are tried by patching the core.

/// What the simulated shell does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Mistake {
    /// A put's reply carries all that the replica has seen, not only what the client has.
    MergedContextReply,
    /// A write is acknowledged when it is written, before its sync.
    AckBeforeSync,
    /// A fallback's hint also counts as its primary's own acknowledgement, without the primary having it.
    HintCountedTwice,
    /// Hints are kept in memory only.
    ForgetHintsOnRestart,
    /// A hint is deleted when it is sent, before the owner's durable word.
    HintDeletedEarly,
    /// An exchange pulls and never pushes, and the peers' own exchanges do not run.
    OneWayExchange,
    /// A node whose disk was emptied goes on under its old incarnation.
    SameIncarnationAfterLoss,
    /// A node whose disk was emptied answers reads like any other.
    EmptiedCountsInReads,
    /// A tombstone is removed by one replica alone once it is old.
    ReapByTimeOnly,
    /// Reaping does not ask members that do not answer.
    ReapWithoutAskingAbsent,
    /// A read error is answered as "not there".
    ReadErrorIsAbsent,
    /// A retry is coordinated without its operation's id.
    ForgetOpIds,
    /// The node goes on after a failed sync.
    IgnoreFailedSync,
    /// What a replica answers replaces its record instead of being merged into it.
    OverwriteInsteadOfMerge,
    /// An empty fallback's answer fills a quorum as a primary's does.
    EmptyFallbackIsPrimary,
    /// Names are counted from what the record knows, as classic version vectors are: no incarnations, no epochs.
    PlainCounters,
    /// Merging looks at siblings alone, not at what the other side has seen.
    IgnoreSeenInMerge,
    /// Whoever answers at an address, or speaks from one, is taken for the member that had it.
    AddressIsIdentity,
    /// What a former owner sends is merged like any member's, and an old disk's hints are not doubted.
    GhostAdmitted,
    /// An unclean stop is taken for a clean one: epochs are given again.
    UncleanStopKeepsIncarnation,
    /// A node says that it knows the next ring while writes to the base alone are in flight, and nobody refuses them.
    KnownWithOldWritesInFlight,
    /// A node pulls for the next ring before everybody writes to it, and nobody refuses writes to the base alone.
    SyncsBeforeAllAreKnown,
    /// A suspect store is pulled from as any other.
    SuspectsAreSources,
    /// A suspect store pulls, and counts as whole, before the longest request can have ended.
    WholeTooEarly,
    /// Who reads from the next ring writes to that alone.
    BaseLeftTooEarly,
    /// A ring that was superseded is not written to any more.
    SupersededRingDropped,
    /// Who reads from a ring proposes another upon the same base.
    ProposesAlthoughItReads,
    /// What a node holds no more is erased before its owners have it.
    FreedErasedEarly,
    /// Writes are taken also from one who has forgotten a ring that is written to.
    ForgottenRingNotFenced,
    /// A suspect store counts as whole where no ring that its node knows of lists it.
    WholeWhereNotListed,
    /// Who has lost its memory says of others that they have lost nothing.
    ForgetfulVouches,
}

impl Mistake {
    /// All of them.
    pub const ALL: [Self; 31] = [
        Self::MergedContextReply,
        Self::AckBeforeSync,
        Self::HintCountedTwice,
        Self::ForgetHintsOnRestart,
        Self::HintDeletedEarly,
        Self::OneWayExchange,
        Self::SameIncarnationAfterLoss,
        Self::EmptiedCountsInReads,
        Self::ReapByTimeOnly,
        Self::ReapWithoutAskingAbsent,
        Self::ReadErrorIsAbsent,
        Self::ForgetOpIds,
        Self::IgnoreFailedSync,
        Self::OverwriteInsteadOfMerge,
        Self::EmptyFallbackIsPrimary,
        Self::UncleanStopKeepsIncarnation,
        Self::PlainCounters,
        Self::IgnoreSeenInMerge,
        Self::AddressIsIdentity,
        Self::GhostAdmitted,
        Self::KnownWithOldWritesInFlight,
        Self::SyncsBeforeAllAreKnown,
        Self::SuspectsAreSources,
        Self::WholeTooEarly,
        Self::BaseLeftTooEarly,
        Self::SupersededRingDropped,
        Self::ProposesAlthoughItReads,
        Self::FreedErasedEarly,
        Self::ForgottenRingNotFenced,
        Self::WholeWhereNotListed,
        Self::ForgetfulVouches,
    ];

    /// The mistake of that name, as `Debug` writes it.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|mistake| format!("{mistake:?}") == name)
    }
}
