//! Who a node is: not its clock, not its address, not a volume from earlier.

use std::{
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use bytes::Bytes;
use dynamo_client::{Client, Context};
use dynamo_proto::{
    admin::{BootstrapRequest, Member, PeersRequest, admin_client::AdminClient},
    fault::SetRequest,
};

use crate::{
    support::{Writers, all_is_kept},
    world::{Shape, World, name, put_all, scenario, until},
};

/// A node that is not of the ring, but where a node of the ring is, or was.
struct Stray(Child);

impl Stray {
    /// In the place of this node, and at its addresses.
    fn start(world: &World, node: usize, data: &Path, seeds: &[usize]) -> Self {
        let place = &world.network.places()[node - 1];
        let first = world.ring.port_base() + 10 * (node as u16 - 1);
        let listen = |offset: u16| format!("{}:{}", place.ip, first + offset);
        let seed = |seed: &usize| world.ring.nodes()[seed - 1].addresses().peer.to_string();
        let child = Command::new(&place.enter[0])
            .args(&place.enter[1..])
            // It goes when this thread does.
            .args([
                "setpriv",
                "--pdeathsig",
                "KILL",
                "--",
                env!("CARGO_BIN_EXE_dynamo-node"),
            ])
            .arg("--data-dir")
            .arg(data)
            .args(["--advertise-host", &place.ip.to_string(), "--log-level", "off"])
            .args(["--client-listen", &listen(0)])
            .args(["--peer-listen", &listen(1)])
            .args(["--admin-listen", &listen(2)])
            .args(["--http-listen", &listen(3)])
            .args(seeds.iter().flat_map(|node| ["--seed".to_owned(), seed(node)]))
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn skew(clock_skew_ms: i64) -> SetRequest {
    SetRequest {
        clock_skew_ms,
        ..SetRequest::default()
    }
}

/// One history: siblings, what replaces them, a delete, and what comes after it. Returns what is there after each step.
async fn play(client: &Client, key: &str) -> Vec<Vec<Bytes>> {
    let mut seen = Vec::new();
    for round in 0..3 {
        for value in ["a", "b"] {
            client
                .put(key, format!("{value}{round}"), &Context::none())
                .await
                .unwrap();
        }
        let found = client.get(key).await.unwrap();
        client
            .put(key, format!("both{round}"), &found.context)
            .await
            .unwrap();
        let mut values: Vec<Bytes> = found.values().cloned().collect();
        values.sort();
        seen.push(values);
        let found = client.get(key).await.unwrap();
        seen.push(found.values().cloned().collect());
        if round < 2 {
            client.delete(key, &found.context).await.unwrap();
            assert!(client.get(key).await.unwrap_err().is_not_found());
        }
    }
    seen
}

/// Guarantee 16: one clock is an hour ahead, one ten years behind, one jumps. What clients see is what they see with good clocks.
#[test]
fn c22_wrong_clocks_change_nothing() {
    const HOUR: i64 = 3_600_000;
    scenario(Shape::FIVE, async |mut world: World| {
        let client = world.client().await;
        let mut good = Vec::new();
        for number in 0..10 {
            good.push(play(&client, &format!("good-{number}")).await);
        }
        world.faults(1, skew(HOUR)).await;
        world.faults(2, skew(-10 * 365 * 24 * HOUR)).await;
        let writers = Writers::start(&client, 4, 20, 22);
        let mut bad = Vec::new();
        for number in 0..10 {
            let jump = if number % 2 == 0 { HOUR } else { -HOUR };
            world.faults(3, skew(jump)).await;
            bad.push(play(&client, &format!("bad-{number}")).await);
        }
        assert_eq!(bad, good);
        let did = writers.stop().await;
        let (_, unknown, refused) = did.counts();
        assert_eq!((unknown, refused), (0, 0), "{:?}", did.failures);
        for node in [1, 2, 3] {
            world.faults(node, SetRequest::default()).await;
        }
        world.until_equal().await;
        all_is_kept(&client, &did.history).await;
    });
}

/// A node was given a new volume, and then its old one comes back elsewhere, beside it: the ghost is told, and ends; the ring
/// stays; nothing that was replaced or deleted since returns.
#[test]
fn c23_the_ghost_of_an_earlier_life_changes_nothing() {
    let shape = Shape {
        spare: 1,
        ..Shape::FIVE
    };
    scenario(shape, async |mut world: World| {
        let client = world.client().await;
        let keys = world.keys_of(3, 20).await;
        put_all(&client, &keys, "1").await;
        let rings = world.rings().await;
        // After three seconds in use a store is no longer taken for a new one.
        tokio::time::sleep(Duration::from_secs(4)).await;
        world.ring.kill(&name(3)).await.unwrap();
        let old = world.dir.path().join("ghost");
        std::fs::rename(world.data(3), &old).unwrap();
        world.until_whole().await;
        world.until_equal().await;
        put_all(&client, &keys, "2").await;
        let mut ghost = Stray::start(&world, 6, &old, &[1, 2]);
        until("the ghost ends", async || {
            world.ring.launch("all").unwrap();
            ghost.0.try_wait().unwrap().is_some()
        })
        .await;
        world.until_equal().await;
        for key in &keys {
            for node in world.placed("", key).await.0 {
                assert_eq!(world.local_values(node, key).await, ["2"], "{key} on node {node}");
            }
        }
        assert_eq!(world.rings().await, rings);
    });
}

/// Two nodes come back at each other's addresses, and a node of another cluster at the address of a third: nobody takes one for
/// another, and no data cross.
#[test]
fn c24_an_address_is_nobodys_identity() {
    scenario(Shape::FIVE, async |mut world: World| {
        let client = world.client().await;
        let rings = world.rings().await;
        let writers = Writers::start(&client, 4, 20, 24);
        world.ring.stop(&name(1)).await.unwrap();
        world.ring.stop(&name(2)).await.unwrap();
        world.ring.swap_places(&name(1), &name(2)).unwrap();
        world.until_whole().await;

        // A client that is told an address takes whoever is there for its cluster.
        let did = writers.stop().await;
        world.ring.stop(&name(3)).await.unwrap();
        let foreign = world.dir.path().join("foreign");
        let stray = Stray::start(&world, 3, &foreign, &[4, 5]);
        let address = world.ring.nodes()[2].addresses();
        let request = BootstrapRequest {
            cluster_id: Bytes::from_static(&[7; 16]),
            member_id: name(3),
            members: vec![Member {
                member_id: name(3),
                peer_address: address.peer.to_string(),
                ..Member::default()
            }],
            partitions: 32,
            factor: 1,
        };
        until(
            "the other cluster is there",
            async || match AdminClient::connect(format!("http://{}", address.admin)).await {
                Ok(mut admin) => admin.bootstrap(request.clone()).await.is_ok(),
                Err(_) => false,
            },
        )
        .await;
        let theirs = world.client_of(&[3]).await;
        until("the other cluster takes a write", async || {
            theirs.put("foreign", "1", &Context::none()).await.is_ok()
        })
        .await;
        for node in [1, 2, 4, 5] {
            world.sees_down(node, 3).await;
        }
        // Some rounds of gossip, probes and exchanges in both directions.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let peers = world
            .admin(3)
            .peers(PeersRequest {})
            .await
            .unwrap()
            .into_inner()
            .peers;
        assert_eq!(peers.len(), 1, "{peers:?}");
        assert!(client.get("foreign").await.unwrap_err().is_not_found());
        for key in did.history.keys().take(50) {
            assert!(theirs.get(key).await.unwrap_err().is_not_found());
        }
        for node in [1, 2, 4, 5] {
            assert!(world.status(node).await.peers_down.contains(&name(3)));
        }
        drop(stray);
        world.until_whole().await;
        world.until_equal().await;
        let (_, unknown, refused) = did.counts();
        assert_eq!((unknown, refused), (0, 0), "{:?}", did.failures);
        all_is_kept(&client, &did.history).await;
        assert_eq!(world.rings().await, rings);
    });
}
