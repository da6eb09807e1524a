//! The system around the kernel: privileges, limits, folders, udev.

use std::fs;
use std::path::{Path, PathBuf};

use super::finding::Finding;
use crate::registry::run_dir::{DIRECTORY, RunDir};
use crate::server;
use crate::sys::memory;
use crate::sys::process::{self, Capability, has_capability};

/// Where udev's rules are.
const RULES: [&str; 4] = [
    "/etc/udev/rules.d",
    "/run/udev/rules.d",
    "/usr/local/lib/udev/rules.d",
    "/usr/lib/udev/rules.d",
];

pub(super) fn privilege() -> Finding {
    const NAME: &str = "privilege";
    match has_capability(Capability::SysAdmin) {
        Ok(true) => Finding::ok(NAME, "CAP_SYS_ADMIN, for ublk, BPF and mounts"),
        Ok(false) => Finding::missing(NAME, "this process has no CAP_SYS_ADMIN").remedy("run as root"),
        Err(error) => Finding::note(NAME, format!("the capabilities cannot be read: {error}")),
    }
}

/// Where records, locks and logs are.
pub(super) fn run_folder() -> Finding {
    const NAME: &str = "run folder";
    match RunDir::open() {
        Ok(Some(_)) => Finding::ok(NAME, format!("{DIRECTORY} is root's alone to write")),
        Err(error) => Finding::missing(NAME, error.to_string()),
        Ok(None) => match Path::new(DIRECTORY).parent().filter(|parent| parent.is_dir()) {
            Some(_) => Finding::ok(NAME, format!("the first start makes {DIRECTORY}")),
            None => Finding::missing(NAME, format!("{DIRECTORY} cannot be made: /run does not exist"))
                .remedy("mount a tmpfs on /run"),
        },
    }
}

pub(super) fn open_files() -> Finding {
    const NAME: &str = "open files";
    let needed = server::open_files([1]);
    match process::open_files_limit() {
        limit if limit < needed => Finding::missing(
            NAME,
            format!("a device with one queue needs {needed}, and the hard limit is {limit}"),
        )
        .remedy(format!(
            "raise it with `ulimit -Hn {needed}`, or LimitNOFILE= in the unit"
        )),
        u64::MAX => Finding::ok(NAME, "no limit"),
        limit => Finding::ok(NAME, format!("{limit} (a device with one queue needs {needed})")),
    }
}

pub(super) fn locked_memory() -> Finding {
    const NAME: &str = "locked memory";
    if memory::may_lock_all_memory() {
        return Finding::ok(NAME, "a server can lock all of its memory");
    }
    let limit = process::locked_memory_limit() >> 10;
    Finding::note(
        NAME,
        format!("a server can lock {limit} KiB: swap on its device could hang the machine"),
    )
    .remedy("grant CAP_IPC_LOCK, or raise RLIMIT_MEMLOCK (`ulimit -l`, LimitMEMLOCK=infinity in the unit)")
}

/// What keeps a server alive and moving when memory runs out.
pub(super) fn reclaim() -> Finding {
    const NAME: &str = "low memory";
    match has_capability(Capability::SysResource) {
        Ok(false) => Finding::note(
            NAME,
            "the OOM killer may end a server, and its device may hang when memory runs out",
        )
        .remedy("grant CAP_SYS_RESOURCE"),
        Ok(true) | Err(_) => Finding::ok(NAME, "a server is spared by the OOM killer"),
    }
}

/// A new device has no I/O scheduler: mq-deadline, the kernel's choice, costs a quarter more instructions for each I/O.
pub(super) fn schedulers() -> Finding {
    const NAME: &str = "I/O scheduler";
    let folders = RULES
        .iter()
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten());
    let rules = folders.flatten().map(|entry| entry.path());
    let setting: Vec<PathBuf> = rules
        .filter(|path| path.extension().is_some_and(|extension| extension == "rules"))
        .filter(|path| fs::read_to_string(path).is_ok_and(|text| text.lines().any(sets_scheduler)))
        .collect();
    match setting.first() {
        None => Finding::ok(NAME, "none on a new device, and no udev rule selects another"),
        Some(rule) => Finding::note(
            NAME,
            format!(
                "{} may select one for new devices, which costs time",
                rule.display()
            ),
        )
        .remedy("exclude ublkb* there, or choose one with --scheduler"),
    }
}

/// Whether a line of udev's rules selects a scheduler for disks that may be ours.
fn sets_scheduler(line: &str) -> bool {
    let line = line.trim_start();
    if line.starts_with('#') || !line.contains("queue/scheduler") {
        return false;
    }
    let Some((_, rest)) = line.split_once("KERNEL==\"") else {
        return true;
    };
    let patterns = rest.split('"').next().unwrap_or_default();
    patterns.split('|').any(|pattern| {
        let fixed = pattern.split(['*', '?', '[']).next().unwrap_or_default();
        "ublkb".starts_with(fixed) || fixed.starts_with("ublkb")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_for_other_disks_are_passed_over() {
        for (line, is_ours) in [
            (
                "ACTION==\"add\", KERNEL==\"*\", ATTR{queue/scheduler}=\"bfq\"",
                true,
            ),
            ("SUBSYSTEM==\"block\", ATTR{queue/scheduler}=\"bfq\"", true),
            ("KERNEL==\"sd*|ublkb*\", ATTR{queue/scheduler}=\"bfq\"", true),
            (
                "KERNEL==\"sd[a-z]*|nvme*\", ATTR{queue/scheduler}=\"none\"",
                false,
            ),
            ("# KERNEL==\"*\", ATTR{queue/scheduler}=\"bfq\"", false),
            ("KERNEL==\"ublkb*\", ATTR{queue/rotational}=\"0\"", false),
        ] {
            assert_eq!(sets_scheduler(line), is_ours, "{line}");
        }
    }
}
