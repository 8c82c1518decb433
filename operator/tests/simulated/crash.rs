//! K33: the operator is killed at each of its calls, before and after it arrives, and its successor, which may be killed
//! likewise, comes to the same end. What else may become of a call changes nothing either.

use dynamo_operator_sim::faults::{Call, Fate, Faults};

use super::stories::Story;

async fn killed_at_every_call(story: Story) {
    let whole = story.told([Faults::default()]).await;
    let calls = &whole.calls[0];
    println!("{}: {} calls", story.name, calls.len());
    assert!(
        calls.iter().filter(|call| call.write.is_some()).count() >= 8,
        "{calls:#?}"
    );
    for call in calls {
        // After a read it stands as before it.
        let after = call.write.map(|_| Fate::DiesAfter);
        for fate in [Fate::DiesBefore].into_iter().chain(after) {
            let end = story.told([Faults::at_call(call.number, fate)]).await;
            assert_eq!(
                end.calls[0].len(),
                call.number + 1,
                "the operator was to die at {call:?} and did not"
            );
            assert_eq!(end.state, whole.state, "{fate:?}: {call:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn k33_killed_at_every_call_of_an_install_the_end_is_the_same() {
    killed_at_every_call(Story::install().await).await;
}

#[tokio::test(start_paused = true)]
async fn s_killed_at_every_call_of_a_scale_out_the_end_is_the_same() {
    killed_at_every_call(Story::scale_out().await).await;
}

#[tokio::test(start_paused = true)]
async fn s_killed_at_every_call_of_a_scale_in_the_end_is_the_same() {
    killed_at_every_call(Story::scale_in().await).await;
}

#[tokio::test(start_paused = true)]
async fn s_killed_at_every_call_of_an_evacuation_the_end_is_the_same() {
    killed_at_every_call(Story::evacuation().await).await;
}

#[tokio::test(start_paused = true)]
async fn s_killed_at_every_call_of_a_zones_removal_the_end_is_the_same() {
    killed_at_every_call(Story::zone_removal().await).await;
}

#[tokio::test(start_paused = true)]
async fn s_killed_at_every_call_of_a_restart_of_all_pods_the_end_is_the_same() {
    killed_at_every_call(Story::restart().await).await;
}

/// Two operators after each other are killed, each at any of its writes.
#[tokio::test(start_paused = true)]
async fn s_two_operators_killed_one_after_the_other_at_any_two_writes() {
    for story in [Story::scale_out().await, Story::scale_in().await] {
        let whole = story.told([Faults::default()]).await;
        let writes = |calls: &[Call]| calls.iter().filter(|call| call.write.is_some()).count();
        let mut pairs = 0;
        for first in 0..writes(&whole.calls[0]) {
            let alone = [Faults::at_write(first, Fate::DiesAfter), Faults::default()];
            let alone = story.told(alone).await;
            for second in 0..writes(&alone.calls[1]) {
                let both = [first, second].map(|write| Faults::at_write(write, Fate::DiesAfter));
                let end = story.told(both).await;
                assert_eq!(
                    end.state, whole.state,
                    "{}: killed after writes {first} and {second}",
                    story.name
                );
                pairs += 1;
            }
        }
        println!("{}: {pairs} pairs", story.name);
    }
}
