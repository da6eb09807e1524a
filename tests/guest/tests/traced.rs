//! `ublk-bpf trace` live: each request is a line with what is true of it, filters leave out the others, and nothing of the
//! tracer outlives the command.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use ublk_bpf::policy::{Disk, set_fault_range};
use ublk_bpf_abi::{FaultRange, Op};
use ublk_bpf_guest::leftover::SOON;
use ublk_bpf_guest::{Backing, Cgroup, Device, Fio, Mapper, run, try_run, wait_until, write};

/// `ublk-bpf trace --json` in the background.
struct Tracer(Child);

impl Tracer {
    fn start(device: &Device, more: &[&str]) -> Self {
        let child = Command::new("ublk-bpf")
            .args(["trace", &device.id(), "--json"])
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .expect("ublk-bpf starts");
        wait_until("the tracer is attached", SOON, is_attached);
        Self(child)
    }

    /// Ends it with Ctrl-C, and gives the lines.
    fn interrupt(self) -> Vec<Value> {
        run("kill", &["-INT", &self.0.id().to_string()]);
        self.end()
    }

    /// Waits for its end, and gives the lines.
    fn end(self) -> Vec<Value> {
        let output = self.0.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", output.status);
        wait_until("the tracer is gone", SOON, || programs().is_empty());
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }
}

/// The ids of the tracer's programs.
fn programs() -> Vec<Value> {
    let output = try_run("bpftool", &["-j", "prog", "show"]);
    let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let programs = all.as_array().expect("a list").iter();
    let ours = programs.filter(|of| of["name"] == "begin" || of["name"] == "end");
    ours.map(|of| of["id"].clone()).collect()
}

/// bpftool fails when a link ends while it looks.
fn is_attached() -> bool {
    let output = try_run("bpftool", &["-j", "link", "show"]);
    let Ok(links) = serde_json::from_slice::<Value>(&output.stdout) else {
        return false;
    };
    let attached = |program| {
        let mut links = links.as_array().expect("a list").iter();
        links.any(|link| link["prog_id"] == program)
    };
    let programs = programs();
    programs.len() == 2 && programs.into_iter().all(attached)
}

fn device(backing: &str, more: &[&str]) -> Device {
    let device = Device::run(&[&["--backing", backing, "--queues", "1"], more].concat());
    write(device.sysfs("queue/nomerges"), "2");
    device
}

fn dd(device: &Device, options: &[&str]) {
    let args = ["bs=4k", "count=1", "status=none"].map(str::to_owned).into_iter();
    let options = options.iter().map(|arg| arg.replace("DEVICE", device.path_str()));
    let args: Vec<String> = args.chain(options).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // A read or write of this may fail.
    try_run("dd", &args);
}

fn read_at(device: &Device, page: u64) {
    dd(
        device,
        &[
            "if=DEVICE",
            "of=/dev/null",
            "iflag=direct",
            &format!("skip={page}"),
        ],
    );
}

fn write_at(device: &Device, page: u64) {
    dd(
        device,
        &[
            "if=/dev/zero",
            "of=DEVICE",
            "oflag=direct",
            &format!("seek={page}"),
        ],
    );
}

fn of_task<'a>(lines: &'a [Value], task: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["task"] == task).collect()
}

/// How often each operation, first sector and length occurs.
type Counts = BTreeMap<(String, u64, u64), u32>;

fn count(requests: impl Iterator<Item = (String, u64, u64)>) -> Counts {
    let mut counts = Counts::new();
    for request in requests {
        *counts.entry(request).or_default() += 1;
    }
    counts
}

/// What fio says that it did.
fn issued(iolog: &str) -> Counts {
    let text = std::fs::read_to_string(iolog).expect("fio's log");
    count(text.lines().filter_map(|line| {
        // A version 3 line is: time, file, action, offset and length in bytes.
        let words: Vec<&str> = line.split(' ').collect();
        let &[_, _, action @ ("read" | "write"), offset, length] = words.as_slice() else {
            return None;
        };
        let sectors = |bytes: &str| bytes.parse::<u64>().expect("a number") / 512;
        Some((action.to_owned(), sectors(offset), sectors(length)))
    }))
}

#[test]
fn every_request_is_a_line() {
    let device = device("mem:64M", &[]);
    let tracer = Tracer::start(&device, &[]);
    let log = "/tmp/fio.log";
    Fio::new(device.path())
        .arg("rw", "randrw")
        .arg("bs", "4k")
        .arg("size", "64m")
        .arg("number_ios", "2000")
        .arg("iodepth", "16")
        .arg("cpus_allowed", "0")
        .arg("write_iolog", log)
        .run();
    let lines = tracer.interrupt();
    let fio = of_task(&lines, "fio");
    let number = |line: &Value, field: &str| line[field].as_u64().expect("a number");
    let found = count(fio.iter().map(|line| {
        let op = line["op"].as_str().expect("a word").to_owned();
        (op, number(line, "sector"), number(line, "nr_sectors"))
    }));
    // Without a request whose end was skipped, which one CPU and one queue can have.
    let expected = issued(log);
    let total: u32 = found.values().sum();
    assert!((1960..=2000).contains(&total), "{total} of 2000");
    for (request, times) in &found {
        assert!(times <= expected.get(request).unwrap_or(&0), "{request:?}");
    }
    for line in &fio {
        assert_eq!(
            (&line["verdict"], &line["reason"]),
            (&"passthrough".into(), &"default".into())
        );
        assert_eq!(line["failed"], false);
        assert!(
            (1..10_000_000_000).contains(&number(line, "latency_ns")),
            "{line}"
        );
        assert!(number(line, "pid") >= number(line, "tgid"), "{line}");
    }
    device.stop();
}

