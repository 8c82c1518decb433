//! What survives a restart besides data: who this node is, which life of its data this is, and whom it knew.
//!
//! ```text
//!   start   marker of a clean stop, consistent? ── yes ─▶ the same incarnation goes on, at the epoch in the marker
//!                                               └─ no ──▶ a new incarnation: one generation more, a random id
//!           starts + 1, marker removed, all in one batch, synced; only then may anything be served
//!   stop    writer drained and synced ─▶ marker{incarnation, starts, next epoch}, synced
//! ```
//!
//! So a dot that left before its own sync, and was lost with the power, is never given again: whoever lost it is another
//! incarnation. What a clean stop cannot show is a volume put back in time; peers, who remember the starts and the
//! generation, can, and then [`supersede`] begins another life. Paper: §4.4, §4.8.1.
//!
//! ```text
//!   identity     cluster id, 16 bytes ‖ member id ‖ zone ‖ weight
//!   incarnation  generation ‖ id, 8 bytes big-endian
//!   starts       number
//!   clean-stop   incarnation ‖ starts ‖ next epoch
//!   past         incarnation ‖ sequence number ‖ incarnations since
//!   confirmed    empty
//!   view, seeds, suspect: opaque
//! ```
//! Each in the envelope of [`format`](crate::storage::format); numbers without a width are varints, names carry their
//! length.

use bytes::Bytes;
use dynamo_core::{
    membership::SelfHistory,
    replica::Minter,
    types::{ClusterId, Incarnation, MemberId, Zone},
    wire::{DecodeError, Reader, put_bytes, put_varint},
};

use crate::storage::{Batch, Space, Store, StoreError, format, keys::meta};

/// Version of every record's layout.
const RECORD_FORMAT: u8 = 1;
/// The first epoch of an incarnation.
const EPOCH_FIRST: u64 = 1;

/// Who this node is: given once, at bootstrap or join, kept whatever its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Its name in it.
    pub member: MemberId,
    /// Its failure domain.
    pub zone: Zone,
    /// Its share of the ring, 1..=100.
    pub weight: u32,
}

/// What a start found and decided; it is on disk already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// None: the node is unassigned.
    pub identity: Option<Identity>,
    /// The life of the data from now on.
    pub incarnation: Incarnation,
    /// The first epoch that it may give.
    pub next_epoch: u64,
    /// Starts on this data, this one included.
    pub starts: u64,
    /// Whether the life is another one.
    pub life: Life,
    /// The last life that no peer has yet compared with what it remembers, if it is not the present one.
    pub previous: Option<Incarnation>,
    /// Lives that began since then, oldest first: see [`SelfHistory::since`](dynamo_core::membership::SelfHistory::since).
    pub since: Vec<Incarnation>,
    /// [`Store::sequence`] as the start after that life found it: peers who remember that `previous` had more synced know
    /// that this disk lost some of it.
    pub recovered: u64,
    /// No peer has ever confirmed this store: it began empty, and may have been emptied.
    pub fresh: bool,
    /// There if the store is suspect, that is may lack what it once acknowledged: how far it has been filled again.
    /// Empty right after a store was set aside.
    pub suspect: Option<Bytes>,
    /// The gossip view, if one was kept.
    pub view: Option<Bytes>,
    /// Seeds that an administrator named, if any, joined by commas.
    pub seeds: Option<Bytes>,
}

/// How a start came to its incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// The data directory was empty.
    First,
    /// The last stop was clean.
    Kept,
    /// It was not, or cannot be proven to have been.
    Renewed {
        /// For the log.
        because: &'static str,
    },
}

/// Another life of the data, to be given to [`Writer::renew`](crate::storage::Writer::renew).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    /// The new incarnation.
    pub incarnation: Incarnation,
}

/// Why a start or a stop failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurableError {
    /// The store failed, or the record is damaged or of a newer release.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The record is whole but not what this release writes.
    #[error("reading the {record} record: {source}")]
    Invalid {
        /// Which one.
        record: &'static str,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// Records that are only ever written together disagree.
    #[error(
        "{0}; the data directory was altered from outside: restore it, or empty it to start with nothing"
    )]
    Inconsistent(&'static str),
}

/// Whose data are in a store, by its identity record.
///
/// # Errors
/// If the record is damaged or of a newer release.
pub fn identity_in(record: &Bytes) -> Result<Identity, DurableError> {
    open(record, "identity", meta::IDENTITY, read_identity)
}

