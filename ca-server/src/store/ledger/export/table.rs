//! A row as a line of a table. The columns are a public format: each kind fills those that it has,
//! and `more` holds as JSON what only rarer kinds have, so that nothing is left out.

use super::line::{EvidenceLine, Line, OwnLine};

/// The columns, in their order.
pub(super) const HEADER: [&str; 31] = [
    "kind",
    "time",
    "chain",
    "period",
    "seq",
    "hash",
    "request_id",
    "purpose",
    "serial",
    "identity",
    "issuer",
    "profile",
    "credential",
    "evidence_issuer",
    "subject",
    "token",
    "cluster",
    "pod_name",
    "pod_uid",
    "peer",
    "to_be_signed_sha256",
    "intent_chain",
    "intent_period",
    "intent_seq",
    "intent_hash",
    "certificate_sha256",
    "certificate",
    "reason",
    "code",
    "detail",
    "more",
];

/// The fields of a row, as many as the header has.
pub(super) fn record(line: Line) -> Result<Vec<String>, serde_json::Error> {
    let mut fields = vec![
        line.kind,
        line.time,
        line.chain,
        line.period.to_string(),
        line.seq.to_string(),
        line.hash,
    ];
    fields.push(line.request_id.unwrap_or_default());
    let more = match (line.certificate, line.own) {
        (Some(line), more) => {
            fields.extend([
                line.purpose,
                line.serial,
                line.identity.unwrap_or_default(),
                line.issuer,
                line.profile,
            ]);
            fields.extend(evidence(line.evidence));
            fields.push(line.to_be_signed_sha256);
            fields.extend(line.intent.map_or_else(nothing, |row| {
                [
                    row.chain,
                    row.period.to_string(),
                    row.seq.to_string(),
                    row.hash,
                ]
            }));
            more
        }
        (
            None,
            Some(OwnLine::Refused {
                identity,
                evidence: proof,
            }),
        ) => {
            fields.extend(
                nothing::<2>()
                    .into_iter()
                    .chain([identity.unwrap_or_default()])
                    .chain(nothing::<2>()),
            );
            fields.extend(evidence(proof).into_iter().chain(nothing::<5>()));
            None
        }
        (
            None,
            Some(OwnLine::Group {
                prefix,
                from,
                count,
                identity,
            }),
        ) => {
            fields.extend(
                nothing::<2>()
                    .into_iter()
                    .chain([identity.unwrap_or_default()])
                    .chain(nothing::<15>()),
            );
            Some(OwnLine::Group {
                prefix,
                from,
                count,
                identity: None,
            })
        }
        (None, more) => {
            fields.extend(nothing::<18>());
            more
        }
    };
    match line.issued {
        // One line without armour: base64 of the DER.
        Some(issued) => fields.extend([
            issued.certificate_sha256,
            issued
                .certificate
                .lines()
                .filter(|line| !line.starts_with('-'))
                .collect(),
        ]),
        None => fields.extend(nothing::<2>()),
    }
    match line.refused {
        Some(refused) => fields.extend([
            refused.reason,
            refused.code,
            refused.detail.unwrap_or_default(),
        ]),
        None => fields.extend(nothing::<3>()),
    }
    fields.push(
        more.map(|own| serde_json::to_string(&own))
            .transpose()?
            .unwrap_or_default(),
    );
    Ok(fields.into_iter().map(harmless).collect())
}

fn evidence(line: EvidenceLine) -> [String; 8] {
    let [issuer, subject, token, cluster, peer] = [
        line.issuer,
        line.subject,
        line.token,
        line.cluster,
        line.peer,
    ]
    .map(Option::unwrap_or_default);
    let [name, uid] = line.pod.map_or_else(nothing, |pod| [pod.name, pod.uid]);
    [
        line.credential,
        issuer,
        subject,
        token,
        cluster,
        name,
        uid,
        peer,
    ]
}

fn nothing<const N: usize>() -> [String; N] {
    std::array::from_fn(|_| String::new())
}

/// Spreadsheets take a field for a formula that begins with one of these; details of refusals are
/// what callers have sent.
fn harmless(field: String) -> String {
    if field.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        format!("'{field}")
    } else {
        field
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_never_a_formula() {
        for formula in ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"] {
            assert_eq!(harmless(formula.into()), format!("'{formula}"));
        }
        assert_eq!(
            harmless("spiffe://cluster.local/ns/a/sa/b".into()),
            "spiffe://cluster.local/ns/a/sa/b"
        );
    }

    #[test]
    fn every_row_has_as_many_fields_as_the_header() {
        assert_eq!(record(Line::default()).unwrap().len(), HEADER.len());
    }
}
