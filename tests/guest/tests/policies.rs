//! Policies: each works as documented, is swapped under load without losing I/O, and does no harm.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use ublk_bpf_guest::leftover::refused;
use ublk_bpf_guest::{Backing, Device, Fio, run, run_json, try_run};

/// Built by `cargo xtask build-ebpf` from tests/policies and handed to the guest.
const HOSTILE: &str = "/root/policies/hostile.o";
/// Swaps under load. Each patches the kernel's text, which an emulator may get wrong: `UBLK_BPF_SWAPS=2000` is a trial
/// of the emulator as much as of ours.
const SWAPS: u32 = 20;

#[test]
fn a_hostile_policy_costs_time_and_nothing_else() {
    for backing in [Backing::file("hostile", 32), Backing::memory("32M")] {
        let device = Device::on(&backing, &["--policy", HOSTILE]);
        Fio::verify(device.path())
            .arg("size", "32m")
            .arg("io_size", "24m")
            .arg("iodepth", "16")
            .run();
        // File-system I/O adds flushes, discards and write-zeroes.
        run("mkfs.ext4", &["-q", "-F", device.path_str()]);
        run("e2fsck", &["-f", "-n", device.path_str()]);
        assert_eq!(device.counter("failed"), 0);
        for counter in ["verdict_invalid", "drop_refused", "slow", "passthrough"] {
            assert!(
                device.counter(counter) > 0,
                "{counter} is 0: {:#}",
                device.stats()
            );
        }
        device.stop();
    }
}

#[test]
fn policies_share_the_devices_view_of_its_cache_and_cannot_write_it() {
    /// `BPF_F_RDONLY_PROG`
    const READ_ONLY: u64 = 1 << 7;
    let device = Device::run(&["--backing", "mem:8M", "--cache", "mem:4M", "--policy", "auto"]);
    let map = |pin: &str| {
        let pin = device.pins().join(pin).display().to_string();
        let map = run_json("bpftool", &["-j", "map", "show", "pinned", &pin]);
        ["id", "flags"].map(|field| {
            map[field]
                .as_u64()
                .unwrap_or_else(|| panic!("no {field}: {map:#}"))
        })
    };
    let [id, flags] = map("ublk_cache");
    assert_eq!(flags & READ_ONLY, READ_ONLY);
    for policy in ["auto", "frugal", "scan-resistant"] {
        device.swap(policy);
        assert_eq!(map("maps/ublk_cache")[0], id, "{policy}");
    }
    device.swap("lru");
    assert!(!device.pins().join("maps/ublk_cache").exists());
    device.stop();
}

#[test]
fn a_verifier_refusal_names_the_line_and_a_remedy() {
    let device = Device::run(&["--backing", "mem:8M"]);
    // Not `refused-long`: the verifier writes 15 MB about it, which takes it half a minute under emulation.
    for (mistake, reason, place, hint) in [
        (
            "endless",
            "infinite loop detected",
            "endless.rs:9: `while",
            "constant",
        ),
        ("null", "'map_value_or_null'", "null.rs:1", "may find nothing"),
        (
            "bounds",
            "unbounded memory access",
            "bounds.rs:18: `if",
            "mask it",
        ),
        ("panics", "not an exit", "panics.rs:9: `if", "use `get`"),
        ("divides", "not an exit", "divides.rs:7: `if", "use `checked_div`"),
        (
            "unwraps",
            "not an exit",
            "before unwraps.rs:13: `if",
            "use `match`",
        ),
        ("past", "stack", "past.rs:14: `let Some(limits)", "may be a copy"),
    ] {
        let said = refused(&[
            "policy",
            "swap",
            &device.id(),
            &format!("/root/policies/refused-{mistake}.o"),
        ]);
        for words in ["the kernel's verifier refused", reason, place, hint] {
            assert!(said.contains(words), "no {words} in: {said}");
        }
    }
    assert_eq!(device.show()["policy"], "passthrough");
    device.stop();
}

#[test]
fn what_a_policy_may_not_do_is_refused_before_the_kernel_sees_it() {
    let device = Device::run(&["--backing", "mem:8M"]);
    for (policy, what) in [
        ("loop", "it calls the helper `bpf_loop` ("),
        ("helper", "it calls the helper `bpf_redirect` ("),
    ] {
        let file = format!("/root/policies/refused-{policy}.o");
        let swap = ["policy", "swap", &device.id(), &file];
        for command in [&swap[..], &["run", "--backing", "mem:8M", "--policy", &file]] {
            let said = refused(command);
            assert!(said.contains(what), "{said}");
        }
    }
    assert_eq!(device.show()["policy"], "passthrough");
    device.stop();
}

