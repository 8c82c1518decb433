//! What holds for the keys of one bucket: replicas, conflicts, expiry. Rows D17, D31, D48, D53, K27.
//!
//! A policy is a value with a version. Nodes gossip all policies and keep, per name, the largest one in the order of
//! version and bytes: so they agree, in whatever order the news came. A request carries the version that it was made
//! under; a node that does not know it yet refuses, and catches up.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bytes::Bytes;

use crate::crdt::{DataType, LeafType};
use crate::quorum::{Quorum, QuorumError, QuorumOverrides};
use crate::types::digest_u64;
use crate::version::{open_frame, seal_frame};
use crate::wire::{DecodeError, Reader, put_bytes, put_varint};

/// Most policies that [`Buckets::put`] lets a cluster have. A merge takes more, for it refuses nothing.
pub const BUCKETS_MAX: usize = 1_000;
/// Longest bucket name, in bytes.
pub const BUCKET_NAME_BYTES_MAX: usize = 63;
/// Longest time to live: a hundred years, in milliseconds.
pub const TTL_MS_MAX: u64 = 100 * 366 * 24 * 3_600 * 1_000;
/// Versions end here, so that counting never overflows.
pub const BUCKET_VERSION_MAX: u64 = (1 << 48) - 1;

const FORMAT_VERSION: u8 = 1;
/// Name of one letter, version, three numbers, conflict, time to live, read repair.
const POLICY_BYTES_MIN: usize = 9;

/// What holds for the keys of one bucket. `None`: as the cluster is configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BucketPolicy {
    /// 1..=63 characters of `[a-z0-9-]`.
    pub name: String,
    /// 1..=[`BUCKET_VERSION_MAX`], one more with every change; 0: no policy was ever set.
    pub version: u64,
    /// Replicas of each key, 1..=[`Quorum::N_MAX`].
    pub n: Option<u32>,
    /// Replicas that a read needs.
    pub r: Option<u32>,
    /// Replicas that must have accepted a write.
    pub w: Option<u32>,
    /// What becomes of concurrent writes. Never changes.
    pub conflict: Conflict,
    /// Values expire so many milliseconds after they were written, 1..=[`TTL_MS_MAX`]; `None`: never.
    pub ttl_ms: Option<u64>,
    /// When replicas that a read finds behind are repaired.
    pub read_repair: ReadRepair,
}

/// What becomes of concurrent writes, and for data types: what values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Conflict {
    /// All are kept, the client reconciles. Paper: §4.4.
    #[default]
    Siblings,
    /// The largest (stamp, dot) wins: [`lww_winner`](crate::version::KeyState::lww_winner).
    Lww,
    /// A [data type](crate::crdt), like all that follow: a sum.
    Counter,
    /// Byte strings, each at most once.
    Set,
    /// Named registers, counters, sets and flags.
    Map,
    /// On or off.
    Flag,
    /// One byte string; of concurrent ones the largest (stamp, dot).
    Register,
}

/// When replicas that a read finds behind are brought up to date. Paper: §5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadRepair {
    /// Never by reads.
    Off,
    /// After the reply.
    #[default]
    Async,
    /// Before the reply: what one read returned, every later one returns too.
    Blocking,
}

/// The policies of a cluster, by bucket.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Buckets {
    policies: BTreeMap<String, BucketPolicy>,
}

/// What equal [`Buckets`], and in practice no others, have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BucketsDigest {
    /// Policies.
    pub count: u64,
    /// The first 8 bytes of the SHA-256 of all.
    pub hash: u64,
}

/// Why a policy is not one, or was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The name breaks its rule.
    #[error("the bucket name {0:?} must have 1 to 63 characters of a-z, 0-9, '-'")]
    Name(String),
    /// The version breaks its rule.
    #[error("the bucket's version is {0}, it must be in 1..={max}", max = BUCKET_VERSION_MAX)]
    Version(u64),
    /// The time to live breaks its rule.
    #[error("the bucket's time to live is {0} ms, it must be in 1..={max} ms", max = TTL_MS_MAX)]
    Ttl(u64),
    /// The numbers of replicas contradict each other.
    #[error("the bucket's replicas cannot be so: {0}")]
    Quorum(#[from] QuorumError),
    /// The conflict policy was to change, which would change what the stored values mean.
    #[error(
        "the bucket {name} resolves conflicts by {found:?}, which cannot be changed; create another bucket"
    )]
    ConflictIsFixed {
        /// The bucket.
        name: String,
        /// Its policy as it is.
        found: Conflict,
    },
    /// Somebody changed the policy meanwhile.
    #[error("the bucket {name} is at version {found}, so its next is {next}; read it and try again", next = found + 1)]
    Outdated {
        /// The bucket.
        name: String,
        /// Its version here.
        found: u64,
    },
    /// There are [`BUCKETS_MAX`] already.
    #[error("the cluster has {max} buckets with policies, which is the most", max = BUCKETS_MAX)]
    TooMany,
}

