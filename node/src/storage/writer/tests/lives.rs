//! Lives of a whole node: its data, its hints and the mint that both share, through clean stops and losses of power.

use dynamo_core::types::MemberId;
use proptest::prelude::*;

use super::*;
use crate::storage::hints::HintStore;

#[derive(Debug, Clone, Copy)]
enum Step {
    Coordinate(u8),
    Hint(u8),
    Deliver(u8),
    Reap(u8),
}

#[derive(Debug, Clone)]
struct Life {
    durability: Durability,
    steps: Vec<Step>,
    /// None: the life ends with a clean stop. Else the power fails, and of what was not synced so many batches are left
    /// in the stores of data and hints.
    power_fails: Option<(usize, usize)>,
}

fn life() -> impl Strategy<Value = Life> {
    let step = prop_oneof![
        (0u8..3).prop_map(Step::Coordinate),
        (0u8..3).prop_map(Step::Hint),
        (0u8..3).prop_map(Step::Deliver),
        (0u8..3).prop_map(Step::Reap),
    ];
    let modes = prop::sample::select(vec![
        Durability::Every,
        HOUR,
        Durability::OneOfN(Duration::from_hours(1)),
    ]);
    let power_fails = prop::option::of((0usize..8, 0usize..8));
    (modes, prop::collection::vec(step, 0..10), power_fails).prop_map(|(durability, steps, power_fails)| {
        Life {
            durability,
            steps,
            power_fails,
        }
    })
}

struct Node {
    data: TestStore,
    hints: TestStore,
}

/// What is left when the coordination of a write was announced: the dot, which may be anywhere by now.
async fn announced(prepared: Prepared) -> Dot {
    let dot = prepared.dot;
    prepared.committed().await.unwrap();
    dot
}

impl Node {
    async fn live(&self, life: Life, random_id: u64) -> Vec<Dot> {
        for store in [&self.data, &self.hints] {
            store.set(|state| state.calls_left = None);
            store.set(|state| state.fails_at = None);
        }
        let started = durable::start(&self.data, random_id).unwrap();
        let mint = Mint::new(started.minter());
        let options = options(life.durability);
        let data = Arc::new(self.data.clone());
        let (writer, _failure) = Writer::start_with(data, mint.clone(), options, None).unwrap();
        let hints = Arc::new(self.hints.clone());
        let (hints, _failure) = HintStore::start(hints, mint, options, u64::MAX / 2).unwrap();
        let mut dots = Vec::new();
        for step in life.steps {
            dots.extend(self.step(step, &writer, &hints).await);
        }
        match life.power_fails {
            None => {
                hints.stop().await.unwrap();
                let minter = writer.stop().await.unwrap();
                durable::stop(&self.data, &minter).unwrap();
            }
            Some((data_kept, hints_kept)) => {
                for store in [&self.data, &self.hints] {
                    store.set(|state| state.calls_left = Some(0));
                }
                drop((writer, hints));
                until("the threads have ended", || {
                    [&self.data, &self.hints]
                        .iter()
                        .all(|store| Arc::strong_count(&store.control) == 1)
                })
                .await;
                self.data.memory.crash_keeping(data_kept);
                self.hints.memory.crash_keeping(hints_kept);
            }
        }
        dots
    }

    async fn step(&self, step: Step, writer: &Writer, hints: &HintStore) -> Option<Dot> {
        let owner = MemberId::new("owner").unwrap();
        let name = |number: u8| key(&number.to_string());
        match step {
            Step::Coordinate(number) => {
                let prepared = writer.coordinate(name(number), update("v"), false).await.unwrap();
                Some(announced(prepared).await)
            }
            Step::Hint(number) => {
                let prepared = hints.coordinate(&owner, &name(number), update("v"), false).await;
                Some(announced(prepared.unwrap()).await)
            }
            Step::Deliver(number) => {
                if let Some(state) = hints.read(&name(number)).await.unwrap() {
                    let removed = hints.remove_if(&owner, &name(number), state.digest()).await;
                    assert_eq!(removed, Ok(true));
                    // The owner may be this node by now.
                    writer.merge(name(number), state, false).await.unwrap();
                }
                None
            }
            Step::Reap(number) => {
                if let Some(state) = records::read(&self.data, &name(number)).unwrap() {
                    let expected = Expected {
                        digest: state.digest(),
                        mark: None,
                    };
                    let reaped = writer.swap(name(number), expected, Swap::Delete, true).await;
                    assert!(matches!(reaped, Ok(Some(_))));
                }
                None
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// D32: whatever was synced of either store when a life ended, and whatever was delivered or reaped, no dot that left
    /// the node is ever given again.
    #[test]
    fn no_dot_is_given_twice_by_data_and_hints_together(lives in prop::collection::vec(life(), 1..6)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let node = Node { data: TestStore::default(), hints: TestStore::default() };
        let mut all = BTreeSet::new();
        for (random_id, life) in (100..).zip(lives) {
            for dot in runtime.block_on(node.live(life, random_id)) {
                prop_assert!(all.insert(dot), "{dot} is given twice");
            }
        }
    }
}
