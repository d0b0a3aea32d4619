//! How a token makes a key pair: what the ceremony's and those that are thrown away have in common.
//! The templates have what is needed and nothing at its default, for each attribute more is one
//! that some token refuses. Whatever a token gives a key beyond that is read back.

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::Session;

use super::error::sign_error;
use super::key::{P256_PARAMS, P384_PARAMS};
use crate::{KeyKind, SignError};

/// A key pair that is wanted.
pub(super) struct KeyPair<'a> {
    pub(super) kind: KeyKind,
    pub(super) id: &'a [u8],
    pub(super) label: &'a str,
    /// CKA_TOKEN: whether it outlives the session.
    pub(super) stays: bool,
}

impl KeyPair<'_> {
    /// Has the token make it: the public half's handle and the private one's. `what` begins the
    /// sentence of a refusal, which says which attribute the token does not take, where that can be
    /// found out.
    pub(super) fn generate(
        &self,
        session: &Session,
        what: &str,
    ) -> Result<(ObjectHandle, ObjectHandle), SignError> {
        let (public, private) = (self.public(), self.private());
        self.attempt(session, self.stays, &public, &private)
            .map_err(|error| match error {
                Error::Pkcs11(rv, _) if is_of_the_template(rv) => {
                    let refused = self
                        .refused(session)
                        .unwrap_or_else(|| "none of its attributes alone".to_owned());
                    SignError::Rejected(format!(
                        "{}; the token does not take {refused}",
                        sign_error(what, &error).cause()
                    ))
                }
                _ => sign_error(what, &error),
            })
    }

    fn public(&self) -> Vec<Attribute> {
        let parameters = match self.kind.modulus_bits() {
            Some(bits) => vec![
                Attribute::ModulusBits(u64::from(bits).into()),
                Attribute::PublicExponent(vec![1, 0, 1]),
            ],
            None if self.kind == KeyKind::P384 => vec![Attribute::EcParams(P384_PARAMS.to_vec())],
            None => vec![Attribute::EcParams(P256_PARAMS.to_vec())],
        };
        [self.names(), vec![Attribute::Verify(true)], parameters].concat()
    }

    fn private(&self) -> Vec<Attribute> {
        let uses = vec![
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
        ];
        [self.names(), uses].concat()
    }

    fn names(&self) -> Vec<Attribute> {
        vec![
            Attribute::Id(self.id.to_vec()),
            Attribute::Label(self.label.as_bytes().to_vec()),
        ]
    }

    fn attempt(
        &self,
        session: &Session,
        stays: bool,
        public: &[Attribute],
        private: &[Attribute],
    ) -> Result<(ObjectHandle, ObjectHandle), Error> {
        let mechanism = if self.kind.modulus_bits().is_some() {
            Mechanism::RsaPkcsKeyPairGen
        } else {
            Mechanism::EccKeyPairGen
        };
        let stays = [Attribute::Token(stays)];
        session.generate_key_pair(
            &mechanism,
            &[public, &stays].concat(),
            &[private, &stays].concat(),
        )
    }

    /// Which attribute the token does not take: the one without which it makes such a pair, for the
    /// session alone and destroyed at once.
    fn refused(&self, session: &Session) -> Option<String> {
        let (public, private) = (self.public(), self.private());
        let without = |all: &[Attribute], at: usize| [&all[..at], &all[at + 1..]].concat();
        let works = |public: &[Attribute], private: &[Attribute]| match self
            .attempt(session, false, public, private)
        {
            Ok((one, other)) => {
                // They end with the session in any case.
                let _ = (session.destroy_object(one), session.destroy_object(other));
                true
            }
            Err(_) => false,
        };
        if self.stays && works(&public, &private) {
            return Some("CKA_TOKEN".to_owned());
        }
        let of_public = (0..public.len()).find(|at| works(&without(&public, *at), &private));
        let of_private = || (0..private.len()).find(|at| works(&public, &without(&private, *at)));
        match of_public {
            Some(at) => Some(format!("{} of the public key", public[at].attribute_type())),
            None => of_private()
                .map(|at| format!("{} of the private key", private[at].attribute_type())),
        }
    }
}

/// What a token answers that does not take an attribute.
fn is_of_the_template(rv: RvError) -> bool {
    matches!(
        rv,
        RvError::AttributeTypeInvalid
            | RvError::AttributeValueInvalid
            | RvError::AttributeReadOnly
            | RvError::TemplateInconsistent
            | RvError::TemplateIncomplete
    )
}

/// For CKA_ID.
pub(super) fn random_id() -> Result<Vec<u8>, SignError> {
    let mut id = vec![0; 16];
    getrandom::fill(&mut id)
        .map_err(|e| SignError::Rejected(format!("the system has no random numbers: {e}")))?;
    Ok(id)
}
