//! What a client remembers of earlier requests, within bounds: who answered a key's last read first, what holds for the
//! reads of a bucket, and how often things happened.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use dynamo_core::types::{KeyHash, MemberId};
use dynamo_proto::v1;
use parking_lot::Mutex;

/// Keys whose fastest replica is remembered: at least so many of those read last, at most twice as many.
const KEYS_MAX: usize = 8192;
/// Buckets whose rules are remembered. More are learnt again and again.
const BUCKETS_MAX: usize = 1000;
/// One of so many reads that this client coordinates asks all primaries.
const SAMPLE: u64 = 32;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    fastest: Mutex<Fastest>,
    rules: Mutex<HashMap<String, v1::ReadRules>>,
    counts: Counts,
}

/// What a client has done since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Reads and writes of single keys that a node coordinated.
    pub served: u64,
    /// Of these, forwarded by the node that was asked to another one: 0 as long as the ring is current.
    pub forwarded: u64,
    /// Reads that this client coordinated itself.
    pub coordinated: u64,
    /// Reads that it was to coordinate and handed over to a node.
    pub handed_over: u64,
    /// Reads for which a second node was asked because the first took longer than it usually does.
    pub hedged: u64,
    /// Writes of keys whose fastest replica was known from a read.
    pub writes_after_read: u64,
    /// Of these, coordinated by that replica: it has surely seen what was read (paper: §5, read-your-writes).
    pub writes_at_fastest: u64,
}

#[derive(Debug, Default)]
struct Counts {
    served: AtomicU64,
    forwarded: AtomicU64,
    coordinated: AtomicU64,
    handed_over: AtomicU64,
    hedged: AtomicU64,
    writes_after_read: AtomicU64,
    writes_at_fastest: AtomicU64,
}

/// Two generations: when the younger one is full, the older one is forgotten.
#[derive(Debug, Default)]
struct Fastest {
    young: HashMap<KeyHash, MemberId>,
    old: HashMap<KeyHash, MemberId>,
}

impl Memory {
    /// A read of the key was answered first by this primary.
    pub(crate) fn answered_first(&self, key: KeyHash, member: MemberId) {
        let mut fastest = self.fastest.lock();
        if fastest.young.len() >= KEYS_MAX && !fastest.young.contains_key(&key) {
            fastest.old = std::mem::take(&mut fastest.young);
        }
        fastest.young.insert(key, member);
    }

    /// Who answered the key's last read first, if that is remembered.
    pub(crate) fn fastest(&self, key: KeyHash) -> Option<MemberId> {
        let fastest = self.fastest.lock();
        fastest.young.get(&key).or_else(|| fastest.old.get(&key)).cloned()
    }

    /// What holds for a bucket's reads, if that is known.
    pub(crate) fn rules(&self, bucket: &str) -> Option<v1::ReadRules> {
        self.rules.lock().get(bucket).copied()
    }

    /// Takes what a node says of a bucket, unless something newer is known.
    pub(crate) fn learn(&self, bucket: &str, told: &v1::ReadRules) {
        let mut rules = self.rules.lock();
        let known = rules.get(bucket);
        // The same version may tell otherwise after a change of the nodes' configuration.
        if known.is_none_or(|known| told.version >= known.version && told != known) {
            if rules.len() >= BUCKETS_MAX && known.is_none() {
                rules.clear();
            }
            rules.insert(bucket.to_owned(), *told);
        }
    }

    /// Forgets of which buckets only nodes may coordinate reads, so that it is asked again.
    pub(crate) fn forget_refusals(&self) {
        self.rules.lock().retain(|_, rules| !rules.nodes_only);
    }

    /// A node served a read or write of one key.
    pub(crate) fn served(&self, info: Option<&v1::ResponseInfo>) {
        add(&self.counts.served);
        if info.is_some_and(|info| info.hops > 0) {
            add(&self.counts.forwarded);
        }
    }

    /// This client coordinated a read, or began to and handed it over.
    pub(crate) fn coordinated(&self, itself: bool) {
        add(if itself {
            &self.counts.coordinated
        } else {
            &self.counts.handed_over
        });
    }

    /// Whether the next read asks all primaries, so that it is known how fast those are that are mostly left out.
    pub(crate) fn is_sample(&self) -> bool {
        self.counts
            .coordinated
            .load(Ordering::Relaxed)
            .is_multiple_of(SAMPLE)
    }

    /// A second node is asked for a read.
    pub(crate) fn hedged(&self) {
        add(&self.counts.hedged);
    }

    /// A write of a key whose last read `fastest` had answered first.
    pub(crate) fn wrote_after_read(&self, at_fastest: bool) {
        add(&self.counts.writes_after_read);
        if at_fastest {
            add(&self.counts.writes_at_fastest);
        }
    }

    /// The counts so far.
    pub(crate) fn stats(&self) -> Stats {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.counts;
        Stats {
            served: get(&counts.served),
            forwarded: get(&counts.forwarded),
            coordinated: get(&counts.coordinated),
            handed_over: get(&counts.handed_over),
            hedged: get(&counts.hedged),
            writes_after_read: get(&counts.writes_after_read),
            writes_at_fastest: get(&counts.writes_at_fastest),
        }
    }
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> MemberId {
        MemberId::new(name).unwrap()
    }

    #[test]
    fn d11_the_fastest_replicas_of_the_last_keys_are_kept_and_memory_is_bounded() {
        let memory = Memory::default();
        memory.answered_first(KeyHash(0), member("n1"));
        memory.answered_first(KeyHash(0), member("n2"));
        assert_eq!(memory.fastest(KeyHash(0)), Some(member("n2")));
        let last = 3 * KEYS_MAX as u64;
        for key in 1..=last {
            memory.answered_first(KeyHash(key), member("n1"));
        }
        assert_eq!(memory.fastest(KeyHash(0)), None);
        let kept = (last - KEYS_MAX as u64 + 1)..=last;
        assert!(kept.into_iter().all(|key| memory.fastest(KeyHash(key)).is_some()));
        let fastest = memory.fastest.lock();
        assert!(fastest.young.len() + fastest.old.len() <= 2 * KEYS_MAX);
    }

    #[test]
    fn newer_rules_replace_older_ones() {
        let memory = Memory::default();
        let rules = |version, last_write_wins| v1::ReadRules {
            version,
            last_write_wins,
            ..Default::default()
        };
        memory.learn("b", &rules(2, false));
        memory.learn("b", &rules(1, true));
        assert_eq!(memory.rules("b"), Some(rules(2, false)));
        memory.learn("b", &rules(2, true));
        assert_eq!(memory.rules("b"), Some(rules(2, true)));
        memory.learn("b", &rules(3, false));
        assert_eq!(memory.rules("b"), Some(rules(3, false)));
        for bucket in 0..2 * BUCKETS_MAX {
            memory.learn(&bucket.to_string(), &rules(1, false));
        }
        assert!(memory.rules.lock().len() <= BUCKETS_MAX);
    }
}
