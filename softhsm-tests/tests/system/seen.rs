//! What a client sees in an answer, read with an X.509 library, never with our own code.

use std::sync::Arc;

use der::{Decode, Encode};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tonic::{Code, Status};
use x509_cert::Certificate;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// Every certificate in a PEM text.
pub fn certificates(pem: &str) -> Vec<Certificate> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(|der| Certificate::from_der(&der.expect("PEM")).expect("a certificate"))
        .collect()
}

/// The leaf of an answer.
pub fn leaf(chain: &[String]) -> Certificate {
    let mut leaf = certificates(&chain[0]);
    assert_eq!(leaf.len(), 1, "one certificate in the first string");
    leaf.remove(0)
}

/// The SANs of a certificate, and whether the extension is critical.
pub fn sans(certificate: &Certificate) -> (bool, Vec<GeneralName>) {
    let (critical, names) = certificate
        .tbs_certificate()
        .get_extension::<SubjectAltName>()
        .expect("readable")
        .expect("there");
    (critical, names.0)
}

/// The only identity of an answer's leaf; fails unless it is one critical URI SAN.
pub fn identity(chain: &[String]) -> String {
    match sans(&leaf(chain)) {
        (true, names) => match names.as_slice() {
            [GeneralName::UniformResourceIdentifier(uri)] => uri.to_string(),
            other => panic!("not exactly one URI SAN: {other:?}"),
        },
        (false, names) => panic!("SAN is not critical: {names:?}"),
    }
}

/// Seconds since the epoch of NotBefore and NotAfter.
pub fn validity(certificate: &Certificate) -> (i64, i64) {
    let validity = certificate.tbs_certificate().validity();
    let seconds = |time: &x509_cert::time::Time| {
        i64::try_from(time.to_unix_duration().as_secs()).expect("small")
    };
    (seconds(&validity.not_before), seconds(&validity.not_after))
}

/// The granted lifetime in seconds, counted from now; a call takes a few seconds at most.
pub fn lifetime(chain: &[String]) -> i64 {
    validity(&leaf(chain)).1 - now()
}

/// Now, in seconds since the epoch.
pub fn now() -> i64 {
    i64::try_from(
        std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .expect("after 1970")
            .as_secs(),
    )
    .expect("small")
}

/// `certificate` bears a good signature of `issuer`, by the `openssl` command: a second opinion.
pub fn openssl_verifies(chain: &[String], roots: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("writable");
        path
    };
    let (leaf, roots) = (file("leaf.pem", &chain[0]), file("roots.pem", roots));
    let middle = file("middle.pem", &chain[1..chain.len() - 1].concat());
    let mut command = std::process::Command::new("openssl");
    command
        .args(["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile"])
        .arg(roots);
    if chain.len() > 2 {
        command.arg("-untrusted").arg(middle);
    }
    let output = command.arg(leaf).output().expect("openssl runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Verifies many answers up to the root, as a peer of the workload would, with no process for each.
pub struct Chains(Arc<dyn ClientCertVerifier>);

impl Chains {
    /// Of answers under these roots, PEM.
    pub fn under(roots: &str) -> Self {
        let mut store = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
            store.add(root.expect("PEM")).expect("a root");
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Self(
            WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider)
                .build()
                .expect("a verifier"),
        )
    }

    /// The leaf of an answer bears signatures up to a root.
    pub fn assert_verified(&self, chain: &[String]) {
        let der = |pem: &String| CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        let middle: Vec<_> = chain[1..chain.len() - 1].iter().map(der).collect();
        if let Err(error) = self
            .0
            .verify_client_cert(&der(&chain[0]), &middle, UnixTime::now())
        {
            panic!("a certificate that does not verify: {error}\n{}", chain[0]);
        }
    }
}

/// SubjectPublicKeyInfo of a certificate, DER.
pub fn public_key(certificate: &Certificate) -> Vec<u8> {
    certificate
        .tbs_certificate()
        .subject_public_key_info()
        .to_der()
        .expect("DER")
}

/// The one refusal that every failed authentication shows.
pub fn assert_opaque(refused: Result<Vec<String>, Status>) {
    let status = refused.expect_err("refused");
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unauthenticated, "request authenticate failure")
    );
}

/// A refusal with this code.
pub fn assert_refused(refused: Result<Vec<String>, Status>, code: Code) -> String {
    let status = refused.expect_err("refused");
    assert_eq!(status.code(), code, "{status}");
    status.message().to_owned()
}
