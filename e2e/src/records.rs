//! Real records that a Debian machine has: its package index, or what its packages have installed.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, bail};

use crate::command;

/// Records that the tests load.
pub const COUNT: usize = 12_000;
/// A source that has fewer is not taken.
const COUNT_MIN: usize = 10_000;

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Name of a package, or path of a file; no tabs, no line ends.
    pub key: String,
    /// Version and summary, or checksum.
    pub value: String,
}

/// [`COUNT`] records or a little fewer, and where they are from. The same machine gives the same ones.
///
/// # Errors
/// If no source has enough.
pub async fn collect() -> anyhow::Result<(&'static str, Vec<Record>)> {
    let index = package_index().await.unwrap_or_default();
    if index.len() >= COUNT_MIN {
        return Ok(("the package index", thin(index)));
    }
    let files = installed_files(Path::new("/var/lib/dpkg/info")).unwrap_or_default();
    if files.len() >= COUNT_MIN {
        return Ok(("the checksums of installed packages", thin(files)));
    }
    bail!(
        "needs {COUNT_MIN} real records, but the package index has {} and the checksums of installed packages are {}: \
         run `apt-get update`, then try again",
        index.len(),
        files.len()
    );
}

/// One record per line: key, tab, value.
pub fn encode(records: &[Record]) -> String {
    let lines = records
        .iter()
        .flat_map(|record| [&record.key, "\t", &record.value, "\n"]);
    lines.collect()
}

/// What [`encode`] made.
///
/// # Errors
/// If a line has no tab.
pub fn decode(text: &str) -> anyhow::Result<Vec<Record>> {
    let record = |line: &str| {
        let (key, value) = line
            .split_once('\t')
            .with_context(|| format!("the record {line:?} has no tab"))?;
        Ok(Record {
            key: key.into(),
            value: value.into(),
        })
    };
    text.lines().map(record).collect()
}

/// Package, version and summary of every package that apt knows.
async fn package_index() -> anyhow::Result<BTreeMap<String, String>> {
    let limit = Duration::from_mins(1);
    let here = Path::new("/");
    let output = command::run(Path::new("apt-cache"), &["dumpavail"], here, None, limit).await?;
    Ok(packages(&output.ok()?))
}

fn packages(text: &str) -> BTreeMap<String, String> {
    let mut packages = BTreeMap::new();
    for paragraph in text.split("\n\n") {
        let field = |name: &str| {
            paragraph
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .map(|value| value.replace('\t', " "))
        };
        if let Some(package) = field("Package") {
            let version = field("Version").unwrap_or_default();
            let summary = field("Description")
                .or_else(|| field("Description-en"))
                .unwrap_or_default();
            packages.insert(package, format!("{version} {summary}"));
        }
    }
    packages
}

/// Path and checksum of every file that packages have installed.
fn installed_files(folder: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "md5sums") {
            let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
            let lines = text.lines().filter_map(|line| line.split_once("  "));
            files.extend(lines.map(|(sum, path)| (path.replace('\t', " "), sum.to_owned())));
        }
    }
    Ok(files)
}

/// Evenly chosen, so that all letters occur.
fn thin(all: BTreeMap<String, String>) -> Vec<Record> {
    let step = all.len().div_ceil(COUNT).max(1);
    let records: Vec<Record> = all
        .into_iter()
        .map(|(key, value)| Record { key, value })
        .collect();
    let mut kept: Vec<Record> = records.iter().step_by(step).cloned().collect();
    // Between one and two times COUNT a step of two would leave too few.
    let missing = COUNT.saturating_sub(kept.len());
    kept.extend(
        records
            .into_iter()
            .enumerate()
            .filter(|(index, _)| index % step != 0)
            .map(|(_, record)| record)
            .take(missing),
    );
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_index_becomes_records_that_survive_a_file() {
        let text = "Package: zsh\nVersion: 5.9-4\nDescription-en: shell with lots of features\n more\n\n\
                    Package: bash\nVersion: 5.2\nDescription: GNU Bourne\tAgain\n\n\n";
        let records = thin(packages(text));
        assert_eq!(
            encode(&records),
            "bash\t5.2 GNU Bourne Again\nzsh\t5.9-4 shell with lots of features\n"
        );
        assert_eq!(decode(&encode(&records)).unwrap(), records);
        assert!(decode("no tab\n").is_err());
    }

    #[test]
    fn any_number_above_the_wanted_one_is_thinned_to_it() {
        for count in [COUNT_MIN, COUNT, COUNT + 1, 2 * COUNT - 1, 5 * COUNT + 7] {
            let all = (0..count).map(|n| (format!("{n:07}"), n.to_string())).collect();
            assert_eq!(thin(all).len(), count.min(COUNT), "of {count}");
        }
    }
}
