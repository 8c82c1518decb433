//! What a request asks for, read from its path, query, headers and body.

use http::{Method, request::Parts};
use serde_json::Value;

use super::{VERSIONS_OLD, kinds::Kind, store::Key};

pub(super) struct Asked {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    name: String,
    /// It is about `/status`.
    pub(super) status: bool,
    pub(super) verb: Verb,
}

pub(super) type Labels = Vec<(String, String)>;

pub(super) enum Verb {
    Get { old: usize },
    List { labels: Labels, old: usize },
    Watch { labels: Labels, since: u64 },
    Create(Value),
    Apply { manager: String, object: Value },
    Merge(Value),
    Delete(Value),
}

impl Asked {
    pub(super) fn key(&self) -> Key {
        Key {
            kind: self.kind,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }

    pub(super) fn of(head: &Parts, body: &[u8]) -> Self {
        let path = head.uri.path();
        let mut parts = path.trim_matches('/').split('/').peekable();
        let api_version = match (parts.next(), parts.next()) {
            (Some("api"), Some(version)) => version.to_owned(),
            (Some("apis"), Some(group)) => format!("{group}/{}", parts.next().unwrap_or_default()),
            _ => unimplemented!("{path}"),
        };
        let mut rest: Vec<&str> = parts.collect();
        let mut namespace = String::new();
        if rest.len() > 2 && rest[0] == "namespaces" {
            rest[1].clone_into(&mut namespace);
            rest.drain(..2);
        }
        let kind = Kind::of(&api_version, rest[0]);
        let name = rest.get(1).copied().unwrap_or_default().to_owned();
        let status = match rest.get(2).copied() {
            None => false,
            Some("status") => true,
            Some(other) => unimplemented!("{other} of {kind}"),
        };
        let query = Query::of(head.uri.query().unwrap_or_default());
        let verb = verb(head, &query, body, name.is_empty());
        Self {
            kind,
            namespace,
            name,
            status,
            verb,
        }
    }
}

fn verb(head: &Parts, query: &Query, body: &[u8], all: bool) -> Verb {
    let json = || serde_json::from_slice(body).unwrap();
    let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
    let old = header(VERSIONS_OLD).map_or(0, |text| text.parse().unwrap());
    let labels = query.get("labelSelector").map_or_else(Vec::new, labels);
    match head.method {
        Method::GET if query.get("watch").is_some() => Verb::Watch {
            labels,
            since: query.get("resourceVersion").unwrap().parse().unwrap(),
        },
        Method::GET if all => Verb::List { labels, old },
        Method::GET => Verb::Get { old },
        Method::POST => Verb::Create(json()),
        Method::PATCH if header("content-type") == Some("application/apply-patch+yaml") => {
            assert_eq!(query.get("force"), Some("true"), "only force is known");
            Verb::Apply {
                manager: query.get("fieldManager").unwrap().to_owned(),
                // JSON is YAML.
                object: json(),
            }
        }
        Method::PATCH if header("content-type") == Some("application/merge-patch+json") => {
            Verb::Merge(json())
        }
        Method::DELETE if !all => Verb::Delete(if body.is_empty() { Value::Null } else { json() }),
        _ => unimplemented!("{} {}", head.method, head.uri),
    }
}

fn labels(selector: &str) -> Labels {
    let pairs = selector.split(',').filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap();
        (key.to_owned(), value.trim_start_matches('=').to_owned())
    };
    pairs.map(pair).collect()
}

struct Query(Vec<(String, String)>);

impl Query {
    fn of(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(key), decoded(value))
        };
        Self(pairs.map(pair).collect())
    }

    fn get(&self, key: &str) -> Option<&str> {
        let mut found = self.0.iter().filter(|(name, _)| name == key);
        found.next().map(|(_, value)| value.as_str())
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).unwrap()
}
