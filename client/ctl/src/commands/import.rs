//! import: records of a file into a bucket, in batches.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use dynamo_client::{Client, Context, Error, OpId, PutEntry, ReadOptions, WriteOptions};
use futures::{StreamExt as _, stream};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::{
    cli::{Global, Import, RecordFormat},
    connect,
    failure::Failure,
    formats::{self, Numbered, Record},
    output::{self, Output},
    values,
};

/// Records of one batch, except that records of one key that follow each other stay together.
const BATCH_RECORDS: usize = 100;
/// Bytes of one batch, reached by at most one record more.
const BATCH_BYTES: usize = 1 << 20;
/// Errors that are told one by one; the rest are counted.
const ERRORS_TOLD_MAX: u64 = 20;

/// Records that are put together, with their lines.
#[derive(Debug, Default)]
struct Batch {
    records: Vec<(u64, Record)>,
    /// Lines that hold no record.
    malformed: Vec<(u64, String)>,
    bytes: usize,
}

/// How it went so far.
#[derive(Debug, Default)]
struct Tally {
    stored: u64,
    failed: u64,
    malformed: u64,
}

pub(crate) async fn run(global: &Global, import: &Import, output: Output) -> Result<ExitCode, Failure> {
    let format = format_of(&import.file, import.format)?;
    let (reader, size) = open(&import.file)?;
    let client = connect::many(global, import.route).await?;
    let template = "{bar:30} {bytes}/{total_bytes} {msg} {elapsed} (eta {eta})";
    let bar = output.progress(size, template);
    let read_bytes = Arc::new(AtomicU64::new(0));
    let counted = Counted {
        inner: reader,
        count: Arc::clone(&read_bytes),
    };
    let (send, receive) = mpsc::channel(1);
    let reading = tokio::task::spawn_blocking(move || {
        batches(formats::read(format, counted), |batch| {
            send.blocking_send(batch).is_ok()
        });
    });
    let began = Instant::now();
    let stop = AtomicBool::new(false);
    let incoming = stream::unfold(receive, |mut receive| async {
        // What is in flight is still waited for, so that the summary is true.
        let batch = if stop.load(Ordering::Relaxed) {
            None
        } else {
            receive.recv().await
        };
        batch.map(|batch| (batch, receive))
    });
    let stored = incoming.map(|batch| store(&client, batch, import.overwrite));
    let mut stored = Box::pin(stored.buffered(import.concurrency as usize));
    let mut tally = Tally::default();
    while let Some((batch, results)) = stored.next().await {
        tell(&mut tally, &batch, &results, &bar);
        bar.set_position(read_bytes.load(Ordering::Relaxed));
        bar.set_message(format!("{} records", tally.stored));
        if !import.continue_on_error && tally.failed + tally.malformed > 0 {
            stop.store(true, Ordering::Relaxed);
        }
    }
    bar.finish_and_clear();
    drop(stored);
    // After an error the reader may wait on a terminal: it ends with the process.
    if tally.failed + tally.malformed == 0 {
        let _ = reading.await;
    }
    summary(import, &tally, began.elapsed().as_secs_f64(), output)
}

/// What a file's name says, unless it is told.
pub(crate) fn format_of(path: &Path, told: Option<RecordFormat>) -> Result<RecordFormat, Failure> {
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .map(str::to_ascii_lowercase);
    match (told, extension.as_deref()) {
        (Some(format), _) => Ok(format),
        (None, Some("ndjson" | "jsonl" | "json")) => Ok(RecordFormat::Ndjson),
        (None, Some("csv")) => Ok(RecordFormat::Csv),
        _ => Err(Failure::new(
            format!("cannot tell the format of {}", path.display()),
            "its name ends neither in .ndjson nor in .csv",
        )
        .hint("say --format ndjson or --format csv")),
    }
}

