//! What a signer signs to see whether a device works. The signature is verified and thrown away.

use crate::{Device, SignError};

/// The one message of every probe, so that a guard, and whoever reads a device's own log, knows
/// each of them. Nothing takes it for a certificate, a revocation list or a token: DER's SEQUENCE
/// begins with 0x30, JSON with a brace, a JWS with `ey`.
pub const PROBE: &[u8] =
    b"ca-server probes whether this token signs; a signature of this says nothing else.";

/// What a session must show before it counts as open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// Nothing beyond its key: the first session of a start, or one on which bytes are tried at
    /// once.
    None,
    /// A probe's signature, after a loss.
    Signature,
}

/// Whether this session signs, and with its key: libraries open sessions and log in long after they
/// have lost what signs.
pub(crate) fn prove(device: &mut impl Device) -> Result<(), SignError> {
    let says = |cause: String| format!("a session is open and does not sign: {cause}");
    match device.sign(PROBE) {
        Ok(signature) if device.public_key().verify(PROBE, &signature) => Ok(()),
        Ok(_) => Err(SignError::Rejected(says(
            "a throw-away signature does not verify".into(),
        ))),
        Err(SignError::Lost(cause)) => Err(SignError::Lost(says(cause))),
        Err(SignError::Rejected(cause)) => Err(SignError::Rejected(says(cause))),
        Err(other) => Err(other),
    }
}
