//! How long a claim takes: a first ring, one more member, one fewer, a zone fewer, for rings up to the largest.
//!
//! `cargo run --release -p dynamo-core --example claim_time`

// The crate reads no clock; whoever measures it does.
#![allow(clippy::disallowed_methods)]

use std::time::Instant;

use dynamo_core::ring::{Member, Ring, RingError};
use dynamo_core::types::{ClusterId, MemberId, Zone};

const ZONES: usize = 3;
const FACTOR: u32 = 3;

fn members(count: usize) -> Result<Vec<Member>, Box<dyn std::error::Error>> {
    (0..count)
        .map(|number| {
            Ok(Member {
                id: MemberId::new(format!("m{number:04}"))?,
                zone: Zone::new(format!("z{}", number % ZONES))?,
                weight: 1,
            })
        })
        .collect()
}

fn timed(what: &str, make: impl FnOnce() -> Result<Ring, RingError>) -> Result<Ring, RingError> {
    let begin = Instant::now();
    let ring = make()?;
    println!(
        "Q={:<6} S={:<5} {what:<12} {:>6} ms",
        ring.partitions(),
        ring.members().len(),
        begin.elapsed().as_millis()
    );
    Ok(ring)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (partitions, count) in [
        (256, 10),
        (256, 100),
        (1024, 100),
        (16_384, 100),
        (16_384, 1000),
        (16_384, 4000),
    ] {
        let all = members(count)?;
        let ring = timed("first", || {
            Ring::bootstrap(ClusterId([1; 16]), all.clone(), partitions, FACTOR)
        })?;
        let more = members(count + 1)?;
        timed("one joins", || ring.with_members(more))?;
        timed("one leaves", || ring.with_members(all[1..].to_vec()))?;
        let two_zones = all.iter().filter(|member| member.zone.as_str() != "z2");
        timed("a zone fewer", || ring.with_members(two_zones.cloned().collect()))?;
    }
    Ok(())
}
