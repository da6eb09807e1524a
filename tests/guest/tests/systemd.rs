//! A system with systemd and udev that has a file system on a device, set up as `docs/operations.md` says: booted, its
//! service restarted, reloaded and killed under load, and shut down.
//!
//! `cargo xtask test` boots a guest of its own for this: it runs the tests of `before` in the file system from which the
//! system is booted, those of `booted` as a service of the system, and those of `after` when it has shut down.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use ublk_bpf_guest::aligned::Aligned;
use ublk_bpf_guest::{FileSystem, read, run, run_json, wait_until, write};

/// The guest's disk, which the device is on.
const DISK: &str = "/dev/vda";
const MOUNT: &str = "/mnt/data";
const FILE: &str = "load";
const BLOCK: usize = 16 << 10;
const BLOCKS: u64 = 256;
/// How long a start of the service may take, under emulation.
const LONG: Duration = Duration::from_secs(120);
/// What `booted` leaves for `after`.
const SUM: &str = "root/checksum";

mod before {
    use super::*;

    const PAGE: &str = include_str!("../../../docs/operations.md");
    const UNIT: &str = include_str!("../../../ublk-bpf/dist/ublk-bpf.service");
    const RULES: &str = include_str!("../../../ublk-bpf/dist/60-ublk-bpf.rules");
    const TMPFILES: &str = include_str!("../../../ublk-bpf/dist/ublk-bpf.tmpfiles");
    const CONFIGURATION: &str =
        "recovery = \"reissue\"\n[[device]]\nname = \"data\"\nbacking = \"/dev/vda\"\n";
    /// The server's words are found in the kernel's log when nothing else is left.
    const LOG: &str = "[Service]\nStandardError=kmsg\nSyslogLevel=notice\n";

    fn put(path: &str, text: &str) {
        let path = Path::new("/sysroot").join(path);
        let folder = path.parent().unwrap_or_else(|| panic!("{path:?}"));
        fs::create_dir_all(folder).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        write(path, text);
    }

    #[test]
    fn the_system_is_set_up_as_the_manual_says() {
        FileSystem::Ext4.make(DISK);
        put("etc/ublk-bpf/devices.toml", CONFIGURATION);
        put("usr/lib/systemd/system/ublk-bpf.service", UNIT);
        put("etc/systemd/system/ublk-bpf.service.d/log.conf", LOG);
        put("usr/lib/udev/rules.d/60-ublk-bpf.rules", RULES);
        put("usr/lib/tmpfiles.d/ublk-bpf.conf", TMPFILES);
        let line = PAGE
            .lines()
            .find(|line| line.contains(MOUNT) && line.contains(" ext4 "));
        put(
            "etc/fstab",
            &format!("{}\n", line.unwrap_or_else(|| panic!("no line of fstab"))),
        );
        fs::hard_link("/usr/local/bin/ublk-bpf", "/sysroot/usr/bin/ublk-bpf")
            .unwrap_or_else(|e| panic!("{e}"));
        fs::create_dir_all(format!("/sysroot{MOUNT}")).unwrap_or_else(|e| panic!("{e}"));
        run("chroot", &["/sysroot", "systemctl", "enable", "ublk-bpf.service"]);
    }
}

mod booted {
    use super::*;

    /// Writes all the time, and knows what has to be where.
    struct Load {
        is_over: Arc<AtomicBool>,
        written: Arc<AtomicU64>,
        thread: JoinHandle<Vec<u64>>,
    }

    impl Load {
        fn start() -> Self {
            let file = file();
            let (is_over, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
            let (over, count) = (Arc::clone(&is_over), Arc::clone(&written));
            let thread = spawn(move || {
                let mut last = vec![0; usize::try_from(BLOCKS).unwrap_or(0)];
                let mut buffer = Aligned::new(BLOCK);
                for number in 1.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    // A step that meets every block, in no order.
                    let block = number * 97 % BLOCKS;
                    fill(buffer.first(BLOCK), block, number);
                    let at = block * BLOCK as u64;
                    file.write_all_at(buffer.first(BLOCK), at)
                        .unwrap_or_else(|e| panic!("block {block}: {e}"));
                    last[usize::try_from(block).unwrap_or(0)] = number;
                    count.store(number, Ordering::Relaxed);
                }
                last
            });
            Self {
                is_over,
                written,
                thread,
            }
        }

        fn goes_on(&self) {
            let before = self.written.load(Ordering::Relaxed);
            wait_until("the load goes on", LONG, || {
                self.written.load(Ordering::Relaxed) > before + 8
            });
        }

        /// Ends it, and finds every block as it was written last.
        fn check(self) {
            self.goes_on();
            self.is_over.store(true, Ordering::Relaxed);
            let last = self.thread.join().unwrap_or_else(|_| panic!("a write failed"));
            let (file, mut found) = (file(), Aligned::new(BLOCK));
            let mut wanted = Aligned::new(BLOCK);
            for (number, block) in last.into_iter().zip(0..) {
                if number > 0 {
                    fill(wanted.first(BLOCK), block, number);
                    let at = block * BLOCK as u64;
                    file.read_exact_at(found.first(BLOCK), at)
                        .unwrap_or_else(|e| panic!("block {block}: {e}"));
                    assert!(
                        found.first(BLOCK) == wanted.first(BLOCK),
                        "block {block} is not what was written"
                    );
                }
            }
        }
    }

