//! The prompt of a running ring: takes nodes and zones away and back, shows how they are, gives the tour.
//!
//! It reads lines from standard input, be that a terminal or a pipe.

use std::{
    io::{BufRead as _, IsTerminal as _, Write as _},
    process::ExitCode,
    time::Duration,
};

use dynamo_local::{Error, LocalRing, Running};
use dynamo_proto::admin::status_response::State;
use tokio::sync::mpsc;

use crate::{
    show::{self, say},
    tour::{Ctl, Pace, Tour, TourEnd},
};

/// Between two looks whether a node has ended by itself.
const WATCH: Duration = Duration::from_millis(500);
/// Lines that were typed ahead.
const LINES_MAX: usize = 64;

/// Standard input, line by line.
pub(crate) struct Console {
    lines: mpsc::Receiver<String>,
    interactive: bool,
}

/// Why the console ended.
pub(crate) enum Ended {
    /// `quit`, or the end of a terminal's input.
    Quit,
}

/// A line, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Command {
    Kill(String),
    Stop(String),
    Start(String),
    Pause(String),
    Resume(String),
    Status,
    Tour,
    Help,
    Quit,
    Nothing,
}

const HELP: &str = "\
\x20 status           every node: its process, its state, its data
  tour             put, concurrent puts, siblings; a zone lost and brought back
  kill TARGET      SIGKILL, as a crash would be; TARGET is node-1, zone-a or all
  start TARGET     starts what does not run, and waits until it serves
  stop TARGET      SIGTERM: a clean stop
  pause TARGET     SIGSTOP: it is there but answers nothing
  resume TARGET    lets it go on
  quit             stops all nodes and ends (as Ctrl-C does); the data stay";

impl Console {
    /// Begins to read.
    pub(crate) fn new() -> Self {
        let (sender, lines) = mpsc::channel(LINES_MAX);
        // A thread of its own, because a blocking read cannot be cancelled; it ends with the process.
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines() {
                let Ok(line) = line else { return };
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        let interactive = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        Self { lines, interactive }
    }

    /// Whether a person is there.
    pub(crate) fn interactive(&self) -> bool {
        self.interactive
    }

    /// Obeys until told to quit. The end of a pipe is no word to quit: a ring without input runs until a signal comes.
    pub(crate) async fn run(&mut self, ring: &mut LocalRing, ctl: Ctl) -> Ended {
        let mut watch = tokio::time::interval(WATCH);
        let mut open = true;
        self.prompt();
        loop {
            tokio::select! {
                _ = watch.tick() => self.watch(ring),
                line = self.lines.recv(), if open => match line {
                    Some(line) => {
                        if self.obey(&line, ring, &ctl).await {
                            return Ended::Quit;
                        }
                        self.prompt();
                    }
                    None if self.interactive => return Ended::Quit,
                    None => open = false,
                },
            }
        }
    }

    /// Does what a line says; `true` to quit.
    async fn obey(&mut self, line: &str, ring: &mut LocalRing, ctl: &Ctl) -> bool {
        let result = match parse(line) {
            Err(problem) => {
                say(problem);
                Ok(())
            }
            Ok(Command::Quit) => return true,
            Ok(Command::Nothing) => Ok(()),
            Ok(Command::Help) => {
                say(HELP);
                Ok(())
            }
            Ok(Command::Status) => {
                say(status(ring).await);
                Ok(())
            }
            Ok(Command::Tour) => {
                let pace = if self.interactive {
                    Pace::Enter(&mut self.lines)
                } else {
                    Pace::Unattended
                };
                report(Tour::new(ring, ctl.clone(), pace).run().await);
                Ok(())
            }
            Ok(Command::Kill(target)) => ring.kill(&target).await.map(|()| say(format!("killed {target}"))),
            Ok(Command::Stop(target)) => ring
                .stop(&target)
                .await
                .map(|()| say(format!("stopped {target}"))),
            Ok(Command::Start(target)) => ring
                .start_again(&target)
                .await
                .map(|()| say(format!("{target} runs and serves"))),
            Ok(Command::Pause(target)) => ring.pause(&target).map(|()| say(format!("paused {target}"))),
            Ok(Command::Resume(target)) => ring.resume(&target).map(|()| say(format!("resumed {target}"))),
        };
        if let Err(error) = result {
            show::complain(&error);
        }
        false
    }

    fn watch(&self, ring: &mut LocalRing) {
        let ended = ring.ended();
        for error in &ended {
            show::complain(error);
            if let Error::Ended { member, .. } = error {
                say(format!("`start {member}` starts it again"));
            }
        }
        if !ended.is_empty() {
            self.prompt();
        }
    }

    fn prompt(&self) {
        if self.interactive {
            let mut out = std::io::stdout().lock();
            let _ = write!(out, "ring> ").and_then(|()| out.flush());
        }
    }
}

/// Says how a tour ended.
pub(crate) fn report(end: Result<(), TourEnd>) -> ExitCode {
    match end {
        Ok(()) => {
            say("\nThat was the tour.");
            ExitCode::SUCCESS
        }
        Err(TourEnd::Left) => ExitCode::SUCCESS,
        Err(failed) => {
            show::complain(&failed);
            ExitCode::FAILURE
        }
    }
}

fn parse(line: &str) -> Result<Command, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let known = match words.as_slice() {
        [] => Some(Command::Nothing),
        ["status"] => Some(Command::Status),
        ["tour"] => Some(Command::Tour),
        ["help" | "?"] => Some(Command::Help),
        ["quit" | "exit"] => Some(Command::Quit),
        [verb, target] => {
            let target = (*target).to_owned();
            match *verb {
                "kill" => Some(Command::Kill(target)),
                "stop" => Some(Command::Stop(target)),
                "start" => Some(Command::Start(target)),
                "pause" => Some(Command::Pause(target)),
                "resume" => Some(Command::Resume(target)),
                _ => None,
            }
        }
        _ => None,
    };
    known.ok_or_else(|| format!("'{}' is not a command here; these are:\n{HELP}", words.join(" ")))
}

