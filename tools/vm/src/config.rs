//! What a guest is made of and may do.

use std::path::PathBuf;
use std::time::Duration;

/// A guest that has not reached its command by then will not.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// CPUs that can boot by then: they take turns.
const BOOT_CPUS: u32 = 4;

/// A disk of the guest, empty at start and gone at the end.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Its size.
    pub bytes: u64,
}

/// What the guest is made of and may do.
#[derive(Clone, Debug)]
pub struct Config {
    /// They take turns on one of this machine's.
    pub cpus: u32,
    /// As qemu takes it: `2G`.
    pub memory: String,
    /// Whether the guest's clock counts instructions: those of all its CPUs together, which take turns.
    pub icount: bool,
    /// The whole may take so long.
    pub timeout: Option<Duration>,
    /// So long may nothing come from the guest.
    pub silence: Option<Duration>,
    /// Files and folders of this machine, and where the guest has them.
    pub files: Vec<(PathBuf, String)>,
    /// Programs that were built here and where the guest has them; their libraries go with them.
    pub built: Vec<(PathBuf, String)>,
    /// Programs of this machine beside the usual ones, copied with their libraries.
    pub programs: Vec<String>,
    /// The root of a system with systemd, which the guest boots: its command is run before that, as a service of it, and
    /// after its shutdown, with `before`, `booted` or `after` as the last argument.
    pub system: Option<PathBuf>,
    /// `/dev/vda`, `/dev/vdb` and so on.
    pub disks: Vec<Disk>,
    /// Whether the kernel's messages are shown as they come.
    pub console: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cpus: 2,
            memory: "2G".to_owned(),
            icount: false,
            timeout: None,
            silence: Some(Duration::from_secs(120)),
            files: Vec::new(),
            built: Vec::new(),
            programs: Vec::new(),
            system: None,
            disks: Vec::new(),
            console: false,
        }
    }
}

impl Config {
    pub(crate) fn boot_limit(&self) -> Duration {
        BOOT_LIMIT * self.cpus.div_ceil(BOOT_CPUS)
    }

    pub(crate) fn kernel_arguments(&self) -> String {
        // loglevel 5: warnings are shown, for WARN() is one. Emulated CPUs are slow: what looks like a lockup in
        // 20 s is none. No KASLR: the same instructions in every boot. No DAMON_STAT: Debian has it watch all memory
        // from a kernel thread, now and then, which a short measurement sees.
        let mut arguments = "console=ttyS0 loglevel=5 panic=-1 oops=panic nokaslr watchdog_thresh=60 \
                             sysctl.kernel.hung_task_timeout_secs=240 random.trust_cpu=on damon_stat.enabled=0"
            .to_owned();
        if self.system.is_some() {
            arguments.push_str(" systemd.show_status=auto systemd.log_level=notice");
        }
        if self.icount {
            arguments.push_str(" nowatchdog");
        }
        arguments
    }
}
