//! Disks that go back in time, rot, fill up and fail.

use std::{
    collections::BTreeSet, fs, os::unix::fs::FileExt as _, path::Path, process::Command, time::Duration,
};

use dynamo_client::{Context, WriteOptions};
use dynamo_proto::{admin::LocalGetRequest, fault::SetRequest};
use rand::{RngExt as _, SeedableRng as _, distr::Alphanumeric, rngs::SmallRng};

use crate::{
    support::{Did, Writers, all_is_kept, numbers},
    world::{Shape, World, name, put_all, scenario, until, w},
};

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(copied.success());
}

fn files(dir: &Path, kind: &str) -> Vec<std::path::PathBuf> {
    let named = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with(kind) || name.ends_with(kind)
    };
    let all = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = all.filter(named).collect();
    found.sort();
    found
}

fn flip(path: &Path, place: u64, bit: u8) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], place).unwrap();
}

/// A node comes back with an old copy of its volume: the copy is set aside, the node begins another life, nothing newer is
/// overwritten, and it gets back what it lacks.
#[test]
fn c08_an_old_copy_of_a_volume_overwrites_nothing() {
    scenario(Shape::FIVE, async |mut world: World| {
        let client = world.client().await;
        let keys = world.keys_of(2, 30).await;
        let writers = Writers::start(&client, 4, 20, 8);
        put_all(&client, &keys, "1").await;
        world.ring.kill(&name(2)).await.unwrap();
        let old = world.dir.path().join("old");
        copy(&world.data(2), &old);
        world.until_whole().await;
        put_all(&client, &keys, "2").await;
        let before = world.status(2).await;
        world.ring.kill(&name(2)).await.unwrap();
        fs::remove_dir_all(world.data(2)).unwrap();
        copy(&old, &world.data(2));
        world.until_whole().await;
        let did = writers.stop().await;
        world.until_equal().await;
        let after = world.status(2).await;
        assert!(
            after.incarnation_generation > before.incarnation_generation,
            "another life"
        );
        for key in &keys {
            assert_eq!(world.local_values(2, key).await, ["2"]);
        }
        all_is_kept(&client, &did.history).await;
    });
}

/// The record of one key is damaged on one replica, and then the key is written through that node: its reads are never "not
/// found" or wrong, and in the end both values are on every replica.
#[test]
fn c09_a_write_through_a_damaged_record_survives_beside_what_it_could_not_read() {
    scenario(Shape::FIVE, async |mut world: World| {
        // So random that it is not compressed.
        let first: String = SmallRng::seed_from_u64(9)
            .sample_iter(&Alphanumeric)
            .take(600)
            .map(char::from)
            .collect();
        let client = world.client().await;
        client
            .put_with("key", first.clone(), &Context::none(), &w(3))
            .await
            .unwrap();
        let (primaries, _) = world.placed("", "key").await;
        let damaged = primaries[0];
        let through = world.client_of(&[damaged]).await;
        // The first start after a crash moves what the log has to a table.
        world.ring.kill(&name(damaged)).await.unwrap();
        world.until_whole().await;
        world.ring.kill(&name(damaged)).await.unwrap();
        let mut flips = 0;
        for table in files(&world.data(damaged).join("data"), ".sst") {
            let bytes = fs::read(&table).unwrap();
            let marker = &first.as_bytes()[300..316];
            if let Some(place) = bytes.windows(marker.len()).position(|part| part == marker) {
                flip(&table, place as u64, 0);
                flips += 1;
            }
        }
        assert!(flips > 0, "no table has the value");
        let second = "second".to_owned();
        until("the key is written through the node", async || {
            world.ring.launch(&name(damaged)).unwrap();
            if let Ok(found) = through.get("key").await {
                assert_eq!(found.single().map(|value| &value[..]), Some(first.as_bytes()));
            }
            through.put("key", second.clone(), &Context::none()).await.is_ok()
        })
        .await;
        world.until_whole().await;
        world.until_equal().await;
        for node in primaries {
            let values: BTreeSet<String> = world.local_values(node, "key").await.into_iter().collect();
            assert_eq!(
                values,
                BTreeSet::from([first.clone(), second.clone()]),
                "node {node}"
            );
        }
    });
}

