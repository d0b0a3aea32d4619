//! An X.509 certificate (RFC 5280 §4.1) cut into its parts, each as the octets that stand there:
//! what was signed is verified as it was signed, and names are compared as they are written. Judges
//! nothing: a root may have a serial or a version that no CA would write today.

use const_oid::{AssociatedOid, ObjectIdentifier};
use der::asn1::{AnyRef, BitStringRef, OctetStringRef};
use der::{Decode, Reader, SliceReader};
use x509_cert::name::Name;
use x509_cert::time::Time;

use super::timestamp;
use crate::timestamp::Timestamp;

/// A certificate, its parts as they stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    to_be_signed: Vec<u8>,
    signature_algorithm: Vec<u8>,
    signature: Vec<u8>,
    version: u8,
    serial: Vec<u8>,
    issuer: Vec<u8>,
    subject: Vec<u8>,
    begins: Timestamp,
    ends: Timestamp,
    spki: Vec<u8>,
    extensions: Vec<Extension>,
}

/// One extension (RFC 5280 §4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Its kind.
    pub oid: ObjectIdentifier,
    /// Whether it says critical.
    pub critical: bool,
    /// The content of its OCTET STRING.
    pub value: Vec<u8>,
}

/// Why bytes are no certificate; one clause that quotes nothing of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(&'static str);

/// The values in a constructed value's content, each with tag and length.
pub(super) fn elements(content: &[u8]) -> Result<Vec<&[u8]>, der::Error> {
    let mut reader = SliceReader::new(content)?;
    let mut found = Vec::new();
    while !reader.is_finished() {
        found.push(reader.tlv_bytes()?);
    }
    Ok(found)
}

/// The content of one value that fills `tlv`.
pub(super) fn content(tlv: &[u8]) -> Result<&[u8], der::Error> {
    Ok(AnyRef::from_der(tlv)?.value())
}

impl Certificate {
    /// Reads one certificate in DER, with nothing after it.
    pub fn read(der: &[u8]) -> Result<Self, Unreadable> {
        let not = |why| move |_: der::Error| Unreadable(why);
        let outside = content(der)
            .and_then(elements)
            .map_err(not("it is not one value in DER"))?;
        let [to_be_signed, algorithm, signature] = outside[..] else {
            return Err(Unreadable("it has other parts than a certificate"));
        };
        let mut fields = content(to_be_signed)
            .and_then(elements)
            .map_err(not("its body is not in DER"))?;
        let version = match fields.first() {
            // The explicit [0] of v2 and v3; v1 has none.
            Some([0xa0, ..]) => {
                let version = content(fields.remove(0))
                    .and_then(content)
                    .map_err(not("its version cannot be read"))?;
                version.first().copied().unwrap_or(0).saturating_add(1)
            }
            _ => 1,
        };
        let [serial, _, issuer, validity, subject, spki, rest @ ..] = &fields[..] else {
            return Err(Unreadable("its body has other fields than a certificate's"));
        };
        let times = content(validity)
            .and_then(elements)
            .map_err(not("its validity cannot be read"))?;
        let [begins, ends] = times[..] else {
            return Err(Unreadable("its validity has not two times"));
        };
        let time = |tlv: &[u8]| {
            Time::from_der(tlv)
                .map(timestamp)
                .map_err(not("its validity cannot be read"))
        };
        let extensions = rest
            .iter()
            .find(|field| field.first() == Some(&0xa3))
            .map(|field| extensions(field))
            .transpose();
        let signature = BitStringRef::from_der(signature)
            .ok()
            .and_then(|bits| bits.as_bytes());
        Ok(Self {
            der: der.to_vec(),
            to_be_signed: to_be_signed.to_vec(),
            signature_algorithm: content(algorithm)
                .map_err(not("its signature algorithm cannot be read"))?
                .to_vec(),
            signature: signature
                .ok_or(Unreadable("its signature cannot be read"))?
                .to_vec(),
            version,
            serial: content(serial)
                .map_err(not("its serial cannot be read"))?
                .to_vec(),
            issuer: issuer.to_vec(),
            subject: subject.to_vec(),
            begins: time(begins)?,
            ends: time(ends)?,
            spki: spki.to_vec(),
            extensions: extensions
                .map_err(not("its extensions cannot be read"))?
                .unwrap_or_default(),
        })
    }

    /// The whole, DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// What its issuer signed.
    pub fn to_be_signed(&self) -> &[u8] {
        &self.to_be_signed
    }

    /// The content of its AlgorithmIdentifier, without tag and length.
    pub fn signature_algorithm(&self) -> &[u8] {
        &self.signature_algorithm
    }

    /// Its signature, without the BIT STRING around it.
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// 1, 2 or 3.
    pub fn version(&self) -> u8 {
        self.version
    }

    /// The octets of its serial, two's complement (X.690 §8.3).
    pub fn serial(&self) -> &[u8] {
        &self.serial
    }

    /// Its issuer's Name, DER.
    pub fn issuer(&self) -> &[u8] {
        &self.issuer
    }

    /// Its subject's Name, DER.
    pub fn subject(&self) -> &[u8] {
        &self.subject
    }

    /// Whether it names itself as its issuer.
    pub fn is_self_issued(&self) -> bool {
        self.subject == self.issuer
    }

    /// First second of validity.
    pub fn begins(&self) -> Timestamp {
        self.begins
    }

    /// Last second of validity.
    pub fn ends(&self) -> Timestamp {
        self.ends
    }

    /// Its SubjectPublicKeyInfo, DER.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// Its extensions, in order.
    pub fn extensions(&self) -> &[Extension] {
        &self.extensions
    }

    /// An extension, and whether it says critical. One that is there and cannot be read is an
    /// error, never absent.
    pub fn extension<'a, T: Decode<'a, Error = der::Error> + AssociatedOid>(
        &'a self,
    ) -> Result<Option<(bool, T)>, Unreadable> {
        let Some(found) = self
            .extensions
            .iter()
            .find(|extension| extension.oid == T::OID)
        else {
            return Ok(None);
        };
        let value = T::from_der(&found.value)
            .map_err(|_| Unreadable("one of its extensions cannot be read"))?;
        Ok(Some((found.critical, value)))
    }
}

fn extensions(field: &[u8]) -> Result<Vec<Extension>, der::Error> {
    let one = |tlv: &&[u8]| {
        let mut reader = SliceReader::new(content(tlv)?)?;
        let extension = Extension {
            oid: ObjectIdentifier::decode(&mut reader)?,
            critical: Option::<bool>::decode(&mut reader)?.unwrap_or(false),
            value: <&OctetStringRef>::decode(&mut reader)?.as_bytes().to_vec(),
        };
        reader.finish()?;
        Ok(extension)
    };
    elements(content(content(field)?)?)?
        .iter()
        .map(one)
        .collect()
}

/// A Name for people (RFC 4514), such as `CN=Mesh Root,O=Example`.
pub fn name_text(name: &[u8]) -> String {
    match Name::from_der(name).map(|name| name.to_string()) {
        Ok(text) if text.is_empty() => "an empty name".to_owned(),
        Ok(text) => text,
        Err(_) => "a name that cannot be read".to_owned(),
    }
}
