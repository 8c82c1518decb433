//! Which keys are live in a range of the ring, from what several replicas say page by page. Paper: none (§4.1 has only
//! gets and puts).
//!
//! A key that was acknowledged by W of N replicas is on at least one of any `n - w + 1` of them, and so is a delete.
//! So that many replicas list the range side by side. A key is decided once all of them have looked beyond its
//! position, by merging what they hold: the same merge as everywhere, with the values left out.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::coordinator::{Candidate, FailedReplica, FailureKind};
use crate::types::{KeyHash, MemberId};
use crate::version::KeyState;
use crate::wire::{DecodeError, Reader};

/// Bytes of a position before the bucket's name.
const BUCKET_START: usize = 9;

/// Where a record stands in the order of the ring: by hash, then by bucket and key. The bytes have the same order:
/// hash (8 bytes, big-endian) ‖ length of the bucket's name (1 byte) ‖ bucket ‖ key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(Bytes);

/// A record as a scan finds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScannedKey {
    /// Where it stands; names the key.
    pub position: Position,
    /// Its state, [without values](KeyState::without_values).
    pub state: KeyState,
}

/// What a replica answers to a [`PageRequest`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanPage {
    /// Records in ascending order, all beyond the requested position.
    pub entries: Vec<ScannedKey>,
    /// The last position looked at; everything up to it is in this or an earlier page.
    pub position: Option<Position>,
    /// The range is exhausted.
    pub done: bool,
}

/// A page to fetch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageRequest {
    /// From whom.
    pub member: MemberId,
    /// The page begins beyond this position; `None`: at the start of the range.
    pub after: Option<Position>,
}

/// What a listing needs next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Pages that are under way, or that [`RangeListing::next_requests`] names.
    Pages,
    /// Nothing: every live key of the range has been given out.
    Done,
    /// More replicas than there are. Keys given out so far are right, the range is incomplete.
    Unavailable {
        /// Replicas that must list the range side by side.
        needed: u32,
        /// Replicas that can.
        got: u32,
        /// Who failed, and why.
        failed: Vec<FailedReplica>,
    },
}

/// Lists one range whose keys have the same primaries. Holds at most one page per replica.
#[derive(Debug)]
pub struct RangeListing {
    needed: usize,
    /// When the listing began: what has expired by then is not listed.
    wall_ms: u64,
    /// Replicas that list, up to `needed`.
    sources: BTreeMap<MemberId, Source>,
    /// Replicas that may take a failed one's place, next one last.
    spares: Vec<MemberId>,
    failed: Vec<FailedReplica>,
    /// Records that not all sources have looked beyond.
    pending: BTreeMap<Position, KeyState>,
    /// Every key up to here has been given out.
    decided: Option<Position>,
    decided_keys: VecDeque<Position>,
}

#[derive(Debug)]
struct Source {
    looked: Looked,
    asked: bool,
}

/// How far a source has looked. In order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Looked {
    UpTo(Option<Position>),
    ToTheEnd,
}

impl Position {
    /// Where `key` of `bucket` stands.
    ///
    /// # Errors
    /// If the bucket's name has more than 255 bytes.
    pub fn new(bucket: &str, key: &[u8]) -> Result<Self, DecodeError> {
        let length = u8::try_from(bucket.len()).map_err(|_| DecodeError::Invalid("bucket of a position"))?;
        let mut bytes = BytesMut::with_capacity(BUCKET_START + bucket.len() + key.len());
        bytes.put_u64(KeyHash::of(bucket, key).0);
        bytes.put_u8(length);
        bytes.put_slice(bucket.as_bytes());
        bytes.put_slice(key);
        Ok(Self(bytes.freeze()))
    }

    /// Reads a position that another node or a client sent.
    ///
    /// # Errors
    /// If the bytes do not name a key with its own hash.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes.clone());
        let hash = KeyHash(reader.fixed_u64()?);
        let length = reader.byte()?;
        let bucket = reader.take(usize::from(length))?;
        let key = reader.take(reader.remaining())?;
        let bucket = str::from_utf8(&bucket).map_err(|_| DecodeError::Invalid("bucket of a position"))?;
        if KeyHash::of(bucket, &key) == hash {
            Ok(Self(bytes))
        } else {
            Err(DecodeError::Invalid("hash of a position"))
        }
    }

    /// The bytes, in the order of positions.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The key's place on the ring.
    pub fn hash(&self) -> KeyHash {
        KeyHash(self.0.first_chunk().map_or(0, |hash| u64::from_be_bytes(*hash)))
    }

    /// The key's bucket.
    pub fn bucket(&self) -> &str {
        str::from_utf8(&self.0[BUCKET_START..self.key_start()]).unwrap_or_default()
    }

    /// The key.
    pub fn key(&self) -> Bytes {
        self.0.slice(self.key_start()..)
    }

    /// Both constructors have made sure that the name ends within the bytes.
    fn key_start(&self) -> usize {
        BUCKET_START + usize::from(self.0[BUCKET_START - 1])
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{:?}", self.hash(), self.bucket(), self.key())
    }
}

