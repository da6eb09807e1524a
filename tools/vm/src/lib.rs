//! A guest with a Linux >= 7.0 kernel, under qemu: boots it, runs one command in it, and gives back how that ended.
//!
//! The guest is killed when its kernel says that it is dead, when nothing at all comes from it for a while, and when the
//! whole takes too long. A boot that fails before the command has started is tried once more: under emulation
//! one in some twenty dies early.

mod archive;
mod config;
mod initramfs;
mod machine;
mod modules;
mod programs;
mod system;
mod watch;

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

pub use config::{Config, Disk};
use host::setup::kernel::Kernel;
use host::{command, progress};
use initramfs::Additions;
use machine::{Machine, Received, Source};
use watch::{Channel, Console};

/// Variables of ours that the guest's command gets: what is printed, and how long and at which seed tests run.
const VARIABLES: [&str; 5] = [
    "RUST_LOG",
    "RUST_BACKTRACE",
    "UBLK_BPF_SEED",
    "UBLK_BPF_SWAPS",
    "UBLK_BPF_ROUNDS",
];
/// Where guests have the server.
const SERVER: &str = "/usr/local/bin/ublk-bpf";
/// The guest was killed for taking too long.
const EXIT_HUNG: u8 = 124;
/// The guest's kernel died.
const EXIT_DIED: u8 = 125;
/// Attempts to boot before the command has started.
const BOOT_ATTEMPTS: u32 = 2;
/// Time for what is still on its way after the command's end, or after the kernel's death.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// How a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command's exit status, as a shell gives it.
    Exited(u8),
    /// The kernel died, or the machine ended by itself; why.
    Died(String),
    /// Nothing came for too long, or the whole took too long; which.
    Hung(String),
}

/// Receives the command's output as it comes, and answers its questions.
pub trait Sink {
    /// Takes standard output.
    fn out(&mut self, bytes: &[u8]);
    /// Takes standard error.
    fn err(&mut self, bytes: &[u8]);

    /// What the command shall do next: it writes the line `next` to /dev/hvc2 and reads a line from there. Nothing ends it.
    fn next(&mut self) -> Option<String> {
        None
    }
}

/// Passes the command's output on as our own.
pub struct Inherit;

impl Sink for Inherit {
    fn out(&mut self, bytes: &[u8]) {
        let mut out = std::io::stdout().lock();
        // A reader that has gone away ends the output, not the guest.
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    }

    fn err(&mut self, bytes: &[u8]) {
        let _ = std::io::stderr().lock().write_all(bytes);
    }
}

/// Boots a guest and runs `argv` in it.
pub fn run(config: &Config, kernel: &Kernel, argv: &[String], sink: &mut dyn Sink) -> Result<Outcome> {
    let marker = marker();
    let additions = Additions {
        files: config.files.clone(),
        built: config.built.clone(),
        programs: config.programs.clone(),
        system: config.system.clone(),
        modules: if config.disks.is_empty() {
            Vec::new()
        } else {
            vec!["virtio_blk".to_owned()]
        },
        command: script(argv),
        marker: marker.clone(),
    };
    for attempt in 1.. {
        let folder = tempfile::Builder::new().prefix("ublk-bpf-guest-").tempdir()?;
        initramfs::write(&folder.path().join("initramfs"), kernel, &additions)?;
        for (n, disk) in config.disks.iter().enumerate() {
            sparse_file(&folder.path().join(format!("disk{n}")), disk.bytes)?;
        }
        let machine = Machine::start(config, kernel, folder.path())?;
        let mut session = Session::new(config, &marker, sink, machine, folder);
        let outcome = session.drive()?;
        if !session.command_started && attempt < BOOT_ATTEMPTS {
            progress::note(&format!(
                "the guest did not boot ({}); trying once more",
                describe(&outcome)
            ));
            continue;
        }
        if !matches!(outcome, Outcome::Exited(_)) {
            session.show_console();
        }
        return Ok(outcome);
    }
    bail!("the guest did not boot")
}

/// The server as it is shipped, built, and where guests have it.
///
/// # Errors
/// If it does not build.
pub fn server() -> Result<(PathBuf, String)> {
    Ok((host::build::server()?, SERVER.to_owned()))
}

/// The outcome in words.
pub fn describe(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Exited(status) => format!("exit status {status}"),
        Outcome::Died(why) => format!("the guest died: {why}"),
        Outcome::Hung(why) => format!("the guest was killed: {why}"),
    }
}

/// What a program exits with after a guest ended so; of a guest that did not end well it says why.
pub fn exit_code(outcome: &Outcome) -> ExitCode {
    let code = match outcome {
        Outcome::Exited(status) => return ExitCode::from(*status),
        Outcome::Died(_) => EXIT_DIED,
        Outcome::Hung(_) => EXIT_HUNG,
    };
    eprintln!("error: {}", describe(outcome));
    ExitCode::from(code)
}

/// One boot, from qemu's start to its end.
struct Session<'a> {
    config: &'a Config,
    marker: &'a str,
    sink: &'a mut dyn Sink,
    machine: Machine,
    /// The files qemu reads at start; gone as soon as the guest runs, so that nothing is left however we end.
    folder: Option<tempfile::TempDir>,
    console: Console,
    out: Channel,
    err: Channel,
    /// What has come of a control line that is not whole.
    control: String,
    command_started: bool,
    /// The status that the guest's process 1 reported.
    exit: Option<u8>,
    started: Instant,
    heard: Instant,
}

