//! How a token makes a key pair: what the ceremony's and those that are thrown away have in common.

use cryptoki::mechanism::Mechanism;
use cryptoki::object::Attribute;

use super::key::{P256_PARAMS, P384_PARAMS};
use crate::{KeyKind, SignError};

/// How a token makes a key pair of this kind, and what the public half must be told.
pub(super) fn generation(kind: KeyKind) -> (Mechanism<'static>, Vec<Attribute>) {
    match kind.modulus_bits() {
        Some(bits) => {
            (Mechanism::RsaPkcsKeyPairGen, vec![Attribute::ModulusBits(u64::from(bits).into()), Attribute::PublicExponent(vec![1, 0, 1])])
        }
        None if kind == KeyKind::P384 => (Mechanism::EccKeyPairGen, vec![Attribute::EcParams(P384_PARAMS.to_vec())]),
        None => (Mechanism::EccKeyPairGen, vec![Attribute::EcParams(P256_PARAMS.to_vec())]),
    }
}

/// What the public half may be used for.
pub(super) const PUBLIC_USES: [Attribute; 5] = [
    Attribute::Private(false),
    Attribute::Verify(true),
    Attribute::Encrypt(false),
    Attribute::Wrap(false),
    Attribute::VerifyRecover(false),
];

/// What the private half may be used for, and that it never leaves.
pub(super) const PRIVATE_USES: [Attribute; 8] = [
    Attribute::Private(true),
    Attribute::Sensitive(true),
    Attribute::Extractable(false),
    Attribute::Sign(true),
    Attribute::SignRecover(false),
    Attribute::Decrypt(false),
    Attribute::Unwrap(false),
    Attribute::Derive(false),
];

/// For CKA_ID.
pub(super) fn random_id() -> Result<Vec<u8>, SignError> {
    let mut id = vec![0; 16];
    getrandom::fill(&mut id).map_err(|e| SignError::Rejected(format!("the system has no random numbers: {e}")))?;
    Ok(id)
}
