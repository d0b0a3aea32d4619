//! Certificates: whether each issuer's chain fits, and how long it lasts; and the names that the
//! serving certificate carries.

use std::time::Duration;

use super::finding::{Findings, span};
use crate::config::{Examination, ExaminedIssuer};
use crate::policy::ServingName;
use crate::timestamp::Timestamp;
use crate::x509::chain::IssuerChain;

/// A CA certificate should be renewed before less than this is left.
const SOON: Duration = Duration::from_secs(30 * 86_400);

pub(super) fn examine(examined: &Examination, now: Timestamp) -> Findings {
    let mut findings = Findings::in_area("certificates");
    let longest = examined.profile.as_ref().map(|profile| profile.maximum);
    for issuer in &examined.issuers {
        findings.about(&issuer.id);
        match (&issuer.chain, &issuer.judged) {
            (Err(complaint), _) => {
                let remedy = "put the certificates of the ceremony there: the issuing one first in `chain`, the root in `roots`";
                findings.problem("chain", complaint.to_string(), remedy);
            }
            (Ok(_), Some(why)) => {
                findings.problem(
                    "chain",
                    why.clone(),
                    "have that certificate issued again; docs/certificates.md says what a chain may hold",
                );
            }
            // A config in which nobody signs is refused.
            (Ok(chain), None) => of_chain(
                &mut findings,
                issuer,
                chain,
                examined.refused.is_none(),
                longest,
                now,
            ),
        }
    }
    serving(&mut findings, &examined.names);
    findings
}

fn of_chain(
    findings: &mut Findings,
    issuer: &ExaminedIssuer,
    chain: &IssuerChain,
    beside_a_good_one: bool,
    longest: Option<Duration>,
    now: Timestamp,
) {
    let name = chain.subject_text();
    let renew = "hold a ceremony for a new issuing certificate, add it as an [[issuer]], and let the old one retire";
    if chain.ends() <= now {
        let what = format!(
            "{name} and its chain were valid until {}, {} ago",
            chain.ends(),
            span(now.since(chain.ends()))
        );
        match issuer.active {
            true if beside_a_good_one => findings.warning(
                "chain",
                format!("{what}: it signs nothing, others do"),
                renew,
            ),
            true => findings.problem("chain", format!("{what}: nothing can be issued"), renew),
            false => findings.warning(
                "chain",
                what,
                "take the retired [[issuer]] out of the config; its roots leave the bundle with it",
            ),
        }
        return;
    }
    if now < chain.begins() {
        findings.problem(
            "chain",
            format!("{name} is valid only from {} on", chain.begins()),
            "set the clock, or wait",
        );
        return;
    }
    let left = chain.ends().since(now);
    let what = format!("{name} until {}, {} left", chain.issuing_ends(), span(left));
    let root = format!("root until {}", chain.root_ends());
    match () {
        // A retiring issuer signs nothing; what it has signed ends before it does.
        () if !issuer.active => findings.ok("chain", format!("{what}; {root}; retiring")),
        () if !chain.may_sign_at(now) => findings.problem(
            "chain",
            format!("{what}: too little for a signature"),
            renew,
        ),
        () if left < SOON => findings.warning("chain", format!("{what}; {root}"), renew),
        () => findings.ok("chain", format!("{what}; {root}")),
    }
    if let Some(longest) = longest.filter(|longest| issuer.active && left < *longest) {
        let what = format!(
            "less is left than profile.maximum allows a certificate ({}): longer ones are cut to the issuer's end",
            span(longest)
        );
        findings.warning("lifetime", what, renew);
    }
}

/// The daemon's own certificate comes from the default issuer, under the names that agents dial.
fn serving(findings: &mut Findings, names: &[ServingName]) {
    if !names.is_empty() {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        findings.about("serving").ok(
            "names",
            format!("the daemon's own certificate carries {}", names.join(", ")),
        );
    }
}
