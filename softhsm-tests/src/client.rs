//! An Istio client that can misbehave: any headers, any bytes, any metadata. CSRs come from rcgen,
//! an encoder independent of ours.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use istio_api::istio_certificate_service_client::IstioCertificateServiceClient;
use istio_api::{IstioCertificateRequest, IstioCertificateResponse};
use prost_types::{Struct, Value, value::Kind};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel as Http2, Endpoint, Uri};
use tonic::{Request, Status};

/// A connection to the daemon.
#[derive(Clone)]
pub struct Channel(IstioCertificateServiceClient<Http2>);

/// A client certificate and its key, PEM.
pub struct Identity<'a> {
    /// Leaf first.
    pub chain: &'a str,
    /// PKCS#8.
    pub key: &'a str,
}

/// What a TLS client of ours trusts and presents.
pub fn tls(roots: &str, identity: Option<&Identity<'_>>) -> ClientConfig {
    tls_later(roots, identity, Duration::ZERO)
}

/// The same for a client whose clock is ahead by so much.
pub fn tls_later(roots: &str, identity: Option<&Identity<'_>>, by: Duration) -> ClientConfig {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root.expect("PEM")).expect("a root");
    }
    let builder = ClientConfig::builder_with_details(
        Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
        Arc::new(Ahead(by)),
    )
    .with_safe_default_protocol_versions()
    .expect("versions")
    .with_root_certificates(store);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let chain = CertificateDer::pem_slice_iter(identity.chain.as_bytes())
                .map(|one| one.expect("PEM"))
                .collect();
            let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).expect("a key");
            builder
                .with_client_auth_cert(chain, key)
                .expect("key fits certificate")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// A clock that is ahead of the real one.
#[derive(Debug)]
struct Ahead(Duration);

impl TimeProvider for Ahead {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(
            Duration::from_secs(UnixTime::now().as_secs()) + self.0,
        ))
    }
}

impl Channel {
    /// Dials; the server is verified as `localhost` against `roots`.
    pub async fn open(
        address: SocketAddr,
        config: ClientConfig,
    ) -> Result<Self, tonic::transport::Error> {
        Self::open_by(Endpoint::from_static("http://localhost"), address, config).await
    }

