//! Records in files: newline-delimited JSON and CSV, read and written one at a time.
//!
//! Text is written as it is (`key`, `value`), anything else in base64 (`key_b64`, `value_b64`). What is written is
//! read back byte for byte, and the same records always make the same bytes.

use std::{
    cell::Cell,
    io::{self, BufRead, BufReader, Read, Write},
    rc::Rc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::cli::RecordFormat;

/// One record may take so many bytes of a file: a value of 16 MiB in base64, with room.
const RECORD_BYTES_MAX: usize = 24 << 20;
/// The columns of CSV, in the order in which they are written.
const COLUMNS: [&str; 4] = ["key", "value", "key_b64", "value_b64"];

/// A key with one of its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
}

/// What a file gives: a record, or why there is none, with the number of the line where it begins, from 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Numbered {
    pub(crate) line: u64,
    pub(crate) record: Result<Record, String>,
    /// Nothing can be read after it.
    pub(crate) last: bool,
}

/// One line of NDJSON.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_b64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_b64: Option<String>,
}

/// Reads all records of a file, in bounded memory.
pub(crate) fn read(format: RecordFormat, reader: impl Read + 'static) -> Box<dyn Iterator<Item = Numbered>> {
    match format {
        RecordFormat::Ndjson => Box::new(NdjsonReader {
            reader: BufReader::new(reader),
            line: 0,
            done: false,
        }),
        RecordFormat::Csv => Box::new(CsvReader::new(reader)),
    }
}

/// Writes records to a file.
pub(crate) struct Writer<W: Write> {
    inner: Inner<W>,
}

enum Inner<W: Write> {
    Ndjson(W),
    Csv(Box<csv::Writer<W>>),
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    pub(crate) fn new(format: RecordFormat, out: W) -> io::Result<Self> {
        let inner = match format {
            RecordFormat::Ndjson => Inner::Ndjson(out),
            RecordFormat::Csv => {
                let mut writer = csv::Writer::from_writer(out);
                writer.write_record(COLUMNS)?;
                Inner::Csv(Box::new(writer))
            }
        };
        Ok(Self { inner })
    }

    /// Appends a record.
    pub(crate) fn write(&mut self, record: &Record) -> io::Result<()> {
        let line = Line::of(record);
        match &mut self.inner {
            Inner::Ndjson(out) => {
                serde_json::to_writer(&mut *out, &line)?;
                out.write_all(b"\n")
            }
            Inner::Csv(writer) => {
                let cells = [line.key, line.value, line.key_b64, line.value_b64];
                Ok(writer.write_record(cells.map(Option::unwrap_or_default))?)
            }
        }
    }

    /// Hands everything to the operating system.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match &mut self.inner {
            Inner::Ndjson(out) => out.flush(),
            Inner::Csv(writer) => writer.flush(),
        }
    }
}

impl Line {
    fn of(record: &Record) -> Self {
        let (key, key_b64) = split(&record.key);
        let (value, value_b64) = split(&record.value);
        Self {
            key,
            key_b64,
            value,
            value_b64,
        }
    }

    fn record(self) -> Result<Record, String> {
        let key = join("key", self.key, self.key_b64)?;
        let value = join("value", self.value, self.value_b64)?;
        if key.is_empty() {
            return Err("the key is empty".to_owned());
        }
        Ok(Record { key, value })
    }
}

/// Text as it is, anything else as base64.
fn split(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

fn join(name: &str, text: Option<String>, base64: Option<String>) -> Result<Bytes, String> {
    match (text, base64) {
        (Some(text), None) => Ok(text.into()),
        (None, Some(base64)) => match STANDARD.decode(&base64) {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) => Err(format!("{name}_b64 is not base64: {error}")),
        },
        (None, None) => Err(format!("{name} or {name}_b64 is missing")),
        (Some(_), Some(_)) => Err(format!("both {name} and {name}_b64 are given")),
    }
}

struct NdjsonReader<R> {
    reader: BufReader<R>,
    line: u64,
    done: bool,
}

impl<R: Read> Iterator for NdjsonReader<R> {
    type Item = Numbered;

    fn next(&mut self) -> Option<Numbered> {
        loop {
            if self.done {
                return None;
            }
            self.line += 1;
            let mut bytes = Vec::new();
            let mut limited = (&mut self.reader).take(RECORD_BYTES_MAX as u64 + 1);
            let failed = |line, why| {
                Some(Numbered {
                    line,
                    record: Err(why),
                    last: true,
                })
            };
            match limited.read_until(b'\n', &mut bytes) {
                Err(error) => {
                    self.done = true;
                    return failed(self.line, format!("cannot be read: {error}"));
                }
                Ok(0) => return None,
                Ok(length) if length > RECORD_BYTES_MAX => {
                    self.done = true;
                    return failed(self.line, format!("is longer than {RECORD_BYTES_MAX} bytes"));
                }
                Ok(_) => {}
            }
            let text = bytes.trim_ascii();
            if text.is_empty() {
                continue;
            }
            let parsed = serde_json::from_slice::<Line>(text).map_err(|error| {
                // One line has no line number of its own worth telling.
                let message = error.to_string();
                match message.rsplit_once(" at line ") {
                    Some((why, _)) => format!("{why} at column {}", error.column()),
                    None => message,
                }
            });
            let record = parsed.and_then(Line::record);
            return Some(Numbered {
                line: self.line,
                record,
                last: false,
            });
        }
    }
}

