//! A CA made by rcgen, an encoder independent of ours: for issuers on file keys, for client
//! certificates of every shape, and for strangers.

#![allow(
    clippy::disallowed_methods,
    reason = "tests choose times around the real clock"
)]

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

const DAY: Duration = Duration::from_secs(86_400);

/// A CA certificate and its key.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, PEM.
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// PKCS#8.
    pub key: String,
}

impl Authority {
    /// A self-signed root that ends `life` from now.
    pub fn root(name: &str, life: Duration) -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        let params = ca_params(name, life);
        let certificate = params.self_signed(&key).expect("signed").pem();
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    /// An intermediate under this one that ends `life` from now.
    pub fn intermediate(&self, name: &str, life: Duration) -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        let params = ca_params(name, life);
        let certificate = params.signed_by(&key, &self.issuer).expect("signed").pem();
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    /// The certificate of an intermediate under this one made anew: the same name and key, ending
    /// `life` from now.
    pub fn renewed(&self, name: &str, life: Duration, intermediate: &Self) -> Self {
        let key = KeyPair::from_pem(&intermediate.key()).expect("a key");
        let params = ca_params(name, life);
        let certificate = params.signed_by(&key, &self.issuer).expect("signed").pem();
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    /// Its certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its key, PKCS#8 PEM.
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A client certificate with these SANs that ends `life` from now.
    pub fn client(&self, sans: &[San<'_>], life: Duration) -> Issued {
        self.client_until(sans, SystemTime::now() + life)
    }

    /// A client certificate that ended a minute ago.
    pub fn expired_client(&self, sans: &[San<'_>]) -> Issued {
        self.client_until(sans, SystemTime::now() - Duration::from_secs(60))
    }

    /// A client certificate for a database's role: its common name, no SAN.
    pub fn role(&self, name: &str) -> Issued {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params, SystemTime::now() + DAY)
    }

    /// A server's certificate with these SANs.
    pub fn server(&self, sans: &[San<'_>]) -> Issued {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = sans.iter().map(San::rcgen).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params, SystemTime::now() + DAY)
    }

    fn client_until(&self, sans: &[San<'_>], end: SystemTime) -> Issued {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = sans.iter().map(San::rcgen).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params, end)
    }

    fn issue(&self, mut params: CertificateParams, end: SystemTime) -> Issued {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        params.not_before = (SystemTime::now() - Duration::from_secs(3600)).into();
        params.not_after = end.into();
        params.use_authority_key_identifier_extension = true;
        Issued {
            certificate: params.signed_by(&key, &self.issuer).expect("signed").pem(),
            key: key.serialize_pem(),
        }
    }
}

/// A subject alternative name.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum San<'a> {
    Uri(&'a str),
    Dns(&'a str),
    Ip(IpAddr),
}

impl San<'_> {
    fn rcgen(&self) -> SanType {
        match self {
            Self::Uri(uri) => SanType::URI((*uri).try_into().expect("ASCII")),
            Self::Ip(address) => SanType::IpAddress(*address),
            Self::Dns(name) => SanType::DnsName((*name).try_into().expect("ASCII")),
        }
    }
}

fn ca_params(name: &str, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (SystemTime::now() - Duration::from_secs(3600)).into();
    params.not_after = (SystemTime::now() + life).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}
