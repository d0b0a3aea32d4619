//! Clients that call without a pause, each on a connection of its own, and an account of what
//! became of every call.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tonic::Status;

use super::client::{Ask, Channel, Csr, tls};
use super::daemon::PATIENCE;
use super::{KeyChoice, TestCa};

/// How long a client waits before it calls again after it got no certificate.
const PAUSE: Duration = Duration::from_millis(10);

/// A running load. Stop it with `stop`, which says whether a client fell over.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

struct Shared {
    stop: AtomicBool,
    /// Where new connections go, in turn.
    addresses: Mutex<Vec<SocketAddr>>,
    issued: AtomicUsize,
    /// What the server answered instead of a certificate, by its code.
    refused: Mutex<BTreeMap<String, usize>>,
    /// Calls that ended without an answer, by the reason.
    unanswered: Mutex<BTreeMap<String, usize>>,
    /// Of each client: answers without a certificate since its last one.
    in_vain: Vec<AtomicUsize>,
}

impl Load {
    /// So many clients of one daemon.
    pub fn on(ca: &TestCa, clients: usize) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            addresses: Mutex::new(vec![ca.csr_address()]),
            issued: AtomicUsize::new(0),
            refused: Mutex::default(),
            unanswered: Mutex::default(),
            in_vain: (0..clients).map(|_| AtomicUsize::new(0)).collect(),
        });
        let (config, ask) = (tls(&ca.roots(), None), Ask::bearer(&ca.token()));
        let clients = (0..clients).map(|client| {
            let (shared, config, ask, received) = (
                shared.clone(),
                config.clone(),
                ask.clone(),
                ca.received_here(),
            );
            tokio::spawn(async move {
                let mut turn = client;
                while !shared.stop.load(Ordering::Relaxed) {
                    let address = shared.address(turn);
                    turn += 1;
                    let Ok(channel) = Channel::open(address, config.clone()).await else {
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    };
                    while !shared.stop.load(Ordering::Relaxed) {
                        // Each another one: the daemon answers the same within a minute with the
                        // certificate that is there.
                        let csr = Csr::pilot_agent(KeyChoice::P256, super::daemon::DEMO).pem;
                        match channel.call(&csr, &ask).await {
                            Ok(chain) => {
                                received.lock().expect("unpoisoned").push(chain[0].clone());
                                shared.issued.fetch_add(1, Ordering::Relaxed);
                                shared.in_vain[client].store(0, Ordering::Relaxed);
                            }
                            Err(status) => {
                                shared.in_vain[client].fetch_add(1, Ordering::Relaxed);
                                let answered = shared.file(&status);
                                tokio::time::sleep(PAUSE).await;
                                if !answered {
                                    break;
                                }
                            }
                        }
                    }
                }
            })
        });
        let clients = clients.collect();
        Self { shared, clients }
    }

    /// New connections go to these from now on.
    pub fn connect_to(&self, addresses: &[SocketAddr]) {
        *self.shared.addresses.lock().expect("unpoisoned") = addresses.to_vec();
    }

    /// Certificates received.
    pub fn issued(&self) -> usize {
        self.shared.issued.load(Ordering::Relaxed)
    }

    /// What the server answered instead of a certificate, and how often.
    pub fn refused(&self) -> BTreeMap<String, usize> {
        self.shared.refused.lock().expect("unpoisoned").clone()
    }

    /// Why calls ended without an answer, and how often.
    pub fn unanswered(&self) -> BTreeMap<String, usize> {
        self.shared.unanswered.lock().expect("unpoisoned").clone()
    }

    /// Whether the last answers of every client, so many, were no certificate.
    pub fn all_in_vain(&self, answers: usize) -> bool {
        self.shared
            .in_vain
            .iter()
            .all(|client| client.load(Ordering::Relaxed) >= answers)
    }

    /// Whether the last answer of every client was a certificate.
    pub fn all_served(&self) -> bool {
        self.shared
            .in_vain
            .iter()
            .all(|client| client.load(Ordering::Relaxed) == 0)
    }

    /// Waits until so many more certificates have been received.
    pub async fn until_issued(&self, ca: &TestCa, more: usize) {
        let goal = self.issued() + more;
        ca.until("issued under load", || async { self.issued() >= goal })
            .await;
    }

    /// Waits for the calls under way and ends.
    pub async fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            tokio::time::timeout(PATIENCE, client)
                .await
                .expect("a call never ended")
                .expect("no client fell over");
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for client in &self.clients {
            client.abort();
        }
    }
}

impl Shared {
    fn address(&self, turn: usize) -> SocketAddr {
        let addresses = self.addresses.lock().expect("unpoisoned");
        addresses[turn % addresses.len()]
    }

    /// Whether the server answered: a status that a connection's end was made into has a source.
    fn file(&self, status: &Status) -> bool {
        let mut sources = Vec::new();
        let mut next = status.source();
        while let Some(error) = next {
            sources.push(error.to_string());
            next = error.source();
        }
        let answered = sources.is_empty();
        if answered {
            sources.push(format!("{:?}", status.code()));
        }
        let (counts, why) = (
            if answered {
                &self.refused
            } else {
                &self.unanswered
            },
            sources.join(": "),
        );
        *counts.lock().expect("unpoisoned").entry(why).or_default() += 1;
        answered
    }
}
