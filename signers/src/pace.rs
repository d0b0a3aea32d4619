//! How fast a device signs, measured from the signatures that it makes, so that whoever sends it
//! work can send as much as it can do. Holds no opinion on what to do with the figure.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::{Observer, Purpose};

/// What one signature counts in the mean.
const NEWEST: f64 = 0.125;

/// No signature counts for more than so many times the mean: a stall is over when it is noticed,
/// and must not be taken for the pace. A device that has become slow shows it by one slow signature
/// after the other, each of which counts for more than the one before.
const STALL: f64 = 4.0;

/// What a key's device can do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Signatures that it makes at a time; at least one.
    pub sessions: usize,
    /// How long one takes; `None` before the first.
    pub per_signature: Option<Duration>,
}

impl Pace {
    /// Signatures a second when every session is at work; `None` before the first signature.
    pub fn per_second(self) -> Option<f64> {
        self.per_signature
            .map(|time| self.sessions as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE))
    }

    /// Several devices that share the work. Those that have not signed yet count as the mean of
    /// those that have.
    pub fn together(devices: impl IntoIterator<Item = Self>) -> Self {
        let devices: Vec<Self> = devices.into_iter().collect();
        let sessions = devices
            .iter()
            .map(|device| device.sessions)
            .sum::<usize>()
            .max(1);
        let measured = devices
            .iter()
            .filter_map(|device| Some((device.sessions, device.per_second()?)));
        let (signing, per_second) = measured.fold((0, 0.0), |sum, (sessions, rate)| {
            (sum.0 + sessions, sum.1 + rate)
        });
        Self {
            sessions,
            per_signature: (signing > 0)
                .then(|| Duration::from_secs_f64(signing as f64 / per_second)),
        }
    }
}

/// Measures one key's device.
#[derive(Debug, Default)]
pub struct PaceMeter(Mutex<Option<f64>>);

impl PaceMeter {
    /// A signature took so long inside the device.
    pub fn record(&self, in_device: Duration) {
        // A clock that stands still for a signature must not make a device that takes no time.
        let seconds = in_device.as_secs_f64().max(1e-6);
        let mut mean = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *mean = Some(mean.map_or(seconds, |mean| {
            mean + NEWEST * (seconds.min(STALL * mean) - mean)
        }));
    }

    /// The pace of so many sessions.
    pub fn pace(&self, sessions: usize) -> Pace {
        let mean = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pace {
            sessions: sessions.max(1),
            per_signature: mean.map(Duration::from_secs_f64),
        }
    }

    /// Measures what `observer` is told.
    pub fn before(self: &Arc<Self>, observer: Arc<dyn Observer>) -> Arc<dyn Observer> {
        Arc::new(Metered {
            meter: self.clone(),
            observer,
        })
    }
}

/// An observer behind a meter.
struct Metered {
    meter: Arc<PaceMeter>,
    observer: Arc<dyn Observer>,
}

impl Observer for Metered {
    fn queue_depth(&self, jobs: usize) {
        self.observer.queue_depth(jobs);
    }

    fn waited(&self, wait: Duration) {
        self.observer.waited(wait);
    }

    fn signed(&self, purpose: Purpose, time: Duration, ok: bool) {
        // What a device refuses, or is interrupted in, says nothing of how fast it signs.
        if ok {
            self.meter.record(time);
        }
        self.observer.signed(purpose, time, ok);
    }

    fn stuck_threads(&self, threads: usize) {
        self.observer.stuck_threads(threads);
    }

    fn reopened(&self) {
        self.observer.reopened();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Unobserved;

    fn after(signatures: impl IntoIterator<Item = Duration>) -> f64 {
        let meter = PaceMeter::default();
        signatures.into_iter().for_each(|time| meter.record(time));
        meter.pace(1).per_signature.expect("measured").as_secs_f64() * 1000.0
    }

    fn times(millis: f64, count: usize) -> impl Iterator<Item = Duration> {
        std::iter::repeat_n(Duration::from_secs_f64(millis / 1000.0), count)
    }

    #[test]
    fn a_steady_device_has_its_own_pace_from_the_first_signature_on() {
        assert_eq!(
            PaceMeter::default().pace(4),
            Pace {
                sessions: 4,
                per_signature: None
            }
        );
        assert_eq!(PaceMeter::default().pace(4).per_second(), None);
        for count in [1, 2, 50, 5_000] {
            assert!((after(times(20.0, count)) - 20.0).abs() < 0.001, "{count}");
        }
        let meter = PaceMeter::default();
        times(20.0, 9).for_each(|time| meter.record(time));
        assert!((meter.pace(4).per_second().expect("measured") - 200.0).abs() < 0.1);
        assert_eq!(meter.pace(0).sessions, 1, "who asks wants to divide by it");
    }

    #[test]
    fn a_stall_is_no_pace_and_a_change_of_pace_is_seen_soon() {
        let stalled = after(times(20.0, 100).chain(times(4000.0, 4)));
        assert!(stalled < 80.0, "every session at once: {stalled} ms");
        let over = after(
            times(20.0, 100)
                .chain(times(4000.0, 4))
                .chain(times(20.0, 16)),
        );
        assert!(over < 30.0, "a tenth of a second later: {over} ms");
        let slower = after(times(0.1, 10_000).chain(times(20.0, 40)));
        assert!(
            slower > 18.0,
            "a fifth of a second of four sessions: {slower} ms"
        );
        let faster = after(times(1000.0, 100).chain(times(20.0, 64)));
        assert!(faster < 21.0, "{faster} ms");
    }

    #[test]
    fn devices_that_share_the_work_add_up() {
        let device = |sessions, millis| Pace {
            sessions,
            per_signature: Some(Duration::from_millis(millis)),
        };
        let both = Pace::together([device(4, 20), device(2, 10)]);
        assert_eq!(both.sessions, 6);
        assert!(
            (both.per_second().expect("measured") - 400.0).abs() < 0.01,
            "200 and 200"
        );
        let one_is_new = Pace::together([
            device(4, 20),
            Pace {
                sessions: 4,
                per_signature: None,
            },
        ]);
        assert_eq!(
            one_is_new,
            Pace {
                sessions: 8,
                per_signature: Some(Duration::from_millis(20))
            }
        );
        assert_eq!(
            Pace::together([]),
            Pace {
                sessions: 1,
                per_signature: None
            }
        );
    }

    #[test]
    fn only_signatures_are_measured_and_the_observer_hears_all() {
        #[derive(Default)]
        struct Heard(Mutex<Vec<bool>>);
        impl Observer for Heard {
            fn queue_depth(&self, _: usize) {}
            fn waited(&self, _: Duration) {}
            fn signed(&self, _: Purpose, _: Duration, ok: bool) {
                self.0.lock().unwrap().push(ok);
            }
            fn stuck_threads(&self, _: usize) {}
            fn reopened(&self) {}
        }
        let (meter, heard) = (Arc::new(PaceMeter::default()), Arc::new(Heard::default()));
        let observer = meter.before(heard.clone());
        observer.signed(Purpose::Leaf, Duration::from_secs(60), false);
        assert_eq!(meter.pace(1).per_signature, None);
        observer.signed(Purpose::Leaf, Duration::from_millis(5), true);
        assert_eq!(*heard.0.lock().unwrap(), [false, true]);
        meter
            .before(Arc::new(Unobserved))
            .signed(Purpose::Serving, Duration::from_millis(5), true);
        assert_eq!(meter.pace(2).per_signature, Some(Duration::from_millis(5)));
    }
}
