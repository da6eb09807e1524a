//! Programs of this machine that go into the guest, each with the libraries it is linked with, at their own paths.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use host::command;

/// Taken where this machine has them.
pub(crate) const USUAL: [&str; 22] = [
    "fio",
    "bpftool",
    "mkfs.ext4",
    "mke2fs",
    "e2fsck",
    "fsck.ext4",
    "dumpe2fs",
    "debugfs",
    "resize2fs",
    "mkfs.xfs",
    "xfs_repair",
    "blkdiscard",
    "blockdev",
    "chattr",
    "fallocate",
    "losetup",
    "dmsetup",
    "lsblk",
    "strace",
    "ionice",
    "taskset",
    "setpriv",
];

/// A file to copy, and the path under which it was asked for.
pub(crate) type Files = BTreeSet<PathBuf>;

/// Adds the program called `name` and its libraries.
pub(crate) fn add(name: &str, files: &mut Files) -> Result<()> {
    let path =
        command::find(name).with_context(|| format!("this machine has no program {name} to hand in"))?;
    for library in libraries(&path)? {
        files.insert(library);
    }
    files.insert(path);
    Ok(())
}

/// The libraries a program is linked with, and its loader; none for a static one or a script.
pub(crate) fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .context("cannot start ldd")?;
    if !output.status.success() {
        return Ok(Vec::new());
    }
    parse_ldd(&String::from_utf8_lossy(&output.stdout)).with_context(|| format!("ldd {}", program.display()))
}

fn parse_ldd(text: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.contains("not found") {
            bail!("a library is missing on this machine: {line}");
        }
        let path = line.split_once("=> ").map_or(line, |(_, path)| path);
        let path = path.split(" (0x").next().unwrap_or_default();
        if path.starts_with('/') {
            libraries.push(PathBuf::from(path));
        }
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd3b7f2000)\n\
                    \tlibaio.so.1 => /lib/x86_64-linux-gnu/libaio.so.1 (0x00007f1)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f2)\n";
        let expected = ["/lib/x86_64-linux-gnu/libaio.so.1", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse_ldd(text).expect("parsed"), expected.map(PathBuf::from));
    }

    #[test]
    fn a_missing_library_is_an_error() {
        assert!(parse_ldd("\tlibx.so => not found\n").is_err());
    }

    #[test]
    fn a_script_or_static_program_has_none() {
        assert!(parse_ldd("\tstatically linked\n").expect("parsed").is_empty());
    }
}
