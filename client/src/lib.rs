//! Async client of a Dynamo cluster: gets, puts and deletes that survive the loss of nodes, with typed errors.
//!
//! A [`Client`] keeps the cluster's ring, sends each request straight to a replica of its key (paper: §6.4), retries on
//! other replicas within one deadline, and reports truthfully what became of a write.
//! A get returns *all* causally unrelated values and one opaque [`Context`]; the put that resolves them passes it back (§4.4).
//!
//! ```no_run
//! # async fn demo() -> Result<(), dynamo_client::Error> {
//! use dynamo_client::{Client, Context};
//!
//! let client = Client::builder().endpoint("127.0.0.1:7700").connect().await?;
//! client.put("cart:alice", "potato", &Context::none()).await?;
//! let found = client.get("cart:alice").await?;
//! for value in found.values() {
//!     println!("{}", String::from_utf8_lossy(value));
//! }
//! // Read, resolve, write back: the closure sees every sibling.
//! client.resolve("cart:alice", |siblings| siblings.join(&b","[..])).await?;
//! # Ok(()) }
//! ```
//!
//! A client belongs to the cluster whose ring it learns first: a node of another one that has got a member's address gets
//! none of its requests. What overloaded nodes refuse is tried again for a fifth of the operations, and fails otherwise.
//!
//! Reads are coordinated by a node, or by the client itself if it is told so ([`Coordination`]). Values of data types
//! are updated by [`Client::update`] and never have siblings.
//!
//! Modules in reading order: [`Client`] (`client`, `update`, `resolve`, `batch`, `listing`), its [`Builder`] (`config`),
//! values (`types`, `typed`), [`Error`] (`error`); then the machinery: `call` carries an operation to its end, `attempts`
//! decides whether and when to try again, `routing` where, `hedge` when a slow node gets company; `coordinate` reads
//! replicas without a coordinating node, `memory` keeps what was learnt on the way, `nodes` one channel and the local
//! opinion per node, `stub` what is said on it, `background` refreshes the ring and probes nodes put aside.

mod client;

mod update;

mod resolve;

mod batch;

mod listing;

mod config;

mod types;

mod typed;

mod error;

mod call;

mod attempts;

mod status;

mod routing;

mod hedge;

mod coordinate;

mod memory;

mod nodes;

mod stub;

mod background;

pub use batch::PutEntry;
pub use client::Client;
pub use config::{Builder, Coordination};
pub use error::{Detail, Error, Outcome};
pub use listing::{KeyPage, ListOptions};
pub use memory::Stats;
pub use typed::Typed;
pub use types::{Context, Found, Info, OpId, ReadOptions, Replicas, Value, WriteOptions, Written};
pub use update::{MapUpdate, Update};
