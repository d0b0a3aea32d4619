//! One client thread: its connections, the calls on them, and its record. Threads share nothing but
//! the window, so a call takes no lock.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::{Mutex, Notify, oneshot};
use tokio::task::{LocalSet, spawn_local};

use crate::arrivals::{self, Arrival};
use crate::call::{Failure, call};
use crate::exit::Exit;
use crate::plan::{Pace, Step, Window};
use crate::record::Recorder;
use crate::requests::Requests;
use crate::target::Target;

/// A pause after a connection that failed, so that a closed loop does not spin while the endpoint
/// is away.
const AFTER_A_LOST_CONNECTION: Duration = Duration::from_millis(10);

/// What a thread gets.
pub struct Share {
    pub target: Arc<Target>,
    pub requests: Arc<Requests>,
    pub step: Step,
    /// Of so many threads this is one.
    pub threads: usize,
    /// Which one, from 0.
    pub thread: usize,
    pub verify_every: u64,
    pub seed: u64,
}

impl Share {
    /// This thread's part of something that is divided among all.
    fn part(&self, whole: usize) -> usize {
        whole / self.threads + usize::from(self.thread < whole % self.threads)
    }
}

/// Dials, says so on `dialled`, waits for the window, and works until it is over.
pub fn run(
    share: Share,
    dialled: oneshot::Sender<Result<(), Failure>>,
    window: oneshot::Receiver<Arc<Window>>,
) -> Result<Recorder, Exit> {
    let runtime = runtime()?;
    LocalSet::new().block_on(&runtime, async {
        let mut slots = Vec::new();
        for _ in 0..share
            .step
            .connections
            .map_or(0, |connections| share.part(connections).max(1))
        {
            match share.target.connect().await {
                Ok(sender) => slots.push(Slot::of(sender)),
                Err(failure) => {
                    // Whoever asked for the thread has gone only if the run is over.
                    let _ = dialled.send(Err(failure));
                    return Ok(Recorder::new(0, 0));
                }
            }
        }
        let _ = dialled.send(Ok(()));
        let Ok(window) = window.await else {
            return Ok(Recorder::new(0, 0));
        };
        let recorder = RefCell::new(Recorder::new(share.step.sections.len(), share.verify_every));
        let worker = Rc::new(Worker {
            share,
            slots,
            window,
            recorder,
            in_flight: Cell::new(0),
            quiet: Notify::new(),
        });
        match worker.share.step.pace {
            Pace::Closed { in_flight } => worker.clone().closed(worker.share.part(in_flight)).await,
            Pace::Open { most_in_flight } => {
                worker.clone().open(worker.share.part(most_in_flight)).await
            }
        }
        Ok(worker.recorder.replace(Recorder::new(0, 0)))
    })
}

/// One thread's: timers and sockets.
pub fn runtime() -> Result<tokio::runtime::Runtime, Exit> {
    let built = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    built.map_err(|error| Exit::missing(format!("cannot start a client thread: {error}")))
}

/// A place for a kept connection, which is dialled again when it is lost.
struct Slot {
    sender: RefCell<Option<SendRequest<Bytes>>>,
    /// How often it was dialled: a call that fails late must not throw away its successor.
    generation: Cell<u64>,
    dialling: Mutex<()>,
}

impl Slot {
    fn of(sender: SendRequest<Bytes>) -> Self {
        Self {
            sender: RefCell::new(Some(sender)),
            generation: Cell::new(0),
            dialling: Mutex::new(()),
        }
    }
}

struct Worker {
    share: Share,
    slots: Vec<Slot>,
    window: Arc<Window>,
    recorder: RefCell<Recorder>,
    in_flight: Cell<usize>,
    quiet: Notify,
}

impl Worker {
    async fn closed(self: Rc<Self>, in_flight: usize) {
        let loops: Vec<_> = (0..in_flight)
            .map(|place| spawn_local(self.clone().closed_loop(place)))
            .collect();
        for one in loops {
            one.await
                .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        }
    }

