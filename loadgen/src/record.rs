//! What the calls of a step came to, a record for each section. Each client thread has its own, so
//! that nothing is shared while the clock runs; they are merged at the end.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::call::Failure;

/// One point of the series over time.
pub const TICK: Duration = Duration::from_millis(100);
/// Answers of one thread and step that are kept to be verified. Where there are more, every second
/// one is let go and half as many come after.
const MOST_KEPT: usize = 2_000;
/// The longest latency that is told apart, microseconds.
const LONGEST: u64 = 300_000_000;

/// One section.
pub struct Record {
    /// Calls that began in it and gave a certificate: from the (intended) start to the whole
    /// answer, microseconds.
    pub latency: Histogram<u64>,
    /// The same of calls that gave none.
    pub refused: Histogram<u64>,
    /// Calls that gave none, by what failures are called.
    pub failures: BTreeMap<String, Failures>,
    /// Certificates that arrived while it lasted, whenever their calls began.
    pub issued: u64,
    /// When the last of them did, from the section's begin.
    pub last: Duration,
    /// By time of arrival.
    pub arrived: Vec<u64>,
    /// By time of (intended) start: failures, and the longest call in microseconds.
    pub begun: Vec<Begun>,
}

/// Failures of one kind.
#[derive(Clone, Debug)]
pub struct Failures {
    pub count: u64,
    pub example: String,
}

/// Calls that began within one tick.
#[derive(Clone, Copy, Debug, Default)]
pub struct Begun {
    pub issued: u64,
    pub failed: u64,
    pub longest_micros: u64,
}

impl Record {
    fn new() -> Self {
        let histogram = || Histogram::new_with_bounds(1, LONGEST, 3).expect("fixed bounds");
        Self {
            latency: histogram(),
            refused: histogram(),
            failures: BTreeMap::new(),
            issued: 0,
            last: Duration::ZERO,
            arrived: Vec::new(),
            begun: Vec::new(),
        }
    }

    /// A call that began `offset` into the section and took `time`.
    pub fn call<T>(&mut self, offset: Duration, time: Duration, outcome: &Result<T, Failure>) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(LONGEST);
        let tick = at(&mut self.begun, offset);
        tick.longest_micros = tick.longest_micros.max(micros);
        match outcome {
            Ok(_) => {
                tick.issued += 1;
                self.latency.saturating_record(micros);
            }
            Err(failure) => {
                tick.failed += 1;
                self.refused.saturating_record(micros);
                let fresh = || Failures {
                    count: 0,
                    example: failure.to_string(),
                };
                self.failures
                    .entry(failure.name())
                    .or_insert_with(fresh)
                    .count += 1;
            }
        }
    }

    /// A certificate arrived, `offset` into the section.
    pub fn arrival(&mut self, offset: Duration) {
        self.issued += 1;
        self.last = self.last.max(offset);
        *at(&mut self.arrived, offset) += 1;
    }

    fn merge(&mut self, other: Self) {
        self.latency.add(&other.latency).expect("the same bounds");
        self.refused.add(&other.refused).expect("the same bounds");
        for (name, failures) in other.failures {
            self.failures
                .entry(name)
                .and_modify(|all| all.count += failures.count)
                .or_insert(failures);
        }
        self.issued += other.issued;
        self.last = self.last.max(other.last);
        for (tick, count) in other.arrived.into_iter().enumerate() {
            *nth(&mut self.arrived, tick) += count;
        }
        for (tick, more) in other.begun.into_iter().enumerate() {
            let all = nth(&mut self.begun, tick);
            all.issued += more.issued;
            all.failed += more.failed;
            all.longest_micros = all.longest_micros.max(more.longest_micros);
        }
    }
}

fn at<T: Clone + Default>(series: &mut Vec<T>, offset: Duration) -> &mut T {
    nth(series, (offset.as_millis() / TICK.as_millis()) as usize)
}

fn nth<T: Clone + Default>(series: &mut Vec<T>, tick: usize) -> &mut T {
    if series.len() <= tick {
        series.resize(tick + 1, T::default());
    }
    &mut series[tick]
}

/// A thread's records of a step, and the answers that it kept.
pub struct Recorder {
    pub sections: Vec<Record>,
    /// Call number and message.
    pub kept: Vec<(u64, Vec<u8>)>,
    /// Every so many-th is kept; 0 is none.
    every: u64,
}

impl Recorder {
    /// For so many sections.
    pub fn new(sections: usize, verify_every: u64) -> Self {
        Self {
            sections: (0..sections).map(|_| Record::new()).collect(),
            kept: Vec::new(),
            every: verify_every,
        }
    }

    /// Whether the answer of this call will be verified.
    pub fn keeps(&self, number: u64) -> bool {
        self.every != 0 && number.is_multiple_of(self.every)
    }

    /// Keeps an answer.
    pub fn keep(&mut self, number: u64, answer: Vec<u8>) {
        self.kept.push((number, answer));
        if self.kept.len() >= MOST_KEPT {
            self.every *= 2;
            self.kept
                .retain(|(number, _)| number.is_multiple_of(self.every));
        }
    }

    /// Adds another thread's.
    pub fn merge(&mut self, other: Self) {
        for (all, more) in self.sections.iter_mut().zip(other.sections) {
            all.merge(more);
        }
        self.kept.extend(other.kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn threads_add_up() {
        let mut all = Recorder::new(1, 1);
        let mut other = Recorder::new(1, 1);
        all.sections[0].call(millis(50), millis(2), &Ok(()));
        other.sections[0].call(millis(250), millis(4), &Ok(()));
        other.sections[0].call(
            millis(250),
            millis(9),
            &Err::<(), _>(Failure::client("TLS", "no")),
        );
        other.sections[0].arrival(millis(254));
        all.merge(other);
        let record = &all.sections[0];
        assert_eq!(
            (record.latency.len(), record.refused.len(), record.issued),
            (2, 1, 1)
        );
        assert_eq!(
            record
                .begun
                .iter()
                .map(|tick| tick.issued)
                .collect::<Vec<_>>(),
            [1, 0, 1]
        );
        assert_eq!(record.begun[2].longest_micros, 9000);
        assert_eq!(record.arrived, [0, 0, 1]);
        assert_eq!(record.failures["client: TLS"].count, 1);
    }

    #[test]
    fn kept_answers_stay_few_and_spread() {
        let mut recorder = Recorder::new(1, 3);
        for number in 0..100_000 {
            if recorder.keeps(number) {
                recorder.keep(number, Vec::new());
            }
        }
        assert!(
            (MOST_KEPT / 2..MOST_KEPT).contains(&recorder.kept.len()),
            "{}",
            recorder.kept.len()
        );
        let numbers: Vec<u64> = recorder.kept.iter().map(|(number, _)| *number).collect();
        let step = numbers[1] - numbers[0];
        assert!(
            numbers.windows(2).all(|pair| pair[1] - pair[0] == step),
            "evenly over the whole run"
        );
        assert!(numbers.last().unwrap() + step >= 100_000);
    }

    #[test]
    fn nothing_is_kept_when_nothing_is_to_be_verified() {
        assert!(!Recorder::new(1, 0).keeps(0));
    }
}
