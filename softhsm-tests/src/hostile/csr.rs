//! Hostile certificate signing requests (see the parent for what that means). Two sorts: what an attacker makes of somebody's good request
//! without its key, and what he signs himself, well or not, around something that a strict reader must not take.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;

use super::der::{bit_string, integer, length, nested, oid, places, sequence, value};
use super::{Case, bytes, edited, pick, size};

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
        let mut csrs = Self { random, number: 0, good: Vec::new(), own };
        csrs.good = GOOD.iter().map(|pem| CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).expect("good").to_vec()).collect();
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
        sequence(&[&sequence(&[&oid(ED25519)]), &bit_string(self.own.public_key().as_ref())])
    }

    fn parts(&self) -> Parts {
        let names = sequence(&[&value(0x86, b"spiffe://cluster.local/ns/default/sa/demo")]);
        let extension = sequence(&[&oid(SUBJECT_ALT_NAME), &value(0x04, &names)]);
        let attribute = sequence(&[&oid(EXTENSION_REQUEST), &value(0x31, &sequence(&[&extension]))]);
        Parts { version: integer(&[0]), subject: sequence(&[]), key: self.key(), attributes: value(0xa0, &attribute), behind: Vec::new() }
    }

    /// Put together and signed by its own key.
    fn signed(&self, parts: &Parts) -> Vec<u8> {
        self.signed_info(&parts.info())
    }

    fn signed_info(&self, info: &[u8]) -> Vec<u8> {
        let signature = self.own.sign(info);
        sequence(&[info, &sequence(&[&oid(ED25519)]), &bit_string(signature.as_ref())])
    }

    /// Put together under a signature that is nobody's.
    fn unsigned(&mut self, parts: &Parts, algorithm: &[u8], signature_length: usize) -> Vec<u8> {
        let signature = bytes(&mut self.random, signature_length);
        sequence(&[&parts.info(), algorithm, &bit_string(&signature)])
    }

    fn bits_flipped(&mut self) -> String {
        let mut der = self.damaged();
        // Each further flip has a byte of its own, so that none undoes another.
        for at in (self.random.usize(1..64)..der.len()).step_by(64).take(self.random.usize(..4)) {
            der[at] ^= 1 << self.random.u32(..8);
        }
        // The first flip may have been undone after all.
        if self.good.contains(&der) {
            der[0] ^= 1;
        }
        pem(&der)
    }

    fn bytes_edited(&mut self) -> String {
        let der = self.some_good();
        pem(&edited(&mut self.random, &der, |random| random.u8(..)))
    }

    fn truncated(&mut self) -> String {
        let mut der = self.some_good();
        der.truncate(self.random.usize(..der.len()));
        pem(&der)
    }

    fn length_that_lies(&mut self) -> String {
        let der = self.some_good();
        let place = pick(&mut self.random, &places(&der));
        let true_length = place.end - place.content;
        let lie = match self.random.u8(..9) {
            0 => length(true_length + 1 + size(&mut self.random, 8)),
            1 => length(true_length.saturating_sub(1 + self.random.usize(..8))),
            2 => vec![0x80],
            3 => vec![0x84, 0xff, 0xff, 0xff, 0xff],
            4 => vec![0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            5 => [&[0x89, 0][..], &true_length.to_be_bytes()].concat(),
            6 => vec![0xff],
            7 => [&[0x88][..], &true_length.to_be_bytes()].concat(),
            _ => vec![0x84, 0x7f, 0xff, 0xff, 0xff],
        };
        let mut changed = der[..=place.tag].to_vec();
        changed.extend(lie);
        changed.extend_from_slice(&der[place.content..]);
        if changed == der {
            changed.push(0);
        }
        pem(&changed)
    }

    fn nested_deep(&mut self) -> String {
        let tag = pick(&mut self.random, &[0x30, 0x31, 0xa0, 0x24]);
        // One level alone would be an empty subject, which is legal.
        let depth = 1 + size(&mut self.random, 13);
        let nest = if self.random.bool() { nested(tag, depth, &[]) } else { [tag, 0x80].repeat(depth.min(MOST_DER / 2)) };
        let mut parts = self.parts();
        match self.random.u8(..5) {
            0 => return pem(&nest),
            1 => parts.subject = nest,
            2 => parts.key = nest,
            3 => parts.behind = nest,
            _ => {
                // In an attribute that nobody knows nesting would be passed over, so this one has no valid signature.
                parts.attributes = value(0xa0, &sequence(&[&oid("1.2.3.4"), &value(0x31, &nest)]));
                let der = self.unsigned(&parts, &sequence(&[&oid(ED25519)]), 64);
                return pem(&der);
            }
        }
        pem(&self.signed(&parts))
    }

    fn algorithm_swapped(&mut self) -> String {
        let der = self.some_good();
        let (info, algorithm, signature) = cut(&der);
        loop {
            let name = oid(pick(&mut self.random, &SIGNATURE_ALGORITHMS));
            let other = match self.random.u8(..5) {
                0 => sequence(&[&name]),
                1 => sequence(&[&name, &[0x05, 0x00]]),
                2 => sequence(&[&name, &value(0x04, &bytes(&mut self.random, 8))]),
                3 => sequence(&[&name, &sequence(&[&oid("2.16.840.1.101.3.4.2.1")])]),
                _ => sequence(&[&name, &name]),
            };
            // RSA's NULL may be there or not (RFC 4055 §5): with the same name that is the same algorithm.
            let same_name = algorithm.windows(name.len()).any(|part| part == name);
            let harmless = [sequence(&[&name]), sequence(&[&name, &[0x05, 0x00]])].contains(&other);
            if !(same_name && harmless) {
                return pem(&sequence(&[info, &other, signature]));
            }
            if same_name && algorithm == sequence(&[&name]) && other != algorithm {
                return pem(&sequence(&[info, &other, signature]));
            }
        }
    }

    fn signature_of_another(&mut self) -> String {
        let (one, two) = (self.some_good(), self.some_good());
        let ((info, algorithm, signature), (_, other_algorithm, other)) = (cut(&one), cut(&two));
        let der = match self.random.u8(..3) {
            _ if one == two => {
                let mut renamed = self.parts();
                renamed.subject = sequence(&[&value(0x31, &sequence(&[&oid("2.5.4.3"), &value(0x0c, b"another")]))]);
                sequence(&[&renamed.info(), algorithm, signature])
            }
            0 => sequence(&[info, algorithm, other]),
            1 => sequence(&[info, other_algorithm, other]),
            _ => {
                let mine = self.own.sign(&[info, b"\0"].concat());
                sequence(&[info, &sequence(&[&oid(ED25519)]), &bit_string(mine.as_ref())])
            }
        };
        pem(&der)
    }

    fn degenerate_signature(&mut self) -> String {
        let der = self.some_good();
        let (info, algorithm, signature) = cut(&der);
        let order = hex::decode("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551").expect("hex");
        let numbers = [vec![], vec![1], order.clone(), vec![0xff; 32], vec![0xff; 48], bytes(&mut self.random, 32)];
        let (r, s) = (pick(&mut self.random, &numbers), pick(&mut self.random, &numbers));
        let content = match self.random.u8(..7) {
            0 => vec![],
            1 => vec![0; signature.len()],
            2 => vec![0xff; signature.len()],
            3 => sequence(&[&integer(&r), &integer(&s)]),
            4 => [r, s].concat(),
            5 => sequence(&[&value(0x02, &[0xff]), &value(0x02, &[0x80, 0])]),
            _ => {
                let count = size(&mut self.random, 14);
                bytes(&mut self.random, count)
            }
        };
        pem(&sequence(&[info, algorithm, &bit_string(&content)]))
    }

    fn odd_integers(&mut self) -> String {
        let bits: usize = pick(&mut self.random, &[1, 8, 512, 1024, 2047, 2048, 3072, 4096, 8191, 8192, 8193, 16_384, 65_536, 300_000]);
        let mut modulus = bytes(&mut self.random, bits.div_ceil(8));
        let mask = 0xff_u8 >> ((8 - bits % 8) % 8);
        modulus[0] &= mask;
        modulus[0] |= 1 << ((bits + 7) % 8);
        if self.random.u8(..4) != 0 {
            *modulus.last_mut().expect("one at least") |= 1;
        }
        let exponents = [vec![], vec![1], vec![2], vec![3], vec![1, 0, 1], vec![1, 0, 0, 0, 1], vec![0xff; 8], modulus.clone()];
        let exponent = pick(&mut self.random, &exponents);
        let modulus_value = match self.random.u8(..8) {
            0 => value(0x02, &modulus),
            1 => value(0x02, &[&[0, 0][..], &modulus].concat()),
            _ => integer(&modulus),
        };
        let mut parts = self.parts();
        let key = sequence(&[&modulus_value, &integer(&exponent)]);
        parts.key = sequence(&[&sequence(&[&oid(RSA), &[0x05, 0x00]]), &bit_string(&key)]);
        if self.random.u8(..8) == 0 {
            let count = size(&mut self.random, 12);
            parts.version = integer(&[&[1], &bytes(&mut self.random, count)[..]].concat());
        }
        let digest = pick(&mut self.random, &["1.2.840.113549.1.1.11", "1.2.840.113549.1.1.12", "1.2.840.113549.1.1.13"]);
        let der = self.unsigned(&parts, &sequence(&[&oid(digest), &[0x05, 0x00]]), modulus.len().min(MOST_DER / 4));
        pem(&der)
    }

    fn foreign_key_kind(&mut self) -> String {
        let curves = ["1.3.132.0.33", "1.3.132.0.10", "1.3.132.0.35", "1.2.840.10045.3.1.1", "1.3.36.3.3.2.8.1.1.7", P256];
        let curve = oid(pick(&mut self.random, &curves));
        let point_length = pick(&mut self.random, &[0, 1, 32, 33, 64, 65, 97, 133, 4000]);
        let mut point = bytes(&mut self.random, point_length);
        if let Some(first) = point.first_mut() {
            *first = pick(&mut self.random, &[0, 2, 3, 4, 6, 7]);
        }
        let algorithm = match self.random.u8(..7) {
            0 => sequence(&[&oid(EC), &sequence(&[&integer(&[1]), &curve])]),
            1 => sequence(&[&oid(EC)]),
            2 => sequence(&[&oid(pick(&mut self.random, &["1.3.101.110", "1.3.101.111", "1.3.101.113", "1.2.840.10040.4.1"]))]),
            3 => sequence(&[&oid("1.2.840.113549.1.1.10")]),
            4 => sequence(&[&oid(ED25519), &[0x05, 0x00]]),
            _ => sequence(&[&oid(EC), &curve]),
        };
        let mut parts = self.parts();
        parts.key = sequence(&[&algorithm, &bit_string(&point)]);
        let signature = sequence(&[&oid(pick(&mut self.random, &SIGNATURE_ALGORITHMS))]);
        let der = self.unsigned(&parts, &signature, 72);
        pem(&der)
    }

    fn attributes_repeated(&mut self) -> String {
        let mut parts = self.parts();
        let one = parts.attributes[2..].to_vec();
        let times = size(&mut self.random, 9).min(MOST_DER / one.len() - 4).max(2);
        parts.attributes = value(0xa0, &one.repeat(times));
        // The signature is the one over a single attribute.
        let signature = self.own.sign(&self.parts().info());
        pem(&sequence(&[&parts.info(), &sequence(&[&oid(ED25519)]), &bit_string(signature.as_ref())]))
    }

    fn many_names(&mut self) -> String {
        let mut parts = self.parts();
        let count = size(&mut self.random, 12).min(3500);
        match self.random.u8(..3) {
            0 => {
                let names: Vec<u8> = (0..count).flat_map(|_| value(0x86, b"spiffe://a/ns/b")).collect();
                let names = &names[..names.len().min(MOST_DER / 17 * 17 - 1700)];
                let extension = sequence(&[&oid(SUBJECT_ALT_NAME), &value(0x04, &value(0x30, names))]);
                parts.attributes = value(0xa0, &sequence(&[&oid(EXTENSION_REQUEST), &value(0x31, &sequence(&[&extension]))]));
            }
            1 => {
                // One relative name of many attributes, backwards: a SET OF must be sorted, and sorting can be slow.
                let name = |number: usize| sequence(&[&oid("2.5.4.3"), &value(0x0c, &u32::try_from(number).expect("few").to_be_bytes())]);
                let names: Vec<u8> = (0..count).rev().flat_map(name).collect();
                parts.subject = sequence(&[&value(0x31, &names)]);
            }
            _ => {
                let name = value(0x31, &sequence(&[&oid("2.5.4.10"), &value(0x0c, b"")]));
                parts.subject = value(0x30, &name.repeat(count));
            }
        }
        let der = self.unsigned(&parts, &sequence(&[&oid(ED25519)]), 64);
        pem(&der)
    }

    fn oversize(&mut self) -> String {
        let good = self.some_good();
        let more = MOST_PEM + size(&mut self.random, 16);
        match self.random.u8(..4) {
            0 => format!("{}{}", pem(&good), "\n".repeat(more)),
            1 => format!("{}{}", "A".repeat(more), pem(&good)),
            2 => pem(&[good, vec![0; more]].concat()),
            _ => {
                let mut parts = self.parts();
                parts.attributes = value(0xa0, &sequence(&[&oid("1.2.3.4"), &value(0x31, &value(0x04, &vec![b'x'; more]))]));
                pem(&self.signed(&parts))
            }
        }
    }

    /// What BER allows and DER does not, with a signature that is right.
    fn not_der(&mut self) -> String {
        let parts = self.parts();
        let info = parts.info();
        let content = &info[places(&info)[0].content..];
        let long =
            |tag: u8, content: &[u8]| [&[tag, 0x84][..], &u32::try_from(content.len()).expect("small").to_be_bytes(), content].concat();
        let indefinite = |tag: u8, content: &[u8]| [&[tag, 0x80], content, &[0, 0]].concat();
        let algorithm = sequence(&[&oid(ED25519)]);
        let bits = |info: &[u8]| bit_string(self.own.sign(info).as_ref());
        let signature = self.own.sign(&info);
        let der = match self.random.u8(..10) {
            0 => self.signed_info(&long(0x30, content)),
            1 => self.signed_info(&indefinite(0x30, content)),
            2 => long(0x30, &[&info[..], &algorithm, &bits(&info)].concat()),
            3 => indefinite(0x30, &[&info[..], &algorithm, &bits(&info)].concat()),
            4 => sequence(&[&info, &long(0x30, &algorithm[2..]), &bits(&info)]),
            5 => sequence(&[&info, &algorithm, &long(0x03, &[&[0], signature.as_ref()].concat())]),
            6 => sequence(&[&info, &algorithm, &value(0x23, &bits(&info))]),
            7 => sequence(&[&info, &algorithm, &value(0x03, &[&[self.random.u8(1..)], signature.as_ref()].concat())]),
            8 => sequence(&[&info, &algorithm, &indefinite(0x23, &bits(&info))]),
            _ => sequence(&[&info, &algorithm, &value(0x04, signature.as_ref())]),
        };
        pem(&der)
    }

    /// Signed by its own key, and wrong in one place.
    fn broken_and_signed(&mut self) -> String {
        let mut parts = self.parts();
        let name = |value_tag: u8| sequence(&[&value(0x31, &sequence(&[&oid("2.5.4.3"), &value(value_tag, b"a")]))]);
        let extension = |parts: &[&[u8]]| value(0xa0, &sequence(&[&oid(EXTENSION_REQUEST), &value(0x31, &sequence(&[&sequence(parts)]))]));
        let names = |content: &[u8]| extension(&[&oid(SUBJECT_ALT_NAME), &value(0x04, content)]);
        let known = oid(SUBJECT_ALT_NAME);
        let attribute = |parts: &[&[u8]]| value(0xa0, &sequence(parts));
        match self.random.u8(..31) {
            0 => parts.version = integer(&[self.random.u8(1..)]),
            1 => parts.version = value(0x02, &[0, 0]),
            2 => parts.version = value(0x02, &[0xff]),
            3 => parts.version = value(0x02, &[]),
            4 => parts.version = value(0x0a, &[0]),
            5 => parts.subject[0] = 0x31,
            6 => parts.subject = value(0x30, &name(0x0c)),
            7 => parts.subject = integer(&[1]),
            8 => parts.subject = sequence(&[&value(0x31, &sequence(&[&oid("2.5.4.3")]))]),
            9 => parts.behind = value(0xa0, &[]),
            10 => parts.behind = integer(&[0]),
            11 => parts.behind = vec![0; self.random.usize(1..100)],
            12 => parts.attributes[0] = pick(&mut self.random, &[0xa1, 0x80, 0x31, 0x30, 0xbf]),
            13 => parts.attributes = attribute(&[&oid(EXTENSION_REQUEST), &sequence(&[])]),
            14 => parts.attributes = attribute(&[&oid(EXTENSION_REQUEST)]),
            15 => parts.attributes = attribute(&[&oid(EXTENSION_REQUEST), &value(0x31, &[]), &integer(&[1])]),
            16 => parts.attributes = attribute(&[&integer(&[1]), &value(0x31, &[])]),
            17 => parts.attributes = attribute(&[&oid(EXTENSION_REQUEST), &value(0x31, &integer(&[1]))]),
            18 => parts.attributes = attribute(&[&oid(EXTENSION_REQUEST), &value(0x31, &sequence(&[&integer(&[1])]))]),
            19 => parts.attributes = extension(&[&known]),
            20 => parts.attributes = extension(&[&known, &value(0x01, &[0x01]), &value(0x04, &sequence(&[]))]),
            21 => parts.attributes = extension(&[&known, &value(0x04, &sequence(&[])), &integer(&[1])]),
            22 => parts.attributes = extension(&[&known, &bit_string(b"x")]),
            23 => {
                let count = size(&mut self.random, 8);
                parts.attributes = names(&[&[0x30, 0x84], &bytes(&mut self.random, count)[..]].concat());
            }
            24 => parts.attributes = names(&sequence(&[&value(0x89, b"x")])),
            25 => parts.attributes = names(&sequence(&[&value(0x86, &[0xff, 0xfe])])),
            26 => parts.attributes = names(&[&sequence(&[])[..], &[0]].concat()),
            27 => parts.attributes = value(0xa0, &[0x30, 0x05, 0x06]),
            28 => {
                let der = self.signed(&parts);
                let count = size(&mut self.random, 10);
                return pem(&[der, bytes(&mut self.random, count)].concat());
            }
            29 => {
                let der = self.signed(&parts);
                let (info, algorithm, signature) = cut(&der);
                return pem(&sequence(&[info, algorithm, signature, &integer(&[0])]));
            }
            _ => {
                let key = self.own.public_key().as_ref().to_vec();
                let odd = if self.random.bool() { [&key[..], &[0]].concat() } else { key[1..].to_vec() };
                parts.key = sequence(&[&sequence(&[&oid(ED25519)]), &bit_string(&odd)]);
            }
        }
        pem(&self.signed(&parts))
    }

    /// Whatever a reader makes of the armour, what is inside was damaged.
    fn pem_tricks(&mut self) -> String {
        const BEGIN: &str = "-----BEGIN CERTIFICATE REQUEST-----";
        const END: &str = "-----END CERTIFICATE REQUEST-----";
        let der = self.damaged();
        let inside = BASE64_STANDARD.encode(&der);
        let count = size(&mut self.random, 10);
        match self.random.u8(..18) {
            0 => format!("{BEGIN}\n{inside}\n"),
            1 => format!("{inside}\n{END}\n"),
            2 => format!("{}{inside}\n{END}\n", format!("{BEGIN}\n").repeat(count)),
            3 => format!("{BEGIN}\n{inside}\n{}", format!("{END}\n").repeat(count)),
            4 => format!("{BEGIN}\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n{inside}\n{END}\n"),
            5 => format!("{BEGIN}\n{}\n{END}\n", inside.replace('A', "-").replace('B', "_")),
            6 => format!("{BEGIN}\r{inside}\r{END}\r"),
            7 => format!("{}\n{inside}\n{END}\n", BEGIN.replace("CERTIFICATE", "NEW CERTIFICATE")),
            8 => format!("{}\n{inside}\n{}\n", BEGIN.replace('E', "\u{415}"), END.replace('E', "\u{415}")),
            9 => format!("{BEGIN}\n{}\n{END}\n", inside.chars().map(|letter| format!("{letter}\n")).collect::<String>()),
            10 => format!("{BEGIN}\n{inside}{END}\n"),
            11 => format!("{BEGIN} {inside} {END}"),
            12 => format!("{BEGIN}\n{}\0{}\n{END}\n", &inside[..8], &inside[8..]),
            13 => format!("{BEGIN}\n{}{}\n{END}\n", inside, "=".repeat(count)),
            14 => format!("-----BEGIN PRIVATE KEY-----\n{inside}\n-----END PRIVATE KEY-----\n"),
            15 => format!("-----BEGIN {}-----\n{inside}\n{END}\n", "A".repeat(count)),
            16 => format!("\u{feff}{}", pem(&der)),
            _ => format!("{}{}", pem(&der), pem(&der)).repeat(count.min(20)),
        }
    }

    /// One letter of the armoured text becomes another letter of base64, where every bit of it counts.
    fn pem_edited(&mut self) -> String {
        const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let der = self.some_good();
        // The last group of four may hold bits that belong to no byte.
        let mut inside = BASE64_STANDARD.encode(&der).into_bytes();
        let at = self.random.usize(..inside.len() - 4);
        let other = loop {
            let letter = pick(&mut self.random, LETTERS);
            if letter != inside[at] {
                break letter;
            }
        };
        inside[at] = if self.random.u8(..4) == 0 { pick(&mut self.random, b"!@#$%^&*()~`|;") } else { other };
        armoured(&String::from_utf8(inside).expect("ASCII"))
    }

    /// DER that is legal and means nothing.
    fn random_values(&mut self) -> String {
        fn some(random: &mut fastrand::Rng, depth: u32) -> Vec<u8> {
            if depth == 0 || random.u8(..3) == 0 {
                let tag = pick(random, &[0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0c, 0x13, 0x17, 0x18, 0x80, 0x86, 0x1f]);
                let count = random.usize(..40);
                return value(tag, &bytes(random, count));
            }
            let inside: Vec<u8> = (0..random.usize(..6)).flat_map(|_| some(random, depth - 1)).collect();
            value(pick(random, &[0x30, 0x30, 0x31, 0xa0, 0xa3]), &inside)
        }
        let depth = self.random.u32(1..6);
        let inside = some(&mut self.random, depth);
        pem(&if self.random.bool() { inside } else { sequence(&[&inside, &some(&mut self.random, 3), &some(&mut self.random, 1)]) })
    }

    fn junk(&mut self) -> String {
        let count = size(&mut self.random, 12);
        match self.random.u8(..5) {
            0 => pem(&bytes(&mut self.random, count)),
            1 => String::new(),
            2 => (0..count).map(|_| self.random.char(..)).collect(),
            3 => "-----BEGIN ".repeat(count),
            _ => "<html>{\"csr\":[[[".repeat(count / 4 + 1),
        }
    }
}

impl Iterator for Csrs {
    type Item = Case;

    fn next(&mut self) -> Option<Case> {
        let (family, make) = FAMILIES[self.number % FAMILIES.len()];
        let case = Case { number: self.number, family, text: make(self) };
        self.number += 1;
        Some(case)
    }
}

impl Parts {
    fn info(&self) -> Vec<u8> {
        sequence(&[&self.version, &self.subject, &self.key, &self.attributes, &self.behind])
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
    if der[1] < 0x80 { 2 } else { 2 + usize::from(der[1] & 0x7f) }
}

/// The length of the first value, with its header.
fn first(der: &[u8]) -> usize {
    let header = header(der);
    if header == 2 {
        return 2 + usize::from(der[1]);
    }
    header + der[2..header].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
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
