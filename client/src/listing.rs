//! Listing of keys: a stream that goes on at another node where the last one left off.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use dynamo_proto::v1;
use futures::{
    StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use tokio::time::{Instant, sleep_until};
use tonic::Streaming;

use crate::{
    attempts::{Attempts, Verdict},
    client::Client,
    error::Error,
    nodes::Node,
    status::Failed,
};

/// What to list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListOptions {
    /// Only keys that begin so.
    pub prefix: Bytes,
    /// Keys per page, 1..=1000; 0: 1000.
    pub page_size: u32,
    /// Stop after so many keys; 0: all.
    pub limit: u64,
    /// Go on after this page of an earlier listing of the same bucket and prefix.
    pub page_token: Bytes,
}

/// Some keys in the order of the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPage {
    /// Keys with a live value.
    pub keys: Vec<Bytes>,
    /// Goes on after this page; empty on the last one.
    pub next_page_token: Bytes,
}

impl Client {
    /// Every key that has a live value and begins with `prefix`: those acknowledged before the call and not deleted
    /// since, each once, in the order of the ring. Memory: one page.
    ///
    /// The stream ends after its first error.
    pub fn list_keys(&self, prefix: impl AsRef<[u8]>) -> BoxStream<'static, Result<Bytes, Error>> {
        let prefix = Bytes::copy_from_slice(prefix.as_ref());
        let pages = self.list_pages(ListOptions {
            prefix,
            ..ListOptions::default()
        });
        pages
            .map_ok(|page| stream::iter(page.keys.into_iter().map(Ok)))
            .try_flatten()
            .boxed()
    }

    /// As [`Client::list_keys`], page by page, so that a caller can go on later from a page's token.
    pub fn list_pages(&self, options: ListOptions) -> BoxStream<'static, Result<KeyPage, Error>> {
        let listing = Listing {
            client: self.clone(),
            options,
            open: None,
            finished: false,
        };
        stream::try_unfold(listing, |mut listing| async move {
            let page = listing.next_page().await?;
            Ok(page.map(|page| (page, listing)))
        })
        .boxed()
    }
}

struct Listing {
    client: Client,
    /// Its token and limit move on with each page.
    options: ListOptions,
    open: Option<Open>,
    finished: bool,
}

/// A listing under way at a node.
struct Open {
    node: Arc<Node>,
    pages: Streaming<v1::ListKeysResponse>,
}

impl Listing {
    /// The next page, within one deadline.
    async fn next_page(&mut self) -> Result<Option<KeyPage>, Error> {
        if self.finished {
            return Ok(None);
        }
        let shared = Arc::clone(&self.client.shared);
        let until = Instant::now() + shared.settings.deadline;
        // A page needs the answers of several nodes for up to a thousand keys.
        let usual = (shared.settings.deadline / 2).max(shared.settings.attempt_timeout);
        let mut attempts = Attempts::new(false);
        loop {
            let limit = until.saturating_duration_since(Instant::now()).min(usual);
            if limit.is_zero() {
                return Err(attempts.error());
            }
            let open = match self.open.take() {
                Some(open) => {
                    // Should it fail, another node is asked next.
                    attempts.begin(open.node.id);
                    Ok(open)
                }
                None => self.begin(&mut attempts, limit, usual).await,
            };
            let failed = match open {
                Ok(open) => match self.read(open, limit, usual).await {
                    Ok(page) => return Ok(page),
                    Err(failed) => failed,
                },
                Err(failed) => failed,
            };
            match attempts.failed(failed.0, &failed.1.address, rand::random()) {
                Verdict::Fail(error) => return Err(error),
                Verdict::Retry(pause) => sleep_until((Instant::now() + pause).min(until)).await,
            }
        }
    }

    /// Begins, or goes on at another node after the last page.
    async fn begin(
        &self,
        attempts: &mut Attempts,
        limit: Duration,
        usual: Duration,
    ) -> Result<Open, (Failed, Arc<Node>)> {
        let shared = &self.client.shared;
        let node = shared.router.pick(None, None, attempts, rand::random());
        attempts.begin(node.id);
        let request = v1::ListKeysRequest {
            bucket: self.client.bucket().to_owned(),
            prefix: self.options.prefix.clone(),
            page_token: self.options.page_token.clone(),
            page_size: self.options.page_size,
            limit: self.options.limit,
        };
        let mut stub = shared.router.nodes.stub(&node);
        let request = async { Ok(stub.calls.list_keys(request).await?.into_inner()) };
        match shared.attempt(&node, limit, usual, request).await {
            Ok(pages) => Ok(Open { node, pages }),
            Err(failed) => Err((failed, node)),
        }
    }

    async fn read(
        &mut self,
        mut open: Open,
        limit: Duration,
        usual: Duration,
    ) -> Result<Option<KeyPage>, (Failed, Arc<Node>)> {
        let request = async { Ok(open.pages.message().await?) };
        let page = match self
            .client
            .shared
            .attempt(&open.node, limit, usual, request)
            .await
        {
            Ok(Some(page)) => page,
            Ok(None) => {
                self.finished = true;
                return Ok(None);
            }
            Err(failed) => return Err((failed, open.node)),
        };
        self.options.page_token.clone_from(&page.next_page_token);
        if self.options.limit > 0 {
            self.options.limit = self.options.limit.saturating_sub(page.keys.len() as u64);
            self.finished = self.options.limit == 0;
        }
        self.finished |= page.next_page_token.is_empty();
        self.open = Some(open);
        Ok(Some(KeyPage {
            keys: page.keys,
            next_page_token: page.next_page_token,
        }))
    }
}
