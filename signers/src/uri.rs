//! Names of keys: `pkcs11:` URIs (RFC 7512) and `file:` paths (RFC 8089).
//!
//! Parsing is a total function of the text and a base directory: it reads no file and never panics.
//! Secrets are referenced, never inline: `pin-value` is refused, and no error repeats a value from
//! the text, since it may be a PIN that landed in the wrong place.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Longer than any sensible URI; bounds the work.
const LONGEST: usize = 8192;

/// Where a private key lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeyUri {
    /// In a PKCS#11 token.
    Pkcs11(Pkcs11Uri),
    /// In a PEM file.
    File(PathBuf),
}

/// The attributes of a `pkcs11:` URI that we understand (RFC 7512 §2.3). What is absent matches
/// everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pkcs11Uri {
    /// `token`: the token's label.
    pub token: Option<String>,
    /// `manufacturer` of the token.
    pub manufacturer: Option<String>,
    /// `model` of the token.
    pub model: Option<String>,
    /// `serial` number of the token.
    pub serial: Option<String>,
    /// `slot-id`.
    pub slot_id: Option<u64>,
    /// `object`: CKA_LABEL of the key.
    pub object: Option<String>,
    /// `id`: CKA_ID of the key.
    pub id: Option<Vec<u8>>,
    /// `module-path`: the PKCS#11 library.
    pub module_path: PathBuf,
    /// `pin-source`: the file that holds the PIN.
    pub pin_source: Option<PathBuf>,
}

/// One sentence: what is wrong with a URI, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UriError(String);

impl KeyUri {
    /// Reads a URI. Relative paths in it count from `base_dir`, which should be absolute for the
    /// result to print a URI that means the same everywhere.
    pub fn parse(text: &str, base_dir: &Path) -> Result<Self, UriError> {
        if text.len() > LONGEST {
            return Err(error(format!("the key URI is longer than {LONGEST} bytes")));
        }
        if let Some(rest) = strip_scheme(text, "pkcs11:") {
            Pkcs11Uri::parse(rest, base_dir).map(Self::Pkcs11)
        } else if let Some(rest) = strip_scheme(text, "file:") {
            file_path(rest.as_bytes(), base_dir, "file: URI").map(Self::File)
        } else {
            Err(error("a key URI begins with \"pkcs11:\" or \"file:\""))
        }
    }

    /// The URI with nothing secret in it: all of it, because a `KeyUri` cannot hold a PIN. For logs
    /// and rows.
    pub fn without_secrets(&self) -> String {
        self.to_string()
    }

    /// Whether both keys may be in one token, as far as the URIs say: the library is the same, and
    /// nothing that both say of the token differs. Never so for files.
    pub fn may_share_a_token_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pkcs11(one), Self::Pkcs11(other)) => one.may_share_a_token_with(other),
            (Self::Pkcs11(_) | Self::File(_), _) => false,
        }
    }

    /// Whether the key is a PEM file.
    pub fn is_file(&self) -> bool {
        matches!(self, Self::File(_))
    }

    /// The back end: `pkcs11` or `file`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Pkcs11(_) => "pkcs11",
            Self::File(_) => "file",
        }
    }

    /// The file that holds the PIN, if there is one.
    pub fn pin_source(&self) -> Option<&Path> {
        match self {
            Self::Pkcs11(uri) => uri.pin_source.as_deref(),
            Self::File(_) => None,
        }
    }
}

impl Pkcs11Uri {
    fn may_share_a_token_with(&self, other: &Self) -> bool {
        fn agree<T: PartialEq>(one: &Option<T>, other: &Option<T>) -> bool {
            one.as_ref()
                .zip(other.as_ref())
                .is_none_or(|(one, other)| one == other)
        }
        self.module_path == other.module_path
            && agree(&self.token, &other.token)
            && agree(&self.manufacturer, &other.manufacturer)
            && agree(&self.model, &other.model)
            && agree(&self.serial, &other.serial)
            && agree(&self.slot_id, &other.slot_id)
    }

    fn parse(text: &str, base_dir: &Path) -> Result<Self, UriError> {
        let (path, query) = match text.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (text, None),
        };
        let mut found = Attributes::default();
        for part in path.split(';').filter(|_| !path.is_empty()) {
            found.path_attribute(part)?;
        }
        for part in query.into_iter().flat_map(|query| query.split('&')) {
            found.query_attribute(part, base_dir)?;
        }
        found.finish()
    }
}

