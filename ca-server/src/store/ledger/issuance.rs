//! What must hold of one certificate that the ledger says was drafted, and of one that it says was
//! signed. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use super::event::{Hash, Header, Intent, IssuerFacts, Proof};
use crate::digest::sha256;
use crate::spiffe::{ServiceAccount, SpiffeId};
use crate::x509::lint::{Issuer, Rules, ToBeSigned, assemble};

/// Every issuer that a chain has named so far, by id. A reload adds to them and takes none away: a
/// call that began before it is recorded after it, by the issuer that it began with.
#[derive(Clone, Default)]
pub(super) struct Issuers(HashMap<String, Vec<Arc<Named>>>);

/// One issuer's certificate, as bytes and as read.
pub(super) struct Named {
    certificate: Vec<u8>,
    issuer: Arc<Issuer>,
}

impl Named {
    pub(super) fn read(certificate: &[u8]) -> Result<Arc<Self>, String> {
        let issuer = Issuer::parse(certificate).map_err(|violation| violation.to_string())?;
        Ok(Arc::new(Self {
            certificate: certificate.to_owned(),
            issuer: Arc::new(issuer),
        }))
    }

    /// DER.
    pub(super) fn certificate(&self) -> &[u8] {
        &self.certificate
    }
}

/// The certificate whose key signs for an issuer.
pub(super) fn certificate_of(facts: &IssuerFacts) -> Result<&[u8], String> {
    facts
        .certificate()
        .ok_or_else(|| "the issuer has no certificate".into())
}

impl Issuers {
    pub(super) fn add(&mut self, id: &str, named: &Arc<Named>) {
        let known = self.0.entry(id.to_owned()).or_default();
        if known
            .iter()
            .all(|known| known.certificate != named.certificate)
        {
            known.push(named.clone());
        }
    }

    /// All, each with its id, those of one id in the order in which they were named.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &Arc<Named>)> {
        self.0
            .iter()
            .flat_map(|(id, named)| named.iter().map(|named| (id.as_str(), named)))
    }

    /// Those of the intent's id whose key the to-be-signed bytes name, newest first: several after
    /// a renewal with the same key.
    fn of(
        &self,
        intent: &Intent,
        to_be_signed: &ToBeSigned<'_>,
    ) -> Result<Vec<&Arc<Issuer>>, String> {
        let named = self
            .0
            .get(&intent.issuer)
            .ok_or_else(|| format!("its chain has named no issuer {:?}", intent.issuer))?;
        let key = to_be_signed
            .authority_key_identifier()
            .map_err(|violation| violation.to_string())?;
        let fitting: Vec<_> = named
            .iter()
            .rev()
            .map(|named| &named.issuer)
            .filter(|issuer| issuer.key_identifier() == key)
            .collect();
        if fitting.is_empty() {
            return Err(format!(
                "its chain has named no issuer {:?} with the authority key identifier {}",
                intent.issuer,
                hex::encode(key)
            ));
        }
        Ok(fitting)
    }
}

/// What an outcome is held against: the bytes that were to be signed, and by whom.
pub(super) struct Drafted {
    to_be_signed: Vec<u8>,
    /// DER; empty if the bytes cannot be read.
    signature_algorithm: Vec<u8>,
    /// The issuer whose signature it must get; none if its chain has named no such issuer.
    issuer: Option<Arc<Issuer>>,
}

/// Invariants 4, 7 and 8 of the to-be-signed bytes that an intent holds, by the issuers that its
/// chain has named before it: what was drafted, and what is wrong with it.
pub(super) fn drafted(
    intent: Intent,
    issuers: &Issuers,
    header: &Header,
) -> (Drafted, Option<String>) {
    let (signature_algorithm, (issuer, objection)) = match ToBeSigned::read(&intent.to_be_signed) {
        Ok(read) => (
            read.signature_algorithm().unwrap_or_default(),
            judged(&intent, &read, issuers, header),
        ),
        Err(violation) => (Vec::new(), (None, Some(violation.to_string()))),
    };
    (
        Drafted {
            to_be_signed: intent.to_be_signed,
            signature_algorithm,
            issuer,
        },
        objection,
    )
}

fn judged(
    intent: &Intent,
    read: &ToBeSigned<'_>,
    issuers: &Issuers,
    header: &Header,
) -> (Option<Arc<Issuer>>, Option<String>) {
    let fitting = match issuers.of(intent, read) {
        Ok(fitting) => fitting,
        Err(objection) => return (None, Some(objection)),
    };
    let mut first = None;
    for issuer in fitting {
        match keeps_the_rules(intent, read, issuer, header) {
            Ok(()) => return (Some(issuer.clone()), None),
            Err(objection) => first = first.or(Some((issuer.clone(), objection))),
        }
    }
    first.unzip()
}

fn keeps_the_rules(
    intent: &Intent,
    read: &ToBeSigned<'_>,
    issuer: &Issuer,
    header: &Header,
) -> Result<(), String> {
    let rules = match intent.purpose.as_str() {
        "leaf" => Rules::Svid,
        "serving" => Rules::Serving,
        other => {
            return Err(format!(
                "its purpose {other:?} cannot be checked by this program"
            ));
        }
    };
    let examined = read
        .examine(issuer, rules)
        .map_err(|violation| violation.to_string())?;
    if examined.serial != intent.serial {
        return Err("the serial in the to-be-signed bytes is another".into());
    }
    if examined.identity != intent.identity {
        return Err("the name in the to-be-signed bytes is not the identity".into());
    }
    if !issuer.is_valid_at(header.time) {
        return Err("its issuer's certificate was not valid then".into());
    }
    proven(intent.identity.as_deref(), &intent.evidence)
}

/// What an `issued` row says.
pub(super) struct Signature {
    pub(super) signature: Vec<u8>,
    /// SHA-256 of the certificate's DER.
    pub(super) certificate: Hash,
}

impl Drafted {
    /// Invariant 6: the certificate is the intent's bytes with the signature of the issuer they
    /// were drafted for. `with_signature` false leaves out whether the signature is the issuer's,
    /// which costs more than everything else together.
    pub(super) fn became(&self, signed: &Signature, with_signature: bool) -> Result<(), String> {
        let issuer = self.issuer.as_ref().ok_or(
            "its signature cannot be checked: the issuer that its intent names is not known",
        )?;
        if with_signature {
            issuer
                .verify(&self.to_be_signed, &signed.signature)
                .map_err(|violation| violation.to_string())?;
        }
        let certificate = assemble(
            &self.to_be_signed,
            &self.signature_algorithm,
            &signed.signature,
        );
        let certificate = certificate.ok_or("the to-be-signed bytes cannot be read")?;
        if sha256(&certificate) == signed.certificate {
            Ok(())
        } else {
            Err("the certificate's SHA-256 is another".into())
        }
    }
}

/// Invariant 4: the identity is the one that the evidence proves.
pub(super) fn proven(identity: Option<&str>, evidence: &Proof) -> Result<(), String> {
    let subject = evidence.subject.as_deref();
    let holds = match evidence.credential.as_str() {
        "jwt" => {
            let account = subject.and_then(ServiceAccount::parse_username);
            account.is_some()
                && account.as_ref()
                    == identity
                        .and_then(SpiffeId::parse)
                        .as_ref()
                        .map(SpiffeId::account)
        }
        "client_certificate" => identity.is_some() && subject == identity,
        "daemon" => identity.is_none(),
        other => {
            return Err(format!(
                "its evidence, the credential {other:?}, cannot be checked by this program"
            ));
        }
    };
    if holds {
        Ok(())
    } else {
        Err("the evidence does not prove the identity".into())
    }
}
