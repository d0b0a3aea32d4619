//! Where a verification stands, as a file: small JSON with a version, from which a later run goes
//! on. Nothing protects it: whoever can write it can say that rows were checked which never were,
//! so it is kept where the ledger's writers cannot reach.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::event::{ChainId, Hash, Place, RowRef};
use super::standing::{ChainStanding, NamedHead, Standing};
use super::trusted::TrustedRoots;
use crate::timestamp::{Period, Timestamp};

/// The file's version.
const VERSION: u32 = 1;

/// Where a verification stands that found nothing broken: the head of every chain, what it left
/// open, the issuers it has named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub(super) standing: Standing,
}

/// Why a checkpoint cannot be used; one sentence for the auditor.
#[derive(Debug, thiserror::Error)]
pub enum BadCheckpoint {
    /// The file cannot be read or written.
    #[error("the checkpoint {0} cannot be used: {1}")]
    File(PathBuf, io::Error),
    /// It is no checkpoint of this program.
    #[error("{0} is no checkpoint of `audit verify` ({1}); remove it to begin anew")]
    Content(PathBuf, String),
}

/// Where it goes wrong; the parser's own words may show what stands there, and it may be another
/// file.
fn wrong(error: &serde_json::Error) -> String {
    format!("wrong in line {}, column {}", error.line(), error.column())
}

impl Checkpoint {
    /// Reads the file; `None` if there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, BadCheckpoint> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| BadCheckpoint::File(path.to_owned(), error))?,
        };
        let content = |why: String| BadCheckpoint::Content(path.to_owned(), why);
        let versioned: Versioned =
            serde_json::from_str(&text).map_err(|error| content(wrong(&error)))?;
        if versioned.version != VERSION {
            return Err(content(format!("its version is {}", versioned.version)));
        }
        let written: Written =
            serde_json::from_str(&text).map_err(|error| content(wrong(&error)))?;
        let standing = written
            .standing()
            .ok_or_else(|| content("a value in it is out of its range".into()))?;
        Ok(Some(Self { standing }))
    }

    /// Replaces the file, as a whole or not at all.
    pub fn write(&self, path: &Path) -> Result<(), BadCheckpoint> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = path.with_file_name(name);
        let written = || {
            let mut file = File::create(&new)?;
            serde_json::to_writer_pretty(&mut file, &Written::from(&self.standing))?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&new, path)
        };
        written().map_err(|error: io::Error| BadCheckpoint::File(path.to_owned(), error))
    }

    /// Rows that were checked until here.
    pub fn rows(&self) -> u64 {
        self.standing.rows
    }

    /// Whether the issuers until here were judged by these roots, or all believed if there are
    /// none.
    pub fn is_by(&self, roots: Option<&TrustedRoots>) -> bool {
        self.standing.roots == roots.map(TrustedRoots::digest)
    }

    /// Whether every signature until here was checked.
    pub fn has_signatures(&self) -> bool {
        !self.standing.signatures_skipped
    }
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    rows: u64,
    since: Option<i64>,
    roots: Option<Octets>,
    signatures: bool,
    issuers: Vec<Octets>,
    chains: Vec<WrittenChain>,
    early: Vec<(Reference, Reference)>,
    named: Vec<WrittenHead>,
    undeclared: Vec<(Octets, Reference)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenChain {
    head: Reference,
    /// Microseconds since 1970-01-01T00:00:00Z.
    time: i64,
    ended: bool,
    declared: bool,
    /// Id, and number in the file's `issuers`.
    issuers: Vec<(String, usize)>,
    /// Period, seq, hash.
    open: Vec<(u32, u64, Octets)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenHead {
    head: Reference,
    is_last: bool,
    by: Reference,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    chain: Octets,
    period: u32,
    seq: u64,
    hash: Octets,
}

/// Lower-case hex.
#[derive(Clone, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
struct Octets(Vec<u8>);

impl From<Octets> for String {
    fn from(octets: Octets) -> Self {
        hex::encode(octets.0)
    }
}

impl TryFrom<String> for Octets {
    type Error = hex::FromHexError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        hex::decode(text).map(Self)
    }
}

