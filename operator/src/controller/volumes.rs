//! I/O: which volumes are lost for good. Only what the API server says positively counts: a volume that is gone, or one
//! that exists on a k8s node alone which is gone.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::{Api, Client};

use super::{
    names,
    observe::{ClaimFacts, K8sNode, ObserveError, PodFacts},
};

/// Notes on the claims of pods that find no k8s node whether their volumes are lost.
///
/// # Errors
/// If the API server does not answer. That the operator may not read volumes is no error: then none is known to be lost.
pub(super) async fn find_lost(
    client: &Client,
    pods: &BTreeMap<String, PodFacts>,
    claims: &mut BTreeMap<String, ClaimFacts>,
    k8s_nodes: Option<&[K8sNode]>,
) -> Result<(), ObserveError> {
    let api = Api::<PersistentVolume>::all(client.clone());
    for (pod, _) in pods.iter().filter(|(_, pod)| pod.unscheduled_since.is_some()) {
        let Some(claim) = claims.get_mut(&names::claim(pod)) else {
            continue;
        };
        let Some(volume) = claim.volume.clone().filter(|_| claim.lost.is_none()) else {
            continue;
        };
        claim.lost = match api.get_opt(&volume).await {
            Ok(None) => Some(format!("its volume {volume} is gone")),
            Ok(Some(found)) => on_lost_k8s_node(&volume, &found, k8s_nodes),
            Err(kube::Error::Api(status)) if status.is_forbidden() => None,
            Err(source) => {
                return Err(ObserveError {
                    what: "the volumes of pods that find no k8s node",
                    source: Box::new(source),
                });
            }
        };
    }
    Ok(())
}

/// A volume that can be used on certain k8s nodes only, none of which exists any more.
fn on_lost_k8s_node(name: &str, volume: &PersistentVolume, nodes: Option<&[K8sNode]>) -> Option<String> {
    let nodes = nodes?;
    let hosts = hosts(volume);
    let exists = |host: &String| {
        nodes
            .iter()
            .any(|node| node.name == *host || node.labels.get(names::HOSTNAME) == Some(host))
    };
    (!hosts.is_empty() && !hosts.iter().any(exists)).then(|| {
        format!(
            "its volume {name} is on k8s node {} alone, which is gone",
            hosts.join(", ")
        )
    })
}

/// The k8s nodes that a volume is bound to; empty if it is not bound to single ones.
fn hosts(volume: &PersistentVolume) -> Vec<String> {
    let required = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
    let terms = required.map_or(&[][..], |required| &required.node_selector_terms);
    let mut hosts = Vec::new();
    for term in terms {
        let mut rules = term.match_expressions.iter().flatten();
        let rule = rules.find(|rule| rule.key == names::HOSTNAME && rule.operator == "In");
        match rule.and_then(|rule| rule.values.clone()) {
            Some(values) => hosts.extend(values),
            // Each term is enough by itself.
            None => return Vec::new(),
        }
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(terms: &serde_json::Value) -> PersistentVolume {
        serde_json::from_value(serde_json::json!({
            "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}},
        }))
        .unwrap()
    }

    #[test]
    fn k10_a_volume_is_lost_only_with_every_k8s_node_that_could_use_it() {
        let node = |name: &str| K8sNode {
            name: name.into(),
            labels: [(names::HOSTNAME.to_owned(), name.to_owned())].into(),
            ..K8sNode::default()
        };
        let on = |hosts: &[&str]| {
            serde_json::json!({"matchExpressions": [
                {"key": names::HOSTNAME, "operator": "In", "values": hosts},
            ]})
        };
        let zonal = serde_json::json!({"matchExpressions": [
            {"key": names::TOPOLOGY_ZONE, "operator": "In", "values": ["a"]},
        ]});
        let nodes = [node("one"), node("two")];
        let lost = |terms: serde_json::Value, nodes| on_lost_k8s_node("pv", &volume(&terms), nodes).is_some();
        assert!(lost(serde_json::json!([on(&["three"])]), Some(&nodes)));
        assert!(!lost(serde_json::json!([on(&["one"])]), Some(&nodes)));
        assert!(!lost(serde_json::json!([on(&["three", "two"])]), Some(&nodes)));
        assert!(!lost(serde_json::json!([on(&["three"]), zonal]), Some(&nodes)));
        assert!(!lost(serde_json::json!([zonal]), Some(&nodes)));
        assert!(!lost(serde_json::json!([]), Some(&nodes)));
        assert!(
            !lost(serde_json::json!([on(&["three"])]), None),
            "nobody could look"
        );
    }
}
