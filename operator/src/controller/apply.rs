//! I/O: writes what differs, takes the planned step, patches the status. Safe to be killed between any two writes: every
//! write is idempotent and the next pass decides anew from what it reads.

use std::fmt::Debug;

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaim, Pod},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    build::Desired,
    names,
    observe::{self, ClaimFacts, Observed},
    plan::{Plan, Step},
    validate::ValidatedCluster,
};

mod steps;

use crate::{
    admin::{Admin, AdminError},
    crd::{DynamoCluster, DynamoClusterStatus, WhenDeleted, quantity},
};

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// Id and zones are written down.
    Founded,
    /// This member minted the first ring.
    Bootstrapped(String),
    /// This member, in this zone, got its identity.
    Joined(String, String),
    /// This pod was deleted, for this reason.
    Restarted(String, String),
    /// A claim asks for this size now.
    Grown(String, String),
    /// This member proposed a ring, of this epoch, which comes to this.
    Committed(String, u64, String),
    /// This StatefulSet has so many pods instead of so many.
    Scaled(String, u32, u32),
    /// This member's claim and pod were deleted: its volume was lost, or it was evacuated. With the reason.
    Replaced(String, bool, String),
    /// This StatefulSet, of a zone that is no more, was deleted.
    ZoneRemoved(String),
}

/// Why something could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// An object.
    #[error("cannot write {kind} {name}: {source}")]
    Write {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// Its name belongs to somebody else.
    #[error(
        "cannot write {kind} {name}: an object of this name exists and is not this DynamoCluster's; delete it, or name the DynamoCluster otherwise"
    )]
    NameTaken {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// An object cannot be compared.
    #[error("cannot write an object as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The DynamoCluster changed meanwhile, or cannot be written.
    #[error("cannot write the cluster's id and zones on the DynamoCluster: {0}")]
    Found(Box<kube::Error>),
    /// A node did not do it.
    #[error("cannot {what} member {member}: {source}")]
    Node {
        /// What.
        what: &'static str,
        /// Who.
        member: String,
        /// Why.
        source: AdminError,
    },
    /// The pod changed meanwhile, or cannot be deleted.
    #[error("cannot delete pod {pod} for its restart: {source}")]
    Restart {
        /// Its name.
        pod: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// The volume cannot grow, or its owner cannot be changed.
    #[error("cannot change claim {claim}: {source}")]
    Claim {
        /// Its name.
        claim: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// No node took the proposal of a ring. Another pass asks again, with a plan of its own.
    #[error("cannot propose the ring that the spec asks for: {0}")]
    Commit(String),
    /// Something that is to be made anew, or to go, cannot be deleted, or changed meanwhile.
    #[error("cannot delete {kind} {name}: {source}")]
    Delete {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// A claim that was gone when the decision was made.
    #[error(
        "claim {0} is there, though it was not when it was decided to make its pod anew: another pass decides"
    )]
    ClaimAppeared(String),
    /// The status.
    #[error("cannot write the status: {0}")]
    Status(Box<kube::Error>),
}

impl ApplyError {
    /// Waiting does not help: a person has to do something.
    pub fn stalls(&self) -> Option<&'static str> {
        match self {
            Self::NameTaken { .. } => Some("NameTaken"),
            Self::Claim { .. } => Some("VolumeNotChanged"),
            Self::Node {
                source: AdminError::Refused { .. },
                ..
            } => Some("NodeRefused"),
            _ => None,
        }
    }
}

/// What a pass has decided upon.
#[derive(Clone, Copy)]
pub struct Work<'a> {
    /// The DynamoCluster as read.
    pub source: &'a DynamoCluster,
    /// The same, checked.
    pub cluster: &'a ValidatedCluster,
    /// What was observed.
    pub observed: &'a Observed,
    /// What to do.
    pub plan: &'a Plan<'a>,
}

