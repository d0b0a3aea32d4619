//! `ca-server doctor`: examines everything that the config names, as far as it can be reached, and
//! says what is wrong and what to do. It changes nothing and stops at nothing: what is broken in
//! one place hides nothing in another. It works beside the running daemon. An issuer's key signs
//! nothing here but a text that certifies nothing, and a PIN is tried at most once.

mod bench;
mod certificates;
mod configuration;
mod device;
mod finding;
mod ledger;
mod token_issuers;

use std::path::Path;

use clap::ValueEnum;
use signers::KeyUri;
use signers::pkcs11::{MayTry, keep_login_marks, may_try_first, set_init_string};

use self::finding::{Findings, Report};
use super::Exit;
use crate::clock::Clock;
use crate::config::Examination;
use crate::output;

/// Examine device, key, certificates, ledger and clock, and say what is wrong and what to do.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0 nothing is wrong (there may be warnings); 1 there is a problem; 2 the config cannot be read at all."
)]
pub struct Args {
    /// For people, or one JSON document for machines
    #[arg(long, value_enum, default_value_t = Output::Text, value_name = "FORMAT")]
    output: Output,
    /// Try the PIN although the token says that wrong ones were tried; a locked one is never tried
    #[arg(long)]
    try_pin: bool,
    /// Do not measure signatures per second, which takes all of the token's speed for about a
    /// second
    #[arg(long)]
    no_rate: bool,
    /// Have the database check its own structure, too; reads all of it
    #[arg(long)]
    deep: bool,
    /// Only measure: signatures per second and latency on 1, 2, 4 … sessions of each issuer's
    /// device, and how many to use. Takes all of the device's speed meanwhile
    #[arg(long, conflicts_with_all = ["output", "no_rate", "deep"])]
    bench: bool,
    /// The devices of [device.NAME] alone, for another process of this program, which it tells what
    /// it finds
    #[arg(long, value_name = "NAME", hide = true, conflicts_with_all = ["output", "deep", "bench", "device"])]
    apart: Option<String>,
    /// Of the devices, only [device.NAME]
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
}

/// The shape of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Lines by area.
    Text,
    /// One JSON document.
    Json,
}

/// Examines.
pub fn run(args: &Args, path: &Path) -> Result<(), Exit> {
    let clock = Clock::default();
    let examined = Examination::of(path, clock.now()).map_err(Exit::config)?;
    if let Some(directory) = &examined.state_dir {
        keep_login_marks(directory);
    }
    may_try_first(if args.try_pin {
        MayTry::Ordered
    } else {
        MayTry::Carefully
    });
    for key in &examined.keys {
        if let (Ok(Some(KeyUri::Pkcs11(uri))), Some(text)) = (
            &key.uri,
            key.device
                .as_ref()
                .and_then(|device| device.init_string.as_ref()),
        ) {
            set_init_string(&uri.module_path, text);
        }
    }
    if let Some(name) = &args.apart {
        return device::apart::answer(name, &examined.keys, args);
    }
    if args.bench {
        return bench::run(&examined.keys, args, path);
    }
    let mut report = Report::new(path, clock.now());
    let text = args.output == Output::Text;
    let mut tell = |findings: Findings| -> Result<(), Exit> {
        if text {
            findings
                .print(&mut output::writer())
                .map_err(Exit::unwritten)?;
        }
        report.add(findings);
        Ok(())
    };
    tell(configuration::examine(path, &examined))?;
    tell(certificates::examine(&examined, clock.now()))?;
    tell(token_issuers::examine(&examined.jwt))?;
    let (ledger, times) = super::block_on(async {
        Ok(ledger::examine(examined.ledger.as_ref(), args.deep, &clock).await)
    })?;
    tell(ledger)?;
    tell(ledger::clock(&times, clock.now()))?;
    for findings in device::examine_all(&examined.keys, args, path) {
        tell(findings)?;
    }
    match text {
        true => report.print_summary(&mut output::writer()),
        false => report.print_json(&mut output::writer()),
    }
    .map_err(Exit::unwritten)?;
    match report.problems() {
        0 => Ok(()),
        1 => Err(Exit::refused("1 problem was found")),
        count => Err(Exit::refused(format_args!("{count} problems were found"))),
    }
}
