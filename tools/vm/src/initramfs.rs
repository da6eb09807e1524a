//! The guest's file system: one archive that is the same for every boot, kept in the cache, and one with what this
//! boot adds. The kernel unpacks the first and then the second.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{archive, modules, programs, system};
use host::setup::kernel::Kernel;
use host::{cache, command, progress};

const INIT: &str = include_str!("init.sh");
/// Cached archives beyond this number are deleted, the oldest first.
const KEPT: usize = 4;

/// What one boot adds to the archive that is always there.
#[derive(Default)]
pub(crate) struct Additions {
    /// Files of this machine and where the guest has them.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// Programs that were built here and where the guest has them; their libraries go with them.
    pub(crate) built: Vec<(PathBuf, String)>,
    /// Programs of this machine, copied with their libraries.
    pub(crate) programs: Vec<String>,
    /// The root of a system to boot.
    pub(crate) system: Option<PathBuf>,
    /// Modules to load beside those that are always loaded.
    pub(crate) modules: Vec<String>,
    /// The shell script that is the guest's command.
    pub(crate) command: String,
    /// What the guest sends last on each channel.
    pub(crate) marker: String,
}

/// Writes the whole file system for one boot to `path`.
pub(crate) fn write(path: &Path, kernel: &Kernel, additions: &Additions) -> Result<()> {
    let context = || format!("cannot write the guest's file system {}", path.display());
    let base = base(kernel)?;
    let mut out = File::create(path).with_context(context)?;
    let mut base = File::open(&base).with_context(|| format!("cannot read {}", base.display()))?;
    io::copy(&mut base, &mut out).with_context(context)?;
    let out = add(archive::Writer::new(BufWriter::new(out)), additions).with_context(context)?;
    out.finish().with_context(context)?;
    Ok(())
}

fn add<W: Write>(mut archive: archive::Writer<W>, additions: &Additions) -> Result<archive::Writer<W>> {
    let loaded = modules::AT_BOOT
        .into_iter()
        .chain(additions.modules.iter().map(String::as_str));
    archive.file(
        "etc/guest/modules",
        0o644,
        loaded.collect::<Vec<_>>().join("\n").as_bytes(),
    )?;
    archive.file("etc/guest/command", 0o755, additions.command.as_bytes())?;
    archive.file("etc/guest/marker", 0o644, additions.marker.as_bytes())?;
    let mut files = programs::Files::new();
    for program in &additions.programs {
        programs::add(program, &mut files)?;
    }
    for (program, _) in &additions.built {
        files.extend(programs::libraries(program)?);
    }
    for path in &files {
        copy(&mut archive, path, &inside(path))?;
    }
    for (program, destination) in &additions.built {
        copy(&mut archive, program, destination)?;
    }
    if let Some(root) = &additions.system {
        system::add(&mut archive, root, &busybox()?)?;
    }
    for (source, destination) in &additions.files {
        copy_tree(&mut archive, source, destination)?;
    }
    Ok(archive)
}

/// The archive that every boot begins with, built unless the cache has it.
fn base(kernel: &Kernel) -> Result<PathBuf> {
    let mut files = programs::Files::new();
    for program in programs::USUAL
        .into_iter()
        .filter(|program| command::find(program).is_some())
    {
        programs::add(program, &mut files)?;
    }
    let busybox = busybox()?;
    let key = key(kernel, &busybox, &files)?;
    let folder = cache::dir()?.join("initramfs");
    let path = folder.join(format!("{key:016x}.cpio"));
    // Guests that boot at the same time build it once.
    let _lock = cache::lock()?;
    if path.exists() {
        return Ok(path);
    }
    let step = progress::step("building the guest's file system");
    fs::create_dir_all(&folder)?;
    let bytes = build_base(kernel, &busybox, &files).context("cannot build the guest's file system")?;
    cache::write_whole(&path, &bytes)?;
    forget_old(&folder, &path)?;
    step.done(&format!(
        "the guest's file system built, {} MiB",
        bytes.len() >> 20
    ));
    Ok(path)
}

fn busybox() -> Result<PathBuf> {
    command::find("busybox").context("busybox is missing: run `cargo xtask setup`")
}

