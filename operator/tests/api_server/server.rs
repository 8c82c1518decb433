//! etcd and kube-apiserver on free loopback ports, with the CRD and the chart's RBAC. They end, and their folder goes,
//! when this process does, however it ends: a shell that waits for the end of its standard input kills them. (Asked to end
//! in good order, kube-apiserver waits for minutes for an etcd that has ended sooner; nothing here is worth keeping.)

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use dynamo_operator_sim::world::k8s_node;
use k8s_openapi::{
    api::core::v1::{Namespace, Node},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config,
    api::{ApiResource, DynamicObject, GroupVersionKind, ObjectMeta, Patch, PatchParams, PostParams},
    runtime::{conditions, wait::await_condition},
};
use serde::Deserialize as _;
use serde_json::{Value, json};

/// Who the operator is under the chart's RBAC.
pub const OPERATOR: &str = "system:serviceaccount:dynamo-system:op-dynamo-operator";

pub struct Server {
    pub url: String,
    pub kubeconfig: PathBuf,
    /// Keeps the shell's standard input open.
    _shell: Child,
}

const SCRIPT: &str = r#"
trap 'kill -9 $api $etcd 2>/dev/null; wait 2>/dev/null; rm -rf "$DIR"' EXIT
trap 'exit 0' INT TERM
"$BIN/etcd" --data-dir "$DIR/etcd" --listen-client-urls "$ETCD" --advertise-client-urls "$ETCD" \
    --listen-peer-urls "$PEER" --initial-advertise-peer-urls "$PEER" --initial-cluster "default=$PEER" \
    --unsafe-no-fsync --log-level warn >"$DIR/etcd.log" 2>&1 & etcd=$!
"$BIN/kube-apiserver" --etcd-servers "$ETCD" --bind-address 127.0.0.1 --secure-port "$PORT" --cert-dir "$DIR/certs" \
    --token-auth-file "$DIR/tokens.csv" --authorization-mode RBAC --service-cluster-ip-range 10.96.0.0/16 \
    --service-account-issuer https://kubernetes.default.svc --service-account-signing-key-file "$DIR/sa.key" \
    --service-account-key-file "$DIR/sa.pub" --enable-priority-and-fairness=false >"$DIR/api.log" 2>&1 & api=$!
read -r _
"#;

/// The one server that the tests of this process share.
pub async fn shared() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    static READY: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
    let server = SERVER.get_or_init(Server::start);
    READY
        .get_or_init(|| async {
            server.wait().await;
            server.install_crd().await;
            server.install_rbac().await;
            server.add_k8s_nodes(&["a", "b", "c"]).await;
        })
        .await;
    server
}

pub fn tool(name: &str) -> PathBuf {
    let path = bin().join(name);
    assert!(
        path.exists(),
        "{} is missing: build it with `e2e/kind/build-tools api`",
        path.display()
    );
    path
}

fn bin() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = set("DYNAMO_CACHE").or_else(|| {
        let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
        base.map(|base| base.join("dynamo-kubernetes"))
    });
    let cache = cache.unwrap();
    cache.join("kube/bin")
}

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

