//! One finding, the findings of an area, and the report of all. The names of areas and checks, and
//! the fields of the JSON document, are what machines rely on: they do not change.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::timestamp::Timestamp;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// As it should be.
    Ok,
    /// It works, and somebody should look.
    Warning,
    /// Something does not work, or cannot be relied upon.
    Problem,
}

impl Severity {
    /// Told apart without colours.
    fn mark(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "WARNING",
            Self::Problem => "PROBLEM",
        }
    }
}

/// What was found about one thing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Finding {
    area: Cow<'static, str>,
    /// The issuer, token issuer or file that it is about, where there may be several.
    subject: Option<String>,
    check: Cow<'static, str>,
    severity: Severity,
    what: String,
    remedy: Option<String>,
}

/// The findings of one area.
#[derive(Clone, Debug)]
pub(super) struct Findings {
    area: &'static str,
    subject: Option<String>,
    list: Vec<Finding>,
}

impl Findings {
    /// None yet.
    pub(super) fn in_area(area: &'static str) -> Self {
        Self {
            area,
            subject: None,
            list: Vec::new(),
        }
    }

    /// Those of a report that another process printed as JSON, as far as they are of this area.
    pub(super) fn told(area: &'static str, report: &[u8]) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        struct Told {
            findings: Vec<Finding>,
        }
        let told: Told = serde_json::from_slice(report)?;
        Ok(Self {
            area,
            subject: None,
            list: told
                .findings
                .into_iter()
                .filter(|finding| finding.area == area)
                .collect(),
        })
    }

    /// Those of this one, too.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.list.extend(other.list);
        self
    }

    /// One line of JSON, which `told` reads.
    pub(super) fn line(&self) -> String {
        serde_json::json!({ "findings": self.list }).to_string()
    }

    /// What follows is about this one of several.
    pub(super) fn about(&mut self, subject: &str) -> &mut Self {
        self.subject = Some(subject.to_owned());
        self
    }

    /// As it should be.
    pub(super) fn ok(&mut self, check: &'static str, what: impl Into<String>) {
        self.add(check, Severity::Ok, what.into(), None);
    }

    /// It works, and somebody should look.
    pub(super) fn warning(
        &mut self,
        check: &'static str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(check, Severity::Warning, what.into(), Some(remedy.into()));
    }

    /// Something is wrong.
    pub(super) fn problem(
        &mut self,
        check: &'static str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(check, Severity::Problem, what.into(), Some(remedy.into()));
    }

    /// Whether one of these checks found a problem.
    pub(super) fn has_problem(&self, checks: &[&str]) -> bool {
        self.list.iter().any(|finding| {
            finding.severity == Severity::Problem && checks.contains(&&*finding.check)
        })
    }

    fn add(
        &mut self,
        check: &'static str,
        severity: Severity,
        what: String,
        remedy: Option<String>,
    ) {
        self.list.push(Finding {
            area: self.area.into(),
            subject: self.subject.clone(),
            check: check.into(),
            severity,
            what,
            remedy,
        });
    }

    /// The area's heading and a line or two for each finding.
    pub(super) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        if self.list.is_empty() {
            return Ok(());
        }
        writeln!(out, "{}", self.area)?;
        for finding in &self.list {
            let subject = finding
                .subject
                .as_ref()
                .map(|subject| format!("{subject}: "))
                .unwrap_or_default();
            writeln!(
                out,
                "  {:<7}  {subject}{}",
                finding.severity.mark(),
                one_line(&finding.what)
            )?;
            if let Some(remedy) = &finding.remedy {
                writeln!(out, "           remedy: {}", one_line(remedy))?;
            }
        }
        // Seen at once: the next area may take a while, or bring the process down with a device's
        // library.
        out.flush()
    }
}

/// Databases and libraries may answer several lines, or control characters for a terminal.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|sign| if sign.is_control() { ' ' } else { sign })
        .collect()
}

/// Everything that was found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    version: &'static str,
    config: String,
    time: String,
    problems: usize,
    warnings: usize,
    findings: Vec<Finding>,
}

impl Report {
    /// None yet.
    pub(super) fn new(config: &Path, now: Timestamp) -> Self {
        let (version, config) = (env!("CARGO_PKG_VERSION"), config.display().to_string());
        Self {
            version,
            config,
            time: now.rfc3339(),
            problems: 0,
            warnings: 0,
            findings: Vec::new(),
        }
    }

    /// Takes an area's findings.
    pub(super) fn add(&mut self, findings: Findings) {
        self.findings.extend(findings.list);
        let count = |severity| {
            self.findings
                .iter()
                .filter(|finding| finding.severity == severity)
                .count()
        };
        (self.problems, self.warnings) = (count(Severity::Problem), count(Severity::Warning));
    }

    /// How many problems there are.
    pub(super) fn problems(&self) -> usize {
        self.problems
    }

    /// One line about all.
    pub(super) fn print_summary(&self, out: &mut impl Write) -> io::Result<()> {
        let counted = |count: usize, what: &str| {
            format!("{count} {what}{}", if count == 1 { "" } else { "s" })
        };
        let (problems, warnings) = (
            counted(self.problems, "problem"),
            counted(self.warnings, "warning"),
        );
        writeln!(
            out,
            "\n{} looked at: {problems}, {warnings}.",
            counted(self.findings.len(), "thing")
        )
    }

    /// The document: version, config, time, problems, warnings, findings.
    pub(super) fn print_json(&self, out: &mut impl Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, self)?;
        writeln!(out)
    }
}

/// A time span as people say it: `729 days`, `5 hours`, `40 minutes`.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (count, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7_200 => (seconds / 60, "minute"),
        7_200..172_800 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// A number of octets as people say it: `3.2 GiB`.
pub(super) fn size(octets: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut value = octets as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{octets} bytes")
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_read_as_people_say_them() {
        assert_eq!(
            ["1 second", "59 minutes", "47 hours", "2 days"],
            [1, 3_599, 172_799, 172_800].map(|s| span(Duration::from_secs(s)))
        );
        assert_eq!(
            ["1023 bytes", "1.0 KiB", "3.5 GiB"],
            [1_023, 1_024, 3_758_096_384].map(size)
        );
    }

    #[test]
    fn what_a_library_answers_cannot_command_the_terminal() {
        let mut findings = Findings::in_area("device");
        findings.problem("token", "two\nlines \u{1b}[2J", "a\rb");
        let mut out = Vec::new();
        findings.print(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "device\n  PROBLEM  two lines  [2J\n           remedy: a b\n"
        );
    }
}
