//! A guided tour: versions that nobody overwrites (paper: §4.4), and a zone that nobody misses (§4.5, §4.6).
//!
//! Every step says what it shows, prints the `dynamoctl` command, runs it, shows its output, and checks it.

use std::{
    path::PathBuf,
    process::{Output, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use dynamo_local::{Error, LocalRing};
use tokio::{process::Command, sync::mpsc};

use crate::show::{self, say};

/// The program `dynamoctl`.
#[derive(Debug, Clone)]
pub(crate) struct Ctl {
    program: PathBuf,
}

/// What leads from one step to the next.
pub(crate) enum Pace<'a> {
    /// Nothing: one after the other.
    Unattended,
    /// The Enter key.
    Enter(&'a mut mpsc::Receiver<String>),
}

/// Why a tour ended before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TourEnd {
    /// The reader has seen enough.
    #[error("left")]
    Left,
    /// A command did not do what the tour says it does.
    #[error("the tour expected that {expected}, but {found}")]
    Unexpected { expected: String, found: String },
    /// `dynamoctl` cannot be run.
    #[error("cannot run {program}: {source}")]
    Ctl { program: String, source: std::io::Error },
    /// A node did not start or stop.
    #[error(transparent)]
    Ring(#[from] Error),
}

/// One tour of one ring.
pub(crate) struct Tour<'a> {
    ring: &'a mut LocalRing,
    ctl: Ctl,
    pace: Pace<'a>,
    key: String,
}

/// What can be lost without a quorum being missed.
enum Victim {
    Zone(String),
    Node(String),
}

impl Ctl {
    pub(crate) fn new(program: PathBuf) -> Self {
        Self { program }
    }

    /// What tells a program where the ring is.
    #[expect(clippy::unused_self, reason = "the names belong to dynamoctl")]
    pub(crate) fn environment(&self, ring: &LocalRing) -> [(&'static str, String); 2] {
        [
            ("DYNAMO_ENDPOINT", ring.endpoints().join(",")),
            ("DYNAMO_ADMIN", show::admins(ring)),
        ]
    }
}

impl<'a> Tour<'a> {
    pub(crate) fn new(ring: &'a mut LocalRing, ctl: Ctl, pace: Pace<'a>) -> Self {
        // A key of its own, because the data of an earlier tour are still there.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let key = format!("basket-{}", now.as_secs() % 100_000);
        Self { ring, ctl, pace, key }
    }

    pub(crate) async fn run(&mut self) -> Result<(), TourEnd> {
        self.one_value().await?;
        self.two_writers().await?;
        self.resolution().await?;
        self.placement().await?;
        if let Some(victim) = self.victim() {
            self.loss(&victim).await?;
            self.return_of(&victim).await?;
        } else {
            let quorum = self.ring.quorum();
            let factor = self.ring.layout().factor;
            say(format!(
                "\nWith N={factor} and quorums of {quorum} every replica is needed, so this ring cannot do without a node."
            ));
        }
        Ok(())
    }

    async fn one_value(&mut self) -> Result<(), TourEnd> {
        title(
            "1. A value. Its coordinator sends it to the N nodes that the ring names for the key, and waits for W of them.",
        );
        let key = self.key.clone();
        self.ctl(&["put", &key, "milk"]).await?;
        self.ctl(&["get", &key]).await?;
        self.value_is("milk").await
    }

    async fn two_writers(&mut self) -> Result<(), TourEnd> {
        self.next().await?;
        title(
            "2. Two writers who have both read `milk`, and know nothing of each other. Each passes the context of what it has\n   \
             read. Neither may overwrite the other, so the store keeps both: siblings (paper: §4.4).",
        );
        let context = self.context().await?;
        let key = self.key.clone();
        self.ctl(&["put", &key, "milk,bread", "--context", &context])
            .await?;
        self.ctl(&["put", &key, "milk,eggs", "--context", &context])
            .await?;
        let both = self.ctl(&["get", &key]).await?;
        for value in ["milk,bread", "milk,eggs"] {
            expect(
                both.contains(value),
                &format!("the siblings include {value}"),
                &both,
            )?;
        }
        Ok(())
    }

    async fn resolution(&mut self) -> Result<(), TourEnd> {
        self.next().await?;
        title(
            "3. What both mean together, only the application knows: here, the union. The context of that get covers both\n   \
             siblings, so a put with it supersedes them.",
        );
        let context = self.context().await?;
        let key = self.key.clone();
        self.ctl(&["put", &key, "milk,bread,eggs", "--context", &context])
            .await?;
        self.ctl(&["get", &key]).await?;
        self.value_is("milk,bread,eggs").await
    }

    async fn placement(&mut self) -> Result<(), TourEnd> {
        self.next().await?;
        title(
            "4. Where it is: the key's preference list, with one primary in each zone as far as there are zones (§4.3).",
        );
        let key = self.key.clone();
        self.ctl(&["preference-list", &key]).await.map(drop)
    }

    async fn loss(&mut self, victim: &Victim) -> Result<(), TourEnd> {
        self.next().await?;
        let (Victim::Zone(name) | Victim::Node(name)) = victim;
        let what = match victim {
            Victim::Zone(name) => format!("The whole of {name} crashes (kill -9)"),
            Victim::Node(name) => {
                format!("{name} crashes (kill -9; too many replicas are in one zone to lose a whole one)")
            }
        };
        title(&format!(
            "5. {what}. Quorums are still met, so reads and writes go on."
        ));
        say(format!("ring> kill {name}"));
        self.ring.kill(name).await?;
        let key = self.key.clone();
        self.ctl(&["get", &key]).await?;
        self.value_is("milk,bread,eggs").await?;
        let context = self.context().await?;
        self.ctl(&["put", &key, "milk,bread,eggs,tea", "--context", &context])
            .await?;
        self.ctl(&["get", &key]).await?;
        self.value_is("milk,bread,eggs,tea").await?;
        self.ctl(&["members"]).await.map(drop)
    }

    async fn return_of(&mut self, victim: &Victim) -> Result<(), TourEnd> {
        self.next().await?;
        let (Victim::Zone(name) | Victim::Node(name)) = victim;
        title(&format!(
            "6. {name} comes back, with its data and its place in the ring, which never changed (§4.8.1)."
        ));
        say(format!("ring> start {name}"));
        self.ring.start_again(name).await?;
        self.ctl(&["status", "--all"]).await?;
        let key = self.key.clone();
        self.ctl(&["get", &key]).await?;
        self.value_is("milk,bread,eggs,tea").await
    }

    fn victim(&self) -> Option<Victim> {
        let (layout, quorum) = (self.ring.layout(), self.ring.quorum());
        let first = self.ring.nodes().first()?;
        if layout.survives_zone(quorum) {
            Some(Victim::Zone(first.zone().to_owned()))
        } else {
            (layout.factor > quorum).then(|| Victim::Node(first.member().to_owned()))
        }
    }

    async fn next(&mut self) -> Result<(), TourEnd> {
        let Pace::Enter(lines) = &mut self.pace else {
            return Ok(());
        };
        say("\n[Enter for the next step, q to leave the tour]");
        match lines.recv().await {
            Some(line) if !line.trim().starts_with('q') => Ok(()),
            _ => Err(TourEnd::Left),
        }
    }

    /// Runs a command before the reader's eyes, and returns what it printed.
    async fn ctl(&mut self, arguments: &[&str]) -> Result<String, TourEnd> {
        let line = format!("dynamoctl {}", arguments.join(" "));
        say(format!("$ {line}"));
        let output = self.quietly(arguments).await?;
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        for text in [&out, &err].into_iter().filter(|text| !text.is_empty()) {
            say(text.trim_end());
        }
        expect(
            output.status.success(),
            &format!("`{line}` succeeds"),
            &format!("it ended with {}", output.status),
        )?;
        Ok(out.into_owned())
    }

    /// The context of the key's current versions.
    async fn context(&mut self) -> Result<String, TourEnd> {
        let key = self.key.clone();
        let output = self.quietly(&["get", &key, "--output", "json"]).await?;
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let context = json["context"].as_str().unwrap_or_default().to_owned();
        let found = String::from_utf8_lossy(&output.stdout);
        expect(!context.is_empty(), "a get in JSON has a context", &found)?;
        Ok(context)
    }

    /// That the key has this one value.
    async fn value_is(&mut self, value: &str) -> Result<(), TourEnd> {
        let key = self.key.clone();
        let output = self.quietly(&["get", &key, "--raw"]).await?;
        let found = format!(
            "dynamoctl get {key} --raw ended with {} and printed {:?}",
            output.status,
            String::from_utf8_lossy(&output.stdout)
        );
        let right = output.status.success() && output.stdout == value.as_bytes();
        expect(right, &format!("{value} is the only value"), &found)
    }

    async fn quietly(&mut self, arguments: &[&str]) -> Result<Output, TourEnd> {
        let mut command = Command::new(&self.ctl.program);
        command
            .args(arguments)
            .envs(self.ctl.environment(self.ring))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let program = self.ctl.program.display().to_string();
        command
            .output()
            .await
            .map_err(|source| TourEnd::Ctl { program, source })
    }
}

fn title(text: &str) {
    say(format!("\n{text}\n"));
}

fn expect(right: bool, expected: &str, found: &str) -> Result<(), TourEnd> {
    if right {
        return Ok(());
    }
    Err(TourEnd::Unexpected {
        expected: expected.to_owned(),
        found: found.trim_end().to_owned(),
    })
}
