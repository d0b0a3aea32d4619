//! A run from its arguments to its report: make the requests, ask once, hold idle connections, go
//! through the steps, verify, tell.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls_pki_types::UnixTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::arguments::Drive;
use crate::call::{Failure, call};
use crate::exit::Exit;
use crate::idle::IdleConnections;
use crate::plan::{self, Step, Window};
use crate::processes::{self, Watched};
use crate::progress::bar;
use crate::record::Recorder;
use crate::report::{self, Prepared, Report};
use crate::requests::Requests;
use crate::section::{self, Reading};
use crate::target::{self, Target};
use crate::verify::Verifier;
use crate::worker::{self, Share, runtime};
use crate::{picture, summary};

/// How often memory is looked at and the bar moves.
const LOOK: Duration = Duration::from_millis(100);

/// Runs it.
pub fn run(arguments: &Drive) -> Result<(), Exit> {
    let steps = plan::steps(&arguments.load)?;
    let target = Arc::new(Target::new(&arguments.endpoint)?);
    let chain_roots = arguments
        .endpoint
        .chain_roots
        .as_ref()
        .unwrap_or(&arguments.endpoint.roots);
    let verifier = Verifier::new(target::roots(chain_roots)?)?;
    let watched = processes::watched(&arguments.pid)?;
    // Connections by the thousand need more open files than a shell allows; the most that the
    // system allows is what there is.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let started = now();
    let requests = Arc::new(requests(arguments, &target, started)?);
    ask_once(&target, &requests)?;
    let interrupted = interrupted_by_ctrl_c()?;
    let idle = IdleConnections::open(&target, arguments.load.idle_connections)?;

    let numbers = Arc::new(AtomicU64::new(0));
    let mut sections = Vec::new();
    for step in &steps {
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        let run = Run {
            arguments,
            target: &target,
            requests: &requests,
            watched: &watched,
            interrupted: &interrupted,
        };
        let (recorder, readings) = run.step(step, &numbers)?;
        let verified = verifier.all(&recorder.kept, &requests, UnixTime::now());
        sections.extend(section::told(step, &recorder, &readings, &verified));
    }

    let calls = numbers.load(Ordering::Relaxed);
    let (csrs, tokens, identities) = requests.counts();
    let report = Report {
        label: arguments.label.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        started: started.format(&Rfc3339).unwrap_or_default(),
        address: target.authority().to_owned(),
        prepared: Prepared {
            key: clap::ValueEnum::to_possible_value(&arguments.callers.key)
                .map(|value| value.get_name().to_owned())
                .unwrap_or_default(),
            csrs,
            tokens,
            identities,
            calls,
            csrs_reused: calls > csrs as u64,
            tokens_reused: calls > tokens as u64,
        },
        idle: idle.map(|idle| idle.told()),
        sections,
        interrupted: interrupted.load(Ordering::Relaxed),
    };
    print!("{}", summary::text(&report));
    if let Some(path) = &arguments.report {
        report::write(path, &report)?;
    }
    if let Some(path) = &arguments.picture {
        picture::write(path, &report)?;
    }
    verdict(&report)
}

/// What the run as a whole came to. Refusals beside certificates are figures, not a failure: an
/// overload is made of them.
fn verdict(report: &Report) -> Result<(), Exit> {
    let wrong: usize = report
        .sections
        .iter()
        .map(|section| section.verified.wrong)
        .sum();
    if wrong > 0 {
        return Err(Exit::refused(format!("{wrong} chains do not hold")));
    }
    match report
        .sections
        .iter()
        .find(|section| section.issued == 0 && section.calls > 0)
    {
        Some(section) => {
            let example = section
                .errors
                .values()
                .next()
                .map_or("no call was answered in time", |errors| {
                    errors.example.as_str()
                });
            Err(Exit::refused(format!(
                "{}: not one certificate, such as: {example}",
                section.step
            )))
        }
        None => Ok(()),
    }
}

/// The one place where this program asks for the date: tokens and the report carry it.
#[allow(
    clippy::disallowed_methods,
    reason = "a client of its own, whose decisions use the monotonic clock"
)]
fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn requests(arguments: &Drive, target: &Target, started: OffsetDateTime) -> Result<Requests, Exit> {
    let minted = if arguments.callers.token_issuer_key.is_some() {
        arguments.callers.tokens
    } else {
        0
    };
    let bar = bar(
        "making CSRs and tokens",
        (arguments.callers.csrs + minted) as u64,
    );
    let requests = Requests::make(
        &arguments.callers,
        target.authority(),
        started.unix_timestamp(),
        &|| bar.inc(1),
    );
    bar.finish_and_clear();
    requests
}

