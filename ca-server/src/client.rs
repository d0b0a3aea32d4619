//! A client of any Istio CA: dials over TLS, asks for a certificate, and believes nothing of the
//! answer that it has not verified. `request` and the quickstart's first certificate go through it,
//! so that they take the way that agents take.

mod answer;
mod csr;
mod tls;

use std::time::Duration;

use hyper_util::rt::TokioIo;
use istio_api::IstioCertificateRequest;
use istio_api::istio_certificate_service_client::IstioCertificateServiceClient;
use prost_types::{Struct, Value, value::Kind};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};

pub use answer::{AnswerError, Expected, Issued, NameError, Roots, RootsError, identities};
pub use csr::{KeyType, WorkloadKey};
pub use tls::{ClientIdentity, TlsError};

/// How long dialling may take, TLS included.
const DIAL_LIMIT: Duration = Duration::from_secs(5);
/// How long one call may take: above any server's own limit, so that the server's answer is seen.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// Where the CA is and how it proves itself.
#[derive(Clone, Debug)]
pub struct Target {
    /// `host:port`; `https://` in front is allowed.
    pub address: String,
    /// The name that the CA's certificate must carry, where it differs from the address's host.
    pub server_name: Option<String>,
    /// The roots that the CA's certificate, and every issued one, must chain to.
    pub roots: Roots,
    /// A client certificate to show, for callers that renew with one.
    pub identity: Option<ClientIdentity>,
}

/// What a call carries beside the CSR.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// The bearer token. Never logged.
    pub token: Option<String>,
    /// The `clusterid` header.
    pub cluster_id: Option<String>,
    /// Wanted lifetime; zero asks for the default.
    pub lifetime: Duration,
    /// The `CertSigner` metadata key.
    pub signer: Option<String>,
}

/// A connection could not be made: the address, the name, or what TLS said.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {address}: {cause}")]
pub struct ConnectError {
    address: String,
    cause: String,
}

/// One HTTP/2 connection to a CA; calls share it.
#[derive(Clone, Debug)]
pub struct Connection {
    service: IstioCertificateServiceClient<Channel>,
}

impl Connection {
    /// Dials and shakes hands.
    pub async fn open(target: &Target) -> Result<Self, ConnectError> {
        let failed = |cause: String| ConnectError {
            address: target.address.clone(),
            cause,
        };
        let authority = target
            .address
            .strip_prefix("https://")
            .unwrap_or(&target.address)
            .trim_end_matches('/')
            .to_owned();
        let host = tls::host(&authority).ok_or_else(|| {
            failed("an address is host:port, such as istiod.istio-system.svc:15012".into())
        })?;
        let name = tls::server_name(target.server_name.as_deref().unwrap_or(host))
            .map_err(|error| failed(error.to_string()))?;
        let connector =
            TlsConnector::from(tls::config(target).map_err(|error| failed(error.to_string()))?);
        let dialled = authority.clone();
        let dial = tower::service_fn(move |_: http::Uri| {
            let (connector, name, authority) = (connector.clone(), name.clone(), dialled.clone());
            async move {
                let stream = TcpStream::connect(&authority).await?;
                stream.set_nodelay(true)?;
                connector.connect(name, stream).await.map(TokioIo::new)
            }
        });
        let endpoint = Endpoint::from_shared(format!("https://{authority}"))
            .map_err(|error| failed(deepest_cause(&error)))?
            .connect_timeout(DIAL_LIMIT)
            .timeout(CALL_LIMIT);
        let channel = endpoint
            .connect_with_connector(dial)
            .await
            .map_err(|error| failed(deepest_cause(&error)))?;
        Ok(Self {
            service: IstioCertificateServiceClient::new(channel),
        })
    }

    /// Makes the call; the chain as it came, unverified, leaf first.
    pub async fn create_certificate(
        &self,
        csr_pem: &str,
        ask: &Ask,
    ) -> Result<Vec<String>, tonic::Status> {
        let metadata = ask.signer.as_ref().map(|signer| Struct {
            fields: [(
                "CertSigner".to_owned(),
                Value {
                    kind: Some(Kind::StringValue(signer.clone())),
                },
            )]
            .into(),
        });
        let mut request = tonic::Request::new(IstioCertificateRequest {
            csr: csr_pem.to_owned(),
            validity_duration: i64::try_from(ask.lifetime.as_secs()).unwrap_or(i64::MAX),
            metadata,
        });
        if let Some(token) = &ask.token {
            let mut value: MetadataValue<_> = format!("Bearer {token}").parse().map_err(|_| {
                tonic::Status::invalid_argument("the token holds control characters")
            })?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        if let Some(cluster) = &ask.cluster_id {
            let value = cluster.parse().map_err(|_| {
                tonic::Status::invalid_argument("the cluster id holds control characters")
            })?;
            request.metadata_mut().insert("clusterid", value);
        }
        // The generated client takes `&mut self` for each call; a clone is a handle on the same
        // connection.
        Ok(self
            .service
            .clone()
            .create_certificate(request)
            .await?
            .into_inner()
            .cert_chain)
    }
}

/// What lies at the bottom of an error: tonic's own text is only "transport error".
fn deepest_cause(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(below) = deepest.source() {
        deepest = below;
    }
    deepest.to_string()
}
