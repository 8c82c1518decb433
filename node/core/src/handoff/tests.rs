use std::sync::Arc;

use super::*;
use crate::ring::{Member, Ring};
use crate::types::{ClusterId, Zone};

fn members(count: usize) -> Vec<Member> {
    let member = |number| Member {
        id: MemberId::new(format!("m{number}")).unwrap(),
        zone: Zone::default(),
        weight: 1,
    };
    (0..count).map(member).collect()
}

/// D36: a hint goes to its owner as long as that is a primary, and to all primaries when it is none any more.
#[test]
fn hints_follow_the_ring() {
    let first = Ring::bootstrap(ClusterId([7; 16]), members(5), 16, 3).unwrap();
    let left = first.with_members(members(4)).unwrap();
    let gone = MemberId::new("m4").unwrap();
    for ring in [first, left] {
        let placement = Placement::new(Arc::new(ring));
        let ring = placement.ring();
        for partition in (0..ring.partitions()).map(PartitionId) {
            let name = |index: &u16| ring.members()[usize::from(*index)].id.clone();
            let primaries: Vec<_> = placement.primaries(partition).iter().map(name).collect();
            assert_eq!(primaries.len(), 3);
            for member in members(5) {
                let expected = if primaries.contains(&member.id) {
                    vec![member.id.clone()]
                } else {
                    primaries.clone()
                };
                assert_eq!(hint_targets(&placement, &member.id, partition), expected);
            }
        }
        assert_eq!(ring.index_of(&gone).is_none(), ring.members().len() == 4);
    }
}
