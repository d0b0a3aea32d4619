//! A network between a daemon and its database that fails on command: each connection is passed on
//! byte by byte until then.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What becomes of the next batch of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The connection ends before the server has seen the rows.
    Rows = 1,
    /// The connection ends when the server has committed and answered, and the answer is lost.
    Answer = 2,
}

/// A batch has at least so many octets; what a daemon asks between batches is shorter.
const BATCH: usize = 600;

const NOTHING: u8 = 0;

/// See the module.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    /// A `Cut`, taken by the first batch that comes.
    command: AtomicU8,
    cuts: AtomicUsize,
    /// While this is true nothing is passed on, and nothing ends.
    silent: watch::Sender<bool>,
}

impl Proxy {
    /// Before this server.
    pub async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared {
            command: AtomicU8::new(NOTHING),
            cuts: AtomicUsize::new(0),
            silent: watch::channel(false).0,
        });
        let accepting = tokio::spawn({
            let shared = shared.clone();
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let shared = shared.clone();
                    tokio::spawn(async move {
                        if let Ok(server) = TcpStream::connect(server).await {
                            pass(client, server, &shared).await;
                        }
                    });
                }
            }
        });
        Self {
            address,
            shared,
            accepting,
        }
    }

    /// Where daemons connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts the connection that carries the next batch.
    pub fn cut(&self, what: Cut) {
        self.shared.command.store(what as u8, Ordering::SeqCst);
    }

    /// How many connections have been cut on command.
    pub fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// From now on nothing arrives, in either direction, and no connection ends.
    pub fn fall_silent(&self) {
        self.shared.silent.send_replace(true);
    }

    /// What was kept back arrives.
    pub fn speak_again(&self) {
        self.shared.silent.send_replace(false);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Passes both directions on until one of them ends or the connection is cut: then both streams are
/// dropped.
async fn pass(client: TcpStream, server: TcpStream, shared: &Shared) {
    let (taken, mut watched) = watch::channel(false);
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async {
        let mut bytes = vec![0; 1 << 16];
        while let Some(count) = read(&mut from_client, &mut bytes).await {
            heard(shared).await;
            if count >= BATCH {
                match shared.command.swap(NOTHING, Ordering::SeqCst) {
                    command if command == Cut::Rows as u8 => return shared.count(),
                    command if command == Cut::Answer as u8 => {
                        taken.send_replace(true);
                    }
                    _ => {}
                }
            }
            if write(&mut to_server, &bytes[..count]).await.is_none() {
                break;
            }
        }
    };
    let answers = async {
        let mut bytes = vec![0; 1 << 16];
        while let Some(count) = read(&mut from_server, &mut bytes).await {
            heard(shared).await;
            if *watched.borrow_and_update() {
                return shared.count();
            }
            if write(&mut to_client, &bytes[..count]).await.is_none() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}

impl Shared {
    fn count(&self) {
        self.cuts.fetch_add(1, Ordering::SeqCst);
    }
}

async fn heard(shared: &Shared) {
    // The sender lives in `shared`.
    let _ = shared.silent.subscribe().wait_for(|silent| !silent).await;
}

async fn read(from: &mut (impl AsyncRead + Unpin), bytes: &mut [u8]) -> Option<usize> {
    from.read(bytes).await.ok().filter(|count| *count > 0)
}

async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Option<()> {
    to.write_all(bytes).await.ok()
}
