//! Byte layouts of keys. No other file knows them.
//!
//! ```text
//!   data key   key hash, 8 bytes big-endian ‖ length of the bucket's name, 1 byte ‖ bucket ‖ key
//!   hint key   length of the owner's id, 1 byte ‖ owner ‖ data key: one owner's hints are one range, in its order
//!   meta key   an ASCII name
//! ```
//!
//! The top bits of the hash are the partition, so each partition is one contiguous range whatever their number Q, and
//! doubling Q moves no byte. Paper: §6.2, strategy 3 (partitions that can be moved as a whole).

use std::{
    fmt,
    ops::{Bound, RangeInclusive},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use dynamo_core::listing::Position;
use dynamo_core::types::{KeyHash, MemberId};

use super::KeyRange;

/// Bytes of a bucket's name at most; admission holds names to less.
pub const BUCKET_BYTES_MAX: usize = u8::MAX as usize;

const HASH_BYTES: usize = 8;

/// A record's place in [`Space::Data`](super::Space::Data) and [`Space::Epochs`](super::Space::Epochs); also a
/// position in a listing. Ordered as the store orders: by hash, length of the bucket's name, bucket, key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataKey(Bytes);

/// Why a data key cannot be built or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The bucket's name does not fit.
    #[error("a bucket's name has {0} bytes, at most {BUCKET_BYTES_MAX} can be stored")]
    BucketTooLong(usize),
    /// The bytes are not a data key.
    #[error("{0} bytes are not a data key: they end inside the hash or the bucket's name")]
    Truncated(usize),
    /// The bucket's name is not text.
    #[error("a data key's bucket is not UTF-8")]
    BucketNotText,
    /// A hint's key begins with something else than the id of a member.
    #[error("a hint's owner is not the id of a member")]
    OwnerNotAMember,
    /// The hash is not that of bucket and key.
    #[error("a data key's hash is {found}, that of its bucket and key is {expected}")]
    WrongHash {
        /// As stored.
        found: KeyHash,
        /// As computed.
        expected: KeyHash,
    },
}

impl DataKey {
    /// The place of a key of a bucket.
    ///
    /// # Errors
    /// If the bucket's name is too long.
    pub fn new(bucket: &str, key: &[u8]) -> Result<Self, KeyError> {
        Self::with_hash(KeyHash::of(bucket, key), bucket, key)
    }

    /// Like [`DataKey::new`] for a caller that has computed the hash already.
    ///
    /// # Errors
    /// If the bucket's name is too long.
    pub fn with_hash(hash: KeyHash, bucket: &str, key: &[u8]) -> Result<Self, KeyError> {
        let length = u8::try_from(bucket.len()).map_err(|_| KeyError::BucketTooLong(bucket.len()))?;
        let mut bytes = BytesMut::with_capacity(HASH_BYTES + 1 + bucket.len() + key.len());
        bytes.put_u64(hash.0);
        bytes.put_u8(length);
        bytes.put_slice(bucket.as_bytes());
        bytes.put_slice(key);
        Ok(Self(bytes.freeze()))
    }

    /// Takes bytes from a store or a position from a peer, and checks that they are what [`DataKey::new`] makes of
    /// their bucket and key.
    ///
    /// # Errors
    /// If they are not.
    pub fn parse(bytes: Bytes) -> Result<Self, KeyError> {
        let truncated = KeyError::Truncated(bytes.len());
        let length = usize::from(*bytes.get(HASH_BYTES).ok_or(truncated.clone())?);
        let bucket = bytes
            .get(HASH_BYTES + 1..HASH_BYTES + 1 + length)
            .ok_or(truncated)?;
        let bucket = std::str::from_utf8(bucket).map_err(|_| KeyError::BucketNotText)?;
        let expected = KeyHash::of(bucket, &bytes[HASH_BYTES + 1 + length..]);
        let found = hash_of(&bytes);
        if found == expected {
            Ok(Self(bytes))
        } else {
            Err(KeyError::WrongHash { found, expected })
        }
    }

    /// The key's hash.
    pub fn hash(&self) -> KeyHash {
        hash_of(&self.0)
    }

    /// The bucket's name.
    pub fn bucket(&self) -> &str {
        std::str::from_utf8(&self.0[HASH_BYTES + 1..self.key_start()]).unwrap_or_default()
    }

    /// The client's key.
    pub fn key(&self) -> Bytes {
        self.0.slice(self.key_start()..)
    }

