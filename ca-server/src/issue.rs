//! The path of a CSR, top to bottom. Start reading here.
//!
//! Each value has one private maker, so holding it proves that its step happened: `Caller → Csr →
//! Grant → Draft → Recorded<Draft> → Signed → Issued`. From the intent on the call belongs to the
//! server: its steps run in a task that no reset, time limit or shutdown drops. Before it drafts
//! anything a call waits for its turn with the device (`admission`), if the device is busy. A call
//! that is made again leaves the path after policy, with the certificate that is recorded:
//! `Repeated`.

mod answer;
mod hold;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::{Semaphore, TryAcquireError};
use tokio::task::JoinHandle;
use tracing::Instrument;

pub use self::answer::Answer;
use self::hold::{Hold, OfCaller, Permit};

use crate::admission::{Admission, Standing};
use crate::authn::{Authenticators, Caller, Credentials};
use crate::clock::Clock;
use crate::evidence::{Evidence, RequestId};
use crate::fairness::{Arrival, Fairness, Limits, NotAdmitted};
use crate::holders::Holders;
use crate::issuer::{Attempt, Issuers, is_the_issuers};
use crate::metrics::{Metrics, Step};
use crate::places::Place;
use crate::policy::{Asked, Policy, ServingName, Wishes};
use crate::refusal::{Reason, Refusal};
use crate::repeats::{Question, Repeats, Turn};
use crate::store::ledger::{Issued, Ledger, NotOpened, Recorded, Remembered};
use crate::telemetry::LogBudget;
use crate::timestamp::Timestamp;
use crate::x509::chain::IssuerChain;
use crate::x509::csr::Csr;
use crate::x509::subject_key::SubjectKey;
use crate::x509::template::{Draft, SerialRandom};

/// Calls between authentication and their durable outcome. Bounds the signer's queue, the writer's
/// queue and the open intents alike.
pub const PERMITS: usize = 1024;

/// One CSR call, as the front hands it over.
#[derive(Debug)]
pub struct Call {
    /// Its id, in logs and ledger.
    pub request: RequestId,
    /// What it presented.
    pub credentials: Credentials,
    /// The CSR, PEM.
    pub csr: String,
    /// What it asks for.
    pub wishes: Wishes,
    /// When the caller will have been answered, come what may.
    pub deadline: Instant,
}

/// Everything that a reload can change. A call loads one at its start and reads nothing else that
/// changes.
#[derive(Debug)]
pub struct Snapshot {
    /// Who is calling.
    pub authenticators: Authenticators,
    /// What they may have.
    pub policy: Policy,
    /// Who signs.
    pub issuers: Issuers,
    /// How much one address and one identity may ask for.
    pub limits: Limits,
    /// Every root, active and retiring, PEM, in one text.
    pub bundle: Arc<str>,
}

/// The pipeline: one for the life of the daemon.
#[derive(Debug)]
pub struct Pipeline {
    permits: Arc<Semaphore>,
    snapshot: ArcSwap<Snapshot>,
    ledger: Ledger,
    clock: Clock,
    metrics: Arc<Metrics>,
    repeats: Repeats,
    fairness: Arc<Fairness>,
    holders: Arc<Holders>,
    admission: Admission,
    log_budget: LogBudget,
}

impl Pipeline {
    /// A pipeline over this ledger, with this first snapshot.
    pub fn new(snapshot: Snapshot, ledger: Ledger, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let (permits, snapshot) = (
            Arc::new(Semaphore::new(PERMITS)),
            ArcSwap::from_pointee(snapshot),
        );
        let (repeats, fairness, holders, log_budget) = (
            Repeats::default(),
            Arc::default(),
            Arc::default(),
            LogBudget::default(),
        );
        let admission = Admission::new(PERMITS, metrics.clone());
        Self {
            permits,
            snapshot,
            ledger,
            clock,
            metrics,
            repeats,
            fairness,
            holders,
            admission,
            log_budget,
        }
    }

    /// What is in force now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Puts another snapshot in force; calls under way keep theirs.
    pub fn swap(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
    }

    /// One CSR call, from credentials to a recorded certificate. Every refusal passes through here,
    /// so it is recorded here.
    pub async fn issue(&self, call: &Call) -> Result<Answer, Refusal> {
        let mut caller = None;
        let limit = tokio::time::Instant::from_std(call.deadline);
        let outcome = match tokio::time::timeout_at(limit, self.walk(call, &mut caller)).await {
            Ok(outcome) => outcome,
            // A ledger that cannot record is why, and agents try again on Unavailable.
            Err(_) => match self.ledger.answering(self.clock.now()) {
                Err(down) => Err(down),
                Ok(()) => Err(Refusal::new(
                    Reason::Deadline,
                    "the call's time limit passed",
                )),
            },
        };
        match &outcome {
            Ok(answer) => answer.log(caller.as_ref()),
            Err(refusal) => self.record(call, caller.as_ref(), refusal),
        }
        outcome
    }

