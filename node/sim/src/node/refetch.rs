//! Records whose checksum is wrong: never served, and fetched anew from the other primaries.
//!
//! What comes back must not be less than what was acknowledged here, so as many primaries must answer as a suspect store
//! needs for one partition: one of them is among any W that acknowledged a write. The dead are not among them.

use std::cell::RefCell;
use std::rc::Rc;

use dynamo_core::entropy::TreeState;
use dynamo_core::version::KeyState;

use super::Live;
use crate::disk::{Place, Value};
use crate::keys::KeyIx;
use crate::messages::{NodeIx, Reply, Request};
use crate::shared::Timer;

const ROUND_MS: u64 = 300;

impl Live<'_> {
    /// A record cannot be read.
    pub fn refetch(&mut self, key: KeyIx) {
        let (me, now_us) = (self.me, self.sh.now_us);
        self.sh
            .trace
            .line(now_us, || format!("n{me} cannot read key {key}"));
    }

    /// Asks the other primaries for all damaged records; also finds those that nobody has read.
    pub fn refetch_round(&mut self) {
        self.timer(ROUND_MS, Timer::Repair);
        let damaged: Vec<KeyIx> = self
            .disk
            .corrupted()
            .filter_map(|place| match place {
                Place::Data(key) => Some(*key),
                _ => None,
            })
            .filter(|key| !self.p.refetching.contains(key))
            .collect();
        for key in damaged {
            self.fetch(key);
        }
    }

    fn fetch(&mut self, key: KeyIx) {
        let Some(rings) = &self.p.rings else { return };
        let primaries = &rings.base().of(self.sh.keys.get(key).hash).0;
        let dead = rings.layouts.dead();
        let others: Vec<NodeIx> = primaries
            .iter()
            .copied()
            .filter(|node| *node != self.me && !dead.contains(&self.sh.members[*node]))
            .collect();
        let n = primaries.len();
        // One that the base ring does not list has no say in W acknowledgements.
        let needed = others.len().min(n + 1 - (self.sh.knobs.w as usize).clamp(1, n));
        if !self.serving() {
            return;
        }
        if others.is_empty() {
            self.replace(key, KeyState::new());
            return;
        }
        self.p.refetching.insert(key);
        let answers: Rc<RefCell<(usize, usize, KeyState)>> =
            Rc::new(RefCell::new((0, others.len(), KeyState::new())));
        for other in others {
            let answers = Rc::clone(&answers);
            let timeout_ms = self.sh.knobs.call_timeout_ms;
            self.call(
                other,
                timeout_ms,
                Request::Read { key, fallback: false },
                move |live, result| {
                    let mut all = answers.borrow_mut();
                    all.1 -= 1;
                    if let Ok(Reply::Read {
                        state,
                        suspect: false,
                    }) = result
                    {
                        all.0 += 1;
                        if let Some(state) = state {
                            all.2.merge(&state);
                        }
                    }
                    if all.1 > 0 {
                        return;
                    }
                    live.p.refetching.remove(&key);
                    if all.0 >= needed {
                        live.replace(key, std::mem::take(&mut all.2));
                    }
                },
            );
        }
    }

    fn replace(&mut self, key: KeyIx, state: KeyState) {
        if !self.disk.is_corrupt(Place::Data(key)) {
            return;
        }
        self.enqueue(
            0,
            true,
            move |live, group| {
                // An operation before it in the group may have replaced the record already.
                if live.state_in_group(group, Place::Data(key)).is_err() {
                    let state = (state != KeyState::new()).then(|| Rc::new(state));
                    if let Some(state) = &state {
                        group.brings(key, Rc::clone(state));
                    }
                    group.set(Place::Data(key), state.map(Value::State));
                    live.sh.stats.refetched += 1;
                }
                Ok(())
            },
            move |live, _| {
                // The tree still counts what could not be read.
                if let Some(partition) = live.partition_of(key)
                    && live.p.trees.state(partition) != TreeState::Unknown
                {
                    live.p.trees.rebuild(partition);
                }
            },
        );
    }
}