/// Writes objects if the plan lets it, and takes its step. Returns what was done, and what stopped it.
pub async fn apply<A: Admin>(
    client: &Client,
    admin: &A,
    work: Work<'_>,
    desired: Desired,
) -> (Vec<Done>, Option<ApplyError>) {
    let Work {
        cluster,
        observed,
        plan,
        ..
    } = work;
    let mut done = Vec::new();
    let result = async {
        if plan.stance.writes_objects() && cluster.founded {
            steps::mark_claims(client, cluster, observed).await?;
            Box::pin(write_objects(client, cluster, observed, desired, &mut done)).await?;
            write_claims(client, cluster, observed, &mut done).await?;
        }
        take(client, admin, work, &mut done).await
    };
    let error = result.await.err();
    (done, error)
}

/// In the order in which they need each other: pods come last.
async fn write_objects(
    client: &Client,
    cluster: &ValidatedCluster,
    observed: &Observed,
    desired: Desired,
    done: &mut Vec<Done>,
) -> Result<(), ApplyError> {
    let Desired {
        service_account,
        config_map,
        nodes_service,
        client_service,
        pdb,
        stateful_sets,
    } = desired;
    write(client, cluster, service_account).await?;
    write(client, cluster, config_map).await?;
    write(client, cluster, nodes_service).await?;
    write(client, cluster, client_service).await?;
    write(client, cluster, pdb).await?;
    for mut stateful_set in stateful_sets {
        let name = stateful_set.name_any();
        let before = observed.stateful_sets.get(&name);
        let pods = stateful_set.spec.as_ref().and_then(|spec| spec.replicas);
        let pods = u32::try_from(pods.unwrap_or(0)).unwrap_or(0);
        let scaled = before.filter(|before| before.members != pods);
        if let Some(before) = scaled.filter(|before| pods < before.members) {
            // Decided upon this version: what another operator did since makes the write fail.
            stateful_set.metadata.resource_version = Some(before.resource_version.clone());
        }
        write(client, cluster, stateful_set).await?;
        if let Some(before) = scaled {
            done.push(Done::Scaled(name, before.members, pods));
        }
    }
    Ok(())
}

async fn write<K>(client: &Client, cluster: &ValidatedCluster, desired: K) -> Result<(), ApplyError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Serialize
        + DeserializeOwned
        + Debug,
{
    let api = Api::<K>::namespaced(client.clone(), &cluster.namespace);
    let (kind, name) = (K::kind(&()).into_owned(), desired.name_any());
    let failed = |source| ApplyError::Write {
        kind: kind.clone(),
        name: name.clone(),
        source: Box::new(source),
    };
    let desired = serde_json::to_value(&desired)?;
    if let Some(live) = api.get_opt(&name).await.map_err(failed)? {
        if !may_take(&live, cluster) {
            return Err(ApplyError::NameTaken {
                kind: kind.clone(),
                name: name.clone(),
            });
        }
        if holds(&serde_json::to_value(&live)?, &desired) {
            return Ok(());
        }
    }
    tracing::info!(kind, name, namespace = cluster.namespace, "writing an object");
    let params = PatchParams::apply(names::FIELD_MANAGER).force();
    api.patch(&name, &params, &Patch::Apply(&desired))
        .await
        .map_err(failed)?;
    Ok(())
}

/// Ours: controlled by this very DynamoCluster, or by nobody and labelled by the operator for a cluster of this name.
fn may_take<K: Resource>(live: &K, cluster: &ValidatedCluster) -> bool {
    match observe::controller(live) {
        Some(uid) => uid == cluster.owner.uid,
        None => names::labels(&cluster.name)
            .iter()
            .all(|(key, value)| live.labels().get(key) == Some(value)),
    }
}

/// Everything that `desired` says stands in `live`, which may say more: defaults, and what others added. What is left
/// out of `desired` since the last write shows in the hash among the annotations.
fn holds(live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => desired
            .iter()
            .all(|(key, value)| live.get(key).is_some_and(|live| holds(live, value))),
        (Value::Array(live), Value::Array(desired)) => {
            live.len() == desired.len()
                && live
                    .iter()
                    .zip(desired)
                    .all(|(live, desired)| holds(live, desired))
        }
        // The API server spells quantities its own way.
        (Value::String(live), Value::String(desired)) => {
            live == desired
                || quantity::milli(live).is_some_and(|live| Some(live) == quantity::milli(desired))
        }
        _ => live == desired,
    }
}