/// Begins to use an open store; see the module. `random_id` names the incarnation if there is to be a new one.
///
/// # Errors
/// If a record cannot be read or written, or records contradict each other. Then nothing may be served.
pub fn start(store: &dyn Store, random_id: u64) -> Result<Started, DurableError> {
    let recovered = store.sequence();
    let identity = read(store, "identity", meta::IDENTITY, read_identity)?;
    let last = last_life(store)?;
    let confirmed = opaque(store, meta::CONFIRMED, "reading whether peers know this store")?.is_some();
    let suspect = opaque(store, meta::SUSPECT, "reading the suspect record")?;
    let (incarnation, next_epoch, life) = match last {
        None => (
            Incarnation {
                generation: 1,
                id: random_id,
            },
            EPOCH_FIRST,
            Life::First,
        ),
        Some(last) => match clean_stop(store, last)? {
            Ok(next_epoch) => (last.incarnation, next_epoch, Life::Kept),
            Err(because) => {
                let Renewal { incarnation } = supersede(last.incarnation, 0, random_id);
                (incarnation, EPOCH_FIRST, Life::Renewed { because })
            }
        },
    };
    let starts = last.map_or(0, |last| last.starts) + 1;
    let past = read(store, "past", meta::PAST, |reader| {
        let (previous, recovered) = (read_incarnation(reader)?, reader.varint()?);
        let mut since = Vec::new();
        while reader.remaining() > 0 {
            since.push(read_incarnation(reader)?);
        }
        Ok(SelfHistory {
            previous: Some(previous),
            since,
            recovered,
        })
    })?;
    // Until a peer has compared it, later lives are no excuse for what an earlier one lost.
    let before = last.map(|last| last.incarnation);
    let history = match (past, before) {
        (Some(mut past), Some(last)) => {
            past.outlived(last);
            past
        }
        (_, before) => SelfHistory {
            previous: before.filter(|life| confirmed && *life != incarnation),
            since: Vec::new(),
            recovered,
        },
    };
    let started = Started {
        identity,
        incarnation,
        next_epoch,
        starts,
        life,
        previous: history.previous,
        since: history.since,
        recovered: history.recovered,
        fresh: !confirmed,
        suspect,
        view: opaque(store, meta::VIEW, "reading the gossip view")?,
        seeds: opaque(store, meta::SEEDS, "reading the seeds")?,
    };
    let mut batch = Batch::new();
    put(&mut batch, meta::INCARNATION, &incarnation_bytes(incarnation));
    put(&mut batch, meta::STARTS, &varint(starts));
    batch.delete(Space::Meta, meta::CLEAN_STOP);
    if let Some(previous) = started.previous {
        let mut past = incarnation_bytes(previous);
        put_varint(&mut past, started.recovered);
        for life in &started.since {
            past.extend(incarnation_bytes(*life));
        }
        put(&mut batch, meta::PAST, &past);
    }
    store.write(batch, true)?;
    Ok(started)
}

/// Marks a clean stop. Only after the writer has stopped without an error and nothing will be served any more.
///
/// # Errors
/// If the minter is not that of the stored incarnation, or the store fails: then the next start begins a new life.
pub fn stop(store: &dyn Store, minter: &Minter) -> Result<(), DurableError> {
    let Some(life) = last_life(store)? else {
        return Err(DurableError::Inconsistent("a node that never started is to stop"));
    };
    if life.incarnation != minter.incarnation() {
        return Err(DurableError::Inconsistent(
            "the minter belongs to another incarnation than the stored one",
        ));
    }
    let mut marker = incarnation_bytes(life.incarnation);
    put_varint(&mut marker, life.starts);
    put_varint(&mut marker, minter.next_epoch());
    let mut batch = Batch::new();
    put(&mut batch, meta::CLEAN_STOP, &marker);
    Ok(store.write(batch, true)?)
}

/// The life that follows `current` when peers remember generation `remembered` of this member, or more starts than the
/// node itself: its volume is older than what they have seen, so its epochs may have been given before.
pub fn supersede(current: Incarnation, remembered: u32, random_id: u64) -> Renewal {
    let generation = current.generation.max(remembered).saturating_add(1);
    Renewal {
        incarnation: Incarnation {
            generation,
            id: random_id,
        },
    }
}

/// Stores who this node is.
pub fn identity(identity: &Identity) -> Batch {
    let mut bytes = identity.cluster.0.to_vec();
    put_bytes(&mut bytes, identity.member.as_str().as_bytes());
    put_bytes(&mut bytes, identity.zone.as_str().as_bytes());
    put_varint(&mut bytes, u64::from(identity.weight));
    one(meta::IDENTITY, &bytes)
}

/// Stores the gossip view.
pub fn view(bytes: &[u8]) -> Batch {
    one(meta::VIEW, bytes)
}

/// Stores the addresses of seeds, joined by commas.
pub fn seeds(bytes: &[u8]) -> Batch {
    one(meta::SEEDS, bytes)
}

/// Stores that this store is suspect, and how far it has been filled again. It survives every restart until
/// [`trusted`] is stored.
pub fn suspect(progress: &[u8]) -> Batch {
    one(meta::SUSPECT, progress)
}

/// Stores that a peer has compared what it remembers of this member with what this store holds, and found nothing amiss.
pub fn confirmed() -> Batch {
    let mut batch = one(meta::CONFIRMED, &[]);
    batch.delete(Space::Meta, meta::PAST);
    batch
}

/// Stores that this store lacks nothing any more that it once acknowledged.
pub fn trusted() -> Batch {
    let mut batch = Batch::new();
    batch.delete(Space::Meta, meta::SUSPECT);
    batch
}

impl Started {
    /// Gives the epochs of this life.
    pub fn minter(&self) -> Minter {
        Minter::new(self.incarnation, self.next_epoch)
    }
}

