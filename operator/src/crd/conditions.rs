//! Conditions: names, and how a new one follows an old one.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Every member serves its ranges under one ring, and every partition has a quorum.
pub const READY: &str = "Ready";
/// The operator still has something to do or to wait for.
pub const RECONCILING: &str = "Reconciling";
/// Nothing will change until a person does something.
pub const STALLED: &str = "Stalled";
/// Every partition has as many valid primaries as a request needs.
pub const QUORUM_AVAILABLE: &str = "QuorumAvailable";
/// Every member owns its weighted share, and every key is spread over as many zones as can be.
pub const RING_BALANCED: &str = "RingBalanced";

/// A condition's three words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// The operator cannot tell.
    Unknown,
}

impl Truth {
    /// As the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// What a condition says, before it gets its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which condition.
    pub type_: &'static str,
    /// Whether it holds.
    pub truth: Truth,
    /// One word for programs.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

impl Finding {
    /// A finding.
    pub fn new(type_: &'static str, truth: Truth, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            type_,
            truth,
            reason,
            message: message.into(),
        }
    }
}

/// Bytes of a message; more is cut.
const MESSAGE_BYTES_MAX: usize = 1024;

/// The condition for a finding: its transition time is the old one's while the truth stays the same.
pub fn condition(old: &[Condition], finding: Finding, generation: Option<i64>, now: Timestamp) -> Condition {
    let status = finding.truth.as_str();
    let since = find(old, finding.type_).filter(|condition| condition.status == status);
    Condition {
        type_: finding.type_.into(),
        status: status.into(),
        reason: finding.reason.into(),
        message: shortened(finding.message, MESSAGE_BYTES_MAX),
        observed_generation: generation,
        last_transition_time: since.map_or_else(
            || Time(second(now)),
            |condition| condition.last_transition_time.clone(),
        ),
    }
}

/// The condition of a type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// `text` cut to at most `bytes_max` bytes, with an ellipsis.
pub fn shortened(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let mut end = bytes_max.saturating_sub(3);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str("...");
    }
    text
}

/// The API keeps whole seconds; anything finer would differ from what is read back.
fn second(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}
