//! What a signer process checks before it signs: a second opinion on the bytes, by rules that were fixed when the process began. It shares no
//! code with the template that writes them, only the reader of certificates, so that a fault there, or a daemon that was taken over, does not
//! get a CA certificate, a name of another trust domain, a life of ten years or an extension that nobody knows. Pure, but for the rules' text
//! and the clock that a guard may be given.

pub mod key_rules;
pub mod pattern;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use signers::{PROBE, Purpose};

use crate::clock::Clock;
use crate::x509::lint::{self, Issuer, ToBeSigned, Violation};
use key_rules::{KeyRules, LeafRules, Limits, ServingRules};

/// Longer than any certificate of this CA; what waits to be signed is in memory.
const LARGEST: usize = 64 * 1024;

/// How old the beginning of a validity may be when it is signed: backdating, the longest call, and some more.
const BEGUN_AT_MOST: Duration = Duration::from_secs(600);

/// How far in the future it may be.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);

/// The rules that a daemon gives a process of its own, the same for each key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// Of each key, in the order of their numbers: the certificate of its issuer, DER in hexadecimal.
    pub issuers: Vec<String>,
    /// The one trust domain whose workloads may get certificates.
    pub trust_domain: String,
    /// The longest validity, in seconds, from its first second to its last.
    pub longest: u64,
    /// Names under which the daemon itself may serve: DNS names and addresses.
    pub serving_names: Vec<String>,
}

impl Rules {
    /// As a signer's setup carries them.
    pub fn to_text(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain texts and numbers")
    }
}

/// Rules that were read and hold together.
pub struct Guard {
    keys: Vec<KeyRules>,
    clock: Option<Clock>,
}

impl Guard {
    /// Reads rules; a sentence says what is wrong with them.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        let rules: Rules = serde_json::from_slice(text).map_err(|error| format!("the guard's rules cannot be read: {error}"))?;
        Self::new(&rules)
    }

    /// Makes a guard of rules.
    pub fn new(rules: &Rules) -> Result<Self, String> {
        let longest = i64::try_from(rules.longest).map_err(|_| "the guard's longest validity is too long".to_owned())?;
        let names: Vec<String> = rules.serving_names.iter().map(|name| name.to_ascii_lowercase()).collect();
        let key = |der: &String| {
            let der = hex::decode(der).map_err(|error| format!("an issuer of the guard's rules is not hexadecimal: {error}"))?;
            let limits = || Limits::of_lifetime(longest);
            let trust_domains = vec![rules.trust_domain.clone()];
            Ok(KeyRules {
                issuer: Issuer::parse(&der).map_err(|violation| violation.to_string())?,
                leaf: Some(LeafRules { trust_domains, identities: Vec::new(), limits: limits() }),
                serving: Some(ServingRules { names: names.clone(), limits: limits() }),
            })
        };
        Ok(Self { keys: rules.issuers.iter().map(key).collect::<Result<_, String>>()?, clock: None })
    }

    /// A guard with rules for each key, in the order of their numbers, that also lets no validity begin at another time than now.
    pub fn of_keys(keys: Vec<KeyRules>, clock: Clock) -> Self {
        Self { keys, clock: Some(clock) }
    }

    fn examine(&self, key: usize, purpose: Purpose, message: &[u8]) -> Result<(), Violation> {
        if message.len() > LARGEST {
            return Err(Violation(format!("it has {} bytes, at most {LARGEST} are allowed", message.len())));
        }
        let key = self.keys.get(key).ok_or_else(|| Violation(format!("the guard knows no issuer {key}")))?;
        let unwanted = || Violation(format!("this key signs nothing for the purpose {}", purpose.as_str()));
        match purpose {
            Purpose::Leaf => {
                let rules = key.leaf.as_ref().ok_or_else(unwanted)?;
                let certificate = ToBeSigned::read(message)?;
                let examined = certificate.examine(&key.issuer, lint::Rules::Svid)?;
                self.holds(&rules.limits, &certificate)?;
                rules.allow(&examined.identity.ok_or_else(|| Violation("it has no identity".into()))?)
            }
            Purpose::Serving => {
                let rules = key.serving.as_ref().ok_or_else(unwanted)?;
                let certificate = ToBeSigned::read(message)?;
                certificate.examine(&key.issuer, lint::Rules::Serving)?;
                self.holds(&rules.limits, &certificate)?;
                rules.allow(&certificate.serving_names()?)
            }
            // Whether a token is back: a text that nothing takes for anything.
            Purpose::Probe if message == PROBE => Ok(()),
            Purpose::CaCertificate | Purpose::Crl | Purpose::Probe => Err(unwanted()),
        }
    }

    fn holds(&self, limits: &Limits, certificate: &ToBeSigned<'_>) -> Result<(), Violation> {
        limits.hold(certificate)?;
        let Some(now) = self.clock.as_ref().map(Clock::now) else { return Ok(()) };
        let (begins, _) = certificate.validity();
        // Certificates for later, made in one day, would outlast the day on which a daemon was taken over.
        if now.minus(BEGUN_AT_MOST) <= begins && begins <= now.plus(BEGINS_WITHIN) {
            Ok(())
        } else {
            Err(Violation(format!("its validity begins at {begins}; it is now {now}")))
        }
    }
}

