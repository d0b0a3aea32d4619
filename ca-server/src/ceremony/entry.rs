//! One line of the spec against what is there: its token, its key, its certificate. Here stands the
//! rule of adoption: a key without a certificate is used only if the transcript recorded its
//! generation and it reads back local and never extractable.

use std::path::{Path, PathBuf};

use signers::{KeyFacts, PublicKey, SignError, TokenFacts, Vault};

use super::certificate::CaCertificate;
use super::spec::EntrySpec;
use super::transcript::{Key, Step, Transcript};
use super::{Failure, Surroundings};

/// What the spec wants under one name, and what already stands.
pub(super) struct Entry<'a> {
    pub(super) name: &'static str,
    pub(super) spec: &'a EntrySpec,
    pub(super) file: PathBuf,
    pub(super) certificate: Option<CaCertificate>,
    vault: Box<dyn Vault>,
    token: TokenFacts,
    key: Option<(KeyFacts, PublicKey)>,
}

impl<'a> Entry<'a> {
    /// Looks at token, key and file; changes nothing.
    pub(super) fn look(
        name: &'static str,
        spec: &'a EntrySpec,
        file: &Path,
    ) -> Result<Self, Failure> {
        let device = |error: SignError| {
            Failure::unavailable(format!("the {name} key {}: {error}", spec.key))
        };
        let mut vault = signers::open_vault(&spec.key).map_err(device)?;
        let token = vault.token().map_err(device)?;
        let key = match vault.describe(&spec.key).map_err(device)? {
            Some(facts) => {
                let public_key = facts.told_public_key(&spec.key).map_err(device)?.clone();
                Some((facts, public_key))
            }
            None => None,
        };
        let certificate = CaCertificate::read(file)
            .map_err(|error| Failure::unavailable(format!("{}: {error}", file.display())))?;
        Ok(Self {
            name,
            spec,
            file: file.to_owned(),
            certificate,
            vault,
            token,
            key,
        })
    }

    /// The key: the one that stands, if it may be used, else one that is generated now, of which
    /// `made` hears.
    pub(super) fn ready_key(
        &mut self,
        transcript: &mut Transcript,
        given: &Surroundings<'_>,
        made: &mut Vec<String>,
    ) -> Result<PublicKey, Failure> {
        let Some((facts, public_key)) = &self.key else {
            return self.generate(transcript, given, made);
        };
        if !super::certificate::is_of_kind(public_key, self.spec.kind) {
            return Err(Failure::spec(format!(
                "the {} key {} is not of the kind {}, which the spec asks for",
                self.name, self.spec.key, self.spec.kind
            )));
        }
        if self.certificate.is_none() {
            self.adopt(facts, public_key, transcript, given)?;
        }
        Ok(public_key.clone())
    }

    fn generate(
        &mut self,
        transcript: &mut Transcript,
        given: &Surroundings<'_>,
        made: &mut Vec<String>,
    ) -> Result<PublicKey, Failure> {
        if self.certificate.is_some() {
            return Err(Failure::unavailable(format!(
                "{} is there, but its key {} is not: restore the token from its backup, or name another output",
                self.file.display(),
                self.spec.key
            )));
        }
        (given.progress)(&format!("generating the {} key", self.name));
        transcript.record((given.now)(), Step::token(self.name, self.token.clone()))?;
        let facts = self
            .vault
            .generate(&self.spec.key, self.spec.kind)
            .map_err(|error| self.device(&error))?;
        let public_key = facts
            .told_public_key(&self.spec.key)
            .map_err(|error| self.device(&error))?;
        made.push(format!(
            "the {} key {} (CKA_ID {})",
            self.name,
            self.spec.key,
            hex::encode(&facts.id)
        ));
        transcript.record(
            (given.now)(),
            Step::KeyGenerated(Key::new(
                self.name,
                &self.spec.key.without_secrets(),
                &facts,
                public_key,
            )),
        )?;
        let is_held = facts.sensitive && facts.never_extractable && facts.local;
        if !(is_held || self.spec.key.is_file()) {
            return Err(Failure::unavailable(format!(
                "the token did not make the {} key sensitive, never extractable and local",
                self.name
            )));
        }
        Ok(public_key.clone())
    }

    fn adopt(
        &self,
        facts: &KeyFacts,
        public_key: &PublicKey,
        transcript: &mut Transcript,
        given: &Surroundings<'_>,
    ) -> Result<(), Failure> {
        let refused = |why: &str| {
            let advice = "name another key in the spec, or remove this one if you know that nothing needs it";
            Failure::unavailable(format!(
                "the {} key {} is there without a certificate, and {why}: {advice}",
                self.name, self.spec.key
            ))
        };
        if !transcript.recorded_generation(self.name, facts, public_key)? {
            return Err(refused(
                "the transcript does not record that it was generated here",
            ));
        }
        if !(facts.sensitive && facts.local && facts.never_extractable) {
            return Err(refused(
                "it does not read back as sensitive, local and never extractable",
            ));
        }
        transcript.record((given.now)(), Step::token(self.name, self.token.clone()))?;
        transcript.record(
            (given.now)(),
            Step::KeyAdopted(Key::new(
                self.name,
                &self.spec.key.without_secrets(),
                facts,
                public_key,
            )),
        )
    }

    /// A certificate that was there, once it is known to match. A run that was killed between
    /// writing it and recording that is made good here: where the transcript has the intent, it
    /// gets the outcome.
    pub(super) fn record_found(
        &self,
        found: &CaCertificate,
        transcript: &mut Transcript,
        given: &Surroundings<'_>,
    ) -> Result<(), Failure> {
        let Some(digests) = found.digests() else {
            return Ok(());
        };
        if transcript.misses_outcome(self.name, &digests.body, &digests.certificate)? {
            transcript.record((given.now)(), self.written(digests.certificate))?;
        }
        Ok(())
    }

    /// The step that says that the certificate stands in its file.
    pub(super) fn written(&self, sha256: String) -> Step {
        let file = self
            .file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Step::Certificate {
            entry: self.name.to_owned(),
            file,
            sha256,
        }
    }

    /// A device's refusal as one sentence.
    pub(super) fn device(&self, error: &SignError) -> Failure {
        Failure::unavailable(format!("the {} key {}: {error}", self.name, self.spec.key))
    }
}
