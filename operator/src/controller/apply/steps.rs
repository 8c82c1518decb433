//! I/O: the steps of a ring that changes.

use std::{fmt::Debug, net::IpAddr};

use dynamo_proto::admin as pb;
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{PersistentVolumeClaim, Pod},
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{ApplyError, Done};
use crate::{
    admin::Admin,
    controller::{
        change::named,
        names,
        observe::{ClaimFacts, Observed},
        plan::Replacement,
        validate::ValidatedCluster,
    },
    crd::conditions::shortened,
};

/// A proposal goes to at most this many nodes.
const COMMIT_TRIES: usize = 5;

/// Proposes a ring to one node after the other, until one takes it. A node that did and whose answer was lost is asked
/// nothing else: the next one has heard of the ring or refuses the plan as stale, and either is well.
pub(super) async fn commit<A: Admin>(
    admin: &A,
    nodes: &[(String, IpAddr)],
    request: &pb::CommitRequest,
    why: &str,
) -> Result<Done, ApplyError> {
    let mut refused = Vec::new();
    for (member, ip) in nodes.iter().take(COMMIT_TRIES) {
        match admin.commit(*ip, request.clone()).await {
            Ok(answer) => {
                tracing::info!(
                    member,
                    epoch = answer.epoch,
                    proposed = answer.proposed,
                    why,
                    "a ring"
                );
                return Ok(Done::Committed(member.clone(), answer.epoch, why.to_owned()));
            }
            Err(error) => refused.push(format!("{member}: {error}")),
        }
    }
    let refused = named(refused.iter().map(String::as_str));
    Err(ApplyError::Commit(shortened(
        if refused.is_empty() {
            "no member of the ring answers".into()
        } else {
            refused
        },
        900,
    )))
}

/// Deletes a claim and then its pod. The claim stays until the pod is gone, and is marked: whoever is killed in between
/// finds both as they were, or the claim on its way.
pub(super) async fn replace(
    client: &Client,
    cluster: &ValidatedCluster,
    replacement: &Replacement,
) -> Result<(), ApplyError> {
    let claim = names::claim(&replacement.member);
    match &replacement.claim {
        Some(version) => delete::<PersistentVolumeClaim>(client, cluster, &claim, version).await?,
        None => gone(client, cluster, &claim).await?,
    }
    if let Some(version) = &replacement.pod {
        delete::<Pod>(client, cluster, &replacement.member, version).await?;
    }
    Ok(())
}

/// A claim that was not there may be one that an old answer did not know: its pod would come back with all that is on it.
async fn gone(client: &Client, cluster: &ValidatedCluster, claim: &str) -> Result<(), ApplyError> {
    let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), &cluster.namespace);
    let found = claims.get_opt(claim).await.map_err(|source| ApplyError::Delete {
        kind: "claim",
        name: claim.into(),
        source: Box::new(source),
    })?;
    match found {
        Some(found) if found.metadata.deletion_timestamp.is_none() => {
            Err(ApplyError::ClaimAppeared(claim.into()))
        }
        _ => Ok(()),
    }
}

/// Deletes exactly the version that was decided upon.
pub(super) async fn delete<K>(
    client: &Client,
    cluster: &ValidatedCluster,
    name: &str,
    (uid, resource_version): &(String, String),
) -> Result<(), ApplyError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let params = DeleteParams::background().preconditions(Preconditions {
        uid: Some(uid.clone()),
        resource_version: Some(resource_version.clone()),
    });
    tracing::info!(kind = %K::kind(&()), name, namespace = cluster.namespace, "deleting an object");
    let deleted = Api::<K>::namespaced(client.clone(), &cluster.namespace)
        .delete(name, &params)
        .await;
    match deleted {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(source) => Err(ApplyError::Delete {
            kind: match K::kind(&()).as_ref() {
                "Pod" => "pod",
                "StatefulSet" => "StatefulSet",
                _ => "claim",
            },
            name: name.into(),
            source: Box::new(source),
        }),
    }
}

/// Notes on the claims of members that left that they did, and takes the note off again before their pods come back.
pub(super) async fn mark_claims(
    client: &Client,
    cluster: &ValidatedCluster,
    observed: &Observed,
) -> Result<(), ApplyError> {
    let id = cluster.cluster_id.to_string();
    let own = |claim: &ClaimFacts| !claim.deleting && claim.cluster_id.as_deref() == Some(id.as_str());
    for (name, claim) in observed.claims.iter().filter(|(_, claim)| own(claim)) {
        let Some(mark) = mark(cluster, observed, name, claim) else {
            continue;
        };
        let change = json!({"metadata": {
            "uid": claim.uid,
            "resourceVersion": claim.resource_version,
            "annotations": {names::LEFT: mark},
        }});
        let params = PatchParams {
            field_manager: Some(names::FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        let api = Api::<PersistentVolumeClaim>::namespaced(client.clone(), &cluster.namespace);
        api.patch(name, &params, &Patch::Merge(&change))
            .await
            .map_err(|source| ApplyError::Write {
                kind: "PersistentVolumeClaim".into(),
                name: name.clone(),
                source: Box::new(source),
            })?;
    }
    Ok(())
}

/// What the note on a claim is to become, if it is to change: an epoch, or nothing.
fn mark(cluster: &ValidatedCluster, observed: &Observed, name: &str, claim: &ClaimFacts) -> Option<Value> {
    let member = name.strip_prefix(&names::claim(""))?;
    names::ordinal(claim.stateful_set.as_deref()?, member)?;
    let planned = cluster.members().any(|planned| planned.id() == member);
    let rings = &cluster.rings;
    let left = !planned && !observed.pods.contains_key(member) && rings.released(member);
    match (claim.left, planned || rings.lists(member), left) {
        (true, true, _) => Some(Value::Null),
        (false, _, true) => Some(json!(rings.base.as_ref()?.epoch.to_string())),
        _ => None,
    }
}
