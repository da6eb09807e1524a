//! kublk, the kernel's own ublk server for its tests: from the sources of the guest's kernel, built statically with
//! a liburing from Debian that supports batch mode.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use host::apt::{Archive, Package};
use host::setup::headers;
use host::setup::kernel::{self, Kernel, SUITES, numbers, one};
use host::{cache, command, progress};

const SOURCES: &str = "tools/testing/selftests/ublk";
/// A separate program beside kublk's sources.
const NOT_KUBLK: &str = "metadata_size.c";
/// Suites with a liburing >= 2.9, in order.
const LIBURING_SUITES: [&str; 2] = ["trixie", "sid"];
const LIBURING: &str = "liburing-dev";
const LIBURING_OLDEST: [u32; 2] = [2, 9];
const MULTIARCH: &str = "x86_64-linux-gnu";

/// What was built.
#[derive(Debug)]
pub(super) struct Kublk {
    pub(super) program: PathBuf,
    /// The file with the version of the sources.
    pub(super) version: PathBuf,
}

impl Kublk {
    fn in_folder(folder: &Path) -> Self {
        Self {
            program: folder.join("kublk"),
            version: folder.join("version"),
        }
    }
}

/// The program in the cache that fits the guest's kernel.
pub(super) fn present() -> Result<Option<Kublk>> {
    let (Some(kernel), Ok(folders)) = (kernel::present()?, fs::read_dir(folder()?)) else {
        return Ok(None);
    };
    let series = series(&kernel.release);
    let mut folders = folders.filter_map(Result::ok).map(|entry| entry.path());
    let fits = |folder: &PathBuf| {
        let name = folder.file_name().map(|name| name.to_string_lossy());
        name.is_some_and(|name| self::series(&name) == series) && cache::is_complete(folder)
    };
    Ok(folders.find(fits).map(|folder| Kublk::in_folder(&folder)))
}

/// The program in the cache, built if it is not there. The caller holds the cache's lock and has installed the headers.
pub(super) fn obtain(kernel: &Kernel) -> Result<Kublk> {
    if let Some(kublk) = present()? {
        return Ok(kublk);
    }
    let headers = headers::present()?.context("the kernel's headers are missing: run `cargo xtask setup`")?;
    let (archive, package) = sources(kernel)?;
    let work = tempfile::tempdir_in(cache::dir()?).context("cannot make a folder to build kublk in")?;
    archive.unpack(&package, work.path())?;
    let sources = unpack_sources(&package, work.path())?;
    let liburing = unpack_liburing(work.path())?;

    let folder = folder()?.join(&package.version);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let kublk = Kublk::in_folder(&folder);
    let step = progress::step("building kublk");
    compile(&sources, &headers, &liburing, &kublk.program)?;
    fs::write(&kublk.version, &package.version)
        .with_context(|| format!("cannot write {}", kublk.version.display()))?;
    cache::complete(&folder, &["kublk", "version"].map(PathBuf::from))?;
    step.done(&format!("kublk of Linux {} built", package.version));
    Ok(kublk)
}

fn folder() -> Result<PathBuf> {
    Ok(cache::dir()?.join("kublk"))
}

/// `7.3` of `7.3.4+deb13-cloud-amd64`: Debian's source package has it in its name, and ublk changes between series.
fn series(version: &str) -> Vec<u32> {
    let mut numbers = numbers(version).0;
    numbers.truncate(2);
    numbers
}

/// The sources of the kernel's series: in the first suite that has them, the newest.
fn sources(kernel: &Kernel) -> Result<(Archive, Package)> {
    let series: Vec<String> = series(&kernel.release).iter().map(u32::to_string).collect();
    let name = format!("linux-source-{}", series.join("."));
    for suite in SUITES {
        let archive = Archive::open(suite)?;
        if !archive.versions(&name)?.is_empty() {
            let package = one(&archive, &name)?;
            return Ok((archive, package));
        }
    }
    bail!(
        "kublk needs {name}, but Debian's archive has it no more in {}: remove {} and run `cargo xtask setup --peers`, \
         which fetches a newer kernel",
        SUITES.join(" or "),
        kernel.modules.display()
    )
}

/// Unpacks kublk's part of the sources, and gives its folder.
fn unpack_sources(package: &Package, work: &Path) -> Result<PathBuf> {
    let step = progress::step(format!("looking for kublk in {}", package.name));
    let inside = format!("{}/{SOURCES}", package.name);
    let mut tar = Command::new("busybox");
    tar.args(["tar", "-x", "-J", "-f"])
        .arg(work.join(format!("usr/src/{}.tar.xz", package.name)))
        .arg("-C")
        .arg(work)
        .arg(&inside);
    command::output(&mut tar)?;
    step.done("kublk's sources unpacked");
    Ok(work.join(inside))
}

/// Unpacks liburing with its headers, and gives the folder that has `include` and `lib`.
fn unpack_liburing(work: &Path) -> Result<PathBuf> {
    for suite in LIBURING_SUITES {
        let archive = Archive::open(suite)?;
        let package = one(&archive, LIBURING)?;
        if numbers(&package.version).0.as_slice() >= LIBURING_OLDEST.as_slice() {
            let folder = work.join(LIBURING);
            archive.unpack(&package, &folder)?;
            return Ok(folder.join("usr"));
        }
    }
    let [major, minor] = LIBURING_OLDEST;
    bail!(
        "kublk needs {LIBURING} >= {major}.{minor}, but Debian's archive has none in {}",
        LIBURING_SUITES.join(" or ")
    )
}

/// Compiles as the sources' own Makefile does, but statically, and only this program.
fn compile(sources: &Path, headers: &Path, liburing: &Path, program: &Path) -> Result<()> {
    let headers = headers.join("usr/include");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O3", "-static", "-D_GNU_SOURCE"]);
    for folder in [liburing.join("include"), headers.clone(), headers.join(MULTIARCH)] {
        gcc.arg("-I").arg(folder);
    }
    gcc.arg("-o").arg(program).args(c_files(sources)?);
    gcc.arg("-L").arg(liburing.join("lib").join(MULTIARCH));
    gcc.args(["-luring", "-lpthread", "-lm"]);
    command::output(&mut gcc).map(drop)
}

fn c_files(sources: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(sources).with_context(|| format!("cannot read {}", sources.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "c"))
        .filter(|path| !path.ends_with(NOT_KUBLK))
        .collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_what_the_sources_are_named_by() {
        assert_eq!(series("7.3.4+deb13-cloud-amd64"), [7, 3]);
        assert_eq!(series("7.3.4-1~bpo13+1"), [7, 3]);
        assert_eq!(series("7.10-1"), [7, 10]);
    }

    #[test]
    fn kublk_is_made_of_its_own_sources_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in ["kublk.c", "kublk.h", "batch.c", NOT_KUBLK, "test_null_01.sh"] {
            fs::write(folder.path().join(name), "").expect("written");
        }
        let names = c_files(folder.path()).expect("read");
        assert_eq!(names, ["batch.c", "kublk.c"].map(|name| folder.path().join(name)));
    }
}
