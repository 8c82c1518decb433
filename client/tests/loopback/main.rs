//! The client against servers on loopback that do as a test tells them.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

mod batch;

mod coordination;

mod hedging;

mod retry;

mod routing;

mod streams;

mod updates;
