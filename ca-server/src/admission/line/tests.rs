//! The line against a model that looks everything up anew, and against a device that is simulated.

use std::collections::{BinaryHeap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::timestamp::Timestamp;

const MILLI: Duration = Duration::from_millis(1);

fn renewal(until: i64) -> Standing {
    Standing::Renewal {
        until: Timestamp::from_seconds(until),
    }
}

/// A device that takes so many milliseconds a signature on each of its sessions.
fn pace(sessions: usize, millis: u32) -> Pace {
    Pace {
        sessions,
        per_signature: Some(millis * MILLI),
    }
}

fn line(pace: Pace) -> Line<u32> {
    let mut line = Line::new(1024);
    assert_eq!(
        line.set_pace(pace, Instant::now()),
        Moved {
            called: Vec::new(),
            turned_away: Vec::new()
        }
    );
    line
}

/// Fills the window at a time without end.
fn full(pace: Pace, now: Instant) -> Line<u32> {
    let mut line = line(pace);
    while line.inside < line.window() {
        assert_eq!(
            line.arrive(renewal(10_000), now + 3600 * 1000 * MILLI, now, || panic!(
                "nobody waits"
            )),
            Arrival::Enters
        );
    }
    line
}

fn turn<T>(arrival: Arrival<T>) -> Turn {
    match arrival {
        Arrival::Waits { turn, .. } => turn,
        Arrival::Enters | Arrival::TurnedAway => panic!("it does not wait"),
    }
}

#[test]
fn the_window_is_two_a_session_and_what_the_device_signs_while_the_ledger_commits() {
    assert_eq!(line(pace(4, 20)).window(), 8 + 50);
    assert_eq!(line(pace(1, 1000)).window(), 2 + 1);
    assert_eq!(
        line(Pace {
            sessions: 4,
            per_signature: None
        })
        .window(),
        8,
        "before anything is known"
    );
    assert_eq!(line(pace(4, 1)).window(), 8 + 1000);
    assert_eq!(
        line(Pace {
            sessions: 4,
            per_signature: Some(Duration::from_micros(100))
        })
        .window(),
        1024,
        "with a fast device nobody waits"
    );
    let mut slow_ledger = line(pace(4, 20));
    (0..100).for_each(|_| slow_ledger.recorded(500 * MILLI));
    assert_eq!(
        slow_ledger.window(),
        8 + 200,
        "a slow ledger is not taken for a slow device"
    );
}

#[test]
fn first_issuance_goes_before_renewal_then_the_soonest_end_then_whoever_came_first() {
    let now = Instant::now();
    let (mut line, later) = (full(pace(1, 10), now), now + 60_000 * MILLI);
    let standings = [
        renewal(500),
        Standing::First,
        renewal(300),
        renewal(500),
        Standing::First,
        renewal(400),
    ];
    for (who, standing) in (0..).zip(standings) {
        turn(line.arrive(standing, later, now, || who));
    }
    assert_eq!(
        line.arrive(Standing::Daemon, later, now, || 9),
        Arrival::Enters,
        "the daemon's own waits for nobody"
    );
    line.leave(now);
    let called: Vec<u32> = (0..6).flat_map(|_| line.leave(now).called).collect();
    assert_eq!(called, [1, 4, 2, 5, 0, 3]);
    assert_eq!(line.waiting(), 0);
}

#[test]
fn a_call_that_cannot_be_served_in_its_time_is_turned_away_at_once() {
    let now = Instant::now();
    // Ten a second; the window holds five, so the first that waits is served after six tenths.
    let mut line = full(pace(1, 100), now);
    assert_eq!(line.inside, 5);
    assert_eq!(
        line.arrive(Standing::First, now + 600 * MILLI, now, || 0),
        Arrival::TurnedAway
    );
    turn(line.arrive(Standing::First, now + 650 * MILLI, now, || 1));
    assert_eq!(
        line.arrive(Standing::First, now + 650 * MILLI, now, || 2),
        Arrival::TurnedAway,
        "it is one further back"
    );
    turn(line.arrive(Standing::First, now + 750 * MILLI, now, || 3));
    assert_eq!(
        line.leave(now),
        Moved {
            called: vec![1],
            turned_away: Vec::new()
        }
    );
    // The same five, and one of them late: nobody is called for nothing.
    assert_eq!(
        line.leave(now + 300 * MILLI),
        Moved {
            called: Vec::new(),
            turned_away: vec![3]
        }
    );
}

#[test]
fn whoever_goes_first_pushes_out_one_and_only_where_somebody_loses_the_chance() {
    let now = Instant::now();
    let mut line = full(pace(1, 100), now);
    let arrive = |line: &mut Line<u32>, standing, millis: u32, who| match line.arrive(
        standing,
        now + millis * MILLI,
        now,
        || who,
    ) {
        Arrival::Waits { pushed_out, .. } => pushed_out,
        other => panic!("{other:?}"),
    };
    assert_eq!(arrive(&mut line, renewal(1), 5000, 0), None);
    assert_eq!(arrive(&mut line, renewal(2), 750, 1), None);
    assert_eq!(arrive(&mut line, renewal(3), 950, 2), None);
    assert_eq!(
        arrive(&mut line, Standing::First, 5000, 3),
        Some(1),
        "the one that comes too late now; the last has its place again"
    );
    assert_eq!(
        arrive(&mut line, Standing::First, 5000, 4),
        None,
        "the others have time"
    );
    assert_eq!(arrive(&mut line, Standing::First, 5000, 5), Some(2));
    assert_eq!(line.waiting(), 4);
}

#[test]
fn whoever_would_be_overtaken_in_vain_is_turned_away_at_once() {
    let (mut now, mut line) = (Instant::now(), line(pace(1, 20)));
    // Those that go first take all that the device can do, for a while.
    for call in 0..100_u32 {
        now += 20 * MILLI;
        if call >= 30 {
            line.leave(now);
        }
        line.arrive(renewal(1), now + 5000 * MILLI, now, || call);
    }
    assert!(line.waiting() > 0);
    assert_eq!(
        line.arrive(renewal(2), now + 5000 * MILLI, now, || 1000),
        Arrival::TurnedAway
    );
    turn(line.arrive(renewal(1), now + 5000 * MILLI, now, || 1001));
    turn(line.arrive(renewal(0), now + 5000 * MILLI, now, || 1002));
    // One burst is over when it is over.
    let mut line = full(pace(1, 20), now);
    for who in 0..20 {
        turn(line.arrive(renewal(1), now + 5000 * MILLI, now, || who));
    }
    turn(line.arrive(renewal(2), now + 5000 * MILLI, now, || 1003));
}

#[test]
fn a_device_that_is_too_slow_for_anybody_is_still_asked_so_that_it_is_found_out_when_that_ends() {
    let now = Instant::now();
    // So slow that no call is served in its time: one at a time goes on, so that it is known when
    // that ends.
    let mut hopeless = line_of_one_inside(pace(1, 60_000), now);
    assert_eq!(
        hopeless.arrive(Standing::First, now + 5000 * MILLI, now, || 1),
        Arrival::TurnedAway
    );
    assert_eq!(
        hopeless.leave(now),
        Moved {
            called: Vec::new(),
            turned_away: Vec::new()
        }
    );
    assert_eq!(
        hopeless.arrive(Standing::First, now + 5000 * MILLI, now, || 2),
        Arrival::Enters
    );
}

fn line_of_one_inside(pace: Pace, now: Instant) -> Line<u32> {
    let mut line = line(pace);
    assert_eq!(
        line.arrive(Standing::First, now + 5000 * MILLI, now, || 0),
        Arrival::Enters
    );
    line
}

#[test]
fn whoever_gives_up_leaves_its_place_to_the_others() {
    let now = Instant::now();
    let mut line = full(pace(1, 100), now);
    let first = turn(line.arrive(Standing::First, now + 5000 * MILLI, now, || 1));
    turn(line.arrive(Standing::First, now + 5000 * MILLI, now, || 2));
    line.give_up(first);
    assert_eq!(line.leave(now).called, [2]);
    line.give_up(first);
    assert_eq!((line.waiting(), line.leave(now).called), (0, Vec::new()));
}

/// What may happen to a line.
#[derive(Clone, Debug)]
enum Event {
    Arrive { standing: Standing, time_left: u32 },
    Leave,
    GiveUp(prop::sample::Index),
    Pace(Pace),
    Recorded(u32),
    Time(u32),
}

fn event() -> impl Strategy<Value = Event> {
    let standing = prop_oneof![1 => Just(Standing::Daemon), 5 => Just(Standing::First), 10 => (0..4_i64).prop_map(|until| renewal(until * 1000))];
    let known = (1..5_usize, 1..300_u32).prop_map(|(sessions, millis)| pace(sessions, millis));
    prop_oneof![
        10 => (standing, 1..3000_u32).prop_map(|(standing, time_left)| Event::Arrive { standing, time_left }),
        6 => Just(Event::Leave),
        1 => any::<prop::sample::Index>().prop_map(Event::GiveUp),
        1 => prop_oneof![9 => known, 1 => (1..5_usize).prop_map(|sessions| Pace { sessions, per_signature: None })].prop_map(Event::Pace),
        1 => (0..400_u32).prop_map(Event::Recorded),
        3 => (0..100_u32).prop_map(Event::Time),
    ]
}

/// Everybody who waits in a plain list, sorted anew each time.
struct Model {
    pace: Pace,
    commit: Duration,
    inside: usize,
    list: Vec<(Standing, u32, Instant)>,
    /// Whoever was not turned away, from the beginning.
    accepted: Vec<(Instant, Standing)>,
}

impl Model {
    fn in_time(&self, ahead: usize, deadline: Instant, now: Instant) -> bool {
        let Some(each) = self.pace.per_signature else {
            return deadline > now;
        };
        let rounds = 1.0 + (self.inside + ahead) as f64 / self.pace.sessions as f64;
        deadline > now + each.mul_f64(rounds) + 2 * self.commit + 25 * MILLI
    }

    /// What others who will go first leave to one who waits behind so many; they come as they came
    /// within two seconds before the last.
    fn really_ahead(&self, standing: Standing, ahead: usize, now: Instant) -> Option<usize> {
        let (Some((last, _)), Some(each)) = (self.accepted.last(), self.pace.per_signature) else {
            return Some(ahead);
        };
        let lately: Vec<_> = self
            .accepted
            .iter()
            .filter(|(at, _)| *last - *at <= Duration::from_secs(2))
            .collect();
        let time = (now - lately[0].0).as_secs_f64().max(1.0);
        let better = lately.iter().filter(|(_, other)| *other < standing).count() as f64;
        let share = better / (time * (self.pace.sessions as f64 / each.as_secs_f64())).max(8.0);
        (share <= 0.95).then(|| ahead + (ahead as f64 * share / (1.0 - share)).round() as usize)
    }

    fn window(&self) -> usize {
        let rate = self
            .pace
            .per_signature
            .map_or(0.0, |each| self.pace.sessions as f64 / each.as_secs_f64());
        let meanwhile = rate * (250 * MILLI).max(2 * self.commit).as_secs_f64();
        (2 * self.pace.sessions + meanwhile.ceil() as usize).clamp(1, 64)
    }

    fn advance(&mut self, now: Instant) -> (Vec<u32>, Vec<u32>) {
        let (mut called, mut away) = (Vec::new(), Vec::new());
        while self.inside < self.window() && !self.list.is_empty() {
            let (_, who, deadline) = self.list.remove(0);
            if self.in_time(0, deadline, now)
                || (self.inside < self.pace.sessions && deadline > now)
            {
                self.inside += 1;
                called.push(who);
            } else {
                away.push(who);
            }
        }
        (called, away)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_line_does_what_the_model_does(events in prop::collection::vec(event(), 1..200)) {
        let mut now = Instant::now();
        let (mut line, mut turns) = (Line::new(64), Vec::new());
        let unknown = Pace { sessions: 1, per_signature: None };
        let mut model = Model { pace: unknown, commit: Duration::ZERO, inside: 0, list: Vec::new(), accepted: Vec::new() };
        for (who, event) in (0..).zip(events) {
            match event {
                Event::Arrive { standing, time_left } => {
                    let deadline = now + time_left * MILLI;
                    let arrival = line.arrive(standing, deadline, now, || who);
                    let free = model.inside < model.pace.sessions && deadline > now;
                    let room = model.inside < model.window() && model.list.is_empty() && model.in_time(0, deadline, now);
                    if standing == Standing::Daemon || free || room {
                        model.inside += 1;
                        model.accepted.push((now, standing));
                        prop_assert_eq!(arrival, Arrival::Enters);
                        continue;
                    }
                    let ahead = model.list.iter().filter(|(other, ..)| *other <= standing).count();
                    if model.really_ahead(standing, ahead, now).is_none_or(|ahead| !model.in_time(ahead, deadline, now)) {
                        prop_assert_eq!(arrival, Arrival::TurnedAway);
                        continue;
                    }
                    model.accepted.push((now, standing));
                    model.list.insert(ahead, (standing, who, deadline));
                    let lost = (ahead + 1..model.list.len()).find(|at| !model.in_time(*at, model.list[*at].2, now));
                    let lost = lost.map(|at| model.list.remove(at).1);
                    let Arrival::Waits { turn, pushed_out } = arrival else { panic!("it waits") };
                    prop_assert_eq!(pushed_out, lost);
                    turns.push((who, turn));
                }
                Event::Leave if model.inside > 0 => {
                    model.inside -= 1;
                    let (called, turned_away) = model.advance(now);
                    prop_assert_eq!(line.leave(now), Moved { called, turned_away });
                }
                Event::Leave => {}
                Event::GiveUp(index) if !turns.is_empty() => {
                    // Also of such as do not wait any more.
                    let (who, turn) = turns.swap_remove(index.index(turns.len()));
                    line.give_up(turn);
                    model.list.retain(|(_, other, _)| *other != who);
                }
                Event::GiveUp(_) => {}
                Event::Pace(pace) => {
                    model.pace = pace;
                    let (called, turned_away) = model.advance(now);
                    prop_assert_eq!(line.set_pace(pace, now), Moved { called, turned_away });
                }
                Event::Recorded(millis) => {
                    line.recorded(millis * MILLI);
                    model.commit = model.commit.mul_f64(0.875) + (millis * MILLI).mul_f64(0.125);
                }
                Event::Time(millis) => now += millis * MILLI,
            }
            prop_assert_eq!((line.inside, line.waiting(), line.window()), (model.inside, model.list.len(), model.window()));
            let idle = line.waiting() > 0 && line.inside < line.pace.sessions;
            prop_assert!(!idle, "somebody waits and a session is free");
        }
    }
}

/// A device of so many sessions behind a ledger that takes ten milliseconds to commit, and what
/// became of the calls to it.
struct Simulation {
    sessions: usize,
    each: Duration,
    /// Calls a second, of which so many of a hundred have no certificate.
    calls: u32,
    first_percent: u32,
    patience: Duration,
    lasts: Duration,
}

#[derive(Debug, Default)]
struct Seen {
    first: u32,
    first_signed: u32,
    signed: u32,
    late: u32,
    refused_at_once: u32,
    refused_later: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    Signed(u32),
    Recorded(u32),
    Call(u32),
}

impl Simulation {
    fn run(&self) -> Seen {
        const COMMITS: Duration = Duration::from_millis(10);
        let begun = Instant::now();
        let (mut line, mut seen) = (
            line(Pace {
                sessions: self.sessions,
                per_signature: Some(self.each),
            }),
            Seen::default(),
        );
        let mut next: BinaryHeap<std::cmp::Reverse<(Duration, Happens)>> = BinaryHeap::new();
        let gap = Duration::from_secs(1) / self.calls;
        let calls = u32::try_from(self.lasts.as_micros() / gap.as_micros()).expect("few");
        (0..calls).for_each(|call| next.push(std::cmp::Reverse((gap * call, Happens::Call(call)))));
        // Evenly among the others.
        let is_first = |call: u32| call * self.first_percent % 100 < self.first_percent;
        let deadline = |call: u32| begun + gap * call + self.patience;
        let (mut free, mut queue) = (self.sessions, VecDeque::new());
        while let Some(std::cmp::Reverse((at, what))) = next.pop() {
            let (now, mut entered) = (begun + at, Vec::new());
            match what {
                Happens::Call(call) => {
                    seen.first += u32::from(is_first(call));
                    let standing = if is_first(call) {
                        Standing::First
                    } else {
                        renewal(i64::from(call % 7))
                    };
                    match line.arrive(standing, deadline(call), now, || call) {
                        Arrival::Enters => entered.push(call),
                        Arrival::Waits { pushed_out, .. } => {
                            seen.refused_later += u32::from(pushed_out.is_some())
                        }
                        Arrival::TurnedAway => seen.refused_at_once += 1,
                    }
                }
                Happens::Recorded(call) => {
                    line.recorded(COMMITS);
                    queue.push_back(call);
                }
                Happens::Signed(call) => {
                    free += 1;
                    seen.signed += 1;
                    seen.first_signed += u32::from(is_first(call));
                    // The outcome is committed as well.
                    seen.late += u32::from(now + COMMITS > deadline(call));
                    let moved = line.leave(now);
                    seen.refused_later += u32::try_from(moved.turned_away.len()).expect("few");
                    entered = moved.called;
                }
            }
            entered.into_iter().for_each(|call| {
                next.push(std::cmp::Reverse((at + COMMITS, Happens::Recorded(call))))
            });
            while free > 0
                && let Some(call) = queue.pop_front()
            {
                free -= 1;
                next.push(std::cmp::Reverse((at + self.each, Happens::Signed(call))));
            }
        }
        assert_eq!(line.waiting(), 0);
        assert_eq!(
            seen.signed + seen.refused_at_once + seen.refused_later,
            calls,
            "each once"
        );
        seen
    }
}

#[test]
fn a_device_at_its_limit_is_kept_busy_signs_nothing_late_and_serves_whoever_has_nothing() {
    for (sessions, millis, overload) in [
        (1, 20, 2),
        (2, 20, 3),
        (4, 20, 2),
        (4, 50, 3),
        (1, 200, 3),
        (4, 5, 3),
    ] {
        let raw = sessions as u32 * 1000 / millis;
        // One in five has no certificate: less than the device can do.
        let lasts = Duration::from_secs(20);
        let simulation = Simulation {
            sessions,
            each: millis * MILLI,
            calls: overload * raw,
            first_percent: 20,
            patience: Duration::from_secs(2),
            lasts,
        };
        let seen = simulation.run();
        assert_eq!(seen.late, 0, "{sessions} × {millis} ms: {seen:?}");
        assert_eq!(
            seen.first_signed, seen.first,
            "{sessions} × {millis} ms: {seen:?}"
        );
        assert!(
            100 * seen.signed >= 97 * raw * 20,
            "{sessions} × {millis} ms: {seen:?}"
        );
        assert!(
            seen.refused_at_once > 4 * seen.refused_later,
            "{sessions} × {millis} ms: {seen:?}"
        );
    }
}

#[test]
fn below_its_limit_nobody_is_refused() {
    let simulation = Simulation {
        sessions: 4,
        each: 20 * MILLI,
        calls: 190,
        first_percent: 50,
        patience: Duration::from_secs(2),
        lasts: Duration::from_secs(20),
    };
    let seen = simulation.run();
    assert_eq!(
        (
            seen.signed,
            seen.late,
            seen.refused_at_once,
            seen.refused_later
        ),
        (3800, 0, 0, 0)
    );
}
