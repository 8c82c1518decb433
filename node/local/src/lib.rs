//! Real rings of `dynamo-node` processes on loopback: for a first look (`make run`), for tests that kill and pause
//! processes, and for benches.
//!
//! ```no_run
//! # async fn demo() -> Result<(), dynamo_local::Error> {
//! use dynamo_local::{LocalRing, Settings, program};
//!
//! let settings = Settings::new("/tmp/ring", program("dynamo-node", None)?);
//! let mut ring = LocalRing::start(settings).await?;
//! println!("talk to {}", ring.endpoints().join(","));
//! ring.kill("zone-a").await?;
//! ring.start_again("zone-a").await?;
//! ring.stop("all").await?;
//! # Ok(()) }
//! ```
//!
//! In reading order: `layout` is how many nodes in how many zones, `ports` where they listen, `stored` what outlives
//! the processes; `process` is one child, `watchdog` what ends children whose parent was killed, `admin` what is asked
//! of a node; `settings` and `node` are what [`LocalRing`] is made of, which puts all together.

mod layout;

mod ports;

mod stored;

mod process;

mod watchdog;

mod admin;

mod settings;

mod node;

mod ring;

mod error;

pub use error::Error;
pub use layout::{Layout, LayoutError, Planned, Wanted};
pub use node::{Node, Running};
pub use ports::{Addresses, PortError};
pub use ring::LocalRing;
pub use settings::{Place, Settings, program};