    /// The words of a block: each says where it is and when it was written.
    fn fill(buffer: &mut [u8], block: u64, number: u64) {
        for (word, bytes) in (0_u64..).zip(buffer.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&(number << 32 | block << 16 | word).to_le_bytes());
        }
    }

    fn file() -> File {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .custom_flags(libc::O_DIRECT);
        let file = options.open(Path::new(MOUNT).join(FILE));
        file.unwrap_or_else(|e| panic!("{e}"))
    }

    /// A property of a unit.
    fn property(unit: &str, name: &str) -> String {
        run("systemctl", &["show", "--value", "-p", name, unit])
            .trim()
            .to_owned()
    }

    fn server() -> String {
        property("ublk-bpf.service", "MainPID")
    }

    /// The line of the mount in the kernel's list, with its number.
    fn mounted() -> String {
        let list = read("/proc/self/mountinfo");
        let line = list.lines().find(|line| line.contains(&format!(" {MOUNT} ")));
        line.unwrap_or_else(|| panic!("nothing at {MOUNT}: {list}"))
            .to_owned()
    }

    #[test]
    fn a_the_device_is_there_and_the_file_system_mounted_by_its_name() {
        // The mount may be on its way.
        wait_until("it is mounted", LONG, || {
            property("mnt-data.mount", "ActiveState") == "active"
        });
        assert_eq!(property("ublk-bpf.service", "ActiveState"), "active");
        assert_eq!(property("ublk-bpf.service", "StatusText"), "serving ublkb0");
        let link = fs::read_link("/dev/disk/by-id/ublk-bpf-data").unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(link, PathBuf::from("../../ublkb0"));
        assert!(mounted().ends_with(" - ext4 /dev/ublkb0 rw"), "{}", mounted());
        let failed = run("systemctl", &["list-units", "--failed", "--plain", "--no-legend"]);
        assert_eq!(failed, "");
    }

    #[test]
    fn b_a_restart_under_load_loses_nothing_and_unmounts_nothing() {
        let (before, mount) = (server(), mounted());
        let load = Load::start();
        load.goes_on();
        run("systemctl", &["restart", "ublk-bpf.service"]);
        assert_ne!(server(), before);
        assert_eq!(mounted(), mount);
        load.check();
    }

    #[test]
    fn c_a_killed_server_comes_back_by_itself() {
        let (before, mount) = (server(), mounted());
        let load = Load::start();
        load.goes_on();
        run("kill", &["-KILL", &before]);
        wait_until("there is another server", LONG, || {
            property("ublk-bpf.service", "ActiveState") == "active" && server() != before
        });
        assert_eq!(mounted(), mount);
        load.check();
    }

    #[test]
    fn d_a_reload_of_the_service_changes_the_device() {
        let (before, file) = (server(), "/etc/ublk-bpf/devices.toml");
        write(file, &format!("{}\npolicy = \"sparse\"\n", read(file)));
        run("systemctl", &["reload", "ublk-bpf.service"]);
        let shown = run_json("ublk-bpf", &["show", "data", "--json"]);
        assert_eq!((shown["policy"].as_str(), server()), (Some("sparse"), before));
    }

    #[test]
    fn z_what_is_there_is_noted_for_later() {
        let sum = run("md5sum", &[&format!("{MOUNT}/{FILE}")]);
        write(
            Path::new("/run/initramfs").join(SUM),
            sum.split(' ').next().unwrap_or_default(),
        );
    }
}

mod after {
    use super::*;

    /// Where the line with these words is in the kernel's log, the last one.
    fn line(log: &str, words: &str) -> usize {
        let at = log
            .lines()
            .collect::<Vec<_>>()
            .iter()
            .rposition(|line| line.contains(words));
        at.unwrap_or_else(|| panic!("no {words:?} in\n{log}"))
    }

    #[test]
    fn the_file_system_was_unmounted_before_the_server_left() {
        let log = run("dmesg", &[]);
        let unmounted = line(&log, "EXT4-fs (ublkb0): unmounting filesystem");
        let left = line(&log, "ublkb0 waits for a server");
        assert!(unmounted < left, "{log}");
    }

    #[test]
    fn what_was_written_is_on_the_disk() {
        let header = run("dumpe2fs", &["-h", DISK]);
        assert!(!header.contains("needs_recovery"), "{header}");
        FileSystem::Ext4.check(DISK);
        let mount = FileSystem::Ext4.mount(DISK, "ro");
        let sum = run("md5sum", &[&mount.file(FILE)]);
        let wanted = read(Path::new("/").join(SUM));
        assert_eq!(sum.split(' ').next(), Some(wanted.as_str()));
    }
}
