//! The ring from outside: placement (D19, D21-D23, D27-D30), changes (D20-D22, also beside a slow oracle), encoding.

// Helpers of tests may unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod changes;
mod encoding;
mod least_moves;
mod placement;
mod support;
mod sweep;