impl From<RowRef> for Reference {
    fn from(row: RowRef) -> Self {
        let (period, seq) = (row.place.period.yyyymm(), row.place.seq);
        Self {
            chain: Octets(row.chain.0.to_vec()),
            period,
            seq,
            hash: Octets(row.hash.to_vec()),
        }
    }
}

impl Reference {
    fn row(&self) -> Option<RowRef> {
        let place = Place {
            period: Period::new(self.period)?,
            seq: self.seq,
        };
        Some(RowRef {
            chain: chain(&self.chain)?,
            place,
            hash: hash(&self.hash)?,
        })
    }
}

fn chain(octets: &Octets) -> Option<ChainId> {
    octets.0.as_slice().try_into().ok().map(ChainId)
}

fn hash(octets: &Octets) -> Option<Hash> {
    octets.0.as_slice().try_into().ok()
}

impl From<&Standing> for Written {
    fn from(standing: &Standing) -> Self {
        let mut issuers: Vec<Octets> = Vec::new();
        let mut numbers: BTreeMap<&[u8], usize> = BTreeMap::new();
        let mut chains = Vec::with_capacity(standing.chains.len());
        for chain in standing.chains.values() {
            let mut named = Vec::with_capacity(chain.issuers.len());
            for (id, certificate) in &chain.issuers {
                let number = *numbers.entry(certificate).or_insert_with(|| {
                    issuers.push(Octets(certificate.clone()));
                    issuers.len() - 1
                });
                named.push((id.clone(), number));
            }
            chains.push(WrittenChain {
                head: chain.head.into(),
                time: chain.time.micros(),
                ended: chain.ended,
                declared: chain.declared,
                issuers: named,
                open: chain
                    .open
                    .iter()
                    .map(|(place, hash)| (place.period.yyyymm(), place.seq, Octets(hash.to_vec())))
                    .collect(),
            });
        }
        let head = |named: &NamedHead| WrittenHead {
            head: named.head.into(),
            is_last: named.is_last,
            by: named.by.into(),
        };
        Self {
            version: VERSION,
            rows: standing.rows,
            since: standing.since.map(Timestamp::micros),
            roots: standing.roots.map(|roots| Octets(roots.to_vec())),
            signatures: !standing.signatures_skipped,
            issuers,
            chains,
            early: standing
                .early
                .iter()
                .map(|(intent, outcome)| ((*intent).into(), (*outcome).into()))
                .collect(),
            named: standing.named.iter().map(head).collect(),
            undeclared: standing
                .undeclared
                .iter()
                .map(|(chain, outcome)| (Octets(chain.0.to_vec()), (*outcome).into()))
                .collect(),
        }
    }
}

impl Written {
    fn standing(&self) -> Option<Standing> {
        let mut chains = BTreeMap::new();
        for written in &self.chains {
            let head = written.head.row()?;
            let issuer = |(id, number): &(String, usize)| {
                Some((id.clone(), self.issuers.get(*number)?.0.clone()))
            };
            let open = |(period, seq, octets): &(u32, u64, Octets)| {
                Some((
                    Place {
                        period: Period::new(*period)?,
                        seq: *seq,
                    },
                    hash(octets)?,
                ))
            };
            let standing = ChainStanding {
                head,
                time: Timestamp::from_micros(written.time),
                ended: written.ended,
                declared: written.declared,
                issuers: written.issuers.iter().map(issuer).collect::<Option<_>>()?,
                open: written.open.iter().map(open).collect::<Option<_>>()?,
            };
            chains.insert(head.chain, standing);
        }
        let head = |named: &WrittenHead| {
            Some(NamedHead {
                head: named.head.row()?,
                is_last: named.is_last,
                by: named.by.row()?,
            })
        };
        Some(Standing {
            rows: self.rows,
            since: self.since.map(Timestamp::from_micros),
            roots: match &self.roots {
                Some(roots) => Some(hash(roots)?),
                None => None,
            },
            signatures_skipped: !self.signatures,
            chains,
            early: self
                .early
                .iter()
                .map(|(intent, outcome)| Some((intent.row()?, outcome.row()?)))
                .collect::<Option<_>>()?,
            named: self.named.iter().map(head).collect::<Option<_>>()?,
            undeclared: self
                .undeclared
                .iter()
                .map(|(id, outcome)| Some((chain(id)?, outcome.row()?)))
                .collect::<Option<_>>()?,
        })
    }
}
