//! Writes a trace.

use std::io::{self, BufWriter, Seek, SeekFrom, Write};

use super::format::encode_header;
use super::{End, Header, TracedRequest};

/// Writes a trace, which is valid at any time: until [`Writer::finish`], its header says that it has not ended.
#[derive(Debug)]
pub struct Writer<W: Write + Seek> {
    output: BufWriter<W>,
    header: Header,
    recorded: u64,
}

impl<W: Write + Seek> Writer<W> {
    /// Starts a trace at the output's start, which should be empty. The header's `end` is not used.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn new(output: W, header: Header) -> io::Result<Self> {
        let mut output = BufWriter::new(output);
        let header = Header { end: None, ..header };
        output.write_all(&encode_header(&header))?;
        Ok(Self {
            output,
            header,
            recorded: 0,
        })
    }

    /// Adds a request. Requests are written some at a time, see [`Writer::flush`].
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn push(&mut self, request: &TracedRequest) -> io::Result<()> {
        self.output.write_all(&request.to_bytes())?;
        self.recorded += 1;
        Ok(())
    }

    /// Writes what was added so far.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }

    /// Requests added so far.
    #[must_use]
    pub fn recorded(&self) -> u64 {
        self.recorded
    }

    /// Ends the trace: writes the rest, and how many requests it has and how many were dropped into its header.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn finish(mut self, dropped: u64) -> io::Result<W> {
        self.header.end = Some(End {
            recorded: self.recorded,
            dropped,
        });
        self.output.seek(SeekFrom::Start(0))?;
        self.output.write_all(&encode_header(&self.header))?;
        self.output.into_inner().map_err(io::IntoInnerError::into_error)
    }
}