impl Conflict {
    const ALL: [Self; 7] = [
        Self::Siblings,
        Self::Lww,
        Self::Counter,
        Self::Set,
        Self::Map,
        Self::Flag,
        Self::Register,
    ];

    /// What the values are, if they are made by operations only.
    pub fn data_type(self) -> Option<DataType> {
        match self {
            Self::Siblings | Self::Lww => None,
            Self::Counter => Some(DataType::Leaf(LeafType::Counter)),
            Self::Set => Some(DataType::Leaf(LeafType::Set)),
            Self::Map => Some(DataType::Map),
            Self::Flag => Some(DataType::Leaf(LeafType::Flag)),
            Self::Register => Some(DataType::Leaf(LeafType::Register)),
        }
    }
}

impl ReadRepair {
    const ALL: [Self; 3] = [Self::Off, Self::Async, Self::Blocking];
}

impl BucketPolicy {
    /// The policy of a bucket that has none: version 0, everything as the cluster is configured, siblings.
    pub fn unset(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            version: 0,
            n: None,
            r: None,
            w: None,
            conflict: Conflict::default(),
            ttl_ms: None,
            read_repair: ReadRepair::default(),
        }
    }

    /// Checks every field for itself, and the numbers of replicas against each other as far as they are set here.
    ///
    /// # Errors
    /// If a field breaks its rule.
    pub fn check(&self) -> Result<(), PolicyError> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !(1..=BUCKET_NAME_BYTES_MAX).contains(&self.name.len()) || !self.name.chars().all(good) {
            return Err(PolicyError::Name(self.name.clone()));
        }
        if !(1..=BUCKET_VERSION_MAX).contains(&self.version) {
            return Err(PolicyError::Version(self.version));
        }
        if let Some(ttl_ms) = self.ttl_ms.filter(|ttl_ms| !(1..=TTL_MS_MAX).contains(ttl_ms)) {
            return Err(PolicyError::Ttl(ttl_ms));
        }
        let n = self.n.unwrap_or(Quorum::N_MAX);
        Quorum::new(n, self.r.unwrap_or(1), self.w.unwrap_or(1))?;
        Ok(())
    }

    /// The numbers for a request that asks for none: the cluster's, with this bucket's in their place. A bucket with
    /// an N of its own that leaves `r` or `w` open has more than half of N there; the cluster's further conditions
    /// hold as far as N allows.
    ///
    /// # Errors
    /// If this bucket asks for more replicas than there are.
    pub fn quorum(&self, configured: &Quorum) -> Result<Quorum, QuorumError> {
        let mut quorum = *configured;
        if let Some(n) = self.n.filter(|n| *n != configured.n) {
            quorum = Quorum::new(n, n / 2 + 1, n / 2 + 1)?;
            quorum.pr = configured.pr.min(n);
            quorum.pw = configured.pw.min(n);
            quorum.dw = configured.dw.min(n);
        }
        quorum.r = self.r.unwrap_or(quorum.r);
        quorum.w = self.w.unwrap_or(quorum.w);
        quorum.with(&QuorumOverrides::default())
    }

    /// When a value expires that is written at `wall_ms`, in milliseconds since 1970.
    pub fn expires_at_ms(&self, wall_ms: u64) -> Option<u64> {
        self.ttl_ms.map(|ttl_ms| wall_ms.saturating_add(ttl_ms))
    }

    /// The policy in a frame: format version, checksum, fields.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(64);
        seal_frame(&mut out, FORMAT_VERSION, |out| put_policy(out, self));
        out.into()
    }

    /// Reads a policy.
    ///
    /// # Errors
    /// If the bytes are not what [`encode`](Self::encode) writes for a policy that [`check`](Self::check) approves.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(open_frame(bytes, FORMAT_VERSION)?);
        let policy = read_policy(&mut reader)?;
        reader.finish()?;
        Ok(policy)
    }

    /// By version, and among equal versions by bytes: the larger one holds.
    fn precedence(&self, other: &Self) -> Ordering {
        let by_version = self.version.cmp(&other.version);
        by_version.then_with(|| self.encode().cmp(&other.encode()))
    }
}

impl Buckets {
    /// No policies.
    pub fn new() -> Self {
        Self::default()
    }

    /// The policy of a bucket, if one was set.
    pub fn get(&self, name: &str) -> Option<&BucketPolicy> {
        self.policies.get(name)
    }

    /// The policy in force for a bucket: [unset](BucketPolicy::unset) where none was set.
    pub fn policy(&self, name: &str) -> BucketPolicy {
        self.get(name)
            .cloned()
            .unwrap_or_else(|| BucketPolicy::unset(name))
    }

