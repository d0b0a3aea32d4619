//! One private key in one session: finding it, reading its public key, signing with it.

use std::collections::BTreeSet;
use std::sync::Arc;

use aws_lc_rs::digest;
use cryptoki::error::Error;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use der::asn1::UintRef;
use der::{Encode, Sequence};

use super::error::{failure, in_trouble, sign_error};
use super::module::Module;
use super::raw::Raw;
use super::token::OpenSession;
use crate::probe::{self, Proof};
use crate::{Algorithm, Device, Failure, PROBE, Pkcs11Uri, PublicKey, SignError};

/// CKA_EC_PARAMS of the curves that we support: their object identifiers in DER (RFC 5480
/// §2.1.1.1).
pub(super) const P256_PARAMS: [u8; 10] =
    [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
pub(super) const P384_PARAMS: [u8; 7] = [0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];

/// The DigestInfo of SHA-256 before its 32 bytes (RFC 8017 §9.2, note 1).
const SHA256_DIGEST_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];

/// What is known of a key before it is found.
#[derive(Clone, Copy, Debug, Default)]
pub struct KnownKey<'a> {
    /// Its CKA_ID, from an earlier session. It counts more than a label, which several keys may
    /// have had.
    pub id: Option<&'a [u8]>,
    /// The public key that it must have, which is believed, after one signature, where the token
    /// tells none.
    pub public_key: Option<&'a PublicKey>,
}

/// One session with one private key.
pub struct Pkcs11Device {
    session: OpenSession,
    raw: Arc<Raw>,
    key: ObjectHandle,
    recipe: Recipe,
    public_key: PublicKey,
    // Whether the token has told it; otherwise it is believed.
    is_told: bool,
    id: Vec<u8>,
    name: String,
    // Some tokens want no login; only one that was there can be missed.
    logged_in: bool,
    last_failure: Failure,
}

/// How to get an X.509 signature from the token. `Mechanism` is not Send, so it is made at each
/// use.
#[derive(Clone, Copy, Debug)]
enum Recipe {
    /// We hash, CKM_ECDSA answers r‖s.
    Ecdsa(&'static digest::Algorithm),
    /// CKM_SHA256_RSA_PKCS hashes and signs.
    RsaSha256,
    /// We hash, CKM_RSA_PKCS signs the DigestInfo.
    RsaDigestInfo,
}

impl Pkcs11Device {
    pub(super) fn find(
        module: &Module,
        slot: Slot,
        session: OpenSession,
        uri: &Pkcs11Uri,
        known: KnownKey<'_>,
    ) -> Result<Self, SignError> {
        let name = uri.to_string();
        let raw = session.get().map_err(|e| sign_error(&name, &e))?;
        let found = match known.id {
            Some(id) if !id.is_empty() => private_keys(
                raw,
                Wanted {
                    id: Some(id),
                    label: None,
                },
            ),
            _ => named_private_keys(
                raw,
                Wanted {
                    id: uri.id.as_deref(),
                    label: uri.object.as_deref(),
                },
            ),
        };
        let key = match found.map_err(|e| sign_error(&name, &e))?[..] {
            [key] => key,
            [] => {
                return Err(SignError::Rejected(format!(
                    "the token holds no private key that {name} names"
                )));
            }
            [_, _, ..] => {
                return Err(SignError::Rejected(format!(
                    "the token holds more than one private key that {name} names: add id=…"
                )));
            }
        };
        Self::of(module, slot, session, key, None, known.public_key, name)
    }

