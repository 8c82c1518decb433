//! Load: `zipf` says which records are popular, `workload` what is done with them, `drive` when, `recorder`
//! how long it took; `warm` how long it is done before anything is measured.

pub(crate) mod drive;

pub(crate) mod recorder;

pub(crate) mod warm;

pub(crate) mod workload;

pub(crate) mod zipf;
