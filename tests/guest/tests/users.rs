//! The users of a device, found through partitions and the devices on top of it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use ublk_bpf_guest::leftover::{nothing_is_left, refused};
use ublk_bpf_guest::{Backing, Device, Mapper, read, run};

/// Gives the device a DOS partition table with one partition of all but the first MiB, and returns its path.
fn partition(device: &Device, mib: u32) -> String {
    let (start, sectors) = (2048_u32, (mib - 1) * 2048);
    let mut table = [0; 512];
    let entry = &mut table[446..462];
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&start.to_le_bytes());
    entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    let file = File::options()
        .write(true)
        .open(device.path())
        .unwrap_or_else(|e| panic!("{e}"));
    file.write_all_at(&table, 0)
        .and_then(|()| file.sync_all())
        .unwrap_or_else(|e| panic!("{e}"));
    drop(file);
    run("blockdev", &["--rereadpt", device.path_str()]);
    format!("{}p1", device.path_str())
}

/// The only user that `show` names, which `stop` refuses with as well.
fn user(device: &Device) -> String {
    let shown = device.show();
    let users = shown["users"].as_array().unwrap_or_else(|| panic!("{shown:#}"));
    assert_eq!(users.len(), 1, "{users:?}");
    let user = users[0].as_str().unwrap_or_default().to_owned();
    let said = refused(&["stop", &device.id()]);
    assert!(said.contains(&format!("in use by {user}:")), "{user}: {said}");
    user
}

#[test]
fn users_of_a_partition_and_of_what_is_on_it_are_named() {
    let device = Device::run(&["--backing", "mem:64M"]);
    let part = partition(&device, 64);
    let name = part.trim_start_matches("/dev/");
    assert_eq!(device.show()["users"].as_array().map(Vec::len), Some(0));

    run("mkswap", &[&part]);
    run("swapon", &[&part]);
    assert_eq!(user(&device), format!("{name} as swap"));
    run("swapoff", &[&part]);

    let held = File::open(&part).unwrap_or_else(|e| panic!("{e}"));
    let process = std::process::id();
    let said = user(&device);
    assert!(
        said.starts_with(&format!("{name} open in ")) && said.ends_with(&format!("(process {process})")),
        "{said}"
    );
    drop(held);

    run("mkfs.ext4", &["-q", &part]);
    fs::create_dir_all("/mnt/of users").unwrap_or_else(|e| panic!("{e}"));
    run("mount", &[&part, "/mnt/of users"]);
    assert_eq!(user(&device), format!("{name} mounted at /mnt/of users"));
    run("umount", &["/mnt/of users"]);

    let mapper = Mapper::linear("vg-root", &part);
    let mapped = mapper.path().display().to_string();
    let disk = mapped.trim_start_matches("/dev/");
    assert_eq!(user(&device), format!("{disk} (vg-root)"));
    run("mount", &[&mapped, "/mnt/of users"]);
    assert_eq!(
        user(&device),
        format!("{disk} (vg-root) mounted at /mnt/of users")
    );

    // A file of that file system, with a loop device over it, that is swapped to.
    let file = "/mnt/of users/line\nfeed";
    File::create(file)
        .and_then(|file| file.set_len(8 << 20))
        .unwrap_or_else(|e| panic!("{e}"));
    let over = run("losetup", &["--find", "--show", file]).trim().to_owned();
    let over_name = over.trim_start_matches("/dev/");
    run("mkswap", &[&over]);
    run("swapon", &[&over]);
    let shown = device.show()["users"].to_string();
    let said = refused(&["stop", &device.id()]);
    for words in [
        format!("{disk} (vg-root) mounted at /mnt/of users"),
        format!("{over_name} on /mnt/of users/line\\nfeed as swap"),
    ] {
        assert!(said.contains(&words), "{words}: {said}");
        assert!(shown.contains(&words.replace('\\', "\\\\")), "{words}: {shown}");
    }
    run("swapoff", &[&over]);
    run("losetup", &["-d", &over]);
    run("umount", &["/mnt/of users"]);
    drop(mapper);
    device.stop();
    nothing_is_left();
}

#[test]
fn a_loop_device_over_the_device_is_named() {
    let backing = Backing::file("under", 32);
    let device = Device::on(&backing, &[]);
    let over = run("losetup", &["--find", "--show", device.path_str()])
        .trim()
        .to_owned();
    let name = over.trim_start_matches("/dev/");
    assert_eq!(user(&device), format!("{name} on {}", device.path_str()));
    run("losetup", &["-d", &over]);
    assert!(
        read(device.sysfs("size"))
            .parse::<u64>()
            .is_ok_and(|sectors| sectors == 32 << 11)
    );
    device.stop();
    nothing_is_left();
}