    /// The device on a key that was found, or made, in this very session; `public` is its other
    /// half where that is known. `believed` is its public key where the token tells none, which is
    /// for `prove` to show.
    pub(super) fn of(
        module: &Module,
        slot: Slot,
        mut session: OpenSession,
        key: ObjectHandle,
        public: Option<ObjectHandle>,
        believed: Option<&PublicKey>,
        name: String,
    ) -> Result<Self, SignError> {
        let logged_in = session.logged_in().map_err(|e| sign_error(&name, &e))?;
        let raw = session.get().map_err(|e| sign_error(&name, &e))?;
        let read = Attributes::for_signing(raw, key).map_err(|e| sign_error(&name, &e))?;
        if read.flag(AttributeType::Sign) == Some(false) {
            return Err(SignError::Rejected(format!(
                "the private key that {name} names is not allowed to sign (CKA_SIGN is false)"
            )));
        }
        if read.flag(AttributeType::AlwaysAuthenticate) == Some(true) {
            let text = format!(
                "the private key that {name} names wants its PIN for each signature (CKA_ALWAYS_AUTHENTICATE), which is not supported"
            );
            return Err(SignError::Rejected(text));
        }
        let told = match public {
            Some(public) => public_key_of(raw, public),
            None => public_key(raw, &read),
        };
        let (public_key, is_told) = match (told, believed) {
            (Ok(told), _) => (told, true),
            (Err(NoPublicKey::Untold), Some(believed)) => (believed.clone(), false),
            (Err(why), _) => return Err(why.into_sign_error(&name)),
        };
        let recipe = recipe(module, slot, public_key.algorithm())?;
        let (id, raw) = (read.id().to_vec(), module.raw.clone());
        Ok(Self {
            session,
            raw,
            key,
            recipe,
            public_key,
            is_told,
            id,
            name,
            logged_in,
            last_failure: Failure::default(),
        })
    }

    /// What an opening must show: that the session signs, where that is asked for, and that the key
    /// is the other half of the public key, where somebody else than the token has told that. One
    /// signature of the one text that certifies nothing shows both.
    pub(super) fn prove(&mut self, proof: Proof) -> Result<(), SignError> {
        if self.is_told {
            return match proof {
                Proof::None => Ok(()),
                Proof::Signature => self.prove_it_signs(),
            };
        }
        let is_it = self
            .sign(PROBE)
            .map(|signature| self.public_key.verify(PROBE, &signature));
        // Another key that signs says nothing of the library: it may work, or sign wrongly.
        if !matches!(is_it, Ok(false)) {
            self.session.member().probed(is_it.is_ok());
        }
        if is_it? {
            return Ok(());
        }
        Err(SignError::WrongKey(format!(
            "{} is another key than expected: the token tells no public key of it, and what it signs is not of the key {}",
            self.name,
            self.public_key.fingerprint()
        )))
    }

    /// Whether it signs: a probe, verified and thrown away. The other sessions of the library hear
    /// of it.
    fn prove_it_signs(&mut self) -> Result<(), SignError> {
        let proven = probe::prove(self);
        self.session.member().probed(proven.is_ok());
        proven
    }

    /// CKA_ID.
    pub fn id(&self) -> &[u8] {
        &self.id
    }

    /// Destroys the key that it signs with and the public key beside it: for keys that were made
    /// for one session.
    pub(super) fn destroy(self, public: ObjectHandle) -> Result<(), SignError> {
        let destroyed = self.session.get().and_then(|session| {
            let private = session.destroy_object(self.key);
            session.destroy_object(public).and(private)
        });
        destroyed.map_err(|e| sign_error(&self.name, &e))
    }

    fn raw_signature(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let session = self.session.get()?;
        let sign = |mechanism: &Mechanism<'_>, data: &[u8]| {
            self.raw.sign(session, mechanism, self.key, data)
        };
        match self.recipe {
            Recipe::Ecdsa(hash) => sign(&Mechanism::Ecdsa, digest::digest(hash, message).as_ref()),
            Recipe::RsaSha256 => sign(&Mechanism::Sha256RsaPkcs, message),
            Recipe::RsaDigestInfo => {
                let hash = digest::digest(&digest::SHA256, message);
                sign(
                    &Mechanism::RsaPkcs,
                    &[&SHA256_DIGEST_INFO, hash.as_ref()].concat(),
                )
            }
        }
    }
}

impl Device for Pkcs11Device {
    fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    fn sign(&mut self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        match self.raw_signature(message) {
            Ok(signature) => match self.recipe {
                Recipe::Ecdsa(_) => ecdsa_der(&signature).ok_or_else(|| {
                    self.last_failure = Failure::default();
                    SignError::Rejected(format!(
                        "{}: the token answered an ECDSA signature of {} bytes",
                        self.name,
                        signature.len()
                    ))
                }),
                Recipe::RsaSha256 | Recipe::RsaDigestInfo => Ok(signature),
            },
            Err(e) => {
                self.last_failure = failure(&e);
                self.session.after(&e);
                Err(sign_error(&self.name, &e))
            }
        }
    }

    fn last_failure(&self) -> Failure {
        self.last_failure
    }

