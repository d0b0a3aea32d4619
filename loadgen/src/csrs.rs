//! Workload keys and their CSRs in the shape that ztunnel sends: empty subject, one URI SAN.
//! Written by rcgen, which ztunnel uses too. The private keys are thrown away: nobody asks for a
//! certificate in order to use it here.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};

use crate::arguments::KeyKind;
use crate::exit::Exit;

/// RSA keys take tens of milliseconds to make: at most so many, each in many CSRs that differ by
/// their identity.
const RSA_KEYS: usize = 64;

/// Makes `count` distinct CSRs, PEM; the `n`th asks for `identities[n % identities.len()]`.
pub fn make(
    kind: KeyKind,
    count: usize,
    identities: &[Option<String>],
    made: &(dyn Fn() + Sync),
) -> Result<Vec<String>, Exit> {
    let keys = match kind {
        KeyKind::Rsa2048 => crate::prepare::in_parallel(count.min(RSA_KEYS), |_| key(kind))?,
        KeyKind::P256 | KeyKind::P384 => Vec::new(),
    };
    crate::prepare::in_parallel(count, |n| {
        let own;
        let key = match keys.get(n % RSA_KEYS) {
            Some(key) => key,
            None => {
                own = key(kind)?;
                &own
            }
        };
        made();
        csr(key, identities[n % identities.len()].as_deref())
    })
}

fn key(kind: KeyKind) -> Result<KeyPair, Exit> {
    match kind {
        KeyKind::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        KeyKind::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        KeyKind::Rsa2048 => {
            KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)
        }
    }
    .map_err(|error| Exit::missing(format!("cannot make a key: {error}")))
}

fn csr(key: &KeyPair, identity: Option<&str>) -> Result<String, Exit> {
    let failed =
        |error: rcgen::Error| Exit::usage(format!("cannot make a CSR for {identity:?}: {error}"));
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(identity) = identity {
        params.subject_alt_names = vec![SanType::URI(identity.try_into().map_err(failed)?)];
    }
    params
        .serialize_request(key)
        .and_then(|csr| csr.pem())
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn distinct(kind: KeyKind, count: usize) -> usize {
        let identities: Vec<_> = (0..3)
            .map(|n| Some(format!("spiffe://cluster.local/ns/a/sa/{n}")))
            .collect();
        make(kind, count, &identities, &|| {})
            .unwrap()
            .into_iter()
            .collect::<BTreeSet<_>>()
            .len()
    }

    #[test]
    fn every_csr_is_another_one() {
        assert_eq!(distinct(KeyKind::P256, 50), 50);
        assert_eq!(distinct(KeyKind::P384, 5), 5);
        assert_eq!(distinct(KeyKind::Rsa2048, 3), 3);
    }
}
