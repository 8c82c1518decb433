//! Hints whose holder or target is in trouble.

use std::fs;

use dynamo_client::{Context, WriteOptions};

use crate::world::{Shape, World, name, scenario, until, w};

/// A key is deleted while a primary is away, and a fallback keeps the tombstone as a hint and is away when the others could have
/// forgotten it. The key is created anew: the late hint takes nothing away.
#[test]
fn c10_a_late_tombstone_does_not_take_what_was_created_since() {
    scenario(Shape::FIVE, async |mut world: World| {
        let client = world.client().await;
        let (primaries, fallbacks) = world.placed("", "key").await;
        let away = primaries[2];
        let others: Vec<usize> = world.all().into_iter().filter(|node| *node != away).collect();
        client
            .put_with("key", "old", &Context::none(), &w(3))
            .await
            .unwrap();
        let found = client.get("key").await.unwrap();
        for fallback in &fallbacks {
            world.pause_task(*fallback, "hints", true).await;
        }
        world.network.split(&[away], &others);
        for other in &others {
            world.sees_down(*other, away).await;
        }
        client.delete("key", &found.context).await.unwrap();
        let mut holder = None;
        until("a fallback keeps the tombstone", async || {
            for fallback in &fallbacks {
                if world.hints_for(*fallback, away).await > 0 {
                    holder = Some(*fallback);
                }
            }
            holder.is_some()
        })
        .await;
        let holder = holder.unwrap();
        world.ring.kill(&name(holder)).await.unwrap();
        world.network.heal();
        until("the tombstone is on all primaries", async || {
            for node in &primaries {
                let copy = world.local("", *node, "key").await;
                if !copy.versions.is_empty() || !copy.state.unwrap().present {
                    return false;
                }
            }
            true
        })
        .await;
        // Ten times as long as it takes to reap; what must not happen in that time cannot be waited for otherwise.
        tokio::time::sleep(std::time::Duration::from_secs(4)).await;
        for node in &primaries {
            let kept = world.local("", *node, "key").await.state.unwrap().present;
            assert!(kept, "reaped while a member that may have a hint is away");
        }
        client
            .put_with("key", "new", &Context::none(), &w(3))
            .await
            .unwrap();
        world.ring.start_again("all").await.unwrap();
        for fallback in fallbacks {
            world.pause_task(fallback, "hints", false).await;
        }
        world.until_equal().await;
        for node in primaries {
            assert_eq!(world.local_values(node, "key").await, ["new"]);
        }
    });
}

/// The target of hints loses its volume: the hints go to its next life.
#[test]
fn c12_hints_reach_the_next_life_of_a_target_that_lost_its_volume() {
    scenario(Shape::FIVE, async |mut world: World| {
        let client = world.client().await;
        let keys = world.keys_of(2, 40).await;
        let before = world.status(2).await;
        world.ring.kill(&name(2)).await.unwrap();
        for node in [1, 3, 4, 5] {
            world.sees_down(node, 2).await;
        }
        for key in &keys {
            client.put_with(key, "1", &Context::none(), &w(3)).await.unwrap();
        }
        let mut hints = 0;
        for node in [1, 3, 4, 5] {
            hints += world.hints_for(node, 2).await;
        }
        assert!(hints >= keys.len() as u64, "{hints}");
        fs::remove_dir_all(world.data(2)).unwrap();
        world.until_whole().await;
        world.until_equal().await;
        let after = world.status(2).await;
        assert!(after.incarnation_generation > before.incarnation_generation);
        for key in &keys {
            assert_eq!(world.local_values(2, key).await, ["1"]);
        }
    });
}

/// No room for hints is no reason to refuse a write: hints are declined, and exchanges bring what they would have.
#[test]
fn c13_a_spent_budget_of_hints_fails_no_write() {
    let shape = Shape {
        configure: |config| config.hints.bytes_max = 4 << 10,
        ..Shape::FIVE
    };
    scenario(shape, async |mut world: World| {
        let client = world.client().await;
        let keys = world.keys_of(2, 100).await;
        world.ring.kill(&name(2)).await.unwrap();
        let value = "v".repeat(500);
        let two = WriteOptions::default();
        for key in &keys {
            client
                .put_with(key, value.clone(), &Context::none(), &two)
                .await
                .unwrap();
        }
        let mut declined = 0;
        for node in [1, 3, 4, 5] {
            let hints = world.hints(node).await;
            assert!(hints.bytes <= hints.bytes_max, "{hints:?}");
            declined += hints.declined;
        }
        assert!(declined > 0, "there was room");
        world.until_whole().await;
        world.until_equal().await;
        for key in &keys {
            assert_eq!(world.local_values(2, key).await, [value.as_str()]);
        }
    });
}
