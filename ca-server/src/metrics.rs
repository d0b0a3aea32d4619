//! Every metric name, and the only room that names the metrics library. Names begin `ca_server_`
//! and use base units; the `citadel_server_*` families are those that Istio's dashboards know
//! (contract §6), present from the start at 0.

use std::future::Future;
use std::time::{Duration, Instant};

use prometheus::{
    Counter, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use signers::{Condition, Purpose, SignerHealth};
use tracing::Instrument;

use crate::output;
use crate::refusal::{Reason, Refusal};
use crate::timestamp::Timestamp;

/// A step of the path of a CSR; the label of its histogram and the name of its span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the steps are those of issue.rs")]
pub enum Step {
    Authenticate,
    Csr,
    Policy,
    /// For the device, and only where a call must.
    Wait,
    Draft,
    Open,
    Sign,
    Close,
    /// Instead of those from `Wait` on, where the certificate is there already.
    Repeat,
}

impl Step {
    const ALL: [Step; 9] = [
        Step::Authenticate,
        Step::Csr,
        Step::Policy,
        Step::Wait,
        Step::Draft,
        Step::Open,
        Step::Sign,
        Step::Close,
        Step::Repeat,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Authenticate => "authenticate",
            Self::Csr => "csr",
            Self::Policy => "policy",
            Self::Wait => "wait",
            Self::Draft => "draft",
            Self::Open => "open",
            Self::Sign => "sign",
            Self::Close => "close",
            Self::Repeat => "repeat",
        }
    }

    fn span(self) -> tracing::Span {
        tracing::debug_span!("step", step = self.name())
    }
}

/// From 10 µs to 10 s.
const SECONDS: [f64; 19] = [
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The `error` labels of Istio's sign error counter.
const CITADEL_SIGN_ERRORS: [&str; 4] = ["CA_NOT_READY", "CSR_ERROR", "TTL_ERROR", "CERT_GEN_ERROR"];

/// All metrics of one daemon.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    calls: IntCounterVec,
    refusals: IntCounterVec,
    call_seconds: Histogram,
    step_seconds: HistogramVec,
    in_flight: IntGauge,
    issued: IntCounterVec,
    repeated: IntCounterVec,
    line_waiting: IntGaugeVec,
    line_window: IntGaugeVec,
    signer_rate: GaugeVec,
    signer_queue: IntGaugeVec,
    signer_wait: HistogramVec,
    signer_sign: HistogramVec,
    signer_failures: IntCounterVec,
    signer_stuck: IntGaugeVec,
    signer_reopened: IntCounterVec,
    signer_state: IntGaugeVec,
    token_state: IntGaugeVec,
    signer_info: IntGaugeVec,
    ledger_rows: Histogram,
    ledger_commit: Histogram,
    ledger_queue: IntGauge,
    ledger_dropped: IntCounter,
    ledger_up: IntGauge,
    ledger_search: Histogram,
    ledger_upkeep: Histogram,
    expiry: GaugeVec,
    connections: IntGauge,
    handshake_failures: IntCounterVec,
    monitoring_shed: IntCounter,
    ready: IntGaugeVec,
    reloads: IntCounterVec,
    log_lost: IntCounter,
    citadel: Citadel,
}

