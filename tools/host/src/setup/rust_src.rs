//! The sources of `core`, which is compiled for BPF with each object: exactly those of the compiler in use.
//!
//! Where they are not in the compiler's own folder, rustup is asked for them; where it cannot, Debian's package
//! `rust-src` of the same version is unpacked in the cache. The compiler's folder is not touched then: a folder of
//! symbolic links to it, with the sources added, is given to the compiler as its sysroot by a script that stands in
//! for rustc.

use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::apt::Archive;
use crate::{cache, command, progress, workspace};

/// Suites to look in, in order.
const SUITES: [&str; 3] = ["trixie-backports", "sid", "trixie"];
/// Where a sysroot has the sources.
const LIBRARY: &str = "lib/rustlib/src/rust/library";
/// Files that whole sources have: the first and the last that come of each way, and what the build reads first.
const WITNESSES: [&str; 5] = [
    "Cargo.lock",
    "Cargo.toml",
    "compiler-builtins/Cargo.toml",
    "core/src/lib.rs",
    "windows_link/Cargo.toml",
];
/// How long rustup may try. The component has 4 MB.
const RUSTUP_LIMIT: Duration = Duration::from_secs(90);

/// A compiler that finds the sources of `core`.
#[derive(Clone, Debug)]
pub struct Rustc {
    /// The program to run as rustc.
    pub program: PathBuf,
}

/// The compiler in use.
struct Toolchain {
    sysroot: PathBuf,
    /// As in `1.95.0`.
    version: String,
}

/// A compiler with sources, if there is one.
pub fn present() -> Result<Option<Rustc>> {
    present_for(&Toolchain::in_use()?)
}

/// A compiler with sources, which are fetched if they are not there. The caller holds the cache's lock.
pub fn obtain() -> Result<Rustc> {
    let toolchain = Toolchain::in_use()?;
    if let Some(rustc) = present_for(&toolchain)? {
        return Ok(rustc);
    }
    let why_not = match ask_rustup(&toolchain)? {
        Ok(()) => match present_for(&toolchain)? {
            Some(rustc) => {
                progress::note(&format!("rust-src {} added by rustup", toolchain.version));
                return Ok(rustc);
            }
            None => "rustup takes it for installed, but it is not whole".to_owned(),
        },
        Err(why_not) => why_not,
    };
    progress::note(&format!("rust-src: {why_not}; taking Debian's package"));
    fetch_from_debian(&toolchain)
        .with_context(|| format!("`rustup component add rust-src` would do too, but here {why_not}"))?;
    present_for(&toolchain)?.context("rust-src was unpacked, but it is not there")
}

impl Toolchain {
    fn in_use() -> Result<Self> {
        let program = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let root = workspace::root()?;
        let rustc = || {
            let mut command = Command::new(&program);
            command.current_dir(root);
            command
        };
        let said = command::output(rustc().args(["--version", "--verbose"]))?;
        let version = said.lines().find_map(|line| line.strip_prefix("release: "));
        Ok(Self {
            version: version.context("rustc does not say its release")?.to_owned(),
            sysroot: command::output(rustc().args(["--print", "sysroot"]))?
                .trim()
                .into(),
        })
    }

    /// The folder for sources of this version.
    fn unpacked(&self) -> Result<PathBuf> {
        Ok(cache::dir()?.join(format!("rust-src-{}", self.version)))
    }
}

fn present_for(toolchain: &Toolchain) -> Result<Option<Rustc>> {
    let library = toolchain.sysroot.join(LIBRARY);
    if WITNESSES.iter().all(|file| library.join(file).exists()) {
        return Ok(Some(Rustc {
            program: toolchain.sysroot.join("bin/rustc"),
        }));
    }
    let unpacked = toolchain.unpacked()?;
    if !cache::is_complete(&unpacked) {
        return Ok(None);
    }
    private_sysroot(toolchain, &unpacked).map(Some)
}

