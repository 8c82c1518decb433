//! The kinds that are known, by their place in the API.

use std::fmt::{self, Display};

/// A kind of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    pub(super) api_version: &'static str,
    pub(super) name: &'static str,
    /// As in paths.
    pub(super) plural: &'static str,
    /// Its spec is counted in `metadata.generation`.
    pub(super) counts: bool,
    /// `/status` is written apart from the rest.
    pub(super) status: bool,
}

const fn kind(api_version: &'static str, name: &'static str, plural: &'static str) -> Kind {
    Kind {
        api_version,
        name,
        plural,
        counts: false,
        status: false,
    }
}

const fn with_status(mut kind: Kind, counts: bool) -> Kind {
    kind.status = true;
    kind.counts = counts;
    kind
}

const KINDS: [Kind; 12] = [
    kind("v1", "Namespace", "namespaces"),
    kind("v1", "Node", "nodes"),
    kind("v1", "PersistentVolume", "persistentvolumes"),
    with_status(kind("v1", "Pod", "pods"), false),
    with_status(
        kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
        false,
    ),
    kind("v1", "Service", "services"),
    kind("v1", "ConfigMap", "configmaps"),
    kind("v1", "ServiceAccount", "serviceaccounts"),
    with_status(kind("apps/v1", "StatefulSet", "statefulsets"), true),
    with_status(
        kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
        true,
    ),
    kind("events.k8s.io/v1", "Event", "events"),
    with_status(
        kind("dynamo.rs/v1alpha1", "DynamoCluster", "dynamoclusters"),
        true,
    ),
];

impl Kind {
    /// Panics if nobody here asked for it until now.
    pub(super) fn of(api_version: &str, plural: &str) -> Self {
        let known = KINDS
            .into_iter()
            .find(|kind| (kind.api_version, kind.plural) == (api_version, plural));
        known.unwrap_or_else(|| unimplemented!("{plural} of {api_version}"))
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
