//! Who signs, as the ledger itself says: for an auditor to compare with the certificates that he
//! knows.

use super::super::event::Hash;

/// An issuer as a chain names it, by the SHA-256 of its certificates (DER).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedIssuer {
    /// Its id.
    pub id: String,
    /// Of the certificate whose key signs.
    pub certificate: Hash,
    /// Of its roots.
    pub roots: Vec<Hash>,
}
