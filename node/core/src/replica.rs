//! What one node does to one record: coordinate a client's write, or merge what another node sent. Paper: §4.4, §5.
//!
//! Pure: the caller reads the record and its epoch entry, holds the key's lock over the call, and stores what comes
//! back as one atomic batch. An *error* while reading the record is not an absent record: then nothing may be
//! coordinated.

use bytes::Bytes;

use crate::types::{Incarnation, OpId};
use crate::version::{
    Actor, COUNTER_MAX, Content, Dot, KeyState, STAMP_AHEAD_MS_MAX, Seen, Sibling, Stamp, open_frame,
    put_actor, read_actor, seal_frame,
};
use crate::wire::{DecodeError, Reader, put_varint};

const ENTRY_FORMAT_VERSION: u8 = 1;

/// Gives the epochs of one incarnation, each once.
///
/// Only a clean stop lets an incarnation live on, with [`next_epoch`](Self::next_epoch) as it was persisted then;
/// after any other stop the incarnation is new and counts from where it likes.
#[derive(Debug)]
pub struct Minter {
    incarnation: Incarnation,
    next_epoch: u64,
}

/// Where a node's own counting for one record stands. Stored beside the record, in a key space of its own; never
/// replicated, exported or taken in from elsewhere, so that a copy of the data is not a copy of the right to count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpochEntry {
    /// The node's present actor for the record.
    pub actor: Actor,
    /// The last counter it gave.
    pub counter: u64,
}

/// A client's put or delete, as the coordinator carries it out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Update {
    /// The new value; or a tombstone, which is how a delete is written.
    pub content: Content,
    /// What the client has seen, and so supersedes. Empty for a blind put, which supersedes nothing.
    pub context: Seen,
    /// What the client repeats when it retries.
    pub op_id: Option<OpId>,
    /// Taken from this node's clock.
    pub stamp: Stamp,
    /// Milliseconds since 1970.
    pub expires_at_ms: Option<u64>,
}

/// A write that a coordinator has given its place among the versions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Coordinated {
    /// The record to store, together with `entry`.
    pub state: KeyState,
    /// The epoch entry to store in the same batch. `None` if `replayed`: nothing is to be stored.
    pub entry: Option<EpochEntry>,
    /// What to send to the other replicas: this write alone, however large the record is.
    pub delta: KeyState,
    /// The write's name.
    pub dot: Dot,
    /// A retry of a write that the record already has: `state` is the stored one, `dot` and `delta` are the first
    /// write's, to be sent again. Acknowledge it no sooner than the first write would have been.
    pub replayed: bool,
}

/// How large a record may be for a write to add a sibling to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SiblingCaps {
    /// Siblings, the new one included.
    pub siblings: usize,
    /// Bytes of their values, the new one included.
    pub bytes: usize,
}

impl SiblingCaps {
    /// Everything may be added.
    pub const NONE: Self = Self {
        siblings: usize::MAX,
        bytes: usize::MAX,
    };

    fn check(self, stored: &KeyState, added: &Sibling) -> Result<(), UpdateRefused> {
        let siblings = stored.siblings().len();
        if siblings >= self.siblings {
            return Err(UpdateRefused::TooManySiblings {
                siblings,
                siblings_max: self.siblings,
            });
        }
        let size = |sibling: &Sibling| sibling.value().map_or(0, Bytes::len);
        let bytes = stored.siblings().values().map(size).sum::<usize>();
        if siblings > 0 && bytes + size(added) > self.bytes {
            return Err(UpdateRefused::SiblingsTooLarge {
                bytes,
                bytes_max: self.bytes,
            });
        }
        Ok(())
    }
}

