//! What the ledger keeps of who asked: enough for an auditor to see why an identity was granted,
//! never a secret.

use std::fmt;
use std::net::SocketAddr;

/// One call, in logs and in the ledger alike: 16 random bytes, written as lower-case hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub [u8; 16]);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Which kind of credential proved the caller's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A JSON Web Token of a configured issuer.
    Jwt,
    /// A certificate of our own roots, presented in the TLS handshake.
    ClientCertificate,
    /// The daemon itself, for its serving certificate.
    Daemon,
}

impl Credential {
    /// The name that stands in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jwt => "jwt",
            Self::ClientCertificate => "client_certificate",
            Self::Daemon => "daemon",
        }
    }
}

/// The pod a token is bound to, as its claims say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Pod name.
    pub name: String,
    /// Pod UID.
    pub uid: String,
}

/// The recorded proof of an identity. Texts come from verified credentials and are at most a few
/// hundred bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// What was presented.
    pub credential: Credential,
    /// The token's `iss`, or the client certificate's issuer name.
    pub issuer: Option<String>,
    /// The token's `sub`, or the client certificate's URI SAN.
    pub subject: Option<String>,
    /// The token's `jti`, else `sha256:` and the hex digest of the token; for a client certificate
    /// its serial in hex.
    pub token: Option<String>,
    /// The cluster whose issuer checked the token.
    pub cluster: Option<String>,
    /// The pod the token is bound to.
    pub pod: Option<Pod>,
    /// Where the call came from.
    pub peer: Option<SocketAddr>,
}

impl Evidence {
    /// The daemon asks on its own behalf.
    pub fn daemon() -> Self {
        Self {
            credential: Credential::Daemon,
            issuer: None,
            subject: None,
            token: None,
            cluster: None,
            pod: None,
            peer: None,
        }
    }
}
