//! `kvbench`: what an operation costs here, and what it costs elsewhere.

mod system;

fn main() {}
