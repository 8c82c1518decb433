//! A Dynamo storage node: the shell of tokio, tonic and RocksDB around the protocol of [`dynamo_core`].
//!
//! ```text
//!   clients ─▶ grpc::kv ───▶ request (drives the core's machines) ─▶ peers ─▶ other nodes
//!   peers ───▶ grpc::peer ─▶ storage::writer ─▶ RocksDB
//!   admins ──▶ grpc::admin ▶ membership ◀─▶ tasks (gossip, probes)
//!   kubelet ─▶ telemetry::http
//! ```
//!
//! Modules in reading order: [`config`]; `clock`; `faults`, on demand; [`storage`] and [`durable`], what survives a restart; [`Host`], what it
//! runs on; `membership`, who this node is and whom it knows; `node`, what the parts share; `peers`; `request`; `grpc`; `tasks`;
//! `telemetry`; `server`, the order of start and stop.

pub mod config;

mod clock;

mod faults;

pub mod storage;

pub mod durable;

mod membership;

mod node;

mod peers;

mod request;

mod background;

mod grpc;

mod tasks;

mod telemetry;

mod net;

mod host;

mod server;

pub use clock::{Simulated, simulate};
pub use config::{Config, Flags};
pub use host::{Host, Machine, Stores};
pub use server::{End, Running, run, start, start_on};
pub use telemetry::init_logging;