impl RangeListing {
    /// Lists a range with `needed` of its primaries (in preference order), beyond `after`. `needed` is
    /// [`Quorum::absence`](crate::quorum::Quorum::absence) for a listing that misses nothing acknowledged.
    /// Keys whose values have all expired by `wall_ms` are left out.
    pub fn new(candidates: Vec<Candidate>, needed: u32, after: Option<Position>, wall_ms: u64) -> Self {
        let mut spares = Vec::with_capacity(candidates.len());
        let mut failed = Vec::new();
        for Candidate {
            member, reachable, ..
        } in candidates.into_iter().rev()
        {
            if reachable {
                spares.push(member);
            } else {
                failed.push(FailedReplica {
                    member,
                    kind: FailureKind::Unreachable,
                });
            }
        }
        let mut listing = Self {
            needed: needed.max(1) as usize,
            wall_ms,
            sources: BTreeMap::new(),
            spares,
            failed,
            pending: BTreeMap::new(),
            decided: after,
            decided_keys: VecDeque::new(),
        };
        listing.fill_up();
        listing
    }

    /// Pages to fetch now; each is named once.
    pub fn next_requests(&mut self) -> Vec<PageRequest> {
        if self.sources.len() < self.needed {
            return Vec::new();
        }
        let mut requests = Vec::new();
        for (member, source) in &mut self.sources {
            // A source that is ahead waits, so that no more than one page of it is held.
            if let Looked::UpTo(after) = &source.looked
                && *after <= self.decided
                && !source.asked
            {
                source.asked = true;
                requests.push(PageRequest {
                    member: member.clone(),
                    after: after.clone(),
                });
            }
        }
        requests
    }

    /// Takes the answer to a page request. A page that does not advance, or that is out of order, counts as a
    /// failure of its replica; so does an error.
    pub fn add_page(&mut self, member: &MemberId, page: Result<ScanPage, FailureKind>) {
        let Some(source) = self.sources.get_mut(member).filter(|source| source.asked) else {
            return;
        };
        source.asked = false;
        match page.map(|page| (well_formed(&source.looked, &page), page)) {
            Ok((true, page)) => {
                source.looked = if page.done {
                    Looked::ToTheEnd
                } else {
                    Looked::UpTo(page.position)
                };
                for ScannedKey { position, state } in page.entries {
                    self.pending.entry(position).or_default().merge(&state);
                }
            }
            Ok((false, _)) => self.fail(member, FailureKind::Storage),
            Err(kind) => self.fail(member, kind),
        }
        self.decide();
    }

    /// The next live key, in order, as soon as it is certain.
    pub fn next_key(&mut self) -> Option<Position> {
        self.decided_keys.pop_front()
    }

    /// What is missing to the next key.
    pub fn progress(&self) -> Progress {
        if self.sources.len() < self.needed {
            let (needed, got) = (self.needed as u32, self.sources.len() as u32);
            Progress::Unavailable {
                needed,
                got,
                failed: self.failed.clone(),
            }
        } else if self
            .sources
            .values()
            .all(|source| source.looked == Looked::ToTheEnd)
        {
            Progress::Done
        } else {
            Progress::Pages
        }
    }

    fn fail(&mut self, member: &MemberId, kind: FailureKind) {
        self.sources.remove(member);
        self.failed.push(FailedReplica {
            member: member.clone(),
            kind,
        });
        self.fill_up();
    }

    /// Puts spares in the place of what failed. They begin where all keys are decided; what the failed one said
    /// beyond that stays, for it was true.
    fn fill_up(&mut self) {
        while self.sources.len() < self.needed
            && let Some(member) = self.spares.pop()
        {
            self.sources.insert(
                member,
                Source {
                    looked: Looked::UpTo(self.decided.clone()),
                    asked: false,
                },
            );
        }
    }

    /// Gives out what all sources have looked beyond.
    fn decide(&mut self) {
        let looked = self.sources.values().map(|source| &source.looked).min();
        let Some(looked) = looked.filter(|_| self.sources.len() >= self.needed).cloned() else {
            return;
        };
        while let Some(entry) = self.pending.first_entry()
            && Looked::UpTo(Some(entry.key().clone())) <= looked
        {
            let (position, state) = entry.remove_entry();
            if !state.is_deleted(self.wall_ms) {
                self.decided_keys.push_back(position);
            }
        }
        if let Looked::UpTo(position) = looked {
            self.decided = position.max(self.decided.take());
        }
    }
}

/// True if the page goes on where its source had stopped, in order, and leads somewhere.
fn well_formed(before: &Looked, page: &ScanPage) -> bool {
    let Looked::UpTo(after) = before else {
        return false;
    };
    let positions = page.entries.iter().map(|entry| Some(&entry.position));
    let ascending =
        positions.clone().is_sorted_by(|a, b| a < b) && positions.clone().all(|one| one > after.as_ref());
    let within = page.done || positions.last().flatten() <= page.position.as_ref();
    ascending && within && (page.done || page.position > *after)
}

#[cfg(test)]
mod tests;
