//! Servers that store nothing: this program itself, started again. What they cost, gRPC costs.

use std::{path::Path, process::Stdio, sync::Arc};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::BoxStream};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::TcpListener,
    process::{Child, Command},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

use crate::{
    proto::{
        Answer, Answers, Ask, Asks,
        echo_server::{Echo, EchoServer},
    },
    system::{Servers, Shape, Target},
    target,
};

/// As `echo.proto` has it.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// How operations travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Calls,
    Batches,
}

struct Processes {
    children: Vec<Child>,
    addresses: Vec<String>,
    manner: Manner,
}

pub(crate) fn start_calls(_: &Path, shape: Shape) -> BoxFuture<'_, Result<Box<dyn Servers>>> {
    start(shape, Manner::Calls).boxed()
}

pub(crate) fn start_batches(_: &Path, shape: Shape) -> BoxFuture<'_, Result<Box<dyn Servers>>> {
    start(shape, Manner::Batches).boxed()
}

async fn start(shape: Shape, manner: Manner) -> Result<Box<dyn Servers>> {
    let program = std::env::current_exe().context("cannot find the running program")?;
    let mut processes = Processes {
        children: Vec::new(),
        addresses: Vec::new(),
        manner,
    };
    for _ in 0..shape.nodes {
        // Its standard input ends with this process, and it with that.
        let child = Command::new(&program)
            .arg("serve-echo")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = child.with_context(|| format!("cannot start {} serve-echo", program.display()))?;
        let output = child.stdout.take().context("serve-echo has no standard output")?;
        let mut line = String::new();
        BufReader::new(output)
            .read_line(&mut line)
            .await
            .context("serve-echo does not say where it listens")?;
        processes.addresses.push(line.trim().to_owned());
        processes.children.push(child);
    }
    Ok(Box::new(processes))
}

impl Servers for Processes {
    fn pids(&self) -> Vec<u32> {
        self.children.iter().filter_map(Child::id).collect()
    }

    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Target>>> {
        match self.manner {
            Manner::Calls => target::echo::connect_calls(&self.addresses).boxed(),
            Manner::Batches => target::echo::connect_batches(&self.addresses).boxed(),
        }
    }

    fn guarantee(&self) -> &'static str {
        "stores nothing"
    }

    fn stop(mut self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        async move {
            for child in &mut self.children {
                child.kill().await.context("cannot end serve-echo")?;
            }
            Ok(())
        }
        .boxed()
    }
}

/// `kvbench serve-echo`: serves until its standard input ends.
pub(crate) async fn serve() -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))
        .await
        .context("cannot listen on loopback")?;
    println!("{}", listener.local_addr()?);
    // `serve_with_incoming` leaves the sockets as they are; without this an answer may wait 40 ms for company.
    let incoming = TcpListenerStream::new(listener).map(|socket| {
        let socket = socket?;
        socket.set_nodelay(true)?;
        Ok::<_, std::io::Error>(socket)
    });
    let parent = async {
        let mut nothing = [0; 64];
        while matches!(tokio::io::stdin().read(&mut nothing).await, Ok(1..)) {}
    };
    let echo = EchoServer::new(Echoing {
        random: vec![0x5a; ANSWER_BYTES_MAX].into(),
    });
    let server = Server::builder().add_service(echo);
    server
        .serve_with_incoming_shutdown(incoming, parent)
        .await
        .context("cannot serve")
}

struct Echoing {
    random: Bytes,
}

impl Echoing {
    fn answer(random: &Bytes, ask: &Ask) -> Answer {
        let bytes = (ask.answer_bytes as usize).min(ANSWER_BYTES_MAX);
        Answer {
            value: random.slice(..bytes),
        }
    }
}

#[tonic::async_trait]
impl Echo for Echoing {
    async fn call(&self, request: Request<Ask>) -> Result<Response<Answer>, Status> {
        Ok(Response::new(Self::answer(&self.random, request.get_ref())))
    }

    type BatchesStream = BoxStream<'static, Result<Answers, Status>>;

    async fn batches(
        &self,
        request: Request<Streaming<Asks>>,
    ) -> Result<Response<Self::BatchesStream>, Status> {
        let random = self.random.clone();
        let answers = request.into_inner().map(move |asks| {
            let answers = asks?.asks.iter().map(|ask| Self::answer(&random, ask)).collect();
            Ok(Answers { answers })
        });
        Ok(Response::new(answers.boxed()))
    }
}
