//! `ublk-bpf trace`, recording beside a load.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use crate::{Device, run};

/// How many requests a recorder may not have seen, by its last line: those for which the kernel did not run its program,
/// because it already ran on their CPU.
#[must_use]
pub fn not_seen(last_line: &str) -> u64 {
    let Some((_, rest)) = last_line.split_once("up to ") else {
        return 0;
    };
    let number = rest.split(' ').next().and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("no number in {last_line:?}"))
}

/// `ublk-bpf trace` in the background.
#[derive(Debug)]
pub struct Recorder {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Recorder {
    /// Starts it, to write this file, and waits until the next request will be recorded.
    pub fn start(device: &Device, file: &str, more: &[&str]) -> Self {
        let mut child = Command::new("ublk-bpf")
            .args(["trace", &device.id(), "--record", file])
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .expect("ublk-bpf starts");
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        output.read_line(&mut line).expect("it says that it records");
        assert!(line.starts_with("recording the requests of ublkb"), "{line}");
        Self { child, output }
    }

    /// Sends it this signal.
    pub fn signal(&self, signal: &str) {
        run("kill", &[signal, &self.child.id().to_string()]);
    }

    /// Waits for its end, and returns its output.
    #[must_use]
    pub fn end(mut self) -> (ExitStatus, String) {
        let mut said = String::new();
        self.output.read_to_string(&mut said).expect("its last line");
        (self.child.wait().expect("it ends"), said)
    }

    /// Ends it with Ctrl-C.
    pub fn interrupt(self) -> String {
        self.signal("-INT");
        let (status, said) = self.end();
        assert!(status.success(), "{status}: {said}");
        said
    }
}
