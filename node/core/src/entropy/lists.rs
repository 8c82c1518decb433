//! Two lists of the keys of some leaves, the peer's and this replica's, read side by side. Holds a page or two of each.

use std::collections::BTreeMap;

use super::exchange::{KEYS_PER_MESSAGE, KeyPage, KeySummary};
use super::tree::TreeShape;
use crate::listing::Position;

/// Record hashes by key.
pub(super) type Keys = BTreeMap<Position, u64>;

/// Whose list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    Peer,
    Local,
}

#[derive(Debug)]
pub(super) struct Lists {
    shape: TreeShape,
    /// Ascending.
    leaves: Vec<u32>,
    peer: List,
    local: List,
}

/// What is read and not yet compared.
#[derive(Debug, Default)]
struct List {
    keys: Keys,
    looked: Looked,
}

/// How far a list has been read. In order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Looked {
    UpTo(Option<Position>),
    ToTheEnd,
}

impl Lists {
    pub(super) fn new(shape: TreeShape, leaves: Vec<u32>) -> Self {
        Self {
            shape,
            leaves,
            peer: List::default(),
            local: List::default(),
        }
    }

    pub(super) fn leaves(&self) -> &[u32] {
        &self.leaves
    }

    /// The page to read next, and behind which position: the list that is behind is read on, the peer's first. `None`:
    /// both are at their end.
    pub(super) fn next(&self) -> Option<(Whose, Option<Position>)> {
        let (whose, list) = if self.peer.looked > self.local.looked {
            (Whose::Local, &self.local)
        } else {
            (Whose::Peer, &self.peer)
        };
        match &list.looked {
            Looked::UpTo(position) => Some((whose, position.clone())),
            Looked::ToTheEnd => None,
        }
    }

    /// Adds a page. False if it is not what was asked for.
    pub(super) fn take(&mut self, whose: Whose, page: KeyPage) -> bool {
        let list = match whose {
            Whose::Peer => &mut self.peer,
            Whose::Local => &mut self.local,
        };
        list.take(page, &self.leaves, self.shape)
    }

    /// Takes out every key that both lists have been read beyond: the peer's keys, and this replica's.
    pub(super) fn decided(&mut self) -> (Keys, Keys) {
        let up_to = self.peer.looked.clone().min(self.local.looked.clone());
        (self.peer.take_up_to(&up_to), self.local.take_up_to(&up_to))
    }
}

impl List {
    fn take(&mut self, page: KeyPage, leaves: &[u32], shape: TreeShape) -> bool {
        let Looked::UpTo(after) = &self.looked else {
            return false;
        };
        let mut last = after.as_ref();
        for KeySummary { position, .. } in &page.keys {
            let leaf = shape.leaf_of(position.hash());
            if last.is_some_and(|last| position <= last) || leaves.binary_search(&leaf).is_err() {
                return false;
            }
            last = Some(position);
        }
        if page.keys.len() > KEYS_PER_MESSAGE || (page.more && page.keys.is_empty()) {
            return false;
        }
        self.looked = if page.more {
            Looked::UpTo(last.cloned())
        } else {
            Looked::ToTheEnd
        };
        let keys = page.keys.into_iter().map(|key| (key.position, key.hash));
        self.keys.extend(keys);
        true
    }

    fn take_up_to(&mut self, up_to: &Looked) -> Keys {
        let undecided = match up_to {
            Looked::ToTheEnd => Keys::new(),
            Looked::UpTo(None) => return Keys::new(),
            Looked::UpTo(Some(last)) => {
                let mut behind = self.keys.split_off(last);
                if let Some(hash) = behind.remove(last) {
                    self.keys.insert(last.clone(), hash);
                }
                behind
            }
        };
        std::mem::replace(&mut self.keys, undecided)
    }
}

impl Default for Looked {
    fn default() -> Self {
        Self::UpTo(None)
    }
}
