//! Two-phase removal: of records that are only tombstones (reaping), and of a record's memory of retired writers
//! (truncation). Paper: §4.4 truncates clocks by count alone and says nothing of tombstones; both can bring
//! overwritten values back there, neither can here.
//!
//! ```text
//!             first primary of the partition                       asked
//!   Start ─▶ Agree   same digest, quiet for the grace?             all N primaries
//!         ─▶ Clear   no hint, no stray copy, no handoff?           every member that is not declared dead
//!         ─▶ Prepare same digest, quiet *still*? then a mark       all N primaries
//!         ─▶ Commit  if mark and digest are unchanged: remove      N-1 primaries, and itself last
//! ```
//! Everybody answers by its own knowledge. A missing answer, or one "no", stops the key (or, to `Clear`, the round)
//! with nothing changed but marks. Nothing is ever removed by time alone.
//!
//! # Why nothing comes back
//! Let S be the state that goes. A *danger* is a state, anywhere, in which a write that S has seen is live but is not
//! live in S: a value v without the tombstone that supersedes it. The claim is: **when all N have prepared, there is
//! no danger left in the world**. Merging makes none out of states that are none, and new writes have new names, so
//! none appears later either. From then on it does not matter who removes S, when, and how many do.
//!
//! The argument rests on two rules that the caller keeps:
//!
//! - *Message life*: what an operation sends is merged within `life` of the operation's begin, or never; delays of the
//!   network and short pauses of the process included. `grace >= life`.
//! - *Quiet* time of a record counts from the last merge that **arrived** for it, whether or not it changed anything
//!   ([`QuietTable`]), and from the start of the process, or its latest standstill, if that is later.
//!
//! Let p be the time of the last `Prepare`. Every primary then has S and had it, untouched, since p - grace. All
//! `Clear` answers lie before the first `Prepare`. What could still carry v?
//!
//! - *A write or its retry to another fallback*, begun before p - life: dead by then. Begun later: its dot is not in S
//!   (a primary would have changed since), so it is news and not a danger. The same holds for hints that a
//!   member takes in after its `Clear`.
//! - *A hint, its delivery, or a second delivery that overtook the first*: the hint is gone at `Clear`, so its owner
//!   has acknowledged it. That was a merge that arrived there: before p - grace, since the owner was quiet at its
//!   `Prepare`. The first delivery began even earlier and is dead. This is why `Prepare` asks for quiet again, and why
//!   a merge that changes nothing counts.
//! - *A stray copy of an ex-owner*: likewise; it goes only after a durable acknowledgement by every owner.
//! - *A read repair*: its read began after p - life, or it is dead; so it holds the answer of a primary, which is S or
//!   more. It may bring S itself back: a tombstone, no danger, reaped again.
//! - *A push of anti-entropy*: comes from a primary, so the same.
//! - *A primary that fell behind S*: by a crash it cannot, because the mark is synced, and syncing it has synced all
//!   that was written before, S included. With its disk it lost everything: then it is suspect, refuses `Agree` and
//!   `Prepare`, is no source and pushes nothing. If it lost its disk after `Agree` and took a hint with v before the holder
//!   said `Clear`, then `Prepare` finds another digest, or a suspect: this is why S is compared after `Clear` again.
//! - *A member that is down with a hint or a copy*: does not answer, so nothing is removed, however long it takes.
//!   Declared dead, its requests are refused for ever. An old volume is a suspect store.
//! - *A ring change*: all answers are given under the round's epoch with no transition. A later owner gets its data from
//!   primaries and hints of this one, none of which is a danger.
//!
//! # Why it ends
//! Marked records take no part in exchanges and are not spread by read repair, so a primary that has removed S and one
//! that has it marked do not undo each other's work. (Recovery and handoff copy them all the same, see
//! [`visible_to_exchange`]: that may bring S back, never v.) A round that dies midway leaves some primaries at the target
//! and some marked. The next round finishes: *a primary that is already at the target (absent, or truncated) agrees if
//! some primary has a standing mark for this digest and target.* The mark shows that an earlier round got as far as
//! `Prepare`, and while it stands no exchange would bring S to the absent one. Without a mark, absence is no
//! agreement: that primary may merely not have heard of S, and anti-entropy will tell it. (Counting it would be safe by the
//! argument above; waiting costs nothing and keeps "identical at all N" true.) The round's own member goes last, so
//! that it still has the key on its list if others failed.
//!
//! Whatever arrives for a record clears its mark, and a late `Commit` then finds no mark, or another round's. Marks of
//! other epochs and old ones are dropped ([`Mark::is_stale`]), which is always safe: S is in the exchanges again and
//! spreads, and a later round begins anew.
//!
//! # A key created anew
//! Removing a record removes the node's own epoch entry for it in the same batch. The next write there has a new
//! actor, unknown to every old state, so no old state supersedes it; that does not depend on the questions above and
//! holds also when they are skipped (`force`, tests only): v may then come back as a sibling, the new value stays.

