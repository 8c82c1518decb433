//! `dynamo-local`: what `make run` calls. Starts a ring, tells how to talk to it, listens to its prompt, stops it cleanly.

mod cli;

mod console;

mod show;

mod tour;

use std::{process::ExitCode, time::Instant};

use clap::Parser as _;
use dynamo_local::{Error, LocalRing, Settings, program};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    cli::{Cli, Place},
    console::{Console, Ended},
    show::say,
    tour::{Ctl, Pace, Tour},
};

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(code) => code,
        Err(error) => {
            show::complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Ring(#[from] Error),
    #[error(transparent)]
    Data(#[from] cli::NoPlace),
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
    #[error("cannot run {program}: {source}")]
    Command { program: String, source: std::io::Error },
}

async fn run(cli: Cli) -> Result<ExitCode, Failure> {
    // First of all, so that nothing is left behind when a start is interrupted.
    let mut signals = Signals::new().map_err(Failure::Signals)?;
    let place = cli.place()?;
    let ctl = program("dynamoctl", cli.programs.as_deref())?;
    let settings = Settings {
        progress: show::progress,
        ..cli.settings(place.dir(), program("dynamo-node", cli.programs.as_deref())?)
    };
    let began = Instant::now();
    show::progress(&format!("starting nodes in {}", place.dir().display()));
    let mut ring = tokio::select! {
        ring = LocalRing::start(settings) => ring?,
        name = signals.next() => {
            show::progress(&format!("{name} while starting: nothing is left running"));
            return Ok(ExitCode::FAILURE);
        }
    };
    say(show::banner(&ring, began.elapsed()));
    let code = serve(&cli, &mut ring, Ctl::new(ctl), &mut signals).await;
    let stopped = stop(ring, &place, &mut signals).await;
    drop(place);
    let code = code?;
    Ok(if stopped { code } else { ExitCode::FAILURE })
}

/// Does what the ring was started for; returns when it should stop.
async fn serve(
    cli: &Cli,
    ring: &mut LocalRing,
    ctl: Ctl,
    signals: &mut Signals,
) -> Result<ExitCode, Failure> {
    if !cli.command.is_empty() {
        return run_command(cli, ring, &ctl, signals).await;
    }
    if cli.tour {
        let mut tour = Tour::new(ring, ctl, Pace::Unattended);
        return tokio::select! {
            ended = tour.run() => Ok(console::report(ended)),
            name = signals.next() => {
                show::progress(name);
                Ok(ExitCode::FAILURE)
            }
        };
    }
    let mut console = Console::new();
    say(if console.interactive() {
        show::prompt_hint()
    } else {
        show::tour_by_hand()
    });
    tokio::select! {
        ended = console.run(ring, ctl) => match ended {
            Ended::Quit => {}
        },
        // The terminal has put ^C at the start of the line.
        name = signals.next() => say(format!("\n{name}")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the command of the command line, which knows the ring by its environment.
async fn run_command(
    cli: &Cli,
    ring: &mut LocalRing,
    ctl: &Ctl,
    signals: &mut Signals,
) -> Result<ExitCode, Failure> {
    let Some((name, arguments)) = cli.command.split_first() else {
        return Ok(ExitCode::SUCCESS);
    };
    let mut command = tokio::process::Command::new(name);
    command
        .args(arguments)
        .envs(ctl.environment(ring))
        .kill_on_drop(true);
    let failed = |source| Failure::Command {
        program: name.clone(),
        source,
    };
    let mut child = command.spawn().map_err(failed)?;
    tokio::select! {
        status = child.wait() => {
            let code = status.map_err(failed)?.code().unwrap_or(1);
            Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
        }
        name = signals.next() => {
            show::progress(name);
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Stops all nodes; `false` if that did not go as it should.
async fn stop(mut ring: LocalRing, place: &Place, signals: &mut Signals) -> bool {
    let began = Instant::now();
    show::progress(&format!("stopping {} nodes", ring.nodes().len()));
    let result = tokio::select! {
        result = ring.stop("all") => result,
        name = signals.next() => {
            show::progress(&format!("{name} again: killing them"));
            return false;
        }
    };
    if let Err(error) = &result {
        show::complain(error);
    }
    let rest = match place {
        Place::Kept(_) => format!("data and logs stay in {}", ring.dir().display()),
        Place::Temporary(_) => "its data are removed".to_owned(),
    };
    show::progress(&format!(
        "stopped in {:.1} s; {rest}",
        began.elapsed().as_secs_f32()
    ));
    result.is_ok()
}

/// The signals that ask to stop.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "interrupted",
            _ = self.terminate.recv() => "asked to terminate",
            _ = self.hang_up.recv() => "the terminal is gone",
        }
    }
}
