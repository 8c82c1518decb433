//! Runs the binary as users do.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::process::Stdio;

use serde_json::Value;
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::support::Cluster;

/// What a run left behind.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    #[track_caller]
    pub(crate) fn good(self) -> Self {
        assert_eq!(self.code, 0, "{self}");
        self
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "code {}\n{}\n{}",
            self.code,
            String::from_utf8_lossy(&self.stdout),
            self.stderr
        )
    }
}

pub(crate) fn command(endpoints: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dynamoctl"));
    for name in ["DYNAMO_ENDPOINT", "DYNAMO_ADMIN", "DYNAMO_BUCKET", "DYNAMO_ZONE"] {
        command.env_remove(name);
    }
    command
        .env("DYNAMO_ENDPOINT", endpoints.join(","))
        .kill_on_drop(true);
    command
}

pub(crate) async fn run_with(mut command: Command, arguments: &[&str], input: &[u8]) -> Ran {
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A command that fails early does not read all of it.
    tokio::spawn(async move { stdin.write_all(&input).await });
    let output = child.wait_with_output().await.unwrap();
    Ran {
        code: output.status.code().unwrap(),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub(crate) async fn run(cluster: &Cluster, arguments: &[&str]) -> Ran {
    run_with(command(&cluster.addresses()), arguments, b"").await
}

/// Against the admin service alone.
pub(crate) async fn ask(admin: &str, arguments: &[&str]) -> Ran {
    let mut command = command(&["127.0.0.1:1".to_owned()]);
    command.env("DYNAMO_ADMIN", admin);
    run_with(command, arguments, b"").await
}

/// True if a line has these words in this order, whatever the columns' widths.
pub(crate) fn has(text: &str, words: &str) -> bool {
    text.lines().any(|line| {
        line.split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .contains(words)
    })
}
