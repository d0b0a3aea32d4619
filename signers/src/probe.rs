//! What a signer signs to see whether a token is back. The signature is verified and thrown away.

/// The one message of every probe, so that a guard, and whoever reads a device's own log, knows each of them. Nothing takes it for a
/// certificate, a revocation list or a token: DER's SEQUENCE begins with 0x30, JSON with a brace, a JWS with `ey`.
pub const PROBE: &[u8] = b"ca-server probes whether this token signs; a signature of this says nothing else.";
