//! What `loadgen/report` has left in a directory.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::exit::Exit;
use crate::report::Report;

/// What one repetition was taken beside.
#[derive(Clone, Debug, Deserialize)]
pub struct References {
    repetition: String,
    pub verify_p256_micros: f64,
    pub sign_p256_micros: f64,
    pub commit_p50_ms: f64,
    pub commit_p99_ms: f64,
}

impl References {
    /// What an issuance cannot do without: proof of possession, our own signature checked, and one
    /// signature.
    pub fn floor(&self) -> f64 {
        2.0 * self.verify_p256_micros + self.sign_p256_micros
    }
}

/// Something measured by other means than a run.
#[derive(Clone, Debug, Deserialize)]
pub struct Figure {
    pub name: String,
    pub ledger: String,
    pub value: f64,
}

/// Everything that a directory holds.
#[derive(Default)]
pub struct Results {
    pub runs: BTreeMap<(String, String, String), Report>,
    pub references: Vec<References>,
    pub figures: Vec<Figure>,
}

impl Results {
    /// Reads everything there is.
    pub fn read(directory: &Path) -> Result<Self, Exit> {
        let mut results = Self::default();
        let runs = directory.join("runs");
        let failed = |path: &Path, error: &dyn std::fmt::Display| {
            Exit::missing(format!("{}: {error}", path.display()))
        };
        for entry in std::fs::read_dir(&runs).map_err(|error| failed(&runs, &error))? {
            let path = entry.map_err(|error| failed(&runs, &error))?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let [part, ledger, repetition, "json"] = name.split('.').collect::<Vec<_>>()[..] else {
                continue;
            };
            let key = (part.to_owned(), ledger.to_owned(), repetition.to_owned());
            let text = std::fs::read_to_string(&path).map_err(|error| failed(&path, &error))?;
            results.runs.insert(
                key,
                serde_json::from_str(&text).map_err(|error| failed(&path, &error))?,
            );
        }
        results.references = lines(&directory.join("references.jsonl"))?;
        results.figures = lines(&directory.join("figures.jsonl"))?;
        Ok(results)
    }

    /// The runs of a part on a ledger, by repetition.
    pub fn of<'a>(
        &'a self,
        part: &'a str,
        ledger: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Report)> {
        let right = move |key: &(String, String, String)| key.0 == part && key.1 == ledger;
        self.runs
            .iter()
            .filter(move |(key, _)| right(key))
            .map(|(key, report)| (key.2.as_str(), report))
    }

    /// What was taken before a repetition, the last time.
    pub fn references(&self, repetition: &str) -> Option<&References> {
        self.references
            .iter()
            .rev()
            .find(|one| one.repetition == repetition)
    }
}

fn lines<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Vec<T>, Exit> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| Exit::missing(format!("{}: {error}", path.display())))?,
    };
    let parsed = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>();
    parsed.map_err(|error| Exit::usage(format!("{}: {error}", path.display())))
}
