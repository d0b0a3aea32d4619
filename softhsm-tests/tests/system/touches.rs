//! What one issuance asks of the kernel: the calls on the ledger, on the device's files, and on the
//! client's connection, learnt from the running daemon and never listed by hand. The stories that
//! kill or disturb it there share this.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use softhsm_tests::client::tls;
use softhsm_tests::daemon::{PATIENCE, Setup};
use softhsm_tests::strace::{Scope, Strace};
use softhsm_tests::{Ask, Channel, Csr, TestCa, sockets};
use tokio::net::TcpStream;
use tonic::Status;

/// What a system call touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touched {
    Ledger,
    Device,
    /// Until the client's connection is there.
    Accept,
    /// The client's connection, from the TLS handshake to its end.
    Client,
}

impl Touched {
    pub const ALL: [Self; 4] = [Self::Ledger, Self::Device, Self::Accept, Self::Client];

    /// The three of which each must be there.
    pub fn class(self) -> &'static str {
        match self {
            Self::Ledger => "ledger",
            Self::Device => "device",
            Self::Accept | Self::Client => "client",
        }
    }
}

/// Names of the calls that make a connection usable. strace cannot tell whose they are before the
/// connection is there; in the daemon nothing else makes them during an issuance.
const ACCEPTING: &str = "accept4,accept,setsockopt,epoll_ctl";

/// One thread for all that is not blocking, so that the n-th call of the thread is the n-th of the
/// issuance; the device in the same process, so that its calls are among them.
pub fn countable(setup: Setup) -> Setup {
    setup
        .with_faults()
        .on_threads()
        .env("TOKIO_WORKER_THREADS", "1")
}

/// A call to look for, or to tamper with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind<'a> {
    pub touched: Touched,
    /// The threads that make it.
    pub role: &'a str,
    /// Its name.
    pub call: &'a str,
}

/// What became of one issuance under strace.
pub struct Traced {
    /// The client's answer.
    pub answer: Result<Vec<String>, Status>,
    /// Whether the daemon is dead.
    pub died: bool,
    pub strace: Strace,
}

/// One issuance on a connection of its own, under strace until the daemon is dead or the connection
/// gone. `kill_when_delayed` kills as soon as an injected delay holds a call back that has been
/// executed. A certificate that is received is remembered.
pub async fn traced(
    ca: &mut TestCa,
    touched: Touched,
    scope: Scope,
    injection: Option<&str>,
    kill_when_delayed: bool,
) -> Traced {
    let (csr, ask, config) = (
        Csr::demo().pem,
        Ask::bearer(&ca.token()),
        tls(&ca.roots(), None),
    );
    let address = ca.csr_address();
    let mut strace = None;
    if touched == Touched::Accept {
        strace = Some(Strace::attach(
            ca.pid(),
            &Scope {
                calls: calls_of(&scope, ACCEPTING),
                ..scope.clone()
            },
            injection,
        ));
    }
    // A daemon that dies as it accepts resets the connection before it is there.
    let connected = TcpStream::connect(address).await;
    let mut strace = match strace {
        Some(strace) => strace,
        None => {
            let stream = connected.as_ref().expect("the kernel accepts");
            Strace::attach(
                ca.pid(),
                &Scope {
                    paths: paths(ca, touched, stream).await,
                    ..scope
                },
                injection,
            )
        }
    };
    let call = async {
        let stream = connected.map_err(|error| Status::unavailable(error.to_string()))?;
        let channel = Channel::over(stream, config)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        channel.call(&csr, &ask).await
    };
    let mut call = Box::pin(tokio::time::timeout(PATIENCE, call));
    let mut answer = None;
    let died = loop {
        tokio::select! {
            outcome = &mut call, if answer.is_none() => answer = Some(outcome.expect("an answer, or the end of the connection")),
            () = tokio::time::sleep(std::time::Duration::from_millis(3)) => {}
        }
        if ca.ended().is_some_and(|status| killed(&status)) {
            break true;
        }
        if kill_when_delayed && strace.delays() {
            ca.signal("KILL");
            strace.kill();
            killed(&ca.wait());
            break true;
        }
        if answer.is_some() && sockets::clients(ca.pid(), address) == Some(0) {
            // Its descriptors go before the process does: only an answer tells that it lives. What
            // strace would do to that must not count.
            strace.detach();
            if kill_when_delayed && strace.delays() {
                continue;
            }
            if ca.get("/healthz/live").await.0 == 200 {
                break false;
            }
        }
    };
    let answer = match answer {
        Some(answer) => answer,
        None => call.await.expect("the end of the connection"),
    };
    if let Ok(chain) = &answer {
        ca.remember(chain);
    }
    Traced {
        answer,
        died,
        strace,
    }
}