    fn check(&mut self) -> Result<(), SignError> {
        match self.session.logged_in() {
            Ok(now) if now == self.logged_in && self.session.member().library_is_in_doubt() => {
                self.prove_it_signs()
            }
            Ok(now) if now == self.logged_in => Ok(()),
            Ok(_) => Err(SignError::Lost(format!(
                "{}: the session is not logged in as it was",
                self.name
            ))),
            Err(e) => Err(sign_error(&self.name, &e)),
        }
    }
}

/// Raw r‖s (PKCS#11 v2.40 mechanisms §2.3.1) as Ecdsa-Sig-Value (RFC 3279 §2.2.3).
fn ecdsa_der(raw: &[u8]) -> Option<Vec<u8>> {
    #[derive(Sequence)]
    struct EcdsaSigValue<'a> {
        r: UintRef<'a>,
        s: UintRef<'a>,
    }
    if raw.is_empty() || !raw.len().is_multiple_of(2) {
        return None;
    }
    let (r, s) = raw.split_at(raw.len() / 2);
    EcdsaSigValue {
        r: UintRef::new(r).ok()?,
        s: UintRef::new(s).ok()?,
    }
    .to_der()
    .ok()
}

fn recipe(module: &Module, slot: Slot, algorithm: Algorithm) -> Result<Recipe, SignError> {
    let listed = module
        .context
        .get_mechanism_list(slot)
        .map_err(|e| module.error(&e))?;
    let signs = |mechanism| {
        listed.contains(&mechanism)
            && module
                .context
                .get_mechanism_info(slot, mechanism)
                .is_ok_and(|info| info.sign())
    };
    match algorithm {
        Algorithm::EcdsaP256Sha256 if signs(MechanismType::ECDSA) => {
            Ok(Recipe::Ecdsa(&digest::SHA256))
        }
        Algorithm::EcdsaP384Sha384 if signs(MechanismType::ECDSA) => {
            Ok(Recipe::Ecdsa(&digest::SHA384))
        }
        Algorithm::RsaPkcs1Sha256 if signs(MechanismType::SHA256_RSA_PKCS) => Ok(Recipe::RsaSha256),
        Algorithm::RsaPkcs1Sha256 if signs(MechanismType::RSA_PKCS) => Ok(Recipe::RsaDigestInfo),
        Algorithm::EcdsaP256Sha256 | Algorithm::EcdsaP384Sha384 => {
            Err(SignError::Rejected(format!(
                "the token cannot sign with {algorithm}: it does not offer the mechanism CKM_ECDSA for signing"
            )))
        }
        Algorithm::RsaPkcs1Sha256 => Err(SignError::Rejected(format!(
            "the token cannot sign with {algorithm}: it offers neither CKM_SHA256_RSA_PKCS nor CKM_RSA_PKCS for signing"
        ))),
    }
}

/// What a key object must be called. Both absent matches everything, which the callers exclude.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) id: Option<&'a [u8]>,
    pub(super) label: Option<&'a str>,
}

pub(super) fn private_keys(
    session: &Session,
    wanted: Wanted<'_>,
) -> Result<Vec<ObjectHandle>, Error> {
    keys(session, ObjectClass::PRIVATE_KEY, wanted)
}

pub(super) fn public_keys(
    session: &Session,
    wanted: Wanted<'_>,
) -> Result<Vec<ObjectHandle>, Error> {
    keys(session, ObjectClass::PUBLIC_KEY, wanted)
}

/// The private keys of this name, or, where none has it, those that share their CKA_ID with a
/// certificate or a public key that has it: some tokens label no private key.
pub(super) fn named_private_keys(
    session: &Session,
    wanted: Wanted<'_>,
) -> Result<Vec<ObjectHandle>, Error> {
    let named = private_keys(session, wanted)?;
    if !named.is_empty() || wanted.label.is_none() {
        return Ok(named);
    }
    let mut ids = BTreeSet::new();
    for class in [ObjectClass::CERTIFICATE, ObjectClass::PUBLIC_KEY] {
        for object in keys(session, class, wanted)? {
            for attribute in session.get_attributes(object, &[AttributeType::Id])? {
                if let Attribute::Id(id) = attribute
                    && !id.is_empty()
                {
                    ids.insert(id);
                }
            }
        }
    }
    let mut found = Vec::new();
    for id in &ids {
        found.extend(private_keys(
            session,
            Wanted {
                id: Some(id),
                label: None,
            },
        )?);
    }
    Ok(found)
}

