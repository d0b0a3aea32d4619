//! How fast a device signs on one session, on two, on four: what the size of a pool is chosen by.
//! Each session has a key of its own that is made for this alone and ends with it; no other key
//! signs anything here. While it runs it takes all of the device's speed.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::{Device, KeyKind, KeyUri, SignError, throw_away_device};

/// A larger number of sessions is worth having from this gain on, in signatures a second.
pub const WORTH_IT: f64 = 0.03;

/// Latencies are counted in nanoseconds up to an hour, to three digits.
const LONGEST: u64 = 3_600_000_000_000;

/// What is asked for another session.
type Opening = Box<dyn Fn() -> Result<Box<dyn Device>, SignError> + Send>;

/// Sessions of one device that sign as fast as they can.
pub struct Bench {
    open: Opening,
    devices: Vec<Box<dyn Device>>,
    warm_up: Duration,
    time: Duration,
}

/// What a number of sessions does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// How many sign at once.
    pub sessions: usize,
    /// Signatures a second, all of them together.
    pub per_second: f64,
    /// Half of the signatures took no longer.
    pub p50: Duration,
    /// 99 of 100 signatures took no longer.
    pub p99: Duration,
}

/// What happens while the number of sessions rises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// One more session has its key.
    Opened,
    /// A number of sessions has been measured.
    Measured(Level),
}

/// Every number of sessions that was measured, in rising order.
#[derive(Clone, Debug)]
pub struct Measured {
    /// At least one.
    pub levels: Vec<Level>,
    /// What kept the device from signing on so many sessions, if anything did.
    pub trouble: Option<(usize, SignError)>,
}

impl Bench {
    /// On the device that `uri` names, with keys of this kind, measuring each number of sessions
    /// for `time` after a tenth of that.
    pub fn on(uri: KeyUri, kind: KeyKind, time: Duration) -> Self {
        Self::of(time, Box::new(move || throw_away_device(&uri, kind)))
    }

    fn of(time: Duration, open: Opening) -> Self {
        Self {
            open,
            devices: Vec::new(),
            warm_up: time / 10,
            time,
        }
    }

    /// So many sessions at once; those that are open already are used again.
    pub fn level(&mut self, sessions: usize) -> Result<Level, SignError> {
        self.measure(sessions.max(1), &mut |_| {})
    }

    /// 1, 2, 4 … sessions, until twice as many are no longer worth it or `most` are reached. An
    /// error only if one session alone does not sign: what more sessions run into ends the rise and
    /// is told beside the levels.
    pub fn rise(&mut self, most: usize, told: &mut dyn FnMut(Step)) -> Result<Measured, SignError> {
        let mut levels: Vec<Level> = Vec::new();
        let mut sessions = 1;
        loop {
            match self.measure(sessions, told) {
                Ok(level) => levels.push(level),
                Err(error) if levels.is_empty() => return Err(error),
                Err(error) => {
                    return Ok(Measured {
                        levels,
                        trouble: Some((sessions, error)),
                    });
                }
            }
            let next = (2 * sessions).min(most);
            if next <= sessions || gain(&levels).is_some_and(|gain| gain < WORTH_IT) {
                return Ok(Measured {
                    levels,
                    trouble: None,
                });
            }
            sessions = next;
        }
    }

    fn measure(&mut self, sessions: usize, told: &mut dyn FnMut(Step)) -> Result<Level, SignError> {
        while self.devices.len() < sessions {
            self.devices.push((self.open)()?);
            told(Step::Opened);
        }
        let (warm_up, time, together) = (self.warm_up, self.time, &Barrier::new(sessions));
        let signed = std::thread::scope(|scope| {
            let one = |device: &'_ mut Box<dyn Device>| {
                together.wait();
                sign_for(device.as_mut(), warm_up)?;
                sign_for(device.as_mut(), time)
            };
            let threads: Vec<_> = self.devices[..sessions]
                .iter_mut()
                .map(|device| scope.spawn(move || one(device)))
                .collect();
            let failed = |_| Err(SignError::Lost("a thread that signed has failed".into()));
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(failed))
                .collect::<Result<Vec<_>, _>>()
        })?;
        let mut times = empty();
        signed
            .iter()
            .for_each(|one| times.add(&one.times).expect("of one shape"));
        let at = |quantile| Duration::from_nanos(times.value_at_quantile(quantile));
        let level = Level {
            sessions,
            per_second: signed.iter().map(Signed::per_second).sum(),
            p50: at(0.5),
            p99: at(0.99),
        };
        told(Step::Measured(level));
        Ok(level)
    }
}

impl Measured {
    /// The largest number of sessions that was still worth it.
    pub fn recommended(&self) -> Level {
        let worth_it = |end: &usize| gain(&self.levels[..*end]).is_none_or(|gain| gain >= WORTH_IT);
        let last = (1..=self.levels.len())
            .take_while(worth_it)
            .last()
            .unwrap_or(1);
        self.levels[last - 1]
    }
}

/// What the last of these levels has over the one before: 0.5 for half as many signatures again.
/// `None` for the first.
pub fn gain(levels: &[Level]) -> Option<f64> {
    match levels {
        [.., before, last] => Some(last.per_second / before.per_second - 1.0),
        _ => None,
    }
}

/// What one session did.
struct Signed {
    count: u64,
    took: Duration,
    times: Histogram<u64>,
}

impl Signed {
    fn per_second(&self) -> f64 {
        self.count as f64 / self.took.as_secs_f64()
    }
}

