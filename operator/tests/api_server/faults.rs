//! A layer under the operator's client that counts writes, and lets the operator "die" at one of them: before it reaches
//! the API server, or after, with the reply lost. From then on nothing gets through.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use http::{Method, Request, Response};
use kube::client::Body;
use tower::{BoxError, Layer, Service};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Before,
    After,
}

#[derive(Debug, Default)]
struct State {
    writes: Vec<String>,
    dies_at: Option<(usize, When)>,
    dead: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Debug)]
pub struct Dead;

impl std::fmt::Display for Dead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the operator is dead")
    }
}

impl std::error::Error for Dead {}

impl Faults {
    /// Dies at the nth write, counted from 0.
    pub fn dying_at(write: usize, when: When) -> Self {
        Self(Arc::new(Mutex::new(State {
            dies_at: Some((write, when)),
            ..State::default()
        })))
    }

    pub fn dead(&self) -> bool {
        self.0.lock().unwrap().dead
    }

    pub fn writes(&self) -> Vec<String> {
        self.0.lock().unwrap().writes.clone()
    }

    /// Counts a write. `Err` if the operator is dead; else whether it dies after it.
    pub fn write(&self, what: String) -> Result<bool, Dead> {
        let mut state = self.0.lock().unwrap();
        if state.dead {
            return Err(Dead);
        }
        let number = state.writes.len();
        state.writes.push(what);
        match state.dies_at {
            Some((at, When::Before)) if at == number => {
                state.dead = true;
                Err(Dead)
            }
            Some((at, When::After)) if at == number => Ok(true),
            _ => Ok(false),
        }
    }

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

pub struct Faulty<S> {
    inner: S,
    faults: Faults,
}

impl<S, B> Service<Request<Body>> for Faulty<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
    B: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let faults = self.faults.clone();
        let fate = if request.method() == Method::GET {
            if faults.dead() { Err(Dead) } else { Ok(false) }
        } else {
            faults.write(format!("{} {}", request.method(), request.uri().path()))
        };
        match fate {
            Err(dead) => Box::pin(async move { Err(dead.into()) }),
            Ok(dies_after) => {
                let call = self.inner.call(request);
                Box::pin(async move {
                    let response = call.await;
                    if dies_after {
                        faults.die();
                        return Err(Dead.into());
                    }
                    response
                })
            }
        }
    }
}
