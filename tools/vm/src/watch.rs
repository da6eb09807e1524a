//! Judges what comes from the guest, as pure functions of the bytes: when the kernel is dead, and where a channel ends.

use std::collections::VecDeque;

/// What the kernel prints when it is beyond help, or when waiting for it is in vain.
const FATAL: [&str; 8] = [
    "Kernel panic",
    "BUG: ",
    "Oops: ",
    "general protection fault",
    "soft lockup",
    "blocked for more than",
    "kernel BUG at",
    "Unable to mount root",
];
/// Lines of the console that are shown when the guest died.
const TAIL_LINES: usize = 60;
/// A line of the console longer than this is taken in pieces.
const LINE_LIMIT: usize = 4096;

/// The kernel's console: its last lines, and the first that says that the kernel is dead.
#[derive(Default)]
pub(crate) struct Console {
    lines: VecDeque<String>,
    unfinished: Vec<u8>,
    fatal: Option<String>,
}

impl Console {
    /// Takes what the console printed.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte != b'\n' {
                self.unfinished.push(byte);
            }
            if byte == b'\n' || self.unfinished.len() >= LINE_LIMIT {
                let line = String::from_utf8_lossy(&self.unfinished).trim_end().to_owned();
                self.unfinished.clear();
                self.line(line);
            }
        }
    }

    fn line(&mut self, line: String) {
        if self.fatal.is_none() && FATAL.iter().any(|words| says(&line, words)) {
            self.fatal = Some(line.clone());
        }
        self.lines.push_back(line);
        // What led to the death is worth more than what follows it.
        if self.lines.len() > TAIL_LINES && self.fatal.is_none() {
            self.lines.pop_front();
        }
    }

    /// The line that says that the kernel is dead.
    pub(crate) fn fatal(&self) -> Option<&str> {
        self.fatal.as_deref()
    }

    /// Whether `marker` was printed.
    pub(crate) fn has(&self, marker: &str) -> bool {
        self.lines
            .iter()
            .rev()
            .take(TAIL_LINES)
            .any(|line| line.contains(marker))
    }

    /// The last lines, up to some after the fatal one.
    pub(crate) fn tail(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().take(2 * TAIL_LINES).map(String::as_str)
    }
}

/// Whether `line` holds `words`, and not as the end of another word ("DEBUG: " is no "BUG: ").
fn says(line: &str, words: &str) -> bool {
    line.match_indices(words)
        .any(|(at, _)| !line[..at].ends_with(char::is_alphanumeric))
}

/// A channel of bytes that ends with a marker, wherever the marker is cut in pieces on its way.
pub(crate) struct Channel {
    marker: Vec<u8>,
    /// Received, and perhaps the beginning of the marker.
    held: Vec<u8>,
    ended: bool,
}

impl Channel {
    pub(crate) fn new(marker: &str) -> Self {
        Self {
            marker: marker.as_bytes().to_vec(),
            held: Vec::new(),
            ended: false,
        }
    }

    /// Takes what was received and gives back what is certainly not the marker.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.ended {
            return Vec::new();
        }
        self.held.extend_from_slice(bytes);
        if let Some(at) = self
            .held
            .windows(self.marker.len())
            .position(|window| window == self.marker)
        {
            self.ended = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let longest = self.held.len().min(self.marker.len() - 1);
        let kept = (0..=longest)
            .rev()
            .find(|&n| self.held.ends_with(&self.marker[..n]))
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        std::mem::replace(&mut self.held, rest)
    }

    /// Gives back what was held: no more will come.
    pub(crate) fn flush(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// Whether the marker came.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_gives_everything_before_its_marker_however_it_is_cut() {
        let text = b"one <e <en <end two\n<end>after";
        for size in 1..=text.len() {
            let mut channel = Channel::new("<end>");
            let got: Vec<u8> = text.chunks(size).flat_map(|piece| channel.feed(piece)).collect();
            assert_eq!(
                String::from_utf8_lossy(&got),
                "one <e <en <end two\n",
                "in pieces of {size}"
            );
            assert!(channel.ended());
        }
    }

    #[test]
    fn output_is_not_held_back() {
        let mut channel = Channel::new("<end>");
        assert_eq!(channel.feed(b"progress 1"), b"progress 1");
        assert_eq!(channel.feed(b"progress <"), b"progress ");
        assert_eq!(channel.feed(b"2"), b"<2");
        assert_eq!(channel.feed(b"<en"), b"");
        assert_eq!(channel.flush(), b"<en");
        assert!(!channel.ended());
    }

    #[test]
    fn deaths_of_the_kernel_are_recognised() {
        for line in [
            "[    1.5] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
            "[   12.0] BUG: kernel NULL pointer dereference, address: 0000000000000008",
            "[   12.0] Oops: 0000 [#1] PREEMPT SMP",
            "[   12.0] Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1]",
            "[   60.1] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [fio:231]",
            "[  242.6] INFO: task mkfs.ext4:99 blocked for more than 120 seconds.",
        ] {
            let mut console = Console::default();
            for piece in line.as_bytes().chunks(7) {
                console.feed(piece);
            }
            assert_eq!(console.fatal(), None, "the line is not finished");
            console.feed(b"\r\n");
            assert_eq!(console.fatal(), Some(line));
        }
    }

    #[test]
    fn ordinary_messages_kill_nothing() {
        let mut console = Console::default();
        console.feed(b"[    0.1] Linux version 7.3.4\r\n[    1.2] EXT4-fs (ublkb0): mounted filesystem\n");
        console.feed(b"[    1.3] I/O error, dev ublkb0, sector 8 op 0x0:(READ)\nDEBUG: nothing\n");
        assert_eq!(console.fatal(), None);
        assert!(console.has("mounted filesystem") && !console.has("panic"));
    }

    #[test]
    fn the_tail_is_bounded_and_keeps_what_led_to_the_death() {
        let mut console = Console::default();
        for n in 0..1000 {
            console.feed(format!("line {n}\n").as_bytes());
        }
        assert_eq!(console.tail().next(), Some("line 940"));
        console.feed(b"Kernel panic - not syncing\n");
        for n in 0..1000 {
            console.feed(format!("trace {n}\n").as_bytes());
        }
        let tail: Vec<&str> = console.tail().collect();
        assert_eq!(tail.first(), Some(&"line 940"));
        assert!(tail.contains(&"Kernel panic - not syncing") && tail.contains(&"trace 10"));
        assert!(tail.len() <= 2 * TAIL_LINES);
    }
}
