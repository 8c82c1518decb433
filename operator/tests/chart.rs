//! The Helm chart, rendered and linted by helm itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use dynamo_operator::crd::definition::definition;
use serde::Deserialize as _;
use serde_json::{Value, json};

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("charts/dynamo-operator")
}

fn helm(args: &[&str]) -> Output {
    let helm = tool("helm");
    let home = tempfile::tempdir().unwrap();
    Command::new(&helm)
        .args(args)
        .env("HELM_CACHE_HOME", home.path())
        .env("HELM_CONFIG_HOME", home.path())
        .env("HELM_DATA_HOME", home.path())
        .env("KUBECONFIG", "/dev/null")
        .output()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", helm.display()))
}

fn tool(name: &str) -> PathBuf {
    let per_user = || {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        base.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"))
            .join("dynamo-kubernetes")
    };
    let cache = std::env::var_os("DYNAMO_CACHE").map_or_else(per_user, PathBuf::from);
    let path = cache.join("kube/bin").join(name);
    assert!(
        path.exists(),
        "{} is missing: build it with `e2e/kind/build-tools api`",
        path.display()
    );
    path
}

fn ci_values() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(chart().join("ci"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 4);
    files
}

fn template(args: &[&str]) -> Result<Vec<Value>, String> {
    let chart = chart();
    let mut all = vec!["template", "rel", chart.to_str().unwrap(), "--namespace", "sys"];
    all.extend(args);
    let output = helm(&all);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let documents =
        serde_yaml::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap());
    Ok(documents.filter(|document| !document.is_null()).collect())
}

