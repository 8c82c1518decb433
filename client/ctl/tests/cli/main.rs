//! The binary as users and scripts run it, against servers on loopback that do as a test tells them.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "../../../tests/loopback/support/mod.rs"]
mod support;

mod admin;

mod runner;

mod change;

mod commands;

mod upkeep;
