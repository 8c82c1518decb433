//! The envelope of the records in [`Space::Meta`], and the marker that names the format of the whole store.
//!
//! ```text
//!   value   format version, 1 byte ‖ CRC-32C, 4 bytes big-endian, of key ‖ format version ‖ payload ‖ payload
//! ```
//!
//! The key is part of the checksum, so that one record put in another's place is noticed as well as a flipped bit.
//! Key states and epoch entries need no envelope: their own encoding carries a format version and a checksum.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{Batch, ScanLimit, Space, Store, StoreError, keys::meta};

/// Version of the layout of the store as a whole: its spaces, keys and envelopes. Grows when an older release could no
/// longer read it: 2 has the space `marks`, without which a store of format 1 is one of format 2.
pub const STORE_FORMAT: u8 = 2;

const HEADER_BYTES: usize = 5;

/// A value that has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Its format version, 1..=the newest one known.
    pub version: u8,
    /// Its content, sharing the value's memory.
    pub payload: Bytes,
}

/// Why a marker keeps a store shut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Another program's data, or a directory given by mistake.
    #[error(
        "it holds data but no format marker, so it is not the store of a Dynamo node; give --data-dir the right \
         directory, or an empty one"
    )]
    Foreign,
    /// The store was written by a later release.
    #[error(
        "the store has format version {found}, this release knows up to {known}; start the release that wrote it, or \
         a newer one"
    )]
    Newer {
        /// The version found.
        found: u8,
        /// The newest version known.
        known: u8,
    },
    /// The marker could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Wraps a payload in format version `version` for its place.
pub fn seal(version: u8, key: &[u8], payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEADER_BYTES + payload.len());
    bytes.put_u8(version);
    bytes.put_u32(checksum(key, version, payload));
    bytes.put_slice(payload);
    bytes.freeze()
}

/// Checks a value that was read from its place, and unwraps it. `known` is the newest version the caller understands;
/// `attempted` describes what it was doing, for the error.
///
/// # Errors
/// `Damaged` if the checksum does not match, `NewerFormat` if the version is beyond `known`.
pub fn open(
    known: u8,
    key: &[u8],
    value: &Bytes,
    attempted: impl FnOnce() -> String,
) -> Result<Opened, StoreError> {
    if value.len() < HEADER_BYTES {
        let reason = format!("{} bytes, at least {HEADER_BYTES} expected", value.len());
        return Err(StoreError::Damaged {
            attempted: attempted(),
            reason,
        });
    }
    let version = value[0];
    let stored = value[1..HEADER_BYTES]
        .iter()
        .fold(0, |sum, byte| sum << 8 | u32::from(*byte));
    let payload = value.slice(HEADER_BYTES..);
    let computed = checksum(key, version, &payload);
    if stored != computed {
        let reason = format!("checksum {computed:08x}, stored {stored:08x}");
        return Err(StoreError::Damaged {
            attempted: attempted(),
            reason,
        });
    }
    match version {
        0 => Err(StoreError::Damaged {
            attempted: attempted(),
            reason: "format version 0".to_owned(),
        }),
        found if found > known => Err(StoreError::NewerFormat {
            attempted: attempted(),
            found,
            known,
        }),
        version => Ok(Opened { version, payload }),
    }
}

/// Checks that an open store is of a format this release knows; marks one that is empty or of an older format.
///
/// # Errors
/// If it is newer, or holds data without a marker, or cannot be read or written.
pub fn claim(store: &dyn Store) -> Result<(), FormatError> {
    if let Some(value) = store.get(Space::Meta, meta::FORMAT)? {
        let opened = open(u8::MAX, meta::FORMAT, &value, || {
            "reading the format marker".to_owned()
        })?;
        let known = STORE_FORMAT;
        return match opened.version {
            found if found > known => Err(FormatError::Newer { found, known }),
            found if found < known => mark(store),
            _ => Ok(()),
        };
    }
    for space in Space::ALL {
        let all = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
        let page = store.scan(
            space,
            all,
            ScanLimit {
                entries: 1,
                bytes: usize::MAX,
            },
        )?;
        if !page.entries.is_empty() {
            return Err(FormatError::Foreign);
        }
    }
    mark(store)
}