    async fn walk(&self, call: &Call, proven: &mut Option<Caller>) -> Result<Answer, Refusal> {
        let (ca, now, metrics, random) = (
            self.snapshot(),
            self.clock.now(),
            &self.metrics,
            Randomness::fresh(),
        );
        let permit = self.permit()?;
        self.ledger.accepting(now)?;
        let caller = metrics
            .step(
                Step::Authenticate,
                ca.authenticators.authenticate(&call.credentials, now),
            )
            .await?;
        let caller = proven.insert(caller);
        self.fairness.call(&ca.limits, caller.identity(), now)?;
        let csr = metrics.quick_step(Step::Csr, || Csr::parse(&call.csr))?;
        let (grant, issuers) = metrics.quick_step(Step::Policy, || {
            let issuers = ca.policy.issuers(&call.wishes.signer, now)?;
            let issuer = choose(&ca, &issuers, random.jitter)?;
            Ok((
                ca.policy.grant(
                    caller.identity(),
                    &csr,
                    &call.wishes,
                    issuer,
                    now,
                    random.jitter,
                )?,
                issuers,
            ))
        })?;
        let question = Question::new(
            caller.identity(),
            &call.csr,
            call.wishes.lifetime,
            &grant,
            &issuers,
        );
        let place = match self.repeats.turn(question, now).await {
            Turn::First(place) => place,
            Turn::Again(known) => {
                return self
                    .repeat(permit, ca, known, caller.evidence().clone(), call.request)
                    .await;
            }
            Turn::Crowded => {
                return Err(Refusal::new(
                    Reason::Overloaded,
                    "too many calls wait for the answer to the same CSR",
                ));
            }
        };
        let key = self
            .fairness
            .key(&ca.limits, caller.identity(), csr.key(), now)?;
        let holder = self.holders.holder(caller.identity(), caller.evidence());
        let standing = holder.standing(caller.presented_ends(), now);
        ca.issuers.able(&issuers)?;
        let device = self
            .admission
            .enter(
                issuers[0].id(),
                || ca.issuers.pace(&issuers),
                standing,
                call.deadline,
            )
            .await?;
        // Which of them signs is said when the turn has come.
        let issuer = choose(&ca, &issuers, random.jitter)?;
        let grant = if issuer.id() == grant.issuer().id() {
            grant
        } else {
            ca.policy.under(issuer, &grant, now)?
        };
        let period = self.ledger.period(now);
        let draft = metrics.quick_step(Step::Draft, || {
            Draft::new(grant, csr.into_key(), period, now, random.serial)
        });
        let hold = Hold::of_caller(
            permit,
            device,
            OfCaller {
                place,
                key,
                holder,
                at: now,
            },
        );
        let issued = self
            .finish(
                hold,
                ca.clone(),
                draft,
                issuers,
                caller.evidence().clone(),
                call.request,
                call.deadline,
            )
            .await?;
        Ok(Answer::issued(issued, ca.bundle.clone()))
    }

    /// The daemon's own serving certificate: enters where policy grants, and takes the same path
    /// from there.
    pub async fn issue_serving(
        &self,
        names: &[ServingName],
        key: SubjectKey,
        request: RequestId,
        deadline: Instant,
    ) -> Result<Issued, Refusal> {
        let (ca, now, random) = (self.snapshot(), self.clock.now(), Randomness::fresh());
        // Callers that hold every permit must not keep it out.
        let next =
            tokio::time::timeout_at(deadline.into(), self.permits.clone().acquire_owned()).await;
        let permit = next.map_err(|_| {
            Refusal::new(
                Reason::Overloaded,
                format_args!("{PERMITS} calls are under way"),
            )
        })?;
        let permit = Permit::new(permit.map_err(|_| stopping())?, self.metrics.clone());
        let issuers = ca.policy.issuers(&Asked::Nothing, now)?;
        let grant = ca
            .policy
            .serving(names, choose(&ca, &issuers, random.jitter)?, now)?;
        let device = self
            .admission
            .enter(
                issuers[0].id(),
                || ca.issuers.pace(&issuers),
                Standing::Daemon,
                deadline,
            )
            .await?;
        let draft = Draft::new(grant, key, self.ledger.period(now), now, random.serial);
        self.finish(
            Hold::of_daemon(permit, device),
            ca,
            draft,
            issuers,
            Evidence::daemon(),
            request,
            deadline,
        )
        .await
    }

