//! What is refused, and that the one line about it names the true cause.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use ublk_bpf_guest::leftover::{nothing_is_left, refused, refused_by};
use ublk_bpf_guest::{Backing, Device, FileSystem, read, run, write};

/// Runs `ublk-bpf run` by a shell that does this first, and returns the line that it fails with.
fn refused_after(first: &str, args: &str) -> String {
    refused_by("sh", &["-c", &format!("{first} exec ublk-bpf run {args}")])
}

fn configure(disk: &str, setting: &str, value: &str) {
    write(format!("/sys/kernel/config/nullb/{disk}/{setting}"), value);
}

/// Takes the disk down, changes its settings, and brings it up again.
fn reconfigure(disk: &str, settings: &[(&str, &str)]) {
    configure(disk, "power", "0");
    for (setting, value) in settings {
        configure(disk, setting, value);
    }
    configure(disk, "power", "1");
}

#[test]
fn a_zoned_disk_is_neither_a_backing_nor_a_cache() {
    let disk = Backing::null_blk("zones", 64);
    reconfigure("zones", &[("discard", "0"), ("zoned", "1"), ("zone_size", "4")]);
    assert_eq!(read("/sys/block/zones/queue/zoned"), "host-managed");
    let why = "/dev/zones: is a zoned disk (host-managed), whose zones take writes only in sequence";
    let said = refused(&["run", "--backing", disk.spec()]);
    assert!(said.starts_with(&format!("backing {why}")), "{said}");
    let said = refused(&["run", "--backing", "mem:8M", "--cache", disk.spec()]);
    assert!(said.starts_with(&format!("cache {why}")), "{said}");
    nothing_is_left();
}

#[test]
fn a_cache_with_larger_blocks_needs_leave() {
    let backing = Backing::file("small-blocks", 64);
    let cache = Backing::null_blk("large-blocks", 32);
    reconfigure("large-blocks", &[("blocksize", "4096")]);
    let options = ["--backing", backing.spec(), "--cache", cache.spec()];
    // A file system with blocks below 4 KiB could not be mounted on a device whose blocks have 4 KiB.
    let device = Device::on(&backing, &[]);
    run("mkfs.ext4", &["-q", "-b", "1024", device.path_str()]);
    device.stop();
    let said = refused(&[&["run"], &options[..]].concat());
    assert!(
        said.starts_with("cache /dev/large-blocks: has blocks of 4096 bytes and the backing of 512: ")
            && said.contains("--logical-block 4096"),
        "{said}"
    );
    let device = Device::run(
        &[
            &options[..],
            &["--logical-block", "4096", "--recovery", "reissue"],
        ]
        .concat(),
    );
    let block = || read(device.sysfs("queue/logical_block_size"));
    assert_eq!(block(), "4096");
    device.kill_server("waiting");
    device.recover();
    assert_eq!(block(), "4096");
    FileSystem::Ext4.make(device.path_str());
    drop(FileSystem::Ext4.mount(device.path_str(), "noatime"));
    FileSystem::Ext4.check(device.path_str());
    device.stop();
    nothing_is_left();
}

#[test]
fn a_logical_block_can_be_asked_for_without_a_cache() {
    for backing in ["mem:64M", "null:64M"] {
        let device = Device::run(&["--backing", backing, "--logical-block", "4K"]);
        assert_eq!(read(device.sysfs("queue/logical_block_size")), "4096");
        device.stop();
    }
    let disk = Backing::null_blk("four", 32);
    reconfigure("four", &[("blocksize", "4096")]);
    let said = refused(&["run", "--backing", disk.spec(), "--logical-block", "512"]);
    assert!(
        said.starts_with("backing /dev/four: its block of 4096 bytes is larger than the 512"),
        "{said}"
    );
}

#[test]
fn a_file_that_may_not_be_changed_is_told_by_its_attribute() {
    let disk = Backing::file("attributes", 64);
    run("mkfs.ext4", &["-q", "-F", disk.spec()]);
    fs::create_dir_all("/mnt/attributes").unwrap_or_else(|e| panic!("{e}"));
    run("mount", &["-o", "loop", disk.spec(), "/mnt/attributes"]);
    let path = "/mnt/attributes/backing";
    File::create(path)
        .and_then(|file| file.set_len(8 << 20))
        .unwrap_or_else(|e| panic!("{e}"));
    for (letter, words) in [("i", "immutable"), ("a", "append-only")] {
        run("chattr", &[&format!("+{letter}"), path]);
        let said = refused(&["run", "--backing", path]);
        assert!(
            said.starts_with(&format!("backing {path}: is {words} (chattr +{letter}): ")),
            "{said}"
        );
        Device::run(&["--backing", path, "--read-only"]).stop();
        run("chattr", &[&format!("-{letter}"), path]);
    }
    Device::run(&["--backing", path]).stop();
    nothing_is_left();
    run("umount", &["/mnt/attributes"]);
}