fn keys(
    session: &Session,
    class: ObjectClass,
    wanted: Wanted<'_>,
) -> Result<Vec<ObjectHandle>, Error> {
    let mut template = vec![Attribute::Class(class), Attribute::Token(true)];
    template.extend(wanted.id.map(|id| Attribute::Id(id.to_vec())));
    template.extend(
        wanted
            .label
            .map(|label| Attribute::Label(label.as_bytes().to_vec())),
    );
    session.find_objects(&template)
}

/// The attributes of one object that its token was willing to tell.
pub(super) struct Attributes(Vec<Attribute>);

/// What a session asks of its key, and of the public key beside it.
const FOR_SIGNING: [AttributeType; 9] = [
    AttributeType::KeyType,
    AttributeType::Id,
    AttributeType::Sign,
    AttributeType::AlwaysAuthenticate,
    AttributeType::EcParams,
    AttributeType::EcPoint,
    AttributeType::Modulus,
    AttributeType::PublicExponent,
    AttributeType::PublicKeyInfo,
];

/// What else is told of a key to people.
const FOR_PEOPLE: [AttributeType; 10] = [
    AttributeType::Label,
    AttributeType::SignRecover,
    AttributeType::Decrypt,
    AttributeType::Unwrap,
    AttributeType::Derive,
    AttributeType::Sensitive,
    AttributeType::AlwaysSensitive,
    AttributeType::Extractable,
    AttributeType::NeverExtractable,
    AttributeType::Local,
];

impl Attributes {
    pub(super) fn for_signing(session: &Session, key: ObjectHandle) -> Result<Self, Error> {
        Self::of(session, key, &FOR_SIGNING)
    }

    pub(super) fn all(session: &Session, key: ObjectHandle) -> Result<Self, Error> {
        Self::of(session, key, &[&FOR_SIGNING[..], &FOR_PEOPLE].concat())
    }

    /// Asked one by one: some tokens answer nothing at all when they do not know one attribute of a
    /// list.
    fn of(session: &Session, key: ObjectHandle, asked: &[AttributeType]) -> Result<Self, Error> {
        use AttributeType as T;
        let mut read = Vec::new();
        for attribute in asked.iter().copied() {
            match session.get_attributes(key, &[attribute]) {
                Ok(found) => read.extend(found),
                // Every key has these two (PKCS#11 v2.40 §4.6.2): a token that does not tell them
                // is in trouble.
                Err(e) if matches!(attribute, T::KeyType | T::Id) => return Err(e),
                Err(e @ Error::Pkcs11(rv, _)) if in_trouble(rv) => return Err(e),
                Err(_) => {}
            }
        }
        Ok(Self(read))
    }

    pub(super) fn flag(&self, wanted: AttributeType) -> Option<bool> {
        self.0
            .iter()
            .find(|a| a.attribute_type() == wanted)
            .and_then(|attribute| match attribute {
                Attribute::Sign(flag)
                | Attribute::SignRecover(flag)
                | Attribute::Decrypt(flag)
                | Attribute::Unwrap(flag)
                | Attribute::Derive(flag)
                | Attribute::AlwaysAuthenticate(flag)
                | Attribute::Sensitive(flag)
                | Attribute::AlwaysSensitive(flag)
                | Attribute::Extractable(flag)
                | Attribute::NeverExtractable(flag)
                | Attribute::Local(flag) => Some(*flag),
                _ => None,
            })
    }

    pub(super) fn id(&self) -> &[u8] {
        self.bytes(AttributeType::Id).unwrap_or_default()
    }

    pub(super) fn label(&self) -> String {
        String::from_utf8_lossy(self.bytes(AttributeType::Label).unwrap_or_default()).into_owned()
    }

    fn key_type(&self) -> Option<KeyType> {
        self.0.iter().find_map(|attribute| match attribute {
            Attribute::KeyType(kind) => Some(*kind),
            _ => None,
        })
    }

    /// A non-empty value.
    fn bytes(&self, wanted: AttributeType) -> Option<&[u8]> {
        self.0
            .iter()
            .find(|a| a.attribute_type() == wanted)
            .and_then(|attribute| match attribute {
                Attribute::Id(v)
                | Attribute::Label(v)
                | Attribute::EcParams(v)
                | Attribute::EcPoint(v)
                | Attribute::Modulus(v)
                | Attribute::PublicExponent(v)
                | Attribute::PublicKeyInfo(v)
                    if !v.is_empty() =>
                {
                    Some(v.as_slice())
                }
                _ => None,
            })
    }
}