/// What has been seen so far of a `pkcs11:` URI; absent ones stay `None`, so that a second one is
/// noticed.
#[derive(Default)]
struct Attributes {
    token: Option<String>,
    manufacturer: Option<String>,
    model: Option<String>,
    serial: Option<String>,
    slot_id: Option<u64>,
    object: Option<String>,
    id: Option<Vec<u8>>,
    kind: Option<()>,
    module_path: Option<PathBuf>,
    pin_source: Option<PathBuf>,
}

impl Attributes {
    fn path_attribute(&mut self, part: &str) -> Result<(), UriError> {
        let (name, value) = name_and_value(part)?;
        match name {
            "token" => once(&mut self.token, name, text(name, value)?),
            "manufacturer" => once(&mut self.manufacturer, name, text(name, value)?),
            "model" => once(&mut self.model, name, text(name, value)?),
            "serial" => once(&mut self.serial, name, text(name, value)?),
            "object" => once(&mut self.object, name, text(name, value)?),
            "id" => once(&mut self.id, name, bytes(name, value)?),
            "slot-id" => {
                let digits = value.bytes().all(|b| b.is_ascii_digit());
                let number = value
                    .parse()
                    .ok()
                    .filter(|_| digits)
                    .ok_or_else(|| error("slot-id must be a decimal number"))?;
                once(&mut self.slot_id, name, number)
            }
            "type" if value == "private" => once(&mut self.kind, name, ()),
            "type" => Err(error(
                "type must be \"private\": only a private key can sign",
            )),
            "module-path" | "pin-source" => Err(error(format!(
                "{name} belongs behind the question mark: pkcs11:…?{name}=…"
            ))),
            "pin-value" => Err(error(PIN_VALUE)),
            other => Err(error(format!(
                "the attribute {} is not supported in a pkcs11: URI",
                quoted(other)
            ))),
        }
    }

    fn query_attribute(&mut self, part: &str, base_dir: &Path) -> Result<(), UriError> {
        let (name, value) = name_and_value(part)?;
        match name {
            "module-path" => once(
                &mut self.module_path,
                name,
                path(name, &bytes(name, value)?, base_dir)?,
            ),
            "pin-source" => {
                let value = bytes(name, value)?;
                let source = match value.strip_prefix(b"file:") {
                    Some(rest) => file_path(rest, base_dir, name)?,
                    None if value.starts_with(b"|") => {
                        return Err(error("pin-source must be a file: commands are not run"));
                    }
                    None => path(name, &value, base_dir)?,
                };
                once(&mut self.pin_source, name, source)
            }
            "module-name" => Err(error(
                "module-name is not supported: give the library's file with module-path=/…",
            )),
            "pin-value" => Err(error(PIN_VALUE)),
            other => Err(error(format!(
                "the attribute {} is not supported in the query of a pkcs11: URI",
                quoted(other)
            ))),
        }
    }

    fn finish(self) -> Result<Pkcs11Uri, UriError> {
        let Self {
            token,
            manufacturer,
            model,
            serial,
            slot_id,
            object,
            id,
            kind: _,
            module_path,
            pin_source,
        } = self;
        let module_path =
            module_path.ok_or_else(|| error("the pkcs11: URI has no module-path: add ?module-path=/…, the library of the device"))?;
        if token.is_none()
            && serial.is_none()
            && slot_id.is_none()
            && manufacturer.is_none()
            && model.is_none()
        {
            return Err(error(
                "the pkcs11: URI names no token: add token=…, serial=… or slot-id=…",
            ));
        }
        if object.is_none() && id.is_none() {
            return Err(error(
                "the pkcs11: URI names no key: add object=… (its label) or id=…",
            ));
        }
        Ok(Pkcs11Uri {
            token,
            manufacturer,
            model,
            serial,
            slot_id,
            object,
            id,
            module_path,
            pin_source,
        })
    }
}

const PIN_VALUE: &str = "pin-value is refused, because a PIN does not belong into a configuration: put it into a file of mode 0600 and name that with pin-source=file:/…";

fn strip_scheme<'a>(text: &'a str, scheme: &str) -> Option<&'a str> {
    let head = text.get(..scheme.len())?;
    head.eq_ignore_ascii_case(scheme)
        .then(|| &text[scheme.len()..])
}

fn name_and_value(part: &str) -> Result<(&str, &str), UriError> {
    match part.split_once('=') {
        None => Err(error(
            "each attribute of a pkcs11: URI has the form name=value",
        )),
        Some((name, "")) => Err(error(format!(
            "the attribute {} has no value",
            quoted(name)
        ))),
        Some((name, value)) => Ok((name, value)),
    }
}

fn once<T>(place: &mut Option<T>, name: &str, value: T) -> Result<(), UriError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(error(format!(
            "the attribute {name} stands twice in the pkcs11: URI"
        ))),
    }
}

