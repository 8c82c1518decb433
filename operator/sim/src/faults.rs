//! What may happen to the calls of an operator, to the API server and to nodes: a layer under its client, and a word for
//! every call to a node. Calls are counted, so that a test can name one.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use futures::{FutureExt as _, future::BoxFuture};
use http::{HeaderValue, Method, Request, Response};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::json;
use tower::{BoxError, Layer, Service};

use crate::api_server::VERSIONS_OLD;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fate {
    /// It is answered.
    #[default]
    Answered,
    /// The operator dies before it arrives. From then on nothing gets through.
    DiesBefore,
    /// It is done, and the operator dies before it hears of it.
    DiesAfter,
    /// It is done, and the answer is lost: a time-out.
    AnswerLost,
    /// It is not done, with this HTTP status; a node is silent then.
    Refused(u16),
    /// A read is answered as so many versions ago. Only the simulated API server knows them.
    Old(u8),
}

/// When an operator dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before a call arrives.
    Before,
    /// After it is done.
    After,
}

/// One call of an operator.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its number among all, from 0.
    pub number: usize,
    /// Its number among those that change something, if it is one.
    pub write: Option<usize>,
    /// Method and path, or what is asked of which node.
    pub what: String,
}

type Fates = Box<dyn FnMut(&Call) -> Fate + Send>;

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    writes: Vec<String>,
    fates: Option<Fates>,
    dead: bool,
}

/// The calls of one operator, and what becomes of them; clones are the same.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

/// Nothing gets through.
#[derive(Debug)]
pub struct Dead;

impl fmt::Display for Dead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the operator is dead")
    }
}

impl std::error::Error for Dead {}

impl Faults {
    /// Calls end as `fates` says.
    pub fn new(fates: impl FnMut(&Call) -> Fate + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(State {
            fates: Some(Box::new(fates)),
            ..State::default()
        })))
    }

    /// This becomes of the nth write, counted from 0.
    pub fn at_write(write: usize, fate: Fate) -> Self {
        Self::new(move |call| {
            if call.write == Some(write) {
                fate
            } else {
                Fate::Answered
            }
        })
    }

    /// This becomes of the nth call, counted from 0.
    pub fn at_call(number: usize, fate: Fate) -> Self {
        Self::new(move |call| {
            if call.number == number {
                fate
            } else {
                Fate::Answered
            }
        })
    }

    /// Dies at the nth write, counted from 0.
    pub fn dying_at(write: usize, when: When) -> Self {
        Self::at_write(
            write,
            match when {
                When::Before => Fate::DiesBefore,
                When::After => Fate::DiesAfter,
            },
        )
    }

    /// The operator is no more.
    pub fn dead(&self) -> bool {
        self.0.lock().unwrap().dead
    }

    /// All calls until now.
    pub fn calls(&self) -> Vec<Call> {
        self.0.lock().unwrap().calls.clone()
    }

    /// Those that change something.
    pub fn writes(&self) -> Vec<String> {
        self.0.lock().unwrap().writes.clone()
    }

    /// Nothing goes wrong any more. The dead stay dead.
    pub fn end(&self) {
        self.0.lock().unwrap().fates = None;
    }

    /// Counts a call, and says what becomes of it.
    ///
    /// # Errors
    /// If the operator is dead, or dies before it.
    pub fn fate(&self, what: String, writes: bool) -> Result<Fate, Dead> {
        let mut state = self.0.lock().unwrap();
        if state.dead {
            return Err(Dead);
        }
        let call = Call {
            number: state.calls.len(),
            write: writes.then_some(state.writes.len()),
            what,
        };
        if writes {
            state.writes.push(call.what.clone());
        }
        let fate = state.fates.as_mut().map_or(Fate::Answered, |fates| fates(&call));
        state.calls.push(call);
        if fate == Fate::DiesBefore {
            state.dead = true;
            return Err(Dead);
        }
        Ok(fate)
    }

    /// The operator dies now.
    pub fn die(&self) {
        self.0.lock().unwrap().dead = true;
    }
}

impl<S> Layer<S> for Faults {
    type Service = Faulty<S>;

    fn layer(&self, inner: S) -> Faulty<S> {
        Faulty {
            inner,
            faults: self.clone(),
        }
    }
}

/// See [`Faults`].
#[derive(Clone)]
pub struct Faulty<S> {
    inner: S,
    faults: Faults,
}

type Answer = http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, BoxError>;

impl<S, B> Service<Request<Body>> for Faulty<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Answer>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let faults = self.faults.clone();
        let what = format!("{} {}", request.method(), request.uri().path());
        let fate = match faults.fate(what, request.method() != Method::GET) {
            Err(dead) => return futures::future::err(dead.into()).boxed(),
            Ok(Fate::Refused(code)) => return futures::future::ok(refused(code)).boxed(),
            Ok(fate) => fate,
        };
        if let Fate::Old(versions) = fate {
            request
                .headers_mut()
                .insert(VERSIONS_OLD, HeaderValue::from(u16::from(versions)));
        }
        let call = self.inner.call(request);
        async move {
            let response = call.await;
            match fate {
                Fate::DiesAfter => {
                    faults.die();
                    Err(Dead.into())
                }
                Fate::AnswerLost => Ok(refused(504)),
                _ => response.map(|response| response.map(|body| body.map_err(Into::into).boxed_unsync())),
            }
        }
        .boxed()
    }
}

fn refused(code: u16) -> Response<Answer> {
    let reason = match code {
        409 => "Conflict",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        other => unimplemented!("{other}"),
    };
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "reason": reason, "message": "by the test", "code": code,
    });
    let body = http_body_util::Full::new(serde_json::to_vec(&status).unwrap().into());
    let body = body.map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}
