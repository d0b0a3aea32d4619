//! Creates a root and an issuing certificate from a reviewed spec: keys generated inside their
//! token, both certificates signed by the root key alone, each step written to a transcript before
//! the next begins. The only room that opens a root key.
//!
//! It overwrites nothing and can be run again after a crash: what exists and matches the spec is
//! left alone, what is missing is made, what a kill kept out of the transcript is recorded, and
//! anything else ends the ceremony with one sentence.

mod certificate;
mod entry;
pub(crate) mod files;
mod spec;
mod transcript;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use signers::{PublicKey, Vault};

pub use spec::Spec;

use crate::digest::sha256;
use crate::timestamp::Timestamp;
use crate::x509::ca_template::{CaTemplate, assemble};
use certificate::{CaCertificate, not_after};
use entry::Entry;
use transcript::{Step, Transcript};

/// The root's certificate, in the spec's output directory.
pub const ROOT_FILE: &str = "root-cert.pem";
/// The issuing certificate without its root, in the spec's output directory.
pub const CHAIN_FILE: &str = "issuing-chain.pem";
/// The transcript, in the spec's output directory.
pub const TRANSCRIPT_FILE: &str = "ceremony.jsonl";

/// How far NotBefore lies before the ceremony: agents' clocks may be behind ours.
const BACKDATED: Duration = Duration::from_secs(120);

/// Why a ceremony ended early, by who must act; one sentence that names the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The spec is wrong, or does not describe what is already there.
    #[error("{0}")]
    Spec(String),
    /// A token, key or file is missing, taken or refuses.
    #[error("{0}")]
    Unavailable(String),
}

impl Failure {
    fn spec(sentence: impl std::fmt::Display) -> Self {
        Self::Spec(sentence.to_string())
    }

    /// The same, with what it has left in tokens.
    fn leaving(self, made: &[String]) -> Self {
        if made.is_empty() {
            return self;
        }
        let left = made.join(" and ");
        let with = |sentence: String| {
            format!(
                "{sentence}; this run has made {left}, which stays: another run with this spec takes it up, else remove it with the maker's tool"
            )
        };
        match self {
            Self::Spec(sentence) => Self::Spec(with(sentence)),
            Self::Unavailable(sentence) => Self::Unavailable(with(sentence)),
        }
    }

    fn unavailable(sentence: impl std::fmt::Display) -> Self {
        Self::Unavailable(sentence.to_string())
    }
}

/// Time, randomness and somebody who watches: what a ceremony does not take for itself.
pub struct Surroundings<'a> {
    /// The present time, asked anew for each line of the transcript.
    pub now: &'a dyn Fn() -> Timestamp,
    /// 16 fresh random octets.
    pub random: &'a dyn Fn() -> [u8; 16],
    /// Told what begins, in a few words.
    pub progress: &'a dyn Fn(&str),
}

/// What stands after a ceremony.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The root.
    pub root: Made,
    /// The issuing certificate.
    pub issuing: Made,
    /// The transcript.
    pub transcript: PathBuf,
}

/// One certificate that now stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Whether this run signed it; else it was there and matched.
    pub now: bool,
    /// The PEM file.
    pub file: PathBuf,
    /// RFC 4514.
    pub subject: String,
    /// Its end.
    pub not_after: Timestamp,
    /// SHA-256 of the DER, lower-case hex.
    pub sha256: String,
}

/// Carries out the spec. The device's environment (`Spec::env`) must already be in place.
pub fn run(spec: &Spec, given: &Surroundings<'_>) -> Result<Outcome, Failure> {
    let mut made = Vec::new();
    carry_out(spec, given, &mut made).map_err(|failure| failure.leaving(&made))
}

