//! A workload's key and its CSR, as ztunnel writes it: empty subject, one critical URI SAN (RFC
//! 2986, RFC 5280 §4.2.1.6). The key lives in this process; this is the client's side, where that
//! is right.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair,
    RSA_PKCS1_SHA256,
};
use der::asn1::{BitString, Ia5String, OctetString, SetOfVec};
use der::oid::AssociatedOid;
use der::pem::{LineEnding, encode_string};
use der::{Decode, Encode, EncodePem};
use signers::Algorithm;
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::attr::Attribute;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::Name;
use x509_cert::request::{CertReq, CertReqInfo, ExtensionReq, Version};
use zeroize::Zeroizing;

use crate::x509::ca_template::algorithm_identifier;

/// What kind of key a workload makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KeyType {
    /// RSA, 2048 bits: pilot-agent's default.
    #[value(name = "rsa-2048")]
    Rsa2048,
    /// RSA, 4096 bits.
    #[value(name = "rsa-4096")]
    Rsa4096,
    /// ECDSA on P-256: ztunnel's.
    #[value(name = "p256")]
    P256,
    /// ECDSA on P-384.
    #[value(name = "p384")]
    P384,
}

/// A fresh private key of a workload.
pub struct WorkloadKey {
    pair: Pair,
    spki_der: Vec<u8>,
}

enum Pair {
    Ecdsa(EcdsaKeyPair, Algorithm),
    Rsa(Box<rsa::KeyPair>),
}

/// The cryptographic library refused; it never says why.
type Unspecified = aws_lc_rs::error::Unspecified;

impl WorkloadKey {
    /// Makes a key. RSA takes tens of milliseconds and more.
    pub fn generate(kind: KeyType) -> Result<Self, Unspecified> {
        let pair = match kind {
            KeyType::P256 => Pair::Ecdsa(
                EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?,
                Algorithm::EcdsaP256Sha256,
            ),
            KeyType::P384 => Pair::Ecdsa(
                EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING)?,
                Algorithm::EcdsaP384Sha384,
            ),
            KeyType::Rsa2048 => Pair::Rsa(Box::new(rsa::KeyPair::generate(rsa::KeySize::Rsa2048)?)),
            KeyType::Rsa4096 => Pair::Rsa(Box::new(rsa::KeyPair::generate(rsa::KeySize::Rsa4096)?)),
        };
        let spki: PublicKeyX509Der<'_> = match &pair {
            Pair::Ecdsa(pair, _) => pair.public_key().as_der()?,
            Pair::Rsa(pair) => pair.public_key().as_der()?,
        };
        Ok(Self {
            spki_der: spki.as_ref().to_vec(),
            pair,
        })
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn spki_der(&self) -> &[u8] {
        &self.spki_der
    }

    /// The private key as PKCS#8 PEM.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, Unspecified> {
        let der = match &self.pair {
            Pair::Ecdsa(pair, _) => Zeroizing::new(pair.to_pkcs8v1()?.as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let der: Pkcs8V1Der<'static> = pair.as_der()?;
                Zeroizing::new(der.as_ref().to_vec())
            }
        };
        encode_string("PRIVATE KEY", LineEnding::LF, &der)
            .map(Zeroizing::new)
            .map_err(|_| aws_lc_rs::error::Unspecified)
    }

    /// A CSR in PEM, signed by this key, with `identity` as its one critical URI SAN, or without
    /// SAN.
    pub fn csr(&self, identity: Option<&str>) -> der::Result<String> {
        let mut attributes = SetOfVec::new();
        if let Some(uri) = identity {
            let names = SubjectAltName(vec![GeneralName::UniformResourceIdentifier(
                Ia5String::new(uri)?,
            )]);
            let san = Extension {
                extn_id: SubjectAltName::OID,
                critical: true,
                extn_value: OctetString::new(names.to_der()?)?,
            };
            attributes.insert(Attribute::try_from(ExtensionReq(vec![san]))?)?;
        }
        let info = CertReqInfo {
            version: Version::V1,
            subject: Name::default(),
            public_key: SubjectPublicKeyInfoOwned::from_der(&self.spki_der)?,
            attributes,
        };
        let body = info.to_der()?;
        let signature = self
            .sign(&body)
            .map_err(|_| der::Error::from(der::ErrorKind::Failed))?;
        let csr = CertReq {
            info,
            algorithm: self.algorithm(),
            signature: BitString::from_bytes(&signature)?,
        };
        csr.to_pem(LineEnding::LF)
    }

    fn algorithm(&self) -> AlgorithmIdentifierOwned {
        algorithm_identifier(match &self.pair {
            Pair::Ecdsa(_, algorithm) => *algorithm,
            Pair::Rsa(_) => Algorithm::RsaPkcs1Sha256,
        })
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Unspecified> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Ecdsa(pair, _) => Ok(pair.sign(&random, message)?.as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)?;
                Ok(signature)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// What `openssl req -verify` prints of a CSR; fails where it does not verify.
    fn openssl_reads(csr: &str) -> String {
        let mut openssl = Command::new("openssl")
            .args(["req", "-verify", "-noout", "-text", "-nameopt", "RFC2253"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("openssl is installed by ./run-tests");
        openssl
            .stdin
            .take()
            .unwrap()
            .write_all(csr.as_bytes())
            .unwrap();
        let output = openssl.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.contains("OK"), "{said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn openssl_verifies_a_csr_of_every_key_type() {
        let identity = "spiffe://cluster.local/ns/default/sa/demo";
        for (kind, name) in [
            (KeyType::P256, "P-256"),
            (KeyType::P384, "P-384"),
            (KeyType::Rsa2048, "2048 bit"),
            (KeyType::Rsa4096, "4096 bit"),
        ] {
            let text = openssl_reads(
                &WorkloadKey::generate(kind)
                    .unwrap()
                    .csr(Some(identity))
                    .unwrap(),
            );
            assert!(text.contains(name), "{text}");
            assert!(text.contains("Alternative Name: critical"), "{text}");
            assert!(text.contains(&format!("URI:{identity}")), "{text}");
            assert!(text.lines().any(|line| line.trim() == "Subject:"), "{text}");
        }
    }

    #[test]
    fn without_an_identity_there_is_no_san() {
        let text = openssl_reads(
            &WorkloadKey::generate(KeyType::P256)
                .unwrap()
                .csr(None)
                .unwrap(),
        );
        assert!(!text.contains("Alternative Name"), "{text}");
    }

    #[test]
    fn openssl_reads_the_private_key() {
        for kind in [KeyType::P256, KeyType::P384, KeyType::Rsa2048] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("key.pem");
            std::fs::write(
                &path,
                WorkloadKey::generate(kind).unwrap().to_pem().unwrap(),
            )
            .unwrap();
            let status = Command::new("openssl")
                .args(["pkey", "-noout", "-check", "-in"])
                .arg(&path)
                .stdout(Stdio::null())
                .status()
                .unwrap();
            assert!(status.success());
        }
    }
}
