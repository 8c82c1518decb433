//! Whose messages about data are taken. Paper: §4.8.1 (membership changes are explicit).

use crate::ring::Ring;
use crate::types::MemberId;

/// True if a member that uses the ring of `epoch` may read and write data here: `ring` lists it, or it knows of a later
/// one. Who was removed and comes back with an old ring and old data has no part in the cluster, and learns of that by
/// gossip.
pub fn may_send_data(ring: &Ring, sender: &MemberId, epoch: u64) -> bool {
    epoch > ring.epoch() || ring.index_of(sender).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Member;
    use crate::types::{ClusterId, Zone};

    #[test]
    fn a_removed_member_is_not_heard_unless_it_knows_a_later_ring() {
        let member = |name: &str| Member {
            id: MemberId::new(name).unwrap(),
            zone: Zone::new("z").unwrap(),
            weight: 1,
        };
        let (stays, goes) = (member("stays"), member("goes"));
        let first = Ring::bootstrap(ClusterId([1; 16]), vec![stays.clone(), goes.clone()], 8, 1).unwrap();
        let second = first.with_members(vec![stays.clone()]).unwrap();
        for (sender, epoch, admitted) in [
            (&stays, 1, true),
            (&stays, 2, true),
            (&goes, 0, false),
            (&goes, 1, false),
            (&goes, 2, false),
            (&goes, 3, true),
        ] {
            assert_eq!(
                may_send_data(&second, &sender.id, epoch),
                admitted,
                "{sender:?} {epoch}"
            );
        }
        assert!(may_send_data(&first, &goes.id, 1));
    }
}
