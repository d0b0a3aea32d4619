//! SHA-256, as the ledger, certificates and profiles use it.

/// The digest of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes)
        .as_ref()
        .try_into()
        .expect("SHA-256 has 32 octets")
}
