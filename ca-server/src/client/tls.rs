//! The TLS side of the client: rustls over aws-lc, ALPN `h2`, roots and client certificate from
//! PEM.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::Target;
use crate::x509::path::{self, Anchors, Usage};
use crate::x509::pem;

/// A name, certificate or key that TLS cannot use.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

/// A client certificate with its chain, leaf first, and its key.
#[derive(Debug)]
pub struct ClientIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Clone for ClientIdentity {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl ClientIdentity {
    /// Reads a chain and a key from PEM.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let blocks = pem::certificates(chain)
            .map_err(|error| TlsError(format!("client certificate: {error}")))?;
        let chain: Vec<_> = blocks
            .into_iter()
            .map(|block| CertificateDer::from(block.der))
            .collect();
        let key = key.strip_prefix(b"\xef\xbb\xbf").unwrap_or(key);
        // What the parser says may show the key.
        let unread = |_| {
            TlsError("client key: it holds no private key in PEM: PKCS#8, EC (SEC 1) and RSA (PKCS#1) are read, all unencrypted".into())
        };
        let key = PrivateKeyDer::from_pem_slice(key).map_err(unread)?;
        Ok(Self { chain, key })
    }

    /// The leaf, DER.
    pub fn leaf(&self) -> &[u8] {
        &self.chain[0]
    }
}

/// The configuration of one connection. No session is ever resumed: a resumed one would skip the
/// certificate checks.
pub(super) fn config(target: &Target) -> Result<Arc<ClientConfig>, TlsError> {
    let wrong = |error: rustls::Error| TlsError(error.to_string());
    let provider = Arc::new(default_provider());
    let verifier = Verifier {
        anchors: target.roots.anchors().clone(),
        algorithms: provider.signature_verification_algorithms,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(wrong)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match target.identity.clone() {
        Some(identity) => builder
            .with_client_auth_cert(identity.chain, identity.key)
            .map_err(wrong)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// The CA's certificate by our own path validation, so that what the daemon accepts of a chain its
/// client does, too; names and handshakes by rustls.
#[derive(Debug)]
struct Verifier {
    anchors: Anchors,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        path::verify_in_tls(leaf, others, &self.anchors, Usage::Server, now)?;
        verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A DNS name or IP address to check the CA's certificate against.
pub(super) fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_owned())
        .map_err(|_| TlsError(format!("{name:?} is neither a DNS name nor an IP address")))
}

/// The host of `host:port`, without the brackets of an IPv6 address.
pub(super) fn host(authority: &str) -> Option<&str> {
    let (host, port) = authority.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    match host.strip_prefix('[') {
        Some(rest) => rest
            .strip_suffix(']')
            .filter(|host| host.parse::<IpAddr>().is_ok()),
        None => (!host.is_empty() && !host.contains([':', '/'])).then_some(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        assert_eq!(host("localhost:15012"), Some("localhost"));
        assert_eq!(host("[::1]:15012"), Some("::1"));
        for wrong in [
            "localhost",
            "localhost:",
            ":15012",
            "localhost:99999",
            "::1:15012",
            "[::1]",
            "a/b:1",
            "",
        ] {
            assert_eq!(host(wrong), None, "{wrong:?}");
        }
    }
}
