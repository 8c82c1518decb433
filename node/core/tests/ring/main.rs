//! The ring from outside: placement (D19, D21-D23, D27-D30), changes (D20-D22), encoding.

// Helpers of tests may unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod changes;
mod encoding;
mod placement;
mod support;
