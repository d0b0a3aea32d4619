//! `ceremony`: makes root and issuing certificate from a reviewed spec.

use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};

use super::{Exit, environment};
use crate::ceremony::{self, Failure, Made, Outcome, Spec, Surroundings};
use crate::clock::Clock;

/// Make a root and an issuing certificate, keys generated inside their token, from a spec that
/// people have reviewed.
///
/// Nothing is ever overwritten: what is there and matches the spec is left alone. Each step is
/// written to ceremony.jsonl, synced, before the next one begins.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The TOML spec: output, [device] env, and for [root] and [issuing] subject, key, algorithm,
    /// lifetime and path_length
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<(), Exit> {
    let spec = Spec::read(&args.spec).map_err(exit)?;
    environment::enter(spec.env())?;
    let outcome = hold(&spec)?;
    super::print(summary(&outcome))
}

/// Carries out a spec with the system's clock and randomness, and a spinner at a terminal.
pub(super) fn hold(spec: &Spec) -> Result<Outcome, Exit> {
    let spinner = ProgressBar::new_spinner()
        .with_style(ProgressStyle::with_template("{spinner} {msg}").expect("a fixed template"));
    spinner.enable_steady_tick(std::time::Duration::from_millis(100));
    let outcome = random_pool().and_then(|pool| {
        let random = || pool.take();
        let given = Surroundings {
            now: &|| Clock::default().now(),
            random: &random,
            progress: &|step| spinner.set_message(step.to_owned()),
        };
        ceremony::run(spec, &given).map_err(exit)
    });
    spinner.finish_and_clear();
    outcome
}

/// Randomness for both serials, drawn before anything is signed, so that a system without any stops
/// the ceremony at its beginning.
struct Random(std::cell::RefCell<Vec<[u8; 16]>>);

impl Random {
    fn take(&self) -> [u8; 16] {
        self.0
            .borrow_mut()
            .pop()
            .expect("a ceremony signs two certificates")
    }
}

fn random_pool() -> Result<Random, Exit> {
    let mut drawn = vec![[0; 16]; 2];
    for serial in &mut drawn {
        getrandom::fill(serial)
            .map_err(|error| Exit::missing(format!("the system has no random numbers: {error}")))?;
    }
    Ok(Random(std::cell::RefCell::new(drawn)))
}

pub(super) fn exit(failure: Failure) -> Exit {
    match failure {
        Failure::Spec(sentence) => Exit::config(sentence),
        Failure::Unavailable(sentence) => Exit::missing(sentence),
    }
}

fn summary(outcome: &Outcome) -> String {
    let lines = |what: &str, made: &Made| {
        let how = if made.now {
            "made"
        } else {
            "already there, unchanged"
        };
        let name = format!("{what:<12}{} ({how})\n", made.subject);
        name + &format!(
            "{:<12}{}, until {}\n{:<12}sha256 {}\n",
            "",
            made.file.display(),
            made.not_after,
            "",
            made.sha256
        )
    };
    let transcript = format!("{:<12}{}\n", "transcript", outcome.transcript.display());
    lines("root", &outcome.root) + &lines("issuing", &outcome.issuing) + &transcript
}
