//! Recordings: a trace has exactly the requests that were issued, says what is missing, and ends well.

use std::collections::BTreeMap;
use std::path::Path;

use ublk_bpf::trace::{Header, Reader, TracedRequest};
use ublk_bpf_abi::{Op, Reason, Verdict};
use ublk_bpf_guest::leftover::SOON;
use ublk_bpf_guest::recorder::Recorder;
use ublk_bpf_guest::{Backing, Cgroup, Device, Fio, run, wait_until, write};

const TRACE: &str = "/tmp/recorded.trace";
const MEMORY: &str = "mem:64M";

/// A device with one queue whose requests are neither merged nor split.
fn device(backing: &str) -> Device {
    let device = Device::run(&["--backing", backing, "--queues", "1"]);
    write(device.sysfs("queue/nomerges"), "2");
    device
}

fn read_trace() -> (Header, Vec<TracedRequest>) {
    let reader = Reader::open(Path::new(TRACE)).expect("a trace");
    let header = *reader.header();
    (
        header,
        reader.map(|request| request.expect("a valid record")).collect(),
    )
}

/// A job on one CPU, so that the programs are never skipped for nesting.
fn random(device: &Device, ios: u32) -> Fio {
    Fio::new(device.path())
        .arg("rw", "randrw")
        .arg("bs", "4k")
        .arg("size", "64m")
        .arg("number_ios", &ios.to_string())
        .arg("iodepth", "16")
        .arg("cpus_allowed", "0")
}

/// How often each operation, first sector and length occurs.
type Counts = BTreeMap<(Op, u64, u32), u32>;

/// What fio says that it did.
fn issued(iolog: &str) -> Counts {
    let mut counts = Counts::new();
    for line in std::fs::read_to_string(iolog).expect("fio's log").lines() {
        // A version 3 line is: time, file, action, offset and length in bytes.
        let words: Vec<&str> = line.split(' ').collect();
        let &[_, _, action @ ("read" | "write"), offset, length] = words.as_slice() else {
            continue;
        };
        let op = if action == "read" { Op::Read } else { Op::Write };
        let sectors = |bytes: &str| bytes.parse::<u64>().expect("a number") / 512;
        let length = u32::try_from(sectors(length)).expect("a length");
        *counts.entry((op, sectors(offset), length)).or_default() += 1;
    }
    counts
}

fn counts(requests: &[TracedRequest]) -> Counts {
    let mut counts = Counts::new();
    for of in requests {
        *counts.entry((of.op, of.sector, of.nr_sectors)).or_default() += 1;
    }
    counts
}

#[test]
fn a_trace_has_what_fio_did() {
    // Memory has no cache to flush.
    let backing = Backing::file("recorded", 64);
    let device = device(backing.spec());
    let recorder = Recorder::start(&device, TRACE, &[]);
    let log = "/tmp/fio.log";
    random(&device, 3000).arg("write_iolog", log).run();
    run("blkdiscard", &["-o", "1048576", "-l", "65536", device.path_str()]);
    device.swap("drop-discard");
    run("blkdiscard", &["-o", "2097152", "-l", "65536", device.path_str()]);
    run(
        "dd",
        &[
            "if=/dev/zero",
            &format!("of={}", device.path_str()),
            "bs=64k",
            "count=1",
            "oflag=direct",
            "conv=fsync",
        ],
    );
    let said = recorder.interrupt();

    let (header, requests) = read_trace();
    let end = header.end.expect("it ended");
    assert_eq!((end.recorded, end.dropped), (requests.len() as u64, 0));
    assert_eq!(said, format!("{} requests recorded, 0 dropped\n", requests.len()));
    assert_eq!((header.device_sectors, header.block_bytes), (64 << 11, None));

    let fio: Vec<TracedRequest> = requests
        .iter()
        .filter(|of| of.comm.starts_with(b"fio\0"))
        .copied()
        .collect();
    assert_eq!(fio.len(), 3000);
    assert_eq!(counts(&fio), issued(log));
    for of in &fio {
        assert_eq!(
            (of.verdict, of.reason),
            (Verdict::Passthrough, Reason::Default),
            "{of:?}"
        );
        assert_eq!((of.qid, of.cgroup_id), (0, fio[0].cgroup_id), "{of:?}");
        assert!(of.tgid > 1 && of.pid >= of.tgid, "{of:?}");
    }
    assert!(requests.is_sorted_by_key(|of| of.time_ns), "one CPU");
    assert!(requests.iter().all(|of| of.time_ns < 1_000_000_000_000));

    let discards = requests.iter().filter(|of| of.op == Op::Discard);
    let discards: Vec<_> = discards
        .map(|of| (of.sector, of.nr_sectors, of.verdict, of.reason))
        .collect();
    let expected = [
        (2048, 128, Verdict::Passthrough, Reason::Default),
        (4096, 128, Verdict::Drop, Reason::Advisory),
    ];
    assert_eq!(discards, expected);
    assert!(requests.iter().any(|of| of.op == Op::Flush && of.nr_sectors == 0));
    device.stop();
}

