//! The transcript `ceremony.jsonl`: what was done, one JSON object a line, each synced before the
//! next step begins. It is only appended to. It holds digests and public facts, never a secret; its
//! own SHA-256 is what the daemon files in the ledger.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use signers::{KeyFacts, PublicKey, TokenFacts};

use super::{Failure, files};
use crate::timestamp::Timestamp;

/// One step, as its line says it. All digests are SHA-256 in lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(super) enum Step {
    /// A run that has something to do begins.
    Begin {
        spec_sha256: String,
        program: String,
    },
    /// The token that an entry's key is in.
    Token {
        entry: String,
        label: String,
        manufacturer: String,
        model: String,
        serial: String,
    },
    /// A key was generated; its attributes were read back.
    KeyGenerated(Key),
    /// A key that an earlier, interrupted run generated and recorded is used; its attributes were
    /// read back.
    KeyAdopted(Key),
    /// These bytes will now be signed.
    ToBeSigned {
        entry: String,
        signer: String,
        subject: String,
        serial: String,
        not_before: String,
        not_after: String,
        sha256: String,
    },
    /// The signature verified and the certificate was written; the digest is of its DER.
    Certificate {
        entry: String,
        file: String,
        sha256: String,
    },
    /// The run is complete.
    End,
}

/// A key's identity and attributes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key {
    entry: String,
    uri: String,
    label: String,
    id: String,
    public_key_sha256: String,
    sensitive: bool,
    never_extractable: bool,
    local: bool,
}

impl Key {
    pub(super) fn new(entry: &str, uri: &str, facts: &KeyFacts, public_key: &PublicKey) -> Self {
        Self {
            entry: entry.to_owned(),
            uri: uri.to_owned(),
            label: facts.label.clone(),
            id: hex::encode(&facts.id),
            public_key_sha256: public_key.fingerprint(),
            sensitive: facts.sensitive,
            never_extractable: facts.never_extractable,
            local: facts.local,
        }
    }
}

impl Step {
    pub(super) fn token(entry: &str, facts: TokenFacts) -> Self {
        let TokenFacts {
            label,
            manufacturer,
            model,
            serial,
        } = facts;
        Self::Token {
            entry: entry.to_owned(),
            label,
            manufacturer,
            model,
            serial,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Line {
    time: String,
    #[serde(flatten)]
    step: Step,
}

/// An open transcript: locked against a second ceremony, and begun only when there is something to
/// write.
pub(super) struct Transcript {
    path: PathBuf,
    lock: File,
    spec_digest: String,
    begun: bool,
}

impl Transcript {
    /// Takes the lock of the ceremony at `path`; writes nothing yet.
    pub(super) fn open(path: &Path, spec_digest: &str) -> Result<Self, Failure> {
        let lock_path = path.with_file_name(".ceremony.lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|error| Failure::unavailable(format!("{}: {error}", lock_path.display())))?;
        lock.try_lock().map_err(|_| {
            Failure::unavailable(format!(
                "another ceremony is at work on {}; wait for it to end",
                path.display()
            ))
        })?;
        Ok(Self {
            path: path.to_owned(),
            lock,
            spec_digest: spec_digest.to_owned(),
            begun: false,
        })
    }

    /// Whether an earlier run recorded that it generated this very key (CKA_ID and public key) for
    /// this entry.
    pub(super) fn recorded_generation(
        &self,
        entry: &str,
        facts: &KeyFacts,
        public_key: &PublicKey,
    ) -> Result<bool, Failure> {
        let (id, digest) = (hex::encode(&facts.id), public_key.fingerprint());
        Ok(self
            .steps()?
            .iter()
            .any(|step| matches!(step, Step::KeyGenerated(key) if key.entry == entry && key.id == id && key.public_key_sha256 == digest)))
    }

    /// Whether these bytes were to be signed for this entry, and the certificate that came of it is
    /// not recorded.
    pub(super) fn misses_outcome(
        &self,
        of: &str,
        body: &str,
        certificate: &str,
    ) -> Result<bool, Failure> {
        let steps = self.steps()?;
        let intended = |step: &Step| matches!(step, Step::ToBeSigned { entry, sha256, .. } if entry == of && sha256 == body);
        let recorded = |step: &Step| matches!(step, Step::Certificate { entry, sha256, .. } if entry == of && sha256 == certificate);
        Ok(steps.iter().any(intended) && !steps.iter().any(recorded))
    }

    /// Every step up to now.
    fn steps(&self) -> Result<Vec<Step>, Failure> {
        let text = match std::fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.failed(&error)),
        };
        // A line that does not parse was torn by a crash: its step never counted as done.
        Ok(text
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice::<Line>(line).ok())
            .map(|line| line.step)
            .collect())
    }

    /// Records a step durably. The first one of a run is preceded by `begin`.
    pub(super) fn record(&mut self, now: Timestamp, step: Step) -> Result<(), Failure> {
        if !self.begun {
            let program = format!("ca-server {}", env!("CARGO_PKG_VERSION"));
            self.append(
                now,
                Step::Begin {
                    spec_sha256: self.spec_digest.clone(),
                    program,
                },
            )?;
            self.begun = true;
        }
        self.append(now, step)
    }

    /// Ends the run, if it had anything to do or the run before it was killed just before its own
    /// end.
    pub(super) fn end(mut self, now: Timestamp) -> Result<(), Failure> {
        if self.begun || self.steps()?.last().is_some_and(|last| *last != Step::End) {
            self.record(now, Step::End)?;
        }
        // Explicit, so that the lock provably lasts until here.
        let _ = self.lock.unlock();
        Ok(())
    }

    fn append(&mut self, now: Timestamp, step: Step) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(&Line {
            time: now.rfc3339(),
            step,
        })
        .expect("strings and booleans serialise");
        line.push(b'\n');
        self.append_bytes(&line)
            .map_err(|error| self.failed(&error))
    }

    fn append_bytes(&self, line: &[u8]) -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(&self.path)?;
        if file.metadata()?.len() > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        file.write_all(line)?;
        file.sync_all()?;
        files::sync_directory(&self.path)
    }

    fn failed(&self, error: &std::io::Error) -> Failure {
        Failure::unavailable(format!("{}: {error}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(directory: &Path) -> Transcript {
        Transcript::open(&directory.join("ceremony.jsonl"), "00").unwrap()
    }

    #[test]
    fn two_ceremonies_never_share_a_transcript() {
        let directory = tempfile::tempdir().unwrap();
        let _first = open(directory.path());
        assert!(Transcript::open(&directory.path().join("ceremony.jsonl"), "00").is_err());
    }

    #[test]
    fn a_run_without_steps_writes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        open(directory.path())
            .end(Timestamp::from_seconds(0))
            .unwrap();
        assert!(!directory.path().join("ceremony.jsonl").exists());
    }

    #[test]
    fn a_torn_line_does_not_swallow_the_next_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ceremony.jsonl");
        std::fs::write(&path, b"{\"time\":\"2026-01-0").unwrap();
        let mut transcript = open(directory.path());
        transcript
            .record(Timestamp::from_seconds(0), Step::End)
            .unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(
            lines[1..]
                .iter()
                .all(|line| serde_json::from_str::<Line>(line).is_ok()),
            "{text}"
        );
    }
}
