//! The gRPC surfaces, one file per service: decode, call, encode; no logic of the protocol.

pub(crate) mod admin;

mod anti_entropy;
mod change;

pub(crate) mod convert;

mod data_types;

mod gate;

pub(crate) mod gossip;

pub(crate) mod inflow;

pub(crate) mod kv;

pub(crate) mod locate;

pub(crate) mod peer;

pub(crate) mod reap;

mod replica;

pub(crate) mod status;

mod upkeep;
