//! What a run does: steps one after the other, each with its own connections, warm-up, and one or
//! more sections that are told apart in the report. And the window of time in which a running
//! step's calls count.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::arguments::Load;
use crate::exit::Exit;

/// Calls in flight that share a connection, unless the arguments say otherwise.
const CALLS_OF_A_CONNECTION: usize = 16;
/// Connections of an open loop, unless the arguments say otherwise.
const OPEN_CONNECTIONS: usize = 32;

/// A part of the load that is measured by itself.
#[derive(Clone, Debug)]
pub struct Step {
    /// Such as `64 in flight`.
    pub name: String,
    pub pace: Pace,
    /// Kept connections; none means a fresh one for every call.
    pub connections: Option<usize>,
    /// Load before the clock starts.
    pub warm_up: Duration,
    pub sections: Vec<Section>,
    /// The step ends after so many calls; else with its last section.
    pub calls: Option<u64>,
}

/// When calls begin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// So many in flight, each followed by the next.
    Closed { in_flight: usize },
    /// Poisson arrivals at the section's rate; at most so many in flight.
    Open { most_in_flight: usize },
}

/// A stretch of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    /// Arrivals a second, in an open loop.
    pub rate: Option<f64>,
    /// None in a step that is bounded by calls.
    pub duration: Option<Duration>,
}

/// The steps that the arguments ask for.
pub fn steps(load: &Load) -> Result<Vec<Step>, Exit> {
    let duration = load.calls.is_none().then_some(load.duration);
    let step = |name: String, pace, connections: usize, sections| Step {
        name,
        pace,
        connections: (!load.fresh_connections)
            .then(|| load.connections.unwrap_or(connections).max(1)),
        warm_up: load.warm_up,
        sections,
        calls: load.calls,
    };
    let open = Pace::Open {
        most_in_flight: load.most_in_flight,
    };
    if load.threads == 0 || load.closed.contains(&0) || load.calls == Some(0) {
        return Err(Exit::usage("--threads, --closed and --calls begin at 1"));
    }
    if load.open.iter().any(|rate| !is_rate(*rate)) {
        return Err(Exit::usage("--open takes rates above 0"));
    }
    let mut steps: Vec<Step> = Vec::new();
    for in_flight in load.closed.iter().copied() {
        let connections = in_flight.div_ceil(CALLS_OF_A_CONNECTION);
        steps.push(step(
            format!("{in_flight} in flight"),
            Pace::Closed { in_flight },
            connections,
            vec![Section {
                rate: None,
                duration,
            }],
        ));
    }
    for rate in load.open.iter().copied() {
        steps.push(step(
            format!("open, {rate}/s"),
            open,
            OPEN_CONNECTIONS,
            vec![Section {
                rate: Some(rate),
                duration,
            }],
        ));
    }
    if !load.open_sequence.is_empty() {
        let sections = load
            .open_sequence
            .iter()
            .map(|text| section(text))
            .collect::<Result<_, _>>()?;
        steps.push(step(
            format!("open, {}", load.open_sequence.join(" ")),
            open,
            OPEN_CONNECTIONS,
            sections,
        ));
    }
    Ok(steps)
}

fn section(text: &str) -> Result<Section, Exit> {
    let parsed = || {
        let (rate, duration) = text.split_once(':')?;
        let rate = rate.parse().ok().filter(|rate| is_rate(*rate))?;
        Some(Section {
            rate: Some(rate),
            duration: Some(humantime::parse_duration(duration).ok()?),
        })
    };
    parsed().ok_or_else(|| {
        Exit::usage(format!(
            "--open-sequence {text}: a section is RATE:TIME, such as 2000:10s"
        ))
    })
}

fn is_rate(rate: f64) -> bool {
    rate.is_finite() && rate > 0.0
}

/// A running step: shared by its threads.
#[derive(Debug)]
pub struct Window {
    /// The end of the warm-up.
    pub begin: Instant,
    /// The end of each section.
    ends: Vec<Instant>,
    calls: Option<u64>,
    taken: AtomicU64,
    stopped: AtomicBool,
    /// Numbers of calls, over all steps of the run.
    numbers: Arc<AtomicU64>,
}

