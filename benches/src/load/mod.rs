//! Load: `zipf` says which records are popular, `workload` what is done with them, `drive` when, `recorder` how long it took.

pub(crate) mod drive;

pub(crate) mod recorder;

pub(crate) mod workload;

pub(crate) mod zipf;
