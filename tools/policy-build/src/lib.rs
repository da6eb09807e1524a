//! Builds a policy's crate into a BPF object, for `cargo xtask build-ebpf` and `ublk-bpf policy check`.
//!
//! `core` is compiled with it (`-Z build-std`), which a stable compiler does when `RUSTC_BOOTSTRAP` asks for it.

mod hints;
mod tools;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

pub use hints::hints;
pub use tools::{MissingTool, Tools};

/// What BPF objects are compiled for.
pub const TARGET: &str = "bpfel-unknown-none";
/// The compiler's flags for BPF objects, the classifier's and users' policies alike: type information for the kernel and
/// bpftool, and the instruction set with 32-bit operations, which every kernel that the project runs on has.
const FLAGS: [&str; 6] = ["-C", "debuginfo=2", "-C", "link-arg=--btf", "-C", "target-cpu=v3"];
/// What `bpf` is in this workspace's own manifest, said for crates outside it.
const PROFILE: [&str; 4] = [
    "profile.bpf.inherits='release'",
    "profile.bpf.debug=2",
    "profile.bpf.lto=true",
    "profile.bpf.panic='abort'",
];
/// How much of what cargo says is looked at for hints.
const LOOKED_AT: usize = 1 << 20;

/// Why a crate has no object.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// There is no such crate.
    #[error("there is no {}: want the folder of a policy's Cargo.toml", .0.display())]
    NoManifest(PathBuf),
    /// A program could not be started, or its output not be read.
    #[error("cannot run cargo: {0}: is Rust installed, and cargo on the PATH?")]
    Cargo(#[from] io::Error),
    /// Cargo failed, and has said why.
    #[error("the crate {} does not build{}", folder.display(), in_one_line(hints))]
    Failed {
        /// Its folder.
        folder: PathBuf,
        /// What to do, for the faults that are known.
        hints: Vec<&'static str>,
    },
    /// It builds, and has no program.
    #[error("the crate {} has no program: a policy is a src/main.rs with `policy!`", .0.display())]
    NoProgram(PathBuf),
}

fn in_one_line(hints: &[&str]) -> String {
    hints.iter().map(|hint| format!("; {hint}")).collect()
}

/// A line of cargo's messages, as far as it concerns programs.
#[derive(serde::Deserialize)]
struct CargoMessage {
    executable: Option<PathBuf>,
}

/// Makes a cargo build programs for BPF with these tools.
pub fn prepare(cargo: &mut Command, tools: &Tools) {
    cargo.args(["build", "--profile", "bpf", "--bins", "--target", TARGET]);
    cargo.args(["-Z", "build-std=core"]);
    // In place of all other flags that the environment or a configuration has.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &tools.linker);
    cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTC", &tools.rustc);
}

/// Builds the policy crate in `folder` with this cargo, in its own target folder or in `target`, and gives its programs,
/// which are BPF objects. Cargo's own words go to standard error.
///
/// # Errors
/// If there is no crate, it does not build, or it has no program.
pub fn build(
    mut cargo: Command,
    folder: &Path,
    tools: &Tools,
    target: Option<&Path>,
) -> Result<Vec<PathBuf>, BuildError> {
    let manifest = folder.join("Cargo.toml");
    let manifest = manifest
        .canonicalize()
        .map_err(|_| BuildError::NoManifest(manifest))?;
    prepare(&mut cargo, tools);
    cargo.arg("--manifest-path").arg(manifest);
    for setting in PROFILE {
        cargo.args(["--config", setting]);
    }
    if let Some(target) = target {
        cargo.arg("--target-dir").arg(target);
    }
    cargo.arg("--message-format=json-render-diagnostics");
    let (status, messages, said) = run(&mut cargo)?;
    if !status.success() {
        return Err(BuildError::Failed {
            folder: folder.to_owned(),
            hints: hints(&said),
        });
    }
    let programs: Vec<PathBuf> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<CargoMessage>(line).ok()?.executable)
        .collect();
    match programs.is_empty() {
        true => Err(BuildError::NoProgram(folder.to_owned())),
        false => Ok(programs),
    }
}

/// Runs a command to its end. What it says on standard error goes to ours, and is returned with its standard output.
fn run(command: &mut Command) -> io::Result<(ExitStatus, String, String)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let said = passed_on(&mut child);
    let output = child.wait_with_output()?;
    let said = said.join().unwrap_or_default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status, text(&output.stdout), text(&said)))
}

/// Passes a child's standard error on in a thread, and keeps its beginning.
fn passed_on(child: &mut Child) -> std::thread::JoinHandle<Vec<u8>> {
    let from = child.stderr.take();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let Some(mut from) = from else {
            return kept;
        };
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let part = &buffer[..length];
            // Where standard error is closed, there is nowhere to say so.
            let _ = io::stderr().write_all(part);
            kept.extend_from_slice(&part[..length.min(LOOKED_AT - kept.len())]);
        }
        kept
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_says_is_kept() {
        let mut loud = Command::new("sh");
        loud.args(["-c", "echo out; echo said >&2; exit 3"]);
        let (status, out, said) = run(&mut loud).expect("it runs");
        assert_eq!(
            (status.code(), out.as_str(), said.as_str()),
            (Some(3), "out\n", "said\n")
        );
    }

    #[test]
    fn a_folder_without_a_crate_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let tools = Tools {
            linker: "none".into(),
            rustc: "none".into(),
        };
        let error = build(Command::new("cargo"), folder.path(), &tools, None).expect_err("no crate");
        assert!(
            error.to_string().contains("/Cargo.toml: want the folder"),
            "{error}"
        );
    }

    #[test]
    fn a_failure_is_one_line_with_what_to_do() {
        let failed = BuildError::Failed {
            folder: "/srv/a".into(),
            hints: vec!["do this", "and that"],
        };
        assert_eq!(
            failed.to_string(),
            "the crate /srv/a does not build; do this; and that"
        );
    }
}
