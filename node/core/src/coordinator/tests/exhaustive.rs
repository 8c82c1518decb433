use super::*;

/// What becomes of one replica's part in a put.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Durable,
    Buffered,
    Refused,
    Lost,
    Unreachable,
}

const FATES: [Fate; 5] = [
    Fate::Durable,
    Fate::Buffered,
    Fate::Refused,
    Fate::Lost,
    Fate::Unreachable,
];

/// All lists of `length` items out of `items`.
fn lists<T: Copy>(items: &[T], length: usize) -> Vec<Vec<T>> {
    (0..length).fold(vec![Vec::new()], |lists, _| {
        let longer = |list: Vec<T>| items.iter().map(move |item| [list.as_slice(), &[*item]].concat());
        lists.into_iter().flat_map(longer).collect()
    })
}

/// All orders of `0..length`.
fn orders(length: usize) -> Vec<Vec<usize>> {
    let all: Vec<usize> = (0..length).collect();
    let distinct = |order: &Vec<usize>| all.iter().all(|index| order.contains(index));
    lists(&all, length).into_iter().filter(distinct).collect()
}

fn result(fate: Fate) -> Result<Ack, ReplicaFailure> {
    match fate {
        Fate::Durable => Ok(Ack { durable: true }),
        Fate::Buffered => Ok(Ack { durable: false }),
        Fate::Refused => Err(failure(false, FailureKind::Overloaded)),
        Fate::Lost | Fate::Unreachable => Err(failure(true, FailureKind::TimedOut)),
    }
}

/// One put: every reply is judged at the moment it comes.
fn check_put(quorum: Quorum, fates: &[Fate], order: &[usize]) {
    let case = format!("{quorum:?} {fates:?} {order:?}");
    let reachable = |index: usize| index == 0 || fates[index] != Fate::Unreachable;
    let candidates = (0..fates.len()).map(|index| Candidate {
        member: member(index),
        reachable: reachable(index),
    });
    let mut machine = PutCoordinator::new(quorum, member(0), candidates.collect());
    let mut effects = Vec::new();
    machine.step(PutEvent::Start, &mut effects);
    machine.step(PutEvent::LocalPrepared, &mut effects);
    let mut answered: Vec<usize> = Vec::new();
    let mut events: Vec<Option<usize>> = order
        .iter()
        .copied()
        .filter(|index| reachable(*index))
        .map(Some)
        .collect();
    // Replies that come twice and after the end, and a deadline at the very end.
    events.extend(events.clone());
    events.push(None);
    let mut reply = None;
    loop {
        for effect in effects.drain(..) {
            if let PutEffect::Reply(outcome) = effect {
                assert_eq!(reply, None, "one reply: {case}");
                judge_put(&case, quorum, fates, &answered, &outcome);
                reply = Some(outcome);
            }
        }
        let undecided = undecided(quorum, fates, &answered);
        assert!(
            reply.is_some() || undecided,
            "no reply, though nothing can change any more: {case}"
        );
        if events.is_empty() {
            break;
        }
        match events.remove(0) {
            Some(0) => machine.step(PutEvent::LocalDone(result(fates[0])), &mut effects),
            Some(index) => {
                let event = PutEvent::PeerDone {
                    member: member(index),
                    result: result(fates[index]),
                };
                machine.step(event, &mut effects);
            }
            None => machine.step(PutEvent::DeadlineReached, &mut effects),
        }
        answered.extend(events_done(&answered, order, &events));
    }
    assert!(reply.is_some(), "{case}");
}

/// The one whose answer was just given, if it is a new one.
fn events_done(answered: &[usize], order: &[usize], left: &[Option<usize>]) -> Option<usize> {
    order.iter().copied().find(|index| {
        !answered.contains(index) && left.iter().filter(|event| **event == Some(*index)).count() == 1
    })
}

fn tally(fates: &[Fate], answered: &[usize]) -> (u32, u32) {
    let durable = answered
        .iter()
        .filter(|index| fates[**index] == Fate::Durable)
        .count() as u32;
    let buffered = answered
        .iter()
        .filter(|index| fates[**index] == Fate::Buffered)
        .count() as u32;
    (durable + buffered, durable)
}

fn met(quorum: Quorum, (acks, durable): (u32, u32)) -> bool {
    acks >= quorum.w && acks >= quorum.pw && durable >= quorum.dw
}

/// True while the answers that are missing could bring it either way.
fn undecided(quorum: Quorum, fates: &[Fate], answered: &[usize]) -> bool {
    let (acks, durable) = tally(fates, answered);
    let open = (0..fates.len())
        .filter(|index| !answered.contains(index) && (*index == 0 || fates[*index] != Fate::Unreachable))
        .count() as u32;
    !met(quorum, (acks, durable)) && met(quorum, (acks + open, durable + open))
}

