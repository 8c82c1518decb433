//! Where keys are (§4.2, §4.3, §6.2), reproduced from `admin.Ring` by a script of its own.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use dynamo_proto::admin::{PreferenceListRequest, RingRequest};

use crate::harness::{Cluster, Shape};

/// The independent script: from the documented hash and walk and the ring's members and owners, nothing of ours.
fn primaries(ring: &dynamo_proto::v1::Ring, key: &[u8]) -> Vec<String> {
    use sha2::Digest as _;
    let mut input = Vec::new();
    for part in ["default".as_bytes(), key] {
        input.extend((part.len() as u32).to_be_bytes());
        input.extend(part);
    }
    let digest = sha2::Sha256::digest(&input);
    let hash = u64::from_be_bytes(digest[..8].try_into().unwrap());
    let partitions = ring.owners.len();
    let partition = ((u128::from(hash) * partitions as u128) >> 64) as usize;
    let walk: Vec<usize> = (0..partitions)
        .map(|step| ring.owners[(partition + step) % partitions] as usize)
        .collect();
    let zone = |member: usize| ring.members[member].zone.as_str();
    let zones: BTreeSet<&str> = ring.members.iter().map(|member| member.zone.as_str()).collect();
    let n = ring.factor as usize;
    let most = n.div_ceil(zones.len());
    let mut taken: Vec<usize> = Vec::new();
    for pass in 1..=3 {
        for member in &walk {
            let in_zone = taken
                .iter()
                .filter(|other| zone(**other) == zone(*member))
                .count();
            let allowed = match pass {
                1 => in_zone == 0,
                2 => in_zone < most,
                _ => true,
            };
            if taken.len() < n && allowed && !taken.contains(member) {
                taken.push(*member);
            }
        }
    }
    taken
        .into_iter()
        .map(|member| ring.members[member].member_id.clone())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn d19_d28_an_independent_script_reproduces_ten_thousand_preference_lists() {
    let cluster = Cluster::start(Shape {
        partitions: 256,
        ..Shape::new(6, 3)
    })
    .await;
    let mut admin = cluster.admin(4);
    let ring = admin
        .ring(RingRequest {})
        .await
        .unwrap()
        .into_inner()
        .ring
        .unwrap();
    for number in 0..10_000 {
        let key = Bytes::from(format!("key-{number}"));
        let request = PreferenceListRequest {
            bucket: String::new(),
            key: key.clone(),
        };
        let list = admin.preference_list(request).await.unwrap().into_inner();
        let named: Vec<String> = list
            .entries
            .iter()
            .filter(|entry| entry.primary)
            .map(|entry| entry.member_id.clone())
            .collect();
        assert_eq!(named, primaries(&ring, &key), "{key:?}");
        let all: BTreeSet<&str> = list
            .entries
            .iter()
            .map(|entry| entry.member_id.as_str())
            .collect();
        assert_eq!(
            (list.entries.len(), all.len()),
            (6, 6),
            "N primaries, then all others as fallbacks"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d21_d22_d23_d29_d30_the_ring_is_whole_weighted_and_spread() {
    let cluster = Cluster::start(Shape {
        partitions: 256,
        ..Shape::new(6, 3)
    })
    .await;
    let answer = cluster.admin(1).ring(RingRequest {}).await.unwrap().into_inner();
    let ring = answer.ring.unwrap();
    assert_eq!(ring.owners.len(), 256, "exactly Q ranges");
    let mut tokens: BTreeMap<&str, u32> = BTreeMap::new();
    for owner in &ring.owners {
        *tokens
            .entry(ring.members[*owner as usize].member_id.as_str())
            .or_default() += 1;
    }
    let weights: u32 = ring.members.iter().map(|member| member.weight).sum();
    for member in &ring.members {
        let share = 256 * member.weight / weights;
        let owned = tokens[member.member_id.as_str()];
        assert!(
            (share..=share + 1).contains(&owned),
            "{} owns {owned}, its share is {share}",
            member.member_id
        );
    }
    for number in 0..500 {
        let members = primaries(&ring, format!("key-{number}").as_bytes());
        let zones: BTreeSet<&str> = members
            .iter()
            .map(|id| {
                ring.members
                    .iter()
                    .find(|member| member.member_id == *id)
                    .unwrap()
                    .zone
                    .as_str()
            })
            .collect();
        assert_eq!(
            (members.iter().collect::<BTreeSet<_>>().len(), zones.len()),
            (3, 3)
        );
    }
}
