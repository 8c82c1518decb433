//! Membership from outside: views and what they exchange (D58, D59), loops of many nodes (D9, D56, D57, D61),
//! the log, policies and storage positions (D59, Z3), the detector (D62, test F), the persisted form.

// Helpers of tests may unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod cluster;
mod detector;
mod encoding;
mod history;
mod support;
mod view;