fn open(path: &Path) -> Result<(Box<dyn Read + Send>, Option<u64>), Failure> {
    if path == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    let failed = |error: &io::Error| Failure::io(format!("cannot open {}", path.display()), error);
    let file = File::open(path).map_err(|error| failed(&error))?;
    let size = file.metadata().map_err(|error| failed(&error))?;
    Ok((Box::new(file), size.is_file().then_some(size.len())))
}

/// Counts what passes, for the progress bar.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Gathers records until a batch is full and the key changes; stops when nobody takes them any more.
fn batches(records: impl Iterator<Item = Numbered>, mut take: impl FnMut(Batch) -> bool) {
    let mut batch = Batch::default();
    for Numbered { line, record, .. } in records {
        match record {
            Ok(record) => {
                let full = batch.records.len() >= BATCH_RECORDS || batch.bytes >= BATCH_BYTES;
                let same_key = batch
                    .records
                    .last()
                    .is_some_and(|(_, last)| last.key == record.key);
                if full && !same_key && !take(std::mem::take(&mut batch)) {
                    return;
                }
                batch.bytes += record.key.len() + record.value.len();
                batch.records.push((line, record));
            }
            Err(why) => {
                batch.malformed.push((line, why));
                if !take(std::mem::take(&mut batch)) {
                    return;
                }
            }
        }
    }
    take(batch);
}

/// Puts a batch; a result for each record.
async fn store(client: &Client, batch: Batch, overwrite: bool) -> (Batch, Vec<Result<(), Error>>) {
    let contexts = if overwrite {
        let keys = batch.records.iter().map(|(_, record)| &record.key);
        let found = client.batch_get(keys, &ReadOptions::default()).await;
        found.into_iter().map(context_of).collect()
    } else {
        vec![Ok(Context::none()); batch.records.len()]
    };
    let mut results: Vec<Result<(), Error>> = Vec::with_capacity(contexts.len());
    let mut entries = Vec::with_capacity(contexts.len());
    let mut positions = Vec::with_capacity(contexts.len());
    for (index, ((_, record), context)) in batch.records.iter().zip(contexts).enumerate() {
        match context {
            Ok(context) => {
                let op_id = Some(op_id(client.bucket(), record));
                entries.push(PutEntry {
                    key: record.key.clone(),
                    value: record.value.clone(),
                    context,
                    op_id,
                });
                positions.push(index);
                results.push(Ok(()));
            }
            Err(error) => results.push(Err(error)),
        }
    }
    let written = client.batch_put(entries, &WriteOptions::default()).await;
    for (index, written) in positions.into_iter().zip(written) {
        results[index] = written.map(drop);
    }
    (batch, results)
}

/// An absent key may still have tombstones to supersede.
fn context_of(found: Result<dynamo_client::Found, Error>) -> Result<Context, Error> {
    match found {
        Ok(found) => Ok(found.context),
        Err(Error::NotFound { context }) => Ok(context),
        Err(error) => Err(error),
    }
}

/// The same record has the same id, so that an import that is begun again adds no siblings of what it already stored.
fn op_id(bucket: &str, record: &Record) -> OpId {
    let mut hasher = Sha256::new_with_prefix(b"dynamoctl import");
    for part in [bucket.as_bytes(), &record.key, &record.value] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let mut id = OpId::default();
    id.copy_from_slice(&hasher.finalize()[..16]);
    id
}

fn tell(tally: &mut Tally, batch: &Batch, results: &[Result<(), Error>], bar: &indicatif::ProgressBar) {
    let told = |tally: &Tally, text: String| {
        if tally.failed + tally.malformed <= ERRORS_TOLD_MAX {
            bar.suspend(|| output::note(&text));
        }
    };
    for ((line, record), result) in batch.records.iter().zip(results) {
        match result {
            Ok(()) => tally.stored += 1,
            Err(error) => {
                tally.failed += 1;
                let attempted = format!("line {line}: cannot put {:?}", values::show(&record.key));
                told(tally, Failure::client(attempted, error).to_string());
            }
        }
    }
    for (line, why) in &batch.malformed {
        tally.malformed += 1;
        told(tally, format!("line {line}: {why}"));
    }
}

