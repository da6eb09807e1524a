//! Reads traces of several formats, each recognised by its content.
//!
//! | format | recognised by | file |
//! |---|---|---|
//! | `ublk-bpf` | its magic | [`trace`](crate::trace) |
//! | `fio` | its first line, `fio version N iolog` | `fio.rs` |
//! | `blkparse` | text whose lines begin with `major,minor` | `blkparse.rs` |
//! | `csv` | text whose first line names columns | `csv.rs` |
//! | `vscsi` | the version in its records | `vscsi.rs` |
//! | `records`, `oracle-general` | records of 24 bytes, by the plausibility of their fields | `records.rs`, `oracle.rs` |
//! | `pages` | nothing: it must be named | `pages.rs` |

mod binary;
mod blkparse;
mod csv;
mod fault;
mod fio;
mod oracle;
mod pages;
mod recorded;
mod records;
mod text;
mod vscsi;

#[cfg(test)]
mod tests;

use std::fs;
use std::path::Path;

pub use self::fault::{At, BadTrace, Fault, ReadError};
use super::trace::{DEFAULT_RATE, Trace};
use crate::trace::MAGIC;

/// The format of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TraceFormat {
    /// What `ublk-bpf trace --record` writes.
    UblkBpf,
    /// Comma-separated values with a line of column names.
    Csv,
    /// The text that `blkparse` prints.
    Blkparse,
    /// The log that fio writes with `write_iolog`, version 2 or 3.
    Fio,
    /// libCacheSim's `oracleGeneral`.
    OracleGeneral,
    /// A VMware vSCSI trace, version 1 or 2, as libCacheSim reads it.
    Vscsi,
    /// Records of 24 bytes: time in microseconds, sector, sectors, operation.
    Records,
    /// Page numbers of 32 bits, big endian: a read of each.
    Pages,
}

impl TraceFormat {
    /// All formats.
    pub const ALL: [Self; 8] = [
        Self::UblkBpf,
        Self::Csv,
        Self::Blkparse,
        Self::Fio,
        Self::OracleGeneral,
        Self::Vscsi,
        Self::Records,
        Self::Pages,
    ];

    /// The format of a file that starts with these bytes.
    fn of(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(&MAGIC) {
            return Some(Self::UblkBpf);
        }
        if let Some(text) = text::beginning(bytes) {
            return if fio::is_one(text) {
                Some(Self::Fio)
            } else if blkparse::is_one(text) {
                Some(Self::Blkparse)
            } else {
                csv::is_one(text).then_some(Self::Csv)
            };
        }
        if vscsi::version(bytes).is_some() {
            return Some(Self::Vscsi);
        }
        match (records::is_one(bytes), oracle::is_one(bytes)) {
            (true, false) => Some(Self::Records),
            (false, true) => Some(Self::OracleGeneral),
            _ => None,
        }
    }

    const fn has_times(self) -> bool {
        !matches!(self, Self::Pages)
    }
}

/// What a file does not say about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReadOptions {
    /// The format; `None`: recognise it.
    pub format: Option<TraceFormat>,
    /// Bytes that one number stands for in `oracle-general` and `pages`: a multiple of 512. `None`: a sector and 4 KiB.
    pub unit: Option<u32>,
    /// Requests a second of a trace without times.
    pub rate: u64,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            format: None,
            unit: None,
            rate: DEFAULT_RATE,
        }
    }
}

/// Reads a trace.
///
/// # Errors
/// If the file cannot be read, its format is not known, or something in it is impossible.
pub fn read(path: &Path, options: &ReadOptions) -> Result<Trace, ReadError> {
    let file = || path.display().to_string();
    let bytes = fs::read(path).map_err(|error| ReadError::Unreadable { file: file(), error })?;
    parse(&bytes, options).map_err(|fault| ReadError::Bad(BadTrace { file: file(), fault }))
}

fn parse(bytes: &[u8], options: &ReadOptions) -> Result<Trace, Fault> {
    let format = options.format.or_else(|| TraceFormat::of(bytes));
    let Some(format) = format else {
        return Err(unknown(bytes));
    };
    let mut trace = Trace::default();
    match format {
        TraceFormat::UblkBpf => recorded::read(bytes, &mut trace)?,
        TraceFormat::Csv => csv::read(text::whole(bytes)?, &mut trace)?,
        TraceFormat::Blkparse => blkparse::read(text::whole(bytes)?, &mut trace)?,
        TraceFormat::Fio => fio::read(text::whole(bytes)?, &mut trace)?,
        TraceFormat::OracleGeneral => oracle::read(bytes, options.unit, &mut trace)?,
        TraceFormat::Vscsi => vscsi::read(bytes, &mut trace)?,
        TraceFormat::Records => records::read(bytes, &mut trace)?,
        TraceFormat::Pages => pages::read(bytes, options.unit, &mut trace)?,
    }
    if trace.requests().is_empty() {
        return Err(Fault::file("at least one request", "none"));
    }
    if format.has_times() && trace.requests().iter().any(|request| request.time_ns > 0) {
        trace.set_times();
    } else {
        trace.set_rate(options.rate);
    }
    Ok(trace)
}

/// What is wrong with a file of no known format.
fn unknown(bytes: &[u8]) -> Fault {
    const COMPRESSED: [(&[u8], &str, &str); 4] = [
        (b"\xfd7zXZ\0", "xz", "xz -dk"),
        (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dk"),
        (b"\x1f\x8b", "gzip", "gzip -dk"),
        (b"BZh", "bzip2", "bzip2 -dk"),
    ];
    for (magic, name, command) in COMPRESSED {
        if bytes.starts_with(magic) {
            let found = format!("one compressed with {name}: unpack it with `{command}`");
            return Fault::file("an uncompressed trace", found);
        }
    }
    let found = match text::beginning(bytes) {
        _ if bytes.is_empty() => "an empty file".to_owned(),
        Some(text) => format!("text that starts with {}", fault::quoted(text::first_line(text))),
        None => "something else: name its format with --format if it is one of them".to_owned(),
    };
    let wanted = "a trace (of ublk-bpf, CSV with column names, blkparse, fio iolog, oracleGeneral, vscsi)";
    Fault::file(wanted, found)
}