impl signers::process::Guard for Guard {
    fn judge(&self, key: usize, purpose: Purpose, message: &[u8]) -> Result<(), String> {
        self.examine(key, purpose, message).map_err(|violation| violation.to_string())
    }
}

#[cfg(test)]
mod tests {
    use der::{Decode, Encode};
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
        KeyUsagePurpose, SanType,
    };
    use signers::process::Guard as _;

    use super::key_rules::{Extension, Usage};
    use super::pattern::IdentityPattern;
    use super::*;
    use crate::timestamp::Timestamp;

    const NOW: i64 = 1_800_000_000;
    const DEMO: &str = "spiffe://cluster.local/ns/default/sa/demo";

    fn params() -> CertificateParams {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params
    }

    fn issuer() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = params();
        params.distinguished_name.push(DnType::CommonName, "Guard's CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = Timestamp::from_seconds(NOW - 1_000_000).date_time();
        params.not_after = Timestamp::from_seconds(NOW + 1_000_000).date_time();
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// A guard that allows accounts of one namespace for an hour, and one serving name.
    fn guard(issuer: &CertifiedIssuer<'static, KeyPair>) -> Guard {
        let limits = || Limits { longest: 3600, key_usages: Usage::USUAL.to_vec(), extensions: Extension::ALL.to_vec() };
        let identities = vec![IdentityPattern::parse("spiffe://cluster.local/ns/default/sa/*").unwrap()];
        let rules = KeyRules {
            issuer: Issuer::parse(issuer.der()).unwrap(),
            leaf: Some(LeafRules { trust_domains: Vec::new(), identities, limits: limits() }),
            serving: Some(ServingRules { names: vec!["ca.example".to_owned()], limits: limits() }),
        };
        Guard::of_keys(vec![rules], Clock::from_fn(|| Timestamp::from_seconds(NOW)))
    }

    /// To-be-signed bytes of an hour's certificate of the demo account, with something changed.
    fn bytes(issuer: &CertifiedIssuer<'static, KeyPair>, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = params();
        params.subject_alt_names = vec![SanType::URI(DEMO.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        valid(&mut params, NOW - 60, NOW + 3540);
        change(&mut params);
        let der = params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap().der().to_vec();
        x509_cert::Certificate::from_der(&der).unwrap().tbs_certificate().to_der().unwrap()
    }

    fn valid(params: &mut CertificateParams, from: i64, to: i64) {
        params.not_before = Timestamp::from_seconds(from).date_time();
        params.not_after = Timestamp::from_seconds(to).date_time();
    }

    fn refusal(purpose: Purpose, change: impl FnOnce(&mut CertificateParams)) -> String {
        let issuer = issuer();
        guard(&issuer).judge(0, purpose, &bytes(&issuer, change)).expect_err("refused")
    }

    #[test]
    fn what_the_rules_of_a_key_allow_is_signed() {
        let issuer = issuer();
        let guard = guard(&issuer);
        assert_eq!(guard.judge(0, Purpose::Leaf, &bytes(&issuer, |_| {})), Ok(()));
        let both = |params: &mut CertificateParams| params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
        assert_eq!(guard.judge(0, Purpose::Leaf, &bytes(&issuer, both)), Ok(()));
        let serving = |params: &mut CertificateParams| params.subject_alt_names = vec![SanType::DnsName("ca.example".try_into().unwrap())];
        assert_eq!(guard.judge(0, Purpose::Serving, &bytes(&issuer, serving)), Ok(()));
        assert!(guard.judge(1, Purpose::Leaf, &bytes(&issuer, |_| {})).unwrap_err().contains("no issuer 1"));
    }

    #[test]
    fn a_validity_that_does_not_begin_now_is_refused() {
        for from in [NOW - 601, NOW + 61, NOW + 86_400] {
            let why = refusal(Purpose::Leaf, |params| valid(params, from, from + 3600));
            assert!(why.contains("its validity begins at"), "{why}");
        }
        let issuer = issuer();
        for from in [NOW - 600, NOW, NOW + 60] {
            let bytes = bytes(&issuer, |params| valid(params, from, from + 3600));
            assert_eq!(guard(&issuer).judge(0, Purpose::Leaf, &bytes), Ok(()), "{from}");
        }
    }

    #[test]
    fn what_a_key_has_no_rule_for_is_refused() {
        let why = refusal(Purpose::Leaf, |params| valid(params, NOW, NOW + 3601));
        assert!(why.contains("at most 3600 s"), "{why}");
        for identity in ["spiffe://cluster.local/ns/other/sa/demo", "spiffe://else/ns/default/sa/demo", "spiffe://cluster.local/ns/default"]
        {
            let why = refusal(Purpose::Leaf, |params| params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())]);
            assert!(why.contains("none of the workloads"), "{why}");
        }
        let why = refusal(Purpose::Leaf, |params| params.key_usages.push(KeyUsagePurpose::KeyAgreement));
        assert!(why.contains("key usage KeyAgreement"), "{why}");
        let name = |name: &str| SanType::DnsName(name.try_into().unwrap());
        let why = refusal(Purpose::Serving, |params| params.subject_alt_names = vec![name("ca.example"), name("istiod.istio-system.svc")]);
        assert!(why.contains("\"istiod.istio-system.svc\" is not a name"), "{why}");
        for purpose in [Purpose::CaCertificate, Purpose::Crl, Purpose::Probe] {
            assert!(refusal(purpose, |_| {}).contains("signs nothing for the purpose"));
        }
        let issuer = issuer();
        let mut guard = guard(&issuer);
        if let Some(leaf) = &mut guard.keys[0].leaf {
            leaf.limits.extensions = Extension::NEEDED.to_vec();
        }
        let why = guard.judge(0, Purpose::Leaf, &bytes(&issuer, |_| {})).unwrap_err();
        assert!(why.contains("its extension") && why.contains("not allowed"), "{why}");
        (guard.keys[0].leaf, guard.keys[0].serving) = (None, None);
        for purpose in [Purpose::Leaf, Purpose::Serving] {
            assert!(guard.judge(0, purpose, &bytes(&issuer, |_| {})).unwrap_err().contains("signs nothing for the purpose"));
        }
        assert!(guard.judge(0, Purpose::Leaf, &vec![0x30; 65 * 1024]).unwrap_err().contains("at most"));
    }
}
