//! What an attacker writes himself: keys, names and attributes that a strict reader must not take,
//! under a signature of his own where what is wrong must be enough, and under nobody's where the
//! content alone might be taken.

use aws_lc_rs::signature::KeyPair;

use super::super::der::{bit_string, integer, nested, oid, places, sequence, value};
use super::super::{bytes, pick, size};
use super::{
    Csrs, EC, ED25519, EXTENSION_REQUEST, MOST_DER, MOST_PEM, P256, RSA, SIGNATURE_ALGORITHMS,
    SUBJECT_ALT_NAME, cut, pem,
};

impl Csrs {
    pub(super) fn nested_deep(&mut self) -> String {
        let tag = pick(&mut self.random, &[0x30, 0x31, 0xa0, 0x24]);
        // One level alone would be an empty subject, which is legal.
        let depth = 1 + size(&mut self.random, 13);
        let nest = if self.random.bool() {
            nested(tag, depth, &[])
        } else {
            [tag, 0x80].repeat(depth.min(MOST_DER / 2))
        };
        let mut parts = self.parts();
        match self.random.u8(..5) {
            0 => return pem(&nest),
            1 => parts.subject = nest,
            2 => parts.key = nest,
            3 => parts.behind = nest,
            _ => {
                // In an attribute that nobody knows nesting would be passed over, so this one has
                // no valid signature.
                parts.attributes = value(0xa0, &sequence(&[&oid("1.2.3.4"), &value(0x31, &nest)]));
                let der = self.unsigned(&parts, &sequence(&[&oid(ED25519)]), 64);
                return pem(&der);
            }
        }
        pem(&self.signed(&parts))
    }

    pub(super) fn odd_integers(&mut self) -> String {
        let bits = pick(
            &mut self.random,
            &[
                1, 8, 512, 1024, 2047, 2048, 3072, 4096, 8191, 8192, 8193, 16_384, 65_536, 300_000,
            ],
        );
        let mut modulus = bytes(&mut self.random, usize::div_ceil(bits, 8));
        let mask = 0xff_u8 >> ((8 - bits % 8) % 8);
        modulus[0] &= mask;
        modulus[0] |= 1 << ((bits + 7) % 8);
        if self.random.u8(..4) != 0 {
            *modulus.last_mut().expect("one at least") |= 1;
        }
        let exponents = [
            vec![],
            vec![1],
            vec![2],
            vec![3],
            vec![1, 0, 1],
            vec![1, 0, 0, 0, 1],
            vec![0xff; 8],
            modulus.clone(),
        ];
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
        let digest = pick(
            &mut self.random,
            &[
                "1.2.840.113549.1.1.11",
                "1.2.840.113549.1.1.12",
                "1.2.840.113549.1.1.13",
            ],
        );
        let der = self.unsigned(
            &parts,
            &sequence(&[&oid(digest), &[0x05, 0x00]]),
            modulus.len().min(MOST_DER / 4),
        );
        pem(&der)
    }

