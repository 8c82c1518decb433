//! Running programs: output captured, time bounded, failures told with the program's own words.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, bail};
use tokio::{io::AsyncWriteExt as _, process::Command};

/// What a program printed, and whether it succeeded.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command, for messages.
    pub command: String,
    /// Exit status 0.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output, or an error that carries what the program said.
    pub fn ok(self) -> anyhow::Result<String> {
        if !self.success {
            bail!("`{}` failed:\n{}{}", self.command, self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }

    /// What the program said against it, or an error if it succeeded.
    pub fn refused(self) -> anyhow::Result<String> {
        if self.success {
            bail!("`{}` succeeded, but should not:\n{}", self.command, self.stdout);
        }
        Ok(self.stderr)
    }
}

/// Runs `program` in `folder` with `input` on its standard input.
///
/// # Errors
/// If it cannot be started, or takes longer than `limit`; then it is killed. Its own failure is in the [`Output`].
pub async fn run(
    program: &Path,
    args: &[&str],
    folder: &Path,
    input: Option<&str>,
    limit: Duration,
) -> anyhow::Result<Output> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let command = format!("{name} {}", args.join(" "));
    let mut child = Command::new(program)
        .args(args)
        .current_dir(folder)
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let stdin = child.stdin.take();
    let finished = async move {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A program that refuses its input may end before it has read all of it.
            stdin.write_all(input.as_bytes()).await.ok();
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(limit, finished)
        .await
        .with_context(|| format!("`{command}` took longer than {} s", limit.as_secs()))?
        .with_context(|| format!("cannot run `{command}`"))?;
    Ok(Output {
        command,
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
