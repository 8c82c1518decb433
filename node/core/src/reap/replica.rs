//! What one member answers in a round, and does. Every function is called with what was read under the key's lock.

use super::{Mark, Opinion, Proposal, Refusal, Round, Target};

/// How the whole node stands when it is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Epoch of the ring it uses.
    pub epoch: u64,
    /// A ring change is under way.
    pub transition: bool,
    /// Its store is suspect: emptied, rolled back or repaired, and not whole again.
    pub suspect: bool,
}

/// What a member keeps of a partition on behalf of others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Holdings {
    /// Hints for one of its keys, whoever they are for.
    pub hints: bool,
    /// Records of it, while not one of its primaries.
    pub strays: bool,
    /// A handoff from or to this member that has not ended.
    pub handoff: bool,
}

/// A record on a primary that is asked about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replica {
    /// Digest of the state; `None`: there is no record. (A read error is neither: then no answer is given.)
    pub digest: Option<u64>,
    /// By this node's own clock and judgement the state is nothing but tombstones and expired values.
    pub reapable: bool,
    /// The mark stored beside it, stale ones left out.
    pub mark: Option<Mark>,
    /// Monotonic milliseconds since a merge last arrived for it, changing or not, or a local write; no more than
    /// since the start of the process. For an absent record: since that start.
    pub quiet_ms: u64,
}

/// What a commit does, in one batch that also removes the mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Removal {
    /// Remove the record and the node's own epoch entry for it, so that its next write here has a new actor.
    Delete,
    /// Store the truncated state that came with the commit, if it has this digest; else refuse. The epoch entry stays.
    Replace(u64),
}

/// Answers [`Agree`](super::ReapEffect::Agree) for one key.
///
/// `grace_ms` is at least the message life (see the module) and the same on all nodes.
pub fn agree(
    standing: Standing,
    round: Round,
    proposal: &Proposal,
    replica: &Replica,
    grace_ms: u64,
) -> Opinion {
    if let Err(refusal) = admits(standing, round) {
        return Opinion::Refuses(refusal);
    }
    let at_target = match proposal.target {
        Target::Absent => replica.digest.is_none(),
        Target::Truncated(digest) => replica.digest == Some(digest),
    };
    let holds =
        replica.digest == Some(proposal.digest) && (replica.reapable || proposal.target != Target::Absent);
    if !at_target && !holds {
        return Opinion::Refuses(Refusal::Differs);
    }
    if replica.quiet_ms < grace_ms {
        return Opinion::Refuses(Refusal::NotQuiet);
    }
    if at_target {
        return Opinion::AtTarget;
    }
    let marked = replica
        .mark
        .is_some_and(|mark| (mark.digest, mark.target) == (proposal.digest, proposal.target));
    Opinion::Holds { marked }
}

/// Answers [`Prepare`](super::ReapEffect::Prepare) for one key: the same question as [`agree`], asked again after
/// everybody was clear. On `Holds` the returned mark has to be stored *and synced* before the answer leaves, in
/// every durability mode; it replaces an earlier one. The quiet time goes on: a mark is no merge.
pub fn prepare(
    standing: Standing,
    round: Round,
    proposal: &Proposal,
    replica: &Replica,
    grace_ms: u64,
) -> (Opinion, Option<Mark>) {
    let opinion = agree(standing, round, proposal, replica, grace_ms);
    let mark = matches!(opinion, Opinion::Holds { .. }).then_some(Mark {
        round,
        digest: proposal.digest,
        target: proposal.target,
    });
    (opinion, mark)
}

/// Answers [`Commit`](super::ReapEffect::Commit) for one key: compare and set on mark and digest.
///
/// Asks neither for the epoch nor for quiet: once all have prepared, nothing can make the removal wrong.
///
/// # Errors
/// If the mark is not this round's, or the state is not the one it names.
pub fn commit(round: Round, replica: &Replica) -> Result<Removal, Refusal> {
    let mark = replica
        .mark
        .filter(|mark| mark.round == round)
        .ok_or(Refusal::NotMarked)?;
    if replica.digest != Some(mark.digest) {
        return Err(Refusal::Differs);
    }
    Ok(match mark.target {
        Target::Absent => Removal::Delete,
        Target::Truncated(digest) => Removal::Replace(digest),
    })
}

/// Answers [`Clear`](super::ReapEffect::Clear): this member keeps nothing of the partition that a primary may lack.
///
/// # Errors
/// What it keeps, or why it cannot know.
pub fn clear(standing: Standing, round: Round, holdings: Holdings) -> Result<(), Refusal> {
    admits(standing, round)?;
    if holdings.hints || holdings.strays || holdings.handoff {
        return Err(Refusal::NotClear);
    }
    Ok(())
}

/// False: the record counts in no Merkle tree, is no key of an exchange between whole replicas, and its state repairs
/// nobody after a read. It still answers reads, and still merges; merging makes this true again, for that removes the mark.
///
/// Recovery of a suspect store and handoff are no such exchanges. They copy marked records too, without the mark: a
/// record that is to be truncated holds live values, which an emptied primary must not count as whole without.
pub fn visible_to_exchange(mark: Option<&Mark>) -> bool {
    mark.is_none()
}

fn admits(standing: Standing, round: Round) -> Result<(), Refusal> {
    if standing.suspect {
        Err(Refusal::Suspect)
    } else if standing.epoch != round.epoch {
        Err(Refusal::OtherEpoch)
    } else if standing.transition {
        Err(Refusal::Transition)
    } else {
        Ok(())
    }
}
