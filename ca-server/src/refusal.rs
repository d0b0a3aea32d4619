//! Why a call ends without a certificate, grouped by who must act. The bottom room: everyone may
//! name it.
//!
//! A refusal has two faces. Outside, `code` and `public_text`, opaque where the contract wants it;
//! inside, `reason` and `detail`, which the log and the ledger keep.

use std::fmt;

/// The gRPC status a refusal is answered with (contract §5); `front::grpc` maps it to the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the gRPC names say it")]
pub enum Code {
    InvalidArgument,
    DeadlineExceeded,
    PermissionDenied,
    ResourceExhausted,
    Internal,
    Unavailable,
    Unauthenticated,
}

impl Code {
    /// The canonical gRPC name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "InvalidArgument",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::PermissionDenied => "PermissionDenied",
            Self::ResourceExhausted => "ResourceExhausted",
            Self::Internal => "Internal",
            Self::Unavailable => "Unavailable",
            Self::Unauthenticated => "Unauthenticated",
        }
    }
}

/// What went wrong. The names are the ledger's and the metrics', so they never change meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    // The caller must act.
    /// No client certificate and no bearer token.
    NoCredentials,
    /// A token or client certificate that proves nothing here.
    BadCredentials,
    /// The `clusterid` header is unknown or repeated.
    UnknownCluster,
    /// Impersonation was asked for and is not granted.
    Impersonation,
    /// The CSR is not a legal PKCS#10 request within our limits.
    MalformedCsr,
    /// The CSR's signature is not by its own key.
    ProofOfPossession,
    /// The key's kind or size is not allowed by the profile.
    WeakKey,
    /// The asked lifetime is above the profile's maximum.
    Lifetime,
    /// The asked CertSigner is not an active issuer.
    UnknownSigner,
    /// A strict profile and a CSR whose SANs are not the caller's identity.
    SanMismatch,
    /// The request's metadata or message is malformed.
    MalformedRequest,
    // Trying again later helps.
    /// No permit, or a full queue.
    Overloaded,
    /// The device is at its limit, and could not have signed in the time that the call has left.
    DeviceBusy,
    /// More calls or connections from one address than `[limits]` allows.
    PeerLimit,
    /// More calls of one identity than `[limits]` allows.
    IdentityLimit,
    /// More distinct public keys of one identity than `[limits]` allows.
    KeyLimit,
    /// The call's time limit passed.
    Deadline,
    /// The ledger cannot record.
    LedgerDown,
    /// The device cannot sign now.
    DeviceDown,
    /// The keys that check tokens cannot be read.
    TokenCheckDown,
    /// The daemon is shutting down or not ready.
    Stopping,
    // The operator must act.
    /// The clock is behind what the ledger recorded.
    Clock,
    /// The device refused log-in or the key.
    DeviceRefused,
    /// The signer's guard forbids what was to be signed: this daemon is at fault, or taken over.
    GuardRefused,
    /// The issuer's certificate has ended.
    IssuerExpired,
    /// A bug or a broken device: what was signed does not verify, what was built does not parse.
    Internal,
}

