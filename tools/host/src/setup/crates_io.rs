//! Programs from crates.io, each in one pinned version, built into the cache folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{cache, command, progress, workspace};

/// Our own builds are steered by these; a program of others is not.
const OURS: [&str; 4] = [
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "RUSTC",
];

/// A crate with a program of its own name.
pub struct Crate {
    /// Of the crate and of its program.
    pub name: &'static str,
    /// The one version that is known to work.
    pub version: &'static str,
    /// Further arguments of `cargo install`.
    pub options: &'static [&'static str],
    /// Flags for rustc.
    pub flags: Option<&'static str>,
}

impl Crate {
    /// The program in the cache, if it is there.
    pub fn present(&self) -> Result<Option<PathBuf>> {
        let folder = self.folder()?;
        Ok(cache::is_complete(&folder).then(|| folder.join(self.program())))
    }

    /// Builds the program. The caller holds the cache's lock.
    pub fn build(&self) -> Result<PathBuf> {
        let Self { name, version, .. } = self;
        let folder = self.folder()?;
        let step = progress::step(format!("building {name} {version} (some minutes)"));
        let mut cargo = workspace::cargo()?;
        cargo.current_dir(cache::dir()?);
        cargo
            .args(["install", "--quiet", name, "--locked", "--version", version])
            .args(self.options)
            .arg("--root")
            .arg(&folder);
        for variable in OURS {
            cargo.env_remove(variable);
        }
        cargo.envs(self.flags.map(|flags| ("RUSTFLAGS", flags)));
        command::output(&mut cargo).with_context(|| {
            format!("cannot build {name} {version}: is crates.io reachable, is there a C linker?")
        })?;
        let program = folder.join(self.program());
        if version_of(&program).is_none() {
            // cargo takes a damaged program for an installed one.
            fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
            bail!("{} was damaged and is removed: run this again", program.display());
        }
        cache::complete(&folder, &[self.program()])?;
        step.done(&format!("{name} {version} built"));
        Ok(program)
    }

    fn folder(&self) -> Result<PathBuf> {
        Ok(cache::dir()?.join(format!("{}-{}", self.name, self.version)))
    }

    fn program(&self) -> PathBuf {
        Path::new("bin").join(self.name)
    }
}

/// The version a program says it is, if it runs at all.
pub fn version_of(program: &Path) -> Option<String> {
    let said = command::output(Command::new(program).arg("--version")).ok()?;
    said.split_whitespace().nth(1).map(str::to_owned)
}