impl Renewal {
    /// Gives the epochs of the new life.
    pub fn minter(&self) -> Minter {
        Minter::new(self.incarnation, EPOCH_FIRST)
    }

    /// Stores the new life.
    pub fn batch(&self) -> Batch {
        one(meta::INCARNATION, &incarnation_bytes(self.incarnation))
    }
}

/// What the last start wrote.
#[derive(Clone, Copy)]
struct LastLife {
    incarnation: Incarnation,
    starts: u64,
}

fn last_life(store: &dyn Store) -> Result<Option<LastLife>, DurableError> {
    let incarnation = read(store, "incarnation", meta::INCARNATION, read_incarnation)?;
    let starts = read(store, "starts", meta::STARTS, Reader::varint)?;
    match (incarnation, starts) {
        (Some(incarnation), Some(starts)) => Ok(Some(LastLife { incarnation, starts })),
        (None, None) => Ok(None),
        _ => Err(DurableError::Inconsistent(
            "of the records incarnation and starts one is missing",
        )),
    }
}

/// The next epoch, if the marker proves that nothing was coordinated after it; else why it does not.
fn clean_stop(store: &dyn Store, last: LastLife) -> Result<Result<u64, &'static str>, DurableError> {
    let marker = read(store, "clean-stop", meta::CLEAN_STOP, |reader| {
        Ok((read_incarnation(reader)?, reader.varint()?, reader.varint()?))
    });
    Ok(match marker {
        Ok(Some((incarnation, starts, next_epoch))) => {
            if (incarnation, starts) == (last.incarnation, last.starts) {
                Ok(next_epoch)
            } else {
                Err("the marker of the last stop belongs to another start")
            }
        }
        Ok(None) => Err("the last stop was not clean"),
        // A new life is always safe; only the marker itself was lost.
        Err(DurableError::Store(StoreError::Damaged { .. } | StoreError::NewerFormat { .. })) => {
            Err("the marker of the last stop cannot be read")
        }
        Err(DurableError::Invalid { .. }) => Err("the marker of the last stop is not one"),
        Err(error) => return Err(error),
    })
}

fn read<T>(
    store: &dyn Store,
    record: &'static str,
    key: &[u8],
    decode: impl FnOnce(&mut Reader) -> Result<T, DecodeError>,
) -> Result<Option<T>, DurableError> {
    let Some(value) = store.get(Space::Meta, key)? else {
        return Ok(None);
    };
    open(&value, record, key, decode).map(Some)
}

fn open<T>(
    value: &Bytes,
    record: &'static str,
    key: &[u8],
    decode: impl FnOnce(&mut Reader) -> Result<T, DecodeError>,
) -> Result<T, DurableError> {
    let payload = format::open(RECORD_FORMAT, key, value, || {
        format!("reading the {record} record")
    })?
    .payload;
    let mut reader = Reader::new(payload);
    let value = decode(&mut reader).and_then(|value| reader.finish().map(|()| value));
    value.map_err(|source| DurableError::Invalid { record, source })
}

fn opaque(store: &dyn Store, key: &[u8], attempted: &str) -> Result<Option<Bytes>, DurableError> {
    let Some(value) = store.get(Space::Meta, key)? else {
        return Ok(None);
    };
    Ok(Some(
        format::open(RECORD_FORMAT, key, &value, || attempted.to_owned())?.payload,
    ))
}

fn read_identity(reader: &mut Reader) -> Result<Identity, DecodeError> {
    let cluster = ClusterId(reader.array()?);
    let member = MemberId::new(text(reader)?).map_err(|_| DecodeError::Invalid("member id"))?;
    let zone = Zone::new(text(reader)?).map_err(|_| DecodeError::Invalid("zone"))?;
    let weight = u32::try_from(reader.varint()?).map_err(|_| DecodeError::Invalid("weight"))?;
    Ok(Identity {
        cluster,
        member,
        zone,
        weight,
    })
}

fn text(reader: &mut Reader) -> Result<String, DecodeError> {
    String::from_utf8(reader.bytes()?.into()).map_err(|_| DecodeError::Invalid("text"))
}

fn read_incarnation(reader: &mut Reader) -> Result<Incarnation, DecodeError> {
    let generation = u32::try_from(reader.varint()?).map_err(|_| DecodeError::Invalid("generation"))?;
    Ok(Incarnation {
        generation,
        id: reader.fixed_u64()?,
    })
}

fn incarnation_bytes(incarnation: Incarnation) -> Vec<u8> {
    let mut bytes = varint(u64::from(incarnation.generation));
    bytes.extend_from_slice(&incarnation.id.to_be_bytes());
    bytes
}

fn varint(number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_varint(&mut bytes, number);
    bytes
}

fn one(key: &'static [u8], payload: &[u8]) -> Batch {
    let mut batch = Batch::new();
    put(&mut batch, key, payload);
    batch
}

fn put(batch: &mut Batch, key: &'static [u8], payload: &[u8]) {
    batch.put(Space::Meta, key, format::seal(RECORD_FORMAT, key, payload));
}

#[cfg(test)]
mod tests;
