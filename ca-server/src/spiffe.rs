//! SPIFFE identities as typed values (SPIFFE-ID.md). An identity is parsed once at the edge and
//! never joined into text and split again.

use std::fmt;

/// A trust domain: lower-case letters, digits, dots, dashes and underscores, at most 255 bytes
/// (SPIFFE-ID §2.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The trust domain of that name, or `None` if it is not a legal one.
    pub fn parse(name: &str) -> Option<Self> {
        let legal = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_')
        };
        (!name.is_empty() && name.len() <= 255 && name.bytes().all(legal))
            .then(|| Self(name.to_owned()))
    }

    /// The name without scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A Kubernetes service account: namespace and name, both DNS names as Kubernetes allows them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAccount {
    namespace: String,
    name: String,
}

impl ServiceAccount {
    /// The account, or `None` unless both parts are legal: a namespace is an RFC 1123 label, an
    /// account name an RFC 1123 subdomain.
    pub fn new(namespace: &str, name: &str) -> Option<Self> {
        (namespace.len() <= 63
            && is_label(namespace)
            && name.len() <= 253
            && name.split('.').all(is_label))
        .then(|| Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Reads `system:serviceaccount:<namespace>:<name>`: exactly four parts, none empty.
    pub fn parse_username(username: &str) -> Option<Self> {
        let mut parts = username.split(':');
        let account = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        match (account, parts.next()) {
            (("system", "serviceaccount", namespace, name), None) => Self::new(namespace, name),
            _ => None,
        }
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The account's name within its namespace.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// The identity of a mesh workload: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    account: ServiceAccount,
}

impl SpiffeId {
    /// The identity of a service account in a trust domain.
    pub fn new(trust_domain: TrustDomain, account: ServiceAccount) -> Self {
        Self {
            trust_domain,
            account,
        }
    }

    /// Reads the exact form that Istio uses; anything else (another path, upper case, escapes,
    /// empty segments) is `None`.
    pub fn parse(uri: &str) -> Option<Self> {
        let mut segments = uri.strip_prefix("spiffe://")?.split('/');
        let trust_domain = TrustDomain::parse(segments.next()?)?;
        let path = (
            segments.next()?,
            segments.next()?,
            segments.next()?,
            segments.next()?,
        );
        match (path, segments.next()) {
            (("ns", namespace, "sa", name), None) => Some(Self {
                trust_domain,
                account: ServiceAccount::new(namespace, name)?,
            }),
            _ => None,
        }
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The service account.
    pub fn account(&self) -> &ServiceAccount {
        &self.account
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.account.namespace, self.account.name
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_back_as_it_was_written() {
        let uri = "spiffe://cluster.local/ns/default/sa/demo";
        assert_eq!(
            SpiffeId::parse(uri).map(|id| id.to_string()).as_deref(),
            Some(uri)
        );
    }

    #[test]
    fn nothing_but_the_exact_form_is_an_identity() {
        for uri in [
            "",
            "spiffe://",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b/",
            "spiffe://cluster.local//ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://Cluster.local/ns/a/sa/b",
            "spiffe://c/ns/A/sa/b",
            "spiffe://c/ns/a%2fb/sa/c",
            "spiffe://c/ns/a/sa/b,spiffe://c/ns/a/sa/c",
            "spiffe://c/ns/a/sa/b\0",
            "spiffe://c/ns/a/sa/ü",
            "spiffe://c:80/ns/a/sa/b",
            "spiffe://u@c/ns/a/sa/b",
            "spiffe://c/ns/a/sa/b?x",
            "spiffe://c/ns/../sa/b",
            "SPIFFE://c/ns/a/sa/b",
        ] {
            assert_eq!(SpiffeId::parse(uri), None, "{uri:?}");
        }
    }

    #[test]
    fn a_username_has_exactly_four_parts_and_none_is_empty() {
        assert!(ServiceAccount::parse_username("system:serviceaccount:default:demo").is_some());
        for name in [
            "",
            "system:serviceaccount:default",
            "system:serviceaccount::demo",
            "system:serviceaccount:default:",
            "system:serviceaccount:a:b:c",
            "system:node:default:demo",
            "kubernetes-admin",
            "system:serviceaccount:a/b:c",
        ] {
            assert_eq!(ServiceAccount::parse_username(name), None, "{name:?}");
        }
    }
}
