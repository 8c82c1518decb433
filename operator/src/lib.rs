//! The operator: makes `DynamoCluster` objects true on a Kubernetes cluster.
//!
//! ```text
//!   API server, nodes            plain values                      API server, nodes
//!   observe (I/O) ──▶ validate ──▶ build ──▶ plan ──▶ apply (I/O) ──▶ status
//! ```
//!
//! Only [`controller`]'s `observe` and `apply`, and [`admin`], hold a client; the steps between are pure. Everything is
//! read back from the cluster on every pass: no workflow state is kept in memory. The operator never decides who owns
//! what of the ring (nodes do); it only asks nodes to bootstrap, to join, and to propose a ring of certain members.
//!
//! Modules in reading order: [`crd`], the API; [`controller`], the loop; [`admin`] and [`ring`], what nodes say;
//! [`run`], the process around it.

pub mod crd;

pub mod controller;

pub mod admin;
pub mod ring;

pub mod run;
pub mod telemetry;
