//! What is dirty is written back on request, and how writes end changes while a device runs.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use ublk_bpf_guest::cached::Pair;
use ublk_bpf_guest::direct::{BLOCK, first_block, write_first_block};
use ublk_bpf_guest::leftover::{SOON, nothing_is_left, refused};
use ublk_bpf_guest::torture::Report;
use ublk_bpf_guest::{Backing, Device, Mapper, Torture, backing::drop_caches, run, try_run, wait_until};

/// Size of the devices, in MiB.
const MIB: u64 = 40;
const BACK: [&str; 2] = ["--cache-mode", "write-back"];
const SECOND: Duration = Duration::from_secs(1);
/// So little is written back that it takes seconds.
const SLOWLY: [&str; 2] = ["--clean-limit", "256K"];

/// A device with dirty blocks, which are written back slowly.
fn dirty(pair: &Pair, more: &[&str]) -> (Device, Report) {
    let _ = fs::remove_dir_all("/var/lib/ublk-bpf");
    let device = pair.run(&[&BACK[..], &SLOWLY, more].concat());
    let report = Torture::new(device.path()).operations(1_000).seed(47).run();
    assert!(dirty_blocks(&device) > 8, "{:#}", device.stats());
    (device, report)
}

/// The dirty blocks of a device, once its counters have followed.
fn dirty_blocks(device: &Device) -> u64 {
    sleep(Duration::from_millis(1500));
    device.show()["cache"]["dirty"]["blocks"]
        .as_u64()
        .unwrap_or_else(|| panic!("no dirty blocks in {:#}", device.show()))
}

fn no_limit(device: &Device) {
    run("ublk-bpf", &["set", &device.id(), "clean-limit=none"]);
}

/// Ends a command by a signal.
fn end(mut command: Child, signal: &str) {
    run("kill", &[signal, &command.id().to_string()]);
    command.wait().unwrap_or_else(|e| panic!("{e}"));
}

/// Writes, among other things. Returns what is on the device then, and how many writes have ended in the cache.
fn tortured(device: &Device) -> (Report, u64) {
    let before = device.counter("absorbed");
    let report = Torture::new(device.path()).operations(500).seed(48).run();
    (report, device.counter("absorbed") - before)
}

#[test]
fn a_drain_writes_all_back_and_shows_how_far_it_is() {
    let pair = Pair::disks(MIB, 16);
    let (device, report) = dirty(&pair, &[]);
    let id = device.id();
    let shown = run("ublk-bpf", &["show", &id]);
    assert!(shown.contains("dirty blocks, the oldest for "), "{shown}");
    let said = run("sh", &["-c", &format!("ublk-bpf cache drain {id} 2>&1")]);
    assert!(
        said.contains(" % written back, ") && said.contains(" a second"),
        "{said}"
    );
    assert!(
        said.contains(" blocks, ") && said.contains(" are written back in "),
        "{said}"
    );
    assert_eq!(dirty_blocks(&device), 0);
    drop_caches();
    report.compare(pair.backing.spec());
    let said = run("ublk-bpf", &["cache", "drain", &id]);
    assert_eq!(said, "nothing is dirty\n");

    let (report, absorbed) = tortured(&device);
    assert!(absorbed > 0, "writes end in the cache again");
    no_limit(&device);
    let said = run("sh", &["-c", &format!("ublk-bpf stop --drain {id} 2>&1")]);
    assert!(
        said.contains(" written back in ") || said.contains("nothing is dirty"),
        "{said}"
    );
    device.was_stopped();
    // The backing has everything, and needs no cache.
    let device = Device::on(&pair.backing, &[]);
    report.compare(device.path());
    device.stop();
    nothing_is_left();
}

