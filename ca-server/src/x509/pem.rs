//! PEM text (RFC 7468), written as the mesh wants it and read as people have it: with a byte order
//! mark, indented, glued together, between other text. What stands in a file is read or named with
//! its line, never passed over: whoever puts a root into a file must not find later that nobody
//! trusts it. No error holds a byte of the text, for it may be a private key.

use std::fmt::{self, Display};

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_STANDARD;

/// What one block holds, and the line on which it begins, counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// DER.
    pub der: Vec<u8>,
    /// The line of its BEGIN mark.
    pub line: usize,
}

/// Why a text is not the PEM that it should be: a sentence with the line, and nothing of what
/// stands there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadPem(String);

fn bad(why: impl Display) -> BadPem {
    BadPem(why.to_string())
}

fn at(line: usize, why: impl Display) -> BadPem {
    BadPem(format!("line {line}: {why}"))
}

/// One certificate as a PEM block.
pub fn certificate(der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let mut pem = String::with_capacity(text.len() + text.len() / 64 + 60);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    for at in (0..text.len()).step_by(64) {
        pem.push_str(&text[at..text.len().min(at + 64)]);
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// Every block of a file of certificates, at least one. A block of another kind is an error.
pub fn certificates(text: &[u8]) -> Result<Vec<Block>, BadPem> {
    let found = blocks(text, &["CERTIFICATE", "X509 CERTIFICATE"])?;
    if found.is_empty() {
        Err(bad("no PEM certificate in it"))
    } else {
        Ok(found)
    }
}

/// The one certificate signing request of a text (RFC 7468 §7, and the label that older programs
/// write).
pub fn request(text: &[u8]) -> Result<Vec<u8>, BadPem> {
    let mut found = blocks(text, &["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"])?;
    match (found.pop(), found.len()) {
        (None, _) => Err(bad("no PEM CERTIFICATE REQUEST in it")),
        (Some(only), 0) => Ok(only.der),
        (Some(second), _) => Err(at(
            second.line,
            "a second request; ask for one certificate at a time",
        )),
    }
}

/// Every label that an error may repeat; a label that is not among them may be anything, a secret
/// too.
const LABELS: [&str; 17] = [
    "CERTIFICATE",
    "X509 CERTIFICATE",
    "TRUSTED CERTIFICATE",
    "CERTIFICATE REQUEST",
    "NEW CERTIFICATE REQUEST",
    "X509 CRL",
    "PKCS7",
    "CMS",
    "PUBLIC KEY",
    "PRIVATE KEY",
    "RSA PRIVATE KEY",
    "EC PRIVATE KEY",
    "DSA PRIVATE KEY",
    "ENCRYPTED PRIVATE KEY",
    "OPENSSH PRIVATE KEY",
    "EC PARAMETERS",
    "DH PARAMETERS",
];

fn unread(label: &[u8]) -> String {
    let known = LABELS.iter().find(|known| known.as_bytes() == label);
    match known.copied() {
        Some(key) if key.ends_with("PRIVATE KEY") => {
            let article = if key.starts_with(['E', 'O', 'R']) {
                "an"
            } else {
                "a"
            };
            format!(
                "{article} {key}, which has no place in this file; take it out, and make a new key if others may have read it"
            )
        }
        Some("TRUSTED CERTIFICATE") => {
            "a TRUSTED CERTIFICATE, whose trust settings of OpenSSL are not read; \
             write it as a plain one: openssl x509 -in FILE -out NEW-FILE"
                .to_owned()
        }
        Some(bundle @ ("PKCS7" | "CMS")) => {
            format!(
                "{bundle}, which is not read; write its certificates one by one: openssl pkcs7 -print_certs -in FILE -out NEW-FILE"
            )
        }
        Some(other) => format!("a block {other}, which is not read here; take it out"),
        None => "a block with a label that is not read here; take it out".to_owned(),
    }
}

fn blocks(text: &[u8], wanted: &[&str]) -> Result<Vec<Block>, BadPem> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let marks = Marks {
        text,
        at: 0,
        line: 1,
    }
    .collect::<Vec<_>>();
    if marks.is_empty() {
        other_form(text)?;
    }
    let mut found = Vec::new();
    // Where the text outside of blocks goes on, and on which line.
    let (mut outside, mut line) = (0, 1);
    let mut marks = marks.into_iter();
    while let Some(begin) = marks.next() {
        no_stray(&text[outside..begin.start], line)?;
        if begin.ends {
            return Err(at(begin.line, "an END mark without a BEGIN mark before it"));
        }
        let open = || at(begin.line, "a block begins here and has no END mark");
        let end = marks.next().filter(|end| end.ends).ok_or_else(open)?;
        if begin.label != end.label {
            return Err(at(
                end.line,
                format_args!(
                    "the END mark has another label than the BEGIN mark of line {}",
                    begin.line
                ),
            ));
        }
        if !wanted.iter().any(|wanted| wanted.as_bytes() == begin.label) {
            return Err(at(begin.line, unread(begin.label)));
        }
        found.push(Block {
            der: body(&text[begin.end..end.start], begin.line)?,
            line: begin.line,
        });
        (outside, line) = (end.end, end.line);
    }
    no_stray(&text[outside..], line)?;
    Ok(found)
}

/// A mark, `-----BEGIN LABEL-----` or `-----END LABEL-----`, wherever on its line it stands.
struct Mark<'a> {
    ends: bool,
    label: &'a [u8],
    start: usize,
    end: usize,
    line: usize,
}