/// The families that Istio's own CA exposes; same names, same meaning.
#[derive(Debug)]
struct Citadel {
    csr: Counter,
    authentication_failure: Counter,
    csr_parsing_error: Counter,
    id_extraction_error: Counter,
    csr_sign_error: prometheus::CounterVec,
    success: Counter,
    root_expiry: Gauge,
    chain_expiry: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Every family registered, those without free labels at 0.
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        let build = gauges(
            r,
            "ca_server_build_info",
            "Always 1; the labels say what runs.",
            &["version"],
        );
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let metrics = Self {
            calls: counters(
                r,
                "ca_server_calls_total",
                "CSR calls answered, by gRPC status.",
                &["code"],
            ),
            refusals: counters(
                r,
                "ca_server_refusals_total",
                "CSR calls refused, by reason.",
                &["reason"],
            ),
            call_seconds: histogram(
                r,
                "ca_server_call_seconds",
                "Time from a call's first byte to its answer.",
                &SECONDS,
            ),
            step_seconds: histograms(
                r,
                "ca_server_step_seconds",
                "Time in each step of the path of a CSR.",
                &["step"],
            ),
            in_flight: gauge(r, "ca_server_calls_in_flight", "Calls that hold a permit."),
            issued: counters(
                r,
                "ca_server_certificates_issued_total",
                "Certificates issued and recorded.",
                &["issuer", "purpose"],
            ),
            repeated: counters(
                r,
                "ca_server_certificates_repeated_total",
                "Calls made again that got the certificate already recorded.",
                &["issuer"],
            ),
            line_waiting: gauges(
                r,
                "ca_server_admission_waiting_calls",
                "Calls that wait for their turn with the device.",
                &["issuer"],
            ),
            line_window: gauges(
                r,
                "ca_server_admission_window_calls",
                "Calls that may be under way to the device at a time.",
                &["issuer"],
            ),
            signer_rate: {
                let help =
                    "Signatures a second that the device makes when it is busy, as measured.";
                registered(
                    r,
                    GaugeVec::new(Opts::new("ca_server_signer_rate", help), &["issuer"])
                        .expect(LEGAL),
                )
            },
            signer_queue: gauges(
                r,
                "ca_server_signer_queue_jobs",
                "Jobs waiting for a session.",
                &["issuer", "token"],
            ),
            signer_wait: histograms(
                r,
                "ca_server_signer_wait_seconds",
                "Time a job waited for a session.",
                &["issuer", "token"],
            ),
            signer_sign: histograms(
                r,
                "ca_server_signer_sign_seconds",
                "Time in the device for one signature.",
                &["issuer", "token", "purpose"],
            ),
            signer_failures: counters(
                r,
                "ca_server_signer_failures_total",
                "Signatures that the device did not give.",
                &["issuer", "token"],
            ),
            signer_stuck: gauges(
                r,
                "ca_server_signer_stuck_threads",
                "Device calls past their deadline, not returned.",
                &["issuer", "token"],
            ),
            signer_reopened: counters(
                r,
                "ca_server_signer_reopened_total",
                "Sessions opened again after a loss.",
                &["issuer", "token"],
            ),
            signer_state: gauges(
                r,
                "ca_server_signer_state",
                "1 for the state that an issuer's signer is in.",
                &["issuer", "state"],
            ),
            token_state: gauges(
                r,
                "ca_server_token_state",
                "1 for the state that one of an issuer's tokens is in; tokens count from 1 in the config's order.",
                &["issuer", "token", "state"],
            ),
            signer_info: gauges(
                r,
                "ca_server_signer_info",
                "Always 1; kind is pkcs11, or file for a development key.",
                &["issuer", "kind"],
            ),
            ledger_rows: histogram(
                r,
                "ca_server_ledger_batch_rows",
                "Rows a commit carried.",
                &[1., 2., 4., 8., 16., 32., 64., 128., 256., 512.],
            ),
            ledger_commit: histogram(
                r,
                "ca_server_ledger_commit_seconds",
                "Time of one durable commit.",
                &SECONDS,
            ),
            ledger_queue: gauge(
                r,
                "ca_server_ledger_queue_rows",
                "Rows waiting for the next commit.",
            ),
            ledger_dropped: counter(
                r,
                "ca_server_ledger_dropped_total",
                "Refusal rows dropped because their queue was full.",
            ),
            ledger_up: gauge(r, "ca_server_ledger_up", "1 while the ledger records."),
            ledger_search: histogram(
                r,
                "ca_server_ledger_search_seconds",
                "Time of one search for chains of dead processes, on a connection of its own.",
                &SECONDS,
            ),
            ledger_upkeep: histogram(
                r,
                "ca_server_ledger_upkeep_seconds",
                "Time for which the writing connection compared clocks or closed a dead process's chain instead of recording calls.",
                &SECONDS,
            ),
            expiry: {
                let name = "ca_server_certificate_expiry_timestamp_seconds";
                let expiry =
                    GaugeVec::new(Opts::new(name, "NotAfter, Unix time."), &["certificate"])
                        .expect(LEGAL);
                registered(r, expiry)
            },
            connections: gauge(
                r,
                "ca_server_connections",
                "Open connections on the CSR port.",
            ),
            handshake_failures: counters(
                r,
                "ca_server_handshake_failures_total",
                "Connections that ended before a call.",
                &["reason"],
            ),
            monitoring_shed: counter(
                r,
                "ca_server_monitoring_connections_shed_total",
                "Monitoring connections that were closed unanswered because there was no place for them.",
            ),
            ready: gauges(
                r,
                "ca_server_ready",
                "1 while this check of /healthz/ready is well.",
                &["check"],
            ),
            reloads: counters(
                r,
                "ca_server_reloads_total",
                "Reloads of the config, by result.",
                &["result"],
            ),
            log_lost: counter(
                r,
                "ca_server_log_lines_lost_total",
                "Lines of the log that standard error did not take.",
            ),
            citadel: Citadel::new(r),
            registry,
        };
        Step::ALL
            .iter()
            .for_each(|step| drop(metrics.step_seconds.with_label_values(&[step.name()])));
        let reasons = ["timeout", "tls", "limit", "peer_limit", "peer_share"];
        reasons
            .iter()
            .for_each(|reason| drop(metrics.handshake_failures.with_label_values(&[reason])));
        ["ok", "refused"]
            .iter()
            .for_each(|result| drop(metrics.reloads.with_label_values(&[result])));
        metrics
    }

    /// The text exposition format.
    pub fn render(&self) -> String {
        self.log_lost
            .inc_by(output::lost_lines().saturating_sub(self.log_lost.get()));
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("our names and labels are legal");
        String::from_utf8(text).expect("the encoder writes text")
    }

    /// Runs one step of the path inside its span, and times it.
    pub async fn step<T>(&self, step: Step, work: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let result = work.instrument(step.span()).await;
        self.step_seconds
            .with_label_values(&[step.name()])
            .observe(begun.elapsed().as_secs_f64());
        result
    }

    /// The same for a step that does not wait.
    pub fn quick_step<T>(&self, step: Step, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let result = step.span().in_scope(work);
        self.step_seconds
            .with_label_values(&[step.name()])
            .observe(begun.elapsed().as_secs_f64());
        result
    }

    /// A CSR call has arrived.
    pub fn csr_arrived(&self) {
        self.citadel.csr.inc();
    }

    /// A call was answered with this gRPC status after `time`.
    pub fn answered(&self, code: &str, time: Duration) {
        self.calls.with_label_values(&[code]).inc();
        self.call_seconds.observe(time.as_secs_f64());
    }

    /// A call took its permit.
    pub fn call_began(&self) {
        self.in_flight.inc();
    }

    /// A permit came back.
    pub fn call_ended(&self) {
        self.in_flight.dec();
    }

    /// A CSR call was refused.
    pub fn refused(&self, refusal: &Refusal) {
        self.refusals
            .with_label_values(&[refusal.reason().as_str()])
            .inc();
        let sign_error = |label| {
            self.citadel
                .csr_sign_error
                .with_label_values(&[label])
                .inc()
        };
        match refusal.reason() {
            Reason::NoCredentials
            | Reason::BadCredentials
            | Reason::UnknownCluster
            | Reason::TokenCheckDown => {
                self.citadel.authentication_failure.inc();
            }
            Reason::Impersonation => self.citadel.id_extraction_error.inc(),
            Reason::MalformedCsr | Reason::MalformedRequest => self.citadel.csr_parsing_error.inc(),
            Reason::ProofOfPossession
            | Reason::WeakKey
            | Reason::SanMismatch
            | Reason::UnknownSigner => sign_error("CSR_ERROR"),
            Reason::Lifetime => sign_error("TTL_ERROR"),
            Reason::LedgerDown
            | Reason::DeviceDown
            | Reason::Stopping
            | Reason::Clock
            | Reason::DeviceRefused => sign_error("CA_NOT_READY"),
            Reason::IssuerExpired | Reason::GuardRefused | Reason::Internal | Reason::Deadline => {
                sign_error("CERT_GEN_ERROR")
            }
            Reason::Overloaded
            | Reason::DeviceBusy
            | Reason::PeerLimit
            | Reason::IdentityLimit
            | Reason::KeyLimit => {}
        }
    }

    /// A certificate was issued and recorded.
    pub fn issued(&self, issuer: &str, purpose: Purpose) {
        self.issued
            .with_label_values(&[issuer, purpose.as_str()])
            .inc();
        if purpose == Purpose::Leaf {
            self.citadel.success.inc();
        }
    }

    /// A call that was made again got its certificate again.
    pub fn repeated(&self, issuer: &str) {
        self.repeated.with_label_values(&[issuer]).inc();
    }

    /// Forgets what was said of issuers, before a reload says it anew.
    pub fn forget_issuers(&self) {
        self.expiry.reset();
        self.signer_info.reset();
        self.signer_state.reset();
        self.token_state.reset();
        self.ready.reset();
    }

    /// When an issuer's certificate and the root above it end.
    pub fn issuer_ends(&self, issuer: &str, issuing: Timestamp, root: Timestamp) {
        self.expiry
            .with_label_values(&[&format!("issuer:{issuer}")])
            .set(issuing.seconds() as f64);
        self.expiry
            .with_label_values(&[&format!("root:{issuer}")])
            .set(root.seconds() as f64);
    }

    /// What Istio's own gauges show: the default issuer's chain and root.
    pub fn default_issuer_ends(&self, chain: Timestamp, root: Timestamp) {
        self.citadel.chain_expiry.set(chain.seconds() as f64);
        self.citadel.root_expiry.set(root.seconds() as f64);
    }

    /// When the serving certificate ends.
    pub fn serving_ends(&self, at: Timestamp) {
        self.expiry
            .with_label_values(&["serving"])
            .set(at.seconds() as f64);
    }

    /// Which kind of device signs for an issuer.
    pub fn signer_kind(&self, issuer: &str, kind: &str) {
        self.signer_info.with_label_values(&[issuer, kind]).set(1);
    }

    /// How an issuer's signer is.
    pub fn signer_state(&self, issuer: &str, health: &SignerHealth) {
        for state in Condition::ALL {
            let is = |condition: Condition| i64::from(condition == state);
            self.signer_state
                .with_label_values(&[issuer, state.as_str()])
                .set(is(health.condition));
            for (number, token) in health.tokens.iter().enumerate() {
                self.token_state
                    .with_label_values(&[issuer, &of_token(number), state.as_str()])
                    .set(is(token.condition));
            }
        }
    }

    /// A connection on the CSR port was accepted.
    pub fn connection_began(&self) {
        self.connections.inc();
    }

    /// It has ended.
    pub fn connection_ended(&self) {
        self.connections.dec();
    }

    /// A monitoring connection was closed unanswered, because there was no place for it.
    pub fn monitoring_shed(&self) {
        self.monitoring_shed.inc();
    }

    /// A connection ended before a call: `timeout`, `tls`, `limit`, `peer_limit` or `peer_share`.
    pub fn handshake_failed(&self, reason: &'static str) {
        self.handshake_failures.with_label_values(&[reason]).inc();
    }

    /// What the checks of readiness say now: name, and whether it is well.
    pub fn ready<'a>(&self, checks: impl Iterator<Item = (&'a str, bool)>) {
        checks.for_each(|(check, ready)| {
            self.ready.with_label_values(&[check]).set(i64::from(ready))
        });
    }

    /// A reload succeeded or was refused.
    pub fn reloaded(&self, ok: bool) {
        self.reloads
            .with_label_values(&[if ok { "ok" } else { "refused" }])
            .inc();
    }

    /// One durable commit of the ledger.
    pub fn ledger_committed(&self, rows: usize, time: Duration) {
        self.ledger_rows.observe(rows as f64);
        self.ledger_commit.observe(time.as_secs_f64());
    }

    /// Rows waiting for the next commit.
    pub fn ledger_queue(&self, rows: usize) {
        self.ledger_queue.set(clamp(rows));
    }

    /// Refusal rows that a full queue dropped.
    pub fn ledger_dropped(&self, rows: u64) {
        self.ledger_dropped.inc_by(rows);
    }

    /// One search for chains of dead processes.
    pub fn ledger_searched(&self, time: Duration) {
        self.ledger_search.observe(time.as_secs_f64());
    }

    /// The ledger's writing connection did something else than recording calls.
    pub fn ledger_kept_up(&self, time: Duration) {
        self.ledger_upkeep.observe(time.as_secs_f64());
    }

    /// Whether the ledger records.
    pub fn ledger_up(&self, up: bool) {
        self.ledger_up.set(i64::from(up));
    }
}