#[test]
fn a_limit_of_open_files_is_raised_or_told() {
    let said = refused_after("ulimit -n 40;", "--backing mem:8M");
    assert!(
        said.contains("open files and the hard limit of this process is 40: raise it"),
        "{said}"
    );
    // What is said to be needed is enough, and the soft limit is no obstacle.
    let needed: String = said.chars().skip_while(|c| !c.is_ascii_digit()).collect();
    let needed = needed.split(' ').next().unwrap_or_default();
    let start = format!(
        "ulimit -Sn 10; ulimit -Hn {needed}; exec ublk-bpf run --daemon --backing mem:8M --cache mem:4M"
    );
    Device::announced(&run("sh", &["-c", &start])).stop();
    nothing_is_left();
}

#[test]
fn a_thread_that_cannot_be_is_told_by_its_limit() {
    let group = "/sys/fs/cgroup/few";
    if !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        run("mount", &["-t", "cgroup2", "none", "/sys/fs/cgroup"]);
    }
    write("/sys/fs/cgroup/cgroup.subtree_control", "+pids");
    fs::create_dir(group).unwrap_or_else(|e| panic!("{e}"));
    write(format!("{group}/pids.max"), "1");
    let said = refused_after(&format!("echo $$ > {group}/cgroup.procs;"), "--backing mem:8M");
    assert_eq!(
        said,
        format!(
            "cannot start the process that stops devices: the control group {group} has 1 of at most 1 tasks: raise its pids.max (TasksMax=)"
        )
    );
    nothing_is_left();
    fs::remove_dir(group).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn a_start_without_the_privilege_is_told_so() {
    let control = "/dev/ublk-control";
    let mode = |mode| fs::set_permissions(control, fs::Permissions::from_mode(mode));
    mode(0o666).unwrap_or_else(|e| panic!("{e}"));
    let said = refused_by(
        "setpriv",
        &[
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "ublk-bpf",
            "run",
            "--backing",
            "mem:8M",
        ],
    );
    mode(0o600).unwrap_or_else(|e| panic!("{e}"));
    assert!(said.contains("CAP_SYS_ADMIN"), "{said}");
    nothing_is_left();
}

#[test]
fn a_file_in_the_place_of_a_node_is_told() {
    for node in ["/dev/ublkb0", "/dev/ublkc0"] {
        fs::write(node, "").unwrap_or_else(|e| panic!("{e}"));
        let said = refused(&["run", "--backing", "mem:8M", "--id", "0"]);
        assert!(
            said.starts_with(&format!("{node} is not a device node")),
            "{said}"
        );
        fs::remove_file(node).unwrap_or_else(|e| panic!("{e}"));
        nothing_is_left();
    }
}

#[test]
fn a_run_folder_that_cannot_be_written_is_told() {
    run("mount", &["-t", "tmpfs", "-o", "ro", "none", "/run"]);
    for args in [
        &["run", "--backing", "mem:8M"][..],
        &["run", "--backing", "mem:8M", "--daemon"],
    ] {
        let said = refused(args);
        assert!(
            said.contains("/run/ublk-bpf")
                && said.contains("Read-only file system")
                && said.contains("tmpfs"),
            "{said}"
        );
    }
    run("umount", &["/run"]);
    nothing_is_left();
}

#[test]
fn a_policy_about_a_cache_is_not_swapped_to_without_one() {
    let device = Device::run(&["--backing", "mem:8M"]);
    let said = refused(&["policy", "swap", &device.id(), "lru"]);
    assert!(
        said.starts_with("policy lru needs a cache, and the device has none"),
        "{said}"
    );
    assert_eq!(device.show()["policy"], "passthrough");
    device.stop();
    let device = Device::run(&["--backing", "mem:8M", "--cache", "mem:4M"]);
    device.swap("lru");
    device.stop();
}

#[test]
fn any_path_is_served_recovered_and_shown_in_a_line() {
    let name = OsStr::from_bytes(b"/tmp/a\nb\xff\\.img");
    let shown = "/tmp/a\\nb\\xff\\\\.img";
    File::create(name)
        .and_then(|file| file.set_len(16 << 20))
        .unwrap_or_else(|e| panic!("{e}"));
    let output = Command::new("ublk-bpf")
        .args(["run", "--daemon", "--recovery", "reissue", "--backing"])
        .arg(name)
        .output()
        .unwrap_or_else(|e| panic!("{e}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains(&format!(" on {shown}, ")), "{output:?}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let device = Device::announced(&said);
    assert_eq!(device.show()["backing"], shown);
    assert!(run("ublk-bpf", &["list"]).contains(shown));
    device.kill_server("waiting");
    let said = device.recover();
    assert!(said.contains(shown), "{said}");
    device.stop();
    fs::remove_file(name).unwrap_or_else(|e| panic!("{e}"));
    nothing_is_left();
}
