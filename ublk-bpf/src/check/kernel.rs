//! The kernel: its version, ublk, io_uring and BPF.

use std::fs;
use std::path::Path;

use super::finding::Finding;
use crate::control::{CONTROL_PATH, Control, ControlError, FEATURES, Features, Recovery};
use crate::driver;
use crate::policy::{self, KernelLayout, PolicyError, VMLINUX_BTF};
use crate::sys::process::{Capability, has_capability};

/// The first Linux with everything that a device needs: [`Features::NEEDED`].
const FIRST: (u32, u32) = (7, 0);
/// Whether io_uring is allowed: 0 to all, 1 to privileged processes, 2 to none.
const IO_URING_DISABLED: &str = "/proc/sys/kernel/io_uring_disabled";

/// What the driver answers about its features.
type FeaturesResult = Result<Features, ControlError>;

/// The version decides nothing by itself: a distribution may have brought the driver to an older kernel.
pub(super) fn version(features: Option<&FeaturesResult>) -> Finding {
    const NAME: &str = "kernel";
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let found = format!("Linux {release}");
    let is_sufficient = matches!(features, Some(Ok(found)) if found.contains(Features::NEEDED));
    if is_sufficient || numbers(&release).is_some_and(|version| version >= FIRST) {
        return Finding::ok(NAME, found);
    }
    let found = format!("{found}: batch-mode ublk came with Linux {}.{}", FIRST.0, FIRST.1);
    Finding::missing(NAME, found).remedy("boot Linux 7.0 or later")
}

/// Major and minor version of a release.
fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

pub(super) fn driver(control: &Result<Control, ControlError>) -> Finding {
    const NAME: &str = "ublk driver";
    match control {
        Ok(_) => Finding::ok(NAME, format!("{CONTROL_PATH} can be used")),
        Err(ControlError::NoDriver) => no_driver(NAME),
        Err(ControlError::NoPermission) => {
            Finding::missing(NAME, format!("no permission to open {CONTROL_PATH}")).remedy("run as root")
        }
        Err(error) => Finding::missing(NAME, error.to_string()),
    }
}

fn no_driver(name: &'static str) -> Finding {
    let missing = |why: &str| Finding::missing(name, format!("{CONTROL_PATH} does not exist: {why}"));
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if Path::new("/sys/module/ublk_drv").exists() {
        return missing("the driver is there, its node is not").remedy("mount devtmpfs on /dev");
    }
    match fs::read_to_string(format!("/lib/modules/{release}/modules.dep")) {
        Ok(modules) if modules.contains("/ublk_drv.ko") => missing("the driver is not loaded").remedy(
            "run `modprobe ublk_drv`; to load it at boot, write ublk_drv to /etc/modules-load.d/ublk.conf",
        ),
        _ => missing("this kernel has no module ublk_drv")
            .remedy("boot a kernel that was built with CONFIG_BLK_DEV_UBLK"),
    }
}

pub(super) fn features(answer: Option<&FeaturesResult>) -> Finding {
    const NAME: &str = "ublk features";
    let found = match answer {
        None => return Finding::unknown(NAME, "they need the driver"),
        Some(Err(error)) => return Finding::missing(NAME, error.to_string()),
        Some(Ok(found)) => *found,
    };
    if let Err(missing) = found.require(Features::NEEDED) {
        return Finding::missing(NAME, missing.to_string());
    }
    let recovery = Recovery::ALL
        .iter()
        .fold(Features::empty(), |all, mode| all | mode.flags());
    match found.require(recovery) {
        Err(missing) => Finding::note(
            NAME,
            format!("devices with --recovery are not possible: {missing}"),
        ),
        Ok(()) => Finding::ok(
            NAME,
            format!(
                "{} of {} that ublk-bpf knows, all that it needs: UBLK_F_BATCH_IO and the others that `ublk-bpf features` lists",
                found.known().count(),
                FEATURES.len()
            ),
        ),
    }
}

