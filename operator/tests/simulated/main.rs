//! The operator against a simulated API server, kubelet and admin service: what takes thousands of runs (K5, K6, K8, K9, K10,
//! K33, K34).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_futures,
    reason = "a failed test panics, and its futures are few"
)]

mod random;
mod stories;

mod crash;
mod events;
mod faults;
mod loss;
mod mind;
