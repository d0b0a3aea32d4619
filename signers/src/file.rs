//! A private key in a PEM file, for development and migration: PKCS#8 (RFC 5958), SEC 1 (RFC 5915)
//! or PKCS#1 (RFC 8017), unencrypted.
//!
//! The key is in this process's memory, so whoever has the process or the file has the key. The
//! file must be closed to group and others; an existing one is never overwritten.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair,
    RSA_PKCS1_SHA256,
};
use der::pem::{self, LineEnding};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use zeroize::{Zeroize, Zeroizing};

use crate::{
    Algorithm, Device, Failure, KeyFacts, KeyKind, KeyUri, PublicKey, SignError, TokenFacts, Vault,
    secret_file,
};

/// A PEM key, loaded.
pub struct FileDevice {
    pair: Pair,
    public_key: PublicKey,
}

enum Pair {
    Ecdsa(EcdsaKeyPair),
    Rsa(Box<rsa::KeyPair>),
}

impl FileDevice {
    /// Loads the first private key of a PEM file.
    pub fn open(path: &Path) -> Result<Self, SignError> {
        let rejected =
            |text: &str| SignError::Rejected(format!("key file {}: {text}", path.display()));
        let pem = secret_file::read(path, "key file")?;
        // What the parser says may show the key.
        let mut der =
            PrivateKeyDer::from_pem_slice(&tidied(&pem)).map_err(|_| rejected(no_key(&pem)))?;
        let pair = Pair::from_der(&der);
        der.zeroize();
        let pair =
            pair.ok_or_else(|| rejected("holds a private key that is not supported: only P-256, P-384 and RSA of 2048 to 8192 bits are"))?;
        let public_key = pair.public_key().map_err(|e| rejected(&e.to_string()))?;
        Ok(Self { pair, public_key })
    }

    /// A key that is in no file and ends with this.
    pub fn generate(kind: KeyKind) -> Result<Self, SignError> {
        let pair = Pair::generate(kind)
            .map_err(|_| SignError::Rejected(format!("a {kind} key could not be generated")))?;
        let public_key = pair.public_key()?;
        Ok(Self { pair, public_key })
    }
}

/// PEM as people have it: without a byte order mark, each line without the spaces around it, each
/// mark on a line of its own.
fn tidied(pem: &[u8]) -> Zeroizing<Vec<u8>> {
    const GLUED: &[u8] = b"----------";
    let pem = pem.strip_prefix(b"\xef\xbb\xbf").unwrap_or(pem);
    // Room for a line break at each: the buffer never moves, so no copy stays behind.
    let mut tidied = Zeroizing::new(Vec::with_capacity(pem.len() * 2 + 1));
    for line in pem.split(|octet| *octet == b'\n') {
        let line = line.trim_ascii();
        let glued = line
            .windows(GLUED.len())
            .position(|window| window == GLUED)
            .map_or(0, |at| at + GLUED.len() / 2);
        for part in [&line[..glued], &line[glued..]]
            .into_iter()
            .filter(|part| !part.is_empty())
        {
            tidied.extend_from_slice(part);
            tidied.push(b'\n');
        }
    }
    tidied
}

/// What a file holds in which there is no private key that can be read.
fn no_key(content: &[u8]) -> &'static str {
    match content {
        [0x30, 0x80..=0x84, ..] => {
            "holds DER, not PEM; convert it: openssl pkey -inform der -in FILE -out NEW-FILE"
        }
        _ if content.windows(9).any(|window| window == b"ENCRYPTED") => {
            "holds an encrypted key; decrypt it: openssl pkey -in FILE -out NEW-FILE"
        }
        _ => {
            "holds no private key in PEM: PKCS#8, EC (SEC 1) and RSA (PKCS#1) are read, all unencrypted"
        }
    }
}

impl Pair {
    fn from_der(der: &PrivateKeyDer<'_>) -> Option<Self> {
        let bytes = der.secret_der();
        let ecdsa = || {
            [
                &ECDSA_P256_SHA256_ASN1_SIGNING,
                &ECDSA_P384_SHA384_ASN1_SIGNING,
            ]
            .into_iter()
            .find_map(|curve| EcdsaKeyPair::from_private_key_der(curve, bytes).ok())
            .map(Self::Ecdsa)
        };
        let rsa = |pair: Result<rsa::KeyPair, _>| pair.ok().map(|pair| Self::Rsa(Box::new(pair)));
        match der {
            PrivateKeyDer::Sec1(_) => ecdsa(),
            PrivateKeyDer::Pkcs1(_) => rsa(rsa::KeyPair::from_der(bytes)),
            PrivateKeyDer::Pkcs8(_) => ecdsa().or_else(|| rsa(rsa::KeyPair::from_pkcs8(bytes))),
            _ => None,
        }
    }

