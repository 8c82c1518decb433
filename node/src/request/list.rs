//! Listings: partition after partition, merging pages of enough replicas that no acknowledged key is missed.
//!
//! A task fills a channel that holds two pages, so a slow client holds the listing up and memory stays bounded; one that does
//! not read at all does not keep its place.

use std::{future::ready, sync::Arc, time::Duration};

use bytes::Bytes;
use dynamo_core::{
    coordinator::FailureKind,
    listing::{PageRequest, Position, Progress, RangeListing, ScanPage, ScannedKey},
    types::{MemberId, PartitionId},
    version::KeyState,
};
use dynamo_proto::{peer, v1};
use futures::{Stream, StreamExt as _, future::join_all, stream::once};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::{
    clock::wall_ms,
    config::REQUEST_TIMEOUT_MS_MAX,
    grpc::status::{Failure, Reason},
    node::{Node, Place, Placed},
    telemetry::metrics::Operation,
};

/// Pages that wait for the client.
const PAGES_BUFFERED: usize = 2;
/// A client that takes no page for so long does not get the others.
const UNREAD_MAX: Duration = Duration::from_millis(REQUEST_TIMEOUT_MS_MAX);
/// Keys that one call to a replica returns.
const SCAN_KEYS: u32 = 500;

/// A listing, checked.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    pub(crate) bucket: String,
    pub(crate) prefix: Bytes,
    pub(crate) page_token: Bytes,
    pub(crate) page_size: u32,
    pub(crate) limit: u64,
}

type PageSender = mpsc::Sender<Result<v1::ListKeysResponse, Status>>;

/// Starts a listing, which holds its place among the requests in flight until it ends, or nobody reads it.
///
/// # Errors
/// INVALID_ARGUMENT for a page token that is not one.
pub(crate) fn stream(
    node: Arc<Node>,
    placed: Arc<Placed>,
    listing: Listing,
    place: Place,
) -> Result<impl Stream<Item = Result<v1::ListKeysResponse, Status>> + Send + 'static, Failure> {
    let after = match &listing.page_token {
        token if token.is_empty() => None,
        token => Some(
            Position::decode(token.clone())
                .map_err(|error| Failure::invalid(format!("the page token is not valid: {error}")))?,
        ),
    };
    let (pages_in, pages) = mpsc::channel(PAGES_BUFFERED);
    let (unsent_in, unsent) = oneshot::channel::<Failure>();
    tokio::spawn(async move {
        let started = Instant::now();
        let mut pager = Pager {
            unread: false,
            pages: pages_in,
            page: Vec::new(),
            last: after.clone(),
            left: listing.limit,
            listing,
        };
        let mut result = list(&node, &placed, after, &mut pager).await;
        if pager.unread {
            result = Err(unread());
        }
        let word = match &result {
            Ok(()) => "ok",
            Err(failure) => failure.reason.name(),
        };
        node.metrics()
            .request(Operation::ListKeys, word, started.elapsed());
        let unsent = pager.finish(result).await;
        drop(place);
        if let Some(failure) = unsent {
            let _ = unsent_in.send(failure);
        }
    });
    let unsent = async move { unsent.await.ok().map(|failure| Err(failure.into())) };
    Ok(ReceiverStream::new(pages).chain(once(unsent).filter_map(ready)))
}

/// Collects keys into pages.
struct Pager {
    /// The client took no page for too long.
    unread: bool,
    pages: PageSender,
    page: Vec<Bytes>,
    last: Option<Position>,
    left: u64,
    listing: Listing,
}

impl Pager {
    /// False if the client is gone, or does not read.
    async fn send(&mut self, page: Result<v1::ListKeysResponse, Status>) -> bool {
        let sent = timeout(UNREAD_MAX, self.pages.send(page)).await;
        self.unread = sent.is_err();
        matches!(sent, Ok(Ok(())))
    }

    /// Takes a key; false once the client has all it asked for, or is gone.
    async fn add(&mut self, position: Position) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        self.page.push(position.key());
        self.last = Some(position);
        if self.page.len() < self.listing.page_size as usize {
            return true;
        }
        let token = self
            .last
            .as_ref()
            .map(|position| position.as_bytes().clone())
            .unwrap_or_default();
        let keys = std::mem::take(&mut self.page);
        let page = v1::ListKeysResponse {
            keys,
            next_page_token: token,
        };
        self.send(Ok(page)).await
    }

    /// Sends the last page, whose token is empty only if the listing is complete. Gives back why it ends early if nobody
    /// reads that either.
    async fn finish(mut self, result: Result<(), Failure>) -> Option<Failure> {
        if self.unread {
            return result.err();
        }
        let complete = result.is_ok() && self.left > 0;
        let token = self.last.take().filter(|_| !complete);
        let page = v1::ListKeysResponse {
            keys: std::mem::take(&mut self.page),
            next_page_token: token
                .map(|position| position.as_bytes().clone())
                .unwrap_or_default(),
        };
        // A client that is gone needs neither.
        if self.send(Ok(page)).await
            && let Err(failure) = result
        {
            self.send(Err(failure.into())).await;
        }
        self.unread.then(unread)
    }
}

