//! `ublk-bpf why`: what it says of a block and of the policy's answers is what the device then does.

use serde_json::{Value, json};
use ublk_bpf::policy::{Disk, set_fault_range};
use ublk_bpf_abi::{FaultRange, Op};
use ublk_bpf_guest::cached::{Pair, all_hits, number, warm};
use ublk_bpf_guest::leftover::SOON;
use ublk_bpf_guest::recorder::Recorder;
use ublk_bpf_guest::{Backing, Device, run, run_json, try_run, wait_until};

const TRACE: &str = "/tmp/why.trace";

fn why(device: &Device, sector: u64, more: &[&str]) -> Value {
    let args = ["why", &device.id(), &sector.to_string(), "--json"];
    run_json("ublk-bpf", &[&args, more].concat())
}

/// Verdict, reason and hints of the answers to a read and to a write.
fn answers(why: &Value) -> [Value; 2] {
    let answer = |at: usize| {
        let of = &why["answers"][at];
        json!([of["op"], of["verdict"], of["reason"], of["hints"]])
    };
    [answer(0), answer(1)]
}

fn dd(device: &Device, options: &[&str]) {
    let args = [&["bs=4k", "count=1", "status=none"], options].concat();
    let args: Vec<String> = args
        .iter()
        .map(|arg| arg.replace("DEVICE", device.path_str()))
        .collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    run("dd", &args);
}

fn read_at(device: &Device, block: &str) {
    dd(device, &["if=DEVICE", "of=/dev/null", "iflag=direct", block]);
}

#[test]
fn a_cached_block_is_hit_as_it_says() {
    let pair = Pair::files(64, 16);
    let device = pair.run(&["--queues", "1"]);
    // Beyond what anything reads of a new disk.
    let cold = why(&device, 65536, &[]);
    assert_eq!(cold["block"]["state"], "absent", "{cold:#}");
    assert_eq!(
        (&cold["block"]["cached"], &cold["block"]["heat"]),
        (&json!("no"), &json!(0))
    );
    assert_eq!(
        answers(&cold)[0],
        json!(["read", "passthrough", "default", ["promote normal"]])
    );

    warm(&device);
    let hot = why(&device, 8, &[]);
    let block = &hot["block"];
    assert_eq!(
        (&block["state"], &block["cached"]),
        (&json!("present"), &json!("whole")),
        "{hot:#}"
    );
    assert_eq!(block["valid"], json!(vec![true; 16]));
    assert!(
        block["heat"].as_u64() > Some(0) && block["slot"].is_u64(),
        "{hot:#}"
    );
    assert_eq!(answers(&hot)[0][1], "hit");
    assert_eq!(answers(&hot)[1][1], "passthrough");
    let before = device.stats();
    all_hits(&device);
    let after = device.stats();
    // Asking is no request of the device.
    let reads = |stats: &Value| stats["decisions"][0]["requests"].as_u64();
    assert_eq!(reads(&after).zip(reads(&before)).map(|(b, a)| b - a), Some(1024));

    // Beyond what is read.
    let text = run("ublk-bpf", &["why", &device.id(), "100000"]);
    assert!(text.contains("\nstate ") && text.contains(" absent\n"), "{text}");
    device.stop();
}

#[test]
fn regions_are_valid_one_by_one() {
    let pair = Pair::files(64, 16);
    let device = pair.run(&["--queues", "1"]);
    device.swap("frugal");
    // The second region of block 1: 64 KiB blocks have regions of 4 KiB.
    // The first miss finds no free slot: it only wakes the mover, which provides some.
    wait_until("the region is filled", SOON, || {
        read_at(&device, "skip=17");
        why(&device, 128, &[])["block"]["state"] == "present"
    });
    let of = |sector| why(&device, sector, &[]);
    let valid = of(136)["block"]["valid"].clone();
    assert_eq!(valid[1], true, "{valid}");
    assert_eq!((&valid[0], &valid[15]), (&json!(false), &json!(false)), "{valid}");
    assert_eq!(of(136)["block"]["cached"], "whole");
    assert_eq!(answers(&of(136))[0][1], "hit");
    assert_eq!(of(128)["block"]["cached"], "part");
    assert_eq!(answers(&of(128))[0][1], "passthrough");
    assert_eq!(why(&device, 128, &["--length", "16"])["block"]["cached"], "part");
    let before = number(&device.stats(), "server", "hits");
    read_at(&device, "skip=17");
    assert_eq!(number(&device.stats(), "server", "hits"), before + 1);
    device.stop();
}

