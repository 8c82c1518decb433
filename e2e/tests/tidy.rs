//! Checks of the repository itself, where the compiler and the lints cannot look. They need no cluster.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "all of it is tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Lines of a Rust file; a longer one has more than one subject.
const LINES_MAX: usize = 700;
/// A reason stands at most so many lines above what it explains.
const REASON_LINES_MAX: usize = 2;
/// Files larger than this are not read for words.
const BYTES_MAX: u64 = 1 << 20;

/// D56 and the rest of the core are pure because nothing else can be: no runtime, no network, no disk, no clock, no chance.
#[test]
fn the_core_depends_on_nothing_that_does_io() {
    let allowed = ["bytes", "crc32c", "sha2", "thiserror", "xxhash-rust"];
    let found = dependencies("node/core", "dependencies");
    let beyond: Vec<&String> = found
        .iter()
        .filter(|name| !allowed.contains(&name.as_str()))
        .collect();
    assert!(beyond.is_empty(), "node/core depends on {beyond:?}");
    assert!(
        found.contains("thiserror"),
        "the manifest was not understood: {found:?}"
    );
}

#[test]
fn crates_depend_on_each_other_in_one_direction() {
    // What each may depend on, of ours; in brackets for its tests only.
    let allowed: BTreeMap<&str, (&[&str], &[&str])> = BTreeMap::from([
        (
            "benches",
            (
                &[
                    "dynamo-client",
                    "dynamo-core",
                    "dynamo-local",
                    "dynamo-node",
                    "dynamo-proto",
                ][..],
                &[][..],
            ),
        ),
        ("proto", (&[], &[])),
        ("node/core", (&[], &[])),
        ("proto/lane", (&["dynamo-proto"], &[])),
        ("client", (&["dynamo-core", "dynamo-lane", "dynamo-proto"], &[])),
        (
            "client/ctl",
            (
                &["dynamo-client", "dynamo-core", "dynamo-proto"],
                &["dynamo-lane", "dynamo-local"],
            ),
        ),
        ("node/sim", (&["dynamo-core"], &[])),
        ("node/fault-fs", (&[], &[])),
        ("node/history", (&[], &[])),
        ("node/seeded", (&[], &[])),
        (
            "node",
            (
                &["dynamo-core", "dynamo-lane", "dynamo-proto"],
                &[
                    "dynamo-client",
                    "dynamo-fault-fs",
                    "dynamo-history",
                    "dynamo-local",
                    "dynamo-seeded",
                ],
            ),
        ),
        (
            "node/local",
            (
                &["dynamo-core", "dynamo-proto"],
                &["dynamo-client", "dynamo-history"],
            ),
        ),
        (
            "operator",
            (&["dynamo-core", "dynamo-proto"], &["dynamo-operator-sim"]),
        ),
        (
            "operator/sim",
            (&["dynamo-core", "dynamo-operator", "dynamo-proto"], &[]),
        ),
        (
            "e2e",
            (
                &[
                    "dynamo-client",
                    "dynamo-core",
                    "dynamo-history",
                    "dynamo-operator",
                    "dynamo-proto",
                ],
                &[],
            ),
        ),
    ]);
    let members: BTreeSet<String> = manifest("Cargo.toml")
        .iter()
        .skip_while(|line| !line.starts_with("members"))
        .skip(1)
        .take_while(|line| !line.starts_with(']'))
        .map(|line| line.trim().trim_matches(['"', ',']).to_owned())
        .collect();
    let known: BTreeSet<String> = allowed.keys().map(ToString::to_string).collect();
    assert_eq!(
        members, known,
        "a crate without a rule here, or a rule without its crate"
    );
    for (folder, (always, in_tests)) in allowed {
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let ours = dependencies(folder, section)
                .into_iter()
                .filter(|name| name.starts_with("dynamo"));
            for name in ours {
                let may = always.contains(&name.as_str())
                    || (section == "dev-dependencies" && in_tests.contains(&name.as_str()));
                assert!(may, "{folder} depends on {name} in [{section}]");
            }
        }
    }
}

