//! The ceremony's spec: a short TOML file that people review before any key is made. Unknown keys
//! are refused, so that a misspelt wish never becomes a silent default; the digest of its bytes
//! opens the transcript.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use signers::{KeyKind, KeyUri};
use x509_cert::name::Name;

use super::Failure;
use crate::toml_text;

/// What a ceremony makes: one root and one issuing certificate.
#[derive(Clone, Debug)]
pub struct Spec {
    /// SHA-256 of the spec's bytes, lower-case hex.
    pub(super) digest: String,
    /// Where certificates and transcript go.
    pub(super) output: PathBuf,
    /// Variables the device's module reads when it is loaded.
    env: BTreeMap<String, String>,
    /// The root.
    pub(super) root: EntrySpec,
    /// The certificate that the daemon issues with.
    pub(super) issuing: EntrySpec,
}

/// One CA certificate and its key.
#[derive(Clone, Debug)]
pub(super) struct EntrySpec {
    /// Subject as RFC 4514 text.
    pub(super) subject: Name,
    /// Where the key is, or will be generated.
    pub(super) key: KeyUri,
    /// What kind of key.
    pub(super) kind: KeyKind,
    /// From the ceremony's time to NotAfter; an issuing certificate ends with its root at the
    /// latest.
    pub(super) lifetime: Duration,
    /// RFC 5280 §4.2.1.9.
    pub(super) path_length: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    output: PathBuf,
    #[serde(default)]
    device: Device,
    root: Entry,
    issuing: Entry,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    #[serde(default)]
    env: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    subject: String,
    key: String,
    algorithm: String,
    lifetime: String,
    path_length: u8,
}

impl Spec {
    /// Reads a spec file; relative paths count from its directory.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::spec(format!("{}: cannot be read: {error}", path.display()))
        })?;
        let base = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        Self::parse(&text, base).map_err(|failure| match failure {
            Failure::Spec(sentence) => Failure::Spec(format!("{}: {sentence}", path.display())),
            other => other,
        })
    }

    /// Reads a spec from its text; relative paths count from `base`.
    pub fn parse(text: &str, base: &Path) -> Result<Self, Failure> {
        let file: File = toml::from_str(text).map_err(|error| {
            Failure::spec(format!(
                "line {}: {}",
                toml_text::line(text, &error),
                toml_text::sentence(text, &error)
            ))
        })?;
        let spec = Self {
            digest: super::sha256_hex(text.as_bytes()),
            output: base.join(&file.output),
            env: file.device.env,
            root: EntrySpec::read("root", &file.root, base)?,
            issuing: EntrySpec::read("issuing", &file.issuing, base)?,
        };
        if spec.root.path_length <= spec.issuing.path_length {
            return Err(Failure::spec(
                "root.path_length must be greater than issuing.path_length (RFC 5280 §4.2.1.9)",
            ));
        }
        if spec.root.subject == spec.issuing.subject {
            return Err(Failure::spec(
                "root.subject and issuing.subject must differ, or chains cannot be built",
            ));
        }
        if spec.root.key.to_string() == spec.issuing.key.to_string() {
            return Err(Failure::spec("root.key and issuing.key name the same key"));
        }
        Ok(spec)
    }

    /// What must stand in the environment before the device's module is loaded.
    pub fn env(&self) -> &BTreeMap<String, String> {
        &self.env
    }

    /// The directory that certificates and transcript go to.
    pub fn output(&self) -> &Path {
        &self.output
    }
}

impl EntrySpec {
    fn read(name: &str, entry: &Entry, base: &Path) -> Result<Self, Failure> {
        let wrong = |field: &str, why: &dyn std::fmt::Display| {
            Failure::spec(format!("{name}.{field}: {why}"))
        };
        let subject = Name::from_str(&without_spaces_after_commas(&entry.subject))
            .map_err(|error| wrong("subject", &error))?;
        if subject.is_empty() {
            return Err(wrong(
                "subject",
                &"a CA must have a name, such as \"CN=Example Root,O=Example\"",
            ));
        }
        let lifetime = humantime::parse_duration(&entry.lifetime)
            .map_err(|error| wrong("lifetime", &error))?;
        if lifetime < Duration::from_secs(3600) {
            return Err(wrong(
                "lifetime",
                &"a CA certificate lives for an hour at least",
            ));
        }
        Ok(Self {
            subject,
            key: KeyUri::parse(&entry.key, base).map_err(|error| wrong("key", &error))?,
            kind: KeyKind::from_str(&entry.algorithm)
                .map_err(|error| wrong("algorithm", &error))?,
            lifetime,
            path_length: entry.path_length,
        })
    }
}

/// RFC 4514 has no spaces around its commas; people write them, and a space in front of an
/// attribute type means nothing else.
fn without_spaces_after_commas(subject: &str) -> String {
    let mut text = String::with_capacity(subject.len());
    let mut separated = true;
    let mut escaped = false;
    for letter in subject.trim().chars() {
        if separated && letter == ' ' {
            continue;
        }
        separated = letter == ',' && !escaped;
        escaped = letter == '\\' && !escaped;
        text.push(letter);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        output = "out"
        [root]
        subject = "CN=Example Root, O=Example\\, Ltd"
        key = "file:root.key"
        algorithm = "p384"
        lifetime = "3650d"
        path_length = 1
        [issuing]
        subject = "CN=Example Issuing,O=Example\\, Ltd"
        key = "file:issuing.key"
        algorithm = "p256"
        lifetime = "365d"
        path_length = 0
    "#;

    fn refusal(text: &str) -> String {
        Spec::parse(text, Path::new("/base"))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn paths_count_from_the_spec_and_names_may_hold_escaped_commas() {
        let spec = Spec::parse(GOOD, Path::new("/base")).unwrap();
        assert_eq!(spec.output, Path::new("/base/out"));
        assert_eq!(
            spec.root.subject.to_string(),
            "CN=Example Root,O=Example\\, Ltd"
        );
        assert_eq!(spec.root.subject.len(), 2);
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(
            refusal(&GOOD.replace("path_length = 0", "path_length = 0\npathlen = 1"))
                .contains("pathlen")
        );
        assert!(refusal(&format!("{GOOD}\n[policy]\n")).contains("policy"));
    }

    #[test]
    fn a_spec_that_cannot_make_a_chain_is_refused_with_its_field() {
        for (from, to, field) in [
            ("path_length = 1", "path_length = 0", "root.path_length"),
            ("CN=Example Issuing", "CN=Example Root", "issuing.subject"),
            ("file:issuing.key", "file:root.key", "issuing.key"),
            ("\"p256\"", "\"ed25519\"", "issuing.algorithm"),
            ("\"365d\"", "\"soon\"", "issuing.lifetime"),
            ("\"365d\"", "\"1m\"", "issuing.lifetime"),
            ("CN=Example Root, O=Example\\\\, Ltd", "", "root.subject"),
            ("file:root.key", "ftp:root.key", "root.key"),
        ] {
            let sentence = refusal(&GOOD.replace(from, to));
            assert!(sentence.contains(field), "{sentence}");
        }
    }
}
