//! Real nodes in one process, over real gRPC on loopback, spoken to as any client would. Test names cite the feature
//! rows that they show (see `docs/testing.md`).
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod harness;

mod buckets;

mod change;

mod handoff;

mod interface;

mod limits;

mod listing;

mod membership;

mod placement;

mod quorums;

mod reaping;

mod recovery;

mod repair;

mod restart;

mod upkeep;

mod versions;