/// Asks rustup for the sources; the inner error is why it could not.
fn ask_rustup(toolchain: &Toolchain) -> Result<Result<(), String>> {
    let installed_by_rustup = toolchain
        .sysroot
        .parent()
        .is_some_and(|parent| parent.ends_with("toolchains"));
    let (Some(rustup), true) = (command::find("rustup"), installed_by_rustup) else {
        return Ok(Err("the compiler is not rustup's".to_owned()));
    };
    let name = toolchain.sysroot.file_name().context("a toolchain has a name")?;
    let _step = progress::step("asking rustup for rust-src");
    add_component(&rustup, name, RUSTUP_LIMIT)
}

fn add_component(rustup: &Path, toolchain: &OsStr, limit: Duration) -> Result<Result<(), String>> {
    let mut command = Command::new(rustup);
    command
        .args(["component", "add", "rust-src", "--toolchain"])
        .arg(toolchain);
    command.env("RUSTUP_MAX_RETRIES", "0").env("RUST_BACKTRACE", "0");
    match command::output_within(&mut command, limit)? {
        Some(output) if output.status.success() => Ok(Ok(())),
        Some(output) => {
            let said = command::said(&output);
            let error = said
                .split("; ")
                .find_map(|line| line.strip_prefix("error: "))
                .unwrap_or("it failed");
            Ok(Err(format!("rustup cannot ({error})")))
        }
        None => Ok(Err(format!("rustup was not done after {} s", limit.as_secs()))),
    }
}

fn fetch_from_debian(toolchain: &Toolchain) -> Result<()> {
    for suite in SUITES {
        let archive = Archive::open(suite)?;
        let versions = archive.versions("rust-src")?;
        let Some(package) = versions
            .into_iter()
            .find(|package| is_of(&package.version, &toolchain.version))
        else {
            continue;
        };
        let folder = toolchain.unpacked()?;
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        archive.unpack(&package, &folder)?;
        let library = debian_library(&toolchain.version);
        return cache::complete(&folder, &WITNESSES.map(|file| library.join(file)));
    }
    bail!(
        "Debian has no rust-src of version {} in {}; use a compiler whose sources rustup or Debian has",
        toolchain.version,
        SUITES.join(", ")
    )
}

/// Whether Debian's `version` (`1.95.0+dfsg1-2~bpo13+1`) is that of the compiler (`1.95.0`).
fn is_of(version: &str, compiler: &str) -> bool {
    version
        .strip_prefix(compiler)
        .is_some_and(|rest| rest.starts_with(['+', '-', '~']))
}

fn debian_library(version: &str) -> PathBuf {
    PathBuf::from(format!("usr/src/rustc-{version}/library"))
}

/// Makes the folder of links and the script that stands in for rustc, unless they are there.
fn private_sysroot(toolchain: &Toolchain, unpacked: &Path) -> Result<Rustc> {
    let mut hasher = DefaultHasher::new();
    toolchain.sysroot.hash(&mut hasher);
    let folder = unpacked.join(format!("sysroot-{:016x}", hasher.finish()));
    let program = folder.join("rustc");
    if program.exists() {
        return Ok(Rustc { program });
    }
    let context = || format!("cannot make the private sysroot {}", folder.display());
    let library = unpacked.join(debian_library(&toolchain.version));
    link_entries(&toolchain.sysroot.join("lib"), &folder.join("lib"), "rustlib").with_context(context)?;
    link_entries(
        &toolchain.sysroot.join("lib/rustlib"),
        &folder.join("lib/rustlib"),
        "src",
    )
    .with_context(context)?;
    let source = folder.join(LIBRARY);
    fs::create_dir_all(source.parent().unwrap_or(&source)).with_context(context)?;
    link(&library, &source).with_context(context)?;
    let rustc = toolchain.sysroot.join("bin/rustc");
    let script = format!(
        "#!/bin/sh\nexec {} --sysroot {} \"$@\"\n",
        command::quote(rustc.as_os_str()),
        command::quote(folder.as_os_str())
    );
    // The script is written last: where it is, the rest is.
    let unfinished = folder.join("rustc.unfinished");
    fs::write(&unfinished, script).with_context(context)?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o755)).with_context(context)?;
    fs::rename(&unfinished, &program).with_context(context)?;
    Ok(Rustc { program })
}

