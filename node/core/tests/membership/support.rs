//! Entries, rings and random numbers.

use dynamo_core::membership::{Delta, MemberEntry, View};
use dynamo_core::ring::{Member, Ring, RingParts};
use dynamo_core::types::{ClusterId, Incarnation, MemberId, Zone};

pub(crate) const CLUSTER: ClusterId = ClusterId([9; 16]);

/// A random sequence that a seed replays.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, count: usize) -> usize {
        ((self.next() >> 16) % count as u64) as usize
    }
}

pub(crate) fn id(number: usize) -> MemberId {
    MemberId::new(format!("node-{number:02}")).unwrap()
}

pub(crate) fn entry(number: usize) -> MemberEntry {
    MemberEntry {
        member: id(number),
        incarnation: Incarnation {
            generation: 1,
            id: 1000 + number as u64,
        },
        version: 1,
        peer_address: format!("10.0.0.{number}:7701"),
        client_address: format!("10.0.0.{number}:7700"),
        admin_address: format!("10.0.0.{number}:7702"),
        zone: Zone::new(format!("z{}", number % 3)).unwrap(),
        release: "0.1.0".into(),
        starts: 1,
        synced: 0,
    }
}

pub(crate) fn view(number: usize) -> View {
    View::new(CLUSTER, entry(number), None)
}

/// A ring of as many members, each owning tokens in turn.
pub(crate) fn ring(members: usize, epoch: u64) -> Ring {
    ring_of(CLUSTER, members, epoch)
}

pub(crate) fn ring_of(cluster_id: ClusterId, members: usize, epoch: u64) -> Ring {
    let member = |number| Member {
        id: id(number),
        zone: entry(number).zone,
        weight: 1,
    };
    let members: Vec<Member> = (0..members).map(member).collect();
    let owners = (0..64)
        .map(|partition| (partition % members.len()) as u16)
        .collect();
    Ring::new(RingParts {
        cluster_id,
        epoch,
        factor: 1,
        members,
        owners,
    })
    .unwrap()
}

pub(crate) fn delta(members: Vec<MemberEntry>) -> Delta {
    Delta {
        cluster: CLUSTER,
        members,
        ring: None,
        followers: None,
        log: Vec::new(),
        policies: Vec::new(),
    }
}

/// One whole exchange without loss; returns how many entries were sent either way.
pub(crate) fn exchange(first: &mut View, second: &mut View) -> usize {
    let answer = second.answer(&first.digest());
    let back = first.delta_for(&answer.wanted);
    let sent = answer.delta.members.len() + back.members.len();
    first.merge(answer.delta);
    second.merge(back);
    sent
}
