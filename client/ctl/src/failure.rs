//! What went wrong, as it is told: what was attempted, why it failed, what to do next.

use std::{fmt, io};

use dynamo_client::{Error, Outcome};

/// The exit code of "no value is there".
pub(crate) const EXIT_NOT_FOUND: u8 = 2;
/// The exit code of "several values are there, and one was asked for".
pub(crate) const EXIT_SIBLINGS: u8 = 3;
const EXIT_FAILED: u8 = 1;

/// One failure of a command.
#[derive(Debug)]
pub(crate) struct Failure {
    attempted: String,
    cause: String,
    reason: String,
    outcome: Option<Outcome>,
    hint: Option<String>,
    code: u8,
    broken_pipe: bool,
    silent: bool,
}

impl Failure {
    /// `attempted` begins with "cannot"; `cause` says why.
    pub(crate) fn new(attempted: impl Into<String>, cause: impl Into<String>) -> Self {
        Self {
            attempted: attempted.into(),
            cause: cause.into(),
            reason: String::new(),
            outcome: None,
            hint: None,
            code: EXIT_FAILED,
            broken_pipe: false,
            silent: false,
        }
    }

    /// A failed read or write of a file or the terminal.
    pub(crate) fn io(attempted: impl Into<String>, error: &io::Error) -> Self {
        let broken_pipe = error.kind() == io::ErrorKind::BrokenPipe;
        Self {
            broken_pipe,
            ..Self::new(attempted, error.to_string())
        }
    }

    /// A failed operation of the client, with advice.
    pub(crate) fn client(attempted: impl Into<String>, error: &Error) -> Self {
        let mut failure = Self::new(attempted, error.to_string());
        error.reason().clone_into(&mut failure.reason);
        failure.hint = hint(error);
        match error {
            Error::NotFound { .. } => failure.code = EXIT_NOT_FOUND,
            _ if error.outcome() != Outcome::NotApplied => failure.outcome = Some(error.outcome()),
            _ => {}
        }
        failure
    }

    /// A failed call of the admin service.
    pub(crate) fn admin(attempted: impl Into<String>, status: &tonic::Status) -> Self {
        let mut cause = status.message().to_owned();
        // Tonic hides the cause of a failed connection behind "transport error".
        let mut source = std::error::Error::source(status);
        while let Some(error) = source {
            cause = error.to_string();
            source = error.source();
        }
        let silent = matches!(
            status.code(),
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled
        );
        let hint = match status.code() {
            _ if silent => Some(
                "name a node's admin port with --admin, or forward it: kubectl port-forward pod/NAME 7702",
            ),
            tonic::Code::FailedPrecondition => {
                Some("`dynamoctl status` shows what the node is and what it waits for")
            }
            _ => None,
        };
        let failure = Self::new(attempted, format!("{cause} ({:?})", status.code()));
        Self {
            hint: hint.map(str::to_owned),
            silent,
            ..failure
        }
    }

    /// Adds what to do next.
    #[must_use]
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// With another exit code.
    #[must_use]
    pub(crate) fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// The node said nothing, so that nobody knows what it did.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent
    }

    /// The reader of the output went away.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        self.broken_pipe
    }

    /// For programs. The names are stable.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "error": format!("{}: {}", self.attempted, self.cause),
            "reason": self.reason,
            "outcome": self.outcome.map(|outcome| match outcome {
                Outcome::NotApplied => "not_applied",
                Outcome::Unknown => "unknown",
                Outcome::Partial { .. } => "partial",
            }),
            "hint": self.hint,
            "code": self.code,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.attempted, self.cause)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

fn hint(error: &Error) -> Option<String> {
    let unsure = matches!(error.outcome(), Outcome::Unknown | Outcome::Partial { .. });
    let hint = match (error, error.reason()) {
        (Error::NotFound { .. }, _) => return None,
        (_, "INVALID_CONTEXT") => {
            "the context is damaged or belongs to another key, bucket or cluster: get the key again and pass the token of that reply"
        }
        (_, "TOO_MANY_SIBLINGS") => {
            "get the key, choose or merge its values, and put the result with --context"
        }
        _ if unsure => {
            "the value may be there: `dynamoctl get` shows it; putting it again without a context may add a sibling"
        }
        (_, "QUORUM_NOT_MET") => {
            "too few of the key's replicas answer: `dynamoctl members` and `dynamoctl preference-list KEY` show which"
        }
        (Error::Unavailable { .. } | Error::DeadlineExceeded { .. }, _) => {
            "name a node with --endpoint, give more time with --timeout, or forward a port: kubectl port-forward svc/NAME 7700"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}