fn rendered(values: &Path) -> Vec<Value> {
    template(&["--values", values.to_str().unwrap()]).unwrap()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

#[test]
fn lint_finds_nothing() {
    for values in ci_values() {
        let output = helm(&[
            "lint",
            "--strict",
            chart().to_str().unwrap(),
            "--values",
            values.to_str().unwrap(),
        ]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && !text.contains("[WARNING]"),
            "{}: {text}",
            values.display()
        );
    }
}

#[test]
fn the_chart_installs_the_committed_crd_and_keeps_it() {
    let objects = template(&[]).unwrap();
    let crd = of_kind(&objects, "CustomResourceDefinition")[0];
    assert_eq!(crd["spec"], definition().unwrap()["spec"]);
    assert_eq!(crd["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    let without = template(&["--set", "crds.keep=false"]).unwrap();
    assert!(of_kind(&without, "CustomResourceDefinition")[0]["metadata"]["annotations"].is_null());
    assert!(
        of_kind(
            &template(&["--set", "crds.install=false"]).unwrap(),
            "CustomResourceDefinition"
        )
        .is_empty()
    );
}

#[test]
fn operator_and_chart_have_one_release() {
    let text = std::fs::read_to_string(chart().join("Chart.yaml")).unwrap();
    let chart: Value = serde_yaml::from_str(&text).unwrap();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
}

/// Every verb that the operator has, by resource. A change here is a change of its power: look twice. K32.
fn golden_rules() -> Value {
    json!([
        "apps/statefulsets: create delete get list patch watch",
        "configmaps: create get list patch watch",
        "dynamo.rs/dynamoclusters/status: patch",
        "dynamo.rs/dynamoclusters: get list patch watch",
        "events.k8s.io/events: create patch",
        "persistentvolumeclaims: delete get list patch watch",
        "pods: delete get list watch",
        "policy/poddisruptionbudgets: create get list patch watch",
        "serviceaccounts: create get list patch watch",
        "services: create get list patch watch",
    ])
}

fn rules(role: &Value) -> Value {
    let mut lines = Vec::new();
    for rule in role["rules"].as_array().unwrap() {
        let mut verbs: Vec<&str> = rule["verbs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|verb| verb.as_str().unwrap())
            .collect();
        verbs.sort_unstable();
        for group in rule["apiGroups"].as_array().unwrap() {
            for resource in rule["resources"].as_array().unwrap() {
                let slash = if group == "" { "" } else { "/" };
                lines.push(format!(
                    "{}{slash}{}: {}",
                    group.as_str().unwrap(),
                    resource.as_str().unwrap(),
                    verbs.join(" ")
                ));
            }
        }
    }
    lines.sort();
    json!(lines)
}

#[test]
fn k32_rights_are_exactly_these_and_hold_no_wildcard() {
    for values in ci_values() {
        for role in rendered(&values)
            .iter()
            .filter(|o| o["kind"].as_str().unwrap().ends_with("Role"))
        {
            for rule in role["rules"].as_array().unwrap() {
                assert!(!rule.to_string().contains('*'), "{role}");
            }
        }
    }
    let default = template(&[]).unwrap();
    let named = |kind: &str, name: &str| {
        let found = of_kind(&default, kind)
            .into_iter()
            .find(|object| object["metadata"]["name"] == name)
            .cloned();
        found.unwrap_or_else(|| panic!("{kind} {name} is missing"))
    };
    assert_eq!(
        rules(&named("ClusterRole", "sys-rel-dynamo-operator")),
        golden_rules()
    );
    assert_eq!(
        rules(&named("ClusterRole", "sys-rel-dynamo-operator-nodes")),
        json!(["nodes: get list", "persistentvolumes: get"])
    );
    assert_eq!(
        rules(&named("Role", "rel-dynamo-operator-lease")),
        json!(["coordination.k8s.io/leases: create get patch"])
    );
}

#[test]
fn k32_with_named_namespaces_no_right_reaches_beyond_them() {
    let objects = rendered(&chart().join("ci/namespaced-values.yaml"));
    assert!(
        of_kind(&objects, "ClusterRole").is_empty() && of_kind(&objects, "ClusterRoleBinding").is_empty()
    );
    let mut namespaces: Vec<&str> = of_kind(&objects, "Role")
        .iter()
        .filter(|role| rules(role) == golden_rules())
        .map(|role| role["metadata"]["namespace"].as_str().unwrap())
        .collect();
    namespaces.sort_unstable();
    assert_eq!(namespaces, ["cart", "shop"]);
    let deployment = of_kind(&objects, "Deployment")[0];
    let args = deployment["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    assert!(args.contains("--watch-namespaces=shop,cart"), "{args}");
}

#[test]
fn k32_the_operators_pod_is_restricted() {
    for values in ci_values() {
        let objects = rendered(&values);
        let pod = &of_kind(&objects, "Deployment")[0]["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let container = &pod["containers"][0];
        assert_eq!(
            container["securityContext"],
            json!({
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            })
        );
        assert_eq!(container["args"][0], "run");
        let names: Vec<&str> = container["env"]
            .as_array()
            .unwrap()
            .iter()
            .map(|env| env["name"].as_str().unwrap())
            .collect();
        let distinct: std::collections::BTreeSet<&&str> = names.iter().collect();
        assert_eq!(
            names.len(),
            distinct.len(),
            "server-side apply refuses duplicates: {names:?}"
        );
    }
}

#[test]
fn every_flag_of_the_deployment_is_one_that_the_operator_knows() {
    use clap::Parser as _;
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        settings: dynamo_operator::run::Settings,
    }
    for values in ci_values() {
        let objects = rendered(&values);
        let args = &of_kind(&objects, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]["args"];
        let args = args
            .as_array()
            .unwrap()
            .iter()
            .map(|arg| arg.as_str().unwrap().to_owned());
        let cli = Cli::try_parse_from(args).unwrap_or_else(|error| panic!("{}: {error}", values.display()));
        assert!(cli.settings.node_image.contains("dynamo-node:"));
    }
}

#[test]
fn bad_values_are_refused_with_the_name_of_the_field() {
    for (value, field) in [
        ("replicaCont=2", "replicaCont"),
        ("replicaCount=two", "replicaCount"),
        ("image.repo=x", "repo"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("crds.install=maybe", "install"),
        ("watchNamespaces={Bad_Name}", "watchNamespaces"),
        ("leaderElection.leaseDurationSeconds=1", "leaseDurationSeconds"),
        ("logging.format=xml", "format"),
        ("metrics.port=80", "port"),
        ("clusters[0].spec.members=3", "clusters"),
        ("clusters[0].name=Bad", "name"),
        ("rbac.wildcards=true", "wildcards"),
    ] {
        let error = template(&["--set", value]).expect_err(value);
        assert!(error.contains(field), "{value}: {error}");
    }
}

#[test]
fn clusters_of_the_values_are_valid_dynamo_clusters() {
    let objects = rendered(&chart().join("ci/full-values.yaml"));
    let clusters = of_kind(&objects, "DynamoCluster");
    assert_eq!(clusters.len(), 2);
    for cluster in clusters {
        serde_json::from_value::<dynamo_operator::crd::DynamoCluster>(cluster.clone()).unwrap();
    }
}

#[test]
fn every_kubernetes_release_that_is_supported_renders() {
    for version in ["1.30.0", "1.34.4", "1.36.0"] {
        template(&["--kube-version", version]).unwrap();
    }
    let error = template(&["--kube-version", "1.29.0"]).expect_err("1.29");
    assert!(error.contains("1.30"), "{error}");
}

#[test]
fn the_notes_hold_the_sample() {
    let chart = chart();
    let notes = std::fs::read_to_string(chart.join("templates/NOTES.txt")).unwrap();
    let sample = std::fs::read_to_string(chart.join("../../operator/samples/dynamocluster.yaml")).unwrap();
    for line in sample.lines() {
        assert!(notes.contains(line), "{line} is not in NOTES.txt");
    }
}