/// Three levels of 25 rounds: with each function verified once, it would be some 500 instructions.
#[test]
fn an_expensive_policy_is_verified_for_all_its_calls_and_says_what_it_costs() {
    let device = Device::run(&["--backing", "mem:8M"]);
    let swap = try_run(
        "ublk-bpf",
        &["policy", "swap", &device.id(), "/root/policies/levels.o"],
    );
    let [out, err] = [&swap.stdout, &swap.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(swap.status.success(), "{err}");
    let count = out.strip_suffix(" instructions verified\n");
    let count = count.and_then(|text| text.rsplit(' ').next()?.parse().ok());
    let count: u64 = count.unwrap_or_else(|| panic!("no count in {out}"));
    assert!(count > 25 * 25 * 25, "{out}");
    assert!(
        err.contains(&format!("went through {count} instructions")),
        "{err}"
    );

    let list = run_json("ublk-bpf", &["policy", "list", "--json"]);
    let rows = list.as_array().expect("a row for each policy");
    let row = rows.iter().find(|row| row["name"] == "/root/policies/levels.o");
    let row = row.unwrap_or_else(|| panic!("no levels.o in {list:#}"));
    assert_eq!(row["devices"][0]["verified_instructions"], count, "{list:#}");

    let expensive = mean_run_time(&device);
    device.swap("passthrough");
    let cheap = mean_run_time(&device);
    assert!(
        expensive > 2 * cheap,
        "{expensive} ns a run, {cheap} ns with passthrough"
    );
    device.stop();
}

/// What `stats --run-time` says while the device is read.
fn mean_run_time(device: &Device) -> u64 {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let input = format!("if={}", device.path_str());
            while !done.load(Relaxed) {
                run(
                    "dd",
                    &[&input, "of=/dev/null", "bs=4096", "count=64", "iflag=direct"],
                );
            }
        });
        let stats = try_run("ublk-bpf", &["stats", &device.id(), "--run-time", "--json"]);
        done.store(true, Relaxed);
        let stats: serde_json::Value = serde_json::from_slice(&stats.stdout).expect("JSON");
        assert!(stats["run_time"]["runs"].as_u64() > Some(0), "{stats:#}");
        let mean = &stats["run_time"]["mean_ns"];
        mean.as_u64()
            .unwrap_or_else(|| panic!("no mean run time: {stats:#}"))
    })
}

#[test]
fn swaps_under_load_lose_nothing() {
    let swaps = std::env::var("UBLK_BPF_SWAPS").map_or(SWAPS, |number| number.parse().expect("a number"));
    let backing = Backing::brd(64);
    let device = Device::on(&backing, &["--queues", "2"]);
    // fio cannot verify data that it overwrote, so jobs run one after another until the swaps are done.
    let swapped = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut rounds = 0;
            while !swapped.load(Relaxed) {
                Fio::verify(device.path())
                    .arg("size", "64m")
                    .arg("io_size", "16m")
                    .arg("iodepth", "16")
                    .run();
                rounds += 1;
            }
            rounds
        });
        for swap in 0..swaps {
            device.swap(if swap % 2 == 0 {
                "drop-discard"
            } else {
                "passthrough"
            });
            if swap % 100 == 99 {
                // Past the harness, which keeps what tests print: a silent guest is killed.
                let _ = writeln!(std::io::stderr(), "{} of {swaps} swaps", swap + 1);
            }
        }
        swapped.store(true, Relaxed);
        load.join().expect("the load ran to its end")
    });
    eprintln!("{rounds} verified rounds during {swaps} swaps");
    let stats = device.stats();
    let server = |name: &str| {
        stats["server"][name]
            .as_u64()
            .unwrap_or_else(|| panic!("no {name}: {stats:#}"))
    };
    assert_eq!(server("failed"), 0);
    assert_eq!(server("arrived"), server("completed"));
    let decided: u64 = stats["decisions"]
        .as_array()
        .expect("an entry for each operation")
        .iter()
        .map(|op| op["requests"].as_u64().expect("a count"))
        .sum();
    assert_eq!(
        decided + server("verdict_missing") + server("verdict_stale"),
        server("arrived"),
        "{stats:#}"
    );
    device.stop();
}