    fn generate(kind: KeyKind) -> Result<Self, aws_lc_rs::error::Unspecified> {
        Ok(match kind {
            KeyKind::P256 => Self::Ecdsa(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?),
            KeyKind::P384 => Self::Ecdsa(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING)?),
            KeyKind::Rsa2048 => Self::Rsa(Box::new(rsa::KeyPair::generate(rsa::KeySize::Rsa2048)?)),
            KeyKind::Rsa3072 => Self::Rsa(Box::new(rsa::KeyPair::generate(rsa::KeySize::Rsa3072)?)),
            KeyKind::Rsa4096 => Self::Rsa(Box::new(rsa::KeyPair::generate(rsa::KeySize::Rsa4096)?)),
        })
    }

    fn public_key(&self) -> Result<PublicKey, SignError> {
        match self {
            Self::Ecdsa(pair) if *pair.algorithm() == ECDSA_P384_SHA384_ASN1_SIGNING => {
                PublicKey::from_ec_point(Algorithm::EcdsaP384Sha384, pair.public_key().as_ref())
            }
            Self::Ecdsa(pair) => {
                PublicKey::from_ec_point(Algorithm::EcdsaP256Sha256, pair.public_key().as_ref())
            }
            Self::Rsa(pair) => {
                let der: Result<PublicKeyX509Der<'_>, _> = pair.public_key().as_der();
                PublicKey::from_spki_der(
                    der.map_err(|_| {
                        SignError::Rejected("the public key could not be encoded".into())
                    })?
                    .as_ref(),
                )
            }
        }
    }

    fn pem(&self) -> Option<Zeroizing<String>> {
        let pkcs8: Zeroizing<Vec<u8>> = match self {
            Self::Ecdsa(pair) => Zeroizing::new(pair.to_pkcs8v1().ok()?.as_ref().to_vec()),
            Self::Rsa(pair) => {
                let der: Pkcs8V1Der<'static> = pair.as_der().ok()?;
                Zeroizing::new(der.as_ref().to_vec())
            }
        };
        pem::encode_string("PRIVATE KEY", LineEnding::LF, &pkcs8)
            .ok()
            .map(Zeroizing::new)
    }
}

impl Device for FileDevice {
    fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    fn sign(&mut self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Ecdsa(pair) => pair.sign(&random, message).map(|s| s.as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map(|()| signature)
            }
        };
        signature.map_err(|_| SignError::Rejected("the key of the PEM file could not sign".into()))
    }

    fn last_failure(&self) -> Failure {
        Failure {
            may_have_signed: false,
            worth_a_retry: false,
        }
    }
}

/// Creates and describes PEM keys. Nothing about them is protected, and their facts say so.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileVault;

impl FileVault {
    fn facts(path: &Path, public_key: PublicKey) -> KeyFacts {
        let label = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let (public_key, id, other_uses) = (Some(public_key), Vec::new(), Vec::new());
        KeyFacts {
            public_key,
            id,
            label,
            sensitive: false,
            never_extractable: false,
            local: false,
            other_uses,
        }
    }
}

fn path_of(uri: &KeyUri) -> Result<&Path, SignError> {
    match uri {
        KeyUri::File(path) => Ok(path),
        KeyUri::Pkcs11(_) => Err(SignError::Rejected(format!("{uri} is not a file"))),
    }
}

impl Vault for FileVault {
    fn token(&self) -> Result<TokenFacts, SignError> {
        Ok(TokenFacts {
            label: "file".into(),
            manufacturer: String::new(),
            model: "PEM file".into(),
            serial: String::new(),
        })
    }

