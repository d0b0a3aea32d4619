//! A row for people and programs that do not read CBOR. Field names are a public format.

use serde::Serialize;

use super::super::event::{DeviceFacts, Event, Intent, Proof, RowRef, Why};
use super::super::query::Entry;
use crate::digest::sha256;
use crate::x509::{lint, pem};

/// One row. What a kind does not have is left out; what it has and is empty is `null`.
#[derive(Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) struct Line {
    pub(super) kind: String,
    pub(super) time: String,
    pub(super) chain: String,
    pub(super) period: u32,
    pub(super) seq: u64,
    pub(super) hash: String,
    pub(super) request_id: Option<String>,
    #[serde(flatten)]
    pub(super) certificate: Option<CertificateLine>,
    #[serde(flatten)]
    pub(super) issued: Option<IssuedLine>,
    #[serde(flatten)]
    pub(super) refused: Option<RefusedLine>,
    #[serde(flatten)]
    pub(super) own: Option<OwnLine>,
}

/// What intents, outcomes and repeats say.
#[derive(Serialize)]
pub(super) struct CertificateLine {
    pub(super) purpose: String,
    pub(super) serial: String,
    pub(super) identity: Option<String>,
    pub(super) issuer: String,
    pub(super) profile: String,
    pub(super) evidence: EvidenceLine,
    /// What a device's own log shows of an ECDSA signature.
    pub(super) to_be_signed_sha256: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) intent: Option<ReferenceLine>,
}

#[derive(Serialize)]
pub(super) struct IssuedLine {
    pub(super) certificate_sha256: String,
    pub(super) certificate: String,
}

#[derive(Serialize)]
pub(super) struct RefusedLine {
    pub(super) reason: String,
    pub(super) code: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) detail: Option<String>,
}

#[derive(Serialize)]
pub(super) struct EvidenceLine {
    pub(super) credential: String,
    pub(super) issuer: Option<String>,
    pub(super) subject: Option<String>,
    pub(super) token: Option<String>,
    pub(super) cluster: Option<String>,
    pub(super) pod: Option<PodLine>,
    pub(super) peer: Option<String>,
}

#[derive(Serialize)]
pub(super) struct PodLine {
    pub(super) name: String,
    pub(super) uid: String,
}

#[derive(Serialize)]
pub(super) struct ReferenceLine {
    pub(super) chain: String,
    pub(super) period: u32,
    pub(super) seq: u64,
    pub(super) hash: String,
}

/// What the rarer kinds say.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum OwnLine {
    Start {
        host: String,
        version: String,
        config: String,
        heads: Vec<ReferenceLine>,
    },
    Head {
        head: ReferenceLine,
    },
    Previous {
        previous: ReferenceLine,
    },
    Ceremony {
        transcript: String,
    },
    Issuer {
        issuer: String,
        certificates: Vec<String>,
        roots: Vec<String>,
        key_uri: String,
    },
    Reload {
        config: String,
    },
    Clock {
        recorded: String,
    },
    Refused {
        identity: Option<String>,
        evidence: EvidenceLine,
    },
    Group {
        prefix: String,
        from: String,
        count: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        identity: Option<String>,
    },
    Dropped {
        count: u64,
    },
    Device {
        issuer: String,
        token: u64,
        key_uri: String,
        state: String,
        detail: String,
        probes: u64,
    },
}