/// Only what a clone has, and places that every machine has, may be named.
#[test]
fn no_file_names_a_place_outside_the_repository() {
    // Put together, so that this file does not name them. The home of an image's user is no developer's.
    let known = ["/ho", "me/nonroot"].concat();
    let words = [
        ["..", "/shared"].concat(),
        ["/wo", "rk/main"].concat(),
        ["/wo", "rk/shared"].concat(),
        ["/ho", "me/"].concat(),
        ["/ro", "ot/"].concat(),
        ["/tmp/", "contract"].concat(),
    ];
    let mut found = Vec::new();
    for (path, text) in texts(|_| true) {
        for (number, line) in text.lines().enumerate() {
            let rest = line.replace(&known, "");
            if words.iter().any(|word| rest.contains(word.as_str())) {
                found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_relative_link_of_the_documents_leads_somewhere() {
    let mut broken = Vec::new();
    let mut links = 0;
    for (path, text) in texts(|path| has_extension(path, "md")) {
        let folder = path.parent().unwrap();
        for target in link_targets(&text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let to = if file.is_empty() {
                path.clone()
            } else {
                folder.join(file)
            };
            if !root().join(&to).exists() {
                broken.push(format!("{}: {target}", path.display()));
            } else if !anchor.is_empty() && !anchors(&root().join(&to)).contains(anchor) {
                broken.push(format!("{}: no heading for {target}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(links > 0, "no link was found");
}

/// `docs/testing.md` says which test shows which feature; every test that it names in backticks must be there.
#[test]
fn every_test_that_the_documents_name_exists() {
    let testing = fs::read_to_string(root().join("docs/testing.md")).expect("there is docs/testing.md");
    let functions: BTreeSet<String> = texts(|path| has_extension(path, "rs"))
        .into_iter()
        .flat_map(|(_, text)| functions(&text))
        .collect();
    let rows = testing
        .lines()
        .filter(|line| row_of(line).is_some())
        .collect::<Vec<_>>();
    let mut wrong = Vec::new();
    for line in &rows {
        let named: Vec<String> = backticked(line)
            .into_iter()
            .filter(|word| looks_like_a_test(word))
            .collect();
        if named.is_empty() {
            wrong.push(format!("names no test: {line}"));
        }
        for name in named {
            let last = name.rsplit("::").next().unwrap();
            if !functions.contains(last) {
                wrong.push(format!("there is no test {name}: {line}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!rows.is_empty(), "docs/testing.md has no table of rows");
}

#[test]
fn no_rust_file_is_too_long() {
    let long: Vec<String> = texts(|path| has_extension(path, "rs"))
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(path, lines)| format!("{} has {lines} lines", path.display()))
        .collect();
    assert!(
        long.is_empty(),
        "at most {LINES_MAX} lines, but {}",
        long.join(", ")
    );
}

/// A skipped test looks like a passed one: what needs more than this machine is a target that runs only if it is named.
#[test]
fn no_test_is_ignored() {
    let ignore = ["#[ign", "ore"].concat();
    let found = lines_with(
        |line| line.trim_start().starts_with(&ignore),
        |path| has_extension(path, "rs"),
    );
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// A test that waits for time instead of for what it wants is slow on good days and wrong on bad ones. Sleeping is for the
/// named helpers that look at a condition, and for tests whose time is paused or simulated; for anything else, such as a random moment,
/// a comment shortly above gives the reason.
#[test]
fn tests_wait_for_conditions() {
    let mut found = Vec::new();
    for (path, text) in texts(|path| has_extension(path, "rs") && is_test(path)) {
        let paused = text.contains("start_paused") || path.starts_with("node/tests/shell");
        let mut function = String::new();
        let mut commented = 0;
        for (number, line) in text.lines().enumerate() {
            if let Some(name) = functions(line).pop() {
                function = name;
            }
            if line.trim_start().starts_with("// ") {
                commented = number;
                continue;
            }
            let explained = commented > 0 && number - commented <= REASON_LINES_MAX;
            let sleeps = line.contains("sleep(") && !explained;
            if sleeps && !paused && !is_wait_helper(&function) {
                found.push(format!("{}:{} in {function}", path.display(), number + 1));
            }
        }
    }
    assert!(
        found.is_empty(),
        "sleeps outside of wait helpers:\n{}",
        found.join("\n")
    );
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs")
}

/// Helpers are named after what they do.
fn is_wait_helper(function: &str) -> bool {
    ["until", "eventually", "wait", "hold", "poll"]
        .iter()
        .any(|word| function.split('_').any(|part| part.starts_with(word)))
}

// --- What the checks stand on

fn root() -> PathBuf {
    dynamo_e2e::cluster::root()
}

/// The files of the repository: those that git knows or would add; all but hidden and built ones without git.
fn files() -> Vec<PathBuf> {
    let args = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let git = Command::new("git").args(args).current_dir(root()).output();
    let mut files: Vec<PathBuf> = match git {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(PathBuf::from)
            .collect(),
        _ => {
            let mut files = Vec::new();
            walk(&root(), &mut files);
            files
        }
    };
    files.sort();
    assert!(files.len() > 50, "only {} files were found", files.len());
    files
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name == "target" || name == ".git" {
            continue;
        }
        if path.is_dir() {
            walk(&path, files);
        } else {
            files.push(path.strip_prefix(root()).unwrap().to_owned());
        }
    }
}

/// Path and text of the files that are wanted; other than texts are left out.
fn texts(wanted: impl Fn(&Path) -> bool) -> Vec<(PathBuf, String)> {
    files()
        .into_iter()
        .filter(|path| wanted(path))
        .filter(|path| fs::metadata(root().join(path)).is_ok_and(|file| file.len() <= BYTES_MAX))
        .filter_map(|path| {
            let text = fs::read_to_string(root().join(&path)).ok()?;
            Some((path, text))
        })
        .collect()
}

fn lines_with(bad: impl Fn(&str) -> bool, wanted: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in texts(wanted) {
        let lines = text.lines().enumerate().filter(|(_, line)| bad(line));
        found.extend(lines.map(|(number, line)| format!("{}:{}: {line}", path.display(), number + 1)));
    }
    found
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

fn manifest(path: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(path)).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// The names of the dependencies in a section of a crate's manifest, targets' sections included.
fn dependencies(folder: &str, section: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in manifest(&format!("{folder}/Cargo.toml")) {
        if let Some(header) = line
            .strip_prefix('[')
            .and_then(|rest| rest.trim_end().strip_suffix(']'))
        {
            // [dependencies.name] names one itself.
            let (parent, child) = header.rsplit_once('.').unwrap_or(("", header));
            inside = child == section;
            if parent == section || parent.ends_with(&format!(".{section}")) {
                names.insert(child.to_owned());
            }
        } else if inside && !line.starts_with('#') {
            let name: String = line
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || "-_".contains(*c))
                .collect();
            if !name.is_empty() {
                names.insert(name);
            }
        }
    }
    names
}

/// Targets of `[text](target)`, outside of code.
fn link_targets(text: &str) -> Vec<String> {
    let mut targets = Vec::new();
    let mut code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        }
        if code {
            continue;
        }
        let plain: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        targets.extend(
            plain
                .split("](")
                .skip(1)
                .filter_map(|rest| rest.split(')').next())
                .map(|target| target.split_whitespace().next().unwrap_or_default().to_owned()),
        );
    }
    targets
}

/// The anchors that headings get: lower case, words joined by dashes, other signs left out.
fn anchors(path: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter_map(|c| match c {
                    ' ' => Some('-'),
                    c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
                    _ => None,
                })
                .collect()
        })
        .collect()
}

/// Names of the functions that a text defines.
fn functions(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            let line = line.trim_start();
            let (before, after) = line.split_once("fn ")?;
            let keywords = ["", "pub ", "pub(crate) ", "pub(super) ", "async ", "const "];
            let known = before.split_inclusive(' ').all(|word| keywords.contains(&word));
            let name: String = after
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            (known && !name.is_empty()).then_some(name)
        })
        .collect()
}

/// The feature that a row of a table in `docs/testing.md` begins with: `| D19 |`, `| **K4** |`, `| X |`.
fn row_of(line: &str) -> Option<&str> {
    let cell = line
        .strip_prefix('|')?
        .split('|')
        .next()?
        .trim()
        .trim_matches('*');
    let first = cell.split([' ', ',']).next()?;
    let mut chars = first.chars();
    let letter = chars.next().is_some_and(|c| c.is_ascii_uppercase());
    (letter && chars.all(|c| c.is_ascii_digit())).then_some(first)
}

fn backticked(line: &str) -> Vec<String> {
    line.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// A function's name, and not a file, a command or a type.
fn looks_like_a_test(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == ':';
    word.contains('_') && word.chars().all(plain)
}

#[test]
fn the_checks_understand_what_they_read() {
    assert_eq!(
        link_targets("[a](b.md) `[no](x)` and [c](d.md#e \"t\")\n```\n[f](g)\n```\n"),
        ["b.md", "d.md#e"]
    );
    assert_eq!(functions("    pub(crate) async fn a_b(x: u8) {"), ["a_b"]);
    assert!(functions("// calls fn x").is_empty());
    assert_eq!(row_of("| **D19** | `a_b` |"), Some("D19"));
    assert_eq!(row_of("| K4, D30 | `a_b` |"), Some("K4"));
    assert_eq!(row_of("| Row | Test |"), None);
    assert_eq!(backticked("| `a_b`, `c::d_e` |"), ["a_b", "c::d_e"]);
    assert!(looks_like_a_test("c::d_e") && !looks_like_a_test("e2e/kind_up") && !looks_like_a_test("KEY_A"));
    assert!(is_wait_helper("wait_until") && is_wait_helper("eventually") && !is_wait_helper("restart"));
}
