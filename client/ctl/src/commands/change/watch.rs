//! Asks a node again and again where a change stands, until none is under way.

use std::time::Duration;

use dynamo_proto::admin::TransitionResponse;
use indicatif::ProgressBar;
use tokio::time::Instant;

use super::{shown, transition};
use crate::{
    cli::Global,
    connect::Admin,
    failure::Failure,
    output::{self, Output},
};

pub(super) const STATUS: &str = "cannot read where the change stands";
const PROGRESS: &str = "{bar:30} {pos}/{len} partitions {elapsed} {wide_msg}";
const UNSEEN: &str = "the members go on with the change by themselves: `dynamoctl change status --watch --admin HOST:PORT` asks another node";
/// Between two questions.
const PERIOD: Duration = Duration::from_millis(500);
/// Without an answer: members may restart meanwhile.
const PATIENCE: Duration = Duration::from_mins(1);

/// What was heard so far, from whichever nodes.
#[derive(Debug)]
struct Heard {
    /// The newest ring that is known to be proposed. A node that has not heard of it yet cannot say that it is done.
    newest: u64,
}

impl Heard {
    /// Whether no change is under way any more.
    fn is_done(&mut self, said: &TransitionResponse) -> bool {
        self.newest = self.newest.max(said.next_epoch);
        said.next_epoch == 0 && said.base_epoch >= self.newest
    }
}

/// The last answer. `epoch`: of a ring that was proposed; 0 if none is known.
pub(super) async fn watch(
    global: &Global,
    admin: Admin,
    epoch: u64,
    output: Output,
) -> Result<TransitionResponse, Failure> {
    let bar = output.progress(Some(0), PROGRESS);
    let mut heard = Heard { newest: epoch };
    let mut told = String::new();
    let mut admin = Some(admin);
    let mut answered = (epoch != 0).then(Instant::now);
    loop {
        match ask(global, &mut admin).await {
            Ok(said) => {
                answered = Some(Instant::now());
                if heard.is_done(&said) {
                    bar.finish_and_clear();
                    return Ok(said);
                }
                tell(&bar, &mut told, shown::step_line(&said), output);
                show(&bar, &said);
            }
            Err(failure) => {
                let Some(answered) = answered else {
                    return Err(failure);
                };
                if answered.elapsed() >= PATIENCE {
                    bar.finish_and_clear();
                    return Err(failure.hint(UNSEEN));
                }
                tell(&bar, &mut told, failure.to_string(), output);
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Another node, or the same one anew, after a failure.
async fn ask(global: &Global, admin: &mut Option<Admin>) -> Result<TransitionResponse, Failure> {
    let reached = match admin.take() {
        Some(admin) => admin,
        None => Admin::first(global).await?,
    };
    let said = transition(&reached, STATUS).await?;
    *admin = Some(reached);
    Ok(said)
}

fn show(bar: &ProgressBar, said: &TransitionResponse) {
    bar.set_length(said.pulls.into());
    bar.set_position(said.pulled.into());
}

/// In the bar; where there is none, a line whenever it is another.
fn tell(bar: &ProgressBar, told: &mut String, line: String, output: Output) {
    if *told == line {
        return;
    }
    if bar.is_hidden() && !output.is_json() {
        output::note(&line);
    }
    bar.set_message(line.lines().next().unwrap_or_default().to_owned());
    *told = line;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(base_epoch: u64, next_epoch: u64) -> TransitionResponse {
        TransitionResponse {
            base_epoch,
            next_epoch,
            ..TransitionResponse::default()
        }
    }

    #[test]
    fn a_node_that_has_not_heard_of_the_change_does_not_end_it() {
        let mut heard = Heard { newest: 4 };
        assert!(!heard.is_done(&said(3, 0)));
        assert!(!heard.is_done(&said(3, 4)));
        // Another change took its place.
        assert!(!heard.is_done(&said(3, 5)));
        assert!(!heard.is_done(&said(3, 0)));
        assert!(!heard.is_done(&said(4, 0)));
        assert!(heard.is_done(&said(5, 0)));
    }

    #[test]
    fn without_a_change_there_is_nothing_to_wait_for() {
        assert!(Heard { newest: 0 }.is_done(&said(3, 0)));
    }
}
