//! What is wrong with a trace, in one line.

use std::fmt;
use std::io;

use crate::replay::trace::{Trace, TraceRequest};

/// Why a trace cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("{file}: cannot read it: {error}")]
    Unreadable {
        /// Its path.
        file: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// Its content is not a trace.
    #[error(transparent)]
    Bad(BadTrace),
}

/// A fault, with the file that has it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {fault}")]
pub struct BadTrace {
    /// Its path.
    pub file: String,
    /// What is wrong, and where.
    pub fault: Fault,
}

/// What is wrong in a trace, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}wanted {wanted}, found {found}")]
pub struct Fault {
    /// Where.
    pub at: At,
    /// What should be there.
    pub wanted: String,
    /// What is there.
    pub found: String,
}

/// A place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The file as a whole.
    File,
    /// A line, counted from 1.
    Line(u64),
    /// A byte, counted from 0.
    Byte(u64),
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => Ok(()),
            Self::Line(line) => write!(f, "line {line}: "),
            Self::Byte(byte) => write!(f, "byte {byte}: "),
        }
    }
}

impl Fault {
    pub(super) fn new(at: At, wanted: impl Into<String>, found: impl Into<String>) -> Self {
        let (wanted, found) = (wanted.into(), found.into());
        Self { at, wanted, found }
    }

    pub(super) fn file(wanted: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(At::File, wanted, found)
    }
}

/// Adds a request that was found there.
pub(super) fn push(trace: &mut Trace, at: At, request: TraceRequest) -> Result<(), Fault> {
    let fault = |found| Fault::new(at, "a request that a device can get", found);
    trace.push(request).map_err(fault)
}

/// Characters of the file that an error shows at most.
const SHOWN: usize = 40;

/// Part of the file, for an error: short, and without control characters.
pub(super) fn quoted(text: &str) -> String {
    let short: String = text.chars().take(SHOWN).collect();
    let dots = if short.len() < text.len() { "..." } else { "" };
    format!("{:?}{dots}", short.trim_end())
}