impl<'a> Session<'a> {
    fn new(
        config: &'a Config,
        marker: &'a str,
        sink: &'a mut dyn Sink,
        machine: Machine,
        folder: tempfile::TempDir,
    ) -> Self {
        let now = Instant::now();
        Self {
            config,
            marker,
            sink,
            machine,
            folder: Some(folder),
            console: Console::default(),
            out: Channel::new(marker),
            err: Channel::new(marker),
            control: String::new(),
            command_started: false,
            exit: None,
            started: now,
            heard: now,
        }
    }

    fn drive(&mut self) -> Result<Outcome> {
        loop {
            match self.machine.receive(Duration::from_millis(100))? {
                Received::Bytes(source, bytes) => self.take(source, &bytes)?,
                Received::Nothing => {}
                Received::Closed => return self.closed(),
            }
            if let Some(status) = self.exit {
                self.drain();
                return Ok(self.died().unwrap_or(Outcome::Exited(status)));
            }
            if self.console.fatal().is_some() {
                self.drain();
            }
            if let Some(outcome) = self.died().or_else(|| self.overdue()) {
                self.flush();
                return Ok(outcome);
            }
        }
    }

    fn take(&mut self, source: Source, bytes: &[u8]) -> Result<()> {
        self.heard = Instant::now();
        match source {
            Source::Console => {
                self.console.feed(bytes);
                if self.config.console {
                    self.sink.err(bytes);
                }
            }
            Source::Out => self.sink.out(&self.out.feed(bytes)),
            Source::Err => self.sink.err(&self.err.feed(bytes)),
            Source::Control => {
                self.control.push_str(&String::from_utf8_lossy(bytes));
                while let Some((line, rest)) = self.control.split_once('\n') {
                    let (line, rest) = (line.to_owned(), rest.to_owned());
                    self.control = rest;
                    self.obey(&line)?;
                }
            }
        }
        Ok(())
    }

    /// Does what a control line asks for.
    fn obey(&mut self, line: &str) -> Result<()> {
        if line == "ready" {
            self.command_started = true;
            // qemu has read the files, or holds them open.
            self.folder = None;
        } else if line == "next" {
            let next = self.sink.next().unwrap_or_default();
            self.machine.tell(&next)?;
        } else if let Some(status) = line.strip_prefix("exit ") {
            let status = status.parse();
            self.exit = Some(status.with_context(|| format!("the guest reported {line:?}"))?);
        }
        Ok(())
    }

    /// Receives what is still on its way.
    fn drain(&mut self) {
        let deadline = Instant::now() + DRAIN_LIMIT;
        let arrived = |session: &Self| {
            session.out.ended() && session.err.ended() && session.console.has(session.marker)
        };
        while !arrived(self) && Instant::now() < deadline {
            match self.machine.receive(Duration::from_millis(100)) {
                Ok(Received::Bytes(source, bytes)) if self.take(source, &bytes).is_ok() => {}
                Ok(Received::Nothing) => {}
                Ok(_) | Err(_) => break,
            }
        }
        self.flush();
    }

    fn flush(&mut self) {
        self.sink.out(&self.out.flush());
        self.sink.err(&self.err.flush());
    }

    fn died(&self) -> Option<Outcome> {
        self.console.fatal().map(|line| Outcome::Died(line.to_owned()))
    }

    fn overdue(&self) -> Option<Outcome> {
        let limit = self.config.boot_limit();
        if !self.command_started && self.started.elapsed() > limit {
            return Some(Outcome::Hung(format!("not booted after {} s", limit.as_secs())));
        }
        if let Some(limit) = self
            .config
            .timeout
            .filter(|limit| self.started.elapsed() > *limit)
        {
            return Some(Outcome::Hung(format!("not done after {} s", limit.as_secs())));
        }
        let limit = self
            .config
            .silence
            .filter(|limit| self.heard.elapsed() > *limit)?;
        Some(Outcome::Hung(format!(
            "nothing came from it for {} s",
            limit.as_secs()
        )))
    }

    /// qemu has ended, and not because we asked it to.
    fn closed(&mut self) -> Result<Outcome> {
        self.flush();
        let (status, said) = self.machine.ended()?;
        if !status.success() {
            bail!("qemu failed: {status}: {said}");
        }
        Ok(self
            .died()
            .unwrap_or_else(|| Outcome::Died("the machine was switched off".to_owned())))
    }

    fn show_console(&self) {
        eprintln!("---- the guest's console, last lines ----");
        for line in self.console.tail() {
            eprintln!("{line}");
        }
        eprintln!("-----------------------------------------");
    }
}

/// A word that no program prints by chance.
fn marker() -> String {
    use std::hash::{BuildHasher as _, RandomState};
    format!("\u{4}end-{:016x}", RandomState::new().hash_one(0))
}

/// The guest's command as a shell script, with our variables.
fn script(argv: &[String]) -> String {
    let mut script = String::new();
    for name in VARIABLES {
        if let Some(value) = std::env::var_os(name) {
            script.push_str(&format!("export {name}={}\n", command::quote(&value)));
        }
    }
    let words: Vec<String> = argv.iter().map(|word| command::quote(word.as_ref())).collect();
    script.push_str(&format!("exec {} \"$@\"\n", words.join(" ")));
    script
}

fn sparse_file(path: &Path, bytes: u64) -> Result<()> {
    let context = || format!("cannot make the disk {}", path.display());
    File::create(path)
        .with_context(context)?
        .set_len(bytes)
        .with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_survives_the_shell() {
        let argv = ["printf", "%s|", "a b", "$x", "it's"].map(str::to_owned);
        let output = std::process::Command::new("sh")
            .args(["-c", &script(&argv)])
            .output()
            .expect("sh runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a b|$x|it's|");
    }

    #[test]
    fn a_marker_is_never_the_same() {
        assert_ne!(marker(), marker());
    }
}
