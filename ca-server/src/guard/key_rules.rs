//! What one key may sign, as a signer's operator writes it: an issuer, and rules for each purpose.
//! What has no rules is not signed. What a body must be whatever the rules is not here: it is
//! written anew (`body`).

use std::time::Duration;

use super::Violation;
use super::body::Name;
use super::issuer::Issuer;
use super::pattern::IdentityPattern;

/// By how much a certificate's validity may begin before it is issued.
pub const BACKDATED_AT_MOST: Duration = Duration::from_secs(120);

/// What one key may sign.
pub struct KeyRules {
    /// Its issuer.
    pub issuer: Issuer,
    /// Certificates of workloads; `None` signs none.
    pub leaf: Option<LeafRules>,
    /// The daemons' own certificates; `None` signs none.
    pub serving: Option<ServingRules>,
}

/// Which workloads get certificates, and for how long.
pub struct LeafRules {
    /// Trust domains of which every workload may have one.
    pub trust_domains: Vec<String>,
    /// Identities of these forms may have one.
    pub identities: Vec<IdentityPattern>,
    /// The longest validity, in seconds, from its first second to its last.
    pub longest: i64,
}

/// Under which names daemons may serve, and for how long.
pub struct ServingRules {
    /// DNS names, in small letters, and addresses.
    pub names: Vec<Name>,
    /// The longest validity, in seconds, from its first second to its last.
    pub longest: i64,
}

impl LeafRules {
    /// X.509-SVID §2: one name, a SPIFFE ID; and it is one of these.
    pub(super) fn allow(&self, names: &[Name]) -> Result<(), Violation> {
        let [Name::Uri(identity)] = names else {
            return Err(Violation(
                "it does not have exactly one name, a URI (X.509-SVID §2)".into(),
            ));
        };
        let domain = workloads_domain(identity).ok_or_else(|| {
            Violation("the name is no SPIFFE ID of a workload (SPIFFE-ID §2)".into())
        })?;
        let of_domain = self.trust_domains.iter().any(|ours| ours == domain);
        if of_domain
            || self
                .identities
                .iter()
                .any(|pattern| pattern.matches(identity))
        {
            Ok(())
        } else {
            Err(Violation(format!(
                "{identity:?} is none of the workloads that may have a certificate"
            )))
        }
    }
}

/// The trust domain of a workload's SPIFFE ID (SPIFFE-ID §2): 1 to 255 small letters, digits, dots,
/// hyphens and underscores; behind it a path whose segments may have capitals too. That leaves no
/// character that a port, user, query, fragment or percent-encoding would need.
fn workloads_domain(identity: &str) -> Option<&str> {
    let (domain, path) = identity.strip_prefix("spiffe://")?.split_once('/')?;
    let small = |letter: u8| {
        letter.is_ascii_lowercase()
            || letter.is_ascii_digit()
            || matches!(letter, b'.' | b'-' | b'_')
    };
    let legal = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment
                .bytes()
                .all(|letter| small(letter) || letter.is_ascii_uppercase())
    };
    let whole = identity.len() <= 2048
        && (1..=255).contains(&domain.len())
        && domain.bytes().all(small)
        && path.split('/').all(legal);
    whole.then_some(domain)
}

impl ServingRules {
    pub(super) fn allow(&self, names: &[Name]) -> Result<(), Violation> {
        if names.is_empty() {
            return Err(Violation("it has no name (RFC 5280 §4.2.1.6)".into()));
        }
        let refused = names.iter().find(|name| !self.names.contains(name));
        let why = |name: String| {
            Err(Violation(format!(
                "{name} is not a name that the daemon serves under"
            )))
        };
        match refused {
            None => Ok(()),
            Some(Name::Dns(name)) => why(format!("the DNS name {name:?}")),
            Some(Name::Address(address)) => why(format!("the address {address}")),
            Some(Name::Uri(uri)) => why(format!("the URI {uri:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workloads_name_is_a_spiffe_id_with_a_path() {
        let long = |domain: usize| format!("spiffe://{}/a", "d".repeat(domain));
        let whole = |length: usize| format!("spiffe://d/{}", "p".repeat(length - 11));
        let legal = [
            "spiffe://cluster.local/ns/default/sa/demo",
            "spiffe://a_b-c.9/X.y_Z-0",
            "spiffe://d/...",
            "spiffe://d/.a/b.",
        ];
        for uri in legal
            .map(str::to_owned)
            .into_iter()
            .chain([long(1), long(255), whole(2048)])
        {
            assert!(workloads_domain(&uri).is_some(), "{uri}");
        }
        let illegal = [
            "",
            "spiffe://",
            "spiffe://d",
            "spiffe://d/",
            "spiffe:///ns/a",
            "spiffe://d//a",
            "spiffe://d/a/",
            "spiffe://d/./a",
            "spiffe://d/a/..",
            "spiffe://D/a",
            "SPIFFE://d/a",
            "https://d/a",
            "spiffe://d:8443/a",
            "spiffe://user@d/a",
            "spiffe://d/a?b=c",
            "spiffe://d/%61",
            "spiffe://d/a b",
            "spiffe://d/\u{e4}",
            "spiffe://d/a\0",
        ];
        for uri in illegal
            .map(str::to_owned)
            .into_iter()
            .chain([long(256), whole(2049)])
        {
            assert_eq!(workloads_domain(&uri), None, "{uri}");
        }
    }

    #[test]
    fn a_dns_name_that_is_an_address_is_not_that_address() {
        let rules = ServingRules {
            names: vec![
                Name::Address([10, 0, 0, 1].into()),
                Name::Dns("ca.example".into()),
            ],
            longest: 1,
        };
        let dns = |name: &str| Name::Dns(name.to_owned());
        assert_eq!(
            rules.allow(&[dns("ca.example"), Name::Address([10, 0, 0, 1].into())]),
            Ok(())
        );
        for names in [
            vec![dns("10.0.0.1")],
            vec![dns("CA.example")],
            vec![Name::Address([10, 0, 0, 2].into())],
            vec![],
        ] {
            assert!(rules.allow(&names).is_err(), "{names:?}");
        }
        let domains = LeafRules {
            trust_domains: vec!["d".to_owned()],
            identities: Vec::new(),
            longest: 1,
        };
        let uri = || Name::Uri("spiffe://d/ns/a/sa/b".to_owned());
        assert_eq!(domains.allow(&[uri()]), Ok(()));
        for names in [
            vec![uri(), uri()],
            vec![uri(), dns("d")],
            vec![],
            vec![dns("spiffe://d/ns/a/sa/b")],
        ] {
            assert!(domains.allow(&names).is_err(), "{names:?}");
        }
    }
}