#[test]
fn a_trace_has_who_asked() {
    let device = device(MEMORY);
    let cgroup = Cgroup::new("traced");
    let recorder = Recorder::start(&device, TRACE, &[]);
    let enter = cgroup.enter();
    let read = format!(
        "exec ionice -c 2 -n 3 dd if={} of=/dev/null bs=8k skip=5 count=1 iflag=direct",
        device.path_str()
    );
    run("sh", &["-c", &format!("{enter} && {read}")]);
    recorder.interrupt();
    let id = cgroup.id();
    cgroup.remove();
    let (_, requests) = read_trace();
    let of_dd = requests.iter().filter(|of| of.comm.starts_with(b"dd\0"));
    let found: Vec<_> = of_dd
        .map(|of| (of.op, of.sector, of.nr_sectors, of.cgroup_id, of.ioprio))
        .collect();
    assert_eq!(found, [(Op::Read, 80, 16, id, 2 << 13 | 3)]);
    device.stop();
}

#[test]
fn what_the_ring_cannot_hold_is_counted() {
    let device = device(MEMORY);
    let before = device.counter("arrived");
    let recorder = Recorder::start(&device, TRACE, &["--buffer", "4K"]);
    recorder.signal("-STOP");
    random(&device, 500).run();
    recorder.signal("-CONT");
    let said = recorder.interrupt();
    assert!(said.contains("(a larger --buffer holds more)"), "{said}");
    let (header, requests) = read_trace();
    let end = header.end.expect("it ended");
    assert_eq!(end.recorded, requests.len() as u64);
    // A page holds 56 records of 64 bytes, each behind eight of the ring's own.
    assert!((40..=56).contains(&end.recorded), "{end:?}");
    assert_eq!(
        end.recorded + end.dropped,
        device.counter("arrived") - before,
        "{end:?}"
    );
    device.stop();
}

#[test]
fn a_recording_ends_at_its_limits_and_with_its_device() {
    let device = device(MEMORY);
    let recorder = Recorder::start(&device, TRACE, &["--count", "100"]);
    random(&device, 300).run();
    let (status, said) = recorder.end();
    assert!(
        status.success() && said.starts_with("100 requests recorded, 0 dropped"),
        "{said}"
    );
    assert_eq!(read_trace().1.len(), 100);

    let (status, said) = Recorder::start(&device, TRACE, &["--seconds", "1"]).end();
    assert!(status.success(), "{said}");
    assert!(read_trace().0.end.is_some());

    let recorder = Recorder::start(&device, TRACE, &[]);
    random(&device, 300).run();
    device.stop();
    let (status, said) = recorder.end();
    assert!(status.success(), "{said}");
    let (header, requests) = read_trace();
    assert!(header.end.is_some() && requests.len() >= 300, "{header:?}");
}

#[test]
fn a_recorder_that_is_killed_leaves_a_trace_and_no_program() {
    let device = device(MEMORY);
    let recorder = Recorder::start(&device, TRACE, &[]);
    random(&device, 300).run();
    wait_until("the requests are written", SOON, || read_trace().1.len() >= 300);
    recorder.signal("-KILL");
    let _ = recorder.end();
    let (header, requests) = read_trace();
    assert_eq!(header.end, None);
    let written = requests.len();
    random(&device, 300).run();
    assert_eq!(read_trace().1.len(), written);
    wait_until("the program is gone", SOON, || {
        !run("bpftool", &["prog", "show"]).contains("name record ")
    });
    device.stop();
}
