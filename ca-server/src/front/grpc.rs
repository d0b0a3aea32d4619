//! The Istio CSR call (docs/istio-contract.md, contract §1): a request becomes a `Call`, an
//! `Answer` becomes a response, a `Refusal` becomes a status.

use std::sync::Arc;
use std::time::Instant;

use istio_api::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use istio_api::{IstioCertificateRequest, IstioCertificateResponse};
use prost_types::Struct;
use prost_types::value::Kind;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use super::call_limit::{Deadline, Reached};
use super::tls::Peer;
use crate::authn::Credentials;
use crate::clock::Clock;
use crate::issue::{Call, Pipeline, fresh_request_id};
use crate::metrics::Metrics;
use crate::policy::{Asked, Wishes};
use crate::refusal::{Code, Refusal};

/// The largest message that is read (contract §2).
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// The certificate service over one pipeline.
#[derive(Debug)]
pub struct Certificates {
    pipeline: Arc<Pipeline>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl Certificates {
    /// The service for tonic, with its message limit.
    pub fn service(
        pipeline: Arc<Pipeline>,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(Self {
            pipeline,
            metrics,
            clock,
        })
        .max_decoding_message_size(MAX_MESSAGE)
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.metrics.csr_arrived();
        let id = fresh_request_id(self.clock.now());
        // At the highest level, so that no filter takes the id from the lines that need it.
        let span = tracing::error_span!("call", request = %id);
        let Some(Deadline(deadline)) = request.extensions().get().copied() else {
            return Err(Status::internal("no time limit on the call"));
        };
        if let Some(reached) = request.extensions().get::<Reached>() {
            reached.set();
        }
        let call = self.read(request, id, deadline);
        match self.pipeline.issue(&call).instrument(span).await {
            Ok(answer) => Ok(Response::new(IstioCertificateResponse {
                cert_chain: answer.chain(),
            })),
            Err(refusal) => Err(status(&refusal)),
        }
    }
}

impl Certificates {
    fn read(
        &self,
        request: Request<IstioCertificateRequest>,
        id: crate::evidence::RequestId,
        deadline: Instant,
    ) -> Call {
        let peer = request.extensions().get::<Peer>().cloned();
        let credentials = Credentials {
            bearer: bearer_tokens(request.metadata()),
            clusters: clusters(request.metadata()),
            certificates: peer.as_ref().and_then(|peer| peer.certificates.clone()),
            peer: peer.map(|peer| peer.address),
        };
        let message = request.into_inner();
        let wishes = Wishes {
            lifetime: message.validity_duration,
            signer: asked(message.metadata.as_ref(), "CertSigner"),
            impersonated: asked(message.metadata.as_ref(), "ImpersonatedIdentity"),
        };
        Call {
            request: id,
            credentials,
            csr: message.csr,
            wishes,
            deadline,
        }
    }
}

/// The tokens of every `authorization` value whose scheme is Bearer (RFC 6750 §2.1); empty ones are
/// none.
fn bearer_tokens(metadata: &MetadataMap) -> Vec<String> {
    let values = metadata
        .get_all("authorization")
        .iter()
        .filter_map(|value| value.to_str().ok());
    let tokens = values.filter_map(|value| {
        let (scheme, token) = value.split_once(' ')?;
        let token = token.trim();
        (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
    });
    tokens.collect()
}

/// Every `clusterid`; an empty one is absent, an illegible one is unknown.
fn clusters(metadata: &MetadataMap) -> Vec<String> {
    let values = metadata
        .get_all("clusterid")
        .iter()
        .map(|value| value.to_str().unwrap_or("\u{fffd}").to_owned());
    values.filter(|value| !value.is_empty()).collect()
}

fn asked(metadata: Option<&Struct>, key: &str) -> Asked {
    match metadata
        .and_then(|metadata| metadata.fields.get(key))
        .map(|value| value.kind.as_ref())
    {
        None => Asked::Nothing,
        Some(Some(Kind::StringValue(text))) if text.is_empty() => Asked::Nothing,
        Some(Some(Kind::StringValue(text))) => Asked::Text(text.clone()),
        Some(_) => Asked::NotText,
    }
}

/// The one place where a refusal becomes a status (contract §5).
fn status(refusal: &Refusal) -> Status {
    let code = match refusal.code() {
        Code::InvalidArgument => tonic::Code::InvalidArgument,
        Code::DeadlineExceeded => tonic::Code::DeadlineExceeded,
        Code::PermissionDenied => tonic::Code::PermissionDenied,
        Code::ResourceExhausted => tonic::Code::ResourceExhausted,
        Code::Internal => tonic::Code::Internal,
        Code::Unavailable => tonic::Code::Unavailable,
        Code::Unauthenticated => tonic::Code::Unauthenticated,
    };
    Status::new(code, refusal.public_text())
}
