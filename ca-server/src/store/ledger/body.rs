//! The bytes of a row: deterministic CBOR (RFC 8949 §4.2.1), one array whose first element is the
//! format version. `docs/ledger-format.md` publishes the layout, field by field; a test keeps its
//! vectors and this file together.

use std::convert::Infallible;

use aws_lc_rs::digest;
use minicbor::data::Type;
use minicbor::{Decoder, Encoder};

use super::event::{
    ChainId, DeviceFacts, Event, Group, Hash, Header, Intent, IssuerFacts, Place, Proof, RowRef,
    Why,
};
use crate::evidence::RequestId;
use crate::timestamp::{Period, Timestamp};

/// The format's version, first element of every body.
pub(super) const FORMAT: u64 = 1;

/// Octets of the longest body. The databases refuse a longer one, so it is refused before.
pub(super) const LONGEST: usize = 65_535;

/// What stands before a chain's first row.
pub(super) const GENESIS: Hash = [0; 32];

/// Elements that every body has before its kind's own.
const HEADER_FIELDS: u64 = 8;

/// The hash that binds a body to the row before it.
pub(super) fn link(previous: &Hash, body: &[u8]) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(previous);
    context.update(body);
    context
        .finish()
        .as_ref()
        .try_into()
        .expect("SHA-256 has 32 octets")
}

/// The body of a row.
pub(super) fn encode(header: &Header, event: &Event) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1200);
    write(&mut Encoder::new(&mut bytes), header, event).expect("a Vec takes every byte");
    bytes
}

/// Whether the event's body is not longer than a row may be, wherever it comes to stand.
pub(super) fn fits(event: &Event) -> bool {
    let time = Timestamp::from_micros(i64::MAX);
    let place = Place {
        period: time.period(),
        seq: u64::MAX,
    };
    let longest = Header {
        chain: ChainId([0; 16]),
        place,
        time,
        request: Some(RequestId([0; 16])),
        oldest_open: Some(place),
    };
    encode(&longest, event).len() <= LONGEST
}

type Written = Result<(), minicbor::encode::Error<Infallible>>;
type Out<'a> = Encoder<&'a mut Vec<u8>>;

fn write(e: &mut Out<'_>, header: &Header, event: &Event) -> Written {
    e.array(HEADER_FIELDS + own_fields(event))?
        .u64(FORMAT)?
        .bytes(&header.chain.0)?;
    e.u32(header.place.period.yyyymm())?
        .u64(header.place.seq)?
        .str(event.kind())?
        .i64(header.time.micros())?;
    match header.request {
        Some(request) => e.bytes(&request.0)?,
        None => e.null()?,
    };
    match header.oldest_open {
        Some(place) => e.array(2)?.u32(place.period.yyyymm())?.u64(place.seq)?,
        None => e.null()?,
    };
    match event {
        Event::Start {
            host,
            version,
            config,
            heads,
        } => {
            e.str(host)?
                .str(version)?
                .bytes(config)?
                .array(heads.len() as u64)?;
            heads.iter().try_for_each(|head| reference(e, head))
        }
        Event::Period { previous: row } | Event::ChainEnded { head: row } => reference(e, row),
        Event::End | Event::Other { .. } => Ok(()),
        Event::Ceremony { transcript: digest } | Event::Reload { config: digest } => {
            e.bytes(digest).map(drop)
        }
        Event::Issuer(facts) => {
            e.str(&facts.id)?;
            for certificates in [&facts.chain, &facts.roots] {
                e.array(certificates.len() as u64)?;
                certificates
                    .iter()
                    .try_for_each(|certificate| e.bytes(certificate).map(drop))?;
            }
            e.str(&facts.key_uri).map(drop)
        }
        Event::Clock { recorded } => e.i64(recorded.micros()).map(drop),
        Event::Intent(intent) => {
            e.str(&intent.purpose)?.bytes(&intent.serial)?;
            text(e, intent.identity.as_deref())?;
            e.str(&intent.issuer)?.bytes(&intent.profile)?;
            proof(e, &intent.evidence)?;
            e.bytes(&intent.to_be_signed).map(drop)
        }
        Event::Issued {
            intent,
            signature,
            certificate,
        } => {
            reference(e, intent)?;
            e.bytes(signature)?.bytes(certificate).map(drop)
        }
        Event::Failed { intent, why: cause } | Event::Unknown { intent, why: cause } => {
            reference(e, intent)?;
            why(e, cause)
        }
        Event::Repeated {
            intent,
            identity,
            evidence,
        } => {
            reference(e, intent)?;
            e.str(identity)?;
            proof(e, evidence)
        }
        Event::Refused {
            why: cause,
            identity,
            evidence,
        } => {
            why(e, cause)?;
            text(e, identity.as_deref())?;
            proof(e, evidence)
        }
        Event::RefusedGroup(group) => {
            e.str(&group.reason)?.str(&group.code)?.str(&group.prefix)?;
            e.i64(group.from.micros())?.u64(group.count)?;
            text(e, group.identity.as_deref())
        }
        Event::Dropped { count } => e.u64(*count).map(drop),
        Event::Device(facts) => {
            e.str(&facts.issuer)?
                .u64(facts.token)?
                .str(&facts.key_uri)?;
            e.str(&facts.state)?
                .str(&facts.detail)?
                .u64(facts.probes)
                .map(drop)
        }
    }
}

