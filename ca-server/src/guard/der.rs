//! DER (X.690) as the guard reads and writes it: tags of one octet, definite lengths. An encoder of
//! its own, which shares no code with the one that drafts certificates. What is read here is free
//! only as far as the body that is written again is the same octets.

use time::{Date, Month, Time, UtcOffset};

use crate::timestamp::Timestamp;

/// What is left of a SEQUENCE's content.
#[derive(Clone, Copy)]
pub(super) struct Values<'a>(&'a [u8]);

/// One value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Value<'a> {
    /// Its tag's octet.
    pub(super) tag: u8,
    /// Behind tag and length.
    pub(super) content: &'a [u8],
    /// Tag, length and content.
    pub(super) whole: &'a [u8],
}

pub(super) const BOOLEAN: u8 = 0x01;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const NULL: u8 = 0x05;
pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(super) const UTC_TIME: u8 = 0x17;
pub(super) const GENERALIZED_TIME: u8 = 0x18;
pub(super) const SEQUENCE: u8 = 0x30;

/// Kinds of keys and curves, the content of their OBJECT IDENTIFIER (RFC 8017 §A.1, RFC 5480
/// §2.1.1, RFC 8410 §3).
pub(super) const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
pub(super) const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
pub(super) const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
pub(super) const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
pub(super) const ED25519: &[u8] = &[0x2b, 0x65, 0x70];

/// The content of 2.5.29.`number`, an extension's OBJECT IDENTIFIER (RFC 5280 §4.2.1).
pub(super) fn extension_oid(number: u8) -> [u8; 3] {
    [0x55, 0x1d, number]
}

/// The value of the extension 2.5.29.`number` among these, each an Extension (RFC 5280 §4.2).
pub(super) fn extension_value<'a>(extensions: &[Value<'a>], number: u8) -> Option<&'a [u8]> {
    extensions.iter().find_map(|extension| {
        let mut parts = Values::of(extension.content);
        let found = parts.take(OBJECT_IDENTIFIER)? == extension_oid(number);
        parts.take(BOOLEAN);
        parts.take(OCTET_STRING).filter(|_| found)
    })
}

/// `[number]`, constructed.
pub(super) const fn constructed(number: u8) -> u8 {
    0xa0 | number
}

/// `[number]`, primitive.
pub(super) const fn primitive(number: u8) -> u8 {
    0x80 | number
}

impl<'a> Values<'a> {
    /// The values of this content.
    pub(super) fn of(content: &'a [u8]) -> Self {
        Self(content)
    }

    /// The content of the one SEQUENCE that these octets are.
    pub(super) fn of_sequence(whole: &'a [u8]) -> Option<Self> {
        let mut outer = Self(whole);
        let content = outer.take(SEQUENCE)?;
        outer.is_empty().then_some(Self(content))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next value; `None` at the end, and where nothing can be read.
    pub(super) fn next(&mut self) -> Option<Value<'a>> {
        let (tag, length, behind) = match *self.0 {
            [tag, short @ 0..=0x7f, ref behind @ ..] => (tag, usize::from(short), behind),
            [tag, 0x81, length @ 0x80..=0xff, ref behind @ ..] => {
                (tag, usize::from(length), behind)
            }
            [tag, 0x82, high @ 1..=0xff, low, ref behind @ ..] => {
                (tag, usize::from(u16::from_be_bytes([high, low])), behind)
            }
            _ => return None,
        };
        let (content, rest) = behind.split_at_checked(length)?;
        let whole = &self.0[..self.0.len() - rest.len()];
        self.0 = rest;
        // Tags of several octets begin so; a certificate has none.
        (tag & 0x1f != 0x1f).then_some(Value {
            tag,
            content,
            whole,
        })
    }