    /// Hands the call to the server: intent, signature and outcome run to their end whatever
    /// becomes of the caller. An issuer that fails leaves the call to the next of `issuers`, and a
    /// token that signs wrongly to another of the same issuer, each with an intent and a serial of
    /// its own.
    #[allow(
        clippy::too_many_arguments,
        reason = "what the task takes along, each of it once"
    )]
    async fn finish(
        &self,
        mut hold: Hold,
        ca: Arc<Snapshot>,
        mut draft: Draft,
        mut issuers: Vec<Arc<IssuerChain>>,
        evidence: Evidence,
        request: RequestId,
        deadline: Instant,
    ) -> Result<Issued, Refusal> {
        let (ledger, metrics, clock) = (
            self.ledger.clone(),
            self.metrics.clone(),
            self.clock.clone(),
        );
        let task = async move {
            let (mut first, mut wrong) = (true, 0);
            let issued = loop {
                let tokens = ca.issuers.tokens(draft.issuer_id());
                let spare = (issuers.len() > 1 || tokens > 1).then(|| draft.clone());
                let recorded = metrics
                    .step(Step::Open, open(&ledger, draft, &evidence, request, &clock))
                    .await?;
                if std::mem::take(&mut first) {
                    hold.recorded();
                }
                let Attempt {
                    outcome,
                    another_token,
                } = metrics
                    .step(Step::Sign, ca.issuers.sign(recorded, deadline))
                    .await;
                wrong += usize::from(another_token);
                if let Some(spare) = &spare
                    && !(another_token && wrong < tokens)
                {
                    issuers.retain(|issuer| issuer.id() != spare.issuer_id());
                }
                let fails = outcome
                    .as_ref()
                    .is_err_and(|unsigned| is_the_issuers(unsigned.refusal()));
                let spare = spare.filter(|_| fails && !issuers.is_empty());
                if spare.is_none() {
                    hold.signed();
                }
                draft = match metrics.step(Step::Close, ledger.close(outcome)).await {
                    Ok(issued) => break issued,
                    // Asked after the outcome is recorded: that may have taken all the time that
                    // was left.
                    Err(refusal) => match spare
                        .filter(|_| Instant::now() < deadline && ca.issuers.able(&issuers).is_ok())
                    {
                        None => return Err(refusal),
                        Some(spare) => under_another(&ca, spare, &issuers, &ledger, clock.now())
                            .map_err(|_| refusal)?,
                    },
                };
            };
            metrics.issued(issued.draft().issuer_id(), issued.draft().purpose());
            // What is held comes back when the outcome is durable, not when the caller has lost
            // patience.
            hold.end(&issued);
            Ok(issued)
        };
        of(tokio::spawn(task.in_current_span())).await
    }

    /// The same for a certificate that is there: its row, and nothing to sign.
    async fn repeat(
        &self,
        permit: Permit,
        ca: Arc<Snapshot>,
        known: Arc<Remembered>,
        evidence: Evidence,
        request: RequestId,
    ) -> Result<Answer, Refusal> {
        let (ledger, metrics) = (self.ledger.clone(), self.metrics.clone());
        let task = async move {
            let repeated = metrics
                .step(Step::Repeat, ledger.repeat(known, &evidence, request))
                .await?;
            metrics.repeated(repeated.issuer().id());
            drop(permit);
            Ok(Answer::repeated(repeated, ca.bundle.clone()))
        };
        of(tokio::spawn(task.in_current_span())).await
    }

    fn permit(&self) -> Result<Permit, Refusal> {
        match self.permits.clone().try_acquire_owned() {
            Ok(permit) => Ok(Permit::new(permit, self.metrics.clone())),
            Err(TryAcquireError::Closed) => Err(stopping()),
            Err(TryAcquireError::NoPermits) => Err(Refusal::new(
                Reason::Overloaded,
                format_args!("{PERMITS} calls are under way"),
            )),
        }
    }

    fn record(&self, call: &Call, caller: Option<&Caller>, refusal: &Refusal) {
        self.metrics.refused(refusal);
        let identity = caller.map(Caller::identity);
        if self.log_budget.take(self.clock.now()) {
            tracing::warn!(
                reason = refusal.reason().as_str(),
                code = refusal.code().as_str(),
                detail = refusal.detail(),
                identity = identity.map(tracing::field::display),
                peer = call.credentials.peer.map(tracing::field::display),
                "refused"
            );
        }
        match caller {
            Some(caller) => self
                .ledger
                .refused(refusal, call.request, identity, caller.evidence()),
            None => self.ledger.refused_before_authentication(
                refusal.reason(),
                call.credentials.peer.map(|peer| peer.ip()),
            ),
        }
    }

    /// One more connection or call of a peer, by the limits in force; that it may not is recorded
    /// here.
    pub fn admits(&self, arrival: Arrival, peer: IpAddr) -> Result<Place, NotAdmitted> {
        let admitted = self.fairness.admits(
            &self.snapshot.load().limits,
            arrival,
            peer,
            self.clock.now(),
        );
        match (&admitted, arrival) {
            (Ok(_), _) => {}
            // There was no call: the listener counts it.
            (Err(NotAdmitted::Full), Arrival::Connection) => {}
            (Err(NotAdmitted::Full), Arrival::Call) => {
                self.refused_outside(Reason::Overloaded, Some(peer))
            }
            (Err(NotAdmitted::Share | NotAdmitted::Rate), _) => {
                self.refused_outside(Reason::PeerLimit, Some(peer))
            }
        }
        admitted
    }

    /// A caller was refused before there was a call: for its certificate, by its message, by a body
    /// that never ended.
    pub fn refused_outside(&self, reason: Reason, peer: Option<IpAddr>) {
        self.metrics
            .refused(&Refusal::new(reason, "before there was a call"));
        self.ledger.refused_before_authentication(reason, peer);
    }

    /// Waits until every call that belongs to the server has its outcome recorded. Those that come
    /// meanwhile are refused.
    pub async fn drain(&self) {
        let all = u32::try_from(PERMITS).expect("a constant below four billion");
        if let Ok(permits) = self.permits.acquire_many(all).await {
            permits.forget();
        }
    }

    /// Lets no other call begin.
    pub fn close(&self) {
        self.permits.close();
    }
}

