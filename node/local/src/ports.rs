//! Ports of a ring: one block below the range that the kernel gives to outgoing connections, the same at every start.

use std::{
    fs::{File, OpenOptions},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
};

/// Node 1 has base, base + 1, ...; node 2 base + 10, ...: easy to remember.
const PORTS_PER_NODE: u16 = 10;
/// Ports in use of each node's ten: clients, peers, administrators, HTTP.
const PORTS_USED: u16 = 4;
/// Blocks are looked for at multiples of this; it is also the unit of reservation.
const CELL: u16 = 100;
/// The base that a machine's first ring gets.
const BASE_FIRST: u16 = 7700;
/// Linux' ephemeral ports begin at 32768: above, a restarted node could find its port taken by a connection.
const PORT_LAST: u16 = 32767;

/// The four addresses of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// gRPC for clients.
    pub client: SocketAddr,
    /// gRPC for peers.
    pub peer: SocketAddr,
    /// gRPC for administrators.
    pub admin: SocketAddr,
    /// HTTP for probes and metrics.
    pub http: SocketAddr,
}

/// Ports that no other ring on this machine takes, as long as this value lives.
#[derive(Debug)]
pub(crate) struct Block {
    base: u16,
    _locks: Vec<File>,
}

/// Why a block cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Someone listens there.
    #[error(
        "port {port} of {member} is taken; see who has it with `ss -ltnp sport = :{port}`, then end that, or pass {remedy}"
    )]
    Taken {
        /// The port.
        port: u16,
        /// Whose port it would be.
        member: String,
        /// How to choose another.
        remedy: &'static str,
    },
    /// Another ring has reserved it.
    #[error("ports from {base} belong to another local ring that runs now; stop it, or pass {remedy}")]
    Reserved {
        /// The block's first port.
        base: u16,
        /// How to choose another.
        remedy: &'static str,
    },
    /// It does not fit into the range.
    #[error(
        "ports from {base} do not fit: {nodes} nodes take {count} ports, and the last may be {PORT_LAST}"
    )]
    OutOfRange {
        /// The block's first port.
        base: u16,
        /// Nodes of the ring.
        nodes: u32,
        /// Ports that they take.
        count: u32,
    },
    /// Nothing is free.
    #[error("no block of {0} free ports between {BASE_FIRST} and {PORT_LAST}")]
    NoneFree(u32),
}

impl Block {
    /// The first block whose ports are all free.
    pub(crate) fn find(nodes: u32) -> Result<Self, PortError> {
        let mut base = BASE_FIRST;
        while let Ok(()) = fits(base, nodes) {
            if let Ok(block) = Self::reserve(base, nodes, "") {
                return Ok(block);
            }
            base += CELL;
        }
        Err(PortError::NoneFree(count(nodes)))
    }

    /// This very block. `remedy` is what an error tells the reader to pass.
    pub(crate) fn reserve(base: u16, nodes: u32, remedy: &'static str) -> Result<Self, PortError> {
        fits(base, nodes)?;
        let last = base + (count(nodes) - 1) as u16;
        let mut locks = Vec::new();
        for cell in base / CELL..=last / CELL {
            match lock(cell) {
                Ok(lock) => locks.extend(lock),
                Err(Held) => return Err(PortError::Reserved { base, remedy }),
            }
        }
        for index in 0..nodes {
            for offset in 0..PORTS_USED {
                let port = base + index as u16 * PORTS_PER_NODE + offset;
                if TcpListener::bind(local(port)).is_err() {
                    let member = format!("node-{}", index + 1);
                    return Err(PortError::Taken { port, member, remedy });
                }
            }
        }
        Ok(Self { base, _locks: locks })
    }

    pub(crate) fn base(&self) -> u16 {
        self.base
    }

    /// Addresses of the node with this index, from 0.
    pub(crate) fn addresses(&self, index: usize, ip: Ipv4Addr) -> Addresses {
        let first = self.base + index as u16 * PORTS_PER_NODE;
        Addresses {
            client: (ip, first).into(),
            peer: (ip, first + 1).into(),
            admin: (ip, first + 2).into(),
            http: (ip, first + 3).into(),
        }
    }
}

/// Another ring holds the lock.
struct Held;

/// Between looking and the nodes' own binding, another ring could choose the same ports; a lock in the common temporary
/// folder, which ends with its process, prevents that. Where it cannot be made, the binding decides alone.
fn lock(cell: u16) -> Result<Option<File>, Held> {
    let path: PathBuf = std::env::temp_dir().join(format!("dynamo-local-ports-{}.lock", cell * CELL));
    let Ok(file) = OpenOptions::new().create(true).append(true).open(path) else {
        return Ok(None);
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Err(Held),
        Err(std::fs::TryLockError::Error(_)) => Ok(None),
    }
}

fn count(nodes: u32) -> u32 {
    nodes.saturating_sub(1) * u32::from(PORTS_PER_NODE) + u32::from(PORTS_USED)
}

fn fits(base: u16, nodes: u32) -> Result<(), PortError> {
    let count = count(nodes);
    let last = u32::from(base) + count - 1;
    if base == 0 || last > u32::from(PORT_LAST) {
        return Err(PortError::OutOfRange { base, nodes, count });
    }
    Ok(())
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_rings_never_share_ports() {
        let first = Block::find(12).unwrap();
        let second = Block::find(12).unwrap();
        // 12 nodes take 114 ports, so the blocks must be two cells apart.
        assert!(
            second.base() >= first.base() + 2 * CELL,
            "{} {}",
            first.base(),
            second.base()
        );
        let error = Block::reserve(first.base() + CELL, 1, "PORT=...").unwrap_err();
        assert!(matches!(error, PortError::Reserved { .. }), "{error}");
        let base = first.base();
        drop(first);
        assert_eq!(Block::reserve(base, 12, "PORT=...").unwrap().base(), base);
    }

    #[test]
    fn a_taken_port_is_named() {
        let base = Block::find(3).unwrap().base();
        let taken = base + PORTS_PER_NODE + 2;
        let _listener = TcpListener::bind(local(taken)).unwrap();
        let error = Block::reserve(base, 3, "PORT=9000").unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("port {taken} of node-2 is taken")),
            "{error}"
        );
        assert!(error.ends_with("or pass PORT=9000"), "{error}");
    }

    #[test]
    fn blocks_end_below_the_ephemeral_ports() {
        assert!(fits(32764, 1).is_ok());
        assert!(matches!(fits(32764, 2), Err(PortError::OutOfRange { .. })));
        assert!(matches!(fits(65535, 1), Err(PortError::OutOfRange { .. })));
        assert!(matches!(fits(0, 1), Err(PortError::OutOfRange { .. })));
    }
}
