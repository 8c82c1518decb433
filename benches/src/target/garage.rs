//! Garage's K2V over HTTP, with requests signed as AWS defines it (version 4). Its own client is under the AGPL, so this is not it.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures::future::BoxFuture;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use crate::system::Target;

/// The bucket of all keys, and the region that the servers are told.
pub(crate) const BUCKET: &str = "kvbench";
pub(crate) const REGION: &str = "garage";

const REQUEST: Duration = Duration::from_secs(10);
const TOKEN: &str = "x-garage-causality-token";
/// The server then need not hash what it receives.
const PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// An access key.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) secret: String,
}

struct Garage {
    client: Client<HttpConnector, Full<Bytes>>,
    /// Host and port of each server.
    hosts: Vec<String>,
    key: Key,
    turn: AtomicUsize,
}

/// What a key holds, and the word for exactly that.
struct Found {
    value: Bytes,
    token: String,
}

pub(crate) fn connect(hosts: Vec<String>, key: Key) -> Arc<dyn Target> {
    Arc::new(client(hosts, key))
}

fn client(hosts: Vec<String>, key: Key) -> Garage {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    Garage {
        client,
        hosts,
        key,
        turn: AtomicUsize::new(0),
    }
}

/// Whether a server reads with a quorum.
pub(crate) async fn serves(host: String, key: Key) -> bool {
    let read = async { client(vec![host], key).read(b"kvbench").await };
    timeout(REQUEST, read).await.is_ok_and(|found| found.is_ok())
}

impl Garage {
    async fn read(&self, key: &[u8]) -> Result<Option<Found>> {
        let response = self.request(Method::GET, key, None, Bytes::new()).await?;
        let (head, value) = response.into_parts();
        let token = head
            .headers
            .get(TOKEN)
            .map(|token| token.to_str().map(str::to_owned));
        match (head.status, token) {
            (StatusCode::OK, Some(token)) => {
                let siblings = head
                    .headers
                    .get(header::CONTENT_TYPE)
                    .is_some_and(|kind| kind == "application/json");
                let value = if siblings { first(&value)? } else { value };
                Ok(Some(Found { value, token: token? }))
            }
            (StatusCode::NOT_FOUND | StatusCode::NO_CONTENT, _) => Ok(None),
            (status, _) => bail!(
                "Garage answered a get with {status}: {}",
                String::from_utf8_lossy(&value)
            ),
        }
    }

    async fn write(&self, key: &[u8], value: Bytes, token: Option<String>) -> Result<()> {
        let response = self.request(Method::PUT, key, token, value).await?;
        if response.status().is_success() {
            return Ok(());
        }
        bail!(
            "Garage answered a put with {}: {}",
            response.status(),
            String::from_utf8_lossy(response.body())
        )
    }

    async fn request(
        &self,
        method: Method,
        key: &[u8],
        token: Option<String>,
        body: Bytes,
    ) -> Result<Response<Bytes>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let host = &self.hosts[turn % self.hosts.len()];
        // Its keys are texts; ours need not be.
        let (path, query) = (format!("/{BUCKET}/keys"), format!("sort_key={}", hex(key)));
        let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let headers = [
            ("host", host.as_str()),
            ("x-amz-content-sha256", PAYLOAD),
            ("x-amz-date", &time),
        ];
        let signed = Signed {
            method: method.as_str(),
            path: &path,
            query: &query,
            headers,
            payload: PAYLOAD,
        };
        let authorization = signed.authorization(&self.key, &time, REGION, "k2v");
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{host}{path}?{query}"))
            .header(header::AUTHORIZATION, authorization)
            .header(header::ACCEPT, "*/*");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(token) = token {
            request = request.header(TOKEN, token);
        }
        let request = request.body(Full::new(body)).context("make a request")?;
        let answer = async {
            let (head, body) = self.client.request(request).await?.into_parts();
            anyhow::Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
        };
        timeout(REQUEST, answer)
            .await
            .context("Garage did not answer in time")?
            .context("reach Garage")
    }
}

impl Target for Garage {
    /// A put without a token would become a sibling of what is there, and a hot key one of thousands: so this is what a program
    /// does that wants to replace a value, a get for the token and a put with it.
    fn put(&self, key: Bytes, value: Bytes) -> BoxFuture<'_, Result<()>> {
        self.read_modify_write(key, value)
    }

    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>>> {
        Box::pin(async move { Ok(self.read(&key).await?.map(|found| found.value)) })
    }

    fn read_modify_write(&self, key: Bytes, value: Bytes) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let token = self.read(&key).await?.map(|found| found.token);
            self.write(&key, value, token).await
        })
    }
}

/// Siblings come as a JSON array of base64; a measurement is content with one of them.
fn first(siblings: &[u8]) -> Result<Bytes> {
    let siblings: Vec<Option<String>> = serde_json::from_slice(siblings).context("read siblings")?;
    let value = siblings.into_iter().flatten().next().unwrap_or_default();
    Ok(Bytes::from(
        BASE64_STANDARD.decode(value).context("read a sibling")?,
    ))
}

/// What a signature covers. Path and query have no sign that would have to be escaped, headers are sorted by their names.
struct Signed<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    headers: [(&'a str, &'a str); 3],
    payload: &'a str,
}

impl Signed<'_> {
    fn authorization(&self, key: &Key, time: &str, region: &str, service: &str) -> String {
        let names = self.headers.map(|(name, _)| name).join(";");
        let day = time.split('T').next().unwrap_or_default();
        let scope = format!("{day}/{region}/{service}/aws4_request");
        let request = hex(&Sha256::digest(self.canonical(&names)));
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{request}");
        let secret = format!("AWS4{}", key.secret).into_bytes();
        let signing_key = [day, region, service, "aws4_request"]
            .iter()
            .fold(secret, |key, part| mac(&key, part.as_bytes()));
        let signature = hex(&mac(&signing_key, text.as_bytes()));
        format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            key.id
        )
    }

    fn canonical(&self, names: &str) -> String {
        let headers = self
            .headers
            .map(|(name, value)| format!("{name}:{value}\n"))
            .concat();
        format!(
            "{}\n{}\n{}\n{headers}\n{names}\n{}",
            self.method, self.path, self.query, self.payload
        )
    }
}

fn mac(key: &[u8], text: &[u8]) -> Vec<u8> {
    // A key of any length will do for HMAC.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return Vec::new();
    };
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example "GET Bucket Lifecycle" of Amazon's description of signatures in headers.
    #[test]
    fn a_signature_is_the_one_of_the_published_example() {
        let key = Key {
            id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
        };
        let nothing = hex(&Sha256::digest(b""));
        let time = "20130524T000000Z";
        let signed = Signed {
            method: "GET",
            path: "/",
            query: "lifecycle=",
            headers: [
                ("host", "examplebucket.s3.amazonaws.com"),
                ("x-amz-content-sha256", &nothing),
                ("x-amz-date", time),
            ],
            payload: &nothing,
        };
        assert_eq!(
            signed.authorization(&key, time, "us-east-1", "s3"),
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
             SignedHeaders=host;x-amz-content-sha256;x-amz-date, \
             Signature=fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
        );
    }

    #[test]
    fn of_siblings_the_first_value_counts() {
        assert_eq!(first(br#"[null, "YWI=", "Yw=="]"#).unwrap(), "ab");
        assert!(first(b"ab").is_err());
    }
}
