//! The ledger as JSON lines, one a row, for people and programs that do not read CBOR. Field names are a public format.

use std::io::Write;

use serde::Serialize;

use super::event::{Event, Intent, Proof, RowRef, Why};
use super::query::{Cursor, Entry, LedgerReader, ReadError};
use crate::digest::sha256;
use crate::x509::{lint, pem};

/// One row. What a kind does not have is left out; what it has and is empty is `null`.
#[derive(Default, Serialize)]
#[serde(rename_all = "snake_case")]
struct Line {
    kind: String,
    time: String,
    chain: String,
    period: u32,
    seq: u64,
    hash: String,
    request_id: Option<String>,
    #[serde(flatten)]
    certificate: Option<CertificateLine>,
    #[serde(flatten)]
    issued: Option<IssuedLine>,
    #[serde(flatten)]
    refused: Option<RefusedLine>,
    #[serde(flatten)]
    own: Option<OwnLine>,
}

/// What intents and outcomes say.
#[derive(Serialize)]
struct CertificateLine {
    purpose: String,
    serial: String,
    identity: Option<String>,
    issuer: String,
    profile: String,
    evidence: EvidenceLine,
    /// What a device's own log shows of an ECDSA signature.
    to_be_signed_sha256: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    intent: Option<ReferenceLine>,
}

#[derive(Serialize)]
struct IssuedLine {
    certificate_sha256: String,
    certificate: String,
}

#[derive(Serialize)]
struct RefusedLine {
    reason: String,
    code: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

#[derive(Serialize)]
struct EvidenceLine {
    credential: String,
    issuer: Option<String>,
    subject: Option<String>,
    token: Option<String>,
    cluster: Option<String>,
    pod: Option<PodLine>,
    peer: Option<String>,
}

#[derive(Serialize)]
struct PodLine {
    name: String,
    uid: String,
}

#[derive(Serialize)]
struct ReferenceLine {
    chain: String,
    period: u32,
    seq: u64,
    hash: String,
}

/// What the rarer kinds say.
#[derive(Serialize)]
#[serde(untagged)]
enum OwnLine {
    Start { host: String, version: String, config: String, heads: Vec<ReferenceLine> },
    Head { head: ReferenceLine },
    Previous { previous: ReferenceLine },
    Ceremony { transcript: String },
    Issuer { issuer: String, certificates: Vec<String>, roots: Vec<String>, key_uri: String },
    Reload { config: String },
    Clock { recorded: String },
    Refused { identity: Option<String>, evidence: EvidenceLine },
    Group { prefix: String, from: String, count: u64 },
    Dropped { count: u64 },
}

impl LedgerReader {
    /// Writes every row of one snapshot as a line of JSON, chain by chain in each period.
    pub async fn export(&mut self, out: &mut impl Write) -> Result<(), ReadError> {
        let (mut cursor, _) = Cursor::begin(&mut self.database).await?;
        loop {
            let rows = cursor.next(&mut self.database).await?;
            if rows.is_empty() {
                return Ok(());
            }
            for row in &rows {
                let entry = Entry::try_from(row)?;
                let intent = match entry.event.closes() {
                    Some(reference) => self.intent(reference).await?,
                    None => None,
                };
                serde_json::to_writer(&mut *out, &line(entry, intent)).map_err(std::io::Error::from)?;
                out.write_all(b"\n")?;
            }
        }
    }
}

fn line(entry: Entry, intent: Option<Intent>) -> Line {
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
        Event::Issued { signature, certificate: digest, .. } => {
            if let Some(intent) = intent {
                let der = lint::certificate(&intent.to_be_signed, &signature);
                let certificate = der.map(|der| pem::certificate(&der)).unwrap_or_default();
                line.issued = Some(IssuedLine { certificate_sha256: hex::encode(digest), certificate });
                line.certificate = Some(certificate_line(intent, closes));
            }
        }
        Event::Failed { why, .. } | Event::Unknown { why, .. } => {
            line.certificate = intent.map(|intent| certificate_line(intent, closes));
            line.refused = Some(refused_line(why));
        }
        Event::Refused { why, identity, evidence } => {
            line.refused = Some(refused_line(why));
            line.own = Some(OwnLine::Refused { identity, evidence: evidence_line(evidence) });
        }
        Event::RefusedGroup(group) => {
            line.refused = Some(RefusedLine { reason: group.reason, code: group.code, detail: None });
            line.own = Some(OwnLine::Group { prefix: group.prefix, from: group.from.rfc3339(), count: group.count });
        }
        other => line.own = own_line(other),
    }
    line
}

fn own_line(event: Event) -> Option<OwnLine> {
    Some(match event {
        Event::Start { host, version, config, heads } => {
            OwnLine::Start { host, version, config: hex::encode(config), heads: heads.into_iter().map(reference_line).collect() }
        }
        Event::Period { previous } => OwnLine::Previous { previous: reference_line(previous) },
        Event::ChainEnded { head } => OwnLine::Head { head: reference_line(head) },
        Event::Ceremony { transcript } => OwnLine::Ceremony { transcript: hex::encode(transcript) },
        Event::Issuer(facts) => OwnLine::Issuer {
            issuer: facts.id,
            certificates: facts.chain.iter().map(|der| pem::certificate(der)).collect(),
            roots: facts.roots.iter().map(|der| pem::certificate(der)).collect(),
            key_uri: facts.key_uri,
        },
        Event::Reload { config } => OwnLine::Reload { config: hex::encode(config) },
        Event::Clock { recorded } => OwnLine::Clock { recorded: recorded.rfc3339() },
        Event::Dropped { count } => OwnLine::Dropped { count },
        _ => return None,
    })
}

fn certificate_line(intent: Intent, closes: Option<RowRef>) -> CertificateLine {
    CertificateLine {
        purpose: intent.purpose,
        serial: hex::encode(intent.serial),
        identity: intent.identity,
        issuer: intent.issuer,
        profile: hex::encode(intent.profile),
        evidence: evidence_line(intent.evidence),
        to_be_signed_sha256: hex::encode(sha256(&intent.to_be_signed)),
        intent: closes.map(reference_line),
    }
}

fn refused_line(why: Why) -> RefusedLine {
    RefusedLine { reason: why.reason, code: why.code, detail: Some(why.detail) }
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
    ReferenceLine { chain: row.chain.to_string(), period: row.place.period.yyyymm(), seq: row.place.seq, hash: hex::encode(row.hash) }
}
