//! The daemon's side: one task owns one signer process, from its first start on. It passes jobs on,
//! hears the answers, asks how the process is, kills it when it hangs and replaces it when it ends.
//! Jobs that an ended process had are given to the next one, within their deadlines.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::link::{self, Link, LoginRecord, Replies};
use super::options::{ProcessOptions, Way};
use super::order::{Order, RemoteJob};
use super::remote::RemoteKey;
use super::wire::{KeyHealth, KeySetup, Reply, Request, Setup};
use crate::pace::PaceMeter;
use crate::pkcs11::MayTry;
use crate::pool::job::{Answer, Timing};
use crate::{Health, HealthState, SignError, SignFailure, Signer};

/// How often the process is asked how it is.
const TICK: Duration = Duration::from_millis(250);

/// A process that does not say how it is for so long is taken to hang.
const SILENT: Duration = Duration::from_secs(2);

/// A process whose keys are all lost for so long is replaced: a library that is loaded anew finds a
/// token that came back, and what signs in one that only opens sessions.
const LOST: Duration = Duration::from_secs(3);

/// A process that ends so soon is not replaced without a pause, whatever it has signed.
const BRIEF: Duration = Duration::from_millis(250);

/// Reopened sessions that one report may tell of.
const MANY: u64 = 1000;

/// The first pause between two attempts to replace a process; doubles up to `longest_pause`.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// How long jobs wait for a service that has gone, each at most until its deadline: whoever runs it
/// starts it again. For a process of our own they wait for one attempt.
const SERVICE_RETURNS_WITHIN: Duration = Duration::from_secs(10);

/// The longest pause meanwhile: looking for a socket costs nothing.
const SERVICE_PAUSE: Duration = Duration::from_millis(200);

/// To how many processes a job is given: what is in it may be what ends them.
const TRIES: u32 = 5;
/// The same where they hung.
const TRIES_HUNG: u32 = 2;

/// Processes that die inside C_Login, one after the other, before nobody tries the PIN again
/// without an order: the first may have been an accident. Once one has served, one that is killed
/// because its device does not answer does not count, or an outage of a device would wait for an
/// operator; before, nobody has seen the PIN accepted, and one is enough.
const DEATHS_INSIDE_LOGIN: u32 = 2;

/// How long a process may take to end by itself: it gives its threads two seconds.
/// `RemoteKey::stop` waits a little longer.
const STOPPED_WITHIN: Duration = Duration::from_millis(2500);

/// How long what an ended process has still said is waited for; it is there already.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// What is said of a process until its first attempt is over.
const BEGINS: &str = "its process is being started";

/// Requests of one write.
const BATCH: usize = 128;

/// A process that is being started, or looked for.
#[derive(Debug)]
pub struct Begun {
    /// A signer for each key, in order. They may be asked at once, and sign when the process does.
    pub signers: Vec<Signer>,
    /// What became of each key in the first attempt: why it is not open. From then on the process
    /// is looked after, whatever this says. Dropped only where everybody has dropped the signers.
    pub first: oneshot::Receiver<Vec<Option<SignError>>>,
}

/// Starts the process, or looks for it, and goes on until it is there. The start was an operator's
/// act of `ordered_at`, the same for all that are started with it.
pub fn begin(mut options: ProcessOptions, ordered_at: Instant) -> Begun {
    let (orders, inbox) = mpsc::unbounded_channel();
    let health = options
        .keys
        .iter()
        .map(|key| not_open(key.sessions, HealthState::Lost, BEGINS))
        .collect();
    let health = Arc::new(Mutex::new(health));
    let keys = options.keys.iter_mut().enumerate().map(|(number, key)| {
        let (number, meter) = (
            u16::try_from(number).expect("a config has fewer issuers"),
            Arc::new(PaceMeter::default()),
        );
        key.observer = meter.before(key.observer.clone());
        Signer::remote(
            RemoteKey::new(key.clone(), number, orders.clone(), health.clone()),
            meter,
        )
    });
    let (signers, (tell, first)) = (keys.collect(), oneshot::channel());
    let supervisor = Supervisor {
        reopened: vec![None; options.keys.len()],
        options,
        inbox,
        health,
        sent: HashMap::new(),
        waiting: VecDeque::new(),
        next_id: 0,
        asked: None,
        lost_since: None,
        logins: LoginRecord::default(),
        orders: 0,
        died_logging_in: 0,
        ordered_at: Some(ordered_at),
        pause: Duration::ZERO,
        came_through: false,
        first: Some(tell),
    };
    tokio::spawn(supervisor.run());
    Begun { signers, first }
}

