//! H, Q, F, Z1: members of the lab stop, or cannot be reached one way, and come back.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};
use dynamo_client::{Client, Context, Error, Outcome, ReadOptions, Replicas, WriteOptions};
use dynamo_e2e::{
    lab::{Admin, Lab, copy, hints_for, preference_list},
    wait::{self, Look},
};
use dynamo_proto::{
    admin as pb,
    fault::{CrashRequest, PeerFault, SetRequest},
};
use tokio::time::Instant;

use crate::{GRACE_S, Suite, seconds, told};

/// Keys of a scenario.
const KEYS: usize = 20;

fn w(count: u32) -> WriteOptions {
    WriteOptions {
        w: Some(Replicas::Count(count)),
        ..WriteOptions::default()
    }
}

/// The lab, and who is who for the keys of a scenario.
struct Cast {
    lab: Lab,
    /// Member and zone.
    members: BTreeMap<String, String>,
    /// A primary of all the keys.
    primary: String,
    /// The other member of its zone, which stands in for it first (D41).
    neighbour: String,
    /// A member of another zone.
    elsewhere: String,
    keys: Vec<String>,
}

impl Cast {
    async fn of(suite: &Suite, bucket: &str) -> anyhow::Result<Self> {
        let lab = Lab::of(&suite.cluster);
        let members = lab.members().await?;
        let primary = members.keys().next().context("no members")?.clone();
        let zone = members[&primary].clone();
        let in_zone = |other: bool| {
            let found = members
                .iter()
                .find(|(member, at)| **member != primary && (**at != zone) == other);
            found.map(|(member, _)| member.clone()).context("no such member")
        };
        let (neighbour, elsewhere) = (in_zone(false)?, in_zone(true)?);
        let admin = lab.admin(&elsewhere).await?;
        let mut keys = Vec::new();
        for number in 0..KEYS * 20 {
            let key = format!("key-{number}");
            let list = preference_list(&admin, bucket, &key).await?;
            let chosen = |entry: &pb::PreferenceEntry| entry.primary && entry.member_id == primary;
            if list.iter().any(chosen) {
                keys.push(key);
            }
            if keys.len() == KEYS {
                break;
            }
        }
        ensure!(keys.len() == KEYS, "{primary} has only {} keys", keys.len());
        Ok(Self {
            lab,
            members,
            primary,
            neighbour,
            elsewhere,
            keys,
        })
    }

    async fn put_all(&self, client: &Client, options: &WriteOptions) -> anyhow::Result<()> {
        for key in &self.keys {
            client
                .put_with(key, "value", &Context::none(), options)
                .await
                .with_context(|| format!("cannot put {key}"))?;
        }
        Ok(())
    }

    async fn hints_of(&self, holder: &str) -> anyhow::Result<u64> {
        hints_for(&self.lab.admin(holder).await?, &self.primary).await
    }

    async fn waits_for_hints(&self, holder: &str) -> anyhow::Result<()> {
        let expected = self.keys.len() as u64;
        let what = format!("{holder} keeps {expected} hints for {}", self.primary);
        wait::until(&what, seconds(60), || async {
            let hints = self.hints_of(holder).await?;
            Ok(if hints == expected {
                Look::Done(())
            } else {
                Look::NotYet(format!("{hints} hints"))
            })
        })
        .await
    }
}

