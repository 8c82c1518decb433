//! K33, K34: whatever becomes of an operator's calls, short of its death: refused, lost, or answered with what was so. One at
//! a time at every call, and mixed at random.

use dynamo_operator_sim::faults::{Call, Fate, Faults};

use super::{random::Random, stories::Story};

/// This befalls each call by itself, if anything, and the operator goes on.
async fn at_every_call(stories: Vec<Story>, befalls: fn(&Call) -> Option<Fate>) {
    for story in stories {
        let whole = story.told([Faults::default()]).await;
        for call in &whole.calls[0] {
            let Some(fate) = befalls(call) else { continue };
            println!("{}, {fate:?}: {call:?}", story.name);
            let end = story.told([Faults::at_call(call.number, fate)]).await;
            // An old spec is followed, and then the newest again: that may take more rings.
            assert_eq!(
                end.without_epochs(),
                whole.without_epochs(),
                "{}, {fate:?}: {call:?}",
                story.name
            );
        }
    }
}

fn reads(call: &Call) -> bool {
    call.what.starts_with("GET")
}

/// c2: the answer of a write is lost, and the next pass finds what it has done.
#[tokio::test(start_paused = true)]
async fn s_the_answer_of_any_write_may_be_lost() {
    at_every_call(Story::all().await, |call| call.write.map(|_| Fate::AnswerLost)).await;
}

#[tokio::test(start_paused = true)]
async fn s_any_call_may_be_refused() {
    at_every_call(vec![Story::scale_out().await, Story::scale_in().await], |call| {
        Some(Fate::Refused(if call.write.is_some() { 409 } else { 429 }))
    })
    .await;
}

/// K34: any read of the API server may be answered as it was up to five versions ago.
#[tokio::test(start_paused = true)]
async fn k34_any_read_may_be_old() {
    at_every_call(Story::all().await, |call| {
        reads(call).then_some(Fate::Old(1 + (call.number % 5) as u8))
    })
    .await;
}

/// K34, K33: of all calls some are refused, lost or old, and operators die, at random.
#[tokio::test(start_paused = true)]
async fn k34_calls_that_fail_at_random_change_nothing() {
    for (story, told) in Story::all().await.into_iter().zip(0..) {
        let whole = story.told([Faults::default()]).await;
        for seed in 0..25_u64 {
            let lives = (0..4).map(|life| at_random(seed * 64 + told * 8 + life));
            let end = story.told(lives).await;
            assert_eq!(
                end.without_epochs(),
                whole.without_epochs(),
                "{}, seed {seed}",
                story.name
            );
        }
    }
}

/// One call in eight, of the first two hundred; then the operator dies.
fn at_random(seed: u64) -> Faults {
    let mut random = Random::new(seed);
    Faults::new(move |call| match random.below(8) {
        _ if call.number >= 200 => Fate::DiesBefore,
        0 if reads(call) => Fate::Old(1 + random.below(5) as u8),
        0 => match random.below(8) {
            0 => Fate::DiesAfter,
            1 | 2 => Fate::AnswerLost,
            3 | 4 => Fate::Refused(409),
            _ => Fate::Refused(500),
        },
        _ => Fate::Answered,
    })
}