/// What a process of ours is begun with; a service has its own.
fn setup(options: &ProcessOptions, may_try: MayTry) -> Option<Setup> {
    let Way::Spawn { .. } = options.way else {
        return None;
    };
    let keys = options.keys.iter().map(|key| KeySetup {
        uri: key.uri.to_string(),
        expected: key.expected.spki_der().to_vec(),
        sessions: u16::try_from(key.sessions).unwrap_or(u16::MAX),
        device_limit: options.device_limit,
        open_limit: options.opened_within,
    });
    Some(Setup {
        keys: keys.collect(),
        rules: options.rules.clone(),
        may_try,
    })
}

struct Supervisor {
    options: ProcessOptions,
    inbox: mpsc::UnboundedReceiver<Order>,
    health: Arc<Mutex<Vec<Health>>>,
    /// What the process has been asked for and has not answered.
    sent: HashMap<u64, RemoteJob>,
    /// What waits for a process.
    waiting: VecDeque<RemoteJob>,
    next_id: u64,
    /// Since when an answer to `Ask` is owed.
    asked: Option<Instant>,
    /// Since when no key has a session.
    lost_since: Option<Instant>,
    /// What the process has said of its C_Logins. A PIN that was refused no other process tries
    /// until an operator says so.
    logins: LoginRecord,
    /// Orders to log in since the process was started: what began after the last of them decides.
    orders: u64,
    /// How many processes have died there since one came through.
    died_logging_in: u32,
    ordered_at: Option<Instant>,
    /// Before the next attempt.
    pause: Duration,
    /// Of each key, as last heard of this process.
    reopened: Vec<Option<u64>>,
    /// Until the first attempt is over: who waits for its end.
    first: Option<oneshot::Sender<Vec<Option<SignError>>>>,
    /// Whether a process of ours has opened keys.
    came_through: bool,
}

/// Why a process serves no longer.
enum End {
    /// It has ended, or speaks nonsense.
    Died(String),
    /// It does nothing, or one of its device calls does not return.
    Hung(String),
    /// None of its keys has a session that signs.
    Lost,
    /// Somebody asked for it, before these other orders.
    Stop(std::sync::mpsc::Sender<bool>, Vec<Order>),
    /// Nobody has a key of it any more.
    Dropped,
}

impl Supervisor {
    async fn run(mut self) {
        let Some((mut link, mut replies)) = self.reopen().await else {
            return;
        };
        loop {
            let begun = Instant::now();
            let (end, signed) = self.serve(&mut link, &mut replies).await;
            let (died, lost) = (matches!(end, End::Died(_)), matches!(end, End::Lost));
            let tries = match end {
                End::Stop(done, orders) => {
                    self.leave(Some((link, done)), orders).await;
                    return;
                }
                End::Dropped => {
                    link.stop(STOPPED_WITHIN).await;
                    return;
                }
                End::Died(why) if self.options.way.is_service() => {
                    tracing::error!(
                        why,
                        "the connection to the signer has ended; it is opened again"
                    );
                    TRIES
                }
                End::Hung(why) if self.options.way.is_service() => {
                    tracing::error!(
                        why,
                        "the connection to the signer is closed and opened again"
                    );
                    TRIES_HUNG
                }
                End::Lost => {
                    tracing::error!(
                        pid = link.pid(),
                        why = "its device is lost; the library is loaded anew",
                        "the signer process is ended and another started"
                    );
                    TRIES
                }
                End::Died(why) => {
                    let how = link.how_it_ended().await;
                    tracing::error!(
                        pid = link.pid(),
                        why = format!("{why}{how}"),
                        "the signer process has ended; another is started"
                    );
                    TRIES
                }
                End::Hung(why) => {
                    tracing::error!(
                        pid = link.pid(),
                        why,
                        "the signer process is killed and another started"
                    );
                    TRIES_HUNG
                }
            };
            if lost {
                // It answers: what is inside its library may finish, for a login that is cut off
                // can leave a token half written.
                link.stop(STOPPED_WITHIN).await;
            } else {
                link.kill().await;
            }
            // What it has said before its end: a signature that is made need not be made again, and
            // what became of the PIN. A failure of its last moments is not the job's: the next
            // process has it.
            let last_words = async {
                while let Ok(Some(reply)) = replies.next().await {
                    if let Reply::Signed { .. } = reply {
                        self.heard(reply);
                    }
                }
            };
            let _ = timeout(LAST_WORDS, last_words).await;
            self.take_back(tries);
            if self.logins.is_under_way() && died {
                self.died_logging_in += 1;
            }
            // One that worked is replaced at once; one after the other that does not, with pauses.
            self.pause = match begun.elapsed() {
                _ if lost && !signed => self.longer(),
                lived if lived > LOST || (signed && lived > BRIEF) => Duration::ZERO,
                _ if signed => FIRST_PAUSE,
                _ => self.longer(),
            };
            match self.reopen().await {
                Some(opened) => (link, replies) = opened,
                None => return,
            }
        }
    }

