//! What may wait.

use super::*;

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let store = TestStore::default();
    let (writer, _failure) = start(&store, Durability::Every);
    store.hold();
    let mut tasks = vec![submit_put(&writer, "first").await];
    until("the first write syncs", || store.is_waiting()).await;
    for _ in 0..QUEUE_OPERATIONS_MAX {
        tasks.push(submit_put(&writer, "k").await);
    }
    assert_eq!(put(&writer, "k", "v").await, Err(WriteError::Overloaded));
    let text = WriteError::Overloaded.to_string();
    assert!(text.starts_with("4096 writes or 64 MiB wait"), "{text}");
    store.release();
    let mut refused = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(committed) => assert!(committed.durable),
            Err(WriteError::Refused(_)) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(refused, QUEUE_OPERATIONS_MAX - 100, "siblings of one key");
    let counters = writer.counters();
    assert!(
        counters.groups <= 1 + (QUEUE_OPERATIONS_MAX / GROUP_OPERATIONS_MAX) as u64,
        "{counters:?}"
    );
}

#[tokio::test]
async fn the_queue_is_bounded_in_bytes_but_takes_one_operation_of_any_size() {
    let store = TestStore::default();
    let (writer, _failure) = start(&store, Durability::Every);
    store.hold();
    let first = submit_put(&writer, "first").await;
    until("the first write syncs", || store.is_waiting()).await;
    let large = |bytes: usize| {
        let content = Content::Value(vec![0; bytes].into());
        let writer = writer.clone();
        submit(async move {
            writer
                .coordinate(
                    key("large"),
                    Update {
                        content,
                        ..update("")
                    },
                    false,
                )
                .await
                .map(|_| ())
        })
    };
    let taken = large(QUEUE_BYTES_MAX + 1).await;
    let refused = large(1).await;
    assert_eq!(refused.await.unwrap(), Err(WriteError::Overloaded));
    store.release();
    first.await.unwrap().unwrap();
    taken.await.unwrap().unwrap();
}
