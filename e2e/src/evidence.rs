//! What explains a failure, kept in a folder before the cluster goes away.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::cluster::Cluster;

/// For each of the commands below.
const COMMAND: Duration = Duration::from_secs(15);
/// Lines of a log that are printed.
const PRINTED: usize = 12;
/// Characters of a line that are printed.
const WIDTH: usize = 300;

/// Writes state, events and logs to `folder`, and prints the most telling of it. Never fails: the failure that led here
/// is the news.
pub async fn keep(cluster: &Cluster, folder: &Path) {
    fs::create_dir_all(folder).ok();
    let kept = Keeper {
        cluster,
        folder: folder.to_owned(),
    };
    let (system, namespace) = (cluster.system, cluster.namespace);
    kept.command(
        "dynamoclusters.yaml",
        &["get", "dynamoclusters", "-A", "-o", "yaml"],
    )
    .await;
    let list = "pods,statefulsets,services,persistentvolumeclaims,poddisruptionbudgets,jobs";
    kept.command("objects.yaml", &["-n", namespace, "get", list, "-o", "yaml"])
        .await;
    kept.command("k8s-nodes.txt", &["get", "nodes", "-o", "wide"])
        .await;
    let pods = kept
        .command("pods.txt", &["get", "pods", "-A", "-o", "wide"])
        .await;
    let ours = |line: &&str| line.starts_with(system) || line.starts_with(namespace);
    let pods = pods.lines().filter(ours).collect::<Vec<_>>().join("\n");
    let conditions = r#"{range .status.conditions[*]}{.type}={.status} {.reason}: {.message}{"\n"}{end}"#;
    let conditions = format!("jsonpath={conditions}");
    let conditions = kept
        .command(
            "conditions.txt",
            &["-n", namespace, "get", "dync", cluster.name, "-o", &conditions],
        )
        .await;
    let mut shown = vec![("pods", pods), ("conditions", conditions)];
    for (title, of) in [("events", namespace), ("events of the operator", system)] {
        let args = ["-n", of, "get", "events", "--sort-by=.metadata.creationTimestamp"];
        shown.push((
            title,
            last(&kept.command(&format!("events-{of}.txt"), &args).await),
        ));
    }
    for of in [system, namespace] {
        shown.extend(kept.logs(of).await);
    }
    for (title, text) in shown {
        println!("    --- {title}");
        for line in text.lines() {
            println!("    {}", line.chars().take(WIDTH).collect::<String>());
        }
    }
    println!("    --- all of it is in {}", folder.display());
}

struct Keeper<'a> {
    cluster: &'a Cluster,
    folder: PathBuf,
}

impl Keeper<'_> {
    /// Runs kubectl and keeps what it says, be it an error.
    async fn command(&self, file: &str, args: &[&str]) -> String {
        let text = match self.cluster.kubectl_with(args, None, COMMAND).await {
            Ok(output) => output.stdout + &output.stderr,
            Err(error) => format!("{error:#}\n"),
        };
        fs::write(self.folder.join(file), &text).ok();
        text
    }

    /// The logs of all pods of a namespace, of the run before the last restart too; the ends of the operator's.
    async fn logs(&self, namespace: &str) -> Vec<(&'static str, String)> {
        let mut shown = Vec::new();
        let names = ["-n", namespace, "get", "pods", "-o", "name"];
        let Ok(output) = self.cluster.kubectl_with(&names, None, COMMAND).await else {
            return shown;
        };
        for pod in output.stdout.lines() {
            let file = pod.trim_start_matches("pod/");
            let log = self
                .command(&format!("{file}.log"), &["-n", namespace, "logs", pod])
                .await;
            let previous = ["-n", namespace, "logs", "--previous", pod];
            self.command(&format!("{file}.previous.log"), &previous).await;
            if namespace == self.cluster.system {
                shown.push(("log of the operator", last(&log)));
            }
        }
        shown
    }
}

fn last(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(PRINTED)..].join("\n")
}
