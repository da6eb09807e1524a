//! Programs of the system that the guest is made of, installed by apt where that is allowed.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{apt, command, progress};

/// A program and the Debian package that holds it.
pub struct Program {
    /// As it is on the PATH.
    pub name: &'static str,
    /// The package that holds it.
    pub package: &'static str,
}

/// What booting a guest needs.
pub const GUEST: [Program; 2] = [
    Program {
        name: "qemu-system-x86_64",
        package: "qemu-system-x86",
    },
    Program {
        name: "busybox",
        package: "busybox-static",
    },
];

/// What the demo and the tests run in it.
pub const TOOLS: [Program; 5] = [
    Program {
        name: "fio",
        package: "fio",
    },
    Program {
        name: "mkfs.ext4",
        package: "e2fsprogs",
    },
    Program {
        name: "mkfs.xfs",
        package: "xfsprogs",
    },
    Program {
        name: "dmsetup",
        package: "dmsetup",
    },
    Program {
        name: "bpftool",
        package: "bpftool",
    },
];

/// The packages of the programs that are not there.
pub fn missing<'a>(programs: impl IntoIterator<Item = &'a Program>) -> Vec<&'static str> {
    programs
        .into_iter()
        .filter(|program| !is_present(program))
        .map(|program| program.package)
        .collect()
}

/// Installs the packages of the programs that are not there.
pub fn obtain<'a>(programs: impl IntoIterator<Item = &'a Program> + Clone) -> Result<()> {
    let packages = missing(programs.clone());
    if packages.is_empty() {
        return Ok(());
    }
    may_install(&packages, command::find("apt-get").is_some(), apt::is_root())?;
    let names = packages.join(" ");
    let step = progress::step(format!("installing {names}"));
    if install(&packages).is_err() {
        // The package lists are missing (as in a fresh container) or too old.
        command::output(apt_get().arg("update"))?;
        install(&packages)?;
    }
    let missing = missing(programs).join(" ");
    if !missing.is_empty() {
        bail!("apt-get takes {missing} for installed, but the programs are not there: reinstall it");
    }
    step.done(&format!("installed {names}"));
    Ok(())
}

/// Whether these packages may be installed by apt here; the error says what the user can do.
fn may_install(packages: &[&str], has_apt: bool, is_root: bool) -> Result<()> {
    let names = packages.join(" ");
    if !has_apt {
        bail!(
            "missing here: {names} (the names of Debian's packages); install them with this system's package manager"
        );
    }
    if !is_root {
        bail!("missing here: {names}; install with: sudo apt-get install --no-install-recommends {names}");
    }
    Ok(())
}

fn install(packages: &[&str]) -> Result<()> {
    command::output(
        apt_get()
            .args(["install", "--yes", "--no-install-recommends"])
            .args(packages),
    )
    .map(drop)
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["--quiet", "--option", "DPkg::Lock::Timeout=120"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C");
    command
}

/// A busybox that needs libraries is as good as none: it is the guest's first program.
fn is_present(program: &Program) -> bool {
    let Some(path) = command::find(program.name) else {
        return false;
    };
    program.name != "busybox" || is_static(&path)
}

fn is_static(path: &std::path::Path) -> bool {
    // `ldd` fails for a program without a dynamic loader.
    Command::new("ldd")
        .arg(path)
        .output()
        .is_ok_and(|output| !output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_with_apt_installs() {
        let said = |has_apt, is_root| {
            may_install(&["fio", "bpftool"], has_apt, is_root)
                .err()
                .map(|error| error.to_string())
        };
        assert_eq!(said(true, true), None);
        let by_hand = said(true, false).expect("not allowed");
        assert!(
            by_hand.ends_with("sudo apt-get install --no-install-recommends fio bpftool"),
            "{by_hand}"
        );
        for is_root in [false, true] {
            let other = said(false, is_root).expect("not possible");
            assert!(other.contains("package manager"), "{other}");
        }
    }

    #[test]
    fn what_is_missing_is_named_by_its_package() {
        let none = Program {
            name: "no-such-program-anywhere",
            package: "no-such-package",
        };
        let shell = Program {
            name: "sh",
            package: "dash",
        };
        assert_eq!(missing([&none, &shell]), ["no-such-package"]);
        obtain([&shell]).expect("nothing is missing");
    }
}
