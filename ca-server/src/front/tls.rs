//! The accept loop in front of tonic: TCP, limits, TLS. A client certificate is asked for and never
//! required; the serving certificate is looked up at each handshake, so that a renewed one is used
//! with no connection dropped. No session is ever resumed.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::ServerConfig;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::{Admits, OnRefusal};
use crate::fairness::{Arrival, NotAdmitted};
use crate::metrics::Metrics;
use crate::places;
use crate::refusal::Reason;

/// For the TLS handshake, and again for the client's HTTP/2 preface after it.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// Octets of the client's connection preface (RFC 9113 §3.4). Until they are there the HTTP/2 layer
/// sends no pings and has no time limit.
const PREFACE: usize = 24;

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The client certificate and what came with it, leaf first. Verified in the handshake, and
    /// again at each call.
    pub certificates: Option<Arc<[CertificateDer<'static>]>>,
}

/// The serving certificate in force; none before the first was issued.
#[derive(Debug, Default)]
pub struct ServingCertificate(ArcSwapOption<CertifiedKey>);

impl ServingCertificate {
    /// Puts another one in force for the next handshakes.
    pub fn swap(&self, certificate: CertifiedKey) {
        self.0.store(Some(Arc::new(certificate)));
    }

    /// Whether there is one.
    pub fn is_there(&self) -> bool {
        self.0.load().is_some()
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// TLS 1.2 and 1.3 with the provider's defaults (X25519MLKEM768 first), ALPN h2, no tickets and no
/// session cache: a resumed session would skip the client-certificate check.
pub fn server_config(
    serving: Arc<ServingCertificate>,
    clients: Arc<dyn ClientCertVerifier>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(serving);
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Accepts until `stop` turns true, and sends every connection whose handshake succeeded. One whose
/// handshake failed is counted as that and nothing else: whoever probes a port or speaks another
/// protocol has asked for no certificate. A client certificate that proves nothing is a refusal.
pub async fn accept(
    listener: TcpListener,
    config: Arc<ArcSwap<ServerConfig>>,
    metrics: Arc<Metrics>,
    admits: Admits,
    refused: OnRefusal,
    connections: mpsc::Sender<io::Result<Connection>>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors or memory: the listener is sound, and a pause lets
                // connections end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Before the handshake, which is what costs.
        let place = match admits(Arrival::Connection, address.ip()) {
            Ok(place) => Place::new(place, metrics.clone()),
            Err(why) => {
                metrics.handshake_failed(match why {
                    NotAdmitted::Full => "limit",
                    NotAdmitted::Share => "peer_share",
                    NotAdmitted::Rate => "peer_limit",
                });
                continue;
            }
        };
        let (config, metrics, refused, connections) = (
            config.load_full(),
            metrics.clone(),
            refused.clone(),
            connections.clone(),
        );
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_LIMIT, handshake(stream, config)).await {
                Ok(Ok((stream, certificates))) => {
                    let peer = Peer {
                        address,
                        certificates,
                    };
                    let connection = Connection {
                        stream,
                        peer,
                        preface: Some(Preface {
                            missing: PREFACE,
                            limit: Box::pin(tokio::time::sleep(HANDSHAKE_LIMIT)),
                        }),
                        _place: place,
                    };
                    // The receiver is gone only when the daemon stops.
                    let _ = connections.send(Ok(connection)).await;
                }
                Ok(Err(error)) => {
                    metrics.handshake_failed("tls");
                    if is_of_the_certificate(&error) {
                        refused(Reason::BadCredentials, Some(address.ip()));
                    }
                    tracing::debug!(peer = %address, %error, "TLS handshake failed");
                }
                Err(_) => {
                    metrics.handshake_failed("timeout");
                    tracing::debug!(peer = %address, "TLS handshake took too long");
                }
            }
        });
    }
}

/// Whether the client's certificate was why the handshake failed.
fn is_of_the_certificate(error: &io::Error) -> bool {
    let error = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(error, Some(rustls::Error::InvalidCertificate(_)))
}

type Handshaken = (TlsStream<TcpStream>, Option<Arc<[CertificateDer<'static>]>>);

async fn handshake(stream: TcpStream, config: Arc<ServerConfig>) -> io::Result<Handshaken> {
    stream.set_nodelay(true)?;
    let stream = TlsAcceptor::from(config).accept(stream).await?;
    let certificates = stream
        .get_ref()
        .1
        .peer_certificates()
        .map(|chain| chain.iter().map(|one| one.clone().into_owned()).collect());
    Ok((stream, certificates))
}

/// A place among the connections, counted; given back when the connection ends.
#[derive(Debug)]
struct Place {
    _place: places::Place,
    metrics: Arc<Metrics>,
}

impl Place {
    fn new(place: places::Place, metrics: Arc<Metrics>) -> Self {
        metrics.connection_began();
        Self {
            _place: place,
            metrics,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.metrics.connection_ended();
    }
}

/// What the client still owes of its preface, and until when.
#[derive(Debug)]
struct Preface {
    missing: usize,
    limit: Pin<Box<Sleep>>,
}

/// One TLS connection. Ends with an error if the client's preface is not there `HANDSHAKE_LIMIT`
/// after the handshake.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    preface: Option<Preface>,
    _place: Place,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let arrived = buffer.filled().len() - before;
        if let Some(preface) = self.preface.as_mut() {
            preface.missing = preface.missing.saturating_sub(arrived);
            if preface.missing == 0 {
                self.preface = None;
            } else if preface.limit.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
