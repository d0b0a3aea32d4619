//! Hostile certificate signing requests (see the parent for what that means). Two sorts: what an
//! attacker makes of somebody's good request without its key, and what he signs himself, well or
//! not, around something that a strict reader must not take.

mod damaged;
mod written;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;

use super::der::{bit_string, integer, oid, sequence, value};
use super::{Case, bytes, pick};

/// As much DER as fits into a PEM text of 64 KiB.
const MOST_DER: usize = 48_000;

/// The largest PEM text that is read.
const MOST_PEM: usize = 64 * 1024;

const ED25519: &str = "1.3.101.112";
const RSA: &str = "1.2.840.113549.1.1.1";
const EC: &str = "1.2.840.10045.2.1";
const P256: &str = "1.2.840.10045.3.1.7";
const EXTENSION_REQUEST: &str = "1.2.840.113549.1.9.14";
const SUBJECT_ALT_NAME: &str = "2.5.29.17";

/// Good requests of every kind that is accepted, from the parsers' corpus.
const GOOD: [&str; 5] = [
    include_str!("../../../ca-server/tests/corpus/csr/good-ec-pkeyopt-ec-paramgen-curve-P-256.pem"),
    include_str!("../../../ca-server/tests/corpus/csr/good-ec-pkeyopt-ec-paramgen-curve-P-384.pem"),
    include_str!("../../../ca-server/tests/corpus/csr/good-ed25519.pem"),
    include_str!("../../../ca-server/tests/corpus/csr/good-greedy.pem"),
    include_str!("../../../ca-server/tests/corpus/csr/good-rsa-2048.pem"),
];

/// Signature algorithms, good ones and bad ones; each is wrong for some key.
const SIGNATURE_ALGORITHMS: [&str; 16] = [
    ED25519,
    RSA,
    "1.2.840.113549.1.1.4",
    "1.2.840.113549.1.1.5",
    "1.2.840.113549.1.1.10",
    "1.2.840.113549.1.1.11",
    "1.2.840.113549.1.1.12",
    "1.2.840.113549.1.1.13",
    "1.2.840.10045.4.1",
    "1.2.840.10045.4.3.1",
    "1.2.840.10045.4.3.2",
    "1.2.840.10045.4.3.3",
    "1.2.840.10045.4.3.4",
    "1.3.101.113",
    "2.16.840.1.101.3.4.3.17",
    "1.2.840.113549.2.9",
];

type Make = fn(&mut Csrs) -> String;

/// The kinds of hostile request, made in turn.
const FAMILIES: [(&str, Make); 19] = [
    ("bits flipped", Csrs::bits_flipped),
    ("bytes edited", Csrs::bytes_edited),
    ("truncated", Csrs::truncated),
    ("a length that lies", Csrs::length_that_lies),
    ("nested deep", Csrs::nested_deep),
    ("signature algorithm swapped", Csrs::algorithm_swapped),
    ("signature of another", Csrs::signature_of_another),
    ("degenerate signature", Csrs::degenerate_signature),
    ("huge or odd integers", Csrs::odd_integers),
    ("key of no accepted kind", Csrs::foreign_key_kind),
    ("attributes repeated", Csrs::attributes_repeated),
    ("names by the thousand", Csrs::many_names),
    ("oversize", Csrs::oversize),
    ("not DER, and signed", Csrs::not_der),
    ("broken, and signed", Csrs::broken_and_signed),
    ("PEM tricks", Csrs::pem_tricks),
    ("PEM edited", Csrs::pem_edited),
    ("random values", Csrs::random_values),
    ("junk", Csrs::junk),
];

/// Hostile requests without end.
pub struct Csrs {
    random: fastrand::Rng,
    number: usize,
    good: Vec<Vec<u8>>,
    own: Ed25519KeyPair,
}

/// A request in parts, to be put together rightly or wrongly.
struct Parts {
    version: Vec<u8>,
    subject: Vec<u8>,
    key: Vec<u8>,
    attributes: Vec<u8>,
    behind: Vec<u8>,
}