fn unread() -> Failure {
    let waited_s = UNREAD_MAX.as_secs();
    let message = format!("no page was taken for {waited_s} s; go on from the last page's token");
    Failure::new(Reason::ReadTimedOut, message)
}

async fn list(
    node: &Arc<Node>,
    placed: &Arc<Placed>,
    after: Option<Position>,
    pager: &mut Pager,
) -> Result<(), Failure> {
    let ring = placed.reading()?.ring();
    let first = after
        .as_ref()
        .map_or(PartitionId(0), |position| ring.partition_of(position.hash()));
    for partition in (first.0..ring.partitions()).map(PartitionId) {
        let after = after.clone().filter(|_| partition == first);
        if !list_partition(node, placed, partition, after, pager).await? {
            break;
        }
    }
    Ok(())
}

/// Lists one partition; false once the client has all it asked for.
async fn list_partition(
    node: &Arc<Node>,
    placed: &Arc<Placed>,
    partition: PartitionId,
    after: Option<Position>,
    pager: &mut Pager,
) -> Result<bool, Failure> {
    let range = placed.reading()?.ring().range(partition);
    let policy = node.bucket(&pager.listing.bucket);
    let mut listing = RangeListing::new(
        node.read_candidates(placed, partition, policy.n)?.primaries,
        placed.quorum_of(&policy)?.absence(),
        after,
        wall_ms(),
    );
    loop {
        let scan = Scan {
            bucket: &pager.listing.bucket,
            prefix: &pager.listing.prefix,
            hashes: (*range.start(), *range.end()),
        };
        let requests = listing.next_requests();
        for (member, page) in join_all(
            requests
                .into_iter()
                .map(|request| fetch(node, placed, &scan, request)),
        )
        .await
        {
            listing.add_page(&member, page);
        }
        while let Some(position) = listing.next_key() {
            if !pager.add(position).await {
                return Ok(false);
            }
        }
        match listing.progress() {
            Progress::Pages => {}
            Progress::Done => return Ok(true),
            Progress::Unavailable { needed, got, .. } => {
                let message = format!(
                    "partition {} has {got} replicas that can be listed of the {needed} that are needed; go on from the last page's \
                     token",
                    partition.0
                );
                return Err(Failure::new(Reason::QuorumNotMet, message));
            }
        }
    }
}

/// What to look for.
struct Scan<'a> {
    bucket: &'a str,
    prefix: &'a Bytes,
    hashes: (u64, u64),
}

async fn fetch(
    node: &Arc<Node>,
    placed: &Arc<Placed>,
    scan: &Scan<'_>,
    request: PageRequest,
) -> (MemberId, Result<ScanPage, FailureKind>) {
    let mut message = peer::ScanRequest {
        header: None,
        bucket: scan.bucket.to_owned(),
        prefix: scan.prefix.clone(),
        hash_first: scan.hashes.0,
        hash_last: scan.hashes.1,
        after: request
            .after
            .map(|position| position.as_bytes().clone())
            .unwrap_or_default(),
        limit: SCAN_KEYS,
    };
    let response = if request.member == *placed.me() {
        node.scan_local(message).await.map_err(|failure| {
            tracing::warn!(error = failure.message, "cannot scan the local store");
            FailureKind::Storage
        })
    } else {
        match node.membership().to(&request.member) {
            Some(to) => {
                message.header = Some(to.header());
                node.peers()
                    .scan(&to, message)
                    .await
                    .map_err(|failure| failure.kind)
            }
            None => Err(FailureKind::Unreachable),
        }
    };
    (
        request.member,
        response.and_then(|response| decode_page(response).ok_or(FailureKind::Storage)),
    )
}

fn decode_page(response: peer::ScanResponse) -> Option<ScanPage> {
    let entries = response.entries.into_iter().map(|entry| {
        Some(ScannedKey {
            position: Position::decode(entry.position).ok()?,
            state: KeyState::decode(entry.state).ok()?,
        })
    });
    Some(ScanPage {
        entries: entries.collect::<Option<Vec<_>>>()?,
        position: match response.position {
            position if position.is_empty() => None,
            position => Some(Position::decode(position).ok()?),
        },
        done: response.done,
    })
}
