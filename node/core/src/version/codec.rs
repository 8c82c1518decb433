//! How key states are written, on disk and between nodes alike.
//!
//! ```text
//!   frame   = format version (1 byte) ‖ CRC32C of version and body (4 bytes, big-endian) ‖ body
//!   state   = frame of: seen ‖ number of siblings ‖ sibling*
//!   seen    = number of actors ‖ (actor ‖ number of runs ‖ run*)*                  actors ascending
//!   actor   = incarnation (8 bytes) ‖ epoch
//!   run     = missing counters before it, less one except in the first ‖ counters in it, less one
//!   sibling = place of its actor in seen ‖ counter ‖ stamp (8 bytes) ‖ flags ‖ [expiry] ‖ [op id] ‖ [value]
//!   flags   = 1 tombstone (no value follows), 2 expiry, 4 op id
//! ```
//! Numbers without a width are varints. Equal states have equal bytes: decoders refuse every other spelling. The
//! frame's checksum makes a damaged record an error; it is never served (and never mistaken for an absent one).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::dot::{Actor, COUNTER_MAX, Dot};
use super::hlc::Stamp;
use super::seen::{Run, Seen};
use super::sibling::{Content, Sibling};
use super::state::KeyState;
use crate::wire::{DecodeError, Reader, put_bytes, put_varint};

/// The format that this release writes, on disk and on the wire.
pub const STATE_FORMAT_VERSION: u8 = 1;

/// Bytes of a frame before its body.
pub(super) const FRAME_BYTES: usize = 5;

const RUN_BYTES_MIN: usize = 2;
const ACTOR_BYTES_MIN: usize = 9;
const SIBLING_BYTES_MIN: usize = 11;

const FLAG_TOMBSTONE: u8 = 1;
const FLAG_EXPIRY: u8 = 2;
const FLAG_OP_ID: u8 = 4;

impl KeyState {
    /// The record as it is stored and sent.
    pub fn encode(&self) -> Bytes {
        let values = self
            .siblings()
            .values()
            .filter_map(Sibling::value)
            .map(Bytes::len)
            .sum::<usize>();
        let mut out = Vec::with_capacity(
            FRAME_BYTES + values + 24 * self.seen().runs().len() + 48 * self.siblings().len(),
        );
        seal_frame(&mut out, STATE_FORMAT_VERSION, |out| {
            put_seen(out, self.seen());
            put_siblings(out, self);
        });
        out.into()
    }

    /// Reads a record; its values share the memory of `bytes`.
    ///
    /// # Errors
    /// If the bytes are not exactly what [`encode`](Self::encode) writes.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(open_frame(bytes, STATE_FORMAT_VERSION)?);
        let seen = read_seen(&mut reader)?;
        let siblings = read_siblings(&mut reader, &seen)?;
        reader.finish()?;
        Ok(Self::from_parts(seen, siblings))
    }
}

/// Appends a frame around what `body` writes.
pub(crate) fn seal_frame(out: &mut Vec<u8>, format_version: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[format_version, 0, 0, 0, 0]);
    body(out);
    let checksum = checksum(format_version, &out[start + FRAME_BYTES..]);
    out[start + 1..start + FRAME_BYTES].copy_from_slice(&checksum.to_be_bytes());
}

/// The body of a frame, if its format is known and its checksum right.
pub(crate) fn open_frame(bytes: Bytes, format_version: u8) -> Result<Bytes, DecodeError> {
    let mut reader = Reader::new(bytes);
    let found = reader.byte()?;
    if found != format_version {
        return Err(DecodeError::UnknownFormat(found));
    }
    let expected = u32::from_be_bytes(reader.array()?);
    let body = reader.take(reader.remaining())?;
    if checksum(format_version, &body) == expected {
        Ok(body)
    } else {
        Err(DecodeError::Checksum)
    }
}

fn checksum(format_version: u8, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&[format_version]), body)
}

/// Appends an actor.
pub(crate) fn put_actor(out: &mut Vec<u8>, actor: Actor) {
    out.extend_from_slice(&actor.incarnation.to_be_bytes());
    put_varint(out, actor.epoch);
}

/// Reads an actor.
pub(crate) fn read_actor(reader: &mut Reader) -> Result<Actor, DecodeError> {
    Ok(Actor {
        incarnation: reader.fixed_u64()?,
        epoch: reader.varint()?,
    })
}

/// Appends a set of dots.
pub(crate) fn put_seen(out: &mut Vec<u8>, seen: &Seen) {
    put_varint(out, seen.runs().len() as u64);
    for (actor, runs) in seen.runs() {
        put_actor(out, *actor);
        put_varint(out, runs.len() as u64);
        // The lowest counter at which the next run may begin: at least one is missing between two runs.
        let mut first_min = 1;
        for run in runs {
            put_varint(out, run.first - first_min);
            put_varint(out, run.last - run.first);
            first_min = run.last + 2;
        }
    }
}

