//! The pods of one zone.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{
            StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
            StatefulSetUpdateStrategy,
        },
        core::v1::{
            Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource,
            HTTPGetAction, ObjectFieldSelector, PersistentVolumeClaim, PersistentVolumeClaimSpec,
            PodAffinityTerm, PodAntiAffinity, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
            ResourceRequirements, SeccompProfile, SecurityContext, Toleration, Volume, VolumeMount,
            VolumeResourceRequirements, WeightedPodAffinityTerm,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity as ApiQuantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use super::{BuildError, TERMINATION_GRACE_S, config_map, meta};
use crate::{
    controller::{
        names,
        validate::{ValidatedCluster, ValidatedZone},
    },
    crd::{self, HostAntiAffinity, ImagePullPolicy, ResourceAmounts},
};

/// The user and group of the images.
const USER: i64 = 65532;

/// The StatefulSet of a zone. `Parallel`, for nodes start in any order; `OnDelete`, for the operator restarts them one at
/// a time over all zones.
pub(super) fn stateful_set(
    cluster: &ValidatedCluster,
    zone: &ValidatedZone,
    config: &str,
) -> Result<StatefulSet, BuildError> {
    let name = &zone.layout.stateful_set;
    let mut metadata = meta::owned(cluster, name.clone());
    metadata.annotations = Some(meta::with(
        identity(cluster, zone),
        [(names::WEIGHT, zone.layout.weight.to_string())],
    ));
    let retain = StatefulSetPersistentVolumeClaimRetentionPolicy {
        when_deleted: Some("Retain".into()),
        when_scaled: Some("Retain".into()),
    };
    let selector = meta::with(
        names::selector(&cluster.name),
        [(names::STATEFUL_SET, name.clone())],
    );
    Ok(StatefulSet {
        metadata,
        spec: Some(StatefulSetSpec {
            replicas: i32::try_from(zone.pods).ok(),
            service_name: Some(names::nodes_service(&cluster.name)),
            pod_management_policy: Some("Parallel".into()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".into()),
                rolling_update: None,
            }),
            // Kubernetes deletes no volume: storage.whenDeleted is a matter of the claims' owners.
            persistent_volume_claim_retention_policy: Some(retain),
            revision_history_limit: Some(3),
            selector: LabelSelector {
                match_labels: Some(selector.clone()),
                ..LabelSelector::default()
            },
            template: template(cluster, zone, config, selector)?,
            volume_claim_templates: Some(vec![claim(cluster, zone)]),
            ..StatefulSetSpec::default()
        }),
        status: None,
    })
}

fn identity(cluster: &ValidatedCluster, zone: &ValidatedZone) -> BTreeMap<String, String> {
    let id = [(names::CLUSTER_ID.to_owned(), cluster.cluster_id.to_string())];
    let zone = Some(&zone.layout.zone).filter(|zone| !zone.is_empty());
    id.into_iter()
        .chain(zone.map(|zone| (names::ZONE.to_owned(), zone.clone())))
        .collect()
}

fn claim(cluster: &ValidatedCluster, zone: &ValidatedZone) -> PersistentVolumeClaim {
    let labels = names::labels(&cluster.name);
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(names::CLAIM.into()),
            labels: Some(meta::with(
                labels,
                [(names::STATEFUL_SET, zone.layout.stateful_set.clone())],
            )),
            annotations: Some(identity(cluster, zone)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            storage_class_name: cluster.spec.storage.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), ApiQuantity(zone.claim_size.0.clone()))].into()),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

fn template(
    cluster: &ValidatedCluster,
    zone: &ValidatedZone,
    config: &str,
    selector: BTreeMap<String, String>,
) -> Result<PodTemplateSpec, BuildError> {
    let mut labels = cluster.spec.pod_labels.clone();
    labels.extend(names::labels(&cluster.name));
    labels.extend(selector);
    if !zone.layout.zone.is_empty() {
        labels.insert(names::ZONE.into(), zone.layout.zone.clone());
    }
    let annotations = meta::with(
        cluster.spec.pod_annotations.clone(),
        [(names::CONFIG_HASH, meta::hash_of(&config)?)],
    );
    let mut template = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: Some(annotations.clone()),
            ..ObjectMeta::default()
        }),
        spec: Some(pod(cluster, zone)),
    };
    let hash = meta::hash_of(&template)?;
    if let Some(metadata) = &mut template.metadata {
        metadata.annotations = Some(meta::with(annotations, [(names::TEMPLATE_HASH, hash)]));
    }
    Ok(template)
}