fn empty() -> Histogram<u64> {
    Histogram::new_with_max(LONGEST, 3).expect("bounds that hdrhistogram takes")
}

/// Signs one after the other until `time` has passed, at least once, and verifies the last one.
/// What is counted ends with a signature, so that a slow device is not taken for a slower one.
fn sign_for(device: &mut dyn Device, time: Duration) -> Result<Signed, SignError> {
    let message = |number: u64| [b"throw-away ".as_slice(), &number.to_be_bytes()].concat();
    let (begun, mut before) = (Instant::now(), Duration::ZERO);
    let mut signed = Signed {
        count: 0,
        took: Duration::ZERO,
        times: empty(),
    };
    loop {
        let signature = device.sign(&message(signed.count))?;
        signed.took = begun.elapsed();
        signed
            .times
            .saturating_record(u64::try_from((signed.took - before).as_nanos()).unwrap_or(LONGEST));
        if signed.took >= time {
            let good = device
                .public_key()
                .verify(&message(signed.count), &signature);
            signed.count += 1;
            return if good {
                Ok(signed)
            } else {
                Err(SignError::Rejected("a signature does not verify".into()))
            };
        }
        before = signed.took;
        signed.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex, PoisonError};

    use super::*;
    use crate::PublicKey;

    /// What an engine takes for a signature: so much that a busy machine's delays do not hide what
    /// another session gains.
    const SIGNATURE: Duration = Duration::from_millis(40);

    /// Signs on so many sessions at once and no more, like hardware with so many engines.
    struct Engines {
        key: Box<dyn Device>,
        engines: Arc<Vec<Mutex<()>>>,
        number: usize,
    }

    impl Device for Engines {
        fn public_key(&self) -> &PublicKey {
            self.key.public_key()
        }

        fn sign(&mut self, message: &[u8]) -> Result<Vec<u8>, SignError> {
            let _mine = self.engines[self.number % self.engines.len()]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            std::thread::sleep(SIGNATURE);
            self.key.sign(message)
        }
    }

    fn file() -> KeyUri {
        KeyUri::File("/nowhere/key.pem".into())
    }

    /// A bench on a device with so many engines that gives no more than `sessions`.
    fn with_engines(engines: usize, sessions: usize) -> Bench {
        let (engines, opened) = (
            Arc::new((0..engines).map(|_| Mutex::default()).collect::<Vec<_>>()),
            AtomicUsize::new(0),
        );
        let open = move || -> Result<Box<dyn Device>, SignError> {
            let number = opened.fetch_add(1, Ordering::Relaxed);
            if number >= sessions {
                return Err(SignError::Lost("CKR_SESSION_COUNT".into()));
            }
            let key = throw_away_device(&file(), KeyKind::P256)?;
            Ok(Box::new(Engines {
                key,
                engines: engines.clone(),
                number,
            }))
        };
        Bench::of(15 * SIGNATURE, Box::new(open))
    }

    #[test]
    fn sessions_rise_until_they_are_no_longer_worth_it() {
        let mut told = 0;
        let measured = with_engines(4, 64)
            .rise(64, &mut |step| {
                told += usize::from(matches!(step, Step::Measured(_)))
            })
            .unwrap();
        let sessions: Vec<usize> = measured.levels.iter().map(|level| level.sessions).collect();
        assert!(sessions.starts_with(&[1, 2, 4, 8]), "{measured:?}");
        assert_eq!(told, sessions.len());
        let (one, four) = (measured.levels[0], measured.levels[2]);
        assert!(four.per_second > 2.5 * one.per_second, "{measured:?}");
        assert!(one.p50 >= SIGNATURE && one.p99 >= one.p50, "{measured:?}");
        assert!(
            measured.recommended().sessions >= 4 && measured.trouble.is_none(),
            "{measured:?}"
        );
    }

    #[test]
    fn what_more_sessions_run_into_ends_the_rise_and_not_the_measurement() {
        let measured = with_engines(8, 3).rise(64, &mut |_| {}).unwrap();
        assert_eq!(measured.levels.len(), 2);
        assert!(
            matches!(&measured.trouble, Some((4, SignError::Lost(_)))),
            "{measured:?}"
        );
        assert_eq!(measured.recommended().sessions, 2);
        assert!(matches!(
            with_engines(8, 0).rise(64, &mut |_| {}),
            Err(SignError::Lost(_))
        ));
    }

    #[test]
    fn the_last_level_is_the_most_that_is_allowed() {
        let measured = with_engines(8, 64).rise(3, &mut |_| {}).unwrap();
        assert_eq!(
            measured
                .levels
                .iter()
                .map(|level| level.sessions)
                .collect::<Vec<_>>(),
            [1, 2, 3]
        );
    }

    #[test]
    fn a_level_that_is_not_worth_it_is_not_recommended() {
        let of = |sessions, per_second| Level {
            sessions,
            per_second,
            p50: Duration::ZERO,
            p99: Duration::ZERO,
        };
        let recommended = |levels: &[Level]| {
            Measured {
                levels: levels.to_vec(),
                trouble: None,
            }
            .recommended()
            .sessions
        };
        assert_eq!(recommended(&[of(1, 100.0)]), 1);
        assert_eq!(recommended(&[of(1, 100.0), of(2, 102.9)]), 1);
        assert_eq!(recommended(&[of(1, 100.0), of(2, 103.1)]), 2);
        assert_eq!(recommended(&[of(1, 100.0), of(2, 190.0), of(4, 180.0)]), 2);
    }
}
