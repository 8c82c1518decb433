//! G26: peers that speak HTTP/2 to do harm. A node goes on serving others, and its memory stays bounded.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test they are its failure")]

mod support;

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use dynamo_client::{Client, Context};
use dynamo_local::LocalRing;
use support::{alone, client, folder, peak_kib, settings};

/// Bytes that one flood sends at most, and for how long.
const FLOOD_BYTES: usize = 64 << 20;
const FLOOD_TIME: Duration = Duration::from_secs(1);
/// What all floods together may add to the most memory that the process ever had.
const GROWTH_KIB: u64 = 64 << 10;

const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW: u8 = 8;
const CONTINUATION: u8 = 9;
const DATA: u8 = 0;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32;
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header block of a call, as HPACK: nothing of it is kept in the table.
fn call(path: &str) -> Vec<u8> {
    let literal = |block: &mut Vec<u8>, name: &[u8], value: &[u8]| {
        block.extend(name);
        block.push(value.len() as u8);
        block.extend(value);
    };
    // :method POST, :scheme http, :path, :authority, content-type, te
    let mut block = vec![0x83, 0x86];
    literal(&mut block, &[0x04], path.as_bytes());
    literal(&mut block, &[0x01], b"node");
    literal(&mut block, &[0x0f, 0x10], b"application/grpc");
    literal(&mut block, b"\x00\x02te", b"trailers");
    block
}

fn connect(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    stream
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
    stream
}

/// What a flood sends, by the number of the message.
type Frames = Box<dyn FnMut(u32) -> Vec<u8> + Send>;

/// How a flood ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The node closed the connection.
    Closed,
    /// The node took no more.
    Stuck,
    /// All of it was sent.
    Sent,
}

/// Sends what `next` gives, by the number of the message; reads and throws away the answers if it `listens`.
fn flood(address: SocketAddr, listens: bool, mut next: impl FnMut(u32) -> Vec<u8>) -> End {
    let mut stream = connect(address);
    let (began, mut sent, mut answers) = (Instant::now(), 0, [0; 4 << 10]);
    for number in 0.. {
        if sent >= FLOOD_BYTES || began.elapsed() >= FLOOD_TIME {
            break;
        }
        let bytes = next(number);
        match stream.write_all(&bytes) {
            Ok(()) => sent += bytes.len(),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return End::Stuck;
            }
            Err(_) => return End::Closed,
        }
        if listens && number % 64 == 0 && matches!(stream.read(&mut answers), Ok(0)) {
            return End::Closed;
        }
    }
    End::Sent
}

/// Opens so many streams and resets each at once.
fn rapid_reset(path: &'static str) -> impl FnMut(u32) -> Vec<u8> {
    let block = call(path);
    move |number| {
        let stream = 2 * number + 1;
        let mut bytes = frame(HEADERS, END_HEADERS, stream, &block);
        bytes.extend(frame(RESET, 0, stream, &8_u32.to_be_bytes()));
        bytes
    }
}

/// One header block that never ends.
fn continuation(path: &'static str) -> impl FnMut(u32) -> Vec<u8> {
    let block = call(path);
    let mut more = Vec::new();
    while more.len() < 15 << 10 {
        more.extend(b"\x00\x05x-pad\x7f\x01");
        more.extend([b'p'; 128]);
    }
    move |number| match number {
        0 => frame(HEADERS, 0, 1, &block),
        _ => frame(CONTINUATION, 0, 1, &more),
    }
}

/// One small entry of the table, named again and again: headers many times their size on the wire.
fn bomb(path: &'static str) -> impl FnMut(u32) -> Vec<u8> {
    let block = call(path);
    move |number| {
        let mut bombed = block.clone();
        if number == 0 {
            bombed.extend(b"\x40\x01b\x7f\xe1\x1e");
            bombed.extend([b'b'; 4000]);
        }
        bombed.extend([0xbe; 8 << 10]);
        frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &bombed)
    }
}

/// Calls that never end, far more than one connection may have.
fn open_streams(path: &'static str) -> impl FnMut(u32) -> Vec<u8> {
    let block = call(path);
    move |number| frame(HEADERS, END_HEADERS, 2 * number + 1, &block)
}

/// One call whose body is nothing, in as many frames as fit.
fn empty_data(path: &'static str) -> impl FnMut(u32) -> Vec<u8> {
    let block = call(path);
    move |number| match number {
        0 => frame(HEADERS, END_HEADERS, 1, &block),
        _ => frame(DATA, 0, 1, &[]).repeat(100),
    }
}

fn repeated(bytes: Vec<u8>) -> impl FnMut(u32) -> Vec<u8> {
    move |_| bytes.repeat(100)
}

async fn serves(client: &Client, what: &str) {
    let found = client.get("key").await;
    let context = found.map_or_else(|_| Context::none(), |found| found.context);
    client.put("key", what.to_owned(), &context).await.unwrap();
    assert_eq!(client.get("key").await.unwrap().single().unwrap(), what);
}

#[tokio::test(flavor = "multi_thread")]
async fn g26_floods_of_frames_neither_stop_nor_bloat_a_node() {
    let _alone = alone().await;
    let dir = folder();
    let mut ring = LocalRing::start(settings(dir.path(), 1, 1)).await.unwrap();
    let kv = client(&ring).await;
    serves(&kv, "before").await;
    let before = peak_kib(&ring, 0);
    let addresses = ring.nodes()[0].addresses();
    for (port, path) in [
        (addresses.client, "/dynamo.v1.KeyValue/Get"),
        (addresses.peer, "/dynamo.peer.v1.Peer/Gossip"),
        (addresses.admin, "/dynamo.admin.v1.Admin/Status"),
    ] {
        for listens in [false, true] {
            let floods: [(&str, Frames, bool); 9] = [
                ("rapid reset", Box::new(rapid_reset(path)), true),
                ("continuation", Box::new(continuation(path)), true),
                ("header bomb", Box::new(bomb(path)), false),
                ("open streams", Box::new(open_streams(path)), false),
                ("empty data", Box::new(empty_data(path)), false),
                ("pings", Box::new(repeated(frame(PING, 0, 0, &[7; 8]))), false),
                ("settings", Box::new(repeated(frame(SETTINGS, 0, 0, &[]))), false),
                (
                    "window updates",
                    Box::new(repeated(frame(WINDOW, 0, 0, &[0, 0, 0, 1]))),
                    false,
                ),
                (
                    "resets of nothing",
                    Box::new(repeated(frame(RESET, 0, 1, &[0, 0, 0, 8]))),
                    true,
                ),
            ];
            for (name, next, must_close) in floods {
                let what = format!("{name} at {path}, listening: {listens}");
                let end = tokio::task::spawn_blocking(move || flood(port, listens, next));
                // While it lasts, others are served.
                serves(&kv, &what).await;
                let end = end.await.unwrap();
                println!("{what}: {end:?}, {} KiB", peak_kib(&ring, 0));
                assert!(!must_close || end == End::Closed, "{what}: {end:?}");
                let grown = peak_kib(&ring, 0) - before;
                assert!(grown <= GROWTH_KIB, "{what}: {grown} KiB more than before");
            }
        }
    }
    serves(&kv, "after").await;
    ring.stop("all").await.unwrap();
}