#[test]
fn the_policys_own_maps_are_asked() {
    let device = Device::run(&["--backing", "mem:64M", "--policy", "fault", "--allow-lossy"]);
    let disk = Disk::named(&format!("ublkb{}", device.id()));
    let range = FaultRange {
        first_sector: 800,
        last_sector: 807,
        ops: 1 << Op::Read as u64,
    };
    set_fault_range(&disk, range).expect("the map is there");
    let inside = answers(&why(&device, 800, &[]));
    assert_eq!(inside[0], json!(["read", "drop", "fault-range", ["fail"]]));
    assert_eq!(inside[1], json!(["write", "passthrough", "default", []]));
    assert_eq!(answers(&why(&device, 808, &[]))[0][1], "passthrough");
    let failed = try_run(
        "dd",
        &[
            &format!("if={}", device.path_str()),
            "of=/dev/null",
            "bs=4k",
            "skip=100",
            "count=1",
            "iflag=direct",
        ],
    );
    assert!(!failed.status.success());

    // The default policy has no program; the next one is another program.
    run("ublk-bpf", &["policy", "reset", &device.id()]);
    assert_eq!(answers(&why(&device, 800, &[]))[0][1], "passthrough");
    device.swap("drop-discard");
    assert_eq!(answers(&why(&device, 800, &[]))[0][1], "passthrough");
    wait_until("the asker is gone", SOON, || {
        !run("bpftool", &["prog", "show"]).contains("name ask ")
    });
    device.stop();
}

#[test]
fn what_was_never_written_reads_as_zeroes() {
    let backing = Backing::file("why", 64);
    let device = Device::on(&backing, &["--policy", "sparse", "--queues", "1"]);
    let of = |sector| why(&device, sector, &[]);
    assert_eq!(of(0)["never_written"], true);
    assert_eq!(answers(&of(0))[0], json!(["read", "drop", "never-written", []]));
    assert_eq!(of(0)["block"], Value::Null);
    dd(&device, &["if=/dev/urandom", "of=DEVICE", "oflag=direct"]);
    assert_eq!(of(0)["never_written"], false);
    assert_eq!(answers(&of(0))[0][1], "passthrough");
    device.stop();
}

#[test]
fn a_trace_adds_what_was_decided() {
    let pair = Pair::files(64, 16);
    let device = pair.run(&["--queues", "1"]);
    let recorder = Recorder::start(&device, TRACE, &[]);
    for block in ["skip=32", "skip=33", "skip=64"] {
        read_at(&device, block);
    }
    recorder.interrupt();
    // Block 2 has sectors 256 to 383, which are pages 32 to 47.
    let last = why(&device, 300, &["--trace", TRACE])["last"].clone();
    let seen: Vec<_> = last
        .as_array()
        .expect("a list")
        .iter()
        .filter(|of| of["task"] == "dd")
        .collect();
    assert_eq!(seen.len(), 2, "{last:#}");
    assert_eq!(
        (&seen[0]["sector"], &seen[1]["sector"]),
        (&json!(256), &json!(264))
    );
    device.stop();
}

#[test]
fn what_is_no_request_is_refused() {
    let pair = Pair::files(64, 16);
    let device = pair.run(&[]);
    let refused = |sector: &str, length: &str| {
        let output = try_run("ublk-bpf", &["why", &device.id(), sector, "--length", length]);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert_eq!(
        refused("131064", "9"),
        "ublk-bpf: sectors 131064 to 131072 are not on the device, whose last one is 131071\n"
    );
    assert!(refused("120", "9").contains("splits such a request at sector 128: ask about a part"));
    device.stop();
}
