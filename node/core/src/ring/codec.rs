//! The ring's bytes; the layout is in [`Ring::encode`].

use bytes::Bytes;

use super::{MEMBERS_MAX, Member, PARTITIONS_MAX, Ring, RingParts};
use crate::types::{ClusterId, MemberId, Zone};
use crate::wire::{DecodeError, Reader, put_bytes, put_varint};

const FORMAT_VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;
/// A member takes at least an id of one letter, an empty zone and a weight.
const MEMBER_BYTES_MIN: usize = 4;

/// What the hash covers: the encoding without its checksum.
pub(super) fn body(parts: &RingParts) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + parts.members.len() * 32 + parts.owners.len() * 2);
    out.push(FORMAT_VERSION);
    out.extend_from_slice(&parts.cluster_id.0);
    put_varint(&mut out, parts.epoch);
    put_varint(&mut out, u64::from(parts.factor));
    put_varint(&mut out, parts.members.len() as u64);
    for member in &parts.members {
        put_bytes(&mut out, member.id.as_str().as_bytes());
        put_bytes(&mut out, member.zone.as_str().as_bytes());
        put_varint(&mut out, u64::from(member.weight));
    }
    put_varint(&mut out, parts.owners.len() as u64);
    for owner in &parts.owners {
        out.extend_from_slice(&owner.to_be_bytes());
    }
    out
}

pub(super) fn encode(parts: &RingParts) -> Bytes {
    let mut out = body(parts);
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(&checksum.to_be_bytes());
    out.into()
}

pub(super) fn decode(mut bytes: Bytes) -> Result<Ring, DecodeError> {
    let version = *bytes.first().ok_or(DecodeError::Truncated)?;
    if version != FORMAT_VERSION {
        return Err(DecodeError::UnknownFormat(version));
    }
    let body_bytes = bytes
        .len()
        .checked_sub(CHECKSUM_BYTES)
        .ok_or(DecodeError::Truncated)?;
    let checksum = bytes.split_off(body_bytes);
    if crc32c::crc32c(&bytes).to_be_bytes() != checksum[..] {
        return Err(DecodeError::Checksum);
    }
    decode_body(bytes)
}

fn decode_body(bytes: Bytes) -> Result<Ring, DecodeError> {
    let mut reader = Reader::new(bytes);
    reader.byte()?;
    let cluster_id = ClusterId(reader.array()?);
    let epoch = reader.varint()?;
    let factor = small(&mut reader, "replication factor")?;
    let members = read_members(&mut reader)?;
    let owners = read_owners(&mut reader)?;
    reader.finish()?;
    Ring::new(RingParts {
        cluster_id,
        epoch,
        factor,
        members,
        owners,
    })
    .map_err(|_| DecodeError::Invalid("ring"))
}

fn read_members(reader: &mut Reader) -> Result<Vec<Member>, DecodeError> {
    let count = reader.count(MEMBER_BYTES_MIN)?;
    if count > MEMBERS_MAX {
        return Err(DecodeError::Invalid("number of members"));
    }
    let mut members = Vec::with_capacity(count);
    for _ in 0..count {
        let id = MemberId::new(text(reader)?).map_err(|_| DecodeError::Invalid("member id"))?;
        let zone = Zone::new(text(reader)?).map_err(|_| DecodeError::Invalid("zone"))?;
        members.push(Member {
            id,
            zone,
            weight: small(reader, "weight")?,
        });
    }
    Ok(members)
}

fn read_owners(reader: &mut Reader) -> Result<Vec<u16>, DecodeError> {
    let count = reader.count(2)?;
    if count > PARTITIONS_MAX as usize {
        return Err(DecodeError::Invalid("number of partitions"));
    }
    let raw = reader.take(count * 2)?;
    Ok(raw
        .chunks_exact(2)
        .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
        .collect())
}

fn small(reader: &mut Reader, what: &'static str) -> Result<u32, DecodeError> {
    u32::try_from(reader.varint()?).map_err(|_| DecodeError::Invalid(what))
}

fn text(reader: &mut Reader) -> Result<String, DecodeError> {
    String::from_utf8(reader.bytes()?.to_vec()).map_err(|_| DecodeError::Invalid("name"))
}
