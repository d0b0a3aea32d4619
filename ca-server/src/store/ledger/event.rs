//! What can stand in a ledger row, as values: places in chains, and the kinds of event with their
//! own fields. `body` turns them into bytes and back; nothing here knows a database.

use std::fmt;
use std::sync::Arc;

use crate::evidence::{Evidence, RequestId};
use crate::refusal::{Reason, Refusal};
use crate::timestamp::{Period, Timestamp};

/// A chain: one writing connection of one process life. 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainId(pub [u8; 16]);

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// SHA-256.
pub type Hash = [u8; 32];

/// Where a row stands in its chain: `seq` counts from 0 in each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The month.
    pub period: Period,
    /// The row's number within chain and period.
    pub seq: u64,
}

/// One row, named so that it cannot be exchanged: its place and its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowRef {
    /// The chain.
    pub chain: ChainId,
    /// The place in the chain.
    pub place: Place,
    /// The row's hash.
    pub hash: Hash,
}

impl fmt::Display for RowRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "period {} chain {} seq {}",
            self.place.period, self.chain, self.place.seq
        )
    }
}

/// What every body begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The chain.
    pub chain: ChainId,
    /// The place in the chain.
    pub place: Place,
    /// When it was written, never earlier than the row before.
    pub time: Timestamp,
    /// The call it belongs to.
    pub request: Option<RequestId>,
    /// The first intent of this chain, up to this row, whose outcome was not yet committed.
    pub oldest_open: Option<Place>,
}

/// A kind of row with its own fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// First row of a chain.
    Start {
        /// The machine's name.
        host: String,
        /// The program's version.
        version: String,
        /// SHA-256 of the configuration.
        config: Hash,
        /// The last row of every chain whose last row no other chain had named.
        heads: Vec<RowRef>,
    },
    /// First row of a chain in a new period; names the last row of the old one.
    Period {
        /// The row before.
        previous: RowRef,
    },
    /// Last row after a clean stop.
    End,
    /// A chain was found dead; this is where it ends.
    ChainEnded {
        /// Its last row.
        head: RowRef,
    },
    /// The ceremony that made the keys.
    Ceremony {
        /// SHA-256 of its transcript.
        transcript: Hash,
    },
    /// An issuer that may sign from here on.
    Issuer(IssuerFacts),
    /// The configuration was read again; the facts follow.
    Reload {
        /// SHA-256 of the configuration.
        config: Hash,
    },
    /// An operator accepted a clock that is behind the ledger.
    Clock {
        /// The newest time that the ledger held then.
        recorded: Timestamp,
    },
    /// A signature is about to be asked for.
    Intent(Intent),
    /// A certificate exists.
    Issued {
        /// Its intent.
        intent: RowRef,
        /// The signature, as X.509 encodes it.
        signature: Vec<u8>,
        /// SHA-256 of the certificate's DER.
        certificate: Hash,
    },
    /// Provably nothing was signed.
    Failed {
        /// Its intent.
        intent: RowRef,
        /// Why.
        why: Why,
    },
    /// A signature may exist; none was released.
    Unknown {
        /// Its intent.
        intent: RowRef,
        /// Why.
        why: Why,
    },
    /// A call was made again, and got the certificate that was recorded for the first one.
    Repeated {
        /// The certificate's intent.
        intent: RowRef,
        /// Who asked again.
        identity: String,
        /// What proved it this time.
        evidence: Proof,
    },
    /// An authenticated caller was refused.
    Refused {
        /// Why.
        why: Why,
        /// Who it was.
        identity: Option<String>,
        /// What proved it.
        evidence: Proof,
    },
    /// Callers who proved nothing were refused, or one identity too often for a row each.
    RefusedGroup(Group),
    /// Refusals that a full queue kept out of the ledger.
    Dropped {
        /// How many.
        count: u64,
    },
    /// A token that signs for an issuer is in another state than before.
    Device(DeviceFacts),
    /// A kind that a later version of the program knows.
    Other {
        /// Its name.
        kind: String,
    },
}