#[test]
fn a_user_policy_counts_in_its_own_map() {
    let device = Device::run(&["--backing", "mem:32M"]);
    device.swap("/root/policies/size-histogram.o");
    let done = Fio::new(device.path())
        .arg("rw", "randrw")
        .arg("bs", "16k")
        .arg("size", "8m")
        .arg("cpus_allowed", "0")
        .run();
    let map = device.pins().join("maps/sizes").display().to_string();
    let rows = run_json("bpftool", &["-j", "map", "dump", "pinned", &map]);
    // By our own command: the sum over CPUs.
    let sizes = run("ublk-bpf", &["policy", "map", &device.id(), "sizes", "get", "5"]);
    let counts = format!("reads={} writes={}", done.reads, done.writes);
    assert!(sizes.contains(&counts), "no {counts} in {sizes}");
    let set = refused(&map_command(&device.id(), "sizes set 5 reads=1"));
    assert!(set.contains("a value for each CPU"), "{set}");
    let count = |row: usize, field: &str| -> u64 {
        let values = rows[row]["formatted"]["values"]
            .as_array()
            .expect("a value for each CPU");
        values
            .iter()
            .map(|cpu| cpu["value"][field].as_u64().expect("a count"))
            .sum()
    };
    assert_eq!(count(5, "reads"), done.reads, "row 5 is 16 KiB: {rows:#}");
    assert_eq!(count(5, "writes"), done.writes);
    device.stop();
}

#[test]
fn entries_of_a_policys_map_are_checked_at_the_door() {
    let device = Device::run(&["--backing", "mem:8M", "--policy", "/root/policies/cgroup-tiers.o"]);
    let id = device.id();
    for (command, what) in [
        ("tears", "the policy has no map `tears`: it has tiers"),
        (
            "tiers get /nowhere",
            "key of map `tiers`: there is no cgroup /nowhere",
        ),
        (
            "tiers get soon",
            "key of map `tiers`: `soon` is no number: want one such as",
        ),
        (
            "tiers get -1",
            "key of map `tiers`: -1 is not from 0 to 18446744073709551615",
        ),
        ("tiers get 77", "map `tiers` has no entry for 77"),
        ("tiers remove 77", "map `tiers` has no entry for 77"),
        (
            "tiers set / tear=1",
            "value of map `tiers`: tier: `tear=1` is no number",
        ),
        (
            "tiers set / tier=5G",
            "value of map `tiers`: tier: 5368709120 is not from 0 to 4294967295",
        ),
    ] {
        let said = refused(&map_command(&id, command));
        assert!(said.starts_with(what), "{command}: {said}");
    }
    let map = |command| run("ublk-bpf", &map_command(&id, command));
    assert_eq!(map("tiers list"), "KEY  VALUE\n", "nothing was set");
    map("tiers set / tier=3");
    assert_eq!(map("tiers get /"), "tier=3\n");
    let json = run_json("ublk-bpf", &map_command(&id, "tiers list --json"));
    assert_eq!(json[0]["value"]["tier"], 3, "{json:#}");
    assert!(json[0]["key"].as_u64() > Some(0), "{json:#}");
    map("tiers remove /");
    assert_eq!(map("tiers list"), "KEY  VALUE\n");
    let maps = run("ublk-bpf", &["policy", "map", &id]);
    assert_eq!(maps, "MAP    ENTRIES  KIND\ntiers  1024     hash\n");

    device.swap("/root/policies/pin-range.o");
    let refused = |command| refused(&map_command(&id, command));
    assert_eq!(
        refused("ranges get 8"),
        "key of map `ranges`: 8 is not from 0 to 7"
    );
    assert!(refused("ranges remove 0").contains("an array keeps all of its entries"));
    let odd = refused("ranges set 0 first_sector=700B");
    assert!(
        odd.contains("first_sector: 700B is no multiple of 512 bytes"),
        "{odd}"
    );
    device.stop();
}

/// `ublk-bpf policy map ID COMMAND`
fn map_command<'a>(id: &'a str, command: &'a str) -> Vec<&'a str> {
    ["policy", "map", id]
        .into_iter()
        .chain(command.split(' '))
        .collect()
}