    /// Speaks TLS on a connection that a test has dialled; when it is lost, the channel is.
    pub async fn over(
        stream: TcpStream,
        config: ClientConfig,
    ) -> Result<Self, tonic::transport::Error> {
        stream.set_nodelay(true).expect("a TCP socket");
        let (connector, stream) = (
            TlsConnector::from(Arc::new(config)),
            Arc::new(Mutex::new(Some(stream))),
        );
        let connect = tower::service_fn(move |_: Uri| {
            let (connector, stream) =
                (connector.clone(), stream.lock().expect("unpoisoned").take());
            async move {
                let stream = stream.ok_or(std::io::ErrorKind::NotConnected)?;
                let name = ServerName::try_from("localhost").expect("a name");
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        Ok(Self::new(
            Endpoint::from_static("http://localhost")
                .connect_with_connector(connect)
                .await?,
        ))
    }

    /// Dials, and pings that often, with calls in flight and without.
    pub async fn open_with_pings(
        address: SocketAddr,
        config: ClientConfig,
        every: Duration,
    ) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_static("http://localhost")
            .http2_keep_alive_interval(every)
            .keep_alive_while_idle(true);
        Self::open_by(endpoint, address, config).await
    }

    async fn open_by(
        endpoint: Endpoint,
        address: SocketAddr,
        config: ClientConfig,
    ) -> Result<Self, tonic::transport::Error> {
        let connector = TlsConnector::from(Arc::new(config));
        let connect = tower::service_fn(move |_: Uri| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let name = ServerName::try_from("localhost").expect("a name");
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        Ok(Self::new(endpoint.connect_with_connector(connect).await?))
    }

    fn new(http2: Http2) -> Self {
        Self(
            IstioCertificateServiceClient::new(http2)
                .max_encoding_message_size(64 << 20)
                .max_decoding_message_size(64 << 20),
        )
    }

    /// One call.
    pub async fn call(&self, csr: &str, ask: &Ask) -> Result<Vec<String>, Status> {
        let mut request = Request::new(IstioCertificateRequest {
            csr: csr.to_owned(),
            validity_duration: ask.lifetime,
            metadata: (!ask.metadata.is_empty()).then(|| Struct {
                fields: ask.metadata.iter().cloned().collect(),
            }),
        });
        for (name, value) in &ask.headers {
            let name = name
                .parse::<tonic::metadata::MetadataKey<_>>()
                .expect("a header name");
            request
                .metadata_mut()
                .append(name, value.parse().expect("a header value"));
        }
        let IstioCertificateResponse { cert_chain } = self
            .0
            .clone()
            .create_certificate(request)
            .await?
            .into_inner();
        Ok(cert_chain)
    }
}

/// What goes with a CSR.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// `validity_duration`, seconds.
    pub lifetime: i64,
    /// Headers, in order, repeats allowed.
    pub headers: Vec<(String, String)>,
    /// Metadata fields.
    pub metadata: Vec<(String, Value)>,
}

impl Ask {
    /// With this bearer token.
    pub fn bearer(token: &str) -> Self {
        Self::default().header("authorization", &format!("Bearer {token}"))
    }

    /// One header more.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// One text of metadata more.
    pub fn text(self, key: &str, value: &str) -> Self {
        self.value(key, Kind::StringValue(value.to_owned()))
    }

    /// One value of metadata more.
    pub fn value(mut self, key: &str, kind: Kind) -> Self {
        self.metadata
            .push((key.to_owned(), Value { kind: Some(kind) }));
        self
    }

    /// Another lifetime, seconds.
    pub fn lifetime(mut self, seconds: i64) -> Self {
        self.lifetime = seconds;
        self
    }
}

/// Kinds of workload key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum KeyChoice {
    P256,
    P384,
    Ed25519,
    Rsa2048,
}

/// A CSR and its key.
pub struct Csr {
    /// PEM.
    pub pem: String,
    /// The key, PKCS#8 PEM.
    pub key: String,
}

impl Csr {
    /// As ztunnel makes it: P-256, empty subject, one URI SAN.
    pub fn ztunnel(uri: &str) -> Self {
        Self::build(KeyChoice::P256, |params| {
            params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ASCII"))]
        })
    }

    /// As pilot-agent makes it: the subject is a single empty O.
    pub fn pilot_agent(key: KeyChoice, uri: &str) -> Self {
        Self::build(key, |params| {
            params.distinguished_name.push(DnType::OrganizationName, "");
            params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ASCII"))];
        })
    }

    /// Any CSR that rcgen can write.
    pub fn build(key: KeyChoice, shape: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = match key {
            KeyChoice::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            KeyChoice::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            KeyChoice::Ed25519 => KeyPair::generate_for(&rcgen::PKCS_ED25519),
            KeyChoice::Rsa2048 => KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256),
        }
        .expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        shape(&mut params);
        let pem = params
            .serialize_request(&key)
            .expect("a CSR")
            .pem()
            .expect("PEM");
        Self {
            pem,
            key: key.serialize_pem(),
        }
    }

    /// Another CSR for the same key: an ECDSA signature is never the same twice.
    pub fn again(&self) -> Self {
        let key = KeyPair::from_pem(&self.key).expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let pem = params
            .serialize_request(&key)
            .expect("a CSR")
            .pem()
            .expect("PEM");
        Self {
            pem,
            key: self.key.clone(),
        }
    }

    /// Made by the `openssl` command in `directory`, for what rcgen refuses to write. `arguments`
    /// follow `openssl req -new`.
    pub fn openssl(directory: &Path, arguments: &[&str]) -> Self {
        let (key, csr) = (
            directory.join("openssl-csr.key"),
            directory.join("openssl-csr.pem"),
        );
        let status = std::process::Command::new("openssl")
            .args(["req", "-new", "-nodes", "-batch", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&csr)
            .args(arguments)
            .output()
            .expect("openssl runs");
        assert!(
            status.status.success(),
            "openssl req: {}",
            String::from_utf8_lossy(&status.stderr)
        );
        let read = |path| std::fs::read_to_string(path).expect("openssl wrote it");
        Self {
            pem: read(csr),
            key: read(key),
        }
    }
}
