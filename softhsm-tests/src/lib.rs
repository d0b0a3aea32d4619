//! Whole-system stories need a whole system: real tokens, a real ledger, real TLS and the real
//! binary in a process of its own.
//!
//! `TestCa` starts one daemon over its own SoftHSM tokens (or a file key), speaks Istio's call to
//! it, and after each story `check` re-reads the ledger and compares it with what clients received
//! and what the device signed.

pub mod authority;
pub mod build;
pub mod check;
pub mod client;
pub mod daemon;
pub mod disk;
pub mod hostile;
pub mod ledger_database;
pub mod load;
mod material;
pub mod proxy;
pub mod sockets;
pub mod strace;
pub mod tokens;

use std::io::Write;

pub use client::{Ask, Channel, Csr, KeyChoice};
pub use daemon::{Setup, TestCa};
pub use ledger_database::LedgerDatabase;
pub use load::Load;
pub use material::Material;

/// Installs the one crypto provider; every test may call it.
pub fn crypto() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Prints also for a test that passes: figures belong into the output of `./run-tests`.
pub fn tell(line: &str) {
    // Written past the capture of the test harness, in one piece.
    std::io::stdout()
        .write_all(format!("{line}\n").as_bytes())
        .expect("written");
}
