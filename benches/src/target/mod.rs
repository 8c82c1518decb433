//! Clients of what is measured.

pub(crate) mod echo;

pub(crate) mod ours;
