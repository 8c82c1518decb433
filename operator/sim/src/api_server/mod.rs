//! An API server in memory: get, list, watch, create, server-side apply, merge patches and delete, of the kinds that the
//! operator uses. What it has, it does as the real one; a test of the API server tier asks both the same and compares. What
//! it lacks panics: defaults but those of DynamoClusters, validation, rights, and everything nobody here asks for.

use std::{
    convert::Infallible,
    future::ready,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use serde_json::Value;
use tokio::sync::watch;
use tower::{BoxError, Service};

mod fields;
mod kinds;
mod request;
mod store;

pub(crate) use fields::merge;
use request::{Asked, Verb};
pub use store::Refusal;
use store::Store;

/// How many versions older than now a read is to be answered.
pub const VERSIONS_OLD: &str = "x-versions-old";
type Answer = UnsyncBoxBody<Bytes, Infallible>;
type Misses = Arc<dyn Fn(usize) -> bool + Send + Sync>;

/// The server; clones share what it stores.
#[derive(Clone)]
pub struct ApiServer {
    store: Arc<Mutex<Store>>,
    /// The newest version: watches wait for it to change.
    newest: Arc<watch::Sender<u64>>,
    /// Events that were due to watches, whether they were told or not.
    due: Arc<AtomicUsize>,
    misses: Option<Misses>,
}

impl Default for ApiServer {
    fn default() -> Self {
        Self::of(Store::default())
    }
}

impl ApiServer {
    fn of(store: Store) -> Self {
        Self {
            newest: Arc::new(watch::Sender::new(store.version())),
            store: Arc::new(Mutex::new(store)),
            due: Arc::default(),
            misses: None,
        }
    }

    /// The same server for somebody whose watches miss some events, by their numbers from 0 over all watches.
    #[must_use]
    pub fn missing(&self, misses: impl Fn(usize) -> bool + Send + Sync + 'static) -> Self {
        Self {
            due: Arc::default(),
            misses: Some(Arc::new(misses)),
            ..self.clone()
        }
    }

    /// How many events were due to the watches of whoever uses this clone.
    pub fn due(&self) -> usize {
        self.due.load(Ordering::Relaxed)
    }

    /// Another server that has stored the same, and goes its own way from here.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self::of(self.store.lock().unwrap().clone())
    }

    /// No read is answered as it was before now.
    pub fn forget(&self) {
        self.store.lock().unwrap().forget();
    }

    /// Writes since the beginning.
    pub fn version(&self) -> u64 {
        self.store.lock().unwrap().version()
    }

    fn answer(&self, asked: &Asked) -> Response<Answer> {
        let mut store = self.store.lock().unwrap();
        let result = match &asked.verb {
            Verb::Get { old } => store.get(&asked.key(), *old),
            Verb::List { labels, old } => Ok(store.list(asked.kind, &asked.namespace, labels, *old)),
            Verb::Watch { labels, since } => {
                let stream = self.watch(asked, labels.clone(), *since);
                return response(200, stream);
            }
            Verb::Create(object) => store.create(asked.kind, &asked.namespace, object.clone()),
            Verb::Apply { manager, object } => store.apply(&asked.key(), asked.status, manager, object),
            Verb::Merge(patch) => store.merge(&asked.key(), asked.status, patch),
            Verb::Delete(options) => store.delete(&asked.key(), options),
        };
        self.newest.send_if_modified(|newest| {
            let changed = *newest != store.version();
            *newest = store.version();
            changed
        });
        drop(store);
        match result {
            Ok(text) => response(200, whole(text)),
            Err(refusal) => response(refusal.code, whole(refusal.status())),
        }
    }

    /// Events of a kind after a version, for as long as somebody reads them.
    fn watch(&self, asked: &Asked, labels: Vec<(String, String)>, since: u64) -> Answer {
        let (store, kind, namespace) = (self.store.clone(), asked.kind, asked.namespace.clone());
        let newest = self.newest.subscribe();
        let events = stream::unfold((newest, since), move |(mut newest, since)| {
            let (store, namespace, labels) = (store.clone(), namespace.clone(), labels.clone());
            async move {
                loop {
                    let now = *newest.borrow_and_update();
                    let events = store
                        .lock()
                        .unwrap()
                        .events(kind, &namespace, &labels, since, now);
                    if !events.is_empty() {
                        return Some((stream::iter(events), (newest, now)));
                    }
                    newest.changed().await.ok()?;
                }
            }
        });
        let (due, misses) = (self.due.clone(), self.misses.clone());
        let told = events.flatten().filter(move |_| {
            let number = due.fetch_add(1, Ordering::Relaxed);
            ready(!misses.as_ref().is_some_and(|misses| misses(number)))
        });
        let lines = told.map(|event: Value| {
            let mut line = serde_json::to_vec(&event).unwrap();
            line.push(b'\n');
            Ok(Frame::data(Bytes::from(line)))
        });
        StreamBody::new(lines).boxed_unsync()
    }
}

fn whole(text: String) -> Answer {
    Full::new(Bytes::from(text)).boxed_unsync()
}

fn response(code: u16, body: Answer) -> Response<Answer> {
    let response = Response::builder().status(code);
    response
        .header("content-type", "application/json")
        .body(body)
        .unwrap()
}

impl Service<Request<Body>> for ApiServer {
    type Response = Response<Answer>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let server = self.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect_bytes().await?;
            // Others run between the calls of one client.
            tokio::task::yield_now().await;
            Ok(server.answer(&Asked::of(&head, &body)))
        }
        .boxed()
    }
}
