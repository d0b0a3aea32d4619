//! How the program ends when it does not end well: one sentence for whoever started it, and a
//! status that says who must act.

use std::fmt;
use std::process::ExitCode;

/// Why the program ends.
#[derive(Debug)]
pub struct Exit {
    status: u8,
    sentence: String,
}

impl Exit {
    /// Status 1: the endpoint said no, or what it answered does not hold.
    pub fn refused(sentence: impl Into<String>) -> Self {
        Self {
            status: 1,
            sentence: sentence.into(),
        }
    }

    /// Status 2: the arguments, or a file that they name, make no sense.
    pub fn usage(sentence: impl Into<String>) -> Self {
        Self {
            status: 2,
            sentence: sentence.into(),
        }
    }

    /// Status 3: something is missing or taken: the endpoint, a process, a file.
    pub fn missing(sentence: impl Into<String>) -> Self {
        Self {
            status: 3,
            sentence: sentence.into(),
        }
    }

    /// For the operating system.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.status)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.sentence)
    }
}