use bytes::Bytes;

use crate::version::{open_frame, seal_frame};
use crate::wire::{DecodeError, Reader, put_varint};

mod coordinator;
mod quiet;
mod replica;

pub use coordinator::{ReapCoordinator, ReapEffect, ReapEvent, ReapParties, ReapReport};
pub use quiet::QuietTable;
pub use replica::{Holdings, Removal, Replica, Standing, agree, clear, commit, prepare, visible_to_exchange};

const MARK_FORMAT_VERSION: u8 = 1;

/// Most keys of one round, so that its messages and its locks stay short.
pub const ROUND_KEYS_MAX: usize = 256;

/// One attempt to remove a batch of keys of one partition.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Round {
    /// The ring under which everybody is asked.
    pub epoch: u64,
    /// 64 random bits: never the same twice.
    pub id: u64,
}

/// What a record becomes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Target {
    /// Removed, with the node's own epoch entry. Only for a state that is
    /// nothing but tombstones and expired values.
    Absent,
    /// Replaced by the truncated state with this digest, whose siblings are the same. The caller sends that
    /// state along with `Commit`.
    Truncated(u64),
}

/// One key of a round.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Proposal {
    /// The record's data key.
    pub position: Bytes,
    /// Digest of the state that all primaries must hold.
    pub digest: u64,
    /// What is to be made of it.
    pub target: Target,
}

/// A primary's durable promise that it holds a state which may go. Stored beside the record, synced before it is
/// spoken of, and removed in the same batch as any merge that arrives for the record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Mark {
    /// Who may commit it.
    pub round: Round,
    /// The state that was marked.
    pub digest: u64,
    /// What it becomes.
    pub target: Target,
}

/// How a primary stands to a proposal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Opinion {
    /// It holds the state, quiet for the grace.
    Holds {
        /// With a standing mark for the same digest and target, from this or an earlier round.
        marked: bool,
    },
    /// It is at the target already, quiet for the grace.
    AtTarget,
    /// It stops the key.
    Refuses(Refusal),
}

/// Why a replica stops a removal. Nothing is wrong: a later round asks again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, thiserror::Error)]
pub enum Refusal {
    /// It uses another ring.
    #[error("the replica uses another ring epoch; the round begins anew when they agree")]
    OtherEpoch,
    /// A ring change is under way.
    #[error("a ring change is under way; nothing is removed until it ends")]
    Transition,
    /// Its store is suspect: it does not know what it has forgotten.
    #[error("the replica's store is suspect; nothing is removed until it is whole")]
    Suspect,
    /// It holds another state.
    #[error("the replica holds another state; anti-entropy has to make them equal first")]
    Differs,
    /// Something arrived for the record within the grace.
    #[error("the record was written to within the grace; it is asked again later")]
    NotQuiet,
    /// It holds a hint, a stray copy or a handoff for the partition.
    #[error("the member holds data for the partition that its owners may lack; it has to be delivered first")]
    NotClear,
    /// The mark is gone or is another round's.
    #[error("the mark of this round is gone; a later round begins anew")]
    NotMarked,
    /// No answer, or a damaged one.
    #[error("no answer; nothing is removed without one")]
    Silent,
}

impl Mark {
    /// The mark as it is stored.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(48);
        seal_frame(&mut out, MARK_FORMAT_VERSION, |out| {
            put_varint(out, self.round.epoch);
            out.extend_from_slice(&self.round.id.to_be_bytes());
            out.extend_from_slice(&self.digest.to_be_bytes());
            match self.target {
                Target::Absent => out.push(0),
                Target::Truncated(digest) => {
                    out.push(1);
                    out.extend_from_slice(&digest.to_be_bytes());
                }
            }
        });
        out.into()
    }

    /// Reads a stored mark.
    ///
    /// # Errors
    /// If the bytes are not exactly what [`encode`](Self::encode) writes.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(open_frame(bytes, MARK_FORMAT_VERSION)?);
        let round = Round {
            epoch: reader.varint()?,
            id: reader.fixed_u64()?,
        };
        let digest = reader.fixed_u64()?;
        let target = match reader.byte()? {
            0 => Target::Absent,
            1 => Target::Truncated(reader.fixed_u64()?),
            _ => return Err(DecodeError::Invalid("target")),
        };
        reader.finish()?;
        Ok(Self {
            round,
            digest,
            target,
        })
    }

    /// True if the mark no longer stands and is to be dropped, by which the record joins the exchanges again: it is
    /// another ring's, or it was left behind by a round that died. `age_ms` is monotonic, since the
    /// mark was set or since the start of the process, whichever is later.
    pub fn is_stale(&self, epoch: u64, age_ms: u64, life_max_ms: u64) -> bool {
        self.round.epoch != epoch || age_ms > life_max_ms
    }
}
