//! export: all records of a bucket into a file.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    process::ExitCode,
};

use dynamo_client::{Client, Error, Found, ListOptions, ReadOptions};
use futures::StreamExt as _;
use serde_json::json;

use crate::{
    cli::{Export, Global, RecordFormat},
    commands::import::format_of,
    connect,
    failure::Failure,
    formats::{Record, Writer},
    output::{self, Output},
    values,
};

/// Keys of one page, whose values are held in memory together.
const PAGE_KEYS: u32 = 100;

/// How it went so far.
#[derive(Debug, Default)]
struct Tally {
    keys: u64,
    records: u64,
    failed: u64,
}

pub(crate) async fn run(global: &Global, export: &Export, output: Output) -> Result<ExitCode, Failure> {
    let to_stdout = export.file == Path::new("-");
    let format = match (to_stdout, export.format) {
        (true, None) => RecordFormat::Ndjson,
        (_, told) => format_of(&export.file, told)?,
    };
    let client = connect::many(global, export.route).await?;
    let failed = |error: &io::Error| Failure::io(format!("cannot write {}", export.file.display()), error);
    let out: Box<dyn Write + Send> = if to_stdout {
        Box::new(io::stdout())
    } else {
        Box::new(File::create(&export.file).map_err(|error| failed(&error))?)
    };
    let mut writer = Writer::new(format, BufWriter::new(out)).map_err(|error| failed(&error))?;
    let bar = output.progress(None, "{spinner} {pos} keys {elapsed} ({per_sec})");
    let mut tally = Tally::default();
    let options = ListOptions {
        prefix: export.prefix.clone().into(),
        page_size: PAGE_KEYS,
        ..ListOptions::default()
    };
    let mut pages = client.list_pages(options);
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| Failure::client("cannot list the keys", &error))?;
        for (key, found) in read(&client, page.keys).await {
            match found {
                Ok(found) if found.typed.is_some() => {
                    return Err(Failure::new(
                        format!("cannot export {:?}", values::show(&key)),
                        "the bucket holds values of a data type, which records cannot express",
                    ));
                }
                Ok(found) => {
                    tally.keys += 1;
                    for record in records(key, found) {
                        writer.write(&record).map_err(|error| failed(&error))?;
                        tally.records += 1;
                    }
                }
                // Deleted since it was listed.
                Err(Error::NotFound { .. }) => {}
                Err(error) => {
                    let failure = Failure::client(format!("cannot get {:?}", values::show(&key)), &error);
                    if !export.continue_on_error {
                        return Err(
                            failure.hint("the file is incomplete; export again, or pass --continue-on-error")
                        );
                    }
                    tally.failed += 1;
                    bar.suspend(|| output::note(&failure.to_string()));
                }
            }
        }
        bar.set_position(tally.keys);
    }
    writer.flush().map_err(|error| failed(&error))?;
    bar.finish_and_clear();
    summary(export, &tally, to_stdout, output)
}

async fn read(client: &Client, keys: Vec<bytes::Bytes>) -> Vec<(bytes::Bytes, Result<Found, Error>)> {
    let found = client.batch_get(&keys, &ReadOptions::default()).await;
    keys.into_iter().zip(found).collect()
}

/// A record for each sibling, in the order of their bytes, so that equal states make equal files.
fn records(key: bytes::Bytes, found: Found) -> impl Iterator<Item = Record> {
    let mut values: Vec<_> = found.versions.into_iter().map(|version| version.value).collect();
    values.sort();
    values.into_iter().map(move |value| Record {
        key: key.clone(),
        value,
    })
}

fn summary(export: &Export, tally: &Tally, to_stdout: bool, output: Output) -> Result<ExitCode, Failure> {
    let text = format!("exported {} records of {} keys", tally.records, tally.keys);
    if to_stdout {
        // Standard output holds the records.
        output::note(&text);
    } else {
        let json = json!({ "records": tally.records, "keys": tally.keys, "failed": tally.failed });
        output.print(&json, |_| text)?;
    }
    if tally.failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let cause = format!("{} keys could not be read", tally.failed);
    Err(Failure::new(
        format!("cannot export all to {}", export.file.display()),
        cause,
    ))
}
