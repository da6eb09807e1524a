//! The server, and what it embeds: the classifier and the policies, compiled to BPF objects with BTF in
//! `target/ebpf/`.
//!
//! `core` is compiled with them (`-Z build-std`), which a stable compiler does when `RUSTC_BOOTSTRAP` asks for it. An
//! object is written only if it differs from the one that is there, so that what embeds it is not built again for nothing.

use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{Artifact, Message};
use ublk_bpf_policy_build::Tools;

use crate::setup::BpfTools;
use crate::{cache, command, progress, setup, workspace};

const PACKAGE: &str = "ublk-bpf-ebpf";
/// The folder below the checkout where everything for BPF is built.
const TARGET_FOLDER: &str = "target/ebpf-build";

/// Builds the objects that `ublk-bpf` embeds.
pub fn objects() -> Result<Vec<PathBuf>> {
    build_own(&tools()?)
}

/// Builds `ublk-bpf` as it is shipped, with the objects that it embeds, and gives its path.
pub fn server() -> Result<PathBuf> {
    objects()?;
    program("ublk-bpf", &["--release"])
}

/// Builds the workspace's own objects, and notes what sources they were built from.
fn build_own(tools: &Tools) -> Result<Vec<PathBuf>> {
    let root = workspace::root()?;
    // Before the build: what is edited meanwhile makes the objects old.
    let fingerprint = ublk_bpf_objects::fingerprint(root)
        .with_context(|| format!("cannot read {}", root.join(ublk_bpf_objects::SOURCES).display()))?;
    let objects = build(tools)?;
    write_changed(&ublk_bpf_objects::stamp(root), fingerprint.as_bytes())?;
    Ok(objects)
}

/// Builds the policy crate in this folder and gives its objects.
pub fn policy(folder: &Path) -> Result<Vec<PathBuf>> {
    let tools = tools()?;
    let target = workspace::root()?.join(TARGET_FOLDER);
    let made = ublk_bpf_policy_build::build(workspace::cargo()?, folder, &tools, Some(&target))?;
    install(made.iter().map(PathBuf::as_path))
}

/// What building for BPF needs, fetched if it is not there.
fn tools() -> Result<Tools> {
    let BpfTools { linker, rustc } = setup::bpf_tools()?;
    let rustc = rustc.program;
    Ok(Tools { linker, rustc })
}

/// Builds the workspace's own objects, and gives their paths.
fn build(tools: &Tools) -> Result<Vec<PathBuf>> {
    let mut cargo = workspace::cargo()?;
    ublk_bpf_policy_build::prepare(&mut cargo, tools);
    cargo.args(["--package", PACKAGE, "--target-dir"]);
    cargo.arg(workspace::root()?.join(TARGET_FOLDER));
    let made = programs("the BPF objects", &mut cargo)?;
    install(made.iter().map(|(_, path)| path.as_path()))
}

/// Builds the program of a package, with these options of `cargo build`, and gives its path.
///
/// # Errors
/// If it does not build, or the package has no program.
pub fn program(package: &str, options: &[&str]) -> Result<PathBuf> {
    let mut cargo = workspace::cargo()?;
    let made = programs(
        package,
        cargo
            .args(["build", "--package", package, "--bins"])
            .args(options),
    )?;
    let program = made.into_iter().next().map(|(_, path)| path);
    program.with_context(|| format!("`{}` made no program", command::line(&cargo)))
}

/// Runs a cargo that builds `what`, and gives every program that it made, fresh ones too, and what each was made of.
///
/// # Errors
/// If something does not build.
pub fn programs(what: &str, cargo: &mut Command) -> Result<Vec<(Artifact, PathBuf)>> {
    let mut running = cargo
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let said = running.stderr.take().context("cargo's errors are a pipe")?;
    let mut messages = Vec::new();
    let (read, progress) = thread::scope(|scope| {
        let progress = scope.spawn(|| show(what, said));
        let out = running.stdout.take();
        (out.map(|mut out| out.read_to_end(&mut messages)), progress.join())
    });
    read.transpose().context("cannot read what cargo says")?;
    let status = running.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("`{}` failed: {status}", command::line(cargo));
    }
    if let Ok((Some(step), packages)) = progress {
        step.done(&format!("built {what}: packages compiled: {packages}"));
    }
    let mut made = Vec::new();
    for message in Message::parse_stream(&messages[..]) {
        if let Message::CompilerArtifact(artifact) = message.context("cannot read what cargo says")?
            && let Some(path) = artifact.executable.clone()
        {
            made.push((artifact, path.into()));
        }
    }
    Ok(made)
}

/// What cargo says on standard error: a line for each package becomes progress, all else is printed. Returns that progress, if
/// anything was compiled, and the number of packages.
fn show(what: &str, said: ChildStderr) -> (Option<progress::Step>, usize) {
    let mut step = None;
    let mut packages = 0;
    for line in BufReader::new(said).lines().map_while(Result::ok) {
        let Some(package) = compiled(&line) else {
            if !is_routine(&line) {
                eprintln!("{line}");
            }
            continue;
        };
        packages += 1;
        step.get_or_insert_with(|| progress::step(format!("building {what}")))
            .at(&format!("building {what}: package {packages}, {package}"));
    }
    (step, packages)
}

/// The package that cargo says it compiles.
fn compiled(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("Compiling ")?.split(' ').next()
}

/// Whether it is one of the lines with which cargo accompanies every build.
fn is_routine(line: &str) -> bool {
    const WORDS: [&str; 7] = [
        "Finished",
        "Downloading",
        "Downloaded",
        "Updating",
        "Locking",
        "Adding",
        "Executable",
    ];
    let first = line.split_whitespace().next();
    first.is_some_and(|first| WORDS.contains(&first))
}

fn install<'a>(executables: impl Iterator<Item = &'a Path>) -> Result<Vec<PathBuf>> {
    let folder = workspace::root()?.join(ublk_bpf_objects::FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut objects = Vec::new();
    for path in executables {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path
            .file_name()
            .context("a program has a name")?
            .to_string_lossy();
        let object = folder.join(format!("{name}.o"));
        write_changed(&object, &bytes)?;
        objects.push(object);
    }
    objects.sort();
    Ok(objects)
}

fn write_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    cache::write_whole(path, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_told_from_what_else_cargo_says() {
        assert_eq!(compiled("   Compiling libc v0.2.177"), Some("libc"));
        assert_eq!(compiled("warning: unused variable: `x`"), None);
        assert!(is_routine(
            "    Finished `release` profile [optimized] target(s) in 0.17s"
        ));
        for kept in [
            "error: could not compile",
            "    Blocking waiting for file lock",
            "",
        ] {
            assert!(!is_routine(kept), "{kept}");
        }
    }
}