/// Lets claims grow, and go with the DynamoCluster or not. A claim is never deleted here.
async fn write_claims(
    client: &Client,
    cluster: &ValidatedCluster,
    observed: &Observed,
    done: &mut Vec<Done>,
) -> Result<(), ApplyError> {
    let api = Api::<PersistentVolumeClaim>::namespaced(client.clone(), &cluster.namespace);
    for planned in cluster.members() {
        let name = names::claim(&planned.id());
        let Some(claim) = observed.claims.get(&name).filter(|claim| !claim.deleting) else {
            continue;
        };
        let Some(change) = claim_change(cluster, claim) else {
            continue;
        };
        let params = PatchParams {
            field_manager: Some(names::FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        let failed = |source| ApplyError::Claim {
            claim: name.clone(),
            source: Box::new(source),
        };
        tracing::info!(claim = name, %change, "changing a claim");
        api.patch(&name, &params, &Patch::Merge(&change))
            .await
            .map_err(failed)?;
        if change.get("spec").is_some() {
            done.push(Done::Grown(name, cluster.spec.storage.size.0.clone()));
        }
    }
    Ok(())
}

fn claim_change(cluster: &ValidatedCluster, claim: &ClaimFacts) -> Option<Value> {
    let wanted = &cluster.spec.storage.size;
    let grows = claim.size.as_ref().and_then(|size| size.compare(wanted)) == Some(std::cmp::Ordering::Less);
    let owned = claim.owners.iter().any(|owner| owner.uid == cluster.owner.uid);
    let own = cluster.spec.storage.when_deleted == WhenDeleted::Delete;
    if !grows && owned == own {
        return None;
    }
    let mut change = json!({"metadata": {"uid": claim.uid, "resourceVersion": claim.resource_version}});
    if grows {
        change["spec"] = json!({"resources": {"requests": {"storage": wanted.0}}});
    }
    if owned != own {
        // An owner, not a controller: when the DynamoCluster goes, so does the claim. A StatefulSet deleted by hand takes
        // no data along.
        let mut owner = cluster.owner.clone();
        owner.controller = None;
        owner.block_owner_deletion = None;
        let others = claim
            .owners
            .iter()
            .filter(|other| other.uid != owner.uid)
            .cloned();
        let owners: Vec<_> = others.chain(own.then(|| owner.clone())).collect();
        change["metadata"]["ownerReferences"] = json!(owners);
    }
    Some(change)
}

async fn take<A: Admin>(
    client: &Client,
    admin: &A,
    work: Work<'_>,
    done: &mut Vec<Done>,
) -> Result<(), ApplyError> {
    match &work.plan.step {
        Step::Rest => {}
        Step::Found => {
            found(client, work.source, work.cluster).await?;
            done.push(Done::Founded);
        }
        Step::Bootstrap(order) => {
            let failed = |source| ApplyError::Node {
                what: "bootstrap",
                member: order.member.clone(),
                source,
            };
            if admin
                .bootstrap(order.node, order.request.clone())
                .await
                .map_err(failed)?
            {
                done.push(Done::Bootstrapped(order.member.clone()));
            }
        }
        Step::Join(orders) => {
            for order in orders {
                let failed = |source| ApplyError::Node {
                    what: "join",
                    member: order.member.clone(),
                    source,
                };
                if admin
                    .join(order.node, order.request.clone())
                    .await
                    .map_err(failed)?
                {
                    done.push(Done::Joined(order.member.clone(), order.zone.clone()));
                }
            }
        }
        Step::Restart {
            pod,
            uid,
            resource_version,
            why,
        } => {
            let params = DeleteParams::default().preconditions(Preconditions {
                uid: Some(uid.clone()),
                resource_version: Some(resource_version.clone()),
            });
            let api = Api::<Pod>::namespaced(client.clone(), &work.cluster.namespace);
            let failed = |source| ApplyError::Restart {
                pod: pod.clone(),
                source: Box::new(source),
            };
            api.delete(pod, &params).await.map_err(failed)?;
            done.push(Done::Restarted(pod.clone(), why.clone()));
        }
        Step::Commit { nodes, request, why } => {
            done.push(steps::commit(admin, nodes, request, why).await?);
        }
        Step::Replace(replacement) => {
            steps::replace(client, work.cluster, replacement).await?;
            let (member, why) = (replacement.member.clone(), replacement.why.clone());
            done.push(Done::Replaced(member, replacement.lost, why));
        }
        Step::RemoveZone {
            stateful_set,
            uid,
            resource_version,
        } => {
            let version = (uid.clone(), resource_version.clone());
            steps::delete::<StatefulSet>(client, work.cluster, stateful_set, &version).await?;
            done.push(Done::ZoneRemoved(stateful_set.clone()));
        }
    }
    Ok(())
}

/// Writes id and zones on the DynamoCluster, on the very version that they were decided upon: of two operators one loses
/// here, and reads what the other wrote.
async fn found(
    client: &Client,
    source: &DynamoCluster,
    cluster: &ValidatedCluster,
) -> Result<(), ApplyError> {
    let layout: Vec<_> = cluster.zones.iter().map(|zone| &zone.layout).collect();
    let change = json!({"metadata": {
        "uid": source.uid(),
        "resourceVersion": source.resource_version(),
        "annotations": {
            names::CLUSTER_ID: cluster.cluster_id.to_string(),
            names::LAYOUT: serde_json::to_string(&layout)?,
        },
    }});
    let params = PatchParams {
        field_manager: Some(names::FIELD_MANAGER.into()),
        ..PatchParams::default()
    };
    let api = Api::<DynamoCluster>::namespaced(client.clone(), &cluster.namespace);
    let patched = api
        .patch_metadata(&cluster.name, &params, &Patch::Merge(&change))
        .await;
    patched.map_err(|source| ApplyError::Found(Box::new(source)))?;
    Ok(())
}

/// Writes the status if it differs, and the DynamoCluster is still the one that it is about. True if it did.
///
/// # Errors
/// If the API server refuses.
pub async fn patch_status(
    client: &Client,
    source: &DynamoCluster,
    status: &DynamoClusterStatus,
) -> Result<bool, ApplyError> {
    if source.status.as_ref() == Some(status) {
        return Ok(false);
    }
    let (name, namespace) = (source.name_any(), source.namespace().unwrap_or_default());
    let api = Api::<DynamoCluster>::namespaced(client.clone(), &namespace);
    let failed = |source| ApplyError::Status(Box::new(source));
    // In writes of a status the API server heeds no uid, but it does heed the version.
    let live = api.get_opt(&name).await.map_err(failed)?;
    let Some(live) = live.filter(|live| live.uid() == source.uid()) else {
        return Ok(false);
    };
    let patch = json!({
        "apiVersion": DynamoCluster::api_version(&()),
        "kind": DynamoCluster::kind(&()),
        "metadata": {"resourceVersion": live.resource_version()},
        "status": status,
    });
    let params = PatchParams::apply(names::STATUS_FIELD_MANAGER).force();
    let patched = api.patch_status(&name, &params, &Patch::Apply(&patch)).await;
    patched.map_err(failed)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_left_alone_exactly_if_it_says_all_that_is_wanted() {
        let live = json!({"spec": {"cpu": "500m", "list": [{"a": 1, "default": true}], "extra": 1}});
        let check = |desired: Value| holds(&live, &desired);
        assert!(check(json!({"spec": {"cpu": "0.5", "list": [{"a": 1}]}})));
        assert!(!check(json!({"spec": {"cpu": "501m"}})));
        assert!(!check(json!({"spec": {"list": [{"a": 1}, {"a": 2}]}})));
        assert!(!check(json!({"spec": {"list": []}})));
        assert!(!check(json!({"spec": {"missing": null}})));
    }
}
