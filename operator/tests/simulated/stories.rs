//! What happens to a cluster, how an operator sees it through with faults of all kinds, and what it comes to.

use std::collections::BTreeMap;

use dynamo_operator_sim::{
    faults::{Call, Faults},
    world::{Operator, Simulated, World},
};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{ResourceExt as _, api::ListParams};
use serde_json::{Value, json};

/// What somebody does.
pub(crate) enum Happens {
    /// Creates the DynamoCluster.
    Create(Value),
    /// Changes its spec.
    Change(Value),
    /// Gives up a pod.
    Evacuate(&'static str),
}

/// A cluster as it stands, and what happens to it.
pub(crate) struct Story {
    pub(crate) name: &'static str,
    pub(crate) begun: Simulated,
    pub(crate) happens: Happens,
}

/// How a story ended.
pub(crate) struct End {
    pub(crate) state: Value,
    /// Calls of each operator.
    pub(crate) calls: Vec<Vec<Call>>,
}

/// Few partitions: what is tested here does not depend on them.
fn spec(mut spec: Value) -> Value {
    spec["ring"] = json!({"partitions": 16});
    spec
}

fn zones(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"name": name})).collect()
}

impl End {
    /// What came about, whichever rings it took.
    pub(crate) fn without_epochs(&self) -> Value {
        let mut state = self.state.clone();
        for volume in state["volumes"].as_array_mut().unwrap() {
            volume.as_array_mut().unwrap().pop();
        }
        state
    }
}

impl Story {
    async fn of(name: &'static str, before: Value, happens: Happens) -> Self {
        Self {
            name,
            begun: Simulated::serving(spec(before)).await,
            happens,
        }
    }

    pub(crate) async fn install() -> Self {
        Self {
            name: "install",
            begun: Simulated::new().await,
            happens: Happens::Create(spec(json!({}))),
        }
    }

    pub(crate) async fn scale_out() -> Self {
        Self::of("scale-out", json!({}), Happens::Change(json!({"members": 5}))).await
    }

    pub(crate) async fn scale_in() -> Self {
        Self::of(
            "scale-in",
            json!({"members": 5}),
            Happens::Change(json!({"members": 3})),
        )
        .await
    }

    pub(crate) async fn evacuation() -> Self {
        Self::of("evacuation", json!({"members": 4}), Happens::Evacuate("demo-b-0")).await
    }

    pub(crate) async fn zone_removal() -> Self {
        let before = json!({"members": 4, "zones": zones(&["a", "b", "c"])});
        let after = json!({"zones": zones(&["a", "b"])});
        Self::of("removal of a zone", before, Happens::Change(after)).await
    }

    pub(crate) async fn restart() -> Self {
        Self::of(
            "restart of all pods",
            json!({}),
            Happens::Change(json!({"logLevel": "debug"})),
        )
        .await
    }

    pub(crate) async fn all() -> Vec<Self> {
        vec![
            Self::install().await,
            Self::scale_out().await,
            Self::scale_in().await,
            Self::evacuation().await,
            Self::zone_removal().await,
            Self::restart().await,
        ]
    }

    /// The story in a world of its own, as far as it is nobody's but the user's.
    pub(crate) async fn begin(&self) -> Simulated {
        let fork = self.begun.fork();
        self.happen(&fork.world).await;
        fork
    }

    pub(crate) async fn happen(&self, world: &World) {
        match &self.happens {
            Happens::Create(spec) => drop(world.create("demo", spec.clone()).await.unwrap()),
            Happens::Change(spec) => drop(world.change("demo", spec.clone()).await.unwrap()),
            Happens::Evacuate(pod) => world.evacuate(pod).await,
        }
    }

    /// Seen through by one operator after the other, each until it is dead, and at last by one without faults.
    pub(crate) async fn told(&self, lives: impl IntoIterator<Item = Faults>) -> End {
        let world = self.begin().await.world;
        let mut calls = Vec::new();
        for faults in lives {
            let operator = world.operator_with(faults);
            see_through(&world, &operator).await;
            calls.push(operator.faults.calls());
            // Kubernetes and the nodes work on while nobody leads.
            world.kubelet.turn().await;
        }
        see_through(&world, &world.operator()).await;
        self.judge(&world).await;
        End {
            state: world.end_state().await,
            calls,
        }
    }

    /// Nobody's pod or volume went who was to stay.
    pub(crate) async fn judge(&self, world: &World) {
        let (before, after) = (uids(&self.begun.world).await, uids(world).await);
        for (name, uid) in &before {
            let claim = name.starts_with("data-");
            let spared = match &self.happens {
                Happens::Evacuate(pod) => name.strip_prefix("data-").unwrap_or(name) != *pod,
                Happens::Change(spec) => claim || spec.get("logLevel").is_none(),
                Happens::Create(_) => true,
            };
            match after.get(name) {
                Some(found) if spared => assert_eq!(found, uid, "{name} was made anew"),
                Some(found) => assert_ne!(found, uid, "{name} is still the same"),
                None => assert!(!claim, "{name} is gone"),
            }
        }
    }
}

/// Until everything is as the spec asks and a pass more has found nothing to do, or the operator is dead.
async fn see_through(world: &World, operator: &Operator) {
    loop {
        world.settle(operator).await;
        let writes = operator.faults.writes().len();
        world.kubelet.turn().await;
        let _ = operator.pass(&world.get("demo").await).await;
        if operator.faults.dead() || operator.faults.writes().len() == writes && world.settled().await {
            return;
        }
    }
}

/// Which pods and claims there are.
async fn uids(world: &World) -> BTreeMap<String, String> {
    let pods = world
        .pods()
        .await
        .into_iter()
        .map(|pod| (pod.name_any(), pod.uid().unwrap()));
    let claims = world
        .api::<PersistentVolumeClaim>()
        .list(&ListParams::default())
        .await
        .unwrap();
    let claims = claims
        .items
        .iter()
        .map(|claim| (claim.name_any(), claim.uid().unwrap()));
    pods.chain(claims.collect::<Vec<_>>()).collect()
}