/// `made` hears of each key that is made.
fn carry_out(
    spec: &Spec,
    given: &Surroundings<'_>,
    made: &mut Vec<String>,
) -> Result<Outcome, Failure> {
    let output = &spec.output;
    std::fs::create_dir_all(output)
        .map_err(|error| Failure::unavailable(format!("{}: {error}", output.display())))?;
    let mut transcript = Transcript::open(&output.join(TRANSCRIPT_FILE), &spec.digest)?;
    (given.progress)("looking at what is already there");
    let mut root = Entry::look("root", &spec.root, &output.join(ROOT_FILE))?;
    let mut issuing = Entry::look("issuing", &spec.issuing, &output.join(CHAIN_FILE))?;
    if issuing.certificate.is_some() && root.certificate.is_none() {
        return Err(Failure::unavailable(format!(
            "{CHAIN_FILE} is there and {ROOT_FILE} is not: put the root certificate back into {}",
            output.display()
        )));
    }
    let root_key = root.ready_key(&mut transcript, given, made)?;
    let issuing_key = issuing.ready_key(&mut transcript, given, made)?;

    let issuer = Authority {
        uri: &spec.root.key,
        key: &root_key,
    };
    let (root_is_new, root_certificate) = match root.certificate.take() {
        Some(certificate) => {
            let certificate = certificate.check(&root.file, root.spec, &root_key, None)?;
            root.record_found(&certificate, &mut transcript, given)?;
            (false, certificate)
        }
        None => (
            true,
            issuer.certify(
                &root,
                &root_key,
                None,
                &mut *root_vault(&root)?,
                &mut transcript,
                given,
            )?,
        ),
    };
    let (issuing_is_new, issuing_certificate) = match issuing.certificate.take() {
        Some(certificate) => {
            let certificate = certificate.check(
                &issuing.file,
                issuing.spec,
                &issuing_key,
                Some((&root_certificate, &root_key)),
            )?;
            issuing.record_found(&certificate, &mut transcript, given)?;
            (false, certificate)
        }
        None => (
            true,
            issuer.certify(
                &issuing,
                &issuing_key,
                Some(&root_certificate),
                &mut *root_vault(&root)?,
                &mut transcript,
                given,
            )?,
        ),
    };
    transcript.end((given.now)())?;
    Ok(Outcome {
        root: root_certificate.made(root_is_new, &root.file),
        issuing: issuing_certificate.made(issuing_is_new, &issuing.file),
        transcript: output.join(TRANSCRIPT_FILE),
    })
}

/// SHA-256 of a transcript's bytes: what the daemon files in the ledger's `ceremony` row.
pub fn transcript_digest(path: &Path) -> std::io::Result<[u8; 32]> {
    Ok(sha256(&std::fs::read(path)?))
}

fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(sha256(bytes))
}

fn root_vault(root: &Entry<'_>) -> Result<Box<dyn Vault>, Failure> {
    signers::open_vault(&root.spec.key).map_err(|error| root.device(&error))
}

/// The root key, which alone signs here.
struct Authority<'a> {
    uri: &'a signers::KeyUri,
    key: &'a PublicKey,
}

impl Authority<'_> {
    /// Signs and files one certificate. `root` is `None` for the root itself.
    fn certify(
        &self,
        entry: &Entry<'_>,
        key: &PublicKey,
        root: Option<&CaCertificate>,
        vault: &mut dyn Vault,
        transcript: &mut Transcript,
        given: &Surroundings<'_>,
    ) -> Result<CaCertificate, Failure> {
        (given.progress)(&format!("signing the {} certificate", entry.name));
        let now = (given.now)();
        let not_after = not_after(entry.spec, now, root);
        let issuer = root.map_or(&entry.spec.subject, |root| root.subject());
        if not_after <= now {
            return Err(Failure::unavailable(
                "the root certificate has ended; make a new root under another output and key",
            ));
        }
        let template = CaTemplate {
            issuer,
            issuer_key: self.key.spki_der(),
            signature: self.key.algorithm(),
            subject: &entry.spec.subject,
            subject_key: key.spki_der(),
            serial: (given.random)(),
            not_before: now.minus(BACKDATED),
            not_after,
            path_length: entry.spec.path_length,
        };
        let body = template
            .to_be_signed()
            .map_err(|error| Failure::spec(format!("{}: {error}", entry.name)))?;
        // The intent, durable before the device is asked: a power cut cannot hide a signature.
        let step = Step::ToBeSigned {
            entry: entry.name.to_owned(),
            signer: self.key.fingerprint(),
            subject: entry.spec.subject.to_string(),
            serial: hex::encode(template.serial_octets()),
            not_before: template.not_before.rfc3339(),
            not_after: not_after.rfc3339(),
            sha256: sha256_hex(&body),
        };
        transcript.record(now, step)?;
        let mut device = vault.open(self.uri).map_err(|error| entry.device(&error))?;
        if device.public_key() != self.key {
            return Err(Failure::unavailable(format!(
                "{} is not the key that it was a moment ago; stop and look at the token",
                self.uri
            )));
        }
        let signature = device.sign(&body).map_err(|error| entry.device(&error))?;
        if !self.key.verify(&body, &signature) {
            return Err(Failure::unavailable(
                "the token gave a signature that does not verify; nothing was written",
            ));
        }
        let der = assemble(&body, self.key.algorithm(), &signature)
            .map_err(|error| Failure::unavailable(format!("{}: {error}", entry.name)))?;
        let certificate = CaCertificate::from_der(&der)
            .map_err(|error| Failure::unavailable(format!("{}: {error}", entry.name)))?;
        files::create(&entry.file, certificate.pem().as_bytes(), files::PUBLIC)
            .map_err(|error| Failure::unavailable(format!("{}: {error}", entry.file.display())))?;
        transcript.record((given.now)(), entry.written(sha256_hex(&der)))?;
        Ok(certificate)
    }
}