#[test]
fn drop_discard_keeps_the_data() {
    let backing = Backing::file("dropdiscard", 16);
    let device = Device::on(&backing, &["--policy", "drop-discard"]);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(device.path())
        .expect("open");
    file.write_all_at(&[7; 65536], 0).expect("write");
    file.sync_all().expect("sync");
    drop(file);
    run("blkdiscard", &["-f", device.path_str()]);
    assert!(device.counter("dropped") > 0);
    device.stop();
    let content = std::fs::read(backing.path().expect("a file")).expect("read");
    assert!(
        content[..65536].iter().all(|&b| b == 7),
        "a dropped discard reached the backing"
    );
}

#[test]
fn sparse_serves_reads_of_holes_without_io() {
    let backing = Backing::file("sparse", 16);
    let path = backing.path().expect("a file");
    let before = OpenOptions::new().write(true).open(path).expect("open");
    before.write_all_at(&[9; 4096], 1 << 20).expect("write");
    let device = Device::on(&backing, &["--policy", "sparse"]);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(device.path())
        .expect("open");
    file.write_all_at(&[5; 4096], 8 << 20).expect("write");
    file.sync_all().expect("sync");
    run("blockdev", &["--flushbufs", device.path_str()]);
    let submitted = device.counter("io_submitted");
    let dropped = device.counter("dropped");
    Fio::new(device.path())
        .arg("rw", "read")
        .arg("bs", "64k")
        .arg("offset", "2m")
        .arg("size", "4m")
        .run();
    assert_eq!(device.counter("dropped") - dropped, 64, "64 reads of a hole");
    let zero_fills = device.counter("io_submitted") - submitted;
    assert!(zero_fills <= 64, "{zero_fills} operations for 64 reads of a hole");

    let mut page = [0; 4096];
    file.read_exact_at(&mut page, 1 << 20).expect("read");
    assert_eq!(page, [9; 4096], "data from before the start");
    file.read_exact_at(&mut page, 8 << 20).expect("read");
    assert_eq!(page, [5; 4096], "data written through the device");
    file.read_exact_at(&mut page, 4 << 20).expect("read");
    assert_eq!(page, [0; 4096], "a hole");
    drop(file);
    device.stop();
}

#[test]
fn fault_fails_its_range_only_with_allow_lossy() {
    for lossy in [true, false] {
        let mut options = vec!["--backing", "mem:16M", "--policy", "fault"];
        if lossy {
            options.push("--allow-lossy");
        }
        let device = Device::run(&options);
        let set = "fault_range set 0 first_sector=1M last_sector=4095 ops=0xffffffff";
        run("ublk-bpf", &map_command(&device.id(), set));
        let read = |skip: &str| {
            let input = format!("if={}", device.path_str());
            try_run(
                "dd",
                &[
                    &input,
                    "of=/dev/null",
                    "bs=4096",
                    "count=16",
                    &format!("skip={skip}"),
                    "iflag=direct",
                ],
            )
        };
        assert!(read("0").status.success());
        assert!(read("512").status.success());
        assert_eq!(read("256").status.success(), !lossy, "a read inside the range");
        assert_eq!(device.counter("failed") > 0, lossy);
        assert_eq!(device.counter("drop_refused") > 0, !lossy);
        device.stop();
    }
}

#[test]
fn a_request_without_verdict_is_served_and_counted() {
    // Many jobs on few CPUs: some are preempted inside the program, and others' requests skip it meanwhile.
    let device = Device::run(&["--backing", "mem:64M", "--policy", "passthrough", "--queues", "2"]);
    let mut missed = 0;
    for round in 0..10 {
        Fio::verify(device.path())
            .arg("bsrange", "4k-16k")
            .arg("size", "4m")
            .arg("numjobs", "12")
            .arg("offset_increment", "5m")
            .arg("iodepth", "8")
            .arg("cpus_allowed", "0")
            .arg("group_reporting", "1")
            .run();
        missed = device.counter("verdict_missing") + device.counter("verdict_stale");
        eprintln!("round {round}: {missed} requests without a verdict of their own");
        if missed > 0 {
            break;
        }
    }
    let stats = device.stats();
    assert!(missed > 0, "the classifier was never skipped: {stats:#}");
    assert_eq!(
        stats["classifier"]["recursion_misses"].as_u64(),
        Some(missed),
        "{stats:#}"
    );
    assert_eq!(device.counter("failed"), 0);
    assert_eq!(device.counter("slow"), missed);
    device.stop();
}