/// Guarantee 11: a bit flips in a table, a log, a manifest while a node is down. No wrong value is ever served, and in the end
/// the node has everything again.
#[test]
fn c16_flipped_bits_are_never_served_and_repaired() {
    scenario(Shape::FIVE, async |mut world: World| {
        let mut random = SmallRng::seed_from_u64(16);
        let client = world.client().await;
        let mut did = Did::default();
        for (node, kind) in [(1, ".sst"), (2, ".log"), (3, "MANIFEST")] {
            // A second damaged replica of the same key would be bad luck, and none of the node's business.
            world.until_equal().await;
            let count = async || futures::StreamExt::count(client.list_keys("")).await;
            let before = count().await;
            let writers = Writers::start_from(&client, 4 * node as u32, 4, 30, 16);
            until("some writes are there", async || count().await > before + 80).await;
            world.ring.kill(&name(node)).await.unwrap();
            if kind == ".sst" {
                // Its start makes one of the log.
                world.until_whole().await;
                world.ring.kill(&name(node)).await.unwrap();
            }
            let files = files(&world.data(node).join("data"), kind);
            let largest = files
                .iter()
                .max_by_key(|file| fs::metadata(file).unwrap().len())
                .unwrap();
            let bytes = fs::metadata(largest).unwrap().len();
            flip(largest, random.random_range(0..bytes), random.random_range(0..8));
            world.until_whole().await;
            did.merge(writers.stop().await);
        }
        let keys: Vec<String> = did.history.keys().cloned().collect();
        until("every primary has a readable copy of every key", async || {
            world.ring.launch("all").unwrap();
            readable(&world, &keys).await
        })
        .await;
        world.until_whole().await;
        world.until_equal().await;
        all_is_kept(&client, &did.history).await;
        for key in &keys {
            let found = client.get(key).await;
            let found = found.map(|found| numbers(found.values())).unwrap_or_default();
            for node in world.placed("", key).await.0 {
                let local = world.local("", node, key).await.versions;
                assert_eq!(
                    numbers(local.iter().map(|version| &version.value)),
                    found,
                    "{key} on node {node}"
                );
            }
        }
    });
}

async fn readable(world: &World, keys: &[String]) -> bool {
    for key in keys {
        for node in world.placed("", key).await.0 {
            let request = LocalGetRequest {
                bucket: String::new(),
                key: key.clone().into_bytes().into(),
            };
            if world.admin(node).local_get(request).await.is_err() {
                return false;
            }
        }
    }
    true
}

/// Guarantee 13: the disk of one of five fills up, to below what is kept free and then to the last byte. All writes are accepted
/// elsewhere, the node still reads, and once there is space it takes writes again and has everything.
#[test]
fn c15_one_full_disk_stops_one_node_only() {
    scenario(Shape::FIVE, async |mut world: World| {
        let client = world.client().await;
        let keys = world.keys_of(2, 10).await;
        put_all(&client, &keys, "1").await;
        world.ring.stop(&name(2)).await.unwrap();
        let data = world.data(2);
        world.network.small_disk(2, &data, 64);
        world.until_whole().await;
        let writers = Writers::start(&client, 4, 20, 15);
        let ballast = data.join("ballast");
        let ballast = ballast.display();
        let all_but = format!(
            "free=$(stat -f -c %f {0}); dd if=/dev/zero of={ballast} bs=4k count=$((free - 1024)) || true",
            data.display()
        );
        world.network.sh(2, &all_but);
        let direct = world.client_of(&[2]).await;
        let soon = WriteOptions {
            deadline: Some(Duration::from_millis(500)),
            ..w(1)
        };
        let context = Context::none();
        until("the node refuses writes", async || {
            let refused = direct.put_with(&keys[0], "direct", &context, &soon).await;
            refused.is_err_and(|error| error.reason() == "DISK_FULL")
        })
        .await;
        for key in &keys {
            assert!(!world.local_values(2, key).await.is_empty(), "it reads");
        }
        world
            .network
            .sh(2, &format!("dd if=/dev/zero of={ballast}.more bs=4k || true"));
        let watched = world.client().await;
        for number in 0..100 {
            watched
                .put(format!("watched-{number}"), "1", &context)
                .await
                .unwrap();
        }
        let did = writers.stop().await;
        let (_, unknown, refused) = did.counts();
        assert_eq!((unknown, refused), (0, 0), "{:?}", did.failures);
        world.network.sh(2, &format!("rm {ballast} {ballast}.more"));
        world.until_whole().await;
        until("the node takes writes", async || {
            world.ring.launch("all").unwrap();
            direct.put_with("again", "direct", &context, &soon).await.is_ok()
        })
        .await;
        world.until_equal().await;
        all_is_kept(&client, &did.history).await;
    });
}

/// Guarantee 12: a sync fails. The process ends, the write is not acknowledged by that node, and it comes back as another life.
#[test]
fn c17_a_failed_sync_ends_the_process_and_its_life() {
    scenario(Shape::FIVE, async |mut world: World| {
        let client = world.client().await;
        let writers = Writers::start(&client, 4, 20, 17);
        let before = world.status(2).await;
        let key = &world.keys_of(2, 1).await[0];
        let direct = world.client_of(&[2]).await;
        let faults = SetRequest {
            fail_syncs: true,
            ..SetRequest::default()
        };
        world.faults(2, faults).await;
        let all = WriteOptions {
            deadline: Some(Duration::from_secs(2)),
            pw: Some(dynamo_client::Replicas::All),
            ..w(3)
        };
        direct
            .put_with(key, "1", &Context::none(), &all)
            .await
            .unwrap_err();
        let mut ended = Vec::new();
        until("the process ends", async || {
            ended.extend(world.ring.ended());
            !ended.is_empty()
        })
        .await;
        let how = ended[0].to_string();
        assert!(
            how.starts_with("node-2 ended by itself with exit status: 75"),
            "{how}"
        );
        let did = writers.stop().await;
        world.until_whole().await;
        let after = world.status(2).await;
        assert_eq!(after.incarnation_generation, before.incarnation_generation + 1);
        world.until_equal().await;
        all_is_kept(&client, &did.history).await;
    });
}
