//! Reading and writing of our own binary encodings: contexts, key states, rings.
//!
//! Numbers are LEB128 varints in their shortest form, byte strings carry their length. Decoders allocate in
//! proportion to what they are given, whatever lengths stand in it, and refuse what an encoder would not have
//! written, so that equal values have equal bytes.

use bytes::{Buf as _, Bytes};

/// Why bytes could not be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ends inside a field.
    #[error("the input ends inside a field")]
    Truncated,
    /// Bytes follow the last field.
    #[error("bytes follow the last field")]
    Trailing,
    /// The first byte names a format that this release does not know.
    #[error("format version {0} is not known to this release")]
    UnknownFormat(u8),
    /// A checksum does not match.
    #[error("the checksum does not match")]
    Checksum,
    /// A field has a value that no encoder writes.
    #[error("invalid {0}")]
    Invalid(&'static str),
}

/// Appends a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a byte string with its length.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads fields one after another; byte strings share the input's memory.
#[derive(Debug)]
pub struct Reader {
    input: Bytes,
}

impl Reader {
    /// Begins at the first byte.
    pub fn new(input: Bytes) -> Self {
        Self { input }
    }

    /// Bytes that are left.
    pub fn remaining(&self) -> usize {
        self.input.len()
    }

    /// One byte.
    pub fn byte(&mut self) -> Result<u8, DecodeError> {
        let byte = *self.input.first().ok_or(DecodeError::Truncated)?;
        self.input.advance(1);
        Ok(byte)
    }

    /// A varint in its shortest form.
    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let low = u64::from(byte & 0x7f);
            if shift == 63 && low > 1 {
                return Err(DecodeError::Invalid("varint"));
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                return if byte == 0 && shift > 0 {
                    Err(DecodeError::Invalid("varint"))
                } else {
                    Ok(value)
                };
            }
        }
        Err(DecodeError::Invalid("varint"))
    }

    /// A varint that counts items of at least `item_bytes_min` bytes each, so that it cannot exceed what is left.
    pub fn count(&mut self, item_bytes_min: usize) -> Result<usize, DecodeError> {
        let count = self.varint()?;
        if count > (self.remaining() / item_bytes_min.max(1)) as u64 {
            return Err(DecodeError::Truncated);
        }
        Ok(count as usize)
    }

    /// Exactly `length` bytes.
    pub fn take(&mut self, length: usize) -> Result<Bytes, DecodeError> {
        if length > self.input.len() {
            return Err(DecodeError::Truncated);
        }
        Ok(self.input.split_to(length))
    }

    /// A byte string with its length.
    pub fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let length = self.count(1)?;
        self.take(length)
    }

    /// A fixed array.
    pub fn array<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], DecodeError> {
        let array = *self.input.first_chunk().ok_or(DecodeError::Truncated)?;
        self.input.advance(LENGTH);
        Ok(array)
    }

    /// A big-endian number of 8 bytes, for random ones that a varint would lengthen.
    pub fn fixed_u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Nothing may be left.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.input.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing)
        }
    }
}
