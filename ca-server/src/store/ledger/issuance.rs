//! What must hold of one certificate that the ledger says was drafted, and of one that it says was signed. Pure.

use std::collections::HashMap;

use super::event::{Header, Intent, IssuerFacts, Proof};
use crate::spiffe::{ServiceAccount, SpiffeId};
use crate::x509::lint::{Examined, Issuer, Rules, examine};

/// The issuers that a chain has named so far, by id; the last one said holds.
#[derive(Default)]
pub(super) struct Issuers(HashMap<String, Issuer>);

impl Issuers {
    pub(super) fn add(&mut self, facts: &IssuerFacts) -> Result<(), String> {
        let certificate = facts.certificate().ok_or("the issuer has no certificate")?;
        let issuer = Issuer::parse(certificate).map_err(|violation| violation.to_string())?;
        self.0.insert(facts.id.clone(), issuer);
        Ok(())
    }

    fn get(&self, id: &str) -> Result<&Issuer, String> {
        self.0.get(id).ok_or_else(|| format!("its chain names no issuer {id:?}"))
    }
}

/// Invariants 4, 7 and 8 of the to-be-signed bytes that an intent holds.
pub(super) fn drafted(intent: &Intent, issuers: &Issuers, header: &Header) -> Result<(), String> {
    let issuer = issuers.get(&intent.issuer)?;
    let Some(examined) = examined(intent, issuer)? else { return Ok(()) };
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

/// Invariant 6: the certificate is the intent's bytes with the issuer's signature. Returns its DER.
pub(super) fn signed(intent: &Intent, issuers: &Issuers, signature: &[u8]) -> Result<Vec<u8>, String> {
    let issuer = issuers.get(&intent.issuer)?;
    issuer.verify(&intent.to_be_signed, signature).map_err(|violation| violation.to_string())?;
    crate::x509::lint::certificate(&intent.to_be_signed, signature).ok_or_else(|| "the to-be-signed bytes cannot be read".into())
}

/// `None` for purposes that have no certificate of ours to examine.
fn examined(intent: &Intent, issuer: &Issuer) -> Result<Option<Examined>, String> {
    let rules = match intent.purpose.as_str() {
        "leaf" => Rules::Svid,
        "serving" => Rules::Serving,
        _ => return Ok(None),
    };
    examine(&intent.to_be_signed, issuer, rules).map(Some).map_err(|violation| violation.to_string())
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
        _ => true,
    };
    if holds { Ok(()) } else { Err("the evidence does not prove the identity".into()) }
}
