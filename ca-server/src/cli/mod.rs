//! The command line: one file a verb. A verb returns `Exit`, whose code says who must act (0 done, 1 the answer is no,
//! 2 usage or config, 3 something is missing or taken) and whose text is one clear sentence.

pub mod audit;

use std::fmt;
use std::process::ExitCode;

/// Why a verb ends without success: the exit status and one sentence for the operator.
#[derive(Debug)]
pub struct Exit {
    code: u8,
    sentence: String,
}

impl Exit {
    /// Status 1: the answer is no (a broken row, a refused call).
    pub fn refused(sentence: impl fmt::Display) -> Self {
        Self { code: 1, sentence: sentence.to_string() }
    }

    /// Status 2: the command line or the config is wrong.
    pub fn config(sentence: impl fmt::Display) -> Self {
        Self { code: 2, sentence: sentence.to_string() }
    }

    /// Status 3: something is missing or taken (SoftHSM, port, lock, ledger).
    pub fn missing(sentence: impl fmt::Display) -> Self {
        Self { code: 3, sentence: sentence.to_string() }
    }

    /// The exit status.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