#[test]
fn a_drain_ends_with_its_command_and_a_refused_stop_leaves_all_as_it_was() {
    let pair = Pair::disks(MIB, 16);
    let (device, _) = dirty(&pair, &[]);
    let id = device.id();
    let drain = || {
        let mut command = Command::new("ublk-bpf");
        command
            .args(["cache", "drain", &id])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run ublk-bpf: {e}"))
    };
    let interrupted = drain();
    sleep(SECOND);
    end(interrupted, "-INT");
    let mut other = drain();
    // The server notices within seconds that the client of the first has gone, and refuses others until then.
    wait_until("the device is drained again", SOON, || {
        sleep(SECOND);
        let goes_on = matches!(other.try_wait(), Ok(None));
        if !goes_on {
            other = drain();
        }
        goes_on
    });
    let said = refused(&["cache", "drain", &id]);
    assert!(said.contains("is being drained already"), "{said}");
    end(other, "-TERM");
    wait_until("writes end in the cache again", 4 * SOON, || {
        tortured(&device).1 > 0
    });
    let hold = fs::File::open(device.path()).expect("it can be opened");
    let said = refused(&["stop", "--drain", &id]);
    assert!(said.contains("is in use by "), "{said}");
    drop(hold);
    let (report, absorbed) = tortured(&device);
    assert!(absorbed > 0);
    no_limit(&device);
    run("ublk-bpf", &["stop", "--drain", &id]);
    device.was_stopped();
    drop_caches();
    report.compare(pair.backing.spec());
    nothing_is_left();
}

#[test]
fn what_fails_to_be_written_back_is_told_and_stays() {
    let _ = fs::remove_dir_all("/var/lib/ublk-bpf");
    let below = Backing::null_blk("cached", MIB);
    let backing = Mapper::linear("below", below.spec());
    let cache = Backing::null_blk("cache", 16);
    let path = backing.path();
    let on = [
        "--backing",
        path.to_str().expect("a name"),
        "--cache",
        cache.spec(),
        "--policy",
        "lru",
    ];
    let device = Device::run(&[&on[..], &BACK].concat());
    let id = device.id();
    let absorbed = device.counter("absorbed");
    wait_until("the block has a slot", SOON, || {
        write_first_block(device.path(), &[1; BLOCK]);
        device.counter("absorbed") > absorbed
    });
    backing.fail_writes();
    write_first_block(device.path(), &[2; BLOCK]);
    let refused = try_run("ublk-bpf", &["cache", "drain", &id]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        refused.status.code() == Some(1)
            && said.contains("cannot be written back")
            && said.contains("they stay in the cache"),
        "{said}"
    );
    backing.heal();
    let said = run("ublk-bpf", &["cache", "drain", &id]);
    assert!(said.contains(" are written back in "), "{said}");
    device.stop();
    drop_caches();
    assert!(first_block(Path::new(below.spec())) == [2; BLOCK]);
    nothing_is_left();
}

#[test]
fn a_cache_is_detached_from_a_device_in_use() {
    let pair = Pair::disks(MIB, 16);
    let (device, _) = dirty(&pair, &[]);
    let id = device.id();
    no_limit(&device);
    let report = std::thread::scope(|scope| {
        let torture = scope.spawn(|| Torture::new(device.path()).operations(2_000).seed(49).run());
        let said = run("ublk-bpf", &["cache", "detach", &id]);
        assert!(
            said.starts_with("the cache ") && said.contains(" is detached"),
            "{said}"
        );
        torture.join().expect("no fault")
    });
    let shown = run("ublk-bpf", &["show", &id]);
    assert!(
        shown.contains("NOT USED for ") && shown.contains("`ublk-bpf cache detach` asked for it"),
        "{shown}"
    );
    let said = refused(&["cache", "detach", &id]);
    assert!(said.contains("is detached"), "{said}");
    let hits = device.counter("hits");
    report.compare(device.path());
    assert_eq!(device.counter("hits"), hits);
    device.stop();
    let device = Device::on(&pair.backing, &[]);
    report.compare(device.path());
    device.stop();
    // What was in it is not used again.
    let device = pair.run(&BACK);
    let used = device.stats()["cache"]["used"].as_u64();
    assert!(used < Some(8), "what is read at a start: {used:?}");
    device.stop();
    nothing_is_left();
}

