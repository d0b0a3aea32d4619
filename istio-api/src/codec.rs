//! The codec of both sides: protobuf as prost reads it, after a look at how much a message unfolds
//! into. Two bytes on the wire become a value of seventy in memory, and nobody has authenticated
//! yet when a request is decoded; so metadata and the number of fields are bounded before anything
//! is built. The CSR has its own limit.

use std::marker::PhantomData;

use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::ProstCodec;

/// The most fields of a message. A request has three; an answer has one for each certificate.
const FIELDS: usize = 256;

/// The most bytes beside the first field, the CSR or the certificates: two names of metadata are
/// known.
const BESIDE: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Send + 'static, U: Message + Default + Send + 'static> Codec
    for BoundedCodec<T, U>
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = BoundedDecoder<<ProstCodec<T, U> as Codec>::Decoder>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(ProstCodec::<T, U>::raw_decoder(BufferSettings::default()))
    }
}

/// Looks, and then decodes.
#[derive(Debug)]
pub struct BoundedDecoder<D>(D);

impl<D: Decoder<Error = Status>> Decoder for BoundedDecoder<D> {
    type Item = D::Item;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<D::Item>, Status> {
        // A message stands in one piece; one that did not would be looked at no further than that.
        if message.chunk().len() < message.remaining() || !is_bounded(message.chunk()) {
            return Err(Status::invalid_argument(
                "the message holds more than a CSR call needs",
            ));
        }
        self.0.decode(message)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Whether a message unfolds into no more than it may. What is malformed passes: prost stops at the
/// same place and says why.
fn is_bounded(mut message: &[u8]) -> bool {
    let mut beside = 0_usize;
    for _ in 0..=FIELDS {
        if message.is_empty() {
            return true;
        }
        let Ok((field, wire_type)) = decode_key(&mut message) else {
            return true;
        };
        let length = match wire_type {
            WireType::Varint if decode_varint(&mut message).is_ok() => 0,
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => match decode_varint(&mut message).map(usize::try_from) {
                Ok(Ok(length)) => length,
                _ => return true,
            },
            WireType::Varint => return true,
            // proto3 has no groups.
            WireType::StartGroup | WireType::EndGroup => return false,
        };
        let Some((_, rest)) = message.split_at_checked(length) else {
            return true;
        };
        message = rest;
        beside += if field == 1 { 0 } else { length };
        if beside > BESIDE {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_csr_call_needs_is_bounded_and_what_unfolds_is_not() {
        let csr = [&[0x0a, 0x80, 0x80, 0x40][..], &vec![b'A'; 1 << 20]].concat();
        let metadata = |length: usize| {
            [
                &[
                    0x22,
                    0x80 | (length & 0x7f) as u8,
                    0x80 | (length >> 7 & 0x7f) as u8,
                    (length >> 14) as u8,
                ][..],
                &vec![0; length],
            ]
            .concat()
        };
        assert!(
            is_bounded(&[])
                && is_bounded(&csr)
                && is_bounded(&[&csr[..], &[0x18, 0x05], &metadata(1 << 16)].concat())
        );
        assert!(!is_bounded(&metadata((1 << 16) + 1)), "one large piece");
        assert!(
            !is_bounded(&metadata(1 << 15).repeat(3)),
            "many that are large together"
        );
        assert!(
            is_bounded(&[0x0a, 0].repeat(FIELDS)) && !is_bounded(&[0x0a, 0].repeat(FIELDS + 1)),
            "many fields"
        );
        assert!(!is_bounded(&[0x0b, 0x0c]), "a group");
        for malformed in [
            &[0x0a][..],
            &[0x0a, 5, 1],
            &[0xff; 11],
            &[0x18, 0xff],
            &[0x07],
        ] {
            assert!(is_bounded(malformed), "prost says what is wrong");
        }
    }
}
