//! Named settings of the whole cluster that the view carries without reading them: bucket policies.
//!
//! Under each name the larger (version, bytes) wins, and of more names than [`POLICIES_MAX`] the first in order are
//! kept, so all views end with the same set, whatever the order in which they hear of it.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::types::digest_u64;
use crate::wire::{DecodeError, Reader, put_bytes, put_varint};

/// Most policies that a view holds.
pub const POLICIES_MAX: usize = 1000;
/// Longest name in bytes.
pub const POLICY_NAME_BYTES_MAX: usize = 255;
/// Longest contents in bytes.
pub const POLICY_BYTES_MAX: usize = 512;

/// One setting; the larger wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Policy {
    /// Grows with every change.
    pub version: u64,
    /// What the owner of the setting wrote.
    pub bytes: Bytes,
}

/// Whether two nodes hold the same policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoliciesDigest {
    /// How many.
    pub count: u64,
    /// The first 8 bytes of the SHA-256 of all of them.
    pub hash: u64,
}

/// A policy that cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The name is empty or too long.
    #[error("the policy's name has {0} bytes, 1 to {POLICY_NAME_BYTES_MAX} are allowed")]
    Name(usize),
    /// The contents are too long.
    #[error("policy {name:?} has {bytes} bytes, at most {POLICY_BYTES_MAX} are allowed")]
    TooLong {
        /// Whose.
        name: String,
        /// How long they are.
        bytes: usize,
    },
    /// There is no room for another.
    #[error("policy {0:?} was not kept: at most {POLICIES_MAX} are")]
    Full(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Policies(BTreeMap<String, Policy>);

impl Policies {
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Policy)> {
        self.0.iter().map(|(name, policy)| (name.as_str(), policy))
    }

    pub(super) fn get(&self, name: &str) -> Option<&Policy> {
        self.0.get(name)
    }

    /// Takes a policy that somebody keeps already; false if it changes nothing.
    pub(super) fn merge(&mut self, name: &str, policy: Policy) -> Result<bool, PolicyError> {
        check(name, &policy)?;
        if self.0.get(name).is_some_and(|known| *known >= policy) {
            return Ok(false);
        }
        self.0.insert(name.to_owned(), policy);
        if self.0.len() > POLICIES_MAX
            && let Some((dropped, _)) = self.0.pop_last()
            && dropped == name
        {
            return Err(PolicyError::Full(dropped));
        }
        Ok(true)
    }

    /// Takes a policy that is new to the cluster: it displaces no other.
    pub(super) fn put(&mut self, name: &str, policy: Policy) -> Result<bool, PolicyError> {
        if self.0.len() >= POLICIES_MAX && !self.0.contains_key(name) {
            return Err(PolicyError::Full(name.to_owned()));
        }
        self.merge(name, policy)
    }

    pub(super) fn digest(&self) -> PoliciesDigest {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        PoliciesDigest {
            count: self.0.len() as u64,
            hash: digest_u64(&bytes),
        }
    }

    /// Number, then for each, ascending by name: name, version, contents.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.0.len() as u64);
        for (name, policy) in &self.0 {
            put_bytes(out, name.as_bytes());
            put_varint(out, policy.version);
            put_bytes(out, &policy.bytes);
        }
    }

    pub(super) fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let count = reader.count(4)?;
        if count > POLICIES_MAX {
            return Err(DecodeError::Invalid("number of policies"));
        }
        let mut policies = BTreeMap::new();
        for _ in 0..count {
            let name = String::from_utf8(reader.bytes()?.to_vec())
                .map_err(|_| DecodeError::Invalid("policy's name"))?;
            let policy = Policy {
                version: reader.varint()?,
                bytes: reader.bytes()?,
            };
            let after = policies.last_key_value().is_none_or(|(last, _)| *last < name);
            if !after || check(&name, &policy).is_err() {
                return Err(DecodeError::Invalid("policy"));
            }
            policies.insert(name, policy);
        }
        Ok(Self(policies))
    }
}

fn check(name: &str, policy: &Policy) -> Result<(), PolicyError> {
    if name.is_empty() || name.len() > POLICY_NAME_BYTES_MAX {
        return Err(PolicyError::Name(name.len()));
    }
    if policy.bytes.len() > POLICY_BYTES_MAX {
        return Err(PolicyError::TooLong {
            name: name.to_owned(),
            bytes: policy.bytes.len(),
        });
    }
    Ok(())
}
