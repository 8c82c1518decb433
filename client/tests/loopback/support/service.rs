//! What a fake node answers.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use dynamo_lane::{Begun, Bounds, Clients, Serves, Serving};
use dynamo_proto::v1::{self, key_value_server::KeyValue, typed_value::Value as Kind};
use prost::Message as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Act, Inner, Seen, State, encode, not_applied, status};

#[derive(Clone)]
pub(super) struct Service(pub(super) Arc<Inner>);

/// Each request on a stream is what the call of its name would be.
impl Serves for Service {
    type Protocol = Clients;

    fn begin(&self, message: v1::Requests) -> Vec<Begun<v1::Response>> {
        let begin = |request: v1::Request| {
            let (service, bytes) = (self.clone(), request.encoded_len());
            let answer = Box::pin(async move {
                let answer = service.called(request.request.unwrap()).await;
                let error = |status| v1::response::Response::Error(inner_error(&status));
                Some(v1::Response {
                    id: request.id,
                    response: Some(answer.unwrap_or_else(error)),
                })
            });
            Begun { bytes, answer }
        };
        message.requests.into_iter().map(begin).collect()
    }
}

impl Service {
    /// Notes the request; what the script says to answer instead of the truth.
    async fn begin(&self, seen: Seen) -> Option<Act> {
        let script = match seen {
            Seen::GetRing { .. } => None,
            Seen::ReplicaGet(_) => Some(&self.0.replica_script),
            _ => Some(&self.0.script),
        };
        self.0.seen.lock().unwrap().push(seen);
        if self.0.frozen.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        script?.lock().unwrap().pop_front()
    }

    async fn called(&self, request: v1::request::Request) -> Result<v1::response::Response, Status> {
        use v1::{request::Request as Asked, response::Response as Answer};
        if self.0.foreign.load(Ordering::SeqCst) {
            return Err(status(Code::FailedPrecondition, "FOREIGN_CLUSTER", Vec::new()));
        }
        Ok(match request {
            Asked::Get(get) => Answer::Get(self.get(Request::new(get)).await?.into_inner()),
            Asked::Put(put) => Answer::Put(self.put(Request::new(put)).await?.into_inner()),
            Asked::Delete(delete) => Answer::Delete(self.delete(Request::new(delete)).await?.into_inner()),
            Asked::Update(update) => Answer::Update(self.update(Request::new(update)).await?.into_inner()),
            Asked::ReplicaGet(get) => {
                Answer::ReplicaGet(self.replica_get(Request::new(get)).await?.into_inner())
            }
        })
    }

    async fn end<T>(
        act: Option<Act>,
        answer: impl FnOnce() -> Result<T, Status>,
    ) -> Result<Response<T>, Status> {
        match act {
            None | Some(Act::PutFirst(_)) => answer().map(Response::new),
            Some(Act::Fail(status)) => Err(status),
            Some(Act::Hang) => std::future::pending().await,
            Some(Act::ServeThen(status)) => {
                let _ = answer();
                Err(status)
            }
            Some(Act::ServeAndHang) => {
                let _ = answer();
                std::future::pending().await
            }
        }
    }

    fn info(&self, bucket: &str, key: &[u8], write: bool) -> v1::ResponseInfo {
        let primaries = self.0.state.primaries(bucket, key);
        let me = self.0.member[1..].parse::<usize>().unwrap();
        let inside = !write || primaries.is_empty() || primaries.contains(&me);
        let coordinator = if inside { me } else { primaries[0] };
        v1::ResponseInfo {
            ring_epoch: self.0.state.shown_epoch.load(Ordering::SeqCst),
            coordinator: format!("n{coordinator}"),
            hops: u32::from(!inside),
            acks: 2,
            fallbacks_counted: 0,
            fastest: self.0.state.fastest.lock().unwrap().clone(),
            quorum: Some(v1::EffectiveQuorum {
                replicas: 3,
                r: 2,
                w: 2,
                pr: 0,
                pw: 0,
                dw: 0,
                zones: 0,
            }),
        }
    }

