//! What the tests on a real cluster stand on.
//!
//! The tests themselves are in `tests/kubernetes`, the checks of the repository in `tests/tidy.rs`. Modules in reading order:
//! [`command`] runs programs, [`wait`] waits for conditions, [`cluster`] is the Kubernetes under test, [`forward`] reaches
//! a pod's port, [`evidence`] keeps what explains a failure; [`records`] are the real data, [`report`] are the lines that
//! the loader prints, [`workload`] and [`writers`] what it does, [`loader`] runs it in the cluster; what writers did is judged by
//! `dynamo-history`; `lab` is a second DynamoCluster, `mischief` what is done to it.

pub mod command;
pub mod wait;

pub mod cluster;

pub mod forward;

pub mod evidence;

pub mod records;

pub mod report;

pub mod workload;

pub mod writers;

pub mod loader;

pub mod lab;

pub mod mischief;