/// Reads a set of dots.
pub(crate) fn read_seen(reader: &mut Reader) -> Result<Seen, DecodeError> {
    let mut actors = BTreeMap::new();
    for _ in 0..reader.count(ACTOR_BYTES_MIN + 1 + RUN_BYTES_MIN)? {
        let actor = read_actor(reader)?;
        if actors.last_key_value().is_some_and(|(last, _)| *last >= actor) {
            return Err(DecodeError::Invalid("order of actors"));
        }
        actors.insert(actor, read_runs(reader)?);
    }
    Ok(Seen::from_runs(actors))
}

fn read_runs(reader: &mut Reader) -> Result<Vec<Run>, DecodeError> {
    let count = reader.count(RUN_BYTES_MIN)?;
    if count == 0 {
        return Err(DecodeError::Invalid("actor without dots"));
    }
    let mut runs = Vec::with_capacity(count);
    let mut first_min = 1u64;
    for _ in 0..count {
        let (missing, more) = (reader.varint()?, reader.varint()?);
        if missing > COUNTER_MAX || more > COUNTER_MAX || first_min + missing + more > COUNTER_MAX {
            return Err(DecodeError::Invalid("counter"));
        }
        let run = Run {
            first: first_min + missing,
            last: first_min + missing + more,
        };
        runs.push(run);
        first_min = run.last + 2;
    }
    Ok(runs)
}

fn put_siblings(out: &mut Vec<u8>, state: &KeyState) {
    put_varint(out, state.siblings().len() as u64);
    // Both are in the order of actors, so one walk finds every sibling's place.
    let mut actors = state
        .seen()
        .runs()
        .map(|(actor, _)| *actor)
        .enumerate()
        .peekable();
    for (dot, sibling) in state.siblings() {
        while actors.next_if(|(_, actor)| *actor < dot.actor).is_some() {}
        put_varint(out, actors.peek().map_or(0, |(place, _)| *place as u64));
        put_varint(out, dot.counter);
        out.extend_from_slice(&sibling.stamp.0.to_be_bytes());
        out.push(flags(sibling));
        if let Some(expires_at_ms) = sibling.expires_at_ms {
            put_varint(out, expires_at_ms);
        }
        if let Some(op_id) = &sibling.op_id {
            out.extend_from_slice(op_id);
        }
        if let Some(value) = sibling.value() {
            put_bytes(out, value);
        }
    }
}

fn read_siblings(reader: &mut Reader, seen: &Seen) -> Result<BTreeMap<Dot, Sibling>, DecodeError> {
    let count = reader.count(SIBLING_BYTES_MIN)?;
    let mut siblings = BTreeMap::new();
    let mut actors = seen.runs().enumerate().peekable();
    for _ in 0..count {
        let wanted = reader.varint()?;
        while actors.next_if(|(place, _)| (*place as u64) < wanted).is_some() {}
        let Some((_, (actor, _))) = actors.peek().filter(|(place, _)| *place as u64 == wanted) else {
            return Err(DecodeError::Invalid("actor of a sibling"));
        };
        let dot = Dot {
            actor: **actor,
            counter: reader.varint()?,
        };
        if !seen.contains(&dot) {
            return Err(DecodeError::Invalid("sibling that was not seen"));
        }
        if siblings.last_key_value().is_some_and(|(last, _)| *last >= dot) {
            return Err(DecodeError::Invalid("order of siblings"));
        }
        siblings.insert(dot, read_sibling(reader)?);
    }
    Ok(siblings)
}

fn read_sibling(reader: &mut Reader) -> Result<Sibling, DecodeError> {
    let stamp = Stamp(reader.fixed_u64()?);
    let flags = reader.byte()?;
    if flags & !(FLAG_TOMBSTONE | FLAG_EXPIRY | FLAG_OP_ID) != 0 {
        return Err(DecodeError::Invalid("flags of a sibling"));
    }
    let expires_at_ms = if flags & FLAG_EXPIRY == 0 {
        None
    } else {
        Some(reader.varint()?)
    };
    let op_id = if flags & FLAG_OP_ID == 0 {
        None
    } else {
        Some(reader.array()?)
    };
    let content = if flags & FLAG_TOMBSTONE == 0 {
        Content::Value(reader.bytes()?)
    } else {
        Content::Tombstone
    };
    Ok(Sibling {
        stamp,
        expires_at_ms,
        op_id,
        content,
    })
}

fn flags(sibling: &Sibling) -> u8 {
    let mut flags = 0;
    if sibling.content == Content::Tombstone {
        flags |= FLAG_TOMBSTONE;
    }
    if sibling.expires_at_ms.is_some() {
        flags |= FLAG_EXPIRY;
    }
    if sibling.op_id.is_some() {
        flags |= FLAG_OP_ID;
    }
    flags
}
