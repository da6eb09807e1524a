//! A user's policy: built for this machine, and run as a program that replays.

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;

use ublk_bpf_policy::native::{Message, REPLAY_ARGUMENT};

use super::{Progress, ReplayJob, Row};

/// A policy crate, built.
#[derive(Clone, Debug)]
pub struct PolicyCrate {
    name: String,
    program: PathBuf,
}

/// Why a policy crate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyCrateError {
    /// A program could not be started, or its output not be read.
    #[error("cannot run `{program}`: {error}")]
    Run {
        /// The program.
        program: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// There is no such crate.
    #[error("there is no {0}: --policy-crate takes the folder of a policy's Cargo.toml")]
    NoManifest(String),
    /// Cargo failed, and has said why.
    #[error("`cargo build` of the policy crate {0} failed")]
    Build(String),
    /// Not one program.
    #[error("the policy crate {folder} has {found} programs, not one")]
    Programs {
        /// Its folder.
        folder: String,
        /// How many.
        found: usize,
    },
    /// The program does not replay.
    #[error(
        "the policy {name} does not replay: {what}: build it with the SDK of this ublk-bpf, and with `policy!`"
    )]
    Protocol {
        /// Its name.
        name: String,
        /// What it did.
        what: String,
    },
    /// It said why it cannot do the job.
    #[error("{0}")]
    Job(String),
}

/// A line of cargo's messages, as far as it concerns programs.
#[derive(serde::Deserialize)]
struct CargoMessage {
    executable: Option<PathBuf>,
}

impl PolicyCrate {
    /// Builds the crate in `folder` for this machine, with optimisation. Cargo prints its errors on standard error.
    ///
    /// # Errors
    /// If there is none, it does not build, or it has not one program.
    pub fn build(folder: &Path) -> Result<Self, PolicyCrateError> {
        let manifest = folder.join("Cargo.toml");
        if !manifest.is_file() {
            return Err(PolicyCrateError::NoManifest(manifest.display().to_string()));
        }
        let target = host()?;
        let mut cargo = Command::new("cargo");
        // In its folder, for the sake of its own settings; its target is named, for they may name BPF.
        cargo
            .current_dir(folder)
            .args(["build", "--quiet", "--release", "--bins", "--message-format"]);
        cargo.args(["json-render-diagnostics", "--target", &target]);
        let output = cargo
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| cannot_run("cargo", error))?;
        if !output.status.success() {
            return Err(PolicyCrateError::Build(folder.display().to_string()));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let messages = text
            .lines()
            .filter_map(|line| serde_json::from_str::<CargoMessage>(line).ok());
        let mut programs: Vec<PathBuf> = messages.filter_map(|message| message.executable).collect();
        let (Some(program), true) = (programs.pop(), programs.is_empty()) else {
            let (folder, found) = (folder.display().to_string(), programs.len());
            return Err(PolicyCrateError::Programs { folder, found });
        };
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Ok(Self { name, program })
    }

    /// Does the job with this policy alone.
    ///
    /// # Errors
    /// If a trace cannot be read, or the program fails.
    pub fn run(&self, job: &ReplayJob, progress: &Progress) -> Result<Vec<Row>, PolicyCrateError> {
        let mut child = Command::new(&self.program)
            .arg(REPLAY_ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| cannot_run(&self.name, error))?;
        let rows = self.talk(&mut child, job, progress);
        // It may wait for a reader of its messages.
        drop(child.stdout.take());
        let status = child.wait().map_err(|error| cannot_run(&self.name, error))?;
        rows?.ok_or_else(|| self.unexpected(format!("it ended without results, with {status}")))
    }

    /// Passes the job on and listens. `None`: the program said nothing more.
    fn talk(
        &self,
        child: &mut Child,
        job: &ReplayJob,
        progress: &Progress,
    ) -> Result<Option<Vec<Row>>, PolicyCrateError> {
        let fail = |error| cannot_run(&self.name, error);
        if let Some(mut input) = child.stdin.take() {
            let text = serde_json::to_vec(job).map_err(|error| fail(error.into()))?;
            input.write_all(&text).map_err(fail)?;
        }
        let Some(output) = child.stdout.take() else {
            return Ok(None);
        };
        let (done_before, known_before) = (&progress.done, &progress.known);
        let before = (
            done_before.load(Ordering::Relaxed),
            known_before.load(Ordering::Relaxed),
        );
        for line in BufReader::new(output).lines() {
            let line = line.map_err(fail)?;
            let message = serde_json::from_str(&line).map_err(|error| self.unexpected(error.to_string()))?;
            match message {
                Message::Progress { done, known } => {
                    progress.done.store(before.0 + done, Ordering::Relaxed);
                    progress.known.store(before.1 + known, Ordering::Relaxed);
                }
                Message::Rows(mut rows) => {
                    rows.iter_mut().for_each(|row| row.policy.clone_from(&self.name));
                    return Ok(Some(rows));
                }
                Message::Error(error) => return Err(PolicyCrateError::Job(error)),
            }
        }
        Ok(None)
    }

    fn unexpected(&self, what: String) -> PolicyCrateError {
        let name = self.name.clone();
        PolicyCrateError::Protocol { name, what }
    }
}

/// The target of this machine's programs.
fn host() -> Result<String, PolicyCrateError> {
    let mut rustc = Command::new("rustc");
    let output = rustc
        .args(["--print", "host-tuple"])
        .output()
        .map_err(|error| cannot_run("rustc", error))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn cannot_run(program: &str, error: io::Error) -> PolicyCrateError {
    let program = program.to_owned();
    PolicyCrateError::Run { program, error }
}
