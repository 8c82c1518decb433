//! Decides, after each failed attempt, whether to try again and when, and remembers what a write may have done.
//! No clock and no I/O: the caller brings both.

use std::time::Duration;

use tonic::Code;

use crate::{
    error::{Detail, Error, Outcome},
    status::{Failed, Origin},
    types::Context,
};

/// Requests per operation at most; the deadline usually ends it long before.
pub(crate) const ATTEMPTS_MAX: u32 = 32;
/// The first pause; it doubles with each failure.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// The first pause after a node said that it is overloaded.
const BACKOFF_OVERLOADED_MIN: Duration = Duration::from_millis(50);
/// The longest pause.
const BACKOFF_MAX: Duration = Duration::from_millis(250);

/// One operation's history.
#[derive(Debug)]
pub(crate) struct Attempts {
    write: bool,
    /// The worst that may have happened to the write so far.
    outcome: Outcome,
    count: u32,
    /// How often each node was asked.
    asked: Vec<(usize, u32)>,
    /// What to report: a node's own word is worth more than a broken connection.
    last: Option<(Failed, String)>,
}

/// What to do after a failure.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Trying again cannot help.
    Fail(Error),
    /// Try again, at another node if there is one, after this pause.
    Retry(Duration),
}

impl Attempts {
    pub(crate) fn new(write: bool) -> Self {
        Self {
            write,
            outcome: Outcome::NotApplied,
            count: 0,
            asked: Vec::new(),
            last: None,
        }
    }

    /// An attempt is about to be made at a node.
    pub(crate) fn begin(&mut self, node: usize) {
        self.count += 1;
        match self.asked.iter_mut().find(|(asked, _)| *asked == node) {
            Some((_, times)) => *times += 1,
            None => self.asked.push((node, 1)),
        }
    }

    /// How often a node was asked.
    pub(crate) fn asked(&self, node: usize) -> u32 {
        self.asked
            .iter()
            .find(|(asked, _)| *asked == node)
            .map_or(0, |(_, times)| *times)
    }

    /// Takes the failure of the last attempt. `jitter` is in 0.0..1.0.
    pub(crate) fn failed(&mut self, failed: Failed, node: &str, jitter: f64) -> Verdict {
        if self.write {
            // The largest claim: of two partial ones, the one with more acknowledgements.
            self.outcome = self.outcome.max(failed.write_outcome());
        }
        let pause = self.pause(&failed, jitter);
        let again = may_retry(&failed) && self.count < ATTEMPTS_MAX;
        let keep = failed.origin != Origin::Node
            && matches!(&self.last, Some((last, _)) if last.origin == Origin::Node);
        if !keep {
            self.last = Some((failed, node.to_owned()));
        }
        if again {
            Verdict::Retry(pause)
        } else {
            Verdict::Fail(self.error())
        }
    }

    /// The deadline has passed, or no node is left to ask.
    pub(crate) fn error(&self) -> Error {
        let Some((failed, node)) = &self.last else {
            let detail = Detail {
                code: Code::DeadlineExceeded,
                reason: String::new(),
                message: "no time was left to ask a node; give a longer deadline".to_owned(),
                node: String::new(),
                attempts: self.count,
            };
            return Error::DeadlineExceeded {
                outcome: self.outcome,
                detail: Box::new(detail),
            };
        };
        let outcome = self.outcome;
        let detail = Box::new(Detail {
            code: failed.code,
            reason: failed.reason.clone(),
            message: failed.message.clone(),
            node: node.clone(),
            attempts: self.count,
        });
        match (failed.origin, failed.code) {
            (Origin::Connect | Origin::Transport, Code::OutOfRange) => {
                Error::ResourceExhausted { outcome, detail }
            }
            (Origin::Connect | Origin::Transport, _) | (_, Code::Unavailable) => {
                Error::Unavailable { outcome, detail }
            }
            (Origin::TimedOut, _) | (_, Code::DeadlineExceeded) => {
                Error::DeadlineExceeded { outcome, detail }
            }
            (_, Code::NotFound) => Error::NotFound {
                context: Context::from_bytes(failed.context.clone().unwrap_or_default()),
            },
            // An earlier attempt may have been applied even if a later one is refused: then the outcome must be told.
            (_, Code::InvalidArgument) if outcome == Outcome::NotApplied => Error::InvalidArgument { detail },
            (_, Code::OutOfRange) if self.write && outcome == Outcome::NotApplied => {
                Error::InvalidArgument { detail }
            }
            (_, Code::ResourceExhausted | Code::OutOfRange) => Error::ResourceExhausted { outcome, detail },
            _ => Error::Refused { outcome, detail },
        }
    }

    /// Doubles with each failure, and the second half is random, so that clients do not return in step.
    fn pause(&self, failed: &Failed, jitter: f64) -> Duration {
        let least = if failed.code == Code::ResourceExhausted {
            BACKOFF_OVERLOADED_MIN
        } else {
            BACKOFF_MIN
        };
        let doubled = least
            .saturating_mul(1 << self.count.saturating_sub(1).min(10))
            .min(BACKOFF_MAX);
        doubled.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
    }
}

