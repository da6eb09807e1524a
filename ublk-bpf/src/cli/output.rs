//! What a command prints on standard output.

use std::fmt::Display;
use std::io::{self, Write};

/// Standard output could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {0}")]
pub(super) struct OutputError(io::Error);

impl OutputError {
    /// The reader of a pipe has what it wants, as in `ublk-bpf list | head -1`.
    pub(super) fn is_unread(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// Prints a text as it is.
pub(super) fn print(text: impl Display) -> Result<(), OutputError> {
    let mut out = io::stdout().lock();
    write!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(OutputError)
}

/// Prints a line.
pub(super) fn print_line(line: impl Display) -> Result<(), OutputError> {
    print(format_args!("{line}\n"))
}
