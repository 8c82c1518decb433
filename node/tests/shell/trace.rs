//! What happened in a run, in order: all messages of the network, with their bytes, all that nodes logged, and the ticks of the
//! clock in between.

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
        let mut line = event.metadata().target().to_owned();
        event.record(&mut |field: &Field, value: &dyn std::fmt::Debug| {
            let _ = write!(line, " {}={value:?}", field.name());
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
