//! Where calls go: dials TCP, shakes hands in TLS 1.2 or 1.3 as rustls does by default, and speaks
//! HTTP/2 without a tower of layers above it. No session is ever resumed: an agent's fresh
//! connection is a whole handshake.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::arguments::Endpoint;
use crate::call::Failure;
use crate::exit::Exit;

/// What a server may send before it waits for us: far more than the answers of all calls in flight.
const WINDOW: u32 = 16 << 20;
const STREAM_WINDOW: u32 = 1 << 20;

/// An endpoint, resolved, and how to trust it.
pub struct Target {
    address: SocketAddr,
    authority: String,
    name: ServerName<'static>,
    tls: TlsConnector,
    timeout: Duration,
}

impl Target {
    /// Reads the roots and resolves the address.
    pub fn new(endpoint: &Endpoint) -> Result<Self, Exit> {
        let authority = endpoint
            .address
            .trim_start_matches("https://")
            .trim_end_matches('/')
            .to_owned();
        let host = authority
            .rsplit_once(':')
            .map(|(host, _)| host.trim_matches(['[', ']']));
        let host = host.ok_or_else(|| {
            Exit::usage(format!(
                "--address {authority}: an address is host:port, such as localhost:15012"
            ))
        })?;
        let address = authority
            .to_socket_addrs()
            .map_err(|error| Exit::missing(format!("--address {authority}: {error}")))?
            .next()
            .ok_or_else(|| Exit::missing(format!("--address {authority} has no address")))?;
        let name = endpoint.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned())
            .map_err(|error| Exit::usage(format!("--server-name {name}: {error}")))?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .map_err(|error| Exit::missing(error.to_string()))?
        .with_root_certificates(roots(&endpoint.roots)?)
        .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self {
            address,
            authority,
            name,
            tls: TlsConnector::from(Arc::new(config)),
            timeout: endpoint.call_timeout,
        })
    }

    /// `host:port` as it was given.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The longest that connecting or one call may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A new connection, driven by a task of its own until the last handle on it is gone. Runs in a
    /// `LocalSet`.
    pub async fn connect(&self) -> Result<SendRequest<Bytes>, Failure> {
        let (sender, connection) = self.open().await?;
        // What ends a connection is seen by the calls on it.
        tokio::task::spawn_local(async { drop(connection.await) });
        Ok(sender)
    }

    /// A new connection, to be awaited by whoever opens it: that drives it, and ends when it does.
    pub async fn open(&self) -> Result<(SendRequest<Bytes>, Connection), Failure> {
        let dialled = tokio::time::timeout(self.timeout, self.dial()).await;
        dialled.unwrap_or_else(|_| Err(Failure::client("connect", "no answer in time")))
    }

    async fn dial(&self) -> Result<(SendRequest<Bytes>, Connection), Failure> {
        let stream = TcpStream::connect(self.address)
            .await
            .map_err(|error| Failure::client("connect", error))?;
        stream
            .set_nodelay(true)
            .map_err(|error| Failure::client("connect", error))?;
        let stream = self
            .tls
            .connect(self.name.clone(), stream)
            .await
            .map_err(|error| Failure::client("TLS", error))?;
        h2::client::Builder::new()
            .initial_connection_window_size(WINDOW)
            .initial_window_size(STREAM_WINDOW)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(|error| Failure::client("HTTP/2", error))
    }
}

/// An HTTP/2 connection over TLS.
pub type Connection = h2::client::Connection<TlsStream<TcpStream>, Bytes>;

/// The certificates of a PEM file as trust anchors.
pub fn roots(path: &Path) -> Result<RootCertStore, Exit> {
    let pem = std::fs::read(path)
        .map_err(|error| Exit::missing(format!("{}: {error}", path.display())))?;
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        // The parser's own words would show what stands in the file.
        let read = certificate.map_err(|_| "it is not PEM".to_owned());
        let added = read.and_then(|one| store.add(one).map_err(|error| error.to_string()));
        added.map_err(|error| Exit::usage(format!("{}: {error}", path.display())))?;
    }
    if store.is_empty() {
        return Err(Exit::usage(format!(
            "{} holds no certificate",
            path.display()
        )));
    }
    Ok(store)
}