/// H: a primary is away, so its neighbour keeps a hint of every write, also over its own restart; when the primary is back,
/// it has the values within 30 s, and the neighbour neither hints nor copies.
pub(crate) async fn h_hints_outlive_their_holder_and_reach_their_owner(suite: &Suite) -> anyhow::Result<()> {
    let cast = Cast::of(suite, "hints").await?;
    let Cast {
        lab,
        primary,
        neighbour,
        ..
    } = &cast;
    lab.stop(&[primary]).await?;
    let result = hinted(&cast).await;
    let began = Instant::now();
    lab.back(&[primary]).await?;
    result?;
    told(&format!(
        "{primary} serves again after {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    let served = Instant::now();
    let admins = lab.admins([primary, neighbour]).await?;
    wait::until("the hints are where they belong", seconds(30), || async {
        let missing = copies(&admins[primary], &cast.keys).await?;
        let missing = cast.keys.len() - missing;
        let left = hints_for(&admins[neighbour], primary).await?;
        let strays = copies(&admins[neighbour], &cast.keys).await?;
        Ok(if (missing, left, strays) == (0, 0, 0) {
            Look::Done(())
        } else {
            Look::NotYet(format!("{missing} missing, {left} hints left, {strays} strays"))
        })
    })
    .await?;
    told(&format!(
        "all hints delivered {:.1} s later",
        served.elapsed().as_secs_f64()
    ));
    lab.equal("hints", &cast.keys, true).await
}

async fn hinted(cast: &Cast) -> anyhow::Result<()> {
    let (_forward, client) = cast.lab.client(&cast.elsewhere).await?;
    cast.put_all(&client.with_bucket("hints"), &w(2)).await?;
    cast.waits_for_hints(&cast.neighbour).await?;
    let (_forward, mut faults) = cast.lab.faults(&cast.neighbour).await?;
    ensure!(
        faults.crash(CrashRequest {}).await.is_err(),
        "{} did not crash",
        cast.neighbour
    );
    cast.waits_for_hints(&cast.neighbour).await?;
    told(&format!(
        "{} keeps {} hints for {}, also after its own restart",
        cast.neighbour,
        cast.keys.len(),
        cast.primary
    ));
    Ok(())
}

/// How many of the keys a member has a copy of.
async fn copies(admin: &Admin, keys: &[String]) -> anyhow::Result<usize> {
    let mut count = 0;
    for key in keys {
        count += usize::from(copy(admin, "hints", key).await?.is_some());
    }
    Ok(count)
}

/// Q: with two of three primaries away a write to two nodes succeeds and says that fallbacks were counted; one to two
/// primaries fails and says what it did.
pub(crate) async fn q_two_primaries_down_leave_writes_and_truth(suite: &Suite) -> anyhow::Result<()> {
    let lab = Lab::of(&suite.cluster);
    let members = lab.members().await?;
    let any = members.keys().next().context("no members")?;
    let list = preference_list(&lab.admin(any).await?, "quorums", "key").await?;
    let primaries: Vec<&str> = list
        .iter()
        .filter(|entry| entry.primary)
        .map(|entry| entry.member_id.as_str())
        .collect();
    let [down, other, up] = primaries[..] else {
        bail!("{primaries:?} are not three primaries");
    };
    lab.stop(&[down, other]).await?;
    let result = with_one_primary(&lab, up).await;
    lab.back(&[down, other]).await?;
    result?;
    lab.drained().await?;
    lab.equal("quorums", &["key".to_owned(), "other".to_owned()], true)
        .await
}

async fn with_one_primary(lab: &Lab, up: &str) -> anyhow::Result<()> {
    let (_forward, client) = lab.client(up).await?;
    let client = client.with_bucket("quorums");
    let written = client.put_with("key", "value", &Context::none(), &w(2)).await?;
    ensure!(
        written.acks >= 2 && written.primaries == 1 && written.info.fallbacks_counted >= 1,
        "{written:?}"
    );
    // A key of its own beside it, so that both are compared in the end.
    client.put_with("other", "value", &Context::none(), &w(2)).await?;
    let read = ReadOptions {
        r: Some(Replicas::Count(2)),
        ..ReadOptions::default()
    };
    let found = client.get_with("key", &read).await?;
    ensure!(found.values().any(|value| &value[..] == b"value"), "{found:?}");
    let primaries = WriteOptions {
        pw: Some(Replicas::Count(2)),
        ..w(2)
    };
    let Err(error) = client.put_with("key", "second", &found.context, &primaries).await else {
        bail!("a write to two primaries succeeded with one");
    };
    let outcome = error.outcome();
    ensure!(
        matches!(outcome, Outcome::NotApplied | Outcome::Partial { .. }),
        "{error:?}"
    );
    told(&format!(
        "W=2: {} acks, {} of fallbacks; PW=2: {outcome}",
        written.acks, written.info.fallbacks_counted
    ));
    Ok(())
}

/// F: one way only, what A sends to B is lost. A puts hints of B's share elsewhere, C still writes to B, the ring stays as it
/// is, and everything is where it belongs afterwards.
pub(crate) async fn f_a_one_way_cut_is_the_senders_business(suite: &Suite) -> anyhow::Result<()> {
    let lab = Lab::of(&suite.cluster);
    let members: Vec<String> = lab.members().await?.into_keys().collect();
    let admins = lab.admins(&members).await?;
    let list = preference_list(&admins[&members[0]], "one-way", "key").await?;
    let [a, b, c] = [0, 1, 2].map(|place: usize| list[place].member_id.clone());
    let epochs = epochs(&admins).await?;
    let cut = PeerFault {
        member_id: b.clone(),
        drop_requests: true,
        ..PeerFault::default()
    };
    let faults = SetRequest {
        peers: vec![cut],
        ..SetRequest::default()
    };
    lab.set_faults(&a, faults).await?;
    let result = one_way(&lab, &admins, [&a, &b, &c]).await;
    lab.set_faults(&a, SetRequest::default()).await?;
    let keys = result?;
    let now = self::epochs(&admins).await?;
    ensure!(now == epochs, "the rings were {epochs:?} and are {now:?}");
    lab.drained().await?;
    lab.equal("one-way", &keys, true).await
}

async fn one_way(
    lab: &Lab,
    admins: &BTreeMap<String, Admin>,
    [a, b, c]: [&String; 3],
) -> anyhow::Result<Vec<String>> {
    wait::until("the sender misses its peer", seconds(30), || async {
        Ok(if reaches(&admins[a], b).await? {
            Look::NotYet(format!("{a} still reaches {b}"))
        } else {
            Look::Done(())
        })
    })
    .await?;
    ensure!(
        reaches(&admins[c], b).await? && reaches(&admins[b], a).await?,
        "others believe what only {a} sees"
    );
    let mut keys = Vec::new();
    for (member, primaries) in [(a, 2), (c, 3)] {
        let (_forward, client) = lab.client(member).await?;
        let client = client.with_bucket("one-way");
        // Primaries of the same partition as the first key, by taking that key: its siblings are told apart by their values.
        let written = client
            .put_with("key", member.clone(), &Context::none(), &w(3))
            .await?;
        ensure!(
            written.info.coordinator == *member
                && written.primaries == primaries
                && written.info.fallbacks_counted == 3 - primaries,
            "{member}: {written:?}"
        );
        for number in 0..KEYS {
            let key = format!("{member}/{number}");
            client.put_with(&key, "value", &Context::none(), &w(2)).await?;
            keys.push(key);
        }
    }
    keys.push("key".into());
    told(&format!(
        "{a} counted a fallback instead of {b}, {c} wrote to it; {} keys",
        keys.len()
    ));
    Ok(keys)
}

async fn reaches(admin: &Admin, member: &str) -> anyhow::Result<bool> {
    let peers = admin
        .1
        .clone()
        .peers(pb::PeersRequest {})
        .await?
        .into_inner()
        .peers;
    let peer = peers.iter().find(|peer| peer.member_id == member);
    Ok(peer.with_context(|| format!("nobody knows {member}"))?.reachable)
}

async fn epochs(admins: &BTreeMap<String, Admin>) -> anyhow::Result<BTreeMap<&String, (u64, u64)>> {
    let mut epochs = BTreeMap::new();
    for (member, (_, admin)) in admins {
        let status = admin.clone().status(pb::StatusRequest {}).await?.into_inner();
        epochs.insert(member, (status.ring_epoch, status.ring_hash));
    }
    Ok(epochs)
}

/// Z1: what is deleted while a primary is away stays deleted when it returns after ten times the grace; then the tombstones
/// go everywhere.
pub(crate) async fn z1_deleted_keys_stay_deleted_and_their_tombstones_go(
    suite: &Suite,
) -> anyhow::Result<()> {
    let cast = Cast::of(suite, "deletes").await?;
    let lab = &cast.lab;
    let (_forward, client) = lab.client(&cast.elsewhere).await?;
    let client = client.with_bucket("deletes");
    // All primaries hold them, so that there is something to come back.
    let all = WriteOptions {
        pw: Some(Replicas::All),
        ..w(3)
    };
    cast.put_all(&client, &all).await?;
    lab.stop(&[&cast.primary]).await?;
    let result = delete_all(&cast, &client).await;
    lab.back(&[&cast.primary]).await?;
    result?;
    let back = Instant::now();
    wait::hold("deleted keys stay deleted", back + seconds(5), || {
        all_absent(&client, &cast.keys)
    })
    .await?;
    lab.equal("deletes", &cast.keys, false).await?;
    told(&format!(
        "all tombstones are gone {:.1} s after {} is back",
        back.elapsed().as_secs_f64(),
        cast.primary
    ));
    all_absent(&client, &cast.keys).await?;
    ensure!(
        cast.members.len() == lab.members().await?.len(),
        "a member is gone"
    );
    Ok(())
}

async fn delete_all(cast: &Cast, client: &Client) -> anyhow::Result<()> {
    for key in &cast.keys {
        let found = client.get(key).await?;
        client.delete_with(key, Some(&found.context), &w(2)).await?;
    }
    let end = Instant::now() + seconds(10 * u64::from(GRACE_S));
    wait::hold("deleted keys are absent", end, || all_absent(client, &cast.keys)).await
}

async fn all_absent(client: &Client, keys: &[String]) -> anyhow::Result<()> {
    for key in keys {
        match client.get(key).await {
            Err(Error::NotFound { .. }) => {}
            other => bail!("{key}: {other:?}"),
        }
    }
    Ok(())
}
