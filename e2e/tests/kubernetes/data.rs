//! Real records.

use anyhow::{bail, ensure};
use dynamo_e2e::{
    loader::{Loader, RECORDS},
    report::Line,
};

use crate::{Suite, seconds, told};

/// Where the records are.
pub(crate) const BUCKET: &str = "records";

/// A word list or package index of this machine, through gRPC, from within the cluster.
pub(crate) async fn a_job_loads_real_records_and_reads_them_back(suite: &Suite) -> anyhow::Result<()> {
    ensure!(suite.records >= 10_000, "only {} records", suite.records);
    let args = ["load", "--file", RECORDS, "--bucket", BUCKET];
    let loader = Loader::start(&suite.cluster, &suite.image, "load", "", &args).await?;
    let lines = loader.finished(seconds(180)).await?;
    let Some(Line::Loaded {
        written,
        failed,
        took_ms,
    }) = lines.iter().find(|line| matches!(line, Line::Loaded { .. }))
    else {
        bail!("the loader did not say what it wrote: {lines:?}");
    };
    ensure!(
        *failed == 0 && *written == suite.records as u64,
        "{written} written, {failed} failed"
    );
    told(&format!(
        "{written} records written in {:.1} s, at W=2, synced",
        *took_ms as f64 / 1000.0
    ));
    all_there(&lines, suite.records)
}

/// The last look found so many values, and missed none.
pub(crate) fn all_there(lines: &[Line], count: usize) -> anyhow::Result<()> {
    match lines.iter().rfind(|line| matches!(line, Line::Verified { .. })) {
        Some(Line::Verified {
            checked,
            missing: 0,
            unreadable: 0,
            ..
        }) if *checked == count as u64 => {
            told(&format!("{checked} records read back"));
            Ok(())
        }
        other => bail!("not all of {count} records are there: {other:?}"),
    }
}
