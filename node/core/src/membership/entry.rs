//! What a member says about itself.

use crate::types::{Incarnation, MemberId, Zone};

/// Longest address in bytes: a DNS name of 253, a colon and a port, with room for brackets.
pub const ADDRESS_BYTES_MAX: usize = 264;
/// Longest name of a release in bytes.
pub const RELEASE_BYTES_MAX: usize = 64;
/// Versions and numbers of starts lie below this, so that adding one never overflows.
pub const COUNTER_MAX: u64 = 1 << 48;
/// Storage sequence numbers lie below this.
pub const SYNCED_MAX: u64 = 1 << 56;

/// A member's own statement, spread by gossip; nobody else may change it. Ordered by (incarnation, version).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberEntry {
    /// Who says it.
    pub member: MemberId,
    /// Which life of the member's data.
    pub incarnation: Incarnation,
    /// Grows with every change within one incarnation; below [`COUNTER_MAX`].
    pub version: u64,
    /// host:port for nodes.
    pub peer_address: String,
    /// host:port for clients.
    pub client_address: String,
    /// host:port for administrators.
    pub admin_address: String,
    /// The failure domain it was told when it joined.
    pub zone: Zone,
    /// For people: the software it runs.
    pub release: String,
    /// Starts of the process on this data; below [`COUNTER_MAX`]. Exposes a volume rolled back in time.
    pub starts: u64,
    /// Up to which storage sequence number its data is known synced, announced now and then; below [`SYNCED_MAX`].
    /// Exposes a volume rolled back in time.
    pub synced: u64,
}

/// An entry that no node writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// A text is too long.
    #[error("the {field} of member {member} has {bytes} bytes, at most {bytes_max} are allowed")]
    TooLong {
        /// Whose.
        member: MemberId,
        /// Which.
        field: &'static str,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        bytes_max: usize,
    },
    /// A number is too large.
    #[error("the {field} of member {member} is {value}, which no node reaches")]
    TooLarge {
        /// Whose.
        member: MemberId,
        /// Which.
        field: &'static str,
        /// How large it is.
        value: u64,
    },
}

impl MemberEntry {
    /// What orders the statements of one member.
    pub fn order(&self) -> (Incarnation, u64) {
        (self.incarnation, self.version)
    }

    /// Whether all fields are within their bounds.
    ///
    /// # Errors
    /// Names the first field that is not.
    pub fn check(&self) -> Result<(), EntryError> {
        let texts = [
            ("peer address", &self.peer_address, ADDRESS_BYTES_MAX),
            ("client address", &self.client_address, ADDRESS_BYTES_MAX),
            ("admin address", &self.admin_address, ADDRESS_BYTES_MAX),
            ("release", &self.release, RELEASE_BYTES_MAX),
        ];
        let member = || self.member.clone();
        for (field, text, bytes_max) in texts {
            if text.len() > bytes_max {
                return Err(EntryError::TooLong {
                    member: member(),
                    field,
                    bytes: text.len(),
                    bytes_max,
                });
            }
        }
        for (field, value, bound) in [
            ("version", self.version, COUNTER_MAX),
            ("number of starts", self.starts, COUNTER_MAX),
            ("synced sequence number", self.synced, SYNCED_MAX),
        ] {
            if value >= bound {
                return Err(EntryError::TooLarge {
                    member: member(),
                    field,
                    value,
                });
            }
        }
        Ok(())
    }
}