impl Csrs {
    /// The cases of this seed.
    pub fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let own = Ed25519KeyPair::from_seed_unchecked(&bytes(&mut random, 32)).expect("32 octets");
        let mut csrs = Self {
            random,
            number: 0,
            good: Vec::new(),
            own,
        };
        csrs.good = GOOD
            .iter()
            .map(|pem| {
                CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
                    .expect("good")
                    .to_vec()
            })
            .collect();
        let own = csrs.signed(&csrs.parts());
        csrs.good.push(own);
        csrs
    }

    /// The requests that the cases are made of: all of them good.
    pub fn good(&self) -> Vec<String> {
        self.good.iter().map(|der| pem(der)).collect()
    }

    /// How many kinds there are.
    pub fn families() -> usize {
        FAMILIES.len()
    }

    fn some_good(&mut self) -> Vec<u8> {
        pick(&mut self.random, &self.good)
    }

    /// A good request with one bit changed.
    fn damaged(&mut self) -> Vec<u8> {
        let mut der = self.some_good();
        let at = self.random.usize(..der.len());
        der[at] ^= 1 << self.random.u32(..8);
        der
    }

    fn key(&self) -> Vec<u8> {
        sequence(&[
            &sequence(&[&oid(ED25519)]),
            &bit_string(self.own.public_key().as_ref()),
        ])
    }

    fn parts(&self) -> Parts {
        let names = sequence(&[&value(0x86, b"spiffe://cluster.local/ns/default/sa/demo")]);
        let extension = sequence(&[&oid(SUBJECT_ALT_NAME), &value(0x04, &names)]);
        let attribute = sequence(&[
            &oid(EXTENSION_REQUEST),
            &value(0x31, &sequence(&[&extension])),
        ]);
        Parts {
            version: integer(&[0]),
            subject: sequence(&[]),
            key: self.key(),
            attributes: value(0xa0, &attribute),
            behind: Vec::new(),
        }
    }

    /// Put together and signed by its own key.
    fn signed(&self, parts: &Parts) -> Vec<u8> {
        self.signed_info(&parts.info())
    }

    fn signed_info(&self, info: &[u8]) -> Vec<u8> {
        let signature = self.own.sign(info);
        sequence(&[
            info,
            &sequence(&[&oid(ED25519)]),
            &bit_string(signature.as_ref()),
        ])
    }

    /// Put together under a signature that is nobody's.
    fn unsigned(&mut self, parts: &Parts, algorithm: &[u8], signature_length: usize) -> Vec<u8> {
        let signature = bytes(&mut self.random, signature_length);
        sequence(&[&parts.info(), algorithm, &bit_string(&signature)])
    }
}

impl Iterator for Csrs {
    type Item = Case;

    fn next(&mut self) -> Option<Case> {
        let (family, make) = FAMILIES[self.number % FAMILIES.len()];
        let case = Case {
            number: self.number,
            family,
            text: make(self),
        };
        self.number += 1;
        Some(case)
    }
}

impl Parts {
    fn info(&self) -> Vec<u8> {
        sequence(&[
            &self.version,
            &self.subject,
            &self.key,
            &self.attributes,
            &self.behind,
        ])
    }
}

/// The three parts of a good request: what is signed, the algorithm, the signature.
fn cut(der: &[u8]) -> (&[u8], &[u8], &[u8]) {
    let end_of = |at: usize| {
        let rest = &der[at..];
        let place = first(rest);
        at + place
    };
    let start = header(der);
    let info = end_of(start);
    let algorithm = end_of(info);
    (&der[start..info], &der[info..algorithm], &der[algorithm..])
}

fn header(der: &[u8]) -> usize {
    if der[1] < 0x80 {
        2
    } else {
        2 + usize::from(der[1] & 0x7f)
    }
}

/// The length of the first value, with its header.
fn first(der: &[u8]) -> usize {
    let header = header(der);
    if header == 2 {
        return 2 + usize::from(der[1]);
    }
    header
        + der[2..header]
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
}

/// PEM of these bytes.
pub fn pem(der: &[u8]) -> String {
    armoured(&BASE64_STANDARD.encode(der))
}

fn armoured(inside: &str) -> String {
    let mut text = String::with_capacity(inside.len() + inside.len() / 64 + 80);
    text.push_str("-----BEGIN CERTIFICATE REQUEST-----\n");
    for line in inside.as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).expect("ASCII"));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE REQUEST-----\n");
    text
}
