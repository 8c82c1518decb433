//! Reading a store that was set aside: record by record, around what is damaged.

use std::path::Path;

use bytes::Bytes;
use dynamo_core::{types::ClusterId, version::KeyState};

use super::{
    DataKey, Space, keys,
    keys::meta,
    records,
    rocks::{OpenError, Remains},
};
use crate::durable;

/// Records of one portion.
const RECORDS_MAX: usize = 256;
/// Bytes of one portion's states, but for its last record.
const BYTES_MAX: usize = 4 << 20;
/// Key hashes that are passed over where a block cannot be read; twice as many each time until something is found. At 100
/// million keys, 180 of them lie within the first step.
const STEP: u64 = 1 << 45;

/// What a store held that is no longer used.
#[derive(Debug)]
pub struct Salvage {
    remains: Remains,
    /// The next key to read, or its beginning; none once everything was read.
    next: Option<Bytes>,
    step: u64,
}

/// Some records, in ascending order of their keys.
#[derive(Debug, Default)]
pub struct Portion {
    /// Those that are whole.
    pub records: Vec<(DataKey, KeyState)>,
    /// How many are not.
    pub damaged: u64,
    /// The store could not be read at a place in it where it could be read before.
    pub gap: bool,
    /// How much of the key space has been read, 0..=100; 100 once there is no more.
    pub percent: u32,
}

impl Salvage {
    /// Opens a store to read it. Changes nothing.
    ///
    /// # Errors
    /// If nothing of it can be read.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Ok(Self {
            remains: Remains::open(path, &[Space::Meta, Space::Data])?,
            next: Some(Bytes::new()),
            step: STEP,
        })
    }

    /// Whose data they are, if that can still be read.
    pub fn cluster(&self) -> Option<ClusterId> {
        let record = self.remains.named(meta::IDENTITY)?;
        Some(durable::identity_in(&record).ok()?.cluster)
    }

    /// The next records; none once everything was read. May block on the disk.
    pub fn portion(&mut self) -> Option<Portion> {
        let mut last = self.next.take()?;
        let mut portion = Portion::default();
        let (mut read, mut bytes) = (0, 0);
        for record in self.remains.data_from(&last) {
            let Ok((key, value)) = record else {
                portion.gap = read > 0 || self.step == STEP;
                self.next = beyond(&last, self.step);
                self.step = self.step.saturating_mul(2);
                break;
            };
            self.step = STEP;
            read += 1;
            bytes += value.len();
            last = key.clone();
            match decode(key, value) {
                Some(record) => portion.records.push(record),
                None => portion.damaged += 1,
            }
            if read == RECORDS_MAX || bytes >= BYTES_MAX {
                self.next = Some(successor(&last));
                break;
            }
        }
        portion.percent = self.next.as_deref().map_or(100, percent);
        Some(portion)
    }
}

fn decode(key: Bytes, value: Bytes) -> Option<(DataKey, KeyState)> {
    let key = DataKey::parse(key).ok()?;
    let state = records::decode(&(&key).into(), value).ok()?;
    Some((key, state))
}

fn successor(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

/// So many hashes after that of a key.
fn beyond(key: &[u8], step: u64) -> Option<Bytes> {
    let hash = keys::hash_of(&padded(key)).0.checked_add(step)?;
    Some(Bytes::copy_from_slice(&hash.to_be_bytes()))
}

fn percent(key: &[u8]) -> u32 {
    let hash = u128::from(keys::hash_of(&padded(key)).0);
    ((hash * 100) >> 64) as u32
}

fn padded(key: &[u8]) -> [u8; 8] {
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(key) {
        *to = *from;
    }
    bytes
}

#[cfg(test)]
mod tests;
