//! Kubernetes and Dynamo nodes in memory, for tests of the operator: one thread, no time of its own, thousands of runs a minute.
//!
//! Modules in reading order: [`api_server`], which answers a `kube::Client` as the real one does, as far as the operator and
//! [`kubelet`] ask it; [`kubelet`], what Kubernetes does with StatefulSets; [`nodes`] and [`rings`], Dynamo nodes that keep
//! their volumes; [`faults`], what may happen to any of an operator's calls; [`world`], a namespace with all of them.
//!
//! All but [`api_server`] work on a real API server just as well: the operator's tests do both.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unimplemented,
    clippy::large_futures,
    reason = "for tests alone: what fails here is a failed test"
)]

pub mod api_server;

pub mod kubelet;

pub mod nodes;
pub mod rings;

pub mod faults;

pub mod world;