/// Makes in `to` a link to each entry of `from` but the one called `except`.
fn link_entries(from: &Path, to: &Path, except: &str) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name() != except {
            link(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// A link that may be there from an attempt that was interrupted.
fn link(target: &Path, path: &Path) -> std::io::Result<()> {
    match symlink(target, path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_version_will_do() {
        assert!(is_of("1.95.0+dfsg1-2~bpo13+1", "1.95.0"));
        assert!(is_of("1.95.0-1", "1.95.0"));
        assert!(!is_of("1.95.01-1", "1.95.0"));
        assert!(!is_of("1.96.0+dfsg1-2", "1.95.0"));
        assert!(!is_of("1.95.0", "1.95.0-nightly"));
    }

    #[test]
    fn rustup_is_believed_only_as_far_as_it_goes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let rustup = folder.path().join("rustup");
        let answer = |body: &str| {
            cache::write_whole(&rustup, format!("#!/bin/sh\n{body}\n").as_bytes()).expect("written");
            fs::set_permissions(&rustup, fs::Permissions::from_mode(0o755)).expect("made executable");
            add_component(&rustup, OsStr::new("stable"), Duration::from_secs(2)).expect("it starts")
        };
        assert_eq!(
            answer("test \"$*\" = 'component add rust-src --toolchain stable'"),
            Ok(())
        );
        let offline = answer("echo 'info: downloading' >&2; echo 'error: no route to host' >&2; exit 1");
        assert_eq!(offline, Err("rustup cannot (no route to host)".to_owned()));
        assert_eq!(
            answer("exit 1"),
            Err("rustup cannot (it failed)".to_owned()),
            "it says nothing"
        );
        let stuck = answer("sleep 60 & sleep 60");
        assert_eq!(stuck, Err("rustup was not done after 2 s".to_owned()));
    }

    #[test]
    fn half_the_sources_are_none() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let toolchain = Toolchain {
            sysroot: folder.path().to_path_buf(),
            version: "0.0.0-none".to_owned(),
        };
        for (n, file) in WITNESSES.iter().enumerate() {
            let found = present_for(&toolchain).expect("looked");
            assert!(found.is_none(), "{n} of {} files", WITNESSES.len());
            let path = folder.path().join(LIBRARY).join(file);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, "").expect("written");
        }
        assert!(present_for(&toolchain).expect("looked").is_some());
    }

    #[test]
    fn a_private_sysroot_is_the_compilers_with_the_sources() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let sysroot = folder.path().join("toolchain");
        let unpacked = folder.path().join("unpacked");
        let library = unpacked.join(debian_library("1.2.3"));
        fs::create_dir_all(sysroot.join("lib/rustlib/host")).expect("made");
        fs::create_dir_all(sysroot.join("bin")).expect("made");
        fs::create_dir_all(&library).expect("made");
        fs::write(sysroot.join("lib/librustc.so"), "so").expect("written");
        fs::write(library.join("Cargo.lock"), "lock").expect("written");
        fs::write(sysroot.join("bin/rustc"), "#!/bin/sh\necho \"$@\"\n").expect("written");
        fs::set_permissions(sysroot.join("bin/rustc"), fs::Permissions::from_mode(0o755))
            .expect("made executable");
        let toolchain = Toolchain {
            sysroot: sysroot.clone(),
            version: "1.2.3".to_owned(),
        };

        for _ in 0..2 {
            let rustc = private_sysroot(&toolchain, &unpacked).expect("made");
            let private = rustc.program.parent().expect("a folder");
            assert_eq!(fs::read(private.join("lib/librustc.so")).expect("linked"), b"so");
            assert!(private.join("lib/rustlib/host").is_dir());
            assert_eq!(
                fs::read(private.join(LIBRARY).join("Cargo.lock")).expect("linked"),
                b"lock"
            );
            let said = command::output(Command::new(&rustc.program).args(["-vV", "a b"])).expect("runs");
            assert_eq!(said.trim(), format!("--sysroot {} -vV a b", private.display()));
        }
        assert!(
            !sysroot.join("lib/rustlib/src").exists(),
            "the compiler's own folder is as it was"
        );
    }
}
