//! What a build for BPF needs, found where it may be.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where a sysroot has the sources of `core`.
const CORE: &str = "lib/rustlib/src/rust/library/core/src/lib.rs";

/// What building BPF objects needs.
#[derive(Clone, Debug)]
pub struct Tools {
    /// bpf-linker.
    pub linker: PathBuf,
    /// A compiler that finds the sources of `core`.
    pub rustc: PathBuf,
}

/// Something that a build needs is missing.
#[derive(Debug, thiserror::Error)]
pub enum MissingTool {
    /// The linker.
    #[error(
        "a policy's crate is linked by bpf-linker, which is neither on the PATH nor in {}: run `cargo xtask setup` in a \
         checkout of ublk-bpf, or check the built object",
        .0.display()
    )]
    Linker(PathBuf),
    /// The compiler.
    #[error("cannot run rustc: is Rust installed, and on the PATH?")]
    Rustc,
    /// The sources of `core`.
    #[error(
        "rustc has no sources of `core`: run `rustup component add rust-src`, or `cargo xtask setup` in a checkout of \
         ublk-bpf"
    )]
    Sources,
}

impl Tools {
    /// Finds the tools: on the PATH, or in the folder where `cargo xtask setup` keeps what it has fetched.
    ///
    /// # Errors
    /// If one is missing.
    pub fn find() -> Result<Self, MissingTool> {
        let cache = cache_folder();
        let linker = on_path("bpf-linker").or_else(|| entry(&cache, "bpf-linker-", "bin/bpf-linker"));
        Ok(Self {
            linker: linker.ok_or_else(|| MissingTool::Linker(cache.clone()))?,
            rustc: rustc(&cache)?,
        })
    }
}

/// The compiler in use, if it has the sources, or a stand-in of the same version that has them.
fn rustc(cache: &Path) -> Result<PathBuf, MissingTool> {
    let said = |args: &[&str]| {
        let output = Command::new("rustc").args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let sysroot = said(&["--print", "sysroot"]).ok_or(MissingTool::Rustc)?;
    if Path::new(&sysroot).join(CORE).is_file() {
        return Ok(Path::new(&sysroot).join("bin/rustc"));
    }
    let version = said(&["--version"]).ok_or(MissingTool::Rustc)?;
    let version = version.split(' ').nth(1).unwrap_or_default().to_owned();
    let sources = cache.join(format!("rust-src-{version}"));
    entry(&sources, "sysroot-", "rustc").ok_or(MissingTool::Sources)
}

/// The folder for what is obtained once and used by every checkout.
fn cache_folder() -> PathBuf {
    let named = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || Path::new(&env::var_os("HOME").unwrap_or_default()).join(".cache");
    let base = named.filter(|folder| folder.is_absolute()).unwrap_or_else(home);
    base.join("ublk-bpf")
}

/// The last file `inside` a folder of `folder` whose name starts like this.
fn entry(folder: &Path, start: &str, inside: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(start));
    let files = named.map(|entry| entry.path().join(inside));
    files.filter(|file| file.is_file()).max()
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let files = env::split_paths(&path).map(|folder| folder.join(program));
    files.into_iter().find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fetched_tool_is_found_by_the_start_of_its_folder() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let find = || entry(cache.path(), "bpf-linker-", "bin/bpf-linker");
        assert_eq!(find(), None);
        for version in ["0.10.2", "0.10.3"] {
            let folder = cache.path().join(format!("bpf-linker-{version}/bin"));
            fs::create_dir_all(&folder).expect("made");
            fs::write(folder.join("bpf-linker"), "").expect("written");
        }
        fs::create_dir_all(cache.path().join("bpf-linker-0.11")).expect("made");
        assert_eq!(
            find(),
            Some(cache.path().join("bpf-linker-0.10.3/bin/bpf-linker"))
        );
    }
}