fn judge_put(case: &str, quorum: Quorum, fates: &[Fate], answered: &[usize], outcome: &WriteOutcome) {
    let (acks, durable) = tally(fates, answered);
    assert_eq!(
        (outcome.acks, outcome.primaries, outcome.durable),
        (acks, acks, durable),
        "{case}"
    );
    let applied = met(quorum, (acks, durable));
    assert_eq!(outcome.state == WriteState::Applied, applied, "{case}");
    assert_eq!(outcome.failure.is_none(), applied, "{case}");
    if outcome.state == WriteState::NotApplied {
        // Whoever could have stored it has said that it did not; or nobody was asked.
        let harmless = |index: &usize| matches!(fates[*index], Fate::Refused | Fate::Unreachable);
        let refused = answered.iter().all(|index| fates[*index] == Fate::Refused);
        let all = (1..fates.len()).all(|index| answered.contains(&index) || harmless(&index));
        let nobody_asked = undecided_at_start_is_hopeless(quorum, fates);
        assert!(
            nobody_asked || (refused && all && answered.contains(&0)),
            "{case}"
        );
    }
}

fn undecided_at_start_is_hopeless(quorum: Quorum, fates: &[Fate]) -> bool {
    !undecided(quorum, fates, &[])
}

/// D33: n up to 3 with every w, pw, dw, every fate of every replica, every order.
#[test]
fn every_small_put_is_answered_once_early_and_truly() {
    let mut puts = 0u32;
    for n in 1..=3u32 {
        for fates in lists(&FATES, n as usize) {
            if fates[0] == Fate::Unreachable {
                continue;
            }
            for order in orders(n as usize) {
                for (w, pw, dw) in
                    (1..=n).flat_map(|w| (0..=n).flat_map(move |pw| (0..=n).map(move |dw| (w, pw, dw))))
                {
                    let quorum = Quorum {
                        pw,
                        dw,
                        ..Quorum::new(n, 1, w).unwrap()
                    };
                    check_put(quorum, &fates, &order);
                    puts += 1;
                }
            }
        }
    }
    assert_eq!(puts, 4 * 4 + 20 * 2 * 18 + 100 * 6 * 48);
}

/// What a replica answers to a read.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    Nothing,
    Deleted,
    Value,
    Error,
    Silence,
}

const ANSWERS: [Answer; 5] = [
    Answer::Nothing,
    Answer::Deleted,
    Answer::Value,
    Answer::Error,
    Answer::Silence,
];

/// Every n up to 4 with every r, w, pr and every answer of every replica; each answer at its turn, then the deadline.
/// Not found is said only if no acknowledged write can be hidden; a value never takes longer than R answers.
#[test]
fn every_small_get_is_answered_once_early_and_truly() {
    for n in 1..=4u32 {
        for answers in lists(&ANSWERS, n as usize) {
            for (r, w, pr) in
                (1..=n).flat_map(|r| (1..=n).flat_map(move |w| (0..=n).map(move |pr| (r, w, pr))))
            {
                check_get(
                    Quorum {
                        pr,
                        ..Quorum::new(n, r, w).unwrap()
                    },
                    &answers,
                );
            }
        }
    }
}

fn check_get(quorum: Quorum, answers: &[Answer]) {
    let case = format!("{quorum:?} {answers:?}");
    let all = "+".repeat(answers.len());
    let mut machine = GetCoordinator::new(quorum, candidates(&all), 0);
    let mut effects = Vec::new();
    machine.step(GetEvent::Start, &mut effects);
    assert_eq!(effects.len(), answers.len(), "all are asked: {case}");
    effects.clear();
    let (mut got, mut failed, mut live) = (0, 0, false);
    let mut replied = false;
    for (index, answer) in answers.iter().enumerate() {
        let result = match answer {
            Answer::Silence => continue,
            Answer::Error => Err(failure(true, FailureKind::Unreachable)),
            Answer::Nothing => Ok(None),
            Answer::Deleted => Ok(Some(tombstone(1))),
            // Supersedes the tombstone.
            Answer::Value => Ok(Some(value(2))),
        };
        if !replied {
            got += u32::from(result.is_ok());
            failed += u32::from(result.is_err());
            live |= *answer == Answer::Value;
        }
        machine.step(
            GetEvent::ReplicaDone {
                member: member(index),
                result,
            },
            &mut effects,
        );
        let enough = got >= quorum.r.max(quorum.pr);
        let open = quorum.n - got - failed;
        let sure = got >= quorum.r.max(quorum.pr).max(quorum.n - quorum.w + 1);
        let hopeless = open == 0 || got + open < quorum.r.max(quorum.pr);
        let due = if live { enough } else { sure } || hopeless;
        assert_eq!(!replied && due, !effects.is_empty(), "answer {index}: {case}");
        for effect in effects.drain(..) {
            let GetEffect::Reply(GetOutcome { acks, result }) = effect else {
                panic!("{case}")
            };
            replied = true;
            assert_eq!(acks, got, "{case}");
            match result {
                GetResult::Found(state) => assert!(live && enough && !state.is_deleted(0), "{case}"),
                GetResult::Absent(state) => {
                    assert!(
                        !live && sure && state.is_none_or(|state| state.is_deleted(0)),
                        "{case}"
                    );
                }
                GetResult::Unavailable { timed_out, .. } => {
                    let decided = if live { enough } else { sure };
                    assert!(hopeless && !timed_out && !decided, "{case}");
                }
            }
        }
    }
    machine.step(GetEvent::DeadlineReached, &mut effects);
    assert_eq!(effects.len(), usize::from(!replied), "{case}");
    assert!(machine.replied());
}