/// The label of the token of this number, which counts from 0; people count from 1.
fn of_token(number: usize) -> String {
    (number + 1).to_string()
}

/// What one token's signer pool tells of itself.
#[derive(Debug)]
pub struct SignerMetrics {
    queue: IntGauge,
    wait: Histogram,
    sign: [(Purpose, Histogram); 2],
    failures: IntCounter,
    stuck: IntGauge,
    reopened: IntCounter,
}

impl SignerMetrics {
    /// The series of the `issuer`'s token of this number, looked up once.
    pub fn new(metrics: &Metrics, issuer: &str, number: usize) -> Self {
        let token = of_token(number);
        let sign = |purpose: Purpose| {
            (
                purpose,
                metrics
                    .signer_sign
                    .with_label_values(&[issuer, &token, purpose.as_str()]),
            )
        };
        Self {
            queue: metrics.signer_queue.with_label_values(&[issuer, &token]),
            wait: metrics.signer_wait.with_label_values(&[issuer, &token]),
            sign: [sign(Purpose::Leaf), sign(Purpose::Serving)],
            failures: metrics.signer_failures.with_label_values(&[issuer, &token]),
            stuck: metrics.signer_stuck.with_label_values(&[issuer, &token]),
            reopened: metrics.signer_reopened.with_label_values(&[issuer, &token]),
        }
    }
}

