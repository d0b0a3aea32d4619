//! Client certificates, for workloads that renew with the certificate they have (`PROV_CERT`).
//! Verified against our own roots at every call, not only in the handshake: a kept connection
//! outlives its certificate, and a reload may take a root away.

use std::sync::Arc;

use der::Decode;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_cert::Certificate;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::Credentials;
use crate::evidence::{Credential, Evidence};
use crate::policy::TrustDomains;
use crate::refusal::{Reason, Refusal};
use crate::spiffe::SpiffeId;
use crate::timestamp::Timestamp;
use crate::x509::path::{self, Anchors, BadPath, Usage};

/// Certificates of these roots, naming identities of these trust domains.
#[derive(Debug)]
pub struct ClientCertificates {
    verifier: Arc<Verifier>,
    trust_domains: TrustDomains,
}

impl ClientCertificates {
    /// Verifies against `roots`, DER.
    pub fn new<'a>(
        roots: impl Iterator<Item = &'a [u8]>,
        trust_domains: TrustDomains,
    ) -> Result<Self, String> {
        let roots: Vec<&[u8]> = roots.collect();
        let unfit = |why: &dyn std::fmt::Display| format!("a root cannot be a trust anchor: {why}");
        let mut store = RootCertStore::empty();
        for root in &roots {
            store
                .add(CertificateDer::from(*root))
                .map_err(|error| unfit(&error))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let handshakes = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider)
            .allow_unauthenticated()
            .build()
            .map_err(|error| error.to_string())?;
        let anchors = Anchors::new(roots).map_err(|error| unfit(&error))?;
        Ok(Self {
            verifier: Arc::new(Verifier {
                handshakes,
                anchors,
            }),
            trust_domains,
        })
    }

    /// The verifier for the handshake: a certificate is asked for, never required.
    pub fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        self.verifier.clone()
    }

    /// The third is when the certificate ends.
    pub(super) fn authenticate(
        &self,
        credentials: &Credentials,
        now: Timestamp,
    ) -> Result<Option<(SpiffeId, Evidence, Timestamp)>, Refusal> {
        let Some([leaf, intermediates @ ..]) = credentials.certificates.as_deref() else {
            return Ok(None);
        };
        let bad = |why: &dyn std::fmt::Display| {
            Refusal::new(
                Reason::BadCredentials,
                format_args!("client certificate: {why}"),
            )
        };
        path::verify(
            leaf,
            intermediates,
            &self.verifier.anchors,
            Usage::Client,
            now,
        )
        .map_err(|error| bad(&error))?;
        let certificate = Certificate::from_der(leaf).map_err(|_| bad(&BadPath::Unreadable))?;
        let uri = only_uri(&certificate).ok_or_else(|| bad(&"it has not exactly one URI SAN"))?;
        let identity = SpiffeId::parse(&uri)
            .ok_or_else(|| bad(&format_args!("{uri:?} is no identity of a workload")))?;
        if !self.trust_domains.accept(identity.trust_domain()) {
            return Err(bad(&format_args!(
                "trust domain of {identity} is not accepted"
            )));
        }
        let tbs = certificate.tbs_certificate();
        let evidence = Evidence {
            credential: Credential::ClientCertificate,
            issuer: Some(tbs.issuer().to_string()),
            subject: Some(uri),
            token: Some(hex::encode(tbs.serial_number().as_bytes())),
            cluster: None,
            pod: None,
            peer: credentials.peer,
        };
        let ends = tbs.validity().not_after.to_unix_duration().as_secs();
        Ok(Some((
            identity,
            evidence,
            Timestamp::from_seconds(i64::try_from(ends).unwrap_or(i64::MAX)),
        )))
    }
}

/// In the handshake: the path by our own validation, everything else by rustls.
#[derive(Debug)]
struct Verifier {
    handshakes: Arc<dyn ClientCertVerifier>,
    anchors: Anchors,
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.handshakes.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.handshakes.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        path::verify_in_tls(leaf, others, &self.anchors, Usage::Client, now)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.handshakes
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.handshakes
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.handshakes.supported_verify_schemes()
    }
}

/// The one URI SAN; SANs of other kinds are passed over.
fn only_uri(certificate: &Certificate) -> Option<String> {
    let (_, names) = certificate
        .tbs_certificate()
        .get_extension::<SubjectAltName>()
        .ok()??;
    let mut uris = names.0.iter().filter_map(|name| match name {
        GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str()),
        _ => None,
    });
    let first = uris.next()?;
    uris.next().is_none().then(|| first.to_owned())
}
