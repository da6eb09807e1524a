//! Output of jobs that run at the same time: each test program's comes out in one piece.

use vm::{Inherit, Sink as _};

/// What cargo, and we for the guest, print before a test program's output.
const HEADERS: [&[u8]; 2] = [b"     Running", b"   Doc-tests"];

/// One job's output, held back until a test program has ended.
pub(super) struct Sections {
    live: bool,
    held: Vec<u8>,
}

impl Sections {
    /// With `live`, where no other job prints, nothing is held back.
    pub(super) fn new(live: bool) -> Self {
        Self {
            live,
            held: Vec::new(),
        }
    }

    /// Takes what was printed.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        let end = if self.live {
            self.held.len()
        } else {
            last_header(&self.held)
        };
        self.print(end);
    }

    fn print(&mut self, end: usize) {
        let whole: Vec<u8> = self.held.drain(..end).collect();
        if !whole.is_empty() {
            // One write, under the lock of standard output.
            Inherit.out(&whole);
        }
    }
}

impl Drop for Sections {
    fn drop(&mut self) {
        self.print(self.held.len());
    }
}

/// Where the last line that is a header begins; 0 if there is none.
fn last_header(text: &[u8]) -> usize {
    let mut start = text.len();
    for line in text.split_inclusive(|&byte| byte == b'\n').rev() {
        start -= line.len();
        // In between, colours may stand.
        if HEADERS
            .iter()
            .any(|header| line.windows(header.len()).any(|part| part == *header))
        {
            return start;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_before_the_last_header_is_whole() {
        for (whole, held) in [
            ("", "   Compiling x\n"),
            ("", "     Running one\ntest a ... ok\ntest b ... "),
            ("     Running one\ntest a ... ok\n\n", "     Running two"),
            ("\u{1b}[32m     Running\u{1b}[0m one\nok\n", "   Doc-tests x\n"),
            (
                "     Running one\n     Running two\n",
                "     Running three\nno header: Running\n",
            ),
        ] {
            assert_eq!(
                last_header(format!("{whole}{held}").as_bytes()),
                whole.len(),
                "{whole}|{held}"
            );
        }
    }
}