    /// Passes jobs on and answers back until the process ends. Whether it signed anything.
    async fn serve(&mut self, link: &mut Link, replies: &mut Replies) -> (End, bool) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        (self.asked, self.lost_since) = (None, None);
        let (mut orders, mut signed) = (Vec::with_capacity(BATCH), false);
        let left = std::mem::take(&mut self.waiting);
        let mut requests: Vec<Request> = left
            .into_iter()
            .filter_map(|job| self.request(job))
            .collect();
        // Those that came while it opened its keys.
        requests.extend((self.orders > 0).then_some(Request::LogIn { order: self.orders }));
        loop {
            if !requests.is_empty() {
                match timeout(SILENT, link.send(&requests)).await {
                    Ok(Ok(())) => requests.clear(),
                    Ok(Err(error)) => return (End::Died(error.to_string()), signed),
                    Err(_) => return (End::Hung("it reads nothing".to_owned()), signed),
                }
            }
            tokio::select! {
                // The clock first: it must be heard also while answers never cease.
                biased;
                _ = tick.tick() => {
                    match self.unfit() {
                        Some(end) => return (end, signed),
                        None if self.asked.is_none() => {
                            self.asked = Some(Instant::now());
                            requests.push(Request::Ask);
                        }
                        None => {}
                    }
                }
                reply = replies.next() => {
                    let mut next = reply.map_err(|error| error.to_string());
                    loop {
                        match next {
                            Ok(Some(reply)) => signed |= self.heard(reply),
                            Ok(None) => return (End::Died("it closed its socket".to_owned()), signed),
                            Err(error) => return (End::Died(error), signed),
                        }
                        next = match replies.buffered() {
                            Ok(None) => break,
                            more => more.map_err(|error| error.to_string()),
                        };
                    }
                }
                count = self.inbox.recv_many(&mut orders, BATCH) => {
                    if count == 0 {
                        return (End::Dropped, signed);
                    }
                    let mut orders = orders.drain(..);
                    while let Some(order) = orders.next() {
                        match order {
                            Order::Sign(job) => requests.extend(self.request(job)),
                            Order::LogIn(at) => {
                                if self.is_new(at) {
                                    self.orders += 1;
                                    requests.push(Request::LogIn { order: self.orders });
                                }
                            }
                            Order::Distrust(key) => requests.push(Request::Distrust { key }),
                            Order::Stop(done) => return (End::Stop(done, orders.collect()), signed),
                        }
                    }
                }
            }
        }
    }

    /// The request for a job; none if its caller has given up. From here on the device may sign.
    fn request(&mut self, mut job: RemoteJob) -> Option<Request> {
        let time_left = job.job.deadline.saturating_duration_since(Instant::now());
        if !job.progress.enter_device() {
            return None;
        }
        let id = self.next_id;
        self.next_id += 1;
        job.sent += 1;
        let request = Request::Sign {
            id,
            key: job.key,
            purpose: job.job.purpose,
            time_left,
            message: job.job.message.clone(),
        };
        self.sent.insert(id, job);
        Some(request)
    }

    /// Whether it was a signature.
    fn heard(&mut self, reply: Reply) -> bool {
        match reply {
            Reply::Signed {
                id,
                timing,
                signature,
            } => self.answer(id, timing, Ok(signature)),
            Reply::NotSigned {
                id,
                timing,
                failure,
            } => self.answer(id, timing, Err(failure)),
            Reply::Health(keys) => {
                self.asked = None;
                self.report(keys);
                false
            }
            Reply::Ready { .. } | Reply::NotReady(_) | Reply::Login { .. } => false,
        }
    }

    fn answer(&mut self, id: u64, timing: Timing, mut answer: Answer) -> bool {
        let Some(job) = self.sent.remove(&id) else {
            return false;
        };
        let observer = &self.options.keys[usize::from(job.key)].observer;
        observer.waited(timing.waited);
        if timing.in_device > Duration::ZERO {
            observer.signed(job.job.purpose, timing.in_device, answer.is_ok());
        }
        let signed = answer.is_ok();
        if let Err(failure) = &mut answer {
            // What an earlier process did with the same bytes nobody knows.
            failure.reached_device |= job.sent > 1;
        }
        let _ = job.answer.send(answer);
        signed
    }

    fn report(&mut self, keys: Vec<KeyHealth>) {
        let now: Vec<Health> = keys.iter().map(heard_health).collect();
        if now.len() != self.options.keys.len() {
            return;
        }
        for ((key, wanted), reopened) in keys.iter().zip(&self.options.keys).zip(&mut self.reopened)
        {
            wanted.observer.queue_depth(key.queued as usize);
            wanted.observer.stuck_threads(key.stuck.into());
            // A service has reopened sessions before this connection, which is nobody's news; and
            // what a peer says is not counted for ever.
            let news = reopened.map_or(0, |before| key.reopened.saturating_sub(before).min(MANY));
            (0..news).for_each(|_| wanted.observer.reopened());
            *reopened = Some(key.reopened);
        }
        let lost = now.iter().all(|health| health.state == HealthState::Lost);
        self.lost_since = if lost {
            self.lost_since.or_else(|| Some(Instant::now()))
        } else {
            None
        };
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Why the process must be replaced, as far as is known now.
    fn unfit(&self) -> Option<End> {
        if self.asked.is_some_and(|asked| asked.elapsed() > SILENT) {
            return Some(End::Hung(format!(
                "it has not said how it is for {} s",
                SILENT.as_secs()
            )));
        }
        if self.options.way.is_service() {
            return None;
        }
        if self.lost_since.is_some_and(|since| since.elapsed() > LOST) {
            return Some(End::Lost);
        }
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let stuck: usize = health.iter().map(|health| health.stuck).sum();
        let (signing, opening) = (
            self.options.device_limit.as_secs_f32(),
            self.options.opened_within.as_secs_f32(),
        );
        let why = || {
            format!(
                "{stuck} device calls have not returned within {signing} s for a signature, {opening} s for an opening"
            )
        };
        (stuck > 0).then(|| End::Hung(why()))
    }

    /// Jobs that an ended process had: those that are worth another try wait for the next.
    fn take_back(&mut self, tries: u32) {
        let mut jobs: Vec<(u64, RemoteJob)> = self.sent.drain().collect();
        jobs.sort_unstable_by_key(|(id, _)| *id);
        for (_, job) in jobs {
            if job.answer.is_closed() {
                continue;
            }
            if job.sent >= tries || !job.only || job.job.deadline <= Instant::now() {
                let error =
                    SignError::Lost("the signer process ended with the job in its hands".into());
                let failure = SignFailure {
                    error,
                    deadline_passed: job.job.deadline <= Instant::now(),
                    reached_device: true,
                };
                let _ = job.answer.send(Err(failure));
            } else {
                self.waiting.push_back(job);
            }
        }
    }

    /// What it means that a process could not begin: that it waits for an operator, where one after
    /// the other died inside C_Login.
    fn could_not_begin(&mut self, error: SignError) -> SignError {
        if !self.logins.is_under_way() || matches!(error, SignError::Locked(_)) {
            return error;
        }
        self.died_logging_in += 1;
        // Before the first came through nobody has seen this PIN accepted, and whoever starts the
        // daemon again would try it again.
        let enough = if self.came_through {
            DEATHS_INSIDE_LOGIN
        } else {
            1
        };
        if self.died_logging_in < enough {
            error
        } else {
            died_inside_login(self.died_logging_in, &error)
        }
    }

    /// Whether the next process may try a PIN where something speaks against it: once one has come
    /// through, this daemon knows of each try that did not come back. Until then only the first may
    /// do more than be careful, where it was ordered.
    fn may_try(&self) -> MayTry {
        if self.came_through {
            MayTry::Again
        } else {
            self.options.may_try
        }
    }

    fn longer(&self) -> Duration {
        (2 * self.pause).clamp(FIRST_PAUSE, self.options.longest_pause)
    }

    fn is_new(&mut self, order: Instant) -> bool {
        let new = self.ordered_at.is_none_or(|before| before < order);
        if new {
            self.ordered_at = Some(order);
        }
        new
    }

    /// Starts processes, the first or others, until one serves. `None` when nobody wants one any
    /// more. Jobs wait for the first attempt to replace one, or a service's time to return; when
    /// that has failed, and at the start, they are answered at once until one succeeds.
    async fn reopen(&mut self) -> Option<(Link, Replies)> {
        let begun = Instant::now();
        // A service knows for itself that it is locked, and connecting to it tries no PIN.
        let ours = !self.options.way.is_service();
        let mut trouble = self
            .logins
            .refused(self.orders)
            .filter(|_| ours)
            .map(SignError::Locked);
        let mut locked = trouble.is_some();
        match &trouble {
            Some(refused) => self.tell(HealthState::Locked, &refused.to_string()),
            // Calls do not wait for a device that may be long away: another may have them.
            None if self.first.is_some() => trouble = Some(SignError::Lost(BEGINS.to_owned())),
            None => self.tell(HealthState::Restarting, "its process is being replaced"),
        }
        let mut may_try = self.may_try();
        loop {
            if let Some(trouble) = &trouble {
                self.give_up_waiting(trouble);
            }
            // A token that refused our PIN must not be asked again before an operator says so.
            let pause = if locked { Duration::MAX } else { self.pause };
            // An order ends the pause, too.
            if self
                .until(
                    tokio::time::sleep(pause.min(Duration::from_secs(1 << 30))),
                    trouble.as_ref(),
                )
                .await?
                .is_none()
            {
                may_try = MayTry::Ordered;
            }
            let setup = setup(&self.options, may_try);
            let (way, keys, limit) = (
                self.options.way.clone(),
                self.options.keys.clone(),
                self.options.opened_within,
            );
            self.options.may_try = MayTry::Carefully;
            may_try = self.may_try();
            self.logins.forget();
            self.orders = 0;
            let logins = self.logins.clone();
            let mut attempt =
                Box::pin(
                    async move { timeout(limit, link::open(&way, setup, &keys, logins)).await },
                );
            let opened = loop {
                match self.until(&mut attempt, trouble.as_ref()).await? {
                    Some(opened) => break opened,
                    // An operator's order does not hurry what is under way.
                    None => {
                        self.orders += 1;
                        may_try = MayTry::Ordered;
                    }
                }
            };
            let error = match opened {
                Ok(Ok((link, replies, troubles))) => {
                    (self.pause, self.died_logging_in, self.came_through) =
                        (Duration::ZERO, 0, true);
                    self.reopened.fill(None);
                    let keys = self.options.keys.iter().zip(&troubles);
                    let now = keys.map(|(key, trouble)| {
                        trouble.as_ref().map_or_else(
                            || opened_health(key.sessions),
                            |error| closed_health(key.sessions, error),
                        )
                    });
                    let now = now.collect();
                    *self.health.lock().unwrap_or_else(PoisonError::into_inner) = now;
                    match self.first.take() {
                        // Nobody may wait any more.
                        Some(first) => drop(first.send(troubles)),
                        None => {
                            tracing::info!(pid = link.pid(), "a signer serves again");
                            self.options
                                .keys
                                .iter()
                                .for_each(|key| key.observer.reopened());
                        }
                    }
                    return Some((link, replies));
                }
                Ok(Err(SignError::Lost(_))) if self.first.is_none() && self.may_return(begun) => {
                    self.pause = self.longer().min(SERVICE_PAUSE);
                    continue;
                }
                Ok(Err(error)) => self.could_not_begin(error),
                // Until one came through, nobody has seen this PIN accepted: who hangs inside
                // C_Login counts as one that died there.
                Err(_) if !self.came_through => self.could_not_begin(not_opened_within(limit)),
                Err(_) => not_opened_within(limit),
            };
            // It may have ended before it could say so again.
            let error = self
                .logins
                .refused(self.orders)
                .filter(|_| ours)
                .map_or(error, SignError::Locked);
            tracing::warn!(%error, "no signer process serves");
            let refused = matches!(error, SignError::Locked(_));
            // An order that came meanwhile is worth another attempt.
            locked = refused && ours && self.orders == 0;
            self.tell(
                if refused {
                    HealthState::Locked
                } else {
                    HealthState::Lost
                },
                &error.to_string(),
            );
            if let Some(first) = self.first.take() {
                // Nobody may wait any more.
                let _ = first.send(vec![Some(error.clone()); self.options.keys.len()]);
            }
            trouble = Some(error);
            self.pause = if self.orders > 0 {
                Duration::ZERO
            } else {
                self.longer()
            };
        }
    }

    /// Whether a service that went at `since` may only be on its way back.
    fn may_return(&self, since: Instant) -> bool {
        self.options.way.is_service() && since.elapsed() < SERVICE_RETURNS_WITHIN
    }

    /// Hears orders until `done`, and gives what that gave, nothing when an operator's order came
    /// first. `None` when the process is wanted no more.
    async fn until<T>(
        &mut self,
        done: impl Future<Output = T>,
        trouble: Option<&SignError>,
    ) -> Option<Option<T>> {
        let mut done = std::pin::pin!(done);
        loop {
            tokio::select! {
                done = &mut done => return Some(Some(done)),
                order = self.inbox.recv() => match order? {
                    Order::Sign(job) => match trouble {
                        None if job.only => self.waiting.push_back(job),
                        None => refuse(job, &SignError::Lost("its process is being replaced".into())),
                        Some(error) => refuse(job, error),
                    },
                    Order::LogIn(at) => {
                        if self.is_new(at) {
                            return Some(None);
                        }
                    }
                    // A new process has new sessions.
                    Order::Distrust(_) => {}
                    Order::Stop(ended) => {
                        self.leave(None, Vec::new()).await;
                        let _ = ended.send(true);
                        return None;
                    }
                },
            }
        }
    }

    fn give_up_waiting(&mut self, error: &SignError) {
        for job in std::mem::take(&mut self.waiting) {
            refuse(job, error);
        }
    }

    fn tell(&self, state: HealthState, detail: &str) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        health
            .iter_mut()
            .for_each(|health| *health = not_open(health.threads, state, detail));
    }

    /// Ends in order: jobs under way are answered as perhaps signed, new ones are refused.
    async fn leave(
        &mut self,
        link: Option<(Link, std::sync::mpsc::Sender<bool>)>,
        mut orders: Vec<Order>,
    ) {
        self.inbox.close();
        self.tell(HealthState::Stopped, "stopped");
        self.take_back(0);
        self.give_up_waiting(&SignError::Stopped);
        while let Ok(order) = self.inbox.try_recv() {
            orders.push(order);
        }
        let mut others = Vec::new();
        for order in orders {
            match order {
                Order::Sign(job) => refuse(job, &SignError::Stopped),
                Order::Stop(done) => others.push(done),
                Order::LogIn(_) | Order::Distrust(_) => {}
            }
        }
        let (in_time, first) = match link {
            Some((link, done)) => (link.stop(STOPPED_WITHIN).await, Some(done)),
            None => (true, None),
        };
        for done in first.into_iter().chain(others) {
            let _ = done.send(in_time);
        }
    }
}