struct CsvReader<R> {
    reader: csv::Reader<Budget<R>>,
    budget: Rc<Cell<usize>>,
    /// For each of `COLUMNS`, where it stands.
    columns: Result<[Option<usize>; 4], String>,
    done: bool,
}

/// Ends the input with an error when one record takes too much of it, as after a quote that is never closed.
struct Budget<R> {
    inner: R,
    left: Rc<Cell<usize>>,
}

impl<R: Read> Read for Budget<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.get() == 0 {
            let message = format!("a record is longer than {RECORD_BYTES_MAX} bytes; is a quote left open?");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let read = self.inner.read(buffer)?;
        self.left.set(self.left.get().saturating_sub(read));
        Ok(read)
    }
}

impl<R: Read> CsvReader<R> {
    fn new(inner: R) -> Self {
        let budget = Rc::new(Cell::new(RECORD_BYTES_MAX));
        let inner = Budget {
            inner,
            left: Rc::clone(&budget),
        };
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(inner);
        let columns = match reader.byte_headers() {
            Ok(header) => columns(header),
            Err(error) => Err(error.to_string()),
        };
        Self {
            reader,
            budget,
            columns,
            done: false,
        }
    }
}

fn columns(header: &csv::ByteRecord) -> Result<[Option<usize>; 4], String> {
    let mut found = [None; 4];
    for (index, name) in header.iter().enumerate() {
        // Spreadsheets put a byte order mark before the first name.
        let name = name
            .strip_prefix("\u{feff}".as_bytes())
            .unwrap_or(name)
            .trim_ascii();
        let Some(column) = COLUMNS.iter().position(|column| column.as_bytes() == name) else {
            let name = String::from_utf8_lossy(name);
            return Err(format!(
                "the header names {name:?}; expected are {}",
                COLUMNS.join(", ")
            ));
        };
        if found[column].replace(index).is_some() {
            return Err(format!("the header names {:?} twice", COLUMNS[column]));
        }
    }
    match found {
        [None, _, None, _] => Err("the header names no key: expected is key,value".to_owned()),
        [_, None, _, None] => Err("the header names no value: expected is key,value".to_owned()),
        found => Ok(found),
    }
}

impl<R: Read> Iterator for CsvReader<R> {
    type Item = Numbered;

    fn next(&mut self) -> Option<Numbered> {
        if self.done {
            return None;
        }
        let columns = match &self.columns {
            Ok(columns) => *columns,
            Err(why) => {
                self.done = true;
                return Some(Numbered {
                    line: 1,
                    record: Err(why.clone()),
                    last: true,
                });
            }
        };
        self.budget.set(RECORD_BYTES_MAX);
        let mut cells = csv::ByteRecord::new();
        let begin = self.reader.position().line();
        match self.reader.read_byte_record(&mut cells) {
            Ok(false) => None,
            Ok(true) => {
                let line = cells.position().map_or(begin, csv::Position::line);
                Some(Numbered {
                    line,
                    record: csv_record(&cells, columns),
                    last: false,
                })
            }
            Err(error) => {
                self.done = true;
                Some(Numbered {
                    line: begin,
                    record: Err(error.to_string()),
                    last: true,
                })
            }
        }
    }
}

fn csv_record(cells: &csv::ByteRecord, columns: [Option<usize>; 4]) -> Result<Record, String> {
    let named = columns.iter().flatten().count();
    if cells.len() != named {
        return Err(format!("has {} fields, the header names {named}", cells.len()));
    }
    let text = |column: usize| -> Result<Option<String>, String> {
        let cell = columns[column].and_then(|index| cells.get(index));
        let decode = |cell: &[u8]| String::from_utf8(cell.to_vec());
        cell.map(decode)
            .transpose()
            .map_err(|_| format!("{} is not UTF-8: use base64", COLUMNS[column]))
    };
    // An empty cell stands for a missing one where the other column says it.
    let pair = |plain: usize, base64: usize| -> Result<(Option<String>, Option<String>), String> {
        let base64 = text(base64)?.filter(|cell| !cell.is_empty());
        let plain = text(plain)?.filter(|cell| !cell.is_empty() || base64.is_none());
        Ok((plain, base64))
    };
    let (key, key_b64) = pair(0, 2)?;
    let (value, value_b64) = pair(1, 3)?;
    // With a value_b64 column alone, an empty cell is the empty value.
    let value_b64 = value_b64.or_else(|| value.is_none().then(String::new));
    Line {
        key,
        key_b64,
        value,
        value_b64,
    }
    .record()
}

#[cfg(test)]
mod tests;
