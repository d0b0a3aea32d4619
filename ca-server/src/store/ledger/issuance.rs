//! What must hold of one certificate that the ledger says was drafted, and of one that it says was signed. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use super::event::{Header, Intent, IssuerFacts, Proof};
use crate::spiffe::{ServiceAccount, SpiffeId};
use crate::x509::lint::{self, Issuer, Rules, examine};

/// Every issuer that a chain has named so far, by id. A reload adds to them and takes none away: a call that began before it is
/// recorded after it, by the issuer that it began with.
#[derive(Default)]
pub(super) struct Issuers(HashMap<String, Vec<Named>>);

struct Named {
    certificate: Vec<u8>,
    issuer: Arc<Issuer>,
}

impl Issuers {
    pub(super) fn add(&mut self, facts: &IssuerFacts) -> Result<(), String> {
        let certificate = facts.certificate().ok_or("the issuer has no certificate")?;
        let named = self.0.entry(facts.id.clone()).or_default();
        if named.iter().all(|known| known.certificate != certificate) {
            let issuer = Issuer::parse(certificate).map_err(|violation| violation.to_string())?;
            named.push(Named { certificate: certificate.to_owned(), issuer: Arc::new(issuer) });
        }
        Ok(())
    }

    /// Those of the intent's id whose key the to-be-signed bytes name, newest first: several after a renewal with the same key.
    fn of(&self, intent: &Intent) -> Result<Vec<&Arc<Issuer>>, String> {
        let named = self.0.get(&intent.issuer).ok_or_else(|| format!("its chain has named no issuer {:?}", intent.issuer))?;
        let key = lint::authority_key_identifier(&intent.to_be_signed).map_err(|violation| violation.to_string())?;
        let fitting: Vec<_> = named.iter().rev().map(|named| &named.issuer).filter(|issuer| issuer.key_identifier() == key).collect();
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

/// An intent as it was judged.
pub(super) struct Drafted {
    /// The issuer whose signature it must get; none if its chain has named no such issuer.
    pub(super) issuer: Option<Arc<Issuer>>,
    /// What is wrong with it.
    pub(super) objection: Option<String>,
}

/// Invariants 4, 7 and 8 of the to-be-signed bytes that an intent holds, by the issuers that its chain has named before it.
pub(super) fn drafted(intent: &Intent, issuers: &Issuers, header: &Header) -> Drafted {
    let fitting = match issuers.of(intent) {
        Ok(fitting) => fitting,
        Err(objection) => return Drafted { issuer: None, objection: Some(objection) },
    };
    let mut first = None;
    for issuer in fitting {
        match keeps_the_rules(intent, issuer, header) {
            Ok(()) => return Drafted { issuer: Some(issuer.clone()), objection: None },
            Err(objection) => first = first.or(Some((issuer.clone(), objection))),
        }
    }
    let (issuer, objection) = first.unzip();
    Drafted { issuer, objection }
}

fn keeps_the_rules(intent: &Intent, issuer: &Issuer, header: &Header) -> Result<(), String> {
    let rules = match intent.purpose.as_str() {
        "leaf" => Rules::Svid,
        "serving" => Rules::Serving,
        other => return Err(format!("its purpose {other:?} cannot be checked by this program")),
    };
    let examined = examine(&intent.to_be_signed, issuer, rules).map_err(|violation| violation.to_string())?;
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

/// Invariant 6: the certificate is the intent's bytes with the signature of the issuer they were drafted for. Returns its DER.
pub(super) fn signed(intent: &Intent, issuer: Option<&Issuer>, signature: &[u8]) -> Result<Vec<u8>, String> {
    let issuer = issuer.ok_or("its signature cannot be checked: the issuer that its intent names is not known")?;
    issuer.verify(&intent.to_be_signed, signature).map_err(|violation| violation.to_string())?;
    lint::certificate(&intent.to_be_signed, signature).ok_or_else(|| "the to-be-signed bytes cannot be read".into())
}

/// Invariant 4: the identity is the one that the evidence proves.
fn proven(identity: Option<&str>, evidence: &Proof) -> Result<(), String> {
    let subject = evidence.subject.as_deref();
    let holds = match evidence.credential.as_str() {
        "jwt" => {
            let account = subject.and_then(ServiceAccount::parse_username);
            account.is_some() && account.as_ref() == identity.and_then(SpiffeId::parse).as_ref().map(SpiffeId::account)
        }
        "client_certificate" => identity.is_some() && subject == identity,
        "daemon" => identity.is_none(),
        other => return Err(format!("its evidence, the credential {other:?}, cannot be checked by this program")),
    };
    if holds { Ok(()) } else { Err("the evidence does not prove the identity".into()) }
}