#[test]
fn how_writes_end_changes_while_a_device_runs_and_survives_a_handover() {
    let pair = Pair::disks(MIB, 16);
    let (device, _) = dirty(&pair, &["--recovery", "reissue"]);
    let id = device.id();
    let set = |setting: &str| run("ublk-bpf", &["set", &id, setting]);
    let cache = || device.show()["cache"].clone();
    no_limit(&device);
    set("dirty-high=10");
    set("cache-mode=write-through");
    wait_until("what was dirty is written back", 4 * SOON, || {
        dirty_blocks(&device) == 0
    });
    assert_eq!(tortured(&device).1, 0);
    run("ublk-bpf", &["handover", &id]);
    let now = cache();
    assert_eq!(
        [&now["mode"], &now["dirty_high"], &now["clean_limit"]],
        [&Value::from("write-through"), &Value::from(10), &Value::Null],
        "{now:#}"
    );
    let shown = run("ublk-bpf", &["show", &id]);
    assert!(
        shown.contains("cache-mode") && shown.contains("write-back"),
        "{shown}"
    );
    set("cache-mode=write-back");
    let (report, absorbed) = tortured(&device);
    assert!(absorbed > 0);
    report.compare(device.path());
    run("ublk-bpf", &["stop", "--drain", &id]);
    device.was_stopped();

    let through = pair.run(&[]);
    for (setting, words) in [
        ("cache-mode=write-back", "was made for write-through"),
        ("dirty-high=20", "dirty-high applies to write-back"),
        ("clean-limit=1M", "clean-limit applies to write-back"),
    ] {
        let said = refused(&["set", &through.id(), setting]);
        assert!(said.contains(words), "{said}");
    }
    run("ublk-bpf", &["set", &through.id(), "cache-mode=write-around"]);
    assert_eq!(through.show()["cache"]["mode"], "write-around");
    let plain = Device::run(&["--backing", "mem:8M"]);
    for args in [["cache", "drain"], ["cache", "detach"]] {
        let said = refused(&[args[0], args[1], &plain.id()]);
        assert!(said.contains("has no cache"), "{said}");
    }
    run("ublk-bpf", &["stop", "--drain", &plain.id()]);
    plain.was_stopped();
    through.stop();
    assert!(!Path::new("/var/lib/ublk-bpf").read_dir().is_ok_and(|mut names| {
        names.any(|name| name.is_ok_and(|name| name.path().extension().is_some_and(|it| it == "toml")))
    }));
    nothing_is_left();
}

#[test]
fn another_cache_takes_the_place_of_a_detached_one() {
    let pair = Pair::disks(MIB, 16);
    let (device, _) = dirty(&pair, &["--recovery", "reissue"]);
    let id = device.id();
    let other = Backing::null_blk("other-cache", 12);
    let larger = Backing::null_blk("larger-cache", 20);
    no_limit(&device);
    let attach = |to: &Backing| ["cache", "attach", &id, to.spec()].map(str::to_owned);
    let refuse = |to: &Backing| {
        let args = attach(to);
        refused(&args.each_ref().map(String::as_str))
    };
    let said = refuse(&other);
    assert!(said.contains("detach that first"), "{said}");
    run("ublk-bpf", &["cache", "detach", &id]);
    // It is served as before, without a cache.
    let said = refuse(&larger);
    assert!(said.contains("no larger than the cache before"), "{said}");
    assert_eq!(device.state(), "live");
    assert!(device.show()["cache"]["detached"].is_object());

    let args = attach(&other);
    let said = run("ublk-bpf", &args.each_ref().map(String::as_str));
    assert!(said.contains("after a pause of "), "{said}");
    let cache = device.show()["cache"].clone();
    assert_eq!(
        (&cache["device"], &cache["detached"]),
        (&other.spec().into(), &Value::Null)
    );
    run("ublk-bpf", &["set", &id, "clean-limit=128K"]);
    let (report, absorbed) = tortured(&device);
    assert!(absorbed > 0, "writes end in the new one");
    assert!(dirty_blocks(&device) > 0);
    device.kill_server("waiting");
    device.recover();
    report.compare(device.path());
    device.stop();
    let options = ["--cache", other.spec(), "--policy", "lru", BACK[0], BACK[1]];
    let device = Device::on(&pair.backing, &options);
    report.compare(device.path());
    run("ublk-bpf", &["stop", "--drain", &device.id()]);
    device.was_stopped();
    // The first one has nothing that the backing lacks.
    let device = pair.run(&BACK);
    report.compare(device.path());
    device.stop();
    nothing_is_left();
}
