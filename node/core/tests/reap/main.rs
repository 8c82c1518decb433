//! Two-phase removal from outside (D51, D55; Z1-Z3): every history of a small world, and rounds step by step.

// Helpers of tests may unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod histories;
mod model;
mod rounds;