fn mark(store: &dyn Store) -> Result<(), FormatError> {
    let mut batch = Batch::new();
    batch.put(Space::Meta, meta::FORMAT, marker(STORE_FORMAT));
    Ok(store.write(batch, true)?)
}

/// The format version that a marker names, if it is one.
pub(super) fn version_of(marker: &Bytes) -> Option<u8> {
    open(u8::MAX, meta::FORMAT, marker, String::new)
        .ok()
        .map(|opened| opened.version)
}

/// The marker of a format version.
pub(super) fn marker(version: u8) -> Bytes {
    seal(version, meta::FORMAT, b"dynamo")
}

fn checksum(key: &[u8], version: u8, payload: &[u8]) -> u32 {
    let sum = crc32c::crc32c(key);
    crc32c::crc32c_append(crc32c::crc32c_append(sum, &[version]), payload)
}

#[cfg(test)]
mod tests {
    use super::{super::memory::MemoryStore, *};

    fn check(known: u8, key: &[u8], value: &[u8]) -> Result<Opened, StoreError> {
        open(known, key, &Bytes::copy_from_slice(value), || {
            "reading x".to_owned()
        })
    }

    /// The layout is on users' disks: this test may grow, never change.
    #[test]
    fn the_layout_of_an_envelope_never_changes() {
        assert_eq!(
            seal(1, b"key", b"payload").as_ref(),
            b"\x01\xbd\xdf\xf2\x71payload"
        );
        assert_eq!(marker(1).as_ref(), b"\x01\xa9\xc3\x05\x8edynamo");
    }

    #[test]
    fn every_flipped_bit_and_every_wrong_place_is_noticed() {
        let value = seal(1, b"key", b"payload");
        assert_eq!(check(1, b"key", &value).unwrap().payload.as_ref(), b"payload");
        for bit in 0..value.len() * 8 {
            let mut flipped = value.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                matches!(check(255, b"key", &flipped), Err(StoreError::Damaged { .. })),
                "bit {bit}"
            );
        }
        for length in 0..value.len() {
            assert!(matches!(
                check(1, b"key", &value[..length]),
                Err(StoreError::Damaged { .. })
            ));
        }
        assert!(matches!(
            check(1, b"kez", &value),
            Err(StoreError::Damaged { .. })
        ));
    }

    #[test]
    fn a_newer_record_is_named_not_called_damaged() {
        let error = check(1, b"key", &seal(2, b"key", b"")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "reading x: it has format version 2, this release knows up to 1; start the release that wrote it"
        );
        assert!(matches!(
            check(1, b"key", &seal(0, b"key", b"")),
            Err(StoreError::Damaged { .. })
        ));
    }

    #[test]
    fn an_empty_store_is_marked_durably_and_known_again() {
        let store = MemoryStore::new();
        claim(&store).unwrap();
        store.crash();
        assert_eq!(
            store.get(Space::Meta, meta::FORMAT).unwrap(),
            Some(marker(STORE_FORMAT))
        );
        claim(&store).unwrap();
    }

    #[test]
    fn an_older_store_is_marked_anew() {
        let store = MemoryStore::new();
        let mut batch = Batch::new();
        batch.put(Space::Meta, meta::FORMAT, marker(1));
        store.write(batch, true).unwrap();
        claim(&store).unwrap();
        store.crash();
        assert_eq!(
            store.get(Space::Meta, meta::FORMAT).unwrap(),
            Some(marker(STORE_FORMAT))
        );
    }

    #[test]
    fn a_newer_or_foreign_store_stays_shut() {
        let store = MemoryStore::new();
        let mut batch = Batch::new();
        batch.put(Space::Meta, meta::FORMAT, marker(STORE_FORMAT + 1));
        store.write(batch, true).unwrap();
        let error = FormatError::Newer {
            found: STORE_FORMAT + 1,
            known: STORE_FORMAT,
        };
        assert_eq!(claim(&store), Err(error));

        for space in Space::ALL {
            let store = MemoryStore::new();
            let mut batch = Batch::new();
            batch.put(space, &b"something"[..], &b"else"[..]);
            store.write(batch, true).unwrap();
            assert_eq!(claim(&store), Err(FormatError::Foreign));
        }
    }
}