    /// Where the record stands among others.
    pub fn position(&self) -> Position {
        Position::of_checked(self.0.clone())
    }

    /// As stored, and as position in a listing.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    fn key_start(&self) -> usize {
        HASH_BYTES + 1 + usize::from(self.0[HASH_BYTES])
    }
}

impl fmt::Debug for DataKey {
    /// The hash alone: clients' keys do not belong in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.hash())
    }
}

/// The part of a hash range that follows a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashRange {
    lower: Bound<Bytes>,
    upper: Bound<Bytes>,
}

impl HashRange {
    /// All data keys whose hash is in the range, such as a partition's.
    pub fn all(hashes: &RangeInclusive<u64>) -> Self {
        let edge = |hash: u64| Bytes::copy_from_slice(&hash.to_be_bytes());
        Self {
            lower: Bound::Included(edge(*hashes.start())),
            upper: hashes
                .end()
                .checked_add(1)
                .map_or(Bound::Unbounded, |next| Bound::Excluded(edge(next))),
        }
    }

    /// Those of them that follow a position of an earlier page. A position before the range leaves it whole.
    #[must_use]
    pub fn after(mut self, position: &DataKey) -> Self {
        let start = match &self.lower {
            Bound::Included(bytes) | Bound::Excluded(bytes) => bytes.clone(),
            Bound::Unbounded => Bytes::new(),
        };
        if position.0 >= start {
            self.lower = Bound::Excluded(position.0.clone());
        }
        self
    }

    /// As [`Store::scan`](super::Store::scan) takes it.
    pub fn as_range(&self) -> KeyRange<'_> {
        (
            self.lower.as_ref().map(AsRef::as_ref),
            self.upper.as_ref().map(AsRef::as_ref),
        )
    }
}

/// Where a writer keeps a record: at its data key; in the store of hints, below the owner's id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    bytes: Bytes,
    /// Where the data key begins.
    key_at: usize,
}

impl Place {
    /// Of the hint that is kept for a member.
    pub fn hint(owner: &MemberId, key: &DataKey) -> Self {
        let mut bytes = owner_prefix(owner);
        let key_at = bytes.len();
        bytes.put_slice(key.as_bytes());
        Self {
            bytes: bytes.freeze(),
            key_at,
        }
    }

    /// Takes the key of a stored hint apart.
    ///
    /// # Errors
    /// If it does not begin with a member's id, or no data key follows.
    pub fn parse_hint(bytes: &Bytes) -> Result<(MemberId, DataKey), KeyError> {
        let truncated = || KeyError::Truncated(bytes.len());
        let length = usize::from(*bytes.first().ok_or_else(truncated)?);
        let owner = bytes.get(1..=length).ok_or_else(truncated)?;
        let owner = std::str::from_utf8(owner).map_err(|_| KeyError::OwnerNotAMember)?;
        let owner = MemberId::new(owner).map_err(|_| KeyError::OwnerNotAMember)?;
        Ok((owner, DataKey::parse(bytes.slice(1 + length..))?))
    }

    /// As stored.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The hash of the record's key.
    pub fn hash(&self) -> KeyHash {
        hash_of(&self.bytes[self.key_at..])
    }
}

impl From<DataKey> for Place {
    fn from(key: DataKey) -> Self {
        Self {
            bytes: key.0,
            key_at: 0,
        }
    }
}

impl From<&DataKey> for Place {
    fn from(key: &DataKey) -> Self {
        key.clone().into()
    }
}

impl fmt::Debug for Place {
    /// The hash alone, as for a data key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.hash())
    }
}

/// All hints of one owner, or those of a hash range, as [`Store::scan`](super::Store::scan) takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HintRange {
    lower: Bound<Bytes>,
    upper: Bound<Bytes>,
}

impl HintRange {
    /// One owner's hints, those alone that follow a key of an earlier page if one is given.
    pub fn of(owner: &MemberId, after: Option<&DataKey>) -> Self {
        let hashes = Self::hashes(owner, &(0..=u64::MAX));
        match after {
            Some(key) => Self {
                lower: Bound::Excluded(Place::hint(owner, key).bytes),
                ..hashes
            },
            None => hashes,
        }
    }