struct Marks<'a> {
    text: &'a [u8],
    at: usize,
    line: usize,
}

const DASHES: &[u8] = b"-----";

/// Longer than any label, in octets.
const LONGEST_LABEL: usize = 64;

impl<'a> Iterator for Marks<'a> {
    type Item = Mark<'a>;

    fn next(&mut self) -> Option<Mark<'a>> {
        while self.at < self.text.len() {
            let rest = &self.text[self.at..];
            let named = rest.strip_prefix(DASHES).and_then(|rest| {
                let (ends, rest) = match (rest.strip_prefix(b"BEGIN "), rest.strip_prefix(b"END "))
                {
                    (Some(rest), _) => (false, rest),
                    (None, Some(rest)) => (true, rest),
                    (None, None) => return None,
                };
                // No label is as long, and a line may be: it must not be read to its end for each
                // mark on it.
                let line = &rest[..rest.len().min(LONGEST_LABEL + DASHES.len())];
                let line = &line[..line
                    .iter()
                    .position(|octet| matches!(octet, b'\n' | b'\r'))
                    .unwrap_or(line.len())];
                Some((
                    ends,
                    &line[..line
                        .windows(DASHES.len())
                        .position(|dashes| dashes == DASHES)?],
                ))
            });
            if let Some((ends, label)) = named {
                let start = self.at;
                self.at += DASHES.len()
                    + if ends { "END ".len() } else { "BEGIN ".len() }
                    + label.len()
                    + DASHES.len();
                return Some(Mark {
                    ends,
                    label,
                    start,
                    end: self.at,
                    line: self.line,
                });
            }
            self.line += usize::from(rest[0] == b'\n');
            self.at += 1;
        }
        None
    }
}

/// Text between blocks is for people (RFC 7468 §2), unless it looks like what should have been a
/// block.
fn no_stray(text: &[u8], first: usize) -> Result<(), BadPem> {
    for (number, line) in text.split(|octet| *octet == b'\n').enumerate() {
        let line = line.trim_ascii();
        let capitals = line.to_ascii_uppercase();
        let dash = |dash: &&[u8]| line.starts_with(dash) || line.ends_with(dash);
        let is_framed = [&b"-"[..], "\u{2013}".as_bytes(), "\u{2014}".as_bytes()]
            .iter()
            .any(dash);
        if is_framed
            && capitals
                .split(|octet| !octet.is_ascii_alphabetic())
                .any(|word| matches!(word, b"BEGIN" | b"END"))
        {
            return Err(at(
                first + number,
                "a damaged mark; it reads -----BEGIN LABEL----- or -----END LABEL-----, five hyphens on each side",
            ));
        }
        if line.len() >= 40 && line.starts_with(b"MI") && line.iter().all(|octet| is_base64(*octet))
        {
            return Err(at(
                first + number,
                "base64 outside of a block; its BEGIN mark is missing",
            ));
        }
    }
    Ok(())
}

fn has(line: &[u8], part: &[u8]) -> bool {
    line.windows(part.len()).any(|window| window == part)
}

fn is_base64(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || matches!(octet, b'+' | b'/' | b'=')
}

fn line_of(text: &[u8], at: usize) -> usize {
    1 + text[..at].iter().filter(|octet| **octet == b'\n').count()
}

/// Base64 as others wrote it: padded or not, whatever the unused last bits are.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

fn body(body: &[u8], begins: usize) -> Result<Vec<u8>, BadPem> {
    let mut digits = Vec::with_capacity(body.len());
    for (at_octet, octet) in body.iter().enumerate() {
        match octet {
            b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c => {}
            _ if is_base64(*octet) => digits.push(*octet),
            _ => {
                let line = begins + line_of(body, at_octet) - 1;
                return Err(at(
                    line,
                    NotBase64 {
                        octet: *octet,
                        next: body.get(at_octet + 1).copied(),
                    },
                ));
            }
        }
    }
    match LENIENT.decode(&digits) {
        Ok(der) if der.is_empty() => Err(at(begins, "an empty block")),
        Ok(der) => Ok(der),
        Err(_) => Err(at(
            begins,
            "the block that begins here is not whole base64; something is missing, or two were put together",
        )),
    }
}