pub(super) fn io_uring() -> Finding {
    const NAME: &str = "io_uring";
    let Err(error) = driver::probe() else {
        return Finding::ok(NAME, "rings can be made");
    };
    let setting = fs::read_to_string(IO_URING_DISABLED).unwrap_or_default();
    let missing = |why: &str| Finding::missing(NAME, format!("no ring can be made ({error}){why}"));
    match setting.trim() {
        "" => missing("").remedy("boot Linux 7.0 or later, built with CONFIG_IO_URING"),
        "0" => missing("").remedy("allow io_uring_setup in the seccomp filter of this container or service"),
        value => missing(&format!(": kernel.io_uring_disabled is {value}"))
            .remedy("run `sysctl kernel.io_uring_disabled=0`"),
    }
}

pub(super) fn btf() -> Finding {
    const NAME: &str = "BTF";
    match KernelLayout::of_running_kernel() {
        Ok(_) => Finding::ok(NAME, format!("{VMLINUX_BTF} describes what the classifier reads")),
        Err(error) if Path::new(VMLINUX_BTF).exists() => Finding::missing(NAME, error.to_string()),
        Err(_) => Finding::missing(NAME, format!("{VMLINUX_BTF} does not exist"))
            .remedy("boot a kernel that was built with CONFIG_DEBUG_INFO_BTF"),
    }
}

pub(super) fn bpffs() -> Finding {
    const NAME: &str = "bpffs";
    match policy::check_bpffs() {
        Ok(true) => Finding::ok(NAME, "mounted, and root's alone to write"),
        Ok(false) => Finding::ok(NAME, "not mounted: the first start mounts it"),
        Err(error) => Finding::missing(NAME, error.to_string()),
    }
}

/// What the kernel says to the programs of a device.
pub(super) fn programs() -> [Finding; 3] {
    const CLASSIFIER: &str = "classifier";
    const POLICIES: &str = "policies";
    const WATCH: &str = "truncation watch";
    if has_capability(Capability::SysAdmin).is_ok_and(|has| !has) {
        return [CLASSIFIER, POLICIES, WATCH].map(|name| Finding::unknown(name, "run as root to try it"));
    }
    let (classifier, policies) = match policy::try_classifier() {
        Err(error) => (
            refused(CLASSIFIER, &error),
            Finding::unknown(POLICIES, "they need the classifier"),
        ),
        Ok(policy) => (
            Finding::ok(CLASSIFIER, "the verifier accepts it (tp_btf on block_rq_issue)"),
            policy.map_or_else(
                |error| refused(POLICIES, &error),
                |()| Finding::ok(POLICIES, "they can be attached and replaced (freplace)"),
            ),
        ),
    };
    let watch = policy::try_watch().map_or_else(
        |error| {
            let found = format!("the truncation of a backing file is noticed with a delay: {error}");
            Finding::note(WATCH, found)
        },
        |()| Finding::ok(WATCH, "it can be attached (fexit on notify_change)"),
    );
    [classifier, policies, watch]
}

fn refused(name: &'static str, error: &PolicyError) -> Finding {
    let found = Finding::missing(name, error.to_string());
    match error {
        // These say what to do themselves.
        PolicyError::NoPermission | PolicyError::Refused(_) | PolicyError::Kernel(_) => found,
        _ => found.remedy(
            "boot a kernel that was built with CONFIG_BPF_SYSCALL, CONFIG_BPF_JIT, CONFIG_BPF_EVENTS and \
             CONFIG_DEBUG_INFO_BTF",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::FindingState;

    #[test]
    fn a_release_has_two_numbers() {
        assert_eq!(numbers("7.3.4+deb13-cloud-amd64"), Some((7, 3)));
        assert_eq!(numbers("10.0-rc1"), Some((10, 0)));
        assert_eq!(numbers("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(numbers("unknown"), None);
    }

    #[test]
    fn a_driver_with_all_features_makes_up_for_an_old_version() {
        let (sufficient, old) = (Ok(Features::NEEDED), Ok(Features::USER_COPY));
        assert_eq!(version(Some(&sufficient)).state, FindingState::Ok);
        assert_eq!(features(Some(&old)).state, FindingState::Missing);
        assert_eq!(features(None).state, FindingState::Unknown);
        assert!(
            features(Some(&old))
                .found
                .contains("UBLK_F_BATCH_IO, Linux >= 7.0")
        );
        let without_recovery = features(Some(&sufficient));
        assert_eq!(without_recovery.state, FindingState::Note);
    }
}
