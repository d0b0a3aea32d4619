//! The two SoftHSM tokens and their PINs. The user PINs are random and kept in files of mode 0600;
//! the security officer's PINs are random and thrown away, so that nobody can ever reset a user
//! PIN: a forgotten one means a new token.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::ceremony::{ROOT_FILE, TRANSCRIPT_FILE, files};
use crate::cli::Exit;

/// The two tokens; each has its PIN file `<label>.pin`.
const LABELS: [&str; 2] = ["root", "issuing"];

/// Stands from before the tokens are made until the ceremony has ended. SoftHSM writes tokens and
/// keys in many small steps, and what a kill leaves of them is of no use. While this stands and
/// there is no root certificate, no key in the tokens has vouched for anything, so they may be made
/// anew. The ceremony makes both keys before its first certificate.
pub(super) const MAKING: &str = ".tokens-are-being-made";

/// What SoftHSM reads when it is loaded.
pub(super) fn environment(directory: &Path) -> BTreeMap<String, String> {
    BTreeMap::from([(
        "SOFTHSM2_CONF".to_owned(),
        directory.join("softhsm2.conf").display().to_string(),
    )])
}

/// Makes configuration, PINs and tokens, or recognises them.
pub(super) fn ready(directory: &Path, module: &Path) -> Result<(), Exit> {
    let failed = |error: std::io::Error| Exit::missing(format!("{}: {error}", directory.display()));
    write_configuration(directory).map_err(failed)?;
    let (tokens, making) = (directory.join("tokens"), directory.join(MAKING));
    let exists = |name: &str| directory.join(name).exists();
    let found = directories(&tokens).map_err(failed)?;
    // Fewer than all are what a reset or a removal that was cut short has left.
    let all_there = found.len() >= LABELS.len();
    if making.exists() && !exists(ROOT_FILE)
        || !(all_there || exists(ROOT_FILE) || exists(TRANSCRIPT_FILE))
    {
        found
            .iter()
            .try_for_each(fs::remove_dir_all)
            .map_err(failed)?;
    } else if all_there {
        return check_pins(directory);
    } else {
        return Err(Exit::missing(format!(
            "{} is gone or lacks a token, and with it the keys of the certificates beside it: put it back from a backup, or start anew \
             with --reset",
            tokens.display()
        )));
    }
    files::replace(&making, b"", files::PRIVATE).map_err(failed)?;
    fs::create_dir_all(&tokens).map_err(failed)?;
    for label in LABELS {
        let pin = directory.join(format!("{label}.pin"));
        files::replace(&pin, random_pin()?.as_bytes(), files::PRIVATE).map_err(failed)?;
        let user_pin = signers::read_pin(&pin).map_err(Exit::missing)?;
        let officer_pin = random_pin()?.to_string().into();
        signers::pkcs11::init_token(module, label, &officer_pin, &user_pin).map_err(|error| {
            Exit::missing(format!(
                "SoftHSM could not make the token {label:?}: {error}"
            ))
        })?;
    }
    Ok(())
}

/// After the ceremony: from now on the tokens are never made anew.
pub(super) fn keep(directory: &Path) -> Result<(), Exit> {
    let making = directory.join(MAKING);
    match fs::remove_file(&making).and_then(|()| files::sync_directory(&making)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Exit::missing(format!("{}: {error}", making.display())))
        }
        _ => Ok(()),
    }
}

fn write_configuration(directory: &Path) -> std::io::Result<()> {
    let path = directory.join("softhsm2.conf");
    let text = format!(
        "# SoftHSM 2, as ca-server quickstart uses it; see softhsm2.conf(5).\n\
         directories.tokendir = {}\n\
         objectstore.backend = file\n\
         log.level = ERROR\n\
         slots.removable = false\n",
        directory.join("tokens").display()
    );
    if fs::read_to_string(&path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    files::replace(&path, text.as_bytes(), files::PUBLIC)
}

fn check_pins(directory: &Path) -> Result<(), Exit> {
    for label in LABELS {
        let pin = directory.join(format!("{label}.pin"));
        if !pin.exists() {
            return Err(Exit::missing(format!(
                "{} is gone: put it back from a backup, or start anew with --reset",
                pin.display()
            )));
        }
    }
    Ok(())
}

/// The directories that SoftHSM made in `tokens`, one a token, each with a UUID for its name;
/// whatever else is there is not ours.
pub(super) fn directories(tokens: &Path) -> std::io::Result<Vec<PathBuf>> {
    let is_uuid = |name: &str| {
        name.len() == 36
            && name
                .chars()
                .all(|letter| letter.is_ascii_hexdigit() || letter == '-')
    };
    let mut found = Vec::new();
    match fs::read_dir(tokens) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() && entry.file_name().to_str().is_some_and(is_uuid) {
                    found.push(entry.path());
                }
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(found)
}

/// 128 random bits as text.
fn random_pin() -> Result<Zeroizing<String>, Exit> {
    let mut bytes = Zeroizing::new([0_u8; 16]);
    getrandom::fill(&mut *bytes)
        .map_err(|error| Exit::missing(format!("the system has no random numbers: {error}")))?;
    Ok(Zeroizing::new(hex::encode(*bytes)))
}
