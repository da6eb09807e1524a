//! A device of the demo's, and how commands are shown.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use host::command;

/// The device under demonstration; dropped, it is stopped.
pub(super) struct Device {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) path: PathBuf,
    stopped: bool,
}

impl Device {
    /// Serves a device on this file, with these options more.
    pub(super) fn start(backing: &Path, options: &[&str]) -> Result<Self> {
        let mut run = Command::new("ublk-bpf");
        run.arg("run")
            .arg("--backing")
            .arg(backing)
            .args(options)
            .arg("--daemon");
        let said = shown(&mut run)?;
        let path = said.split_whitespace().next().unwrap_or_default();
        let id = path
            .strip_prefix("/dev/ublkb")
            .with_context(|| format!("ublk-bpf named no device, but said: {said}"))?;
        Ok(Self {
            id: id.to_owned(),
            name: format!("ublkb{id}"),
            path: path.into(),
            stopped: false,
        })
    }

    /// Ends it, and looks whether it is gone.
    pub(super) fn stop(mut self) -> Result<()> {
        self.stopped = true;
        shown(Command::new("ublk-bpf").args(["stop", &self.id]))?;
        ensure!(
            !self.path.exists(),
            "{} is still there after the stop",
            self.path.display()
        );
        let pins = Path::new("/sys/fs/bpf/ublk-bpf").join(&self.name);
        ensure!(!pins.exists(), "{} is still there after the stop", pins.display());
        println!("{} and its pins are gone", self.path.display());
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if !self.stopped {
            // On the way out of an error, which is what will be told.
            let _ = command::output(Command::new("ublk-bpf").args(["stop", &self.id]));
        }
    }
}

/// The demo's steps, numbered, each with the time that it took.
pub(super) struct Steps {
    of: usize,
    done: usize,
    began: Instant,
}

impl Steps {
    /// So many are to come.
    pub(super) fn new(of: usize) -> Self {
        Self {
            of,
            done: 0,
            began: Instant::now(),
        }
    }

    /// Ends one, and begins the next.
    pub(super) fn next(&mut self, text: &str) {
        self.end();
        self.done += 1;
        debug_assert!(self.done <= self.of, "there are {} steps", self.of);
        println!("\n== Step {} of {}: {text}\n", self.done, self.of);
        self.began = Instant::now();
    }

    /// Ends the last one.
    pub(super) fn end(&self) {
        if self.done > 0 {
            println!("({:.1} s)", self.began.elapsed().as_secs_f32());
        }
    }
}

/// Runs a program, shows it and what it prints, and gives that back.
pub(super) fn shown(command: &mut Command) -> Result<String> {
    println!("$ {}", command::line(command));
    std::io::stdout().flush()?;
    let said = command::output(command)?;
    print!("{said}");
    Ok(said)
}
