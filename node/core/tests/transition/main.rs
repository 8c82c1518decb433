//! Two rings side by side (`dynamo_core::transition`): the rules one by one, and random histories of one partition on six nodes
//! with slow and lost messages, administrators who change their mind, crashes and lost disks.

// Helpers of tests may unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod histories;
mod layouts;
mod model;
mod rules;
