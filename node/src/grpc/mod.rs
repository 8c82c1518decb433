//! The gRPC surfaces, one file per service: decode, call, encode; no logic of the protocol.

pub(crate) mod admin;

mod convert;

pub(crate) mod kv;

pub(crate) mod peer;

pub(crate) mod status;