pub(super) fn line(entry: Entry, intent: Option<Intent>) -> Line {
    let mut line = Line {
        kind: entry.event.kind().to_owned(),
        time: entry.header.time.rfc3339(),
        chain: entry.header.chain.to_string(),
        period: entry.header.place.period.yyyymm(),
        seq: entry.header.place.seq,
        hash: hex::encode(entry.hash),
        request_id: entry.header.request.map(|request| request.to_string()),
        ..Line::default()
    };
    let closes = entry.event.closes();
    match entry.event {
        Event::Intent(intent) => line.certificate = Some(certificate_line(intent, None)),
        Event::Issued {
            signature,
            certificate: digest,
            ..
        } => {
            if let Some(intent) = intent {
                let der = lint::certificate(&intent.to_be_signed, &signature);
                let certificate = der.map(|der| pem::certificate(&der)).unwrap_or_default();
                line.issued = Some(IssuedLine {
                    certificate_sha256: hex::encode(digest),
                    certificate,
                });
                line.certificate = Some(certificate_line(intent, closes));
            }
        }
        Event::Failed { why, .. } | Event::Unknown { why, .. } => {
            line.certificate = intent.map(|intent| certificate_line(intent, closes));
            line.refused = Some(refused_line(why));
        }
        Event::Repeated {
            intent: reference,
            identity,
            evidence,
        } => {
            // The evidence is what proved the identity this time.
            line.certificate = intent.map(|intent| {
                certificate_line(
                    Intent {
                        identity: Some(identity),
                        evidence,
                        ..intent
                    },
                    Some(reference),
                )
            });
        }
        Event::Refused {
            why,
            identity,
            evidence,
        } => {
            line.refused = Some(refused_line(why));
            line.own = Some(OwnLine::Refused {
                identity,
                evidence: evidence_line(evidence),
            });
        }
        Event::RefusedGroup(group) => {
            line.refused = Some(RefusedLine {
                reason: group.reason,
                code: group.code,
                detail: None,
            });
            let (prefix, from, count, identity) = (
                group.prefix,
                group.from.rfc3339(),
                group.count,
                group.identity,
            );
            line.own = Some(OwnLine::Group {
                prefix,
                from,
                count,
                identity,
            });
        }
        other => line.own = own_line(other),
    }
    line
}

fn own_line(event: Event) -> Option<OwnLine> {
    Some(match event {
        Event::Start {
            host,
            version,
            config,
            heads,
        } => OwnLine::Start {
            host,
            version,
            config: hex::encode(config),
            heads: heads.into_iter().map(reference_line).collect(),
        },
        Event::Period { previous } => OwnLine::Previous {
            previous: reference_line(previous),
        },
        Event::ChainEnded { head } => OwnLine::Head {
            head: reference_line(head),
        },
        Event::Ceremony { transcript } => OwnLine::Ceremony {
            transcript: hex::encode(transcript),
        },
        Event::Issuer(facts) => OwnLine::Issuer {
            issuer: facts.id,
            certificates: facts
                .chain
                .iter()
                .map(|der| pem::certificate(der))
                .collect(),
            roots: facts
                .roots
                .iter()
                .map(|der| pem::certificate(der))
                .collect(),
            key_uri: facts.key_uri,
        },
        Event::Reload { config } => OwnLine::Reload {
            config: hex::encode(config),
        },
        Event::Clock { recorded } => OwnLine::Clock {
            recorded: recorded.rfc3339(),
        },
        Event::Dropped { count } => OwnLine::Dropped { count },
        Event::Device(DeviceFacts {
            issuer,
            token,
            key_uri,
            state,
            detail,
            probes,
        }) => OwnLine::Device {
            issuer,
            token,
            key_uri,
            state,
            detail,
            probes,
        },
        _ => return None,
    })
}

fn certificate_line(intent: Intent, named: Option<RowRef>) -> CertificateLine {
    CertificateLine {
        purpose: intent.purpose,
        serial: hex::encode(intent.serial),
        identity: intent.identity,
        issuer: intent.issuer,
        profile: hex::encode(intent.profile),
        evidence: evidence_line(intent.evidence),
        to_be_signed_sha256: hex::encode(sha256(&intent.to_be_signed)),
        intent: named.map(reference_line),
    }
}

fn refused_line(why: Why) -> RefusedLine {
    RefusedLine {
        reason: why.reason,
        code: why.code,
        detail: Some(why.detail),
    }
}

fn evidence_line(proof: Proof) -> EvidenceLine {
    EvidenceLine {
        credential: proof.credential,
        issuer: proof.issuer,
        subject: proof.subject,
        token: proof.token,
        cluster: proof.cluster,
        pod: proof.pod.map(|(name, uid)| PodLine { name, uid }),
        peer: proof.peer,
    }
}

fn reference_line(row: RowRef) -> ReferenceLine {
    ReferenceLine {
        chain: row.chain.to_string(),
        period: row.place.period.yyyymm(),
        seq: row.place.seq,
        hash: hex::encode(row.hash),
    }
}
