//! Constraints on URIs in a CA's certificate (RFC 5280 §4.2.1.10): which hosts the URIs below it
//! may name. A SPIFFE ID's host is its trust domain. Where the standard leaves a choice, the
//! narrower reading holds: a host by itself means that host and none below it.

use super::certificate::{Certificate, content, elements};
use const_oid::db::rfc5280::ID_CE_NAME_CONSTRAINTS;

/// The URI part of one NameConstraints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Constraint {
    /// One of these must fit; `None` if URIs are not limited so.
    permitted: Option<Vec<String>>,
    /// None of these may fit.
    excluded: Vec<String>,
}

/// The constraint of a certificate, if it has one.
pub(super) fn of(certificate: &Certificate) -> Result<Option<Constraint>, der::Error> {
    let found = certificate
        .extensions()
        .iter()
        .find(|extension| extension.oid == ID_CE_NAME_CONSTRAINTS);
    found
        .map(|extension| Constraint::read(content(&extension.value)?))
        .transpose()
}

impl Constraint {
    /// Reads the content of a NameConstraints.
    pub(super) fn read(constraints: &[u8]) -> Result<Self, der::Error> {
        let mut read = Self::default();
        for subtrees in elements(constraints)? {
            let mut hosts = Vec::new();
            for subtree in elements(content(subtrees)?)? {
                // The base comes first; [6] is a uniformResourceIdentifier.
                if let Some(base @ [0x86, ..]) = elements(content(subtree)?)?.first().copied() {
                    hosts.push(String::from_utf8_lossy(content(base)?).to_ascii_lowercase());
                }
            }
            match subtrees.first() {
                Some(0xa0) if !hosts.is_empty() => read.permitted = Some(hosts),
                Some(0xa1) => read.excluded = hosts,
                _ => {}
            }
        }
        Ok(read)
    }

    /// Whether it says anything of URIs.
    pub(super) fn concerns_uris(&self) -> bool {
        self.permitted.is_some() || !self.excluded.is_empty()
    }

    /// Whether a URI may stand below. One without a host does not fit a constraint (RFC 5280
    /// §4.2.1.10).
    pub(super) fn allows(&self, uri: &str) -> bool {
        if !self.concerns_uris() {
            return true;
        }
        let Some(host) = host(uri) else { return false };
        let permitted = self
            .permitted
            .as_ref()
            .is_none_or(|permitted| permitted.iter().any(|base| fits(base, &host)));
        // A base that is no host permits nothing and excludes everything: programs differ on what
        // it means.
        permitted
            && !self
                .excluded
                .iter()
                .any(|base| !is_host(base) || fits(base, &host))
    }
}

/// The host of a URI's authority, in small letters; an address is none.
fn host(uri: &str) -> Option<String> {
    let authority = uri.split_once("://")?.1.split(['/', '?', '#']).next()?;
    let host = authority.rsplit('@').next()?;
    let host = if host.starts_with('[') {
        return None;
    } else {
        host.split(':').next()?
    };
    let is_address = host.parse::<std::net::Ipv4Addr>().is_ok();
    (!host.is_empty() && !is_address).then(|| host.to_ascii_lowercase())
}

/// Whether it is a host, or a dot and a host.
fn is_host(base: &str) -> bool {
    let labels = base.strip_prefix('.').unwrap_or(base);
    let letter = |letter: u8| letter.is_ascii_alphanumeric() || matches!(letter, b'-' | b'_');
    labels
        .split('.')
        .all(|label| !label.is_empty() && label.bytes().all(letter))
}

fn fits(base: &str, host: &str) -> bool {
    match base.strip_prefix('.') {
        Some(domain) => host
            .strip_suffix(domain)
            .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        None => base == host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constraint(permitted: Option<&[&str]>, excluded: &[&str]) -> Constraint {
        let owned = |hosts: &[&str]| hosts.iter().map(|host| (*host).to_owned()).collect();
        Constraint {
            permitted: permitted.map(owned),
            excluded: owned(excluded),
        }
    }

    #[test]
    fn a_host_means_itself_and_a_dot_means_what_lies_below() {
        let uri = "spiffe://cluster.local/ns/default/sa/demo";
        for (permitted, excluded, allowed) in [
            (None, &[][..], true),
            (Some(&["cluster.local"][..]), &[][..], true),
            (Some(&["other", "cluster.local"]), &[], true),
            (Some(&[".local"]), &[], true),
            (Some(&[".cluster.local"]), &[], false),
            (Some(&["local"]), &[], false),
            (Some(&[".ocal"]), &[], false),
            (Some(&[""]), &[], false),
            (Some(&[".corp.example"]), &[], false),
            (None, &["cluster.local"], false),
            (None, &[".local"], false),
            (None, &[".cluster.local", "local"], true),
            (None, &[""], false),
            (None, &["spiffe://other"], false),
            (None, &["."], false),
            (None, &["other."], false),
            (Some(&["cluster.local"]), &[".local"], false),
        ] {
            assert_eq!(
                constraint(permitted, excluded).allows(uri),
                allowed,
                "{permitted:?} {excluded:?}"
            );
        }
    }

    #[test]
    fn a_uri_without_a_host_fits_no_constraint() {
        let limited = constraint(Some(&["cluster.local"]), &[]);
        for uri in [
            "urn:uuid:1",
            "spiffe:///ns",
            "spiffe://127.0.0.1/a",
            "spiffe://[::1]/a",
            "mailto:x@cluster.local",
            "",
        ] {
            assert!(!limited.allows(uri), "{uri}");
            assert!(constraint(None, &[]).allows(uri), "{uri}");
        }
        for uri in [
            "https://CLUSTER.local:8443/a",
            "https://user@cluster.local?x",
            "spiffe://cluster.local",
        ] {
            assert!(limited.allows(uri), "{uri}");
        }
    }
}
