//! The operator against a real kube-apiserver (K1, K2, K4-K11, K15, K18, K19, K23, K25, K26, K29, K32,
//! K33, K34).
//!
//! Only etcd and kube-apiserver run; StatefulSets are made pods by a small script, and nodes are fakes that keep their volumes
//! (`dynamo-operator-sim`). The operator acts under the very RBAC rules of the chart. What takes thousands of runs is in
//! `tests/simulated`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_futures,
    reason = "a failed test panics, and its futures are few"
)]
#![allow(unreachable_pub, reason = "modules of one test")]

mod server;
mod world;

mod change;
mod crash;
mod install;
mod life;
mod process;
mod simulated;
mod specs;