async fn status(ring: &LocalRing) -> String {
    let header = [
        "MEMBER",
        "ZONE",
        "PROCESS",
        "STATE",
        "KEYS",
        "BYTES",
        "CANNOT REACH",
    ]
    .map(str::to_owned);
    let mut rows = vec![header];
    for node in ring.nodes() {
        let process = match node.running() {
            Running::Yes { pid } => pid.to_string(),
            Running::Paused { pid } => format!("{pid} paused"),
            Running::No => "down".to_owned(),
        };
        let mut row = [node.member(), node.zone(), &process, "-", "-", "-", "-"].map(str::to_owned);
        if matches!(node.running(), Running::Yes { .. }) {
            match ring.status(node.member()).await {
                Ok(status) => {
                    state_name(status.state()).clone_into(&mut row[3]);
                    row[4] = status.keys_estimate.to_string();
                    row[5] = status.data_bytes.to_string();
                    if !status.peers_down.is_empty() {
                        row[6] = status.peers_down.join(" ");
                    }
                }
                Err(failure) => row[3] = failure,
            }
        }
        rows.push(row);
    }
    show::columns(&rows)
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Unspecified => "unknown",
        State::Unassigned => "unassigned",
        State::Joining => "joining",
        State::Valid => "valid",
        State::Draining => "draining",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        let cases = [
            ("", Command::Nothing),
            ("  kill   zone-a ", Command::Kill("zone-a".to_owned())),
            ("start node-2", Command::Start("node-2".to_owned())),
            ("stop all", Command::Stop("all".to_owned())),
            ("pause node-1", Command::Pause("node-1".to_owned())),
            ("resume node-1", Command::Resume("node-1".to_owned())),
            ("status", Command::Status),
            ("tour", Command::Tour),
            ("?", Command::Help),
            ("exit", Command::Quit),
        ];
        for (line, expected) in cases {
            assert_eq!(parse(line), Ok(expected), "{line:?}");
        }
        for line in ["kill", "kill a b", "dance", "status now"] {
            let problem = parse(line).unwrap_err();
            assert!(
                problem.contains("is not a command") && problem.contains("zone-a"),
                "{problem}"
            );
        }
    }
}
