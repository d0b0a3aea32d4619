//! Certificate serial numbers (RFC 5280 §4.1.2.2): the ledger's period, the second, and 88 random
//! bits.

use std::fmt;

use crate::timestamp::{Period, Timestamp};

/// A positive serial of 18 octets: 3 of period (yyyymm), 4 of Unix seconds, 11 random.
///
/// The period in front makes uniqueness within one partition of the ledger global; the seconds keep
/// the unique index append-only.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Serial([u8; Serial::LEN]);

impl Serial {
    /// Octets of a serial.
    pub const LEN: usize = 18;

    /// A serial of `period` from 11 octets of fresh randomness.
    pub fn new(period: Period, now: Timestamp, random: [u8; 11]) -> Self {
        let mut bytes = [0; Self::LEN];
        bytes[..3].copy_from_slice(&period.yyyymm().to_be_bytes()[1..]);
        bytes[3..7].copy_from_slice(&(now.seconds() & 0xffff_ffff).to_be_bytes()[4..]);
        bytes[7..].copy_from_slice(&random);
        Self(bytes)
    }

    /// A serial read back from the ledger; `None` if its length or period is not one of ours.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let serial = Self(bytes.try_into().ok()?);
        Period::new(serial.leading())?;
        Some(serial)
    }

    /// The period that stands in its first octets.
    pub fn period(&self) -> Period {
        Period::new(self.leading()).expect("both constructors put a period there")
    }

    fn leading(&self) -> u32 {
        u32::from_be_bytes([0, self.0[0], self.0[1], self.0[2]])
    }

    /// Big-endian octets; the first is 0x03 until the year 2 621, so they are the content of a
    /// positive DER INTEGER.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
