//! What the command-line tests share: the built `ublk-bpf`, run as a user runs it.
#![expect(clippy::missing_panics_doc, reason = "a test helper reports by panicking")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit status.
    pub status: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

/// Runs `ublk-bpf` with these arguments in `folder`.
pub fn run_in<A: AsRef<OsStr> + std::fmt::Debug>(folder: &Path, args: &[A]) -> Outcome {
    let mut command = Command::new(binary());
    command
        .args(args)
        .current_dir(folder)
        .env_remove("RUST_LOG")
        .env("NO_COLOR", "1");
    outcome(&mut command)
}

fn outcome(command: &mut Command) -> Outcome {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let status = output.status.code();
    Outcome {
        status: status.unwrap_or_else(|| panic!("{command:?} was ended by a signal: {output:?}")),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The same in the tests' own working directory.
pub fn run(args: &[&str]) -> Outcome {
    run_in(Path::new("."), args)
}

/// Runs it with standard output closed at the other end, or going to a device.
pub fn run_into(stdout: impl Into<Stdio>, args: &[&str]) -> Outcome {
    outcome(Command::new(binary()).args(args).stdout(stdout))
}

/// The binary under test: what `UBLK_BPF_BINARY` names, or else the one beside the tests', built first, since cargo does
/// not build another package's binaries for a test.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(named) = std::env::var_os("UBLK_BPF_BINARY") {
            return named.into();
        }
        let test = std::env::current_exe().unwrap_or_else(|error| panic!("no path of this test: {error}"));
        let profile = test
            .ancestors()
            .nth(2)
            .unwrap_or_else(|| panic!("{} is not in a target folder", test.display()));
        // At run time: the folder of the cargo that compiled this test may be gone.
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--package", "ublk-bpf", "--bin", "ublk-bpf"]);
        if profile.ends_with("release") {
            build.arg("--release");
        }
        let status = build
            .status()
            .unwrap_or_else(|error| panic!("cannot run cargo: {error}"));
        assert!(status.success(), "ublk-bpf does not build");
        profile.join("ublk-bpf")
    })
}

/// Checks that the command fails with this status and exactly this line.
pub fn refused(folder: &Path, args: &[&str], status: i32, line: &str) {
    let outcome = run_in(folder, args);
    assert_eq!(outcome.stderr, format!("ublk-bpf: {line}\n"), "{args:?}");
    assert_eq!(
        (outcome.status, outcome.stdout.as_str()),
        (status, ""),
        "{args:?}"
    );
}

/// Checks that the command refuses its command line with exactly this line.
pub fn wrong_usage(args: &[&str], line: &str) {
    refused(Path::new("."), args, 2, line);
}