    /// One owner's hints for keys in a range of hashes, such as a partition.
    pub fn hashes(owner: &MemberId, hashes: &RangeInclusive<u64>) -> Self {
        let edge = |hash: u64| {
            let mut bytes = owner_prefix(owner);
            bytes.put_u64(hash);
            bytes.freeze()
        };
        let next = hashes.end().checked_add(1);
        let upper = next.map_or_else(|| successor(owner), edge);
        Self {
            lower: Bound::Included(edge(*hashes.start())),
            upper: Bound::Excluded(upper),
        }
    }

    /// As [`Store::scan`](super::Store::scan) takes it.
    pub fn as_range(&self) -> KeyRange<'_> {
        (
            self.lower.as_ref().map(AsRef::as_ref),
            self.upper.as_ref().map(AsRef::as_ref),
        )
    }
}

/// The first key that sorts behind all hints of an owner. The last byte of an id is no 0xff, so it exists.
fn successor(owner: &MemberId) -> Bytes {
    let mut bytes = owner_prefix(owner);
    if let Some(last) = bytes.last_mut() {
        *last += 1;
    }
    bytes.freeze()
}

fn owner_prefix(owner: &MemberId) -> BytesMut {
    let name = owner.as_str().as_bytes();
    // Ids have 63 characters at most.
    let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
    let mut bytes = BytesMut::with_capacity(1 + name.len() + HASH_BYTES);
    bytes.put_u8(length);
    bytes.put_slice(name);
    bytes
}

/// Keys of [`Space::Meta`](super::Space::Meta).
pub mod meta {
    /// Version of everything else's layout.
    pub const FORMAT: &[u8] = b"format";
    /// Cluster, member id, zone, weight.
    pub const IDENTITY: &[u8] = b"identity";
    /// The life of this data.
    pub const INCARNATION: &[u8] = b"incarnation";
    /// How often a process was started on this data.
    pub const STARTS: &[u8] = b"starts";
    /// There only between a clean stop and the next start.
    pub const CLEAN_STOP: &[u8] = b"clean-stop";
    /// The gossip view.
    pub const VIEW: &[u8] = b"view";
    /// Seeds that an administrator named, joined by commas.
    pub const SEEDS: &[u8] = b"seeds";
    /// There while the store may lack what it once acknowledged.
    pub const SUSPECT: &[u8] = b"suspect";
    /// A peer has had the chance to say that it remembers more of this member than this store does.
    pub const CONFIRMED: &[u8] = b"confirmed";
    /// The life before, and how much of it was found, until a peer has compared that.
    pub const PAST: &[u8] = b"past";
}

