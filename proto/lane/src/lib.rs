//! Many requests on one long gRPC stream, both ends of it: as many leave in a message as wait, and are answered in any order.
//!
//! ```text
//!   asking                                                                        serving
//!   request() ─▶ waiting ──(the connection is free: up to 64, or 64 KiB)──▶ running, all at the same time
//!      answer ◀─ sent    ◀────────────────(the same)───────────────────── done
//! ```
//!
//! Nothing waits for a timer, so a single request leaves at once. The price of a message is shared by all that came while
//! the one before it was written. Clients and nodes speak so ([`Clients`]), and nodes with each other ([`Peers`]).

mod ask;

mod protocol;

mod serve;

mod traffic;

pub use ask::{Lane, Leaving, Lost};
pub use protocol::{Clients, Peers, Protocol};
pub use serve::{Begun, Bounds, Serves, Serving, serve};
pub use traffic::{Flow, Traffic};

/// Requests, or responses, of one message.
pub const MESSAGE_ITEMS_MAX: usize = 64;
/// Bytes of one message; a single request or response may be larger.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Clients send larger requests by calls of their own, so that they hold up nothing behind them.
pub const REQUEST_BYTES_MAX: usize = 32 << 10;
/// A node refuses larger messages of a client.
pub const CLIENT_MESSAGE_BYTES_MAX: usize = 2 * MESSAGE_BYTES_MAX;