fn stopping() -> Refusal {
    Refusal::new(Reason::Stopping, "the daemon is shutting down")
}

/// The end of a task that runs to its end whatever becomes of the caller.
async fn of<T>(task: JoinHandle<Result<T, Refusal>>) -> Result<T, Refusal> {
    task.await.unwrap_or_else(|error| {
        Err(Refusal::new(
            Reason::Internal,
            format_args!("the issuing task ended early: {error}"),
        ))
    })
}

/// The issuer that signs, of those that may.
fn choose<'a>(
    ca: &Snapshot,
    issuers: &'a [Arc<IssuerChain>],
    chance: u64,
) -> Result<&'a Arc<IssuerChain>, Refusal> {
    ca.issuers
        .choose(issuers, chance)
        .ok_or_else(|| Refusal::new(Reason::Internal, "no issuer may sign"))
}

/// The same certificate by another of these issuers.
fn under_another(
    ca: &Snapshot,
    draft: Draft,
    issuers: &[Arc<IssuerChain>],
    ledger: &Ledger,
    now: Timestamp,
) -> Result<Draft, Refusal> {
    let random = Randomness::fresh();
    let grant = ca
        .policy
        .under(choose(ca, issuers, random.jitter)?, draft.grant(), now)?;
    Ok(draft.under(grant, ledger.period(now), now, random.serial))
}

/// Makes the intent durable; a draft whose month the ledger has left is drafted again with a new
/// serial.
async fn open(
    ledger: &Ledger,
    mut draft: Draft,
    evidence: &Evidence,
    request: RequestId,
    clock: &Clock,
) -> Result<Recorded<Draft>, Refusal> {
    loop {
        match ledger.open(draft, evidence, request).await {
            Ok(recorded) => return Ok(recorded),
            Err(NotOpened::Refused(refusal)) => return Err(refusal),
            Err(NotOpened::PeriodMoved(old, period)) => {
                draft = old.again(period, clock.now(), Randomness::fresh().serial)
            }
        }
    }
}

/// What one call draws.
struct Randomness {
    serial: SerialRandom,
    jitter: u64,
}

impl Randomness {
    fn fresh() -> Self {
        let mut bytes = [0; 19];
        getrandom::fill(&mut bytes)
            .expect("the system's random source never fails once it is seeded");
        let (serial, jitter) = bytes.split_at(11);
        Self {
            serial: SerialRandom(serial.try_into().expect("split at 11")),
            jitter: u64::from_le_bytes(jitter.try_into().expect("8 are left")),
        }
    }
}

/// A fresh id for a call.
pub fn fresh_request_id(at: Timestamp) -> RequestId {
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("the system's random source never fails once it is seeded");
    // The milliseconds in front let an operator sort ids by time (as UUID version 7 does).
    let milliseconds = (at.micros() / 1000).to_be_bytes();
    id[..6].copy_from_slice(&milliseconds[2..]);
    RequestId(id)
}
