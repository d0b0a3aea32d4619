//! The waiting room before a device. So many calls are under way to it as keep it busy, and no
//! more: an intent is opened only for what will be signed. Beyond that calls wait, whoever has no
//! certificate before those that renew, and of these the one first whose certificate ends soonest.
//! A call that cannot be served in the time that it has left is refused at once, so that its caller
//! can go elsewhere.

mod line;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use signers::Pace;
use tokio::sync::oneshot;

use self::line::{Arrival, Line, Moved, Turn};
use crate::metrics::{DeviceLine, Metrics, Step};
use crate::refusal::{Reason, Refusal};
use crate::timestamp::Timestamp;

/// How often a device is asked for its pace.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Who goes before whom, the first first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// The daemon's own serving certificate: it waits for nobody.
    Daemon,
    /// Whoever has no certificate.
    First,
    /// Whoever has one.
    Renewal {
        /// Its end.
        until: Timestamp,
    },
    /// Whoever has another call under way: nobody gets before others by asking twice, or for short
    /// lives.
    Again,
}

/// One line for each issuer, for the life of the daemon.
#[derive(Debug)]
pub struct Admission {
    most: usize,
    metrics: Arc<Metrics>,
    rooms: Mutex<HashMap<String, Arc<Room>>>,
}

/// Calls that wait, and how they are told: with the right to go on, or by nothing.
type Calls = Line<oneshot::Sender<Entered>>;

#[derive(Debug)]
struct Room {
    line: Mutex<Looked>,
    shown: DeviceLine,
}

#[derive(Debug)]
struct Looked {
    line: Calls,
    /// When the device was asked for its pace.
    at: Option<Instant>,
}

impl Admission {
    /// So many calls are under way to a device at most.
    pub fn new(most: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            most,
            metrics,
            rooms: Mutex::default(),
        }
    }

    /// Waits for the device of this issuer, for as long as the caller does: dropped, it has left
    /// the line. `pace` is asked now and then.
    pub async fn enter(
        &self,
        issuer: &str,
        pace: impl FnOnce() -> Pace,
        standing: Standing,
        deadline: Instant,
    ) -> Result<Entered, Refusal> {
        let (room, now) = (self.room(issuer), Instant::now());
        if room.must_look(now) {
            let pace = pace();
            room.moved(|line| line.set_pace(pace, now));
            room.lock().show(&room.shown);
        }
        let (tell, told) = oneshot::channel();
        let arrival = room.lock().line.arrive(standing, deadline, now, || tell);
        let mut waiting = match arrival {
            Arrival::Enters => return Ok(Entered { room, at: now }),
            Arrival::TurnedAway => return Err(room.turned_away(issuer)),
            Arrival::Waits { turn, pushed_out } => {
                // It learns it by hearing nothing.
                drop(pushed_out);
                room.lock().show(&room.shown);
                Waiting { room, turn, told }
            }
        };
        let called = self.metrics.step(Step::Wait, &mut waiting.told).await;
        called.map_err(|_| waiting.room.turned_away(issuer))
    }

    fn room(&self, issuer: &str) -> Arc<Room> {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(room) = rooms.get(issuer) {
            return room.clone();
        }
        let line = Looked {
            line: Line::new(self.most),
            at: None,
        };
        let room = Arc::new(Room {
            line: Mutex::new(line),
            shown: DeviceLine::new(&self.metrics, issuer),
        });
        rooms.insert(issuer.to_owned(), room.clone());
        room
    }
}

impl Room {
    fn lock(&self) -> MutexGuard<'_, Looked> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the device's pace is to be asked now; of many that call at once one does. While
    /// nothing is known, all do.
    fn must_look(&self, now: Instant) -> bool {
        let mut looked = self.lock();
        let known = looked.line.pace().per_signature.is_some();
        let must = !known
            || looked
                .at
                .is_none_or(|at| now.saturating_duration_since(at) >= LOOK_EVERY);
        if must {
            looked.at = Some(now);
        }
        must
    }

    /// A change of the line, and those told whom it concerns.
    fn moved(self: &Arc<Self>, change: impl FnOnce(&mut Calls) -> Moved<oneshot::Sender<Entered>>) {
        let mut looked = self.lock();
        let Moved {
            called,
            turned_away,
        } = change(&mut looked.line);
        if called.is_empty() && turned_away.is_empty() {
            return;
        }
        looked.show(&self.shown);
        // Nobody is told under the lock: whoever has gone away meanwhile gives the right back, and
        // takes it.
        drop(looked);
        drop(turned_away);
        let at = Instant::now();
        called.into_iter().for_each(|tell| {
            drop(tell.send(Entered {
                room: self.clone(),
                at,
            }))
        });
    }

    fn turned_away(&self, issuer: &str) -> Refusal {
        let looked = self.lock();
        let (waiting, pace) = (looked.line.waiting(), looked.line.pace());
        drop(looked);
        let rate = pace.per_second().unwrap_or_default();
        Refusal::new(
            Reason::DeviceBusy,
            format_args!(
                "the device of issuer {issuer} makes {rate:.0} signatures a second, {waiting} calls wait: no chance in time"
            ),
        )
    }
}

impl Looked {
    fn show(&self, shown: &DeviceLine) {
        shown.is(
            self.line.waiting(),
            self.line.window(),
            self.line.pace().per_second(),
        );
    }
}

/// One that waits; dropped, it does not.
struct Waiting {
    room: Arc<Room>,
    turn: Turn,
    told: oneshot::Receiver<Entered>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut looked = self.room.lock();
        looked.line.give_up(self.turn);
        looked.show(&self.room.shown);
    }
}

/// The right to ask the device for one signature. It comes back when this is dropped: when the
/// signature is there, or will not be.
#[derive(Debug)]
pub struct Entered {
    room: Arc<Room>,
    at: Instant,
}

impl Entered {
    /// The intent is durable: from here on the device can work on it.
    pub fn recorded(&self) {
        self.room.lock().line.recorded(self.at.elapsed());
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.room.moved(|line| line.leave(Instant::now()));
    }
}

#[cfg(test)]
mod tests;