/// A percent-decoded value; characters that RFC 7512 §2.3 wants encoded are refused, so that a
/// forgotten quote or blank is noticed.
fn bytes(name: &str, value: &str) -> Result<Vec<u8>, UriError> {
    if let Some(c) = value
        .chars()
        .find(|c| c.is_ascii_control() || " \"#<>\\^`{}".contains(*c))
    {
        return Err(error(format!(
            "the value of {name} holds the character {c:?}, which must be written as %{:02X}",
            c as u32
        )));
    }
    percent_decoded(value.as_bytes()).ok_or_else(|| {
        error(format!(
            "the value of {name} holds a % that is not followed by two hexadecimal digits"
        ))
    })
}

fn text(name: &str, value: &str) -> Result<String, UriError> {
    String::from_utf8(bytes(name, value)?)
        .map_err(|_| error(format!("the value of {name} is not UTF-8")))
}

/// `rest` of a `file:` URI: `/abs`, `///abs` or a relative path, percent-encoded or not.
fn file_path(rest: &[u8], base_dir: &Path, name: &str) -> Result<PathBuf, UriError> {
    let rest = match rest.strip_prefix(b"//") {
        None => rest,
        Some(behind) if behind.starts_with(b"/") => behind,
        Some(behind) => match behind.strip_prefix(b"localhost/") {
            Some(_) => &behind[b"localhost".len()..],
            None => {
                return Err(error(format!(
                    "the {name} names another host: write file:/… with one slash"
                )));
            }
        },
    };
    let decoded = percent_decoded(rest).ok_or_else(|| {
        error(format!(
            "the {name} holds a % that is not followed by two hexadecimal digits"
        ))
    })?;
    path(name, &decoded, base_dir)
}

fn path(name: &str, bytes: &[u8], base_dir: &Path) -> Result<PathBuf, UriError> {
    if bytes.is_empty() {
        return Err(error(format!("the {name} has an empty path")));
    }
    if bytes.contains(&0) {
        return Err(error(format!("the {name} has a NUL byte in its path")));
    }
    Ok(base_dir.join(OsStr::from_bytes(bytes)))
}

fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        if *byte != b'%' {
            decoded.push(*byte);
            continue;
        }
        let (pair, behind) = rest.split_first_chunk::<2>()?;
        let [high, low] = pair.map(|digit| (digit as char).to_digit(16));
        decoded.push((high? * 16 + low?) as u8);
        rest = behind;
    }
    Some(decoded)
}

/// Everything but RFC 3986's unreserved characters, and the slash where it may stand, as %XX.
fn percent_encoded(bytes: &[u8], keep: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || keep.contains(byte) {
            text.push(*byte as char);
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

impl fmt::Display for KeyUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pkcs11(uri) => uri.fmt(f),
            Self::File(path) => write!(f, "file:{}", encoded_path(path)),
        }
    }
}

impl fmt::Display for Pkcs11Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        let texts = [
            ("token", &self.token),
            ("manufacturer", &self.manufacturer),
            ("model", &self.model),
            ("serial", &self.serial),
            ("object", &self.object),
        ];
        for (name, value) in texts {
            parts.extend(
                value
                    .as_ref()
                    .map(|v| format!("{name}={}", percent_encoded(v.as_bytes(), b""))),
            );
        }
        parts.extend(self.id.as_ref().map(|id| {
            format!(
                "id={}",
                id.iter().map(|b| format!("%{b:02X}")).collect::<String>()
            )
        }));
        parts.extend(self.slot_id.map(|id| format!("slot-id={id}")));
        write!(
            f,
            "pkcs11:{}?module-path={}",
            parts.join(";"),
            encoded_path(&self.module_path)
        )?;
        match &self.pin_source {
            // Encoded twice, because the value of pin-source is itself a URI.
            Some(path) => write!(
                f,
                "&pin-source=file:{}",
                percent_encoded(encoded_path(path).as_bytes(), b"/")
            ),
            None => Ok(()),
        }
    }
}

fn encoded_path(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    // Two slashes at the start would read as a host name.
    match bytes.strip_prefix(b"//") {
        Some(rest) => format!("///{}", percent_encoded(rest, b"/")),
        None => percent_encoded(bytes, b"/"),
    }
}

fn quoted(name: &str) -> String {
    let mut short: String = name.chars().take(40).collect();
    if short.len() < name.len() {
        short.push('…');
    }
    format!("{short:?}")
}

fn error(text: impl Into<String>) -> UriError {
    UriError(text.into())
}

#[cfg(test)]
mod tests;