fn killed(status: &std::process::ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(
        status.signal(),
        Some(9),
        "the daemon ended by itself: {status}"
    );
    true
}

fn calls_of(scope: &Scope, otherwise: &str) -> String {
    if scope.calls.is_empty() {
        otherwise.to_owned()
    } else {
        scope.calls.clone()
    }
}

/// The files and sockets that are meant.
async fn paths(ca: &TestCa, touched: Touched, client: &TcpStream) -> Vec<String> {
    let text = |path: &Path| path.to_str().expect("temporary paths are text").to_owned();
    match touched {
        Touched::Ledger if on_a_server(ca) => {
            let connections =
                sockets::others(ca.pid(), &[ca.csr_address(), ca.monitoring_address()]);
            connections.into_iter().map(socket).collect()
        }
        Touched::Ledger => {
            let files = [
                "ledger.db",
                "ledger.db-wal",
                "ledger.db-shm",
                "ledger.db-journal",
                "ledger.db.lock",
            ];
            files
                .iter()
                .map(|name| text(&ca.material.file(name)))
                .collect()
        }
        Touched::Device => {
            let mut paths: Vec<String> = below(&ca.material.file("tokens"))
                .iter()
                .map(|path| text(path))
                .collect();
            // What the fault module counts there, it counts before and after the real signature.
            paths.extend(
                ["control", "signatures", "signed", "logins"]
                    .map(|name| text(&ca.material.file("faults").join(name))),
            );
            paths
        }
        Touched::Accept => Vec::new(),
        Touched::Client => {
            let own = client.local_addr().expect("connected");
            ca.until("accepted", || async {
                sockets::of_client(ca.pid(), ca.csr_address(), own).is_some()
            })
            .await;
            sockets::of_client(ca.pid(), ca.csr_address(), own)
                .map(socket)
                .into_iter()
                .collect()
        }
    }
}

/// Whether the ledger is on a database server, which is reached by a socket.
pub fn on_a_server(ca: &TestCa) -> bool {
    ca.material.read("ca.toml").contains("\"postgres://")
}

fn socket(inode: u64) -> String {
    format!("socket:[{inode}]")
}

fn below(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut found = vec![directory.to_owned()];
    for entry in fs::read_dir(directory)
        .expect("readable")
        .map(|entry| entry.expect("readable").path())
    {
        if entry.is_dir() {
            found.extend(below(&entry))
        } else {
            found.push(entry)
        }
    }
    found
}

/// How often an issuance makes each kind of call.
#[derive(Debug, Default)]
pub struct Lesson(BTreeMap<(Touched, String, String), Vec<usize>>);

/// Issuances that are looked at to learn what they do.
const LESSONS: usize = 3;

impl Lesson {
    /// Looks at a few issuances that succeed: each the second of a daemon's life, as those that are
    /// to be disturbed will be.
    pub async fn of(ca: &mut TestCa, touched: &[Touched]) -> Self {
        let mut lesson = Self::default();
        for _ in 0..LESSONS {
            ca.kill();
            ca.restart().await;
            ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
                .await
                .expect("issued");
            for &touched in touched {
                let traced = traced(ca, touched, Scope::default(), None, false).await;
                traced
                    .answer
                    .unwrap_or_else(|status| panic!("nothing was injected: {status}"));
                assert!(!traced.died);
                let mut counts: BTreeMap<(Touched, String, String), usize> = BTreeMap::new();
                for call in traced.strace.seen() {
                    // The connection's own view of what `Accept` covers.
                    if touched != Touched::Client
                        || !ACCEPTING.split(',').any(|name| name == call.name)
                    {
                        *counts.entry((touched, call.role, call.name)).or_default() += 1;
                    }
                }
                counts
                    .into_iter()
                    .for_each(|(kind, count)| lesson.0.entry(kind).or_default().push(count));
            }
        }
        lesson
    }

    /// Every kind of call, and how many of it each issuance made at least.
    pub fn kinds(&self) -> impl Iterator<Item = (Kind<'_>, usize)> {
        self.0.iter().map(|((touched, role, call), counts)| {
            let least = if counts.len() < LESSONS {
                0
            } else {
                counts.iter().copied().min().unwrap_or(0)
            };
            (
                Kind {
                    touched: *touched,
                    role,
                    call,
                },
                least,
            )
        })
    }

    /// How many calls an issuance makes at least.
    pub fn calls(&self) -> usize {
        self.kinds().map(|(_, least)| least).sum()
    }
}

impl Kind<'_> {
    /// What strace is to look at.
    pub fn scope(&self) -> Scope {
        Scope {
            role: self.role.to_owned(),
            calls: self.call.to_owned(),
            ..Scope::default()
        }
    }
}