/// A process that has not come so far.
fn not_opened_within(limit: Duration) -> SignError {
    SignError::Lost(format!(
        "the device was not open within {} s; where it is only slow, raise open_timeout",
        limit.as_secs_f32()
    ))
}

/// So many processes, one after the other, died inside C_Login, the last of them like this.
fn died_inside_login(deaths: u32, error: &SignError) -> SignError {
    SignError::Locked(format!(
        "the PIN is not tried again until the next reload: signer processes that died inside C_Login: {deaths}, the last: {}",
        error.cause()
    ))
}

fn refuse(job: RemoteJob, error: &SignError) {
    let reached_device = job.sent > 0;
    let _ = job.answer.send(Err(SignFailure {
        error: error.clone(),
        deadline_passed: false,
        reached_device,
    }));
}

fn opened_health(sessions: usize) -> Health {
    let detail = "its process has just begun".to_owned();
    Health {
        state: HealthState::Ready,
        threads: sessions,
        open: sessions,
        stuck: 0,
        queued: 0,
        detail,
    }
}

/// Of a key that could not be opened while others of its process were.
fn closed_health(sessions: usize, error: &SignError) -> Health {
    let state = if let SignError::Locked(_) = error {
        HealthState::Locked
    } else {
        HealthState::Lost
    };
    not_open(sessions, state, &error.to_string())
}

fn not_open(sessions: usize, state: HealthState, detail: &str) -> Health {
    Health {
        state,
        threads: sessions,
        open: 0,
        stuck: 0,
        queued: 0,
        detail: detail.to_owned(),
    }
}

fn heard_health(key: &KeyHealth) -> Health {
    Health {
        state: key.state,
        threads: key.threads.into(),
        open: key.open.into(),
        stuck: key.stuck.into(),
        queued: key.queued as usize,
        detail: key.detail.clone(),
    }
}