/// How many elements the kind adds; `write` and `read` follow the same order.
fn own_fields(event: &Event) -> u64 {
    match event {
        Event::End | Event::Other { .. } => 0,
        Event::Period { .. }
        | Event::ChainEnded { .. }
        | Event::Ceremony { .. }
        | Event::Reload { .. } => 1,
        Event::Clock { .. } | Event::Dropped { .. } => 1,
        Event::Issued { .. } | Event::Repeated { .. } => 3,
        Event::Start { .. } | Event::Issuer(_) | Event::Failed { .. } | Event::Unknown { .. } => 4,
        Event::Refused { .. } => 5,
        Event::RefusedGroup(_) | Event::Device(_) => 6,
        Event::Intent(_) => 7,
    }
}

fn reference(e: &mut Out<'_>, row: &RowRef) -> Written {
    e.array(4)?
        .u32(row.place.period.yyyymm())?
        .bytes(&row.chain.0)?
        .u64(row.place.seq)?
        .bytes(&row.hash)
        .map(drop)
}

fn why(e: &mut Out<'_>, why: &Why) -> Written {
    e.str(&why.reason)?
        .str(&why.code)?
        .str(&why.detail)
        .map(drop)
}

fn proof(e: &mut Out<'_>, proof: &Proof) -> Written {
    e.array(7)?.str(&proof.credential)?;
    for part in [&proof.issuer, &proof.subject, &proof.token, &proof.cluster] {
        text(e, part.as_deref())?;
    }
    match &proof.pod {
        Some((name, uid)) => e.array(2)?.str(name)?.str(uid)?,
        None => e.null()?,
    };
    text(e, proof.peer.as_deref())
}

fn text(e: &mut Out<'_>, text: Option<&str>) -> Written {
    match text {
        Some(text) => e.str(text).map(drop),
        None => e.null().map(drop),
    }
}

/// Why bytes are no body of this format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadBody(String);

impl From<minicbor::decode::Error> for BadBody {
    fn from(error: minicbor::decode::Error) -> Self {
        Self(error.to_string())
    }
}

fn bad(what: &str) -> BadBody {
    BadBody(what.to_owned())
}

type In<'a> = Decoder<'a>;

