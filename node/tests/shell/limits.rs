//! Beyond a bound a client is refused at once, with a word that it understands, and the others go on.

use std::time::Duration;

use futures::future::join_all;
use tokio::{
    io::AsyncReadExt as _,
    time::{Instant, sleep},
};
use tonic::Code;
use turmoil::net::TcpStream;

use crate::{
    cancellation::{hold, patient, release},
    harness::{Shape, count, get, id, put, run, until, why, within},
};

const PATIENT: Duration = Duration::from_secs(20);

#[test]
fn d16_requests_beyond_the_bound_are_refused_at_once_and_the_others_answered() {
    let shape = Shape {
        configure: |config| {
            config.limits.peer_timeout_ms = 20_000;
            config.limits.requests_in_flight_max = 4;
        },
        ..Shape::new(3)
    };
    run(shape, 1, |cluster| async move {
        hold();
        let requests: Vec<_> = (0..10)
            .map(|number| {
                let mut kv = cluster.kv(0);
                let put = put("key", &format!("value {number}"), 3);
                tokio::spawn(async move { kv.put(within(PATIENT, put)).await })
            })
            .collect();
        // A few messages' time.
        sleep(Duration::from_millis(200)).await;
        let (refused, waiting): (Vec<_>, Vec<_>) = requests
            .into_iter()
            .partition(tokio::task::JoinHandle::is_finished);
        assert_eq!((refused.len(), waiting.len()), (6, 4));
        for refused in join_all(refused).await {
            let status = refused.unwrap().unwrap_err();
            assert_eq!(why(&status), (Code::ResourceExhausted, "OVERLOADED".to_owned()));
        }
        release();
        for accepted in join_all(waiting).await {
            accepted.unwrap().unwrap();
        }
        cluster.kv(0).put(put("key", "one more", 3)).await.unwrap();
    });
}

#[test]
fn d16_one_connection_carries_a_bounded_number_of_requests_at_a_time() {
    let shape = Shape {
        configure: |config| {
            config.limits.peer_timeout_ms = 20_000;
            config.limits.requests_in_flight_max = 100_000;
        },
        ..Shape::new(3)
    };
    run(shape, 2, |cluster| async move {
        cluster.kv(0).put(put("key", "value", 3)).await.unwrap();
        hold();
        let kv = cluster.kv(0);
        let requests: Vec<_> = (0..1500)
            .map(|_| {
                let mut kv = kv.clone();
                let mut get = get("key");
                get.r = count(3);
                tokio::spawn(async move { kv.get(within(PATIENT, get)).await })
            })
            .collect();
        sleep(Duration::from_millis(500)).await;
        assert_eq!(cluster.in_flight(0).await, 1024);
        release();
        for answered in join_all(requests).await {
            answered.unwrap().unwrap();
        }
    });
}

fn few_connections() -> Shape {
    Shape {
        configure: |config| config.limits.connections_max = 8,
        ..patient(3)
    }
}

#[test]
fn d16_connections_beyond_the_bound_are_closed_and_give_way_to_later_ones() {
    run(few_connections(), 3, |cluster| async move {
        let mut clients: Vec<_> = (0..8).map(|_| cluster.kv(0)).collect();
        for kv in &mut clients {
            kv.put(put("key", "value", 1)).await.unwrap();
        }
        let refused = cluster.kv(0).get(within(PATIENT, get("key"))).await.unwrap_err();
        assert!(std::error::Error::source(&refused).is_some(), "{refused}");
        for kv in &mut clients {
            kv.get(get("key")).await.unwrap();
        }
        clients.pop();
        until("there is room for one", || async {
            cluster.kv(0).get(get("key")).await.is_ok()
        })
        .await;
    });
}

#[test]
fn d16_connections_that_never_speak_lose_their_places() {
    run(few_connections(), 4, |cluster| async move {
        for port in [7700, 9700] {
            let mut silent = Vec::new();
            for _ in 0..8 {
                silent.push(TcpStream::connect((id(0).as_str(), port)).await.unwrap());
            }
            let begun = Instant::now();
            if port == 7700 {
                cluster.kv(0).get(within(PATIENT, get("key"))).await.unwrap_err();
            }
            for silent in &mut silent {
                silent.read_to_end(&mut Vec::new()).await.unwrap();
            }
            assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
            cluster.kv(0).put(put("key", "value", 1)).await.unwrap();
            assert_eq!(cluster.in_flight(0).await, 0);
        }
    });
}
