//! Anti-entropy from outside: trees, exchanges, their schedule (D38, D39, test A), and suspect stores.

// Clippy knows test functions, not their helpers in a crate of tests.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod exchange;
mod faults;
mod recovery;
mod schedule;
mod support;
mod tree;
