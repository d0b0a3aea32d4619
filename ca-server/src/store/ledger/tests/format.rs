//! The published bytes.
