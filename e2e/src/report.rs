//! The lines that the loader prints, one JSON object each, and what the tests read from them.

use serde::{Deserialize, Serialize};

/// A line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Line {
    /// The steady load begins.
    Started {
        /// Wall clock, ms since 1970.
        at_ms: u64,
    },
    /// One second of the steady load.
    Second {
        /// Its end.
        at_ms: u64,
        /// Operations that ended in it.
        ops: u64,
        /// Of those, the failed ones.
        failures: u64,
        /// The slowest, in ms, retries included.
        slowest_ms: u64,
    },
    /// An operation that failed after all its retries.
    Failure {
        /// Its end.
        at_ms: u64,
        /// How long it took.
        took_ms: u64,
        /// What it was: write, read or update.
        op: String,
        /// Its key.
        key: String,
        /// The client's reason.
        reason: String,
        /// The client's error.
        message: String,
    },
    /// A look at acknowledged writes.
    Verified {
        /// Its end.
        at_ms: u64,
        /// Values that were looked for.
        checked: u64,
        /// Values that are not there.
        missing: u64,
        /// Keys that could not be read.
        unreadable: u64,
        /// Some of those.
        examples: Vec<String>,
    },
    /// Records were written and read back.
    Loaded {
        /// Acknowledged writes.
        written: u64,
        /// Writes that failed.
        failed: u64,
        /// Milliseconds for the writes.
        took_ms: u64,
    },
    /// Writers have stopped, as they were told.
    Stopped {
        /// Their end.
        at_ms: u64,
        /// Writes and increments that were acknowledged.
        acknowledged: u64,
        /// Those of which nobody knows whether they were applied.
        unknown: u64,
        /// Those that were not applied.
        not_applied: u64,
    },
    /// What writers did was judged.
    Judged {
        /// Keys that were read.
        keys: u64,
        /// Counters that were read.
        counters: u64,
        /// Acknowledged puts that were looked for.
        acknowledged: u64,
        /// Acknowledged values that are neither there nor covered.
        lost: u64,
        /// Values that nobody wrote.
        invented: u64,
        /// Values beside one that replaced them.
        ancestors: u64,
        /// Counters out of their bounds.
        miscounted: u64,
        /// Keys and counters that could not be read.
        unreadable: u64,
        /// Some of these.
        examples: Vec<String>,
    },
    /// The end of the steady load.
    Done {
        /// Operations.
        ops: u64,
        /// Acknowledged writes.
        acknowledged: u64,
        /// Failed operations.
        failures: u64,
    },
}

impl Line {
    /// Prints it.
    pub fn print(&self) {
        match serde_json::to_string(self) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("cannot print {self:?}: {error}"),
        }
    }
}

/// The lines of a loader's log; what is not one of them is left out.
pub fn parse(log: &str) -> Vec<Line> {
    log.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_a_log_with_other_text() {
        let line = Line::Done {
            ops: 3,
            acknowledged: 2,
            failures: 1,
        };
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(text, r#"{"event":"done","ops":3,"acknowledged":2,"failures":1}"#);
        assert_eq!(parse(&format!("hello\n{text}\n{{}}\n")), [line]);
    }
}