    /// The content of the next value, if it has this tag; otherwise it is left.
    pub(super) fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let mut ahead = *self;
        let value = ahead.next().filter(|value| value.tag == tag)?;
        *self = ahead;
        Some(value.content)
    }

    /// All that are left; `None` if one cannot be read.
    pub(super) fn all(mut self) -> Option<Vec<Value<'a>>> {
        let mut all = Vec::new();
        while !self.is_empty() {
            all.push(self.next()?);
        }
        Some(all)
    }
}

/// A value of this tag whose content is the parts one after another. At most 65,535 octets.
pub(super) fn value(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = u16::try_from(content.len()).expect("a body is bounded before it is read");
    let [high, low] = length.to_be_bytes();
    let header: &[u8] = match (high, low) {
        (0, 0..=0x7f) => &[tag, low],
        (0, _) => &[tag, 0x81, low],
        _ => &[tag, 0x82, high, low],
    };
    [header, &content].concat()
}

/// A SEQUENCE.
pub(super) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    value(SEQUENCE, parts)
}

/// The second that a UTCTime or a GeneralizedTime names (RFC 5280 §4.1.2.5).
pub(super) fn instant(time: &Value<'_>) -> Option<Timestamp> {
    let digits = time
        .content
        .strip_suffix(b"Z")
        .filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    let (year, rest) = match (time.tag, digits.len()) {
        (UTC_TIME, 12) => {
            let year = number(&digits[..2]);
            (year + if year < 50 { 2000 } else { 1900 }, &digits[2..])
        }
        (GENERALIZED_TIME, 14) => (number(&digits[..4]), &digits[4..]),
        _ => return None,
    };
    let part = |at: usize| u8::try_from(number(&rest[at..at + 2])).ok();
    let date = Date::from_calendar_date(year, Month::try_from(part(0)?).ok()?, part(2)?).ok()?;
    let time = Time::from_hms(part(4)?, part(6)?, part(8)?).ok()?;
    Some(Timestamp::from_seconds(
        date.with_time(time).assume_utc().unix_timestamp(),
    ))
}

fn number(digits: &[u8]) -> i32 {
    digits
        .iter()
        .fold(0, |number, digit| 10 * number + i32::from(digit - b'0'))
}

/// UTCTime through 2049, GeneralizedTime from 2050 on (RFC 5280 §4.1.2.5).
pub(super) fn time(at: Timestamp) -> Vec<u8> {
    let at = at.date_time().to_offset(UtcOffset::UTC);
    let (year, month) = (at.year(), u8::from(at.month()));
    let rest = format!(
        "{month:02}{:02}{:02}{:02}{:02}Z",
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    );
    match year {
        ..2050 => value(
            UTC_TIME,
            &[format!("{:02}", year % 100).as_bytes(), rest.as_bytes()],
        ),
        _ => value(
            GENERALIZED_TIME,
            &[format!("{year:04}").as_bytes(), rest.as_bytes()],
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_the_same_at_every_length() {
        for length in [0, 1, 127, 128, 255, 256, 65_535] {
            let content = vec![7; length];
            let written = value(OCTET_STRING, &[&content]);
            let mut values = Values::of(&written);
            let read = values.next().unwrap();
            assert!(
                read.tag == OCTET_STRING
                    && read.content == content
                    && read.whole == written
                    && values.is_empty(),
                "{length}"
            );
        }
    }

    #[test]
    fn a_length_that_is_not_the_shortest_or_has_no_content_is_not_read() {
        let bad: [&[u8]; 8] = [
            &[],
            &[4],
            &[4, 1],
            &[4, 0x80, 0, 0],
            &[4, 0x81, 1, 0],
            &[4, 0x82, 0, 1, 0],
            &[4, 0x84, 0, 0, 0, 0],
            &[0x1f, 0x81, 1, 0],
        ];
        for octets in bad {
            assert!(Values::of(octets).next().is_none(), "{octets:x?}");
        }
        assert!(
            Values::of_sequence(&[0x30, 0, 0]).is_none(),
            "more than one value"
        );
    }
}