/// A number that changes when anything that goes into the archive does.
fn key(kernel: &Kernel, busybox: &Path, files: &programs::Files) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    (
        INIT,
        &kernel.release,
        modules::AT_BOOT,
        modules::AT_HAND,
        env!("CARGO_PKG_VERSION"),
    )
        .hash(&mut hasher);
    for path in files.iter().map(PathBuf::as_path).chain([busybox]) {
        let meta = path
            .metadata()
            .with_context(|| format!("cannot read {}", path.display()))?;
        (path, meta.len(), meta.mtime(), meta.ino()).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn build_base(kernel: &Kernel, busybox: &Path, files: &programs::Files) -> Result<Vec<u8>> {
    let mut archive = archive::Writer::new(Vec::new());
    for folder in [
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "root",
        "mnt",
        "var/tmp",
        "usr/local/bin",
        "usr/lib64",
    ] {
        archive.directory(folder)?;
    }
    for (link, target) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/sbin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
    ] {
        archive.symlink(link, target)?;
    }
    archive.file("init", 0o755, INIT.as_bytes())?;
    archive.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    archive.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    archive.file("etc/hostname", 0o644, b"guest\n")?;
    copy(&mut archive, busybox, "usr/bin/busybox")?;
    // The applets stand last on the guest's PATH: a real program of the same name wins.
    for applet in command::output(Command::new(busybox).arg("--list"))?
        .lines()
        .filter(|name| *name != "busybox")
    {
        archive.symlink(&format!("usr/libexec/busybox/{applet}"), "/usr/bin/busybox")?;
    }
    archive.symlink("usr/bin/sh", "busybox")?;
    archive.symlink("usr/bin/env", "busybox")?;
    // The kernel starts /sbin/modprobe by this name.
    archive.symlink("usr/sbin/modprobe", "../bin/busybox")?;
    for path in files {
        copy(&mut archive, path, &inside(path))?;
    }
    let modules = modules::collect(&kernel.modules)?;
    let folder = format!("usr/lib/modules/{}", kernel.release);
    for module in &modules {
        archive.file(&format!("{folder}/{}.ko", module.name), 0o644, &module.contents)?;
    }
    archive.file(
        &format!("{folder}/modules.dep"),
        0o644,
        modules::dependencies(&modules).as_bytes(),
    )?;
    Ok(archive.finish()?)
}

/// Where a file of this machine is in the guest, whose `/bin`, `/sbin`, `/lib` and `/lib64` are links into `/usr`.
fn inside(path: &Path) -> String {
    let path = path.to_string_lossy();
    let merged = ["/bin/", "/sbin/", "/lib/", "/lib64/"]
        .iter()
        .any(|folder| path.starts_with(folder));
    if merged {
        format!("/usr{path}")
    } else {
        path.into_owned()
    }
}

fn copy<W: Write>(archive: &mut archive::Writer<W>, source: &Path, destination: &str) -> Result<()> {
    let context = || format!("cannot hand {} to the guest", source.display());
    let mode = source.metadata().with_context(context)?.permissions().mode();
    archive
        .file(destination, mode, &fs::read(source).with_context(context)?)
        .with_context(context)
}

fn copy_tree<W: Write>(archive: &mut archive::Writer<W>, source: &Path, destination: &str) -> Result<()> {
    if !source.is_dir() {
        return copy(archive, source, destination);
    }
    archive.directory(destination)?;
    for entry in fs::read_dir(source).with_context(|| format!("cannot read {}", source.display()))? {
        let entry = entry?;
        let inside = format!("{destination}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_symlink() && !entry.path().exists() {
            archive.symlink(&inside, &fs::read_link(entry.path())?.to_string_lossy())?;
        } else {
            copy_tree(archive, &entry.path(), &inside)?;
        }
    }
    Ok(())
}

fn forget_old(folder: &Path, newest: &Path) -> Result<()> {
    let mut archives: Vec<(i64, PathBuf)> = fs::read_dir(folder)?
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.metadata().ok()?.mtime(), entry.path())))
        .filter(|(_, path)| path != newest)
        .collect();
    archives.sort();
    for (_, path) in archives.iter().rev().skip(KEPT - 1) {
        fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_a_split_usr_are_merged() {
        assert_eq!(
            inside(Path::new("/lib64/ld-linux-x86-64.so.2")),
            "/usr/lib64/ld-linux-x86-64.so.2"
        );
        assert_eq!(inside(Path::new("/sbin/losetup")), "/usr/sbin/losetup");
        assert_eq!(inside(Path::new("/usr/bin/fio")), "/usr/bin/fio");
        assert_eq!(inside(Path::new("/opt/lib/x")), "/opt/lib/x");
    }
}
