//! Whose storage is whose: a device that waits for its next server keeps what it is on, and no storage serves twice,
//! whatever paths lead to it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use ublk_bpf_guest::device::CONFIGURATION;
use ublk_bpf_guest::leftover::{SOON, nothing_is_left, refused};
use ublk_bpf_guest::{Backing, Device, Mapper, run, wait_until};

/// A link to a file, removed when dropped.
struct Link(&'static str);

impl Link {
    fn to(file: &str, link: &'static str) -> Self {
        let _ = fs::remove_file(link);
        fs::hard_link(file, link).unwrap_or_else(|e| panic!("cannot link {link} to {file}: {e}"));
        Self(link)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0);
    }
}

/// A loop device on a file, detached when dropped.
struct Loop(String);

impl Loop {
    fn on(file: &str, more: &[&str]) -> Self {
        let args = [&["--find", "--show"], more, &[file]].concat();
        Self(run("losetup", &args).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["-d", &self.0]);
    }
}

fn refused_start(options: &[&str]) -> String {
    refused(&[&["run", "--daemon"], options].concat())
}

/// Writes a block that says whose it is.
fn mark(device: &Device, byte: u8) {
    OpenOptions::new()
        .write(true)
        .open(device.path())
        .and_then(|file| file.write_all_at(&[byte; 4096], 0).and_then(|()| file.sync_all()))
        .unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn what_a_waiting_device_is_on_is_kept_from_others() {
    let (backing, cache) = (Backing::file("kept", 32), Backing::file("kept-cache", 16));
    let device = Device::on(&backing, &["--cache", cache.spec(), "--recovery", "reissue"]);
    mark(&device, 0xa5);
    let id = device.id();
    run("kill", &["-KILL", &device.server()]);
    // Right away, before the kernel has noticed: and by every way to the same bytes.
    let said = refused_start(&["--backing", backing.spec()]);
    let of = |role: &str| format!("in use: it is the {role} of ublkb{id}, which waits for a server");
    assert!(
        said.contains(&of("backing")) && said.contains("--recover-waiting"),
        "{said}"
    );
    let (link, looped) = (
        Link::to(backing.spec(), "/tmp/kept-link.img"),
        Loop::on(backing.spec(), &[]),
    );
    let other = Backing::file("kept-other", 16);
    for way in [backing.spec(), link.0, &looped.0] {
        for more in [
            &[][..],
            &["--read-only"],
            &["--cache", other.spec()],
            &["--recovery", "reissue"],
        ] {
            let said = refused_start(&[&["--backing", way], more].concat());
            assert!(
                said.starts_with("ublk-bpf: backing ") || said.starts_with("backing "),
                "{said}"
            );
            assert!(said.contains(&of("backing")), "{way} {more:?}: {said}");
        }
        let said = refused_start(&["--backing", other.spec(), "--cache", way, "--recover-waiting"]);
        assert!(
            said.contains("cache ") && said.contains(&of("backing")),
            "{way}: {said}"
        );
    }
    let said = refused_start(&["--backing", cache.spec()]);
    assert!(said.contains(&of("cache")), "{said}");
    let said = refused_start(&["--backing", other.spec(), "--cache", cache.spec()]);
    assert!(said.contains("cache ") && said.contains(&of("cache")), "{said}");
    assert_eq!(device.state(), "waiting");
    drop((link, looped));

    // Other options than those it was made with are not promised silently.
    for (more, words) in [
        (&[][..], "with the cache /tmp/kept-cache.img, not without a cache"),
        (&["--cache", cache.spec(), "--id", "77"], "not with id 77"),
        (&["--cache", cache.spec(), "--read-only"], "not read-only"),
    ] {
        let said = refused_start(&[&["--recover-waiting", "--backing", backing.spec()], more].concat());
        assert!(said.contains(words), "{said}");
        assert_eq!(device.state(), "waiting");
    }
    let again = [
        "--recover-waiting",
        "--backing",
        backing.spec(),
        "--cache",
        cache.spec(),
    ];
    let said = run("ublk-bpf", &[&["run", "--daemon"], &again[..]].concat());
    assert!(said.contains(&format!("/dev/ublkb{id} is ready")), "{said}");
    let mut found = [0; 4096];
    OpenOptions::new()
        .read(true)
        .open(device.path())
        .and_then(|file| file.read_exact_at(&mut found, 0))
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(found.iter().all(|&byte| byte == 0xa5));
    let said = refused_start(&again);
    assert!(said.contains(&format!("in use by ublkb{id}")), "{said}");
    device.stop();
    nothing_is_left();
}

#[test]
fn a_supervisor_starts_the_same_configuration_after_every_failure() {
    let backings = [Backing::file("first", 32), Backing::file("second", 32)];
    let table = |backing: &Backing| format!("[[device]]\nbacking = \"{}\"\n", backing.spec());
    let shared = "recover-waiting = true\nrecovery = \"reissue\"\n";
    let both = format!("{shared}{}{}", table(&backings[0]), table(&backings[1]));
    // Only the second waits; the first is new.
    let [waiting] = <[Device; 1]>::try_from(Device::run_all(&format!("{shared}{}", table(&backings[1]))))
        .unwrap_or_else(|_| panic!("one device was wanted"));
    mark(&waiting, 0x5a);
    waiting.kill_server("waiting");

    // If the new one cannot be made, the other goes on waiting, whether it was served already or not.
    let bad = format!(
        "{}policy = \"/root/policies/refused-bounds.o\"\n",
        table(&backings[0])
    );
    let good = table(&backings[1]);
    for tables in [format!("{bad}{good}"), format!("{good}{bad}")] {
        fs::write(CONFIGURATION, format!("{shared}{tables}")).unwrap_or_else(|e| panic!("{e}"));
        let said = refused_start(&["--config", CONFIGURATION]);
        assert!(said.contains(" of 2: "), "{said}");
        wait_until("the second device waits again", SOON, || {
            waiting.state() == "waiting"
        });
    }

    for _ in 0..2 {
        let devices = Device::run_all(&both);
        assert_eq!(devices.len(), 2);
        assert_eq!(devices[1].id(), waiting.id());
        assert_eq!(devices[0].server(), devices[1].server());
        let mut found = [0; 4096];
        OpenOptions::new()
            .read(true)
            .open(waiting.path())
            .and_then(|file| file.read_exact_at(&mut found, 0))
            .unwrap_or_else(|e| panic!("{e}"));
        assert!(found.iter().all(|&byte| byte == 0x5a));
        run("kill", &["-KILL", &devices[0].server()]);
        wait_until("both devices wait", SOON, || {
            devices.iter().all(|device| device.state() == "waiting")
        });
        devices.into_iter().for_each(std::mem::forget);
    }
    run("ublk-bpf", &["stop", "--all"]);
    nothing_is_left();
    std::mem::forget(waiting);
}

#[test]
fn of_two_starts_on_a_waiting_device_one_serves_it() {
    let backing = Backing::file("raced", 32);
    let device = Device::on(&backing, &["--recovery", "reissue"]);
    device.kill_server("waiting");
    let start = || {
        Command::new("ublk-bpf")
            .args([
                "run",
                "--daemon",
                "--recover-waiting",
                "--backing",
                backing.spec(),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{e}"))
    };
    let starts = [start(), start(), start()];
    let ended = starts.map(|child| child.wait_with_output().unwrap_or_else(|e| panic!("{e}")));
    let served = ended.iter().filter(|output| output.status.success()).count();
    assert_eq!(served, 1, "{ended:?}");
    assert_eq!(device.state(), "live");
    assert_eq!(
        fs::read_dir("/dev")
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| { entry.file_name().to_string_lossy().starts_with("ublkb") })
            .count(),
        1
    );
    device.stop();
    nothing_is_left();
}

#[test]
fn the_same_storage_does_not_serve_twice() {
    let (file, other) = (Backing::file("same", 32), Backing::file("same-other", 32));
    let link = Link::to(file.spec(), "/tmp/same-link.img");
    let whole = Loop::on(file.spec(), &[]);
    let beside = Loop::on(link.0, &[]);
    let half = Loop::on(file.spec(), &["--sizelimit", "16777216"]);
    let rest = Loop::on(file.spec(), &["--offset", "16777216"]);
    // Its own backing as cache, by any other way.
    let ways = [file.spec(), link.0, &whole.0, &beside.0, &half.0, &rest.0];
    for one in ways {
        for two in ways {
            // These two have nothing in common.
            if one != two && ways[4..].contains(&one) && ways[4..].contains(&two) {
                continue;
            }
            let said = refused_start(&["--backing", one, "--cache", two]);
            assert!(said.contains("in use"), "{one} {two}: {said}");
        }
    }
    drop((whole, beside));
    // Two halves of a file are two storages, in one process and in two.
    let first = Device::run(&["--backing", &half.0]);
    let second = Device::run(&["--backing", &rest.0]);
    for way in [file.spec(), link.0] {
        let said = refused_start(&["--backing", way]);
        assert!(said.contains("in use"), "{said}");
        let said = refused_start(&["--backing", other.spec(), "--cache", way]);
        assert!(said.contains("cache ") && said.contains("in use"), "{said}");
    }
    second.stop();
    first.stop();
    drop((half, rest));

    // A device's file, behind a loop device that was attached later.
    let device = Device::on(&file, &[]);
    let later = Loop::on(link.0, &[]);
    let said = refused_start(&["--backing", &later.0]);
    assert!(
        said.contains(&format!(
            "in use by ublkb{}, whose backing is the same",
            device.id()
        )),
        "{said}"
    );
    let said = refused_start(&["--backing", other.spec(), "--cache", &later.0]);
    assert!(
        said.contains("cache ") && said.contains("in use by ublkb"),
        "{said}"
    );
    device.stop();

    // Below device-mapper, and a loop device on a block device.
    let mapper = Mapper::linear("same", &later.0);
    let path = mapper.path().display().to_string();
    for (one, two) in [(path.as_str(), link.0), (&path, &later.0), (&later.0, &path)] {
        let said = refused_start(&["--backing", one, "--cache", two]);
        assert!(said.contains("in use"), "{one} {two}: {said}");
    }
    let above = Loop::on(&path, &[]);
    for (one, two) in [
        (path.as_str(), above.0.as_str()),
        (&above.0, &path),
        (&above.0, link.0),
    ] {
        let said = refused_start(&["--backing", one, "--cache", two]);
        assert!(said.contains("in use"), "{one} {two}: {said}");
    }
    drop(above);
    drop(mapper);
    drop(later);
    // What is only read may be shared.
    let readers = [
        Device::on(&file, &["--read-only"]),
        Device::run(&["--backing", link.0, "--read-only"]),
    ];
    assert!(refused_start(&["--backing", link.0]).contains("in use by ublkb"));
    readers.into_iter().for_each(Device::stop);
    nothing_is_left();
}

/// Reads the device from its start, in steps of a cache block.
fn read_all(device: &Device, mib: u64) {
    let file = OpenOptions::new()
        .read(true)
        .open(device.path())
        .unwrap_or_else(|e| panic!("{e}"));
    let mut block = vec![0; 64 << 10];
    for at in 0..mib << 4 {
        file.read_exact_at(&mut block, at << 16)
            .unwrap_or_else(|e| panic!("{e}"));
    }
}

/// A device on a cache whose writes take so many milliseconds, with blocks that are being promoted.
fn on_slow_cache(backing: &Backing, cache: &Mapper, recovery: &str, milliseconds: u32) -> Device {
    let path = cache.path().display().to_string();
    let device = Device::on(
        backing,
        &["--cache", &path, "--policy", "lru", "--recovery", recovery],
    );
    cache.delay_writes(milliseconds);
    read_all(&device, 4);
    wait_until("blocks are being promoted", SOON, || {
        std::thread::sleep(Duration::from_millis(200));
        device.stats()["cache"]["staged_bytes"] != 0
    });
    device
}

#[test]
fn a_device_is_recovered_while_its_dead_server_still_holds_a_slow_cache() {
    let (backing, disk) = (Backing::file("backing", 32), Backing::loop_device("cache", 16));
    let cache = Mapper::linear("slow", disk.spec());
    // What is promoted now is being written for long after the server's death.
    let device = on_slow_cache(&backing, &cache, "reissue", 4_000);
    run("kill", &["-KILL", &device.server()]);
    let said = device.recover();
    assert!(said.contains("is ready"), "{said}");
    cache.heal();
    read_all(&device, 4);
    device.stop();
    drop(cache);
    nothing_is_left();
}

#[test]
fn a_device_that_its_dead_server_still_holds_is_not_forgotten() {
    let (backing, disk) = (Backing::file("backing", 32), Backing::loop_device("cache", 16));
    let cache = Mapper::linear("slow", disk.spec());
    let device = on_slow_cache(&backing, &cache, "none", 200_000);
    run("kill", &["-KILL", &device.server()]);
    let said = refused(&["stop", &device.id()]);
    assert!(said.contains("still held by its dead server"), "{said}");
    assert!(device.pins().exists(), "its pins were removed");
    let said = refused_start(&["--backing", backing.spec()]);
    assert!(said.contains("in use by ublkb"), "{said}");
    // Lets the delayed writes go.
    cache.heal();
    device.stop();
    drop(cache);
    nothing_is_left();
}

#[test]
fn a_device_is_not_recovered_on_a_loop_device_that_was_attached_to_another_file() {
    let (first, other) = (Backing::file("attached", 32), Backing::file("attached-other", 32));
    let looped = Loop::on(first.spec(), &[]);
    let device = Device::run(&["--backing", &looped.0, "--recovery", "reissue"]);
    device.kill_server("waiting");
    let attach = |file: &str| {
        run("losetup", &["-d", &looped.0]);
        run("losetup", &[&looped.0, file]);
    };
    attach(other.spec());
    let said = refused(&["run", "--daemon", "--recover", &device.id()]);
    assert!(said.contains("attached to different storage"), "{said}");
    // What is below the loop device is the waiting device's still.
    let said = refused_start(&["--backing", first.spec()]);
    assert!(said.contains("which waits for a server"), "{said}");
    attach(first.spec());
    device.recover();
    device.stop();
    nothing_is_left();
}

#[test]
fn a_device_is_not_recovered_on_a_disk_that_was_made_anew() {
    let first = Backing::brd(32);
    let device = Device::on(&first, &["--recovery", "reissue"]);
    device.kill_server("waiting");
    drop(first);
    let second = Backing::brd(32);
    let said = refused(&["run", "--daemon", "--recover", &device.id()]);
    assert!(said.contains("another disk than before"), "{said}");
    device.stop();
    drop(second);
    nothing_is_left();
}
