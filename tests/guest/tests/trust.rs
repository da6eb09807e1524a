//! What the server leaves for later commands can be changed by root alone, whatever the umask is; and what
//! others could have changed is refused.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use ublk_bpf_guest::leftover::{nothing_is_left, refused};
use ublk_bpf_guest::{Backing, Device, run, try_run};

const RUN: &str = "/run/ublk-bpf";
const PINS: &str = "/sys/fs/bpf/ublk-bpf";
const NOBODY: u32 = 65534;

/// Everything below a directory, and the directory.
fn tree(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    for entry in fs::read_dir(root).unwrap_or_else(|e| panic!("{}: {e}", root.display())) {
        let path = entry.unwrap_or_else(|e| panic!("{e}")).path();
        if path.is_dir() {
            found.extend(tree(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn set_mode(path: &str, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap_or_else(|e| panic!("{path}: {e}"));
}

fn mode(path: &Path) -> u32 {
    let facts = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(facts.uid(), 0, "{}", path.display());
    facts.mode() & 0o7777
}

#[test]
fn under_umask_0_nobody_else_can_write_to_what_is_made() {
    let _ = fs::remove_dir_all(RUN);
    let _ = fs::remove_dir(PINS);
    let backing = Backing::file("umask", 16);
    let start = format!(
        "umask 0; exec ublk-bpf run --daemon --backing {} --recovery reissue --policy sparse",
        backing.spec()
    );
    let device = Device::announced(&run("sh", &["-c", &start]));
    let id = device.id();
    run(
        "sh",
        &["-c", &format!("umask 0; ublk-bpf policy swap {id} fault")],
    );
    let record = format!("{RUN}/ublkb{id}.json");
    for path in [tree(Path::new(RUN)), tree(Path::new(PINS))].concat() {
        let wanted = match path.to_str() {
            Some(RUN) => 0o755,
            Some(path) if path == record => 0o644,
            Some(_) if path.starts_with(PINS) && path.is_dir() => 0o700,
            _ => 0o600,
        };
        assert_eq!(mode(&path), wanted, "{}", path.display());
    }
    let write = format!("echo > {record}; rm -f {record} {PINS}/ublkb{id}/policy_link");
    let nobody = [
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "sh",
        "-c",
        &write,
    ];
    assert!(!try_run("setpriv", &nobody).status.success());
    assert!(device.pins().join("policy_link").exists());
    assert_eq!(device.show()["policy"], "fault");
    device.stop();
    nothing_is_left();
}

#[test]
fn a_directory_that_others_can_write_is_refused_by_every_command() {
    let backing = Backing::file("directory", 16);
    let device = Device::on(&backing, &["--recovery", "reissue"]);
    let id = device.id();
    device.kill_server("waiting");
    let commands = [
        &["list"][..],
        &["run", "--backing", "mem:8M"],
        &["run", "--backing", "mem:8M", "--daemon"],
        &["run", "--recover", &id],
        &["stop", &id],
        &["stop", "--all"],
    ];
    for (directory, what) in [(RUN, "the run directory"), (PINS, "the pin directory")] {
        let before = mode(Path::new(directory));
        set_mode(directory, 0o777);
        for args in commands {
            let said = refused(args);
            let wanted = format!("{what} {directory} can be written by users other than root (mode 0777)");
            assert!(said.contains(&wanted), "{args:?}: {said}");
        }
        set_mode(directory, before);
        chown(directory, Some(NOBODY), None).unwrap_or_else(|e| panic!("{e}"));
        for args in commands {
            let said = refused(args);
            let wanted = format!("{what} {directory} belongs to user {NOBODY}");
            assert!(said.contains(&wanted), "{args:?}: {said}");
        }
        chown(directory, Some(0), None).unwrap_or_else(|e| panic!("{e}"));
    }
    let pins = device.pins();
    let pins = pins.to_str().unwrap_or_else(|| panic!("it is UTF-8"));
    set_mode(pins, 0o777);
    for args in [&["stats", &id][..], &["policy", "swap", &id, "sparse"]] {
        assert!(refused(args).contains("mode 0777"), "{args:?}");
    }
    set_mode(pins, 0o700);

    // A link in the place of the directory leads to what its maker likes.
    let moved = "/run/moved";
    fs::rename(RUN, moved)
        .and_then(|()| symlink(moved, RUN))
        .unwrap_or_else(|e| panic!("{e}"));
    for args in commands {
        assert!(
            refused(args).contains("/run/ublk-bpf is a symbolic link"),
            "{args:?}"
        );
    }
    fs::remove_file(RUN)
        .and_then(|()| fs::rename(moved, RUN))
        .unwrap_or_else(|e| panic!("{e}"));
    run("ublk-bpf", &["run", "--recover", &id, "--daemon"]);
    device.stop();
    nothing_is_left();
}

#[test]
fn a_record_or_lock_that_others_could_have_written_is_refused() {
    let backing = Backing::file("record", 16);
    let device = Device::on(&backing, &["--recovery", "reissue"]);
    let id = device.id();
    device.kill_server("waiting");
    let record = format!("{RUN}/ublkb{id}.json");
    let recover = ["run", "--recover", &id];
    for args in [&recover[..], &["show", &id], &["policy", "swap", &id, "sparse"]] {
        set_mode(&record, 0o666);
        let said = refused(args);
        assert!(
            said.starts_with(&format!("the record {record} can be written by users other")),
            "{said}"
        );
        set_mode(&record, 0o644);
        chown(&record, Some(NOBODY), None).unwrap_or_else(|e| panic!("{e}"));
        assert!(refused(args).contains("belongs to user 65534"), "{args:?}");
        chown(&record, Some(0), None).unwrap_or_else(|e| panic!("{e}"));
    }
    let kept = "/run/kept.json";
    fs::rename(&record, kept)
        .and_then(|()| symlink(kept, &record))
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(refused(&recover).contains("is a symbolic link"));
    fs::rename(kept, &record).unwrap_or_else(|e| panic!("{e}"));

    let lock = format!("{RUN}/ublkb{id}.lock");
    set_mode(&lock, 0o622);
    for args in [&recover[..], &["show", &id], &["stop", &id]] {
        let said = refused(args);
        assert!(
            said.starts_with(&format!("the lock {lock} can be written by users other")),
            "{said}"
        );
    }
    set_mode(&lock, 0o600);
    // A log is made anew: a link there leads nowhere.
    let log = format!("{RUN}/ublkb{id}.log");
    let _ = fs::remove_file(&log);
    fs::write("/run/victim", "content")
        .and_then(|()| symlink("/run/victim", &log))
        .unwrap_or_else(|e| panic!("{e}"));
    run("ublk-bpf", &["run", "--recover", &id, "--daemon"]);
    assert!(
        !fs::symlink_metadata(&log)
            .unwrap_or_else(|e| panic!("{e}"))
            .is_symlink()
    );
    assert_eq!(fs::read_to_string("/run/victim").unwrap_or_default(), "content");
    device.stop();
    nothing_is_left();
}