/// An issuer as the ledger keeps it, so that `verify` needs nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerFacts {
    /// The issuer's id in the configuration.
    pub id: String,
    /// Its certificate and those above it, DER, issuing certificate first, no root.
    pub chain: Vec<Vec<u8>>,
    /// The roots, DER.
    pub roots: Vec<Vec<u8>>,
    /// The key's URI; it names where secrets are and holds none.
    pub key_uri: String,
}

impl IssuerFacts {
    /// The certificate whose key signs: the chain's first, or a root that issues by itself.
    pub fn certificate(&self) -> Option<&[u8]> {
        self.chain.first().or(self.roots.first()).map(Vec::as_slice)
    }
}

/// How one of an issuer's tokens is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// The issuer's id.
    pub issuer: String,
    /// Which of the issuer's tokens, counted from 1 in the config's order.
    pub token: u64,
    /// The key's URI there, without secrets.
    pub key_uri: String,
    /// `healthy`, `degraded`, `reconnecting` or `locked_out`.
    pub state: String,
    /// One sentence.
    pub detail: String,
    /// Throw-away signatures that were made with the key to see whether the token is back, since
    /// the process began: signatures of `signers::PROBE`, which no intent names.
    pub probes: u64,
}

/// Everything about a certificate before it is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// What the signature is for (`leaf`, `serving`, …).
    pub purpose: String,
    /// The serial's octets.
    pub serial: Vec<u8>,
    /// The SPIFFE identity; none for the daemon's own certificate.
    pub identity: Option<String>,
    /// The issuer's id.
    pub issuer: String,
    /// SHA-256 of the profile.
    pub profile: Hash,
    /// What proved the identity.
    pub evidence: Proof,
    /// The to-be-signed bytes, whole.
    pub to_be_signed: Vec<u8>,
}

/// Why something did not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// `Reason`, by name.
    pub reason: String,
    /// The gRPC status it was answered with.
    pub code: String,
    /// The full cause.
    pub detail: String,
}

impl Why {
    /// The cause of an intent that a process left behind when it died.
    pub fn process_died() -> Self {
        Self::from(&Refusal::new(
            Reason::Stopping,
            "the process ended before the outcome was recorded",
        ))
    }
}

impl From<&Refusal> for Why {
    fn from(refusal: &Refusal) -> Self {
        Self {
            reason: refusal.reason().as_str().into(),
            code: refusal.code().as_str().into(),
            detail: refusal.detail().into(),
        }
    }
}

/// `Evidence` as it stands in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are Evidence's")]
pub struct Proof {
    pub credential: String,
    pub issuer: Option<String>,
    pub subject: Option<String>,
    pub token: Option<String>,
    pub cluster: Option<String>,
    /// Name and UID.
    pub pod: Option<(String, String)>,
    /// Address and port.
    pub peer: Option<String>,
}

impl From<&Evidence> for Proof {
    fn from(evidence: &Evidence) -> Self {
        Self {
            credential: evidence.credential.as_str().into(),
            issuer: evidence.issuer.clone(),
            subject: evidence.subject.clone(),
            token: evidence.token.clone(),
            cluster: evidence.cluster.clone(),
            pod: evidence
                .pod
                .as_ref()
                .map(|pod| (pod.name.clone(), pod.uid.clone())),
            peer: evidence.peer.map(|peer| peer.to_string()),
        }
    }
}

/// Refusals that are counted together: those before authentication, and what one identity is
/// refused beyond its first rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// `Reason`, by name.
    pub reason: String,
    /// The gRPC status they were answered with.
    pub code: String,
    /// The peers' /24 or /56; `unknown` without a peer address, `any` of an identity, `other` when
    /// there were too many groups.
    pub prefix: String,
    /// Begin of the 10 seconds.
    pub from: Timestamp,
    /// How many.
    pub count: u64,
    /// Whose they all were, if it was proven.
    pub identity: Option<String>,
}