    fn describe(&mut self, uri: &KeyUri) -> Result<Option<KeyFacts>, SignError> {
        let path = path_of(uri)?;
        match fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => FileDevice::open(path).map(|device| Some(Self::facts(path, device.public_key))),
        }
    }

    fn generate(&mut self, uri: &KeyUri, kind: KeyKind) -> Result<KeyFacts, SignError> {
        let path = path_of(uri)?;
        let rejected =
            |text: String| SignError::Rejected(format!("key file {}: {text}", path.display()));
        let pair = Pair::generate(kind)
            .map_err(|_| rejected(format!("a {kind} key could not be generated")))?;
        let pem = pair
            .pem()
            .ok_or_else(|| rejected("the key could not be encoded".into()))?;
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)?;
            file.write_all(pem.as_bytes())?;
            file.sync_all()?;
            // The name must be as durable as the content.
            let directory = path
                .parent()
                .filter(|p| !p.as_os_str().is_empty())
                .unwrap_or(Path::new("."));
            File::open(directory)?.sync_all()
        };
        write().map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => {
                rejected("exists already and is never overwritten".into())
            }
            _ => rejected(format!("cannot be written: {e}")),
        })?;
        Ok(Self::facts(path, pair.public_key()?))
    }

    fn open(&mut self, uri: &KeyUri) -> Result<Box<dyn Device>, SignError> {
        Ok(Box::new(FileDevice::open(path_of(uri)?)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn key_in(dir: &tempfile::TempDir) -> KeyUri {
        KeyUri::File(dir.path().join("key.pem"))
    }

    #[test]
    fn a_generated_key_is_private_to_its_owner_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let uri = key_in(&dir);
        assert_eq!(FileVault.describe(&uri).unwrap(), None);
        let facts = FileVault.generate(&uri, KeyKind::P256).unwrap();
        assert_eq!(
            fs::metadata(path_of(&uri).unwrap())
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o600
        );
        let again = FileVault.generate(&uri, KeyKind::P256).unwrap_err();
        assert!(again.to_string().contains("never overwritten"), "{again}");
        assert_eq!(FileVault.describe(&uri).unwrap(), Some(facts));
    }

    #[test]
    fn a_key_is_read_as_people_have_it_and_what_is_none_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let uri = key_in(&dir);
        let key = FileVault
            .generate(&uri, KeyKind::P256)
            .unwrap()
            .told_public_key(&uri)
            .unwrap()
            .clone();
        let path = path_of(&uri).unwrap();
        let pem = fs::read_to_string(path).unwrap();
        let parameters =
            "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----";
        let indented: String = pem.lines().map(|line| format!("\t  {line} \n")).collect();
        for text in [
            format!("\u{feff}{pem}"),
            indented,
            pem.replace('\n', "\r\n"),
            format!("{parameters}{pem}"),
            pem.trim_end().to_owned(),
        ] {
            fs::write(path, &text).unwrap();
            assert_eq!(
                FileDevice::open(path)
                    .unwrap_or_else(|error| panic!("{text}: {error}"))
                    .public_key(),
                &key
            );
        }
        for (text, expected) in [
            (
                pem.replace("PRIVATE", "ENCRYPTED PRIVATE").into_bytes(),
                "an encrypted key",
            ),
            (vec![0x30, 0x81, 0x87, 2, 1], "holds DER"),
            (
                pem.replace('\n', "\\n").into_bytes(),
                "no private key in PEM",
            ),
            (b"hello".to_vec(), "no private key in PEM"),
        ] {
            fs::write(path, text).unwrap();
            let said = FileDevice::open(path).err().unwrap().to_string();
            assert!(
                said.contains(expected) && !said.contains(pem.lines().nth(1).unwrap()),
                "{said}"
            );
        }
    }

    #[test]
    fn a_throw_away_key_is_in_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut device = crate::throw_away_device(&key_in(&dir), KeyKind::P384).unwrap();
        let signature = device.sign(b"message").unwrap();
        assert!(device.public_key().verify(b"message", &signature));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let uri = key_in(&dir);
        FileVault.generate(&uri, KeyKind::P256).unwrap();
        fs::set_permissions(path_of(&uri).unwrap(), fs::Permissions::from_mode(0o644)).unwrap();
        let error = FileVault.open(&uri).map(drop).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_file_without_a_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        for content in [
            "",
            "hello",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ] {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert!(
                matches!(FileDevice::open(&path), Err(SignError::Rejected(_))),
                "{content}"
            );
        }
    }
}
