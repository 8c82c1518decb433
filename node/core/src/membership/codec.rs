//! The persisted form of a view, format version 3. Versions 1 and 2 are still read.
//!
//! Numbers are varints unless said otherwise, texts carry their length as a varint.
//! ```text
//! 1 byte   format version = 3
//! 16 bytes cluster id
//! text     id of this node
//! varint   number of entries, then for each, ascending by id:
//!          id, generation, incarnation id (8 bytes), version, peer, client and admin address, zone, release, starts,
//!          synced (not in version 1)
//! entries  of the lives before, in the same form, ascending by id and life, at most two of a member (not in version 1)
//! bytes    encoded base ring with its length; 0: none
//!          with a ring: what follows it, and whom this life has heard from, as `transition::codec` has it (from version 3)
//! varint   number of rings in the log, ascending: epoch, hash (8 bytes), number of members, their ids ascending
//! varint   number of policies, ascending by name: name, version, contents with their length (not in version 1)
//! 4 bytes  CRC-32C of all bytes before, big-endian
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::displaced::{DISPLACED_MAX, Displaced};
use super::entry::MemberEntry;
use super::log::{LOG_ENTRIES_MAX, Log, LogEntry};
use super::message::RingVersion;
use super::policies::Policies;
use super::view::{MEMBERS_MAX, Parts, View};
use crate::ring::Ring;
use crate::transition::Transition;
use crate::types::{ClusterId, Incarnation, MemberId, Zone};
use crate::wire::{DecodeError, Reader, put_bytes, put_varint};

const FORMAT_VERSION: u8 = 3;
/// The first with `synced`, lives before, and policies.
const FORMAT_VERSION_LIVES: u8 = 2;
const FORMAT_VERSION_FIRST: u8 = 1;
const CHECKSUM_BYTES: usize = 4;
/// Eight varints or lengths, an id of one letter and the incarnation's 8 bytes.
const ENTRY_BYTES_MIN: usize = 18;
/// Epoch, hash and the number of members.
const LOG_ENTRY_BYTES_MIN: usize = 10;

pub(super) fn encode(view: &View) -> Bytes {
    let mut out = vec![FORMAT_VERSION];
    out.extend_from_slice(&view.cluster_id().0);
    put_text(&mut out, view.me().member.as_str());
    put_entries(&mut out, view.members());
    let displaced: Vec<_> = view.displaced().iter().collect();
    put_entries(&mut out, displaced.into_iter());
    put_bytes(
        &mut out,
        &view.ring().map(|ring| ring.encode()).unwrap_or_default(),
    );
    if let Some(transition) = view.transition() {
        transition.put(&mut out);
    }
    put_varint(&mut out, view.log().len() as u64);
    for entry in view.log() {
        put_varint(&mut out, entry.epoch);
        out.extend_from_slice(&entry.hash.to_be_bytes());
        put_varint(&mut out, entry.members.len() as u64);
        for member in &entry.members {
            put_text(&mut out, member.as_str());
        }
    }
    view.policy_set().encode(&mut out);
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(&checksum.to_be_bytes());
    out.into()
}