    fn get_one(&self, request: &v1::GetRequest) -> Result<v1::GetResponse, Status> {
        let data = self.0.state.data.lock().unwrap();
        let stored = data
            .get(&(request.bucket.clone(), request.key.clone()))
            .cloned()
            .unwrap_or_default();
        let context = State::context(stored.iter().map(|stored| stored.version));
        let info = self.info(&request.bucket, &request.key, false);
        let typed = self.0.state.typed.lock().unwrap();
        if let Some(value) = typed.get(&(request.bucket.clone(), request.key.clone())) {
            return Ok(v1::GetResponse {
                typed: Some(value.clone()),
                context: "ctx:0".into(),
                info: Some(info),
                ..Default::default()
            });
        }
        let versions: Vec<_> = stored
            .iter()
            .filter_map(|stored| stored.value.clone().map(|value| (stored.version, value)))
            .map(|(version, value)| v1::Version {
                value,
                written_at_ms: 1_700_000_000_000 + version,
                expires_at_ms: 0,
            })
            .collect();
        if versions.is_empty() {
            let context = if stored.is_empty() { Bytes::new() } else { context };
            let detail = v1::NotFound {
                context,
                info: Some(info),
            }
            .encode_to_vec();
            return Err(status(
                Code::NotFound,
                "KEY_NOT_FOUND",
                vec![("dynamo.v1.NotFound", detail)],
            ));
        }
        let deleted_concurrently = versions.len() < stored.len();
        Ok(v1::GetResponse {
            versions,
            context,
            deleted_concurrently,
            info: Some(info),
            typed: None,
        })
    }

    fn put_one(&self, request: &v1::PutRequest) -> Result<v1::PutResponse, Status> {
        if request.key.is_empty() {
            return Err(not_applied(Code::InvalidArgument, "INVALID_ARGUMENT"));
        }
        let at = (request.bucket.clone(), request.key.clone());
        let value = Some(request.value.clone());
        let context = self.0.state.write(at, &request.context, value, &request.op_id)?;
        let info = Some(self.info(&request.bucket, &request.key, true));
        Ok(v1::PutResponse {
            context,
            outcome: Some(applied()),
            info,
        })
    }
}

fn applied() -> v1::WriteOutcome {
    v1::WriteOutcome {
        state: v1::write_outcome::State::Applied.into(),
        acks: 2,
        primaries: 2,
        durable: 2,
        fallbacks_counted: 0,
        zones: 2,
    }
}

/// What the types mean, without their replication.
fn update(value: &mut v1::TypedValue, request: &v1::UpdateRequest) -> Result<(), Status> {
    use v1::{field_update, update_request::Operation};
    let operation = request.operation.clone().unwrap();
    let removes = match &operation {
        Operation::Set(set) => !set.remove.is_empty(),
        Operation::Flag(enabled) => !enabled,
        _ => false,
    };
    if removes && request.context.is_empty() {
        return Err(status(Code::InvalidArgument, "CONTEXT_REQUIRED", Vec::new()));
    }
    let value = &mut value.value;
    match operation {
        Operation::Increment(by) => increment(value, by),
        Operation::Set(set) => change_set(value, set),
        Operation::Flag(enabled) => *value = Some(Kind::Flag(enabled)),
        Operation::Register(bytes) => *value = Some(Kind::Register(v1::RegisterValue { value: bytes })),
        Operation::Map(map) => {
            let mut fields = match value.take() {
                Some(Kind::Map(map)) => map.fields,
                _ => Vec::new(),
            };
            for field in map.fields {
                if fields.iter().all(|existing| existing.name != field.name) {
                    fields.push(v1::MapField {
                        name: field.name.clone(),
                        value: Some(v1::TypedValue::default()),
                    });
                }
                let index = fields
                    .iter()
                    .position(|existing| existing.name == field.name)
                    .unwrap();
                let value = &mut fields[index].value.as_mut().unwrap().value;
                match field.operation.unwrap() {
                    field_update::Operation::Increment(by) => increment(value, by),
                    field_update::Operation::Set(set) => change_set(value, set),
                    field_update::Operation::Flag(enabled) => *value = Some(Kind::Flag(enabled)),
                    field_update::Operation::Register(bytes) => {
                        *value = Some(Kind::Register(v1::RegisterValue { value: bytes }));
                    }
                    field_update::Operation::Remove(_) => drop(fields.remove(index)),
                }
            }
            *value = Some(Kind::Map(v1::MapValue { fields }));
        }
    }
    Ok(())
}

fn increment(value: &mut Option<Kind>, by: i64) {
    let number = match value {
        Some(Kind::Counter(number)) => *number,
        _ => 0,
    };
    *value = Some(Kind::Counter(number + by));
}

