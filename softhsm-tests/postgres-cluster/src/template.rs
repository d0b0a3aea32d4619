//! What initdb makes, made once a day for each user and version and copied for each cluster: a copy
//! takes a twentieth of the time.

#![allow(
    clippy::disallowed_methods,
    reason = "the day is part of a directory's name"
)]

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::SUPERUSER;
use super::programs::{Programs, owner, unprivileged};

/// Makes a new data directory.
pub(super) fn copy(programs: &Programs, to: &Path) {
    let from = template(programs);
    let status = unprivileged("cp")
        .arg("-a")
        .arg(&from)
        .arg(to)
        .status()
        .expect("cp runs");
    assert!(
        status.success(),
        "cp -a {} {}",
        from.display(),
        to.display()
    );
}

/// The template of today. Whoever comes first makes it under another name and renames it, so that
/// nobody sees half of one. A new one each day, because systems remove old files from temporary
/// directories.
fn template(programs: &Programs) -> PathBuf {
    let temporary = super::temporary_directory();
    let family = format!("postgres-cluster-template-{}-", owner());
    let today = SystemTime::UNIX_EPOCH
        .elapsed()
        .expect("after 1970")
        .as_secs()
        / 86_400;
    let template = temporary.join(format!("{family}{}-{today}", programs.version));
    if fs::metadata(&template).is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == owner())
    {
        return template;
    }
    let directory = super::new_directory();
    let new = directory.join("data");
    let initdb = unprivileged(programs.path("initdb"))
        .args([
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "-U",
            SUPERUSER,
            "-D",
        ])
        .arg(&new)
        .output()
        .expect("initdb runs");
    assert!(
        initdb.status.success(),
        "initdb: {}",
        String::from_utf8_lossy(&initdb.stderr)
    );
    match fs::rename(&new, &template) {
        Ok(()) => remove_old(&temporary, &family, today),
        // Another process was faster.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists
            ) => {}
        Err(error) => panic!("{}: {error}", template.display()),
    }
    let _ = fs::remove_dir_all(directory);
    template
}

/// Those of yesterday may still be copied by somebody.
fn remove_old(temporary: &Path, family: &str, today: u64) {
    for entry in fs::read_dir(temporary).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let day = name.to_str().and_then(|name| {
            name.strip_prefix(family)?
                .rsplit_once('-')?
                .1
                .parse::<u64>()
                .ok()
        });
        if day.is_some_and(|day| day + 1 < today) {
            // Somebody else may be removing it too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