/// Why a client's write was not given a place. Nothing changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpdateRefused {
    /// The write would add a sibling to a key that has as many as are allowed.
    #[error(
        "the key has {siblings} siblings, {siblings_max} at most can be added to; get it, and put one value with the context that the get returns"
    )]
    TooManySiblings {
        /// Siblings of the record.
        siblings: usize,
        /// The limit in effect.
        siblings_max: usize,
    },
    /// The write would add a sibling to a key whose siblings have as many bytes as are allowed.
    #[error(
        "the key's siblings have {bytes} bytes, {bytes_max} at most with the new one; get it, and put one value with the context that the get returns"
    )]
    SiblingsTooLarge {
        /// Of the values of the record.
        bytes: usize,
        /// The limit in effect.
        bytes_max: usize,
    },
    /// In a bucket whose last write wins, the write would hide all others until that time has come.
    #[error(
        "the write's stamp lies {ahead_ms} ms ahead of this node's clock, {max} ms at most are accepted; check the clocks of the nodes",
        max = STAMP_AHEAD_MS_MAX
    )]
    StampAhead {
        /// Milliseconds.
        ahead_ms: u64,
    },
}

/// A record after a merge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Merged {
    /// The record to store.
    pub state: KeyState,
    /// False: the stored record already had everything, and nothing needs to be written.
    pub changed: bool,
}

/// Gives a client's write its dot and puts it into the record.
///
/// Drops the siblings that the context covers, adds the context to what the record has seen, and adds the new value
/// under this node's next dot. The dot may leave the node as soon as this returns, before anything is on disk: after
/// a crash the incarnation is another one, so the dot is never given again.
///
/// `minter` has advanced if the returned entry's epoch is a new one. A write that would add a sibling beyond
/// the `caps` is refused; one that supersedes at least one sibling never is.
///
/// # Errors
/// If the key has too many siblings, or too large ones.
pub fn coordinate(
    stored: Option<&KeyState>,
    entry: Option<&EpochEntry>,
    minter: &mut Minter,
    update: Update,
    caps: SiblingCaps,
) -> Result<Coordinated, UpdateRefused> {
    if let Some(first) = stored.and_then(|stored| replay(stored, &update)) {
        return Ok(first);
    }
    let Update {
        content,
        context,
        op_id,
        stamp,
        expires_at_ms,
    } = update;
    let sibling = Sibling {
        stamp,
        expires_at_ms,
        op_id,
        content,
    };
    if let Some(stored) = stored {
        let adds = !stored.siblings().keys().any(|dot| context.contains(dot));
        if adds {
            caps.check(stored, &sibling)?;
        }
    }
    let entry = next_entry(entry, minter, |actor| {
        let stored_max = stored.map_or(0, |stored| stored.seen().counter_max(actor));
        stored_max.max(context.counter_max(actor))
    });
    let dot = Dot {
        actor: entry.actor,
        counter: entry.counter,
    };
    let delta = KeyState::from_write(&context, dot, sibling);
    // Coordinating is merging one's own delta: the dot is new, so the record drops exactly what the context covers.
    let Merged { state, .. } = merge(stored.cloned(), &delta);
    Ok(Coordinated {
        state,
        entry: Some(entry),
        delta,
        dot,
        replayed: false,
    })
}

/// As [`coordinate`], in a bucket whose last write wins: the write also supersedes every sibling here with a smaller
/// stamp, so that a record keeps one value however many blind puts it gets. Its stamp is made larger than those here, as a
/// hybrid logical clock does, so that clocks which differ a little never hide the later of two writes from those who
/// know both; but a stamp too far ahead of `wall_ms` comes from a wrong clock: it is not passed, its value stays and
/// shows. A retry of a sibling that is here is found as such, and supersedes nothing. Row D48.
///
/// # Errors
/// If the write's stamp lies too far ahead of `wall_ms`: this node's clock has been set back.
pub fn coordinate_lww(
    stored: Option<&KeyState>,
    entry: Option<&EpochEntry>,
    minter: &mut Minter,
    mut update: Update,
    wall_ms: u64,
) -> Result<Coordinated, UpdateRefused> {
    if !update.stamp.is_plausible(wall_ms) {
        let ahead_ms = update.stamp.ms() - wall_ms;
        return Err(UpdateRefused::StampAhead { ahead_ms });
    }
    if let Some(stored) = stored {
        // Before anything is added to its context: the first attempt must not supersede what the retry could.
        if let Some(first) = replay(stored, &update) {
            return Ok(first);
        }
        let known = stored.siblings().values().map(|sibling| sibling.stamp);
        let latest = known.filter(|stamp| stamp.is_plausible(wall_ms)).max();
        update.stamp = update.stamp.max(latest.map_or(update.stamp, Stamp::next));
        let stays = |sibling: &Sibling| update.repeats(sibling) || sibling.stamp >= update.stamp;
        if stored.siblings().values().any(stays) {
            let older = stored.siblings().iter().filter(|(_, sibling)| !stays(sibling));
            let older: Seen = older.map(|(dot, _)| *dot).collect();
            update.context.union(&older);
        } else {
            // The same, in fewer bytes.
            update.context.union(stored.seen());
        }
    }
    coordinate(stored, entry, minter, update, SiblingCaps::NONE)
}