    /// All policies, by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &BucketPolicy> {
        self.policies.values()
    }

    /// Takes an administrator's new policy, whose version is one more than the present one's. The same policy once
    /// more is no error.
    ///
    /// # Errors
    /// If the policy is not one, was made from an old one, changes what is fixed, or is one too many.
    pub fn put(&mut self, policy: BucketPolicy) -> Result<(), PolicyError> {
        policy.check()?;
        let found = self.policy(&policy.name);
        if found == policy {
            return Ok(());
        }
        let name = policy.name.clone();
        if found.version > 0 && found.conflict != policy.conflict {
            let found = found.conflict;
            return Err(PolicyError::ConflictIsFixed { name, found });
        }
        if policy.version != found.version + 1 {
            let found = found.version;
            return Err(PolicyError::Outdated { name, found });
        }
        if found.version == 0 && self.policies.len() >= BUCKETS_MAX {
            return Err(PolicyError::TooMany);
        }
        self.policies.insert(name, policy);
        Ok(())
    }

    /// Takes what another node knows. True if that changed anything. Never refused: if two administrators made one
    /// bucket on two sides of a split, all nodes keep the same one of the two, even if their conflict policies differ.
    pub fn merge(&mut self, other: &Self) -> bool {
        let mut changed = false;
        for (name, theirs) in &other.policies {
            match self.policies.entry(name.clone()) {
                Entry::Vacant(entry) => {
                    entry.insert(theirs.clone());
                    changed = true;
                }
                Entry::Occupied(mut entry) => {
                    if theirs.precedence(entry.get()).is_gt() {
                        entry.insert(theirs.clone());
                        changed = true;
                    }
                }
            }
        }
        changed
    }

    /// What peers compare, so that equal ones exchange nothing more.
    pub fn digest(&self) -> BucketsDigest {
        BucketsDigest {
            count: self.policies.len() as u64,
            hash: digest_u64(&self.encode()),
        }
    }

    /// All policies in one frame.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(16 + 64 * self.policies.len());
        seal_frame(&mut out, FORMAT_VERSION, |out| {
            put_varint(out, self.policies.len() as u64);
            for policy in self.policies.values() {
                put_policy(out, policy);
            }
        });
        out.into()
    }

    /// Reads all policies.
    ///
    /// # Errors
    /// If the bytes are not what [`encode`](Self::encode) writes.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(open_frame(bytes, FORMAT_VERSION)?);
        let mut policies: BTreeMap<String, BucketPolicy> = BTreeMap::new();
        for _ in 0..reader.count(POLICY_BYTES_MIN)? {
            let policy = read_policy(&mut reader)?;
            if policies
                .last_key_value()
                .is_some_and(|(last, _)| *last >= policy.name)
            {
                return Err(DecodeError::Invalid("order of buckets"));
            }
            policies.insert(policy.name.clone(), policy);
        }
        reader.finish()?;
        Ok(Self { policies })
    }
}

/// Name ‖ version ‖ n ‖ r ‖ w ‖ conflict (1 byte) ‖ time to live ‖ read repair (1 byte). 0 stands for what is not set.
fn put_policy(out: &mut Vec<u8>, policy: &BucketPolicy) {
    put_bytes(out, policy.name.as_bytes());
    put_varint(out, policy.version);
    for replicas in [policy.n, policy.r, policy.w] {
        put_varint(out, u64::from(replicas.unwrap_or(0)));
    }
    out.push(policy.conflict as u8);
    put_varint(out, policy.ttl_ms.unwrap_or(0));
    out.push(policy.read_repair as u8);
}

fn read_policy(reader: &mut Reader) -> Result<BucketPolicy, DecodeError> {
    let name = reader.bytes()?;
    let policy = BucketPolicy {
        name: str::from_utf8(&name)
            .map_err(|_| DecodeError::Invalid("bucket name"))?
            .to_owned(),
        version: reader.varint()?,
        n: replicas(reader)?,
        r: replicas(reader)?,
        w: replicas(reader)?,
        conflict: one_of(&Conflict::ALL, reader.byte()?, "conflict policy")?,
        ttl_ms: Some(reader.varint()?).filter(|ttl_ms| *ttl_ms > 0),
        read_repair: one_of(&ReadRepair::ALL, reader.byte()?, "read repair")?,
    };
    match policy.check() {
        Ok(()) => Ok(policy),
        Err(_) => Err(DecodeError::Invalid("bucket policy")),
    }
}

fn replicas(reader: &mut Reader) -> Result<Option<u32>, DecodeError> {
    let count = u32::try_from(reader.varint()?).map_err(|_| DecodeError::Invalid("number of replicas"))?;
    Ok(Some(count).filter(|count| *count > 0))
}

/// The choice whose place among `all` a byte names.
fn one_of<T: Copy>(all: &[T], byte: u8, what: &'static str) -> Result<T, DecodeError> {
    all.get(usize::from(byte))
        .copied()
        .ok_or(DecodeError::Invalid(what))
}

#[cfg(test)]
mod tests;
