//! Reads a trace.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use super::format::{HEADER_BYTES, RECORD_BYTES, decode_header};
use super::{Header, TraceError, TracedRequest};

/// Reads a trace from its start: an iterator over its requests, which ends at the first error.
///
/// A trace whose recording did not [end](Header::end) has all whole records of the file; the rest of one that was cut
/// is ignored.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    header: Header,
    /// Records returned so far.
    read: u64,
    ended: bool,
}

impl Reader<BufReader<File>> {
    /// Opens the trace in a file.
    ///
    /// # Errors
    /// If it cannot be opened or read, or does not start with a valid header.
    pub fn open(path: &Path) -> Result<Self, TraceError> {
        Self::new(BufReader::new(File::open(path)?))
    }
}

impl<R: Read> Reader<R> {
    /// Reads the header. The input should be buffered.
    ///
    /// # Errors
    /// If it cannot be read, or is not valid.
    pub fn new(mut input: R) -> Result<Self, TraceError> {
        let mut bytes = [0; HEADER_BYTES];
        if fill(&mut input, &mut bytes)? < HEADER_BYTES {
            return Err(TraceError::NotATrace);
        }
        Ok(Self {
            input,
            header: decode_header(&bytes)?,
            read: 0,
            ended: false,
        })
    }

    /// The trace's header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    fn step(&mut self) -> Result<Option<TracedRequest>, TraceError> {
        let mut bytes = [0; RECORD_BYTES];
        let found = fill(&mut self.input, &mut bytes)?;
        if let Some(end) = self.header.end {
            let length = |found: String| TraceError::Length {
                expected: end.recorded,
                found,
            };
            if self.read == end.recorded && found > 0 {
                return Err(length("more data".to_owned()));
            }
            if self.read < end.recorded && found < RECORD_BYTES {
                return Err(length(format!("only {}", self.read)));
            }
        }
        if found < RECORD_BYTES {
            return Ok(None);
        }
        self.read += 1;
        let request = TracedRequest::from_bytes(&bytes, self.header.device_sectors);
        let number = self.read;
        request
            .map(Some)
            .map_err(|what| TraceError::Record { number, what })
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<TracedRequest, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.step().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// Reads until the bytes are full or the input ends, and returns how many were read.
fn fill(input: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match input.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
