//! Writes the cases that fuzzing starts from: of hostile CSRs and tokens two of each family, where
//! they are small; and everything that a signer process is said, by name. The same seed writes the
//! same files.
//!
//! `cargo run --release --example fuzz_corpus -- fuzz/corpus`

use std::path::Path;

use softhsm_tests::hostile::csr::Csrs;
use softhsm_tests::hostile::protocol::{self, Body};
use softhsm_tests::hostile::to_be_signed;
use softhsm_tests::hostile::token::Tokens;
use softhsm_tests::hostile::{Case, SEED};

/// Larger files slow fuzzing down and teach it nothing.
const LARGEST: usize = 4096;

fn main() {
    let root = std::env::args_os()
        .nth(1)
        .expect("usage: fuzz_corpus DIRECTORY");
    write(
        &Path::new(&root).join("csr"),
        Csrs::new(SEED).take(40 * Csrs::families()),
    );
    write(
        &Path::new(&root).join("token"),
        Tokens::new(SEED, 1_800_000_000).take(40 * Tokens::families()),
    );
    write_bodies(
        &Path::new(&root).join("signer_request"),
        protocol::requests(),
    );
    write_bodies(&Path::new(&root).join("signer_reply"), protocol::replies());
    write_bodies(
        &Path::new(&root).join("guard"),
        to_be_signed::to_be_signed(),
    );
    write_bodies(&Path::new(&root).join("guard_rules"), to_be_signed::rules());
}

fn write_bodies(directory: &Path, bodies: Vec<Body>) {
    std::fs::create_dir_all(directory).expect("writable");
    for (name, body) in bodies {
        assert!(body.len() <= LARGEST, "{name}");
        std::fs::write(directory.join(name), body).expect("writable");
    }
}

fn write(directory: &Path, cases: impl Iterator<Item = Case>) {
    std::fs::create_dir_all(directory).expect("writable");
    let mut written = std::collections::BTreeMap::<&str, usize>::new();
    for case in cases.filter(|case| case.text.len() <= LARGEST) {
        let count = written.entry(case.family).or_default();
        *count += 1;
        if *count <= 2 {
            let family = case.family.replace([' ', ','], "-").replace("--", "-");
            std::fs::write(directory.join(format!("bad-{family}-{count}")), &case.text)
                .expect("writable");
        }
    }
}
