//! The protocol of a Dynamo node as plain values and step functions: no I/O, no clock, no randomness, no threads.
//!
//! Shells (the node's tokio process, the simulator) drive it: they pass in time, random numbers and what
//! arrived, and perform what comes out.
//!
//! ```text
//!              events                                      effects
//!   client ──▶ request ──▶ ┌────────────────────────┐ ──▶ write locally, send to a peer
//!   peer   ──▶ reply   ──▶ │ coordinator  put, get   │ ──▶ reply to the client
//!   disk   ──▶ done    ──▶ │ replica      merge      │ ──▶ record to store
//!   timer  ──▶ now     ──▶ │ membership   gossip     │ ──▶ digest, delta, probe
//!                          └────────────────────────┘
//!                 placed by: ring (a value)   decided by: quorum (a value)
//! ```
//!
//! Modules in reading order:
//! [`types`]; [`version`] (§4.4); [`replica`], what one node does to one record; [`ring`] (§4.2, §4.3, §6.2);
//! [`quorum`] (§4.5); [`coordinator`] (§4.5, §5); [`admission`] and [`overload`] (§6.5); [`listing`]; [`membership`]
//! (§4.8). Paragraph marks are sections of the Dynamo paper (SOSP 2007).

pub mod types;

pub mod version;

pub mod replica;

pub mod ring;

pub mod bucket;

pub mod crdt;

pub mod quorum;

pub mod coordinator;

pub mod entropy;

pub mod recovery;

pub mod reap;

pub mod admission;

pub mod overload;

pub mod listing;

pub mod membership;

pub mod transition;

pub mod wire;
