//! The algebra that replication rests on, by random cases; more than 100,000 in a release build, fewer in debug.
//!
//! Case numbers and seeds are fixed, so a failure repeats; `DYNAMO_TEST_SEED=<number>` tries other cases.

// Clippy knows test functions, not their helpers in a crate of tests.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod laws {
    mod contexts;
    mod decoders;
    mod histories;
    mod seen;
    mod states;
    mod strategies;
}
