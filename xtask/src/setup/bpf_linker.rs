//! bpf-linker, which makes BPF objects of what rustc compiles for `bpfel-unknown-none`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{cache, command, progress, workspace};

/// The last version that links with the LLVM inside rustc 1.95; 0.11 wants a system LLVM 23.
const VERSION: &str = "0.10.3";

/// The linker, if it is there: in the cache, or on the user's PATH in this version.
pub(crate) fn present() -> Result<Option<PathBuf>> {
    let folder = folder()?;
    if cache::is_complete(&folder) {
        return Ok(Some(folder.join("bin/bpf-linker")));
    }
    let Some(path) = command::find("bpf-linker") else {
        return Ok(None);
    };
    Ok((runs(&path).as_deref() == Some(VERSION)).then_some(path))
}

/// The version a linker says it is, if it runs at all.
fn runs(linker: &Path) -> Option<String> {
    let said = command::output(Command::new(linker).arg("--version")).ok()?;
    said.split_whitespace().nth(1).map(str::to_owned)
}

/// The linker, built if it is not there. The caller holds the cache's lock.
pub(crate) fn obtain() -> Result<PathBuf> {
    if let Some(path) = present()? {
        return Ok(path);
    }
    let folder = folder()?;
    let step = progress::step(format!("building bpf-linker {VERSION} (a minute or two)"));
    let mut cargo = workspace::cargo();
    cargo.current_dir(cache::dir()?);
    cargo
        .args([
            "install",
            "--quiet",
            "bpf-linker",
            "--locked",
            "--version",
            VERSION,
            "--root",
        ])
        .arg(&folder);
    for name in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "RUSTC",
    ] {
        cargo.env_remove(name);
    }
    command::output(&mut cargo).with_context(|| {
        format!("cannot build bpf-linker {VERSION}: is crates.io reachable, is there a C linker?")
    })?;
    let linker = folder.join("bin/bpf-linker");
    if runs(&linker).is_none() {
        // cargo takes a damaged program for an installed one.
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        bail!("{} was damaged and is removed: run this again", linker.display());
    }
    cache::complete(&folder, &[PathBuf::from("bin/bpf-linker")])?;
    step.done(&format!("bpf-linker {VERSION} built"));
    Ok(linker)
}

fn folder() -> Result<PathBuf> {
    Ok(cache::dir()?.join(format!("bpf-linker-{VERSION}")))
}