impl signers::Observer for SignerMetrics {
    fn queue_depth(&self, jobs: usize) {
        self.queue.set(clamp(jobs));
    }

    fn waited(&self, wait: Duration) {
        self.wait.observe(wait.as_secs_f64());
    }

    fn signed(&self, purpose: Purpose, time: Duration, ok: bool) {
        if !ok {
            self.failures.inc();
        }
        if let Some((_, histogram)) = self.sign.iter().find(|(known, _)| *known == purpose) {
            histogram.observe(time.as_secs_f64());
        }
    }

    fn stuck_threads(&self, threads: usize) {
        self.stuck.set(clamp(threads));
    }

    fn reopened(&self) {
        self.reopened.inc();
    }
}

/// What is shown of the line before one issuer's device.
#[derive(Debug)]
pub struct DeviceLine {
    waiting: IntGauge,
    window: IntGauge,
    rate: Gauge,
}

impl DeviceLine {
    /// The series of `issuer`, looked up once.
    pub fn new(metrics: &Metrics, issuer: &str) -> Self {
        Self {
            waiting: metrics.line_waiting.with_label_values(&[issuer]),
            window: metrics.line_window.with_label_values(&[issuer]),
            rate: metrics.signer_rate.with_label_values(&[issuer]),
        }
    }