/// The hash that a data key, or what claims to be one, begins with.
pub(crate) fn hash_of(key: &[u8]) -> KeyHash {
    KeyHash(
        key.iter()
            .take(HASH_BYTES)
            .fold(0, |value, byte| value << 8 | u64::from(*byte)),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The layout is on users' disks: this test may grow, never change.
    #[test]
    fn the_layout_of_a_data_key_never_changes() {
        let key = DataKey::new("cart", b"user-7").unwrap();
        let mut expected = KeyHash::of("cart", b"user-7").0.to_be_bytes().to_vec();
        expected.extend_from_slice(b"\x04cartuser-7");
        assert_eq!(key.as_bytes(), &expected);
        assert_eq!(hex(key.as_bytes()), GOLDEN);
        assert_eq!((key.bucket(), key.key().as_ref()), ("cart", b"user-7".as_ref()));
    }

    const GOLDEN: &str = "ff59b4fc5dda53730463617274757365722d37";

    #[test]
    fn the_names_of_meta_keys_never_change() {
        let names = [
            meta::FORMAT,
            meta::IDENTITY,
            meta::INCARNATION,
            meta::STARTS,
            meta::CLEAN_STOP,
            meta::VIEW,
            meta::SEEDS,
            meta::SUSPECT,
            meta::CONFIRMED,
            meta::PAST,
        ];
        let text = names.map(|name| std::str::from_utf8(name).unwrap()).join(" ");
        assert_eq!(
            text,
            "format identity incarnation starts clean-stop view seeds suspect confirmed past"
        );
    }

    #[test]
    fn bytes_that_are_no_data_key_are_refused() {
        let good = DataKey::new("b", b"k").unwrap();
        for length in 0..HASH_BYTES + 2 {
            let cut = good.as_bytes().slice(..length);
            assert_eq!(DataKey::parse(cut), Err(KeyError::Truncated(length)));
        }
        assert!(matches!(
            DataKey::parse(good.as_bytes().slice(..HASH_BYTES + 2)),
            Err(KeyError::WrongHash { .. })
        ));
        let mut not_text = good.as_bytes().to_vec();
        not_text[HASH_BYTES + 1] = 0xff;
        assert_eq!(DataKey::parse(not_text.into()), Err(KeyError::BucketNotText));
        assert_eq!(
            DataKey::new(&"b".repeat(256), b"k"),
            Err(KeyError::BucketTooLong(256))
        );
    }

    /// The layout is on users' disks: this test may grow, never change.
    #[test]
    fn the_layout_of_a_hint_key_never_changes() {
        let (owner, key) = (
            MemberId::new("node-1").unwrap(),
            DataKey::new("cart", b"user-7").unwrap(),
        );
        let place = Place::hint(&owner, &key);
        assert_eq!(hex(place.as_bytes()), format!("06{}{GOLDEN}", hex(b"node-1")));
        assert_eq!(place.hash(), key.hash());
        assert_eq!(Place::parse_hint(place.as_bytes()), Ok((owner, key.clone())));
        for bytes in [&b""[..], b"\x06node", b"\x06NODE-1", b"\x06node-1\x01"] {
            Place::parse_hint(&Bytes::copy_from_slice(bytes)).unwrap_err();
        }
        assert_eq!(Place::from(&key).as_bytes(), key.as_bytes());
    }

    /// Owners whose ids begin alike, or have every length, keep their hints apart.
    #[test]
    fn one_owners_hints_are_one_range_and_nobody_elses() {
        use std::ops::RangeBounds as _;
        let owners = ["a", "a-", "aa", "b", "node-1", "node-10", "z"].map(|id| MemberId::new(id).unwrap());
        let keys: Vec<DataKey> = (0..200u32)
            .map(|number| DataKey::new("b", &number.to_be_bytes()).unwrap())
            .collect();
        for owner in &owners {
            let all = HintRange::of(owner, None);
            for other in &owners {
                for key in &keys {
                    let place = Place::hint(other, key);
                    let inside = (all.lower.clone(), all.upper.clone()).contains(place.as_bytes());
                    assert_eq!(inside, owner == other, "{owner} {other}");
                }
            }
            let middle = u64::MAX / 2;
            for (hashes, low) in [(0..=middle, true), (middle + 1..=u64::MAX, false)] {
                let range = HintRange::hashes(owner, &hashes);
                for key in &keys {
                    let inside = (range.lower.clone(), range.upper.clone())
                        .contains(Place::hint(owner, key).as_bytes());
                    assert_eq!(inside, (key.hash().0 <= middle) == low);
                }
            }
        }
    }

    #[test]
    fn a_hash_range_ends_with_the_hash_space() {
        let range = HashRange::all(&(1 << 63..=u64::MAX));
        assert_eq!(range.as_range().1, Bound::Unbounded);
        let range = HashRange::all(&(0..=u64::MAX >> 1));
        assert_eq!(
            range.as_range().1,
            Bound::Excluded([0x80, 0, 0, 0, 0, 0, 0, 0].as_ref())
        );
    }

    fn inside(range: &HashRange, key: &DataKey) -> bool {
        use std::ops::RangeBounds as _;
        (range.lower.clone(), range.upper.clone()).contains(key.as_bytes())
    }

    proptest! {
        #[test]
        fn a_data_key_reads_back(bucket in "[a-z.-]{0,255}", key in prop::collection::vec(any::<u8>(), 0..64)) {
            let built = DataKey::new(&bucket, &key).unwrap();
            let parsed = DataKey::parse(built.as_bytes().clone()).unwrap();
            prop_assert_eq!(parsed.bucket(), &bucket);
            prop_assert_eq!(parsed.key(), &key);
            prop_assert_eq!(parsed.hash(), KeyHash::of(&bucket, &key));
        }

        /// A partition is the contiguous range of its top bits, at every Q.
        #[test]
        fn a_partition_is_one_range(key in prop::collection::vec(any::<u8>(), 1..8), bits in 0u32..=16) {
            let built = DataKey::new("b", &key).unwrap();
            let size = (u64::MAX >> bits.min(63)).max(1);
            let first = built.hash().0 & !size;
            let range = HashRange::all(&(first..=first | size));
            prop_assert!(inside(&range, &built));
            prop_assert!(!inside(&range.after(&built), &built));
            if first > 0 {
                prop_assert!(!inside(&HashRange::all(&(0..=first - 1)), &built));
            }
        }
    }

    fn hex(bytes: &[u8]) -> String {
        use std::fmt::Write as _;
        bytes.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        })
    }
}