/// Reads a body. An unknown kind is read as `Event::Other`; a known one must have its fields, and
/// what a later program has put after them is passed over.
pub(super) fn decode(body: &[u8]) -> Result<(Header, Event), BadBody> {
    let mut d = Decoder::new(body);
    let fields = d
        .array()?
        .ok_or_else(|| bad("the array has no definite length"))?;
    let format = d.u64()?;
    if format != FORMAT {
        return Err(BadBody(format!(
            "format version {format} is not known to this program"
        )));
    }
    let chain = ChainId(fixed(&mut d)?);
    let place = Place {
        period: period(&mut d)?,
        seq: d.u64()?,
    };
    let kind = d.str()?;
    let time = micros(&mut d)?;
    let request = if null(&mut d)? {
        None
    } else {
        Some(RequestId(fixed(&mut d)?))
    };
    let oldest_open = if null(&mut d)? {
        None
    } else {
        exactly(&mut d, 2)?;
        Some(Place {
            period: period(&mut d)?,
            seq: d.u64()?,
        })
    };
    let event = own(&mut d, kind)?;
    let Some(later) = fields.checked_sub(HEADER_FIELDS + own_fields(&event)) else {
        return Err(BadBody(format!(
            "a row of kind {kind} has only {fields} elements"
        )));
    };
    (0..later).try_for_each(|_| d.skip())?;
    if d.position() != body.len() {
        return Err(bad("bytes follow the array"));
    }
    Ok((
        Header {
            chain,
            place,
            time,
            request,
            oldest_open,
        },
        event,
    ))
}

/// The kind of a body that may not be readable otherwise.
pub(super) fn kind_of(body: &[u8]) -> Option<&str> {
    let mut d = Decoder::new(body);
    d.array().ok()??;
    (0..4).try_for_each(|_| d.skip()).ok()?;
    d.str().ok()
}

fn own(d: &mut In<'_>, kind: &str) -> Result<Event, BadBody> {
    Ok(match kind {
        "start" => {
            let (host, version, config) = (owned(d)?, owned(d)?, fixed(d)?);
            let heads = list(d, reference_of)?;
            Event::Start {
                host,
                version,
                config,
                heads,
            }
        }
        "period" => Event::Period {
            previous: reference_of(d)?,
        },
        "end" => Event::End,
        "chain_ended" => Event::ChainEnded {
            head: reference_of(d)?,
        },
        "ceremony" => Event::Ceremony {
            transcript: fixed(d)?,
        },
        "issuer" => {
            let id = owned(d)?;
            let (chain, roots) = (list(d, octets)?, list(d, octets)?);
            Event::Issuer(IssuerFacts {
                id,
                chain,
                roots,
                key_uri: owned(d)?,
            })
        }
        "reload" => Event::Reload { config: fixed(d)? },
        "clock" => Event::Clock {
            recorded: micros(d)?,
        },
        "intent" => Event::Intent(Intent {
            purpose: owned(d)?,
            serial: octets(d)?,
            identity: optional(d)?,
            issuer: owned(d)?,
            profile: fixed(d)?,
            evidence: proof_of(d)?,
            to_be_signed: octets(d)?,
        }),
        "issued" => Event::Issued {
            intent: reference_of(d)?,
            signature: octets(d)?,
            certificate: fixed(d)?,
        },
        "failed" => Event::Failed {
            intent: reference_of(d)?,
            why: why_of(d)?,
        },
        "unknown" => Event::Unknown {
            intent: reference_of(d)?,
            why: why_of(d)?,
        },
        "repeated" => Event::Repeated {
            intent: reference_of(d)?,
            identity: owned(d)?,
            evidence: proof_of(d)?,
        },
        "refused" => Event::Refused {
            why: why_of(d)?,
            identity: optional(d)?,
            evidence: proof_of(d)?,
        },
        "refused_group" => Event::RefusedGroup(Group {
            reason: owned(d)?,
            code: owned(d)?,
            prefix: owned(d)?,
            from: micros(d)?,
            count: d.u64()?,
            identity: optional(d)?,
        }),
        "dropped" => Event::Dropped { count: d.u64()? },
        "device" => Event::Device(DeviceFacts {
            issuer: owned(d)?,
            token: d.u64()?,
            key_uri: owned(d)?,
            state: owned(d)?,
            detail: owned(d)?,
            probes: d.u64()?,
        }),
        other => Event::Other {
            kind: other.to_owned(),
        },
    })
}

fn reference_of(d: &mut In<'_>) -> Result<RowRef, BadBody> {
    exactly(d, 4)?;
    let period = period(d)?;
    let chain = ChainId(fixed(d)?);
    Ok(RowRef {
        chain,
        place: Place {
            period,
            seq: d.u64()?,
        },
        hash: fixed(d)?,
    })
}

fn why_of(d: &mut In<'_>) -> Result<Why, BadBody> {
    Ok(Why {
        reason: owned(d)?,
        code: owned(d)?,
        detail: owned(d)?,
    })
}