/// Whether another node, or the same one later, may do better.
fn may_retry(failed: &Failed) -> bool {
    match failed.origin {
        Origin::Connect | Origin::TimedOut => true,
        // Too large an answer is too large everywhere.
        Origin::Transport => failed.code != Code::OutOfRange,
        Origin::Node if failed.is_no_member() => true,
        Origin::Node => match failed.code {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => true,
            Code::ResourceExhausted => failed.reason != "TOO_MANY_SIBLINGS",
            _ => false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dynamo_proto::v1;

    fn node(code: Code, reason: &str) -> Failed {
        Failed {
            reason: reason.to_owned(),
            ..Failed::local(Origin::Node, code, "m".to_owned())
        }
    }

    fn partial(acks: u32) -> Failed {
        let outcome = v1::WriteOutcome {
            state: 2,
            acks,
            primaries: acks,
            durable: 0,
            ..Default::default()
        };
        Failed {
            outcome: Some(outcome),
            ..node(Code::Unavailable, "QUORUM_NOT_MET")
        }
    }

    fn run(write: bool, failures: Vec<Failed>) -> (Attempts, Verdict) {
        let mut attempts = Attempts::new(write);
        let mut verdict = Verdict::Retry(Duration::ZERO);
        for (index, failure) in failures.into_iter().enumerate() {
            attempts.begin(index);
            verdict = attempts.failed(failure, "n", 0.0);
        }
        (attempts, verdict)
    }

    #[test]
    fn what_is_retried() {
        let retried = [
            (node(Code::Unavailable, "QUORUM_NOT_MET"), true),
            (node(Code::Unavailable, ""), true),
            (node(Code::DeadlineExceeded, "WRITE_TIMED_OUT"), true),
            (node(Code::ResourceExhausted, "OVERLOADED"), true),
            (
                Failed::local(Origin::Connect, Code::Unavailable, String::new()),
                true,
            ),
            (Failed::timed_out(String::new()), true),
            (
                Failed::local(Origin::Transport, Code::Unknown, String::new()),
                true,
            ),
            (node(Code::ResourceExhausted, "TOO_MANY_SIBLINGS"), false),
            (node(Code::InvalidArgument, "INVALID_CONTEXT"), false),
            (node(Code::NotFound, "KEY_NOT_FOUND"), false),
            (node(Code::FailedPrecondition, ""), false),
            (node(Code::PermissionDenied, ""), false),
            (node(Code::Internal, ""), false),
            (
                Failed::local(Origin::Transport, Code::OutOfRange, String::new()),
                false,
            ),
        ];
        for (failure, again) in retried {
            let (_, verdict) = run(true, vec![failure.clone()]);
            assert_eq!(matches!(verdict, Verdict::Retry(_)), again, "{failure:?}");
        }
    }

    #[test]
    fn the_outcome_of_a_write_is_the_worst_of_all_attempts() {
        let refused = || Failed::local(Origin::Connect, Code::Unavailable, String::new());
        let (attempts, _) = run(true, vec![refused(), refused()]);
        assert_eq!(attempts.error().outcome(), Outcome::NotApplied);
        let (attempts, _) = run(true, vec![Failed::timed_out(String::new()), refused()]);
        assert_eq!(attempts.error().outcome(), Outcome::Unknown);
        let (attempts, _) = run(
            true,
            vec![partial(1), Failed::timed_out(String::new()), refused()],
        );
        assert_eq!(
            attempts.error().outcome(),
            Outcome::Partial {
                acks: 1,
                primaries: 1,
                durable: 0
            }
        );
        // A node's own word is reported rather than the broken connection after it.
        assert_eq!(attempts.error().reason(), "QUORUM_NOT_MET");
        // Refused at last, but an earlier attempt may have been applied.
        let (_, verdict) = run(
            true,
            vec![
                Failed::timed_out(String::new()),
                node(Code::InvalidArgument, "INVALID_CONTEXT"),
            ],
        );
        let Verdict::Fail(error) = verdict else {
            panic!("{verdict:?}")
        };
        assert_eq!(
            (error.outcome(), error.reason()),
            (Outcome::Unknown, "INVALID_CONTEXT")
        );
        // Reads change nothing.
        let (attempts, _) = run(false, vec![Failed::timed_out(String::new())]);
        assert_eq!(attempts.error().outcome(), Outcome::NotApplied);
    }

    #[test]
    fn pauses_grow_and_are_bounded_and_attempts_end() {
        let mut attempts = Attempts::new(false);
        let mut pauses = Vec::new();
        loop {
            attempts.begin(0);
            match attempts.failed(node(Code::Unavailable, ""), "n", 1.0) {
                Verdict::Retry(pause) => pauses.push(pause),
                Verdict::Fail(_) => break,
            }
        }
        assert_eq!(attempts.asked(0), ATTEMPTS_MAX);
        assert_eq!(pauses[0], BACKOFF_MIN);
        assert!(pauses.is_sorted());
        assert_eq!(pauses.last(), Some(&BACKOFF_MAX));
    }
}
