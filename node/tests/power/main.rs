//! The real writer on the real RocksDB, on a disk that loses power, fails, fills up and rots. Feature rows D34, D39, D42;
//! guarantees 10 to 13 of the test plan.
//!
//! `DYNAMO_POWER_LOSSES` (200 by default) and `DYNAMO_BIT_FLIPS` (500) say how often; `DYNAMO_TEST_SEED` says which. A
//! failure names the seed and the round, and the same ones do the same again, except for the pace of flushes in the
//! background.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod errors;

mod harness;

mod hints;

mod history;

mod losses;

mod rot;