impl Server {
    pub fn start() -> Self {
        tool("etcd");
        tool("kube-apiserver");
        let dir = tempfile::Builder::new()
            .prefix("dynamo-api-server-")
            .tempdir()
            .unwrap()
            .keep();
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(dir.join("sa.key"), key.serialize_pem()).unwrap();
        std::fs::write(dir.join("sa.pub"), key.public_key_pem()).unwrap();
        std::fs::write(dir.join("tokens.csv"), "admin,admin,admin,\"system:masters\"\n").unwrap();
        let [etcd, peer, port] = free_ports();
        let url = format!("https://127.0.0.1:{port}");
        let kubeconfig = dir.join("kubeconfig");
        write_kubeconfig(&kubeconfig, &url, "admin");
        let shell = Command::new("sh")
            .args(["-c", SCRIPT])
            .env("DIR", &dir)
            .env("BIN", bin())
            .env("ETCD", format!("http://127.0.0.1:{etcd}"))
            .env("PEER", format!("http://127.0.0.1:{peer}"))
            .env("PORT", port.to_string())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            url,
            kubeconfig,
            _shell: shell,
        }
    }

    pub fn config(&self) -> Config {
        let mut config = Config::new(self.url.parse().unwrap());
        config.accept_invalid_certs = true;
        config.auth_info.token = Some("admin".to_owned().into());
        config
    }

    /// The same as an ordinary user, with that user's rights and no more.
    pub fn config_as(&self, user: &str) -> Config {
        let mut config = self.config();
        config.headers.push((
            http::HeaderName::from_static("impersonate-user"),
            user.parse().unwrap(),
        ));
        config
    }

    pub fn client(&self) -> Client {
        Client::try_from(self.config()).unwrap()
    }

    pub async fn wait(&self) {
        let client = self.client();
        let mut last = String::new();
        for _ in 0..600 {
            let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
            match client.request_text(request).await {
                Ok(text) if text == "ok" => return,
                Ok(text) => last = text,
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let log = self.kubeconfig.with_file_name("api.log");
        let log = std::fs::read_to_string(log).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(20).collect();
        panic!(
            "kube-apiserver is not ready after 60 s: {last}\n{}",
            tail.join("\n")
        );
    }

    pub async fn install_crd(&self) {
        let text = std::fs::read_to_string(repository().join("crds/dynamoclusters.yaml")).unwrap();
        let crd: Value = serde_yaml::from_str(&text).unwrap();
        let api = Api::<CustomResourceDefinition>::all(self.client());
        let params = PatchParams::apply("test").validation_strict();
        api.patch("dynamoclusters.dynamo.rs", &params, &Patch::Apply(crd))
            .await
            .unwrap();
        await_condition(api, "dynamoclusters.dynamo.rs", conditions::is_crd_established())
            .await
            .unwrap();
    }

    /// What the chart gives the operator, rendered by helm.
    pub async fn install_rbac(&self) {
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some("dynamo-system".into()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        Api::<Namespace>::all(self.client())
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap();
        let chart = repository().join("charts/dynamo-operator");
        let output = Command::new(tool("helm"))
            .args([
                "template",
                "op",
                chart.to_str().unwrap(),
                "--namespace",
                "dynamo-system",
            ])
            .args([
                "--show-only",
                "templates/rbac.yaml",
                "--show-only",
                "templates/serviceaccount.yaml",
            ])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        for document in serde_yaml::Deserializer::from_str(&text) {
            let object = Value::deserialize(document).unwrap();
            if !object.is_null() {
                self.apply(object).await;
            }
        }
    }

    /// A kubeconfig with a token of the operator's own ServiceAccount, as its pod would have.
    pub async fn operators_kubeconfig(&self) -> PathBuf {
        let path = "/api/v1/namespaces/dynamo-system/serviceaccounts/op-dynamo-operator/token";
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}});
        let request = http::Request::post(path).header("content-type", "application/json");
        let request = request.body(serde_json::to_vec(&body).unwrap()).unwrap();
        let answer: Value = self.client().request(request).await.unwrap();
        let path = self.kubeconfig.with_file_name("operator.kubeconfig");
        write_kubeconfig(&path, &self.url, answer["status"]["token"].as_str().unwrap());
        path
    }

    async fn apply(&self, object: Value) {
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let types = object.types.clone().unwrap();
        let gvk = GroupVersionKind::try_from(&types).unwrap();
        let resource = ApiResource::from_gvk(&gvk);
        let api = match &object.metadata.namespace {
            Some(namespace) => Api::<DynamicObject>::namespaced_with(self.client(), namespace, &resource),
            None => Api::all_with(self.client(), &resource),
        };
        let params = PatchParams::apply("helm").validation_strict();
        api.patch(
            object.metadata.name.as_ref().unwrap(),
            &params,
            &Patch::Apply(&object),
        )
        .await
        .unwrap();
    }

    pub async fn add_k8s_nodes(&self, zones: &[&str]) {
        let api = Api::<Node>::all(self.client());
        for zone in zones {
            api.create(&PostParams::default(), &k8s_node(zone)).await.unwrap();
        }
    }
}

fn write_kubeconfig(path: &Path, url: &str, token: &str) {
    let text = serde_yaml::to_string(&json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url, "insecure-skip-tls-verify": true}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }));
    std::fs::write(path, text.unwrap()).unwrap();
}

/// Ports that nobody listens on now.
fn free_ports<const N: usize>() -> [u16; N] {
    // All are held until all are found, so that none is found twice.
    let listeners: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
