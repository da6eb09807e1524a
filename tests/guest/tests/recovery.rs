//! A device without its server, by each recovery mode.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use ublk_bpf_guest::leftover::{SOON, nothing_is_left};
use ublk_bpf_guest::{Backing, Device, run, wait_until};

const MIB: u64 = 1 << 20;
/// What a request takes to get to the server, or to a queue in the kernel, under emulation.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

/// A read at this byte, on a thread of its own: its errno, or what it found.
fn read_at(device: &Device, offset: u64) -> JoinHandle<Result<u8, i32>> {
    let file = File::open(device.path()).unwrap_or_else(|e| panic!("{e}"));
    spawn(move || {
        let mut content = [0; 4096];
        match file.read_exact_at(&mut content, offset) {
            Ok(()) => Ok(content[0]),
            Err(error) => Err(error.raw_os_error().unwrap_or_default()),
        }
    })
}

fn end_of<T>(thread: JoinHandle<T>) -> T {
    wait_until("the read ends", SOON, || thread.is_finished());
    thread.join().unwrap_or_else(|_| panic!("the reader panicked"))
}

fn filled(name: &str) -> Backing {
    let backing = Backing::file(name, 16);
    let path: &Path = backing.path().unwrap_or_else(|| panic!("a file has a path"));
    std::fs::write(path, vec![0x5a; 16 << 20]).unwrap_or_else(|e| panic!("{e}"));
    backing
}

#[test]
fn requests_wait_or_fail_without_a_server_as_the_mode_says() {
    // Whether what the server had in hand fails, and what comes while there is none.
    for (mode, name, in_hand_fails, new_fails) in [
        ("reissue", "reissue", false, false),
        ("fail-in-flight", "fail-in-flight", true, false),
        ("fail", "fail-in-flight", true, false),
        ("fail-all", "fail-all", true, true),
    ] {
        let backing = filled("modes");
        let device = Device::run(&["--backing", backing.spec(), "--recovery", mode]);
        assert_eq!(device.show()["recovery"], name);
        let id = device.id();
        // A server that stands still has what comes in hand.
        run("kill", &["-STOP", &device.server()]);
        let in_hand = read_at(&device, MIB);
        sleep(ON_ITS_WAY);
        assert!(!in_hand.is_finished(), "{mode}: nobody serves it");
        device.kill_server("waiting");
        let new = read_at(&device, 4 * MIB);
        sleep(ON_ITS_WAY);
        assert_eq!(in_hand.is_finished(), in_hand_fails, "{mode}: in hand");
        assert_eq!(new.is_finished(), new_fails, "{mode}: new");
        let shown = run("ublk-bpf", &["show", &id]);
        assert!(
            shown.contains(&format!("{name}: without a server, requests ")),
            "{shown}"
        );
        assert!(run("ublk-bpf", &["list"]).contains("waiting"));

        run("ublk-bpf", &["run", "--recover", &id, "--daemon"]);
        let wanted = |fails| if fails { Err(libc::EIO) } else { Ok(0x5a) };
        assert_eq!(end_of(in_hand), wanted(in_hand_fails), "{mode}: in hand");
        assert_eq!(end_of(new), wanted(new_fails), "{mode}: new");
        assert_eq!(end_of(read_at(&device, 8 * MIB)), Ok(0x5a), "{mode}: recovered");
        assert_eq!(device.show()["recovery"], name);

        // Other starts leave it alone, and it is removed by name only.
        device.kill_server("waiting");
        Device::run(&["--backing", "mem:8M"]).stop();
        assert_eq!(device.state(), "waiting");
        device.stop();
        nothing_is_left();
    }
}