impl Reason {
    /// The name in ledger rows, logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoCredentials => "no_credentials",
            Self::BadCredentials => "bad_credentials",
            Self::UnknownCluster => "unknown_cluster",
            Self::Impersonation => "impersonation",
            Self::MalformedCsr => "malformed_csr",
            Self::ProofOfPossession => "proof_of_possession",
            Self::WeakKey => "weak_key",
            Self::Lifetime => "lifetime",
            Self::UnknownSigner => "unknown_signer",
            Self::SanMismatch => "san_mismatch",
            Self::MalformedRequest => "malformed_request",
            Self::Overloaded => "overloaded",
            Self::DeviceBusy => "device_busy",
            Self::PeerLimit => "peer_limit",
            Self::IdentityLimit => "identity_limit",
            Self::KeyLimit => "key_limit",
            Self::Deadline => "deadline",
            Self::LedgerDown => "ledger_down",
            Self::DeviceDown => "device_down",
            Self::TokenCheckDown => "token_check_down",
            Self::Stopping => "stopping",
            Self::Clock => "clock",
            Self::DeviceRefused => "device_refused",
            Self::GuardRefused => "guard_refused",
            Self::IssuerExpired => "issuer_expired",
            Self::Internal => "internal",
        }
    }

    /// The status it is answered with.
    pub fn code(self) -> Code {
        match self {
            Self::NoCredentials
            | Self::BadCredentials
            | Self::UnknownCluster
            | Self::Impersonation => Code::Unauthenticated,
            Self::MalformedCsr
            | Self::ProofOfPossession
            | Self::WeakKey
            | Self::Lifetime
            | Self::UnknownSigner
            | Self::SanMismatch
            | Self::MalformedRequest => Code::InvalidArgument,
            Self::Overloaded
            | Self::DeviceBusy
            | Self::PeerLimit
            | Self::IdentityLimit
            | Self::KeyLimit => Code::ResourceExhausted,
            Self::Deadline => Code::DeadlineExceeded,
            Self::LedgerDown
            | Self::DeviceDown
            | Self::TokenCheckDown
            | Self::Stopping
            | Self::Clock
            | Self::DeviceRefused => Code::Unavailable,
            Self::GuardRefused | Self::IssuerExpired | Self::Internal => Code::Internal,
        }
    }
}

/// A call that ends without a certificate.
#[derive(Clone, Debug)]
pub struct Refusal {
    reason: Reason,
    detail: String,
}

/// The longest detail that is kept, in bytes: it may quote what a caller sent.
const DETAIL_LIMIT: usize = 500;

/// A text that takes no more than it may, so that quoting a long value costs no more than what is
/// kept.
struct Detail(String);

impl fmt::Write for Detail {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = DETAIL_LIMIT - self.0.len();
        if text.len() <= room {
            self.0.push_str(text);
            return Ok(());
        }
        let end = (0..=room)
            .rev()
            .find(|&at| text.is_char_boundary(at))
            .unwrap_or(0);
        self.0.push_str(&text[..end]);
        Err(fmt::Error)
    }
}

impl Refusal {
    /// A refusal with its full cause, which must hold no secret; long ones are cut.
    pub fn new(reason: Reason, detail: impl fmt::Display) -> Self {
        let mut kept = Detail(String::new());
        if fmt::write(&mut kept, format_args!("{detail}")).is_err() {
            kept.0.push('…');
        }
        Self {
            reason,
            detail: kept.0,
        }
    }

    /// Why.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The full cause, for the log and the ledger.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The status it is answered with.
    pub fn code(&self) -> Code {
        self.reason.code()
    }

    /// What the caller may read: the cause where the caller must act on it, one fixed text
    /// elsewhere.
    pub fn public_text(&self) -> &str {
        match self.code() {
            Code::InvalidArgument => &self.detail,
            Code::Unauthenticated => "request authenticate failure",
            Code::PermissionDenied => "not permitted",
            Code::ResourceExhausted => "the CA is at its limit, try again later",
            Code::DeadlineExceeded => "the CA's time limit for a call has passed",
            Code::Unavailable => "the CA cannot issue now, try again later",
            Code::Internal => "internal error of the CA",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.as_str(), self.detail)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_detail_is_cut_at_a_character_and_says_so() {
        let refusal = Refusal::new(
            Reason::UnknownSigner,
            format_args!("CertSigner {:?}", "ü".repeat(1_000_000)),
        );
        assert!(
            refusal.detail().len() <= DETAIL_LIMIT + '…'.len_utf8()
                && refusal.detail().ends_with('…')
        );
        assert_eq!(Refusal::new(Reason::Internal, "short").detail(), "short");
    }
}
