//! The ring from outside: placement (D19, D21-D23, D27-D30), changes (D20-D22), encoding.

mod changes;
mod encoding;
mod placement;
mod support;
