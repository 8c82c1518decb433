//! Data types: what they promise (row D53, test C), and the laws behind it.

// Clippy knows test functions, not their helpers in a crate of tests.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod histories;
mod laws;
mod replicas;
mod rows;