fn change_set(value: &mut Option<Kind>, update: v1::SetUpdate) {
    let mut set = match value.take() {
        Some(Kind::Set(set)) => set,
        _ => v1::SetValue::default(),
    };
    set.members.retain(|member| !update.remove.contains(member));
    set.members.extend(update.add);
    set.members.sort();
    set.members.dedup();
    *value = Some(Kind::Set(set));
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn inner_error(status: &Status) -> v1::Error {
    let details = tonic_types::pb::Status::decode(status.details())
        .unwrap_or_default()
        .details;
    let find = |name: &str| {
        let found = details.iter().find(|any| any.type_url.ends_with(name));
        found.map(|any| Bytes::from(any.value.clone()))
    };
    v1::Error {
        code: status.code() as i32,
        message: status.message().to_owned(),
        reason: find("ErrorInfo")
            .and_then(|value| tonic_types::pb::ErrorInfo::decode(value).ok())
            .map(|info| info.reason)
            .unwrap_or_default(),
        not_found: find("NotFound").and_then(|value| v1::NotFound::decode(value).ok()),
        outcome: find("WriteOutcome").and_then(|value| v1::WriteOutcome::decode(value).ok()),
    }
}

#[tonic::async_trait]
impl KeyValue for Service {
    type ListKeysStream = ReceiverStream<Result<v1::ListKeysResponse, Status>>;

    type ServeStream = Serving<Clients>;

    async fn serve(
        &self,
        request: Request<Streaming<v1::Requests>>,
    ) -> Result<Response<Self::ServeStream>, Status> {
        self.0.streams.fetch_add(1, Ordering::SeqCst);
        if self.0.older.load(Ordering::SeqCst) {
            return Err(Status::unimplemented("no such call"));
        }
        let mut stopped = self.0.stopped.subscribe();
        let stops = async move { drop(stopped.wait_for(|stopped| *stopped).await) };
        let bounds = Bounds {
            requests: 1000,
            bytes: 1 << 20,
        };
        let serving = dynamo_lane::serve(self.clone(), request.into_inner(), stops, bounds, Arc::default());
        Ok(Response::new(serving))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let request = request.into_inner();
        let act = self.begin(Seen::Get(text(&request.key))).await;
        Self::end(act, || self.get_one(&request)).await
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let request = request.into_inner();
        let seen = Seen::Put {
            key: text(&request.key),
            op_id: request.op_id.to_vec(),
            ttl_ms: request.ttl_ms,
            zones: request.zones,
        };
        let act = self.begin(seen).await;
        if let Some(Act::PutFirst(value)) = &act {
            let at = (request.bucket.clone(), request.key.clone());
            self.0.state.write(at, b"", Some(value.clone()), b"")?;
        }
        Self::end(act, || self.put_one(&request)).await
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let request = request.into_inner();
        let act = self.begin(Seen::Delete(text(&request.key))).await;
        Self::end(act, || {
            let at = (request.bucket.clone(), request.key.clone());
            let mut context = request.context.clone();
            if context.is_empty() {
                if !request.force {
                    return Err(status(Code::InvalidArgument, "CONTEXT_REQUIRED", Vec::new()));
                }
                let data = self.0.state.data.lock().unwrap();
                let stored = data.get(&at).cloned().unwrap_or_default();
                context = State::context(stored.iter().map(|stored| stored.version));
            }
            if context.as_ref() == b"ctx:" {
                context = Bytes::new();
            }
            let context = self.0.state.write(at, &context, None, &request.op_id)?;
            let info = Some(self.info(&request.bucket, &request.key, true));
            Ok(v1::DeleteResponse {
                context,
                outcome: Some(applied()),
                info,
            })
        })
        .await
    }

    async fn batch_get(
        &self,
        request: Request<v1::BatchGetRequest>,
    ) -> Result<Response<v1::BatchGetResponse>, Status> {
        let requests = request.into_inner().requests;
        let act = self.begin(Seen::BatchGet(requests.len())).await;
        Self::end(act, || {
            let results = requests.iter().map(|request| v1::GetResult {
                result: Some(match self.get_one(request) {
                    Ok(response) => v1::get_result::Result::Response(response),
                    Err(status) => v1::get_result::Result::Error(inner_error(&status)),
                }),
            });
            Ok(v1::BatchGetResponse {
                results: results.collect(),
            })
        })
        .await
    }

    async fn batch_put(
        &self,
        request: Request<v1::BatchPutRequest>,
    ) -> Result<Response<v1::BatchPutResponse>, Status> {
        let requests = request.into_inner().requests;
        let act = self.begin(Seen::BatchPut(requests.len())).await;
        Self::end(act, || {
            let results = requests.iter().map(|request| v1::PutResult {
                result: Some(match self.put_one(request) {
                    Ok(response) => v1::put_result::Result::Response(response),
                    Err(status) => v1::put_result::Result::Error(inner_error(&status)),
                }),
            });
            Ok(v1::BatchPutResponse {
                results: results.collect(),
            })
        })
        .await
    }

    async fn list_keys(
        &self,
        request: Request<v1::ListKeysRequest>,
    ) -> Result<Response<Self::ListKeysStream>, Status> {
        let request = request.into_inner();
        let act = self
            .begin(Seen::ListKeys {
                token: text(&request.page_token),
            })
            .await;
        let data = self.0.state.data.lock().unwrap().clone();
        let keys: Vec<Bytes> = data
            .into_iter()
            .filter(|((bucket, key), stored)| {
                *bucket == request.bucket
                    && key.starts_with(&request.prefix)
                    && key > &request.page_token
                    && stored.iter().any(|stored| stored.value.is_some())
            })
            .map(|((_, key), _)| key)
            .take(if request.limit == 0 {
                usize::MAX
            } else {
                request.limit as usize
            })
            .collect();
        let size = if request.page_size == 0 {
            1000
        } else {
            request.page_size as usize
        };
        let pages: Vec<Vec<Bytes>> = keys.chunks(size).map(<[Bytes]>::to_vec).collect();
        let (send, receive) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let last = pages.len().saturating_sub(1);
            for (index, keys) in pages.into_iter().enumerate() {
                // A scripted failure comes after the first page.
                if index == 1
                    && let Some(Act::Fail(status)) = act
                {
                    let _ = send.send(Err(status)).await;
                    return;
                }
                let token = if index == last {
                    Bytes::new()
                } else {
                    keys[keys.len() - 1].clone()
                };
                let page = v1::ListKeysResponse {
                    keys,
                    next_page_token: token,
                };
                if send.send(Ok(page)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn update(
        &self,
        request: Request<v1::UpdateRequest>,
    ) -> Result<Response<v1::UpdateResponse>, Status> {
        let request = request.into_inner();
        let act = self
            .begin(Seen::Update {
                key: text(&request.key),
                op_id: request.op_id.to_vec(),
                context: text(&request.context),
            })
            .await;
        Self::end(act, || {
            let repeated = !self
                .0
                .state
                .updated
                .lock()
                .unwrap()
                .insert(request.op_id.to_vec());
            if !repeated {
                let at = (request.bucket.clone(), request.key.clone());
                let mut typed = self.0.state.typed.lock().unwrap();
                let value = typed.entry(at).or_default();
                update(value, &request)?;
            }
            Ok(v1::UpdateResponse {
                context: "ctx:0".into(),
                outcome: Some(applied()),
                info: Some(self.info(&request.bucket, &request.key, true)),
            })
        })
        .await
    }

    async fn replica_get(
        &self,
        request: Request<v1::ReplicaGetRequest>,
    ) -> Result<Response<v1::ReplicaGetResponse>, Status> {
        let request = request.into_inner();
        let act = self.begin(Seen::ReplicaGet(text(&request.key))).await;
        Self::end(act, || {
            let inner = &self.0;
            let me = inner.member[1..].parse::<usize>().unwrap();
            let copies = inner.copies.lock().unwrap();
            let behind = inner.behind.load(Ordering::SeqCst);
            let primaries = inner.state.primaries(&request.bucket, &request.key);
            Ok(v1::ReplicaGetResponse {
                state: copies.get(&request.key).cloned(),
                suspect: inner.suspect.load(Ordering::SeqCst),
                ring_epoch: if behind {
                    0
                } else {
                    inner.state.shown_epoch.load(Ordering::SeqCst)
                },
                primary: !behind && primaries.contains(&me),
                rules: *inner.state.rules.lock().unwrap(),
            })
        })
        .await
    }

    async fn get_ring(
        &self,
        request: Request<v1::GetRingRequest>,
    ) -> Result<Response<v1::GetRingResponse>, Status> {
        let known_epoch = request.into_inner().known_epoch;
        let act = self.begin(Seen::GetRing { known_epoch }).await;
        Self::end(act, || {
            let ring = self.0.state.ring.lock().unwrap();
            let Some((placement, addresses)) = &*ring else {
                return Err(status(Code::Unavailable, "NOT_READY", Vec::new()));
            };
            let ring = placement.ring();
            let epoch = ring.epoch();
            let ring = (known_epoch != epoch).then(|| encode(ring, addresses));
            Ok(v1::GetRingResponse { epoch, ring })
        })
        .await
    }
}
