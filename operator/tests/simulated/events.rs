//! K34: the running loop, with its watches and its pauses, in simulated time: events that it misses, and an API server that
//! fails for long.

use std::time::Duration;

use dynamo_operator::run::control_scope;
use dynamo_operator_sim::{
    faults::{Call, Fate, Faults},
    world::{Operator, World},
};
use kube::Client;
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;
use tower::Layer as _;

use super::{random::Random, stories::Story};

/// A turn of Kubernetes.
const TURN: Duration = Duration::from_secs(1);

struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(operator: &Operator) -> Self {
        let (stop, context) = (CancellationToken::new(), operator.context.clone());
        let (stopped, client) = (stop.clone(), context.client.clone());
        let task =
            tokio::spawn(async move { control_scope(&client, Some("simulated"), context, stopped).await });
        Self { stop, task }
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// So many turns until everything is as the spec asks, and has been for some.
async fn turns_until_settled(world: &World, operator: &Operator) -> u32 {
    let (mut since, mut writes) = (0, 0);
    for turn in 0..600 {
        sleep(TURN).await;
        world.kubelet.turn().await;
        let now = operator.faults.writes().len();
        if !world.settled().await || now != writes {
            (since, writes) = (turn, now);
        } else if turn >= since + 12 {
            return since;
        }
    }
    panic!("it did not settle: {:#?}", world.status("demo").await);
}

/// The story under a running loop that misses some events. Returns what came about and how many events were due.
async fn told(
    story: &Story,
    misses: impl Fn(usize) -> bool + Send + Sync + 'static,
) -> (serde_json::Value, usize) {
    let fork = story.begun.fork();
    let server = fork.server.missing(misses);
    let faults = Faults::default();
    let client = Client::new(faults.layer(server.clone()), "default");
    let operator = fork.world.operator_on(client, faults);
    let running = Running::start(&operator);
    sleep(TURN).await;
    story.happen(&fork.world).await;
    turns_until_settled(&fork.world, &operator).await;
    running.end().await;
    story.judge(&fork.world).await;
    (fork.world.end_state().await, server.due())
}

/// c2: state is what counts, not events.
#[tokio::test(start_paused = true)]
async fn k34_any_watch_event_may_be_missed() {
    for story in [Story::scale_out().await, Story::scale_in().await] {
        let (whole, due) = told(&story, |_| false).await;
        println!("{}: {due} events", story.name);
        assert!(due > 10, "{due}");
        for missed in 0..due {
            let (end, _) = told(&story, move |event| event == missed).await;
            assert_eq!(end, whole, "{}: event {missed} was missed", story.name);
        }
        let (end, _) = told(&story, |_| true).await;
        assert_eq!(end, whole, "{}: all events were missed", story.name);
    }
}

/// c2: for ten minutes three calls in ten fail, watches too. No hot loop; the end soon after; then not one write.
#[tokio::test(start_paused = true)]
async fn s_an_api_server_that_fails_for_ten_minutes_sees_no_hot_loop_and_no_stop() {
    for (seed, story) in (0..).zip([Story::scale_out().await, Story::scale_in().await]) {
        let world = story.begun.fork().world;
        let mut random = Random::new(seed);
        let operator = world.operator_with(Faults::new(move |_: &Call| match random.below(10) {
            0 => Fate::Refused(429),
            1 => Fate::Refused(500),
            2 => Fate::AnswerLost,
            _ => Fate::Answered,
        }));
        let running = Running::start(&operator);
        sleep(TURN).await;
        story.happen(&world).await;
        for _ in 0..600 {
            sleep(TURN).await;
            world.kubelet.turn().await;
        }
        let (calls, writes) = (operator.faults.calls().len(), operator.faults.writes().len());
        println!("{}: {calls} calls, {writes} writes in 600 s", story.name);
        assert!(writes < 600 && calls < 600 * 20, "{calls} calls, {writes} writes");
        operator.faults.end();
        let turns = turns_until_settled(&world, &operator).await;
        println!("{}: {turns} s to the end", story.name);
        assert!(turns <= 60, "{turns} s");
        story.judge(&world).await;

        let writes = operator.faults.writes().len();
        for _ in 0..300 {
            sleep(TURN).await;
            world.kubelet.turn().await;
        }
        assert_eq!(operator.faults.writes().len(), writes);
        running.end().await;
    }
}
