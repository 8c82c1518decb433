//! Hints count toward W like data: they survive a loss of power like data, and once removed they stay so.

use std::{collections::BTreeMap, sync::Arc};

use dynamo_core::types::MemberId;
use dynamo_fault_fs::{Fault, Unsynced};
use dynamo_node::storage::{
    HintStore, ScanLimit, Store,
    hints::Hint,
    writer::{Durability, Mint},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{
    harness::{Machine, close, delta, key, minter, number, options, runtime, setting, submit},
    history::History,
};

type Place = (MemberId, u8);

const OWNERS: [&str; 2] = ["node-a", "node-b"];
const KEYS: u8 = 10;
const ROOM: u64 = 64 << 20;

/// D36, D39: a hint that was acknowledged as durable is there after a loss of power, unless its removal was; a hint whose
/// removal was is not. The count of hints is that of the ones that are there.
#[test]
fn a_loss_of_power_takes_no_durable_hint_and_brings_none_back() {
    let seed = setting("DYNAMO_TEST_SEED", 1);
    let mut random = StdRng::seed_from_u64(seed);
    let machine = Machine::new();
    let mut history = History::new();
    let (mut lost, mut removed, mut numbers) = (0, 0, 0);
    for life in 1..=setting("DYNAMO_POWER_LOSSES", 200) / 5 {
        let store: Arc<dyn Store> = Arc::new(machine.open().unwrap());
        let runtime = runtime();
        runtime.block_on(async {
            let mint = Mint::new(minter(life));
            let options = options(Durability::Every);
            let (hints, _failure) = HintStore::start(Arc::clone(&store), mint, options, ROOM).unwrap();
            let mut found = listed(&hints).await;
            let there = found
                .iter()
                .map(|(place, hint)| (place.clone(), number(&hint.state)));
            lost += history.recovered(&there.collect(), &format!("seed {seed}, life {life}"));

            machine
                .fs
                .fail_after(Fault::PowerOff, random.random_range(0..120));
            let mut other = minter(1_000_000 + life);
            let mut answers = Vec::new();
            for _ in 0..100 {
                let owner = MemberId::new(OWNERS[random.random_range(0..2)]).unwrap();
                let place = (owner, random.random_range(0..KEYS));
                if random.random_ratio(1, 4) {
                    let Some(hint) = found.remove(&place) else {
                        continue;
                    };
                    let write = history.submitted(place.clone(), None);
                    let done = hints.remove_if(&place.0, &hint.key, hint.digest).await;
                    if done == Ok(true) {
                        history.acknowledged(write);
                        removed += 1;
                    } else {
                        assert!(machine.fs.is_failing(), "{done:?}");
                        break;
                    }
                    continue;
                }
                numbers += 1;
                let mut state = found.remove(&place).map(|hint| hint.state);
                let delta = delta(&mut state, &mut other, numbers, random.random_range(0..2000));
                let (state, data_key) = (state.unwrap(), key(place.1));
                let digest = state.digest();
                let write = history.submitted(place.clone(), Some(numbers));
                let (keeper, owner, for_key) = (hints.clone(), place.0.clone(), data_key.clone());
                let kept = async move { keeper.hint(&owner, &for_key, delta, true).await };
                answers.push((write, submit(kept).await));
                found.insert(
                    place,
                    Hint {
                        key: data_key,
                        state,
                        digest,
                    },
                );
            }
            for (write, answer) in answers {
                if let Ok(committed) = answer.await.unwrap() {
                    assert!(committed.durable);
                    history.acknowledged(write);
                }
            }
        });
        drop(runtime);
        close(store);
        machine.lose_power(Unsynced::Torn {
            seed: random.random(),
        });
    }
    assert!(lost > 0 && removed > 0, "lost {lost}, removed {removed}");
}

/// All hints, as they are delivered; they have to agree with their count.
async fn listed(hints: &HintStore) -> BTreeMap<Place, Hint> {
    let mut found = BTreeMap::new();
    let limit = ScanLimit {
        entries: 1000,
        bytes: 1 << 30,
    };
    for (owner, count) in hints.owners() {
        let page = hints.scan(&owner, None, limit).await.unwrap();
        assert_eq!((page.damaged.len(), page.next), (0, None));
        assert_eq!(page.entries.len() as u64, count.records);
        for hint in page.entries {
            let number = hint.key.key()[0];
            found.insert((owner.clone(), number), hint);
        }
    }
    found
}
