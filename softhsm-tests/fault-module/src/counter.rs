//! Counters that survive a kill -9 at any point: files to which each event appends a line.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// A file with a line an event.
pub(crate) struct Counter(File);

impl Counter {
    pub(crate) fn open(directory: &Path, name: &str) -> io::Result<Self> {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(directory.join(name))
            .map(Self)
    }

    /// One line, by one write: the hex of `what`, which may be empty.
    pub(crate) fn add(&self, what: &[u8]) -> io::Result<()> {
        let mut line: String = what.iter().map(|byte| format!("{byte:02x}")).collect();
        line.push('\n');
        (&self.0).write_all(line.as_bytes())
    }
}

/// Of each function: its calls, and those that a rule applied to.
pub(crate) struct Tally(BTreeMap<&'static str, (Counter, Counter)>);

impl Tally {
    pub(crate) fn open(directory: &Path, functions: &[&'static str]) -> io::Result<Self> {
        let (calls, met) = (directory.join("calls"), directory.join("met"));
        fs::create_dir_all(&calls)?;
        fs::create_dir_all(&met)?;
        let counters = |&name: &&'static str| -> io::Result<_> {
            Ok((
                name,
                (Counter::open(&calls, name)?, Counter::open(&met, name)?),
            ))
        };
        functions
            .iter()
            .map(counters)
            .collect::<io::Result<_>>()
            .map(Self)
    }

    pub(crate) fn called(&self, function: &str) -> io::Result<()> {
        self.0
            .get(function)
            .map_or(Ok(()), |(calls, _)| calls.add(&[]))
    }

    pub(crate) fn met(&self, function: &str) -> io::Result<()> {
        self.0.get(function).map_or(Ok(()), |(_, met)| met.add(&[]))
    }
}
