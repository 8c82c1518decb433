//! What happened in a run, in order and with its simulated time: all messages of the network and all that nodes logged.
//!
//! Of a message the connection and the kind count, and not its bytes: hyper puts a `date` of the real clock into each
//! response.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex},
};

use tracing::{Event, Metadata, Subscriber, field::Field, span};

/// Gathers the lines of the thread on which it is the default.
#[derive(Clone, Default)]
pub(crate) struct Trace {
    lines: Arc<Mutex<Vec<String>>>,
}

impl Trace {
    pub(crate) fn of(run: impl FnOnce()) -> Vec<String> {
        let trace = Self::default();
        tracing::subscriber::with_default(trace.clone(), run);
        std::mem::take(&mut trace.lines.lock().unwrap())
    }
}

impl Subscriber for Trace {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && ["turmoil", "dynamo"]
                .iter()
                .any(|from| metadata.target().starts_with(from))
    }

    fn event(&self, event: &Event<'_>) {
        let now = turmoil::sim_elapsed().unwrap_or_default();
        let mut line = format!("{:.6} {}", now.as_secs_f64(), event.metadata().target());
        event.record(&mut |field: &Field, value: &dyn std::fmt::Debug| {
            let text = format!("{value:?}");
            let shown = if field.name() == "protocol" {
                text.split(" [").next().unwrap_or_default()
            } else {
                &text
            };
            let _ = write!(line, " {}={shown}", field.name());
        });
        self.lines.lock().unwrap().push(line);
    }

    fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}

    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}

    fn enter(&self, _span: &span::Id) {}

    fn exit(&self, _span: &span::Id) {}
}
