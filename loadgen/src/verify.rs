//! Verifies kept answers once the clock has stopped: a path of good signatures from the leaf to
//! roots that we had before (RFC 5280 §6), our CSR's key in the leaf, and the identity that the
//! token stands for.

use std::sync::Arc;

use der::{DecodePem, Encode};
use istio_api::IstioCertificateResponse;
use prost::Message;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::request::CertReq;

use crate::exit::Exit;
use crate::requests::Requests;

/// Against these roots.
pub struct Verifier(Arc<dyn ClientCertVerifier>);

/// What was verified, and what did not hold: one sentence each.
#[derive(Debug, Default)]
pub struct Verified {
    pub count: usize,
    pub wrong: Vec<String>,
}

impl Verifier {
    /// Roots of issued chains.
    pub fn new(roots: RootCertStore) -> Result<Self, Exit> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let built = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        built
            .map(Self)
            .map_err(|error| Exit::usage(format!("the roots: {error}")))
    }

    /// Verifies answers by their call's number at a time since 1970.
    pub fn all(&self, kept: &[(u64, Vec<u8>)], requests: &Requests, now: UnixTime) -> Verified {
        let verdicts = crate::prepare::in_parallel(kept.len(), |n| {
            let (number, answer) = &kept[n];
            Ok(self.one(
                answer,
                requests.csr(*number),
                requests.identity(*number),
                now,
            ))
        });
        let wrong = verdicts
            .unwrap_or_default()
            .into_iter()
            .filter_map(Result::err)
            .collect();
        Verified {
            count: kept.len(),
            wrong,
        }
    }

    fn one(
        &self,
        answer: &[u8],
        csr: &str,
        identity: Option<&str>,
        now: UnixTime,
    ) -> Result<(), String> {
        let chain = IstioCertificateResponse::decode(answer)
            .map_err(|error| format!("the answer: {error}"))?
            .cert_chain;
        let text = chain.concat();
        let certificates: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(text.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| format!("the chain: {error}"))?;
        let [leaf, others @ ..] = certificates.as_slice() else {
            return Err("the chain is empty".into());
        };
        self.0
            .verify_client_cert(leaf, others, now)
            .map_err(|error| format!("the leaf does not chain to the roots: {error}"))?;
        let parsed = Certificate::from_der(leaf).map_err(|error| format!("the leaf: {error}"))?;
        let csr = CertReq::from_pem(csr).map_err(|error| format!("our CSR: {error}"))?;
        if parsed.tbs_certificate().subject_public_key_info().to_der()
            != csr.info.public_key.to_der()
        {
            return Err("the leaf is not for the CSR's key".into());
        }
        let san = parsed
            .tbs_certificate()
            .get_extension::<SubjectAltName>()
            .map_err(|error| format!("the leaf's names: {error}"))?;
        let names = san
            .map(|(_, SubjectAltName(names))| names)
            .unwrap_or_default();
        match (identity, names.as_slice()) {
            (Some(identity), [GeneralName::UniformResourceIdentifier(uri)])
                if uri.as_str() == identity =>
            {
                Ok(())
            }
            (None, [_, ..]) => Ok(()),
            _ => Err(format!(
                "the leaf is for {names:?}, expected was {identity:?}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa,
        Issuer, KeyPair, SanType,
    };

    use super::*;

    struct Authority {
        certificate: rcgen::Certificate,
        issuer: Issuer<'static, KeyPair>,
    }

    fn authority() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority {
            certificate: params.self_signed(&key).unwrap(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A CSR, and what it is made of.
    fn csr(identity: &str) -> (String, CertificateParams, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        (pem, params, key)
    }

    impl Authority {
        fn answer(&self, params: &CertificateParams, key: &KeyPair) -> Vec<u8> {
            let leaf = params.signed_by(key, &self.issuer).unwrap();
            IstioCertificateResponse {
                cert_chain: vec![leaf.pem(), self.certificate.pem()],
            }
            .encode_to_vec()
        }

        fn verifier(&self) -> Verifier {
            let mut roots = RootCertStore::empty();
            roots.add(self.certificate.der().clone()).unwrap();
            Verifier::new(roots).unwrap()
        }
    }

    const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
    const DEMO: &str = "spiffe://cluster.local/ns/default/sa/demo";

    #[test]
    fn a_good_chain_holds() {
        let (ca, (csr, params, key)) = (authority(), csr(DEMO));
        ca.verifier()
            .one(&ca.answer(&params, &key), &csr, Some(DEMO), NOW)
            .unwrap();
    }

    #[test]
    fn another_key_another_identity_another_root_and_no_chain_are_noticed() {
        let (ca, (own, params, key)) = (authority(), csr(DEMO));
        let answer = ca.answer(&params, &key);
        let wrong = |verifier: Verifier, answer: &[u8], csr: &str, identity| {
            verifier.one(answer, csr, Some(identity), NOW).unwrap_err()
        };
        assert!(
            wrong(ca.verifier(), &answer, &csr(DEMO).0, DEMO).contains("not for the CSR's key")
        );
        assert!(
            wrong(
                ca.verifier(),
                &answer,
                &own,
                "spiffe://cluster.local/ns/default/sa/other"
            )
            .contains("expected was")
        );
        assert!(wrong(authority().verifier(), &answer, &own, DEMO).contains("does not chain"));
        assert!(wrong(ca.verifier(), &[], &own, DEMO).contains("empty"));
    }
}
