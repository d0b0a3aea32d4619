//! Poisson arrivals to the microsecond, on a thread of their own: the runtime's timer counts whole
//! milliseconds, which is as long as a call takes. An arrival carries the instant at which it was
//! meant to begin, so that whatever delays it counts as latency.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::plan::{Section, Window};

/// A call that is to begin.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub number: u64,
    /// Its section, if it counts.
    pub section: Option<usize>,
    pub intended: Instant,
}

/// Starts a thread that sends arrivals at `share` of the sections' rates until the window is over;
/// the warm-up goes at the first one's.
pub fn start(
    window: Arc<Window>,
    sections: Vec<Section>,
    share: f64,
    seed: u64,
) -> UnboundedReceiver<Arrival> {
    let (due, arrivals) = unbounded_channel();
    std::thread::spawn(move || {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut intended = Instant::now();
        loop {
            let rate = sections[window.section(intended).unwrap_or(0)]
                .rate
                .unwrap_or(1.0)
                * share;
            intended += gap(rate, &mut random);
            std::thread::sleep(intended.saturating_duration_since(Instant::now()));
            let Some((number, section)) = window.take(intended) else {
                return;
            };
            if due
                .send(Arrival {
                    number,
                    section,
                    intended,
                })
                .is_err()
            {
                return;
            }
        }
    });
    arrivals
}

/// Exponentially distributed with this rate a second.
fn gap(rate: f64, random: &mut fastrand::Rng) -> Duration {
    Duration::from_secs_f64(-(1.0 - random.f64()).ln() / rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_exponential() {
        let mut random = fastrand::Rng::with_seed(7);
        let gaps: Vec<f64> = (0..100_000)
            .map(|_| gap(1000.0, &mut random).as_secs_f64() * 1000.0)
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let longer = gaps.iter().filter(|gap| **gap > 1.0).count() as f64 / gaps.len() as f64;
        assert!((0.98..1.02).contains(&mean), "{mean}");
        assert!((longer - (-1.0_f64).exp()).abs() < 0.01, "{longer}");
    }
}
