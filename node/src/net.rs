//! Connections, with a bound on their number.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::serve::Listener;
use futures::{Stream, stream::unfold};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tonic::transport::server::Connected;

/// A connection that holds its place under the bound while it lives.
pub(crate) struct Connection<S> {
    stream: S,
    _permit: OwnedSemaphorePermit,
}

/// Connections of one port. Beyond the bound a new one is closed at once: its client sees a reset and goes elsewhere,
/// where waiting in the backlog would look like a slow node.
pub(crate) fn incoming<L: Listener<Addr = SocketAddr>>(
    listener: L,
    port_name: &'static str,
    connections_max: usize,
) -> impl Stream<Item = io::Result<Connection<L::Io>>> {
    let permits = Arc::new(Semaphore::new(connections_max));
    unfold((listener, permits), move |(mut listener, permits)| async move {
        loop {
            let (stream, peer) = listener.accept().await;
            if let Ok(_permit) = Arc::clone(&permits).try_acquire_owned() {
                return Some((Ok(Connection { stream, _permit }), (listener, permits)));
            }
            tracing::warn!(port = port_name, %peer, "refused a connection beyond the bound");
        }
    })
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
        Pin::new(&mut self.stream).poll_read(cx, buf)
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
