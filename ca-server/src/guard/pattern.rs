//! Patterns of workloads' identities: a SPIFFE ID in whose path a `*` stands for any letters of one
//! segment, or none, and never for a `/`. Neither the trust domain nor the number of segments is
//! left open.

/// A pattern such as `spiffe://cluster.local/ns/*/sa/*` or `spiffe://cluster.local/ns/team-*/sa/*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityPattern {
    trust_domain: String,
    path: Vec<String>,
}

impl IdentityPattern {
    /// Reads a pattern; a sentence says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = |why: &str| {
            format!(
                "{text:?} is no pattern of identities: {why}; write such as spiffe://cluster.local/ns/*/sa/*"
            )
        };
        let rest = text
            .strip_prefix("spiffe://")
            .ok_or_else(|| bad("it does not begin with spiffe://"))?;
        let (trust_domain, path) = rest.split_once('/').ok_or_else(|| bad("it has no path"))?;
        if trust_domain.is_empty() || trust_domain.contains('*') {
            return Err(bad("its trust domain must be written out"));
        }
        let letter = |letter: u8| {
            letter.is_ascii_alphanumeric() || matches!(letter, b'.' | b'-' | b'_' | b'*')
        };
        let path: Vec<String> = path.split('/').map(str::to_owned).collect();
        if path.iter().any(|segment| {
            segment.is_empty() || segment.contains("**") || !segment.bytes().all(letter)
        }) {
            return Err(bad(
                "each segment of its path has letters, digits, dots, dashes, underscores and single stars",
            ));
        }
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            path,
        })
    }

    /// The trust domain that it is about.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Whether a SPIFFE ID is one of these.
    pub fn matches(&self, identity: &str) -> bool {
        let mut segments = identity
            .strip_prefix("spiffe://")
            .unwrap_or_default()
            .split('/');
        segments.next() == Some(self.trust_domain.as_str())
            && self.path.iter().all(|pattern| {
                segments
                    .next()
                    .is_some_and(|segment| is_like(pattern, segment))
            })
            && segments.next().is_none()
    }
}

/// Whether a segment begins, goes on and ends as the parts between the stars do.
fn is_like(pattern: &str, segment: &str) -> bool {
    let Some((begin, rest)) = pattern.split_once('*') else {
        return pattern == segment;
    };
    let Some(mut left) = segment.strip_prefix(begin) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        let Some((_, behind)) = left.split_once(part) else {
            return false;
        };
        left = behind;
    }
    // A segment without letters is no name, whatever the pattern.
    !segment.is_empty() && left.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> IdentityPattern {
        IdentityPattern::parse(text).unwrap()
    }

    #[test]
    fn a_star_stands_for_letters_of_one_segment() {
        let any = pattern("spiffe://cluster.local/ns/*/sa/*");
        assert!(any.matches("spiffe://cluster.local/ns/default/sa/demo"));
        for other in [
            "spiffe://cluster.local/ns/default/sa/demo/more",
            "spiffe://cluster.local/ns/default/sa",
            "spiffe://cluster.local/ns/default/sa/",
            "spiffe://cluster.local/ns//sa/demo",
            "spiffe://cluster.local/ns/a/b/sa/demo",
            "spiffe://other.local/ns/default/sa/demo",
            "spiffe://cluster.local.evil/ns/default/sa/demo",
            "https://cluster.local/ns/default/sa/demo",
            "",
        ] {
            assert!(!any.matches(other), "{other}");
        }
        let team = pattern("spiffe://d/ns/team-*-prod/sa/a*b*c");
        for (identity, is) in [
            ("spiffe://d/ns/team-x-prod/sa/abc", true),
            ("spiffe://d/ns/team-x-y-prod/sa/a1b2b3c", true),
            ("spiffe://d/ns/team-prod/sa/abc", false),
            ("spiffe://d/ns/team-x-prod/sa/acb", false),
            ("spiffe://d/ns/team-x-prodx/sa/abc", false),
            ("spiffe://d/ns/xteam-x-prod/sa/abc", false),
        ] {
            assert_eq!(team.matches(identity), is, "{identity}");
        }
        assert!(
            pattern("spiffe://d/ns/a").matches("spiffe://d/ns/a")
                && !pattern("spiffe://d/ns/a").matches("spiffe://d/ns/ab")
        );
    }

    #[test]
    fn what_leaves_more_open_than_a_segment_is_no_pattern() {
        for text in [
            "",
            "*",
            "spiffe://*/ns/*/sa/*",
            "spiffe://clus*/ns/a/sa/b",
            "spiffe:///ns/a",
            "spiffe://d",
            "spiffe://d/",
            "spiffe://d/**",
            "spiffe://d/ns//sa",
            "spiffe://d/ns/[ab]",
            "spiffe://d/ns/?",
            "cluster.local/ns/*/sa/*",
        ] {
            assert!(
                IdentityPattern::parse(text)
                    .unwrap_err()
                    .contains("no pattern"),
                "{text}"
            );
        }
    }
}