/// Why there is no public key: the token failed, or the key is not one of ours.
pub(super) enum NoPublicKey {
    Token(Error),
    /// The token tells none.
    Untold,
    Key(String),
}

impl NoPublicKey {
    pub(super) fn into_sign_error(self, name: &str) -> SignError {
        match self {
            Self::Token(e) => sign_error(name, &e),
            Self::Untold => untold(name),
            Self::Key(text) => SignError::Rejected(format!("{name}: {text}")),
        }
    }
}

/// Nobody has told the public key of this private key.
pub(crate) fn untold(name: &str) -> SignError {
    SignError::Rejected(format!(
        "{name}: the token holds no public key for this private key: import the public key object under the same CKA_ID"
    ))
}

/// The public key of a private key object: from the object itself, or from the public key object
/// that shares its CKA_ID.
pub(super) fn public_key(
    session: &Session,
    private: &Attributes,
) -> Result<PublicKey, NoPublicKey> {
    if let Some(key) = public_parts(private)? {
        return Ok(key);
    }
    let wanted = Wanted {
        id: private.bytes(AttributeType::Id),
        label: None,
    };
    if wanted.id.is_some() {
        for handle in public_keys(session, wanted).map_err(NoPublicKey::Token)? {
            let public = Attributes::for_signing(session, handle).map_err(NoPublicKey::Token)?;
            if public.key_type() == private.key_type()
                && let Some(key) = public_parts(&public)?
            {
                return Ok(key);
            }
        }
    }
    Err(NoPublicKey::Untold)
}

/// The public key of a public key object.
fn public_key_of(session: &Session, public: ObjectHandle) -> Result<PublicKey, NoPublicKey> {
    let read = Attributes::for_signing(session, public).map_err(NoPublicKey::Token)?;
    public_parts(&read)?.ok_or(NoPublicKey::Untold)
}

fn public_parts(object: &Attributes) -> Result<Option<PublicKey>, NoPublicKey> {
    use AttributeType as T;
    let built = match object.key_type() {
        Some(KeyType::RSA) => match (object.bytes(T::Modulus), object.bytes(T::PublicExponent)) {
            (Some(modulus), Some(exponent)) => PublicKey::from_rsa(modulus, exponent),
            _ => return Ok(None),
        },
        Some(KeyType::EC) => match (object.bytes(T::EcParams), object.bytes(T::EcPoint)) {
            (Some(params), Some(point)) => ec_public_key(params, point),
            _ => match object.bytes(T::PublicKeyInfo) {
                Some(spki) => PublicKey::from_spki_der(spki),
                None => return Ok(None),
            },
        },
        _ => Err(SignError::Rejected(
            "this kind of key is not supported: only P-256, P-384 and RSA are".into(),
        )),
    };
    built.map(Some).map_err(|e| NoPublicKey::Key(e.to_string()))
}

fn ec_public_key(params: &[u8], point: &[u8]) -> Result<PublicKey, SignError> {
    let (algorithm, length) = if params == P256_PARAMS {
        (Algorithm::EcdsaP256Sha256, 65)
    } else if params == P384_PARAMS {
        (Algorithm::EcdsaP384Sha384, 97)
    } else {
        return Err(SignError::Rejected(
            "the key's elliptic curve is not supported: only P-256 and P-384 are".into(),
        ));
    };
    // The standard wants a DER OCTET STRING; some tokens give the bare point. Both begin with 4,
    // their lengths differ.
    let bare = match point {
        [0x04, inner_length, inner @ ..]
            if usize::from(*inner_length) == length && inner.len() == length =>
        {
            inner
        }
        bare => bare,
    };
    PublicKey::from_ec_point(algorithm, bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_signatures_become_minimal_der() {
        assert_eq!(
            ecdsa_der(&[0, 1, 0, 0x80]).unwrap(),
            [0x30, 7, 2, 1, 1, 2, 2, 0, 0x80]
        );
        assert_eq!(ecdsa_der(&[0xff; 64]).unwrap().len(), 2 + 2 * (2 + 33));
        assert_eq!(ecdsa_der(&[]), None);
        assert_eq!(ecdsa_der(&[1, 2, 3]), None);
    }
}