fn pod(cluster: &ValidatedCluster, zone: &ValidatedZone) -> PodSpec {
    let config = ConfigMapVolumeSource {
        name: names::config_map(&cluster.name),
        default_mode: Some(0o444),
        ..ConfigMapVolumeSource::default()
    };
    let tolerations: Vec<Toleration> = cluster
        .spec
        .placement
        .tolerations
        .iter()
        .map(toleration)
        .collect();
    PodSpec {
        service_account_name: Some(names::service_account(&cluster.name)),
        automount_service_account_token: Some(false),
        // Services named `dynamo` would set variables that the node takes for its configuration.
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(TERMINATION_GRACE_S),
        node_selector: Some(zone.node_selector.clone()).filter(|selector| !selector.is_empty()),
        affinity: Some(affinity(cluster)),
        tolerations: Some(tolerations).filter(|tolerations| !tolerations.is_empty()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            fs_group_change_policy: Some("OnRootMismatch".into()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        containers: vec![container(cluster)],
        volumes: Some(vec![Volume {
            name: "config".into(),
            config_map: Some(config),
            ..Volume::default()
        }]),
        ..PodSpec::default()
    }
}

fn container(cluster: &ValidatedCluster) -> Container {
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let port = |name: &str, port: i32| ContainerPort {
        name: Some(name.into()),
        container_port: port,
        protocol: Some("TCP".into()),
        ..ContainerPort::default()
    };
    Container {
        name: names::CONTAINER.into(),
        image: Some(cluster.image.clone()),
        image_pull_policy: cluster.spec.image_pull_policy.map(pull_policy),
        args: Some(
            [
                "--config".to_owned(),
                format!("/etc/dynamo/{}", config_map::FILE),
                "--data-dir".to_owned(),
                "/var/lib/dynamo".to_owned(),
                "--advertise-host".to_owned(),
                names::host(&cluster.name, &cluster.namespace, "$(POD_NAME)"),
            ]
            .into(),
        ),
        env: Some(vec![EnvVar {
            name: "POD_NAME".into(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    api_version: Some("v1".into()),
                    field_path: "metadata.name".into(),
                }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        }]),
        ports: Some(vec![
            port("client", 7700),
            port("peer", 7701),
            port("admin", 7702),
            port("http", 9700),
        ]),
        // Five minutes to open the store before liveness counts; ready within two seconds of being so; restarted after
        // a minute of silence, never because of peers.
        startup_probe: Some(probe("/livez", 1, 300)),
        liveness_probe: Some(probe("/livez", 10, 6)),
        readiness_probe: Some(probe("/readyz", 2, 2)),
        resources: Some(ResourceRequirements {
            requests: amounts(&cluster.spec.resources.requests),
            limits: amounts(&cluster.spec.resources.limits),
            ..ResourceRequirements::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".into()]),
                add: None,
            }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![
            mount(names::CLAIM, "/var/lib/dynamo", false),
            mount("config", "/etc/dynamo", true),
        ]),
        ..Container::default()
    }
}

fn probe(path: &str, period_s: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String("http".into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_s),
        timeout_seconds: Some(if period_s > 5 { 5 } else { 1 }),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn affinity(cluster: &ValidatedCluster) -> Affinity {
    let term = PodAffinityTerm {
        topology_key: names::HOSTNAME.into(),
        label_selector: Some(LabelSelector {
            match_labels: Some(names::selector(&cluster.name)),
            ..LabelSelector::default()
        }),
        ..PodAffinityTerm::default()
    };
    let rule = match cluster.spec.placement.host_anti_affinity {
        HostAntiAffinity::Required => PodAntiAffinity {
            required_during_scheduling_ignored_during_execution: Some(vec![term]),
            ..PodAntiAffinity::default()
        },
        HostAntiAffinity::Preferred => PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
                weight: 100,
                pod_affinity_term: term,
            }]),
            ..PodAntiAffinity::default()
        },
    };
    Affinity {
        pod_anti_affinity: Some(rule),
        ..Affinity::default()
    }
}

fn toleration(toleration: &crd::Toleration) -> Toleration {
    let operator = toleration.operator.map(|operator| match operator {
        crd::TolerationOperator::Exists => "Exists",
        crd::TolerationOperator::Equal => "Equal",
    });
    let effect = toleration.effect.map(|effect| match effect {
        crd::TaintEffect::NoSchedule => "NoSchedule",
        crd::TaintEffect::PreferNoSchedule => "PreferNoSchedule",
        crd::TaintEffect::NoExecute => "NoExecute",
    });
    Toleration {
        key: toleration.key.clone(),
        operator: operator.map(Into::into),
        value: toleration.value.clone(),
        effect: effect.map(Into::into),
        toleration_seconds: toleration.toleration_seconds,
    }
}

fn pull_policy(policy: ImagePullPolicy) -> String {
    match policy {
        ImagePullPolicy::Always => "Always",
        ImagePullPolicy::IfNotPresent => "IfNotPresent",
        ImagePullPolicy::Never => "Never",
    }
    .into()
}

fn amounts(amounts: &ResourceAmounts) -> Option<BTreeMap<String, ApiQuantity>> {
    let named = [("cpu", &amounts.cpu), ("memory", &amounts.memory)];
    let set = named
        .into_iter()
        .filter_map(|(name, amount)| Some((name, amount.as_ref()?)));
    let set: BTreeMap<_, _> = set
        .map(|(name, amount)| (name.to_owned(), ApiQuantity(amount.0.clone())))
        .collect();
    Some(set).filter(|set| !set.is_empty())
}
