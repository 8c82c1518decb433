//! Connections, with a bound on their number and on their silence.

use std::{
    future::Future as _,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::serve::Listener;
use futures::{Stream, stream::unfold};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tonic::transport::server::Connected;

/// The least that a client says first, in bytes: as many as begin every HTTP/2 connection.
const FIRST_BYTES: usize = 24;
/// How long it may take to say that. Pings find dead connections only after it.
const FIRST_BYTES_WAIT: Duration = Duration::from_secs(5);

/// A port with a bound on its connections. Beyond it a new one is closed at once: its client sees a reset and goes
/// elsewhere, where waiting in the backlog would look like a slow node.
pub(crate) struct Bounded<L> {
    listener: L,
    permits: Arc<Semaphore>,
    port_name: &'static str,
}

/// A connection that holds its place under the bound while it lives.
pub(crate) struct Connection<S> {
    stream: S,
    /// Bytes still to come, and until when; none once they have.
    first: Option<(usize, Pin<Box<Sleep>>)>,
    _permit: OwnedSemaphorePermit,
}

impl<L> Bounded<L> {
    pub(crate) fn new(listener: L, port_name: &'static str, connections_max: usize) -> Self {
        Self {
            listener,
            permits: Arc::new(Semaphore::new(connections_max)),
            port_name,
        }
    }
}

impl<L: Listener<Addr = SocketAddr>> Bounded<L> {
    /// As tonic wants it.
    pub(crate) fn incoming(self) -> impl Stream<Item = io::Result<Connection<L::Io>>> {
        unfold(self, |mut bounded| async move {
            let (connection, _) = bounded.accept().await;
            Some((Ok(connection), bounded))
        })
    }
}

impl<L: Listener<Addr = SocketAddr>> Listener for Bounded<L> {
    type Io = Connection<L::Io>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (stream, peer) = self.listener.accept().await;
            if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
                let first = Some((FIRST_BYTES, Box::pin(sleep(FIRST_BYTES_WAIT))));
                let connection = Connection {
                    stream,
                    first,
                    _permit: permit,
                };
                return (connection, peer);
            }
            tracing::warn!(port = self.port_name, %peer, "refused a connection beyond the bound");
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some((to_come, until)) = &mut self.first {
            *to_come = to_come.saturating_sub(buf.filled().len() - filled);
            if *to_come == 0 {
                self.first = None;
            } else if read.is_pending() && until.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
