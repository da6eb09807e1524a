//! The server, and what it embeds: the classifier and the policies, compiled to BPF objects with BTF in
//! `target/ebpf/`.
//!
//! `core` is compiled with them (`-Z build-std`), which a stable compiler does when `RUSTC_BOOTSTRAP` asks for it. An
//! object is written only if it differs from the one that is there, so that what embeds it is not built again for nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use cargo_metadata::{Artifact, Message};

use crate::setup::BpfTools;
use crate::{cache, command, setup, workspace};

const TARGET: &str = "bpfel-unknown-none";
const PACKAGE: &str = "ublk-bpf-ebpf";
/// What `bpf` is in the workspace's own manifest, said for crates outside it.
const PROFILE: [&str; 4] = [
    "profile.bpf.inherits='release'",
    "profile.bpf.debug=2",
    "profile.bpf.lto=true",
    "profile.bpf.panic='abort'",
];

/// Builds the objects that `ublk-bpf` embeds.
pub fn objects() -> Result<Vec<PathBuf>> {
    build_own(&setup::bpf_tools()?)
}

/// Builds `ublk-bpf` as it is shipped, with the objects that it embeds, and gives its path.
pub fn server() -> Result<PathBuf> {
    objects()?;
    program("ublk-bpf", &["--release"])
}

/// Builds the workspace's own objects, and notes what sources they were built from.
fn build_own(tools: &BpfTools) -> Result<Vec<PathBuf>> {
    let root = workspace::root()?;
    // Before the build: what is edited meanwhile makes the objects old.
    let fingerprint = ublk_bpf_objects::fingerprint(root)
        .with_context(|| format!("cannot read {}", root.join(ublk_bpf_objects::SOURCES).display()))?;
    let objects = build(tools, None)?;
    write_changed(&ublk_bpf_objects::stamp(root), fingerprint.as_bytes())?;
    Ok(objects)
}

/// Builds the policy crate in this folder and gives its objects.
pub fn policy(folder: &Path) -> Result<Vec<PathBuf>> {
    build(&setup::bpf_tools()?, Some(folder))
}

/// Builds a policy crate, or the workspace's own objects, and gives the objects' paths.
fn build(tools: &BpfTools, policy: Option<&Path>) -> Result<Vec<PathBuf>> {
    let mut cargo = workspace::cargo()?;
    cargo.args([
        "build",
        "--profile",
        "bpf",
        "--bins",
        "--target",
        TARGET,
        "-Z",
        "build-std=core",
    ]);
    cargo
        .arg("--target-dir")
        .arg(workspace::root()?.join("target/ebpf-build"));
    match policy {
        None => {
            cargo.args(["--package", PACKAGE]);
        }
        Some(folder) => {
            let manifest = folder.join("Cargo.toml");
            let manifest = manifest
                .canonicalize()
                .with_context(|| format!("there is no {}", manifest.display()))?;
            cargo.arg("--manifest-path").arg(manifest);
            for setting in PROFILE {
                cargo.args(["--config", setting]);
            }
        }
    }
    // The compiler's flags for this target stand in .cargo/config.toml; these variables would replace them.
    cargo
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &tools.linker);
    cargo
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC", &tools.rustc.program);
    let made = programs(&mut cargo)?;
    ensure!(
        !made.is_empty(),
        "`{}` made no BPF object: the package has no program",
        command::line(&cargo)
    );
    install(made.iter().map(|(_, path)| path.as_path()))
}

/// Builds the program of a package, with these options of `cargo build`, and gives its path.
///
/// # Errors
/// If it does not build, or the package has no program.
pub fn program(package: &str, options: &[&str]) -> Result<PathBuf> {
    let mut cargo = workspace::cargo()?;
    let made = programs(
        cargo
            .args(["build", "--package", package, "--bins"])
            .args(options),
    )?;
    let program = made.into_iter().next().map(|(_, path)| path);
    program.with_context(|| format!("`{}` made no program", command::line(&cargo)))
}

/// Runs a cargo that builds, and gives every program that it made, fresh ones too, and what each was made of.
///
/// # Errors
/// If something does not build.
pub fn programs(cargo: &mut Command) -> Result<Vec<(Artifact, PathBuf)>> {
    let output = cargo
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("`{}` failed: {}", command::line(cargo), output.status);
    }
    let mut made = Vec::new();
    for message in Message::parse_stream(&output.stdout[..]) {
        if let Message::CompilerArtifact(artifact) = message.context("cannot read what cargo says")?
            && let Some(path) = artifact.executable.clone()
        {
            made.push((artifact, path.into()));
        }
    }
    Ok(made)
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