#[test]
fn filters_leave_out_the_others() {
    let device = device("mem:64M", &[]);
    let cgroup = Cgroup::new("traced");
    let load = || {
        read_at(&device, 100);
        write_at(&device, 100);
        let enter = cgroup.enter();
        let device = device.path_str();
        let dd = format!("exec dd if={device} of=/dev/null bs=4k skip=200 count=1 iflag=direct");
        run("sh", &["-c", &format!("{enter} && {dd}")]);
    };
    let traced = |filter: &[&str]| {
        let tracer = Tracer::start(&device, &[&["--task", "dd"], filter].concat());
        load();
        let lines = tracer.interrupt();
        let seen = lines
            .iter()
            .map(|line| (line["op"].clone(), line["sector"].clone()));
        seen.collect::<Vec<_>>()
    };
    let line = |op: &str, sector: u64| (op.into(), sector.into());
    let all = [line("read", 800), line("write", 800), line("read", 1600)];
    assert_eq!(traced(&[]), all);
    assert_eq!(traced(&["--op", "write,flush"]), all[1..2]);
    assert_eq!(traced(&["--sectors", "1607-9999"]), all[2..]);
    assert_eq!(traced(&["--sectors", "1608-9999"]), []);
    assert_eq!(traced(&["--cgroup", cgroup.path()]), all[2..]);
    let id = cgroup.id().to_string();
    assert_eq!(traced(&["--cgroup", &id, "--op", "write"]), []);
    assert_eq!(traced(&["--verdict", "hit,drop"]), []);
    assert_eq!(traced(&["--verdict", "passthrough"]), all);

    let tracer = Tracer::start(&device, &["--task", "dd", "--limit", "2"]);
    load();
    assert_eq!(tracer.end().len(), 2, "it ends by itself");
    cgroup.remove();
    device.stop();
}

#[test]
fn latency_is_the_time_to_the_end() {
    let disk = Backing::brd(64);
    let mapper = Mapper::linear("slow", disk.spec());
    mapper.delay_writes(200);
    let path = mapper.path();
    let device = device(path.to_str().expect("ASCII"), &[]);
    let tracer = Tracer::start(&device, &["--task", "dd"]);
    read_at(&device, 1);
    write_at(&device, 1);
    let lines = tracer.interrupt();
    let latency = |at: usize| lines[at]["latency_ns"].as_u64().expect("a number");
    assert_eq!(
        (&lines[0]["op"], &lines[1]["op"]),
        (&"read".into(), &"write".into())
    );
    assert!(latency(0) < 200_000_000, "{lines:?}");
    assert!((200_000_000..5_000_000_000).contains(&latency(1)), "{lines:?}");

    let tracer = Tracer::start(&device, &["--task", "dd", "--slow-than", "150ms"]);
    read_at(&device, 2);
    write_at(&device, 2);
    let lines = tracer.interrupt();
    let ops: Vec<_> = lines.iter().map(|line| &line["op"]).collect();
    assert_eq!(ops, ["write"]);
    device.stop();
}

#[test]
fn a_failure_is_said() {
    let device = device("mem:64M", &["--policy", "fault", "--allow-lossy"]);
    let range = FaultRange {
        first_sector: 800,
        last_sector: 807,
        ops: 1 << Op::Read as u64,
    };
    set_fault_range(&Disk::named(&format!("ublkb{}", device.id())), range).expect("the map is there");
    let tracer = Tracer::start(&device, &["--task", "dd"]);
    read_at(&device, 100);
    read_at(&device, 101);
    let lines = tracer.interrupt();
    let failed: Vec<_> = lines.iter().map(|line| line["failed"] == true).collect();
    assert_eq!(failed, [true, false]);
    assert_eq!(
        (&lines[0]["verdict"], &lines[0]["hints"][0]),
        (&"drop".into(), &"fail".into())
    );
    device.stop();
}

#[test]
fn it_ends_with_the_device_and_leaves_nothing_when_killed() {
    let first = device("mem:64M", &[]);
    let tracer = Tracer::start(&first, &[]);
    read_at(&first, 1);
    first.stop();
    assert!(!of_task(&tracer.end(), "dd").is_empty());

    let second = device("mem:64M", &[]);
    let tracer = Tracer::start(&second, &[]);
    run("kill", &["-KILL", &tracer.0.id().to_string()]);
    wait_until("the tracer is gone", SOON, || programs().is_empty());
    let mut child = tracer.0;
    let _ = child.wait();
    second.stop();
}
