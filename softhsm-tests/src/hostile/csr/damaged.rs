//! What an attacker makes of somebody's good request without its key: bits, bytes, lengths,
//! signatures and armour.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::super::der::{bit_string, integer, length, oid, places, sequence, value};
use super::super::{bytes, edited, pick, size};
use super::{Csrs, ED25519, SIGNATURE_ALGORITHMS, armoured, cut, pem};

impl Csrs {
    pub(super) fn bits_flipped(&mut self) -> String {
        let mut der = self.damaged();
        // Each further flip has a byte of its own, so that none undoes another.
        for at in (self.random.usize(1..64)..der.len())
            .step_by(64)
            .take(self.random.usize(..4))
        {
            der[at] ^= 1 << self.random.u32(..8);
        }
        // The first flip may have been undone after all.
        if self.good.contains(&der) {
            der[0] ^= 1;
        }
        pem(&der)
    }

    pub(super) fn bytes_edited(&mut self) -> String {
        let der = self.some_good();
        pem(&edited(&mut self.random, &der, |random| random.u8(..)))
    }

    pub(super) fn truncated(&mut self) -> String {
        let mut der = self.some_good();
        der.truncate(self.random.usize(..der.len()));
        pem(&der)
    }

    pub(super) fn length_that_lies(&mut self) -> String {
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

    pub(super) fn algorithm_swapped(&mut self) -> String {
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
            // RSA's NULL may be there or not (RFC 4055 §5): with the same name that is the same
            // algorithm.
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

    pub(super) fn signature_of_another(&mut self) -> String {
        let (one, two) = (self.some_good(), self.some_good());
        let ((info, algorithm, signature), (_, other_algorithm, other)) = (cut(&one), cut(&two));
        let der = match self.random.u8(..3) {
            _ if one == two => {
                let mut renamed = self.parts();
                renamed.subject = sequence(&[&value(
                    0x31,
                    &sequence(&[&oid("2.5.4.3"), &value(0x0c, b"another")]),
                )]);
                sequence(&[&renamed.info(), algorithm, signature])
            }
            0 => sequence(&[info, algorithm, other]),
            1 => sequence(&[info, other_algorithm, other]),
            _ => {
                let mine = self.own.sign(&[info, b"\0"].concat());
                sequence(&[
                    info,
                    &sequence(&[&oid(ED25519)]),
                    &bit_string(mine.as_ref()),
                ])
            }
        };
        pem(&der)
    }

    pub(super) fn degenerate_signature(&mut self) -> String {
        let der = self.some_good();
        let (info, algorithm, signature) = cut(&der);
        let order = hex::decode("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551")
            .expect("hex");
        let numbers = [
            vec![],
            vec![1],
            order.clone(),
            vec![0xff; 32],
            vec![0xff; 48],
            bytes(&mut self.random, 32),
        ];
        let (r, s) = (
            pick(&mut self.random, &numbers),
            pick(&mut self.random, &numbers),
        );
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

    /// Whatever a reader makes of the armour, what is inside was damaged.
    pub(super) fn pem_tricks(&mut self) -> String {
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
            4 => format!(
                "{BEGIN}\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n{inside}\n{END}\n"
            ),
            5 => format!(
                "{BEGIN}\n{}\n{END}\n",
                inside.replace('A', "-").replace('B', "_")
            ),
            6 => format!("{BEGIN}\r{inside}\r{END}\r"),
            7 => format!(
                "{}\n{inside}\n{END}\n",
                BEGIN.replace("CERTIFICATE", "NEW CERTIFICATE")
            ),
            8 => format!(
                "{}\n{inside}\n{}\n",
                BEGIN.replace('E', "\u{415}"),
                END.replace('E', "\u{415}")
            ),
            9 => format!(
                "{BEGIN}\n{}\n{END}\n",
                inside
                    .chars()
                    .map(|letter| format!("{letter}\n"))
                    .collect::<String>()
            ),
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

    /// One letter of the armoured text becomes another letter of base64, where every bit of it
    /// counts.
    pub(super) fn pem_edited(&mut self) -> String {
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
        inside[at] = if self.random.u8(..4) == 0 {
            pick(&mut self.random, b"!@#$%^&*()~`|;")
        } else {
            other
        };
        armoured(&String::from_utf8(inside).expect("ASCII"))
    }
}