    /// So many wait, so many may be under way, and the device makes so many signatures a second, if
    /// that is known.
    pub fn is(&self, waiting: usize, window: usize, rate: Option<f64>) {
        self.waiting.set(clamp(waiting));
        self.window.set(clamp(window));
        self.rate.set(rate.unwrap_or_default());
    }
}

impl Citadel {
    fn new(r: &Registry) -> Self {
        let count = |name: &str, help: &str| registered(r, Counter::new(name, help).expect(LEGAL));
        let time = |name: &str, help: &str| registered(r, Gauge::new(name, help).expect(LEGAL));
        let sign_errors = Opts::new(
            "citadel_server_csr_sign_err_count",
            "The number of errors occurred when signing the CSR.",
        );
        let csr_sign_error = registered(
            r,
            prometheus::CounterVec::new(sign_errors, &["error"]).expect(LEGAL),
        );
        CITADEL_SIGN_ERRORS
            .iter()
            .for_each(|error| drop(csr_sign_error.with_label_values(&[error])));
        Self {
            csr: count("citadel_server_csr_count", "The number of CSRs received."),
            authentication_failure: count(
                "citadel_server_authentication_failure_count",
                "The number of authentication failures.",
            ),
            csr_parsing_error: count(
                "citadel_server_csr_parsing_err_count",
                "The number of errors occurred when parsing the CSR.",
            ),
            id_extraction_error: count(
                "citadel_server_id_extraction_err_count",
                "The number of errors occurred when extracting the ID.",
            ),
            success: count(
                "citadel_server_success_cert_issuance_count",
                "The number of certificates issued.",
            ),
            root_expiry: time(
                "citadel_server_root_cert_expiry_timestamp",
                "The Unix time at which the root certificate expires.",
            ),
            chain_expiry: time(
                "citadel_server_cert_chain_expiry_timestamp",
                "The Unix time at which the issuing chain expires.",
            ),
            csr_sign_error,
        }
    }
}