/// What a sign that is not base64 tells of how the file came to be.
struct NotBase64 {
    octet: u8,
    next: Option<u8>,
}

impl Display for NotBase64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.octet, self.next) {
            (b'\\', Some(b'n' | b'r')) => {
                "a backslash and a letter stand where line breaks belong; write real line breaks"
            }
            (b':', _) => "a header line inside the block; plain PEM has none (RFC 7468 §2)",
            (0, _) => "a NUL octet inside the block; save the file as plain text in UTF-8",
            (0x80.., _) => "a sign that is not ASCII inside the block; save the file as plain text",
            _ => "a sign that is not base64 inside the block",
        })
    }
}

/// A text without one mark: says what it is instead, if that can be seen.
fn other_form(text: &[u8]) -> Result<(), BadPem> {
    const PKCS_7_SIGNED_DATA: &[u8] = &[
        0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02,
    ];
    const PKCS_12_VERSION: &[u8] = &[0x02, 0x01, 0x03, 0x30];
    let beginning = &text[..text.len().min(32)];
    match text {
        [] => Err(bad("it is empty")),
        _ if text.iter().all(u8::is_ascii_whitespace) => Err(bad("it is empty")),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [_, 0, _, 0, ..] | [0, _, 0, _, ..] => Err(bad(
            "it is UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE",
        )),
        [0x30, ..] if has(beginning, PKCS_7_SIGNED_DATA) => Err(bad(
            "it is PKCS#7 in DER, not PEM: openssl pkcs7 -inform der -print_certs -in FILE -out NEW-FILE",
        )),
        [0x30, ..]
            if (2..6).any(|at| {
                text.get(at..)
                    .is_some_and(|rest| rest.starts_with(PKCS_12_VERSION))
            }) =>
        {
            Err(bad(
                "it is PKCS#12, not PEM: openssl pkcs12 -nokeys -in FILE -out NEW-FILE",
            ))
        }
        [0x30, 0x80..=0x84, ..] => Err(bad(
            "it is DER, not PEM: openssl x509 -inform der -in FILE -out NEW-FILE",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DER: &[u8] = b"0\x82\x01\x00 stands for a certificate, and is long enough for two lines of base64, as they are..";

    fn pem() -> String {
        certificate(DER)
    }

    fn read(text: &str) -> Result<Vec<(Vec<u8>, usize)>, String> {
        let found = certificates(text.as_bytes()).map_err(|bad| bad.to_string())?;
        Ok(found
            .into_iter()
            .map(|block| (block.der, block.line))
            .collect())
    }

    #[test]
    fn what_can_be_read_one_way_only_is_read() {
        let pem = pem();
        let one = |line| Ok(vec![(DER.to_vec(), line)]);
        assert_eq!(read(&pem), one(1));
        assert_eq!(read(&format!("\u{feff}{pem}")), one(1));
        assert_eq!(read(&pem.replace('\n', "\r\n")), one(1));
        assert_eq!(
            read(&pem.replace("CERTIFICATE", "X509 CERTIFICATE")),
            one(1)
        );
        assert_eq!(
            read(
                &pem.lines()
                    .map(|line| format!(" \t{line}  \n"))
                    .collect::<String>()
            ),
            one(1)
        );
        assert_eq!(read(pem.trim_end()), one(1));
        assert_eq!(read(&pem.replace("=", "")), one(1));
        assert_eq!(
            read(&format!(
                "Bag Attributes\n    friendlyName: the back-end -- ours\n---- friends ----\nsubject=CN = x\n\n{pem}"
            )),
            one(6)
        );
        let body: String = pem.lines().filter(|line| !line.contains("-----")).collect();
        assert_eq!(
            read(&format!(
                "-----BEGIN CERTIFICATE-----{body}-----END CERTIFICATE-----"
            )),
            one(1)
        );
        let lines = pem.lines().count();
        let two = Ok(vec![(DER.to_vec(), 1), (DER.to_vec(), lines)]);
        assert_eq!(read(&format!("{}{pem}", pem.trim_end())), two);
    }

    #[test]
    fn what_is_not_read_is_named_with_its_line_and_never_shown() {
        let pem = pem();
        let first_line = pem.lines().nth(1).unwrap().to_owned();
        let key = pem.replace("CERTIFICATE", "PRIVATE KEY");
        for (text, expected) in [
            (
                format!("{pem}{key}"),
                "line 5: a PRIVATE KEY, which has no place",
            ),
            (
                format!("{pem}{}", pem.replace("CERTIFICATE", "TRUSTED CERTIFICATE")),
                "line 5: a TRUSTED CERTIFICATE",
            ),
            (
                format!("{pem}{}", pem.replace("CERTIFICATE", "X509 CRL")),
                "line 5: a block X509 CRL",
            ),
            (
                format!("{pem}{}", pem.replace("CERTIFICATE", "CANARY")),
                "line 5: a block with a label",
            ),
            (pem.replace("CERTIFICATE", "PKCS7"), "line 1: PKCS7"),
            (
                format!("{pem}{}", pem.replacen("-----BEGIN", "----BEGIN", 1)),
                "line 5: a damaged mark",
            ),
            (
                format!("{pem}{}", pem.replacen("-----BEGIN", "\u{2014}BEGIN", 1)),
                "line 5: a damaged mark",
            ),
            (
                format!("{pem}{}", pem.replacen("-----BEGIN", "BEGIN", 1)),
                "line 5: a damaged mark",
            ),
            (
                format!("{pem}{}", pem.to_lowercase()),
                "line 5: a damaged mark",
            ),
            (format!("{pem}{first_line}\n"), "line 5: base64 outside"),
            (
                format!("{pem}-----BEGIN CERTIFICATE-----\n{first_line}\n"),
                "line 5: a block begins here and has no END",
            ),
            (
                format!("{pem}-----END CERTIFICATE-----\n"),
                "line 5: an END mark without",
            ),
            (
                pem.replacen("-----END CERTIFICATE-----\n", "", 1) + &pem,
                "line 1: a block begins here and has no END",
            ),
            (
                pem.replace("END CERTIFICATE", "END PRIVATE KEY"),
                "line 4: the END mark has another label",
            ),
            (pem.replace('\n', "\\n"), "line 1: a backslash and a letter"),
            (
                pem.replacen('\n', "\nProc-Type: 4,ENCRYPTED\n", 1),
                "line 2: a",
            ),
            (
                pem.replacen('\n', "\n\u{a0}", 1),
                "line 2: a sign that is not ASCII",
            ),
            (
                pem.replacen(&first_line, &first_line[..first_line.len() - 1], 1),
                "line 1: the block that begins here is not whole",
            ),
            (
                "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".to_owned(),
                "line 1: an empty block",
            ),
            (String::new(), "it is empty"),
            ("\n \n".to_owned(), "it is empty"),
            ("{\"keys\": []}".to_owned(), "no PEM certificate"),
        ] {
            let said = read(&text).expect_err(expected);
            assert!(said.starts_with(expected), "{said}, not {expected}");
            assert!(
                !said.contains(&first_line[..8]) && !said.contains("CANARY"),
                "{said}"
            );
        }
    }

    #[test]
    fn other_forms_are_named_with_the_command_that_converts_them() {
        let utf_16: Vec<u8> = pem().encode_utf16().flat_map(u16::to_le_bytes).collect();
        let marked = [b"\xff\xfe".to_vec(), utf_16.clone()].concat();
        let signed_data = [
            &[0x30, 0x82, 1, 0, 6, 9][..],
            &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2],
        ]
        .concat();
        for (text, expected) in [
            (utf_16, "UTF-16"),
            (marked, "UTF-16"),
            (signed_data, "openssl pkcs7 -inform der"),
            (
                vec![0x30, 0x82, 1, 0, 2, 1, 3, 0x30, 0x82],
                "openssl pkcs12",
            ),
            (
                vec![0x30, 0x82, 1, 0, 0x30, 0x82],
                "openssl x509 -inform der",
            ),
        ] {
            let said = certificates(&text).unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn one_request_is_read_under_either_label_and_two_are_not() {
        let plain = pem().replace("CERTIFICATE", "CERTIFICATE REQUEST");
        assert_eq!(request(plain.as_bytes()), Ok(DER.to_vec()));
        assert_eq!(
            request(plain.replace("CERTIFICATE", "NEW CERTIFICATE").as_bytes()),
            Ok(DER.to_vec())
        );
        for (text, expected) in [
            (format!("{plain}{plain}"), "line 5: a second request"),
            (pem(), "line 1: a block CERTIFICATE"),
            (
                format!("{}{plain}", pem().replace("CERTIFICATE", "EC PRIVATE KEY")),
                "line 1: an EC PRIVATE KEY",
            ),
            ("hello".to_owned(), "no PEM CERTIFICATE REQUEST"),
        ] {
            let said = request(text.as_bytes()).unwrap_err().to_string();
            assert!(said.starts_with(expected), "{said}");
        }
    }
}
