//! Whom this node serves: its peers, if they mean this node, and go by rings that it goes by.

use dynamo_core::{
    transition::Fenced,
    types::{Incarnation, MemberId},
};
use dynamo_proto::peer::{Header, RingVersion};

use super::{
    gossip::ring_version_from_proto,
    status::{Failure, Reason},
};
use crate::{
    node::{Node, Placed},
    request::not_ready,
};

/// Whether messages about data are served that have this header: a node that stops or waits for its ring serves none, and
/// nobody is served who has no part in the rings or goes by one that was retired: its old data must not come back, and what
/// it writes must not be lost.
pub(super) fn data(node: &Node, header: Option<&Header>) -> Result<(), Failure> {
    check(node, header)?;
    if node.awaits_ring() {
        // It is well, and learns soon of the ring that the sender knows.
        node.catch_up();
        let message = "this node has joined, and has not heard yet of a ring that lists it";
        return Err(Failure::new(Reason::StaleRing, message));
    }
    let placed = node.placed()?;
    header.map_or(Ok(()), |header| admit(node, &placed, header))
}

/// Checks who speaks, and that it is meant for this node. Gives the header of the answer.
pub(super) fn check(node: &Node, header: Option<&Header>) -> Result<Header, Failure> {
    let membership = node.membership();
    let mine = membership
        .header("")
        .ok_or_else(|| not_ready(membership.not_ready_reason()))?;
    let theirs = header.ok_or_else(|| Failure::invalid("a message between nodes must have a header"))?;
    if theirs.cluster_id != mine.cluster_id {
        return Err(Failure::new(
            Reason::ForeignCluster,
            format!(
                "{} belongs to another cluster than {}",
                theirs.member_id, mine.member_id
            ),
        ));
    }
    if !theirs.recipient.is_empty() && theirs.recipient != mine.member_id {
        return Err(Failure::new(
            Reason::WrongRecipient,
            format!("this is {}, not {}", mine.member_id, theirs.recipient),
        ));
    }
    Ok(mine)
}

/// Whether a message about data is taken from its sender.
fn admit(node: &Node, placed: &Placed, header: &Header) -> Result<(), Failure> {
    let member = MemberId::new(&header.member_id).map_err(|error| Failure::invalid(error.to_string()))?;
    let (base, reads) = (header.ring_epoch, header.reads_epoch);
    let life = header.incarnation.map(|life| Incarnation {
        generation: life.generation,
        id: life.id,
    });
    let known = node.membership().entry(&member);
    if let (Some(life), Some(known)) = (life, known)
        && known.incarnation.generation > life.generation
    {
        let message = format!("this life of {member} ({life}) is over: it has begun another one");
        return Err(Failure::new(Reason::NotAMember, message));
    }
    let newest = header.newest.unwrap_or(RingVersion {
        epoch: base,
        hash: u64::MAX,
    });
    let newest = ring_version_from_proto(newest);
    if newest > placed.newest() {
        node.catch_up();
    }
    if placed.layouts().is_behind(newest) {
        let message = format!("{member} has not heard yet of ring {}", placed.newest().epoch);
        return Err(Failure::new(Reason::StaleRing, message));
    }
    placed.layouts().admits(&member, base, reads).map_err(|fenced| {
        let reason = match fenced {
            Fenced::NotAMember => Reason::NotAMember,
            Fenced::Retired => Reason::StaleRing,
        };
        Failure::new(reason, format!("{member} is refused: {fenced}"))
    })
}

/// A write to a node that is to join, and has not heard yet of the ring that lists it: it is taken, for it is going to be
/// one of the key's primaries. So nobody has to wait until the news of a ring are everywhere.
pub(super) fn is_early(node: &Node, header: Option<&Header>) -> bool {
    // Asked of every message, and nearly always no.
    if !node.awaits_ring() {
        return false;
    }
    let Some(header) = header.filter(|header| check(node, Some(*header)).is_ok()) else {
        return false;
    };
    let early = {
        let (membership, base) = (node.membership(), header.ring_epoch);
        let known = membership.ring().map(|(_, ring)| ring);
        known.is_some_and(|ring| {
            let listed =
                MemberId::new(&header.member_id).is_ok_and(|sender| ring.index_of(&sender).is_some());
            base > ring.epoch() || (base == ring.epoch() && listed)
        })
    };
    if early {
        node.catch_up();
    }
    early
}