pub(super) fn decode(mut bytes: Bytes) -> Result<View, DecodeError> {
    let version = *bytes.first().ok_or(DecodeError::Truncated)?;
    if !(FORMAT_VERSION_FIRST..=FORMAT_VERSION).contains(&version) {
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

fn decode_body(bytes: Bytes) -> Result<View, DecodeError> {
    let mut reader = Reader::new(bytes);
    let version = reader.byte()?;
    let old = version < FORMAT_VERSION_LIVES;
    let cluster = ClusterId(reader.array()?);
    let me = member_id(&mut reader)?;
    let entries = read_entries(&mut reader, old)?;
    if !entries.contains_key(&me) {
        return Err(DecodeError::Invalid("view without its own member"));
    }
    let displaced = if old {
        Displaced::default()
    } else {
        read_displaced(&mut reader)?
    };
    let life = |member: &MemberId| entries[member].incarnation;
    let transition = match read_ring(&mut reader, cluster)? {
        None => None,
        Some(ring) if version < FORMAT_VERSION => Some(Transition::new(me.clone(), life(&me), ring, false)),
        Some(ring) => Some(Transition::take(&mut reader, me.clone(), life(&me), ring)?),
    };
    let log = read_log(&mut reader)?;
    let policies = if old {
        Policies::default()
    } else {
        Policies::decode(&mut reader)?
    };
    reader.finish()?;
    Ok(View::from_parts(Parts {
        cluster,
        me,
        entries,
        displaced,
        transition,
        log,
        policies,
    }))
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

fn put_entries<'a>(out: &mut Vec<u8>, entries: impl ExactSizeIterator<Item = &'a MemberEntry>) {
    put_varint(out, entries.len() as u64);
    for entry in entries {
        put_entry(out, entry);
    }
}

fn put_entry(out: &mut Vec<u8>, entry: &MemberEntry) {
    put_text(out, entry.member.as_str());
    put_varint(out, u64::from(entry.incarnation.generation));
    out.extend_from_slice(&entry.incarnation.id.to_be_bytes());
    put_varint(out, entry.version);
    put_text(out, &entry.peer_address);
    put_text(out, &entry.client_address);
    put_text(out, &entry.admin_address);
    put_text(out, entry.zone.as_str());
    put_text(out, &entry.release);
    put_varint(out, entry.starts);
    put_varint(out, entry.synced);
}

fn read_entries(reader: &mut Reader, old: bool) -> Result<BTreeMap<MemberId, MemberEntry>, DecodeError> {
    let mut entries = BTreeMap::new();
    for _ in 0..read_count(reader, MEMBERS_MAX)? {
        let entry = read_entry(reader, old)?;
        if entries
            .last_key_value()
            .is_some_and(|(last, _)| *last >= entry.member)
        {
            return Err(DecodeError::Invalid("order of entries"));
        }
        entries.insert(entry.member.clone(), entry);
    }
    Ok(entries)
}

fn read_displaced(reader: &mut Reader) -> Result<Displaced, DecodeError> {
    let mut displaced = Displaced::default();
    for _ in 0..read_count(reader, MEMBERS_MAX * DISPLACED_MAX)? {
        if !displaced.push(read_entry(reader, false)?) {
            return Err(DecodeError::Invalid("order or number of lives before"));
        }
    }
    Ok(displaced)
}

fn read_count(reader: &mut Reader, most: usize) -> Result<usize, DecodeError> {
    let count = reader.count(ENTRY_BYTES_MIN)?;
    if count > most {
        return Err(DecodeError::Invalid("number of entries"));
    }
    Ok(count)
}

fn read_entry(reader: &mut Reader, old: bool) -> Result<MemberEntry, DecodeError> {
    let entry = MemberEntry {
        member: member_id(reader)?,
        incarnation: Incarnation {
            generation: u32::try_from(reader.varint()?).map_err(|_| DecodeError::Invalid("generation"))?,
            id: reader.fixed_u64()?,
        },
        version: reader.varint()?,
        peer_address: text(reader)?,
        client_address: text(reader)?,
        admin_address: text(reader)?,
        zone: Zone::new(text(reader)?).map_err(|_| DecodeError::Invalid("zone"))?,
        release: text(reader)?,
        starts: reader.varint()?,
        synced: if old { 0 } else { reader.varint()? },
    };
    entry.check().map_err(|_| DecodeError::Invalid("entry"))?;
    Ok(entry)
}

fn read_ring(reader: &mut Reader, cluster: ClusterId) -> Result<Option<Arc<Ring>>, DecodeError> {
    let bytes = reader.bytes()?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let ring = Ring::decode(bytes)?;
    if ring.cluster_id() == cluster {
        Ok(Some(Arc::new(ring)))
    } else {
        Err(DecodeError::Invalid("ring's cluster"))
    }
}

fn read_log(reader: &mut Reader) -> Result<Log, DecodeError> {
    let count = reader.count(LOG_ENTRY_BYTES_MIN)?;
    if count > LOG_ENTRIES_MAX {
        return Err(DecodeError::Invalid("length of the log"));
    }
    let mut log = Log::default();
    let mut last: Option<RingVersion> = None;
    for _ in 0..count {
        let entry = read_log_entry(reader)?;
        let version = entry.version();
        if last >= Some(version) {
            return Err(DecodeError::Invalid("order of the log"));
        }
        last = Some(version);
        log.insert(entry);
    }
    Ok(log)
}

fn read_log_entry(reader: &mut Reader) -> Result<LogEntry, DecodeError> {
    let (epoch, hash) = (reader.varint()?, reader.fixed_u64()?);
    let members = reader.count(2)?;
    if members > MEMBERS_MAX {
        return Err(DecodeError::Invalid("members of a logged ring"));
    }
    let members = (0..members)
        .map(|_| member_id(reader))
        .collect::<Result<_, _>>()?;
    let entry = LogEntry { epoch, hash, members };
    if entry.is_sound() {
        Ok(entry)
    } else {
        Err(DecodeError::Invalid("members of a logged ring"))
    }
}

fn member_id(reader: &mut Reader) -> Result<MemberId, DecodeError> {
    MemberId::new(text(reader)?).map_err(|_| DecodeError::Invalid("member id"))
}

fn text(reader: &mut Reader) -> Result<String, DecodeError> {
    String::from_utf8(reader.bytes()?.to_vec()).map_err(|_| DecodeError::Invalid("text"))
}
