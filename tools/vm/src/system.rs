//! A root file system with systemd, which the guest boots after it was prepared: `system.sh` is how.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::archive;

/// What process 1 does where there is a system to boot.
const SCRIPT: &str = include_str!("system.sh");
/// Where the guest has it until it is booted.
const FOLDER: &str = "sysroot";
/// Folders that nothing in the guest reads.
const LEFT_OUT: [&str; 7] = [
    "usr/lib/udev/hwdb.d",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/share/bash-completion",
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/zsh",
];
/// The rules of udev that are about disks.
const RULES_FOLDER: &str = "usr/lib/udev/rules.d/";
const RULES: [&str; 6] = [
    "50-udev-default.rules",
    "60-block.rules",
    "60-persistent-storage.rules",
    "64-ext4.rules",
    "80-drivers.rules",
    "99-systemd.rules",
];
/// Units that do nothing for a test, and take seconds under emulation.
const MASKED: [&str; 20] = [
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "kmod-static-nodes.service",
    "ldconfig.service",
    "proc-sys-fs-binfmt_misc.automount",
    "run-lock.mount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-ask-password-console.path",
    "systemd-modules-load.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-sysctl.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-tmpfiles-setup-dev-early.service",
    "systemd-udev-load-credentials.service",
    "tmp.mount",
];
/// The groups that udev's rules name.
const GROUPS: &str = "root:x:0:\ntty:x:5:\ndisk:x:6:\nlp:x:7:\nkmem:x:15:\ndialout:x:20:\ncdrom:x:24:\ntape:x:26:\n\
    audio:x:29:\nvideo:x:44:\ninput:x:101:\nsgx:x:102:\nkvm:x:103:\nrender:x:104:\nclock:x:105:\nsystemd-journal:x:106:\n\
    utmp:x:43:\nnogroup:x:65534:\n";

/// Adds the system whose root is the folder `root`, and `shell`, a static busybox, for its scripts.
pub(crate) fn add<W: Write>(archive: &mut archive::Writer<W>, root: &Path, shell: &Path) -> Result<()> {
    archive.file("etc/guest/system", 0o755, SCRIPT.as_bytes())?;
    tree(archive, root, "")?;
    for folder in [
        "proc", "sys", "dev", "run", "tmp", "root", "mnt", "var/log", "var/lib", "srv",
    ] {
        archive.directory(&inside(folder))?;
    }
    for folder in ["bin", "sbin", "lib", "lib64"] {
        archive.symlink(&inside(folder), &format!("usr/{folder}"))?;
    }
    for (path, text) in [
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        ),
        ("etc/group", GROUPS),
        ("etc/hostname", "guest\n"),
        // It is not the first boot.
        ("etc/machine-id", "00000000000000000000000000000001\n"),
    ] {
        archive.file(&inside(path), 0o644, text.as_bytes())?;
    }
    for unit in MASKED {
        archive.symlink(&inside(&format!("etc/systemd/system/{unit}")), "/dev/null")?;
    }
    let busybox = fs::read(shell).with_context(|| format!("cannot read {}", shell.display()))?;
    archive.file(&inside("usr/bin/busybox"), 0o755, &busybox)?;
    for name in ["sh", "cat", "kill", "md5sum", "stty"] {
        archive.symlink(&inside(&format!("usr/bin/{name}")), "busybox")?;
    }
    Ok(())
}

/// Adds what is in `folder` of the root, links as they are.
fn tree<W: Write>(archive: &mut archive::Writer<W>, root: &Path, folder: &str) -> Result<()> {
    let from = root.join(folder);
    let entries = fs::read_dir(&from).with_context(|| format!("cannot read {}", from.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if folder.is_empty() {
            name
        } else {
            format!("{folder}/{name}")
        };
        let is_other_rule = path
            .strip_prefix(RULES_FOLDER)
            .is_some_and(|rule| !RULES.contains(&rule));
        if is_other_rule || path.starts_with('.') || LEFT_OUT.contains(&path.as_str()) {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            let target = fs::read_link(entry.path())?;
            archive.symlink(&inside(&path), &target.to_string_lossy())?;
        } else if kind.is_dir() {
            archive.directory(&inside(&path))?;
            tree(archive, root, &path)?;
        } else {
            let contents =
                fs::read(entry.path()).with_context(|| format!("cannot read {}", entry.path().display()))?;
            archive.file(&inside(&path), entry.metadata()?.permissions().mode(), &contents)?;
        }
    }
    Ok(())
}

fn inside(path: &str) -> String {
    format!("{FOLDER}/{path}")
}