/// Merges what another node sent into the record: the one replica operation. Never refused.
pub fn merge(stored: Option<KeyState>, incoming: &KeyState) -> Merged {
    let mut state = stored.unwrap_or_default();
    let changed = state.merge(incoming);
    Merged { state, changed }
}

impl Update {
    /// True if it is a retry of the write that made `sibling`; see [`Sibling::same_operation`].
    fn repeats(&self, sibling: &Sibling) -> bool {
        self.op_id.is_some() && self.op_id == sibling.op_id && self.content == sibling.content
    }
}

impl Minter {
    /// Continues an incarnation's epochs at `next_epoch`.
    pub fn new(incarnation: Incarnation, next_epoch: u64) -> Self {
        Self {
            incarnation,
            next_epoch,
        }
    }

    /// The epoch that will be given next: what a clean stop must persist.
    pub fn next_epoch(&self) -> u64 {
        self.next_epoch
    }

    /// Whose epochs these are.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    fn mint(&mut self) -> Actor {
        let actor = Actor {
            incarnation: self.incarnation.id,
            epoch: self.next_epoch,
        };
        self.next_epoch += 1;
        actor
    }
}

impl EpochEntry {
    /// The entry as it is stored.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(24);
        seal_frame(&mut out, ENTRY_FORMAT_VERSION, |out| {
            put_actor(out, self.actor);
            put_varint(out, self.counter);
        });
        out.into()
    }

    /// Reads a stored entry.
    ///
    /// # Errors
    /// If the bytes are not exactly what [`encode`](Self::encode) writes.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(open_frame(bytes, ENTRY_FORMAT_VERSION)?);
        let entry = Self {
            actor: read_actor(&mut reader)?,
            counter: reader.varint()?,
        };
        reader.finish()?;
        if (1..=COUNTER_MAX).contains(&entry.counter) {
            Ok(entry)
        } else {
            Err(DecodeError::Invalid("counter"))
        }
    }
}

/// The first write, if this one is its retry: the same operation is live, the context does not cover it, and all
/// that the context covers is known here. Otherwise there is something new to store, so it is a write of its own.
fn replay(stored: &KeyState, retry: &Update) -> Option<Coordinated> {
    let (dot, first) = stored
        .siblings()
        .iter()
        .find(|(_, sibling)| retry.repeats(sibling))?;
    if retry.context.contains(dot) || !stored.seen().descends(&retry.context) {
        return None;
    }
    let delta = KeyState::from_write(&retry.context, *dot, first.clone());
    Some(Coordinated {
        state: stored.clone(),
        entry: None,
        delta,
        dot: *dot,
        replayed: true,
    })
}

/// The entry of the next write.
///
/// The stored entry counts on, unless it belongs to another life of this node, or `known_max` says that somebody
/// knows a write of its actor which the entry does not: then this node's memory is older than its name, counting on
/// could give a dot twice, and a new epoch begins. The same test holds for the new epoch, against forged contexts.
pub(crate) fn next_entry(
    entry: Option<&EpochEntry>,
    minter: &mut Minter,
    known_max: impl Fn(Actor) -> u64,
) -> EpochEntry {
    if let Some(EpochEntry { actor, counter }) = entry.copied() {
        let own = actor.incarnation == minter.incarnation.id;
        if own && known_max(actor) <= counter && counter < COUNTER_MAX {
            return EpochEntry {
                actor,
                counter: counter + 1,
            };
        }
    }
    loop {
        let actor = minter.mint();
        // Ends: a set names finitely many actors, and every round asks for another one.
        if known_max(actor) == 0 {
            return EpochEntry { actor, counter: 1 };
        }
    }
}

#[cfg(test)]
mod tests;