fn summary(import: &Import, tally: &Tally, seconds: f64, output: Output) -> Result<ExitCode, Failure> {
    let per_second = (tally.stored as f64 / seconds.max(0.001)).round();
    let json = json!({
        "stored": tally.stored, "failed": tally.failed, "malformed": tally.malformed,
        "complete": import.continue_on_error || tally.failed + tally.malformed == 0,
        "seconds": (seconds * 1000.0).round() / 1000.0, "per_second": per_second,
    });
    output.print(&json, |_| {
        format!(
            "stored {} records in {seconds:.1} s ({per_second} a second)",
            tally.stored
        )
    })?;
    if tally.failed + tally.malformed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let cause = format!(
        "{} lines are malformed, {} records were not stored",
        tally.malformed, tally.failed
    );
    let failure = Failure::new(format!("cannot import all of {}", import.file.display()), cause);
    Err(if import.continue_on_error {
        failure
    } else {
        failure.hint("stopped at the first error; mend it and import again (what is stored is not doubled), or pass --continue-on-error")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(count: usize, key: impl Fn(usize) -> String) -> Vec<Numbered> {
        let records = (0..count).map(|index| Numbered {
            line: index as u64 + 1,
            record: Ok(Record {
                key: key(index).into(),
                value: "v".into(),
            }),
            last: false,
        });
        records.collect()
    }

    fn gather(records: Vec<Numbered>) -> Vec<Batch> {
        let mut all = Vec::new();
        batches(records.into_iter(), |batch| {
            all.push(batch);
            true
        });
        all
    }

    #[test]
    fn batches_are_bounded_but_keep_siblings_together() {
        let sizes = |batches: Vec<Batch>| {
            batches
                .iter()
                .map(|batch| batch.records.len())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            sizes(gather(numbered(250, |index| format!("k{index}")))),
            [100, 100, 50]
        );
        // Lines 100..=120 are siblings of one key.
        let siblings = numbered(130, |index| {
            format!("k{}", if (99..120).contains(&index) { 99 } else { index })
        });
        assert_eq!(sizes(gather(siblings)), [120, 10]);
    }

    #[test]
    fn a_malformed_line_ends_its_batch_and_nothing_is_read_that_nobody_takes() {
        let mut records = numbered(10, |index| format!("k{index}"));
        records[3].record = Err("malformed".to_owned());
        let all = gather(records);
        assert_eq!(
            (all.len(), all[0].records.len(), all[0].malformed[0].0),
            (2, 3, 4)
        );
        let mut read = 0;
        let endless = (0u64..).map(|line| {
            read += 1;
            Numbered {
                line,
                record: Err(String::new()),
                last: false,
            }
        });
        batches(endless, |_| false);
        assert_eq!(read, 1);
    }

    #[test]
    fn formats_by_name() {
        let of = |name: &str| format_of(Path::new(name), None);
        assert_eq!(of("a.ndjson").unwrap(), RecordFormat::Ndjson);
        assert_eq!(of("dir.csv/a.JSONL").unwrap(), RecordFormat::Ndjson);
        assert_eq!(of("a.csv").unwrap(), RecordFormat::Csv);
        assert!(of("-").is_err() && of("a.txt").is_err());
        assert_eq!(
            format_of(Path::new("-"), Some(RecordFormat::Csv)).unwrap(),
            RecordFormat::Csv
        );
    }

    #[test]
    fn equal_records_have_equal_ids_and_no_others() {
        let record = |key: &'static str, value: &'static str| Record {
            key: key.into(),
            value: value.into(),
        };
        assert_eq!(op_id("b", &record("k", "v")), op_id("b", &record("k", "v")));
        for (bucket, other) in [
            ("b", record("kv", "")),
            ("b", record("k", "w")),
            ("bk", record("", "v")),
        ] {
            assert_ne!(op_id("b", &record("k", "v")), op_id(bucket, &other));
        }
    }
}