    pub(super) fn foreign_key_kind(&mut self) -> String {
        let curves = [
            "1.3.132.0.33",
            "1.3.132.0.10",
            "1.3.132.0.35",
            "1.2.840.10045.3.1.1",
            "1.3.36.3.3.2.8.1.1.7",
            P256,
        ];
        let curve = oid(pick(&mut self.random, &curves));
        let point_length = pick(&mut self.random, &[0, 1, 32, 33, 64, 65, 97, 133, 4000]);
        let mut point = bytes(&mut self.random, point_length);
        if let Some(first) = point.first_mut() {
            *first = pick(&mut self.random, &[0, 2, 3, 4, 6, 7]);
        }
        let algorithm = match self.random.u8(..7) {
            0 => sequence(&[&oid(EC), &sequence(&[&integer(&[1]), &curve])]),
            1 => sequence(&[&oid(EC)]),
            2 => sequence(&[&oid(pick(
                &mut self.random,
                &[
                    "1.3.101.110",
                    "1.3.101.111",
                    "1.3.101.113",
                    "1.2.840.10040.4.1",
                ],
            ))]),
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

    pub(super) fn attributes_repeated(&mut self) -> String {
        let mut parts = self.parts();
        let one = parts.attributes[2..].to_vec();
        let times = size(&mut self.random, 9)
            .min(MOST_DER / one.len() - 4)
            .max(2);
        parts.attributes = value(0xa0, &one.repeat(times));
        // The signature is the one over a single attribute.
        let signature = self.own.sign(&self.parts().info());
        pem(&sequence(&[
            &parts.info(),
            &sequence(&[&oid(ED25519)]),
            &bit_string(signature.as_ref()),
        ]))
    }

    pub(super) fn many_names(&mut self) -> String {
        let mut parts = self.parts();
        let count = size(&mut self.random, 12).min(3500);
        match self.random.u8(..3) {
            0 => {
                let names: Vec<u8> = (0..count)
                    .flat_map(|_| value(0x86, b"spiffe://a/ns/b"))
                    .collect();
                let names = &names[..names.len().min(MOST_DER / 17 * 17 - 1700)];
                let extension =
                    sequence(&[&oid(SUBJECT_ALT_NAME), &value(0x04, &value(0x30, names))]);
                parts.attributes = value(
                    0xa0,
                    &sequence(&[
                        &oid(EXTENSION_REQUEST),
                        &value(0x31, &sequence(&[&extension])),
                    ]),
                );
            }
            1 => {
                // One relative name of many attributes, backwards: a SET OF must be sorted, and
                // sorting can be slow.
                let name = |number: usize| {
                    sequence(&[
                        &oid("2.5.4.3"),
                        &value(0x0c, &u32::try_from(number).expect("few").to_be_bytes()),
                    ])
                };
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

    pub(super) fn oversize(&mut self) -> String {
        let good = self.some_good();
        let more = MOST_PEM + size(&mut self.random, 16);
        match self.random.u8(..4) {
            0 => format!("{}{}", pem(&good), "\n".repeat(more)),
            1 => format!("{}{}", "A".repeat(more), pem(&good)),
            2 => pem(&[good, vec![0; more]].concat()),
            _ => {
                let mut parts = self.parts();
                parts.attributes = value(
                    0xa0,
                    &sequence(&[
                        &oid("1.2.3.4"),
                        &value(0x31, &value(0x04, &vec![b'x'; more])),
                    ]),
                );
                pem(&self.signed(&parts))
            }
        }
    }

    /// What BER allows and DER does not, with a signature that is right.
    pub(super) fn not_der(&mut self) -> String {
        let parts = self.parts();
        let info = parts.info();
        let content = &info[places(&info)[0].content..];
        let long = |tag: u8, content: &[u8]| {
            [
                &[tag, 0x84][..],
                &u32::try_from(content.len()).expect("small").to_be_bytes(),
                content,
            ]
            .concat()
        };
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
            5 => sequence(&[
                &info,
                &algorithm,
                &long(0x03, &[&[0], signature.as_ref()].concat()),
            ]),
            6 => sequence(&[&info, &algorithm, &value(0x23, &bits(&info))]),
            7 => sequence(&[
                &info,
                &algorithm,
                &value(0x03, &[&[self.random.u8(1..)], signature.as_ref()].concat()),
            ]),
            8 => sequence(&[&info, &algorithm, &indefinite(0x23, &bits(&info))]),
            _ => sequence(&[&info, &algorithm, &value(0x04, signature.as_ref())]),
        };
        pem(&der)
    }

    /// Signed by its own key, and wrong in one place.
    pub(super) fn broken_and_signed(&mut self) -> String {
        let mut parts = self.parts();
        let name = |value_tag: u8| {
            sequence(&[&value(
                0x31,
                &sequence(&[&oid("2.5.4.3"), &value(value_tag, b"a")]),
            )])
        };
        let extension = |parts: &[&[u8]]| {
            value(
                0xa0,
                &sequence(&[
                    &oid(EXTENSION_REQUEST),
                    &value(0x31, &sequence(&[&sequence(parts)])),
                ]),
            )
        };
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
            15 => {
                parts.attributes =
                    attribute(&[&oid(EXTENSION_REQUEST), &value(0x31, &[]), &integer(&[1])])
            }
            16 => parts.attributes = attribute(&[&integer(&[1]), &value(0x31, &[])]),
            17 => {
                parts.attributes =
                    attribute(&[&oid(EXTENSION_REQUEST), &value(0x31, &integer(&[1]))])
            }
            18 => {
                parts.attributes = attribute(&[
                    &oid(EXTENSION_REQUEST),
                    &value(0x31, &sequence(&[&integer(&[1])])),
                ])
            }
            19 => parts.attributes = extension(&[&known]),
            20 => {
                parts.attributes =
                    extension(&[&known, &value(0x01, &[0x01]), &value(0x04, &sequence(&[]))])
            }
            21 => {
                parts.attributes =
                    extension(&[&known, &value(0x04, &sequence(&[])), &integer(&[1])])
            }
            22 => parts.attributes = extension(&[&known, &bit_string(b"x")]),
            23 => {
                let count = size(&mut self.random, 8);
                parts.attributes =
                    names(&[&[0x30, 0x84], &bytes(&mut self.random, count)[..]].concat());
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
                let odd = if self.random.bool() {
                    [&key[..], &[0]].concat()
                } else {
                    key[1..].to_vec()
                };
                parts.key = sequence(&[&sequence(&[&oid(ED25519)]), &bit_string(&odd)]);
            }
        }
        pem(&self.signed(&parts))
    }

    /// DER that is legal and means nothing.
    pub(super) fn random_values(&mut self) -> String {
        fn some(random: &mut fastrand::Rng, depth: u32) -> Vec<u8> {
            if depth == 0 || random.u8(..3) == 0 {
                let tag = pick(
                    random,
                    &[
                        0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0c, 0x13, 0x17, 0x18, 0x80, 0x86,
                        0x1f,
                    ],
                );
                let count = random.usize(..40);
                return value(tag, &bytes(random, count));
            }
            let inside: Vec<u8> = (0..random.usize(..6))
                .flat_map(|_| some(random, depth - 1))
                .collect();
            value(pick(random, &[0x30, 0x30, 0x31, 0xa0, 0xa3]), &inside)
        }
        let depth = self.random.u32(1..6);
        let inside = some(&mut self.random, depth);
        pem(&if self.random.bool() {
            inside
        } else {
            sequence(&[
                &inside,
                &some(&mut self.random, 3),
                &some(&mut self.random, 1),
            ])
        })
    }

    pub(super) fn junk(&mut self) -> String {
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
