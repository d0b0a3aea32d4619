//! DER written directly: a tag, a length, and content that is already encoded. Only what a
//! certificate's body needs.

use der::asn1::{GeneralizedTime, UtcTime};
use der::{Encode, Header, Length, Tag, TagNumber};

use crate::timestamp::Timestamp;

/// One value: its tag, its length, and the parts of its content one after another.
pub(super) fn tlv(tag: Tag, content: &[&[u8]]) -> Vec<u8> {
    let length: usize = content.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(length + 6);
    let length =
        Length::try_from(length).expect("a certificate is far below DER's limit of 256 MiB");
    Header::new(tag, length)
        .encode_to_vec(&mut out)
        .expect("a header always encodes");
    for part in content {
        out.extend_from_slice(part);
    }
    out
}

/// A SEQUENCE of encoded values.
pub(super) fn sequence(values: &[&[u8]]) -> Vec<u8> {
    tlv(Tag::Sequence, values)
}

/// A context-specific value.
pub(super) fn context(number: u32, constructed: bool, content: &[u8]) -> Vec<u8> {
    tlv(
        Tag::ContextSpecific {
            constructed,
            number: TagNumber(number),
        },
        &[content],
    )
}

/// A validity time: UTCTime to 2049, GeneralizedTime from 2050 (RFC 5280 §4.1.2.5), in whole
/// seconds.
pub(super) fn time(at: Timestamp) -> Vec<u8> {
    let since_epoch = std::time::Duration::from_secs(at.seconds().unsigned_abs());
    let encoded = match UtcTime::from_unix_duration(since_epoch) {
        Ok(time) => time.to_der(),
        Err(_) => GeneralizedTime::from_unix_duration(since_epoch).and_then(|time| time.to_der()),
    };
    encoded.expect("a Timestamp lies within the years 1970–9999")
}