fn proof_of(d: &mut In<'_>) -> Result<Proof, BadBody> {
    exactly(d, 7)?;
    Ok(Proof {
        credential: owned(d)?,
        issuer: optional(d)?,
        subject: optional(d)?,
        token: optional(d)?,
        cluster: optional(d)?,
        pod: if null(d)? {
            None
        } else {
            exactly(d, 2)?;
            Some((owned(d)?, owned(d)?))
        },
        peer: optional(d)?,
    })
}

fn exactly(d: &mut In<'_>, elements: u64) -> Result<(), BadBody> {
    if d.array()? == Some(elements) {
        Ok(())
    } else {
        Err(BadBody(format!("an array of {elements} was expected")))
    }
}

fn list<T>(
    d: &mut In<'_>,
    item: impl Fn(&mut In<'_>) -> Result<T, BadBody>,
) -> Result<Vec<T>, BadBody> {
    let elements = d
        .array()?
        .ok_or_else(|| bad("the array has no definite length"))?;
    (0..elements).map(|_| item(d)).collect()
}

fn null(d: &mut In<'_>) -> Result<bool, BadBody> {
    Ok(if d.datatype()? == Type::Null {
        d.null()?;
        true
    } else {
        false
    })
}

fn owned(d: &mut In<'_>) -> Result<String, BadBody> {
    Ok(d.str()?.to_owned())
}

fn optional(d: &mut In<'_>) -> Result<Option<String>, BadBody> {
    if null(d)? {
        Ok(None)
    } else {
        owned(d).map(Some)
    }
}

fn octets(d: &mut In<'_>) -> Result<Vec<u8>, BadBody> {
    Ok(d.bytes()?.to_vec())
}

fn fixed<const N: usize>(d: &mut In<'_>) -> Result<[u8; N], BadBody> {
    d.bytes()?
        .try_into()
        .map_err(|_| BadBody(format!("a byte string of {N} octets was expected")))
}

fn period(d: &mut In<'_>) -> Result<Period, BadBody> {
    Period::new(d.u32()?).ok_or_else(|| bad("the period is no month"))
}

fn micros(d: &mut In<'_>) -> Result<Timestamp, BadBody> {
    let micros = d.i64()?;
    let time = Timestamp::from_micros(micros);
    if time.micros() == micros {
        Ok(time)
    } else {
        Err(bad("the time is outside 1970–9999"))
    }
}

/// Whether bytes are exactly one CBOR item in core deterministic encoding (RFC 8949 §4.2.1), of the
/// types that bodies use: integers, byte and text strings, arrays and null, every length definite
/// and shortest.
pub(super) fn is_deterministic(bytes: &[u8]) -> bool {
    item(bytes, 0).is_some_and(<[u8]>::is_empty)
}

/// Deeper than any body; keeps a hostile row from exhausting the stack.
const DEPTH: usize = 16;

fn item(bytes: &[u8], depth: usize) -> Option<&[u8]> {
    let (&first, rest) = bytes.split_first()?;
    if first == 0xf6 {
        return Some(rest);
    }
    let (width, least) = match first & 0x1f {
        0..=23 => (0, 0),
        24 => (1, 24),
        25 => (2, 1 << 8),
        26 => (4, 1 << 16),
        27 => (8, 1 << 32),
        _ => return None,
    };
    let (argument, rest) = rest.split_at_checked(width)?;
    let argument = match width {
        0 => u64::from(first & 0x1f),
        _ => argument
            .iter()
            .fold(0, |value, &byte| value << 8 | u64::from(byte)),
    };
    if argument < least {
        return None;
    }
    match first >> 5 {
        0 | 1 => Some(rest),
        2 => rest
            .split_at_checked(usize::try_from(argument).ok()?)
            .map(|(_, rest)| rest),
        3 => {
            let (text, rest) = rest.split_at_checked(usize::try_from(argument).ok()?)?;
            std::str::from_utf8(text).ok().map(|_| rest)
        }
        4 if depth < DEPTH => (0..argument).try_fold(rest, |rest, _| item(rest, depth + 1)),
        _ => None,
    }
}