/// One call before anything else, so that a wrong address or a refused token is said in a sentence
/// and not a million times.
fn ask_once(target: &Arc<Target>, requests: &Arc<Requests>) -> Result<(), Exit> {
    let runtime = runtime()?;
    let (last, limit) = (requests.counts().0 as u64 - 1, target.timeout());
    let outcome = LocalSet::new().block_on(&runtime, async {
        let sender = target.connect().await?;
        let (request, message) = requests.get(last);
        let answered = tokio::time::timeout(limit, call(&sender, request, message, false)).await;
        answered.unwrap_or_else(|_| Err(Failure::client("timeout", "no answer in time")))
    });
    match outcome {
        Ok(_) => Ok(()),
        Err(failure @ Failure::Client { .. }) => Err(Exit::missing(format!(
            "{} cannot be reached: {failure}",
            target.authority()
        ))),
        Err(failure @ Failure::Grpc { .. }) => Err(Exit::refused(format!(
            "{} refuses the first call: {failure}",
            target.authority()
        ))),
    }
}

/// Set by the first Ctrl-C; the second ends the program at once.
fn interrupted_by_ctrl_c() -> Result<Arc<AtomicBool>, Exit> {
    let flag = Arc::new(AtomicBool::new(false));
    let (runtime, set) = (runtime()?, flag.clone());
    std::thread::spawn(move || {
        runtime.block_on(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                if set.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
                eprintln!("ending; once more ends at once");
            }
        });
    });
    Ok(flag)
}

struct Run<'a> {
    arguments: &'a Drive,
    target: &'a Arc<Target>,
    requests: &'a Arc<Requests>,
    watched: &'a [Watched],
    interrupted: &'a AtomicBool,
}

impl Run<'_> {
    /// Starts the client threads, lets them dial, opens the window, and watches the processes until
    /// they are through.
    fn step(
        &self,
        step: &Step,
        numbers: &Arc<AtomicU64>,
    ) -> Result<(Recorder, Vec<Reading>), Exit> {
        let threads = self.arguments.load.threads;
        let mut running = Vec::new();
        let mut waiting = Vec::new();
        for thread in 0..threads {
            let share = Share {
                target: self.target.clone(),
                requests: self.requests.clone(),
                step: step.clone(),
                threads,
                thread,
                verify_every: self.arguments.verify_every,
                seed: self.arguments.load.seed,
            };
            let (told, dialled) = oneshot::channel();
            let (open, window) = oneshot::channel();
            running.push(std::thread::spawn(move || worker::run(share, told, window)));
            waiting.push((dialled, open));
        }
        let mut opened = Vec::new();
        for (dialled, open) in waiting {
            match dialled.blocking_recv() {
                Ok(Ok(())) => opened.push(open),
                Ok(Err(failure)) => {
                    return Err(Exit::missing(format!(
                        "{} cannot be reached: {failure}",
                        self.target.authority()
                    )));
                }
                Err(_) => return Err(Exit::missing("a client thread ended before it began")),
            }
        }
        let window = Arc::new(Window::open(step, Instant::now(), numbers.clone()));
        for open in opened {
            // A thread that has gone is found when it is joined.
            let _ = open.send(window.clone());
        }
        let readings = self.watch(step, &window, || {
            running.iter().all(std::thread::JoinHandle::is_finished)
        });
        let mut all = Recorder::new(step.sections.len(), 0);
        for thread in running {
            all.merge(
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
            );
        }
        Ok((all, readings))
    }

    fn watch(&self, step: &Step, window: &Window, finished: impl Fn() -> bool) -> Vec<Reading> {
        let seconds = window
            .ends()
            .last()
            .map_or(0.0, |end| (*end - window.begin).as_secs_f64());
        let bar = bar(
            &step.name,
            window.taken().1.unwrap_or((seconds * 10.0) as u64),
        );
        sleep_until(
            window.begin,
            || self.interrupted.load(Ordering::Relaxed),
            || {},
        );
        let mut readings = Vec::new();
        let (mut begin, mut usages) = (Instant::now(), processes::usages(self.watched));
        for end in window.ends() {
            let mut peaks = BTreeMap::new();
            let look = || {
                for one in self.watched {
                    let resident = processes::resident_kb(one.pid).unwrap_or(0);
                    let peak: &mut u64 = peaks.entry(one.name.clone()).or_default();
                    *peak = resident.max(*peak);
                }
                let (taken, calls) = window.taken();
                bar.set_position(calls.map_or_else(
                    || (window.begin.elapsed().as_secs_f64() * 10.0) as u64,
                    |calls| taken.min(calls),
                ));
            };
            sleep_until(
                *end,
                || self.interrupted.load(Ordering::Relaxed) || finished(),
                look,
            );
            let (ended, now) = (Instant::now(), processes::usages(self.watched));
            readings.push(Reading {
                begin: usages,
                end: now.clone(),
                peaks,
                seconds: (ended - begin).as_secs_f64(),
            });
            (begin, usages) = (ended, now);
        }
        window.stop();
        bar.finish_and_clear();
        readings
    }
}

/// Sleeps in short stretches, looks after each, and returns early when `over` says so.
fn sleep_until(end: Instant, over: impl Fn() -> bool, mut look: impl FnMut()) {
    loop {
        look();
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || over() {
            return;
        }
        std::thread::sleep(left.min(LOOK));
    }
}