impl Event {
    /// The kind's name.
    pub fn kind(&self) -> &str {
        match self {
            Self::Start { .. } => "start",
            Self::Period { .. } => "period",
            Self::End => "end",
            Self::ChainEnded { .. } => "chain_ended",
            Self::Ceremony { .. } => "ceremony",
            Self::Issuer(_) => "issuer",
            Self::Reload { .. } => "reload",
            Self::Clock { .. } => "clock",
            Self::Intent(_) => "intent",
            Self::Issued { .. } => "issued",
            Self::Failed { .. } => "failed",
            Self::Unknown { .. } => "unknown",
            Self::Repeated { .. } => "repeated",
            Self::Refused { .. } => "refused",
            Self::RefusedGroup(_) => "refused_group",
            Self::Dropped { .. } => "dropped",
            Self::Device(_) => "device",
            Self::Other { kind } => kind,
        }
    }

    /// The intent that an outcome closes.
    pub fn closes(&self) -> Option<RowRef> {
        match self {
            Self::Issued { intent, .. }
            | Self::Failed { intent, .. }
            | Self::Unknown { intent, .. } => Some(*intent),
            _ => None,
        }
    }

    /// The intent whose certificate was given out again.
    pub fn gives_again(&self) -> Option<RowRef> {
        match self {
            Self::Repeated { intent, .. } => Some(*intent),
            _ => None,
        }
    }

    /// The chain that ends with a row of this event in the chain `own`: that one itself, or the one
    /// that it declares ended.
    pub fn ends(&self, own: ChainId) -> Option<ChainId> {
        match self {
            Self::End => Some(own),
            Self::ChainEnded { head } => Some(head.chain),
            _ => None,
        }
    }

    /// The columns that repeat what the body says.
    pub fn projection(&self) -> Projection<'_> {
        match self {
            Self::Intent(intent) => Projection {
                serial: Some(&intent.serial),
                identity: intent.identity.as_deref(),
                issuer: Some(&intent.issuer),
                profile: Some(&intent.profile),
            },
            Self::Issuer(IssuerFacts { id: issuer, .. })
            | Self::Device(DeviceFacts { issuer, .. }) => Projection {
                issuer: Some(issuer),
                ..Projection::default()
            },
            Self::Repeated { identity, .. } => Projection {
                identity: Some(identity),
                ..Projection::default()
            },
            Self::Refused { identity, .. } | Self::RefusedGroup(Group { identity, .. }) => {
                Projection {
                    identity: identity.as_deref(),
                    ..Projection::default()
                }
            }
            _ => Projection::default(),
        }
    }
}

/// The columns `serial`, `identity`, `issuer` and `profile` of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "named like the columns")]
pub struct Projection<'a> {
    pub serial: Option<&'a [u8]>,
    pub identity: Option<&'a str>,
    pub issuer: Option<&'a str>,
    pub profile: Option<&'a [u8]>,
}

/// One row as it is written: the event, and its bytes.
#[derive(Clone, Debug)]
pub struct Row {
    /// What every body begins with.
    pub header: Header,
    /// The rest, as a value.
    pub event: Event,
    /// Both, as bytes.
    pub body: Arc<[u8]>,
    /// SHA-256 of the previous row's hash and the body.
    pub hash: Hash,
}

impl Row {
    /// How other rows name this one.
    pub fn reference(&self) -> RowRef {
        RowRef {
            chain: self.header.chain,
            place: self.header.place,
            hash: self.hash,
        }
    }
}

/// One row as it was read, every column as found.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "named like the columns")]
pub struct StoredRow {
    pub period: i64,
    pub chain: Vec<u8>,
    pub seq: i64,
    pub kind: String,
    pub time: i64,
    pub serial: Option<Vec<u8>>,
    pub identity: Option<String>,
    pub issuer: Option<String>,
    pub profile: Option<Vec<u8>>,
    pub ended: Option<Vec<u8>>,
    pub hash: Vec<u8>,
    pub body: Vec<u8>,
}

impl StoredRow {
    /// Where it stands by its key columns; `None` if that is no place.
    pub fn place(&self) -> Option<(ChainId, Place)> {
        let chain = ChainId(self.chain.as_slice().try_into().ok()?);
        let period = Period::new(u32::try_from(self.period).ok()?)?;
        Some((
            chain,
            Place {
                period,
                seq: u64::try_from(self.seq).ok()?,
            },
        ))
    }
}

impl fmt::Display for StoredRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "period {} chain {} seq {}",
            self.period,
            hex::encode(&self.chain),
            self.seq
        )
    }
}
