//! Client certificates, for workloads that renew with the certificate they have (`PROV_CERT`). Verified against our own roots at every
//! call, not only in the handshake: a kept connection outlives its certificate, and a reload may take a root away.

use std::sync::Arc;
use std::time::Duration;

use der::Decode;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
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

/// Certificates of these roots, naming identities of these trust domains.
#[derive(Debug)]
pub struct ClientCertificates {
    verifier: Arc<dyn ClientCertVerifier>,
    trust_domains: TrustDomains,
}

impl ClientCertificates {
    /// Verifies against `roots`, DER.
    pub fn new<'a>(roots: impl Iterator<Item = &'a [u8]>, trust_domains: TrustDomains) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(CertificateDer::from(root).into_owned()).map_err(|error| format!("a root cannot be a trust anchor: {error}"))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider)
            .allow_unauthenticated()
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { verifier, trust_domains })
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
        let bad = |why: &dyn std::fmt::Display| Refusal::new(Reason::BadCredentials, format_args!("client certificate: {why}"));
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now.seconds().unsigned_abs()));
        self.verifier.verify_client_cert(leaf, intermediates, now).map_err(|error| bad(&error))?;
        let certificate = Certificate::from_der(leaf).map_err(|error| bad(&error))?;
        let uri = only_uri(&certificate).ok_or_else(|| bad(&"it has not exactly one URI SAN"))?;
        let identity = SpiffeId::parse(&uri).ok_or_else(|| bad(&format_args!("{uri:?} is no identity of a workload")))?;
        if !self.trust_domains.accept(identity.trust_domain()) {
            return Err(bad(&format_args!("trust domain of {identity} is not accepted")));
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
        Ok(Some((identity, evidence, Timestamp::from_seconds(i64::try_from(ends).unwrap_or(i64::MAX)))))
    }
}

/// The one URI SAN; SANs of other kinds are passed over.
fn only_uri(certificate: &Certificate) -> Option<String> {
    let (_, names) = certificate.tbs_certificate().get_extension::<SubjectAltName>().ok()??;
    let mut uris = names.0.iter().filter_map(|name| match name {
        GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str()),
        _ => None,
    });
    let first = uris.next()?;
    uris.next().is_none().then(|| first.to_owned())
}
