//! Clients of what is measured.

pub(crate) mod cassandra;

pub(crate) mod echo;

pub(crate) mod etcd;

pub(crate) mod garage;

pub(crate) mod ours;

pub(crate) mod redis;
