//! Which nodes of several rings stand for one replica of a write.

use crate::types::MemberId;

/// One of the N replicas of a key, while several rings are written to: it has a write once all of its nodes have it, each
/// for itself or through a fallback with a hint. With one ring, it is one node.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Slot {
    /// Of each ring one, without repetitions; the base ring's first.
    pub members: Vec<MemberId>,
}

/// Pairs the preference lists of a key in several rings, the base ring's first: common nodes with themselves, the others in
/// order. So W slots are W nodes of every ring, whatever the others do.
///
/// Where a list is longer than the base ring's, each further node is a slot of its own.
pub fn slots(lists: &[Vec<MemberId>]) -> Vec<Slot> {
    let mut lists = lists.iter();
    let base = lists.next().map_or(&[][..], Vec::as_slice);
    let mut slots: Vec<Slot> = base.iter().map(|member| vec![member.clone()].into()).collect();
    for list in lists {
        add(&mut slots, base, list);
    }
    slots
}

fn add(slots: &mut Vec<Slot>, base: &[MemberId], list: &[MemberId]) {
    let mut others = list.iter().filter(|member| !base.contains(member));
    for (slot, member) in slots.iter_mut().zip(base) {
        if list.contains(member) {
            continue;
        }
        if let Some(other) = others.next()
            && !slot.members.contains(other)
        {
            slot.members.push(other.clone());
        }
    }
    slots.extend(others.map(|other| vec![other.clone()].into()));
}

impl From<Vec<MemberId>> for Slot {
    fn from(members: Vec<MemberId>) -> Self {
        Self { members }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &str) -> Vec<MemberId> {
        names
            .split_whitespace()
            .map(|name| MemberId::new(name).unwrap())
            .collect()
    }

    fn paired(lists: &[&str]) -> Vec<String> {
        let lists: Vec<_> = lists.iter().map(|names| list(names)).collect();
        let text = |slot: Slot| slot.members.iter().map(MemberId::as_str).collect::<String>();
        slots(&lists).into_iter().map(text).collect()
    }

    #[test]
    fn common_nodes_pair_with_themselves_and_the_others_in_order() {
        assert_eq!(paired(&["a b c"]), ["a", "b", "c"]);
        assert_eq!(paired(&["a b c", "c a b"]), ["a", "b", "c"]);
        assert_eq!(paired(&["a b c", "d b a"]), ["a", "b", "cd"]);
        assert_eq!(paired(&["a b c", "d e f"]), ["ad", "be", "cf"]);
        assert_eq!(paired(&["a b c", "d b a", "e b d"]), ["ae", "b", "cd"]);
        assert_eq!(paired(&["a b c", "d b a", "d b e"]), ["ad", "b", "cde"]);
        assert_eq!(paired(&["a", "b c"]), ["ab", "c"]);
        assert_eq!(paired(&["a b", "b"]), ["a", "b"]);
    }
}
