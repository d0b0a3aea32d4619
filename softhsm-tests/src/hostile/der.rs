//! Just enough DER to write requests that no honest encoder would: every part stands where its
//! author puts it, right or wrong.

use der::Encode;
use der::oid::ObjectIdentifier;

/// One value: tag, minimal definite length, content.
pub fn value(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend(length(content.len()));
    bytes.extend_from_slice(content);
    bytes
}

/// A SEQUENCE of these parts.
pub fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    value(0x30, &parts.concat())
}

/// An OBJECT IDENTIFIER.
pub fn oid(dotted: &str) -> Vec<u8> {
    ObjectIdentifier::new(dotted)
        .expect("a legal OID")
        .to_der()
        .expect("short")
}

/// A BIT STRING without unused bits.
pub fn bit_string(content: &[u8]) -> Vec<u8> {
    value(0x03, &[&[0], content].concat())
}

/// An INTEGER of these magnitude bytes, positive.
pub fn integer(magnitude: &[u8]) -> Vec<u8> {
    let start = magnitude
        .iter()
        .position(|byte| *byte != 0)
        .unwrap_or(magnitude.len());
    let magnitude = &magnitude[start..];
    let padded = magnitude.first().is_none_or(|byte| byte & 0x80 != 0);
    value(
        0x02,
        &[if padded { &[0][..] } else { &[] }, magnitude].concat(),
    )
}

/// A minimal definite length (X.690 §10.1).
pub fn length(length: usize) -> Vec<u8> {
    if length < 0x80 {
        return vec![u8::try_from(length).expect("below 128")];
    }
    let bytes = length.to_be_bytes();
    let bytes = &bytes[bytes.iter().position(|byte| *byte != 0).expect("not zero")..];
    [
        &[0x80 | u8::try_from(bytes.len()).expect("at most eight")],
        bytes,
    ]
    .concat()
}

/// `core` wrapped `depth` times into values of this tag. Linear in what it writes.
pub fn nested(tag: u8, depth: usize, core: &[u8]) -> Vec<u8> {
    let mut backwards: Vec<u8> = core.iter().rev().copied().collect();
    for _ in 0..depth {
        let length = length(backwards.len());
        backwards.extend(length.iter().rev());
        backwards.push(tag);
    }
    backwards.reverse();
    backwards
}

/// Where a value begins, and where its length and its content are.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Of the tag.
    pub tag: usize,
    /// Of the content; the length's octets stand between.
    pub content: usize,
    /// Behind the content.
    pub end: usize,
}

/// Every value of good DER, outer ones before inner ones.
pub fn places(der: &[u8]) -> Vec<Place> {
    let mut found = Vec::new();
    let mut open = vec![(0, der.len())];
    while let Some((from, to)) = open.pop() {
        let mut at = from;
        while at < to {
            let (header, size) = match der[at + 1] {
                short @ 0..0x80 => (2, usize::from(short)),
                long => {
                    let count = usize::from(long & 0x7f);
                    (
                        2 + count,
                        der[at + 2..at + 2 + count]
                            .iter()
                            .fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
                    )
                }
            };
            let place = Place {
                tag: at,
                content: at + header,
                end: at + header + size,
            };
            found.push(place);
            if der[at] & 0x20 != 0 {
                open.push((place.content, place.end));
            }
            at = place.end;
        }
    }
    found
}