impl Window {
    /// A step that begins now with its warm-up.
    pub fn open(step: &Step, now: Instant, numbers: Arc<AtomicU64>) -> Self {
        let begin = now + step.warm_up;
        // A century stands for a step that is bounded by calls alone.
        let century = Duration::from_secs(100 * 365 * 24 * 3600);
        let ends = step.sections.iter().scan(begin, |end, section| {
            *end += section.duration.unwrap_or(century);
            Some(*end)
        });
        Self {
            begin,
            ends: ends.collect(),
            calls: step.calls,
            taken: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            numbers,
        }
    }

    /// The end of each section; far away in a step that is bounded by calls.
    pub fn ends(&self) -> &[Instant] {
        &self.ends
    }

    /// The section of an instant: none before the first begins and after the last has ended.
    pub fn section(&self, at: Instant) -> Option<usize> {
        if at < self.begin {
            return None;
        }
        self.ends.iter().position(|end| at < *end)
    }

    /// When a section begins.
    pub fn section_begin(&self, section: usize) -> Instant {
        if section == 0 {
            self.begin
        } else {
            self.ends[section - 1]
        }
    }

    /// The number of the next call, which begins at `at`, and its section if it counts; none if the
    /// step is over.
    pub fn take(&self, at: Instant) -> Option<(u64, Option<usize>)> {
        if self.stopped.load(Ordering::Relaxed) || self.ends.last().is_some_and(|end| at >= *end) {
            return None;
        }
        let section = self.section(at);
        if let (Some(_), Some(calls)) = (section, self.calls)
            && self.taken.fetch_add(1, Ordering::Relaxed) >= calls
        {
            return None;
        }
        Some((self.numbers.fetch_add(1, Ordering::Relaxed), section))
    }

    /// Calls that began in the window, of how many if there is a bound.
    pub fn taken(&self) -> (u64, Option<u64>) {
        (self.taken.load(Ordering::Relaxed), self.calls)
    }

    /// No call begins any more.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Arguments, words};

    fn of(arguments: &str) -> Result<Vec<Step>, Exit> {
        let line = format!("--address a:1 --roots r --token-file t {arguments}");
        match Arguments::read(words(&line)).unwrap() {
            Arguments::Drive(drive) => steps(&drive.load),
            Arguments::Other(_) => unreachable!(),
        }
    }

    #[test]
    fn a_list_becomes_steps_with_connections_that_fit() {
        let steps = of("--closed 1,64,512").unwrap();
        assert_eq!(
            steps
                .iter()
                .map(|step| step.connections)
                .collect::<Vec<_>>(),
            [Some(1), Some(4), Some(32)]
        );
        assert_eq!(
            of("--open 5 --fresh-connections").unwrap()[0].connections,
            None
        );
        assert!(of("--closed 0").is_err());
    }

    #[test]
    fn a_sequence_is_one_step_of_sections_without_a_gap() {
        let steps = of("--open-sequence 100:1s,300:2s --warm-up 1s").unwrap();
        let now = Instant::now();
        let window = Window::open(&steps[0], now, Arc::default());
        let section = |millis| window.section(now + Duration::from_millis(millis));
        assert_eq!(
            [
                section(999),
                section(1000),
                section(1999),
                section(2000),
                section(3999),
                section(4000)
            ],
            [None, Some(0), Some(0), Some(1), Some(1), None]
        );
        assert!(
            of("--open-sequence 100")
                .unwrap_err()
                .to_string()
                .contains("RATE:TIME")
        );
    }

    #[test]
    fn a_step_that_is_bounded_by_calls_counts_none_of_the_warm_up() {
        let steps = of("--closed 1 --calls 2 --warm-up 1s").unwrap();
        let now = Instant::now();
        let window = Window::open(&steps[0], now, Arc::default());
        assert_eq!(window.take(now), Some((0, None)));
        let later = now + Duration::from_secs(5);
        assert_eq!(
            [window.take(later), window.take(later), window.take(later)],
            [Some((1, Some(0))), Some((2, Some(0))), None]
        );
    }
}
