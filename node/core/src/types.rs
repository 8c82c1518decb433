//! Names and numbers that every module shares.

use std::{fmt, sync::Arc};

use sha2::{Digest as _, Sha256};

/// A cluster's name for ever: 16 bytes chosen at bootstrap.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub [u8; 16]);

/// A member's identity: 1..=63 characters of `[a-z0-9.-]`. It stays with the data, whatever the address. Clones share it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(Arc<str>);

/// A failure domain: up to 63 characters of `[A-Za-z0-9_.-]`. The empty name is the zone of a cluster without zones.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Zone(Arc<str>);

/// A name that breaks its rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {name:?} is not {rule}")]
pub struct NameError {
    what: &'static str,
    name: String,
    rule: &'static str,
}

/// One life of a member's data: new with an empty or restored directory and after every unclean stop.
///
/// `generation` orders the lives of one member; `id` is random and makes actors unique across the cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Incarnation {
    /// 1 for the first life of a member.
    pub generation: u32,
    /// 64 random bits.
    pub id: u64,
}

/// A position on the ring: the first 8 bytes, big-endian, of
/// `SHA-256(u32be(len(bucket)) ‖ bucket ‖ u32be(len(key)) ‖ key)`. Paper: §4.2 (which uses MD5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub u64);

/// One of the Q equal ranges of the hash space, counted clockwise from 0. Paper: §6.2, strategy 3.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PartitionId(pub u32);

/// What a client repeats when it retries a write, so that the write counts once.
pub type OpId = [u8; 16];

impl KeyHash {
    /// The position of a key.
    pub fn of(bucket: &str, key: &[u8]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update((bucket.len() as u32).to_be_bytes());
        hasher.update(bucket.as_bytes());
        hasher.update((key.len() as u32).to_be_bytes());
        hasher.update(key);
        Self(first_u64(&hasher.finalize()))
    }
}

/// The first 8 bytes, big-endian, of the SHA-256 of `bytes`: how rings and states are compared.
pub fn digest_u64(bytes: &[u8]) -> u64 {
    first_u64(&Sha256::digest(bytes))
}

fn first_u64(digest: &[u8]) -> u64 {
    digest
        .iter()
        .take(8)
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

impl MemberId {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// If it is not 1..=63 characters of `[a-z0-9.-]`.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '-';
        if (1..=63).contains(&name.len()) && name.chars().all(good) {
            Ok(Self(name.into()))
        } else {
            Err(NameError {
                what: "member id",
                name,
                rule: "1 to 63 characters of a-z, 0-9, '.', '-'",
            })
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Zone {
    /// Checks and takes a name; the empty one stands for "no zones".
    ///
    /// # Errors
    /// If it is not up to 63 characters of `[A-Za-z0-9_.-]`.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if name.len() <= 63 && name.chars().all(good) {
            Ok(Self(name.into()))
        } else {
            Err(NameError {
                what: "zone",
                name,
                rule: "up to 63 characters of A-Z, a-z, 0-9, '_', '.', '-'",
            })
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Display for ClusterId {
    /// As a UUID is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.generation, self.id)
    }
}
