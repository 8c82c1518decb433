//! The operator as a process, with the rights of the chart's ServiceAccount: waits for its CRD, leads by a lease, hands
//! it over, stops on SIGTERM.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use dynamo_operator::crd::DynamoCluster;
use dynamo_operator_sim::world::ready_reason;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::server::Server;

struct Process {
    child: Child,
    lines: Receiver<String>,
    http: SocketAddr,
}

impl Process {
    fn start(kubeconfig: &Path, name: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_dynamo-operator"))
            .args([
                "run",
                "--http-listen",
                "127.0.0.1:0",
                "--lease-namespace",
                "dynamo-system",
                "--lease-duration-s",
                "6",
            ])
            .args(["--identity", name])
            .env("KUBECONFIG", kubeconfig)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            stderr
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        let mut process = Self {
            child,
            lines,
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        let line = process.log("listening");
        process.http = line["http"].as_str().unwrap().parse().unwrap();
        process
    }

    /// The next log line with this message.
    fn log(&self, message: &str) -> Value {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self
                .lines
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("no log line {message:?}"));
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
            if line["message"] == message {
                return line;
            }
        }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.http).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    async fn eventually(&self, path: &str, part: &str) {
        let mut last = String::new();
        for _ in 0..600 {
            last = self.get(path);
            if last.contains(part) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{path} never said {part:?}: {last}");
    }

    fn terminate(&mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        self.child.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn the_process_waits_for_its_crd_leads_hands_over_and_stops() {
    let server = Server::start();
    server.wait().await;
    server.install_rbac().await;
    let kubeconfig = server.operators_kubeconfig().await;
    let mut one = Process::start(&kubeconfig, "one");
    one.eventually("/readyz", "WaitingForCRD: install crds/dynamoclusters.yaml")
        .await;
    assert!(
        one.get("/livez").starts_with("HTTP/1.0 200"),
        "it waits, it does not crash"
    );

    server.install_crd().await;
    server.add_k8s_nodes(&["a"]).await;
    one.eventually("/readyz", "200 OK").await;
    one.log("leading");
    one.eventually("/metrics", "dynamo_operator_leader 1").await;
    let mut two = Process::start(&kubeconfig, "two");
    two.log("waiting for the lease");
    assert!(two.get("/readyz").contains("200 OK"), "a standby is ready");
    assert!(two.get("/metrics").contains("dynamo_operator_leader 0"));

    // The running loop answers to a new cluster by itself.
    let clusters = Api::<DynamoCluster>::namespaced(server.client(), "default");
    let cluster = json!({
        "apiVersion": "dynamo.rs/v1alpha1", "kind": "DynamoCluster", "metadata": {"name": "demo"},
        "spec": {"zones": [{"name": "a"}]},
    });
    clusters
        .patch("demo", &PatchParams::apply("test"), &Patch::Apply(cluster))
        .await
        .unwrap();
    let begun = Instant::now();
    let settled = |cluster: Option<&DynamoCluster>| {
        cluster
            .and_then(|c| c.status.as_ref())
            .is_some_and(|status| ready_reason(status) == "WaitingForPods")
    };
    let wait = kube::runtime::wait::await_condition(clusters.clone(), "demo", settled);
    tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .unwrap()
        .unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "something is told within 5 s: {:?}",
        begun.elapsed()
    );
    one.eventually("/metrics", "dynamo_operator_reconcile_duration_seconds_count")
        .await;

    // SIGTERM: clean end, and the lease is handed over at once.
    assert!(one.terminate().success());
    two.log("leading");
    let leases = Api::<Lease>::namespaced(server.client(), "dynamo-system");
    let holder = leases
        .get("dynamo-operator")
        .await
        .unwrap()
        .spec
        .unwrap()
        .holder_identity;
    assert_eq!(holder.as_deref(), Some("two"));
    assert!(two.terminate().success());
}