    async fn closed_loop(self: Rc<Self>, place: usize) {
        loop {
            let begin = Instant::now();
            let Some((number, section)) = self.window.take(begin) else {
                return;
            };
            if !self.counted_call(place, number, section, begin).await {
                tokio::time::sleep(AFTER_A_LOST_CONNECTION).await;
            }
        }
    }

    async fn open(self: Rc<Self>, most_in_flight: usize) {
        let Share {
            step,
            threads,
            thread,
            seed,
            ..
        } = &self.share;
        let mut arrivals = arrivals::start(
            self.window.clone(),
            step.sections.clone(),
            1.0 / *threads as f64,
            seed.wrapping_add(*thread as u64),
        );
        while let Some(Arrival {
            number,
            section,
            intended,
        }) = arrivals.recv().await
        {
            if self.in_flight.get() >= most_in_flight {
                self.record(
                    number,
                    section,
                    intended,
                    Err(Failure::client(
                        "too many in flight",
                        "this arrival was not sent",
                    )),
                );
                continue;
            }
            self.in_flight.update(|count| count + 1);
            let worker = self.clone();
            spawn_local(async move {
                worker
                    .counted_call(number as usize, number, section, intended)
                    .await;
                worker.in_flight.update(|count| count - 1);
                if worker.in_flight.get() == 0 {
                    worker.quiet.notify_one();
                }
            });
        }
        while self.in_flight.get() > 0 {
            self.quiet.notified().await;
        }
    }

    /// Makes a call and records it; false if it was a connection that failed.
    async fn counted_call(
        &self,
        place: usize,
        number: u64,
        section: Option<usize>,
        begin: Instant,
    ) -> bool {
        let keep = section.is_some() && self.recorder.borrow().keeps(number);
        let limit = self.share.target.timeout();
        let outcome = tokio::time::timeout(limit, self.one_call(place, number, keep)).await;
        let outcome =
            outcome.unwrap_or_else(|_| Err(Failure::client("timeout", "no answer in time")));
        let connected = !matches!(outcome, Err(Failure::Client { .. }));
        self.record(number, section, begin, outcome);
        connected
    }

    fn record(
        &self,
        number: u64,
        section: Option<usize>,
        begin: Instant,
        outcome: Result<Option<Vec<u8>>, Failure>,
    ) {
        let end = Instant::now();
        let mut recorder = self.recorder.borrow_mut();
        if outcome.is_ok()
            && let Some(arrived) = self.window.section(end)
        {
            recorder.sections[arrived].arrival(end - self.window.section_begin(arrived));
        }
        if let Some(section) = section {
            let offset = begin.saturating_duration_since(self.window.section_begin(section));
            recorder.sections[section].call(offset, end.saturating_duration_since(begin), &outcome);
            if let Ok(Some(answer)) = outcome {
                recorder.keep(number, answer);
            }
        }
    }

    async fn one_call(
        &self,
        place: usize,
        number: u64,
        keep: bool,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let (request, message) = self.share.requests.get(number);
        if self.slots.is_empty() {
            let sender = self.share.target.connect().await?;
            return call(&sender, request, message, keep).await;
        }
        let slot = &self.slots[place % self.slots.len()];
        let sender = self.sender(slot).await?;
        let generation = slot.generation.get();
        let outcome = call(&sender, request, message, keep).await;
        if matches!(outcome, Err(Failure::Client { at: "HTTP/2", .. }))
            && slot.generation.get() == generation
        {
            // The whole connection may be gone; whoever calls next dials.
            slot.sender.replace(None);
        }
        outcome
    }

    async fn sender(&self, slot: &Slot) -> Result<SendRequest<Bytes>, Failure> {
        if let Some(sender) = slot.sender.borrow().clone() {
            return Ok(sender);
        }
        let _one_at_a_time = slot.dialling.lock().await;
        if let Some(sender) = slot.sender.borrow().clone() {
            return Ok(sender);
        }
        let sender = self.share.target.connect().await?;
        slot.sender.replace(Some(sender.clone()));
        slot.generation.update(|generation| generation + 1);
        Ok(sender)
    }
}