const LEGAL: &str = "metric names and labels here are legal and distinct";

fn clamp(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn registered<C: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> C {
    #[cfg(test)]
    tests::note(&collector);
    registry.register(Box::new(collector.clone())).expect(LEGAL);
    collector
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    registered(registry, IntCounter::new(name, help).expect(LEGAL))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    registered(
        registry,
        IntCounterVec::new(Opts::new(name, help), labels).expect(LEGAL),
    )
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    registered(registry, IntGauge::new(name, help).expect(LEGAL))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    registered(
        registry,
        IntGaugeVec::new(Opts::new(name, help), labels).expect(LEGAL),
    )
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    registered(
        registry,
        Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
            .expect(LEGAL),
    )
}

fn histograms(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    registered(
        registry,
        HistogramVec::new(
            HistogramOpts::new(name, help).buckets(SECONDS.to_vec()),
            labels,
        )
        .expect(LEGAL),
    )
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use prometheus::core::Collector;

    use super::*;

    thread_local! {
        /// A line of the reference page for each family: the library gathers none without series.
        static FAMILIES: RefCell<BTreeMap<String, String>> = RefCell::default();
    }

    /// Remembers what is registered by this thread.
    pub(super) fn note(collector: &impl Collector) {
        let described = collector.desc();
        for (family, described) in collector.collect().iter().zip(described) {
            let kind = format!("{:?}", family.get_field_type()).to_lowercase();
            let labels: Vec<String> = described
                .variable_labels
                .iter()
                .map(|label| format!("`{label}`"))
                .collect();
            let name = described.fq_name.clone();
            let line = format!(
                "| `{name}` | {kind} | {} | {} |",
                labels.join(", "),
                described.help
            );
            FAMILIES.with_borrow_mut(|families| families.insert(name, line));
        }
    }

    #[test]
    fn the_reference_page_lists_every_family_with_its_help_text() {
        drop(Metrics::new());
        let lines = FAMILIES.take();
        assert!(lines.len() > 30, "{lines:#?}");
        let table: Vec<&str> = lines.values().map(String::as_str).collect();
        let page = include_str!("../../docs/reference/metrics.md");
        let listed: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("| `c") && line.matches(" | ").count() == 3)
            .collect();
        assert_eq!(
            listed,
            table,
            "docs/reference/metrics.md should have\n{}\n",
            table.join("\n")
        );
    }
}
