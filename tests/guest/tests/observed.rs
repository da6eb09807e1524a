//! Histograms of latency and size against what fio and a device of a known delay say.

use serde_json::Value;
use ublk_bpf_guest::mapper::Mapper;
use ublk_bpf_guest::{Backing, Device, Fio, run, run_json};

/// A job on one CPU, so that the programs are never skipped for nesting.
fn job(device: &Device, rw: &str) -> Fio {
    Fio::new(device.path()).arg("rw", rw).arg("cpus_allowed", "0")
}

/// Requests in the histogram `of` ("latencies" or "sizes") for which `is_meant` holds.
fn counted(stats: &Value, of: &str, is_meant: impl Fn(&Value) -> bool) -> u64 {
    let all = stats["histograms"][of].as_array().expect("histograms");
    let meant = all.iter().filter(|one| is_meant(one));
    meant.map(|one| one["count"].as_u64().expect("a count")).sum()
}

/// Every decision is in the histogram of its operation and verdict, and nothing else is.
fn assert_agrees_with_decisions(stats: &Value) {
    for of in stats["decisions"].as_array().expect("decisions") {
        for (verdict, decided) in of["verdicts"].as_object().expect("verdicts") {
            let counted = counted(stats, "latencies", |one| {
                one["op"] == of["op"] && one["verdict"] == verdict.as_str()
            });
            assert_eq!(
                Some(counted),
                decided.as_u64(),
                "{} {verdict} in {stats:#}",
                of["op"]
            );
        }
    }
}

#[test]
fn counts_agree_with_fio() {
    // A file has a cache to flush.
    let backing = Backing::file("observed", 64);
    let device = Device::on(&backing, &["--observe", "full", "--policy", "drop-discard"]);
    let before = device.stats();
    let mixed = job(&device, "randrw")
        .arg("bsrange", "4k-64k")
        .arg("size", "32m")
        .arg("iodepth", "16")
        .run();
    job(&device, "write")
        .arg("bs", "4k")
        .arg("size", "256k")
        .arg("fsync", "1")
        .run();
    let trimmed = job(&device, "trim").arg("bs", "64k").arg("size", "4m").run();
    let after = device.stats();
    assert_eq!(after["observe"], "full");
    assert_eq!(after["histograms"]["skipped"], 0, "{after:#}");
    assert_agrees_with_decisions(&after);
    let grown = |of: &str, op: &str| {
        let count = |stats| counted(stats, of, |one| one["op"] == op);
        count(&after) - count(&before)
    };
    for of in ["latencies", "sizes"] {
        assert_eq!(grown(of, "read"), mixed.reads, "{of}");
        assert_eq!(grown(of, "write"), mixed.writes + 64, "{of}");
        assert_eq!(grown(of, "discard"), trimmed.trims, "{of}");
    }
    // fio does not flush after its last write.
    assert!(grown("latencies", "flush") >= 63, "{after:#}");
    assert_eq!(grown("sizes", "flush"), 0, "a flush has no data");
    for of in after["histograms"]["sizes"].as_array().expect("sizes") {
        let decisions = after["decisions"].as_array().expect("decisions");
        let same = decisions.iter().find(|one| one["op"] == of["op"]);
        let sectors = same.and_then(|one| one["sectors"].as_u64()).expect("sectors");
        assert_eq!(of["sum"], sectors * 512, "{after:#}");
    }
    device.stop();
}

#[test]
fn bpftool_prints_the_histograms() {
    let backing = Backing::brd(64);
    let device = Device::on(&backing, &["--observe", "full"]);
    let done = job(&device, "randwrite").arg("bs", "8k").arg("size", "8m").run();
    let dump = |map: &str| {
        let pin = device.pins().join(map).display().to_string();
        run_json("bpftool", &["-j", "map", "dump", "pinned", &pin])
    };
    // Adds up one bucket, or all, of the writes.
    let sum = |map: &str, buckets: &dyn Fn(&Value) -> u64| {
        let entries = dump(map);
        let entries = entries.as_array().expect("entries").clone();
        let cpus = entries
            .iter()
            .flat_map(|entry| entry["formatted"]["values"].as_array().expect("values").clone());
        let values = cpus.map(|cpu| cpu["value"].clone());
        values
            .filter(|value| value["op"] == "Write")
            .map(|value| buckets(&value))
            .sum::<u64>()
    };
    let all = |list: &Value| {
        let list = list.as_array().expect("buckets").iter();
        list.map(|count| count.as_u64().expect("a count")).sum()
    };
    assert_eq!(
        sum("latencies", &|of| all(&of["passthrough"]["log2_ns"])),
        done.writes
    );
    assert_eq!(sum("latencies", &|of| all(&of["none"]["log2_ns"])), 0);
    assert_eq!(
        sum("sizes", &|of| of["log2_bytes"][13].as_u64().expect("a count")),
        done.writes
    );
    device.stop();
}

#[test]
fn percentiles_are_those_of_a_device_of_a_known_delay() {
    let below = Backing::brd(64);
    let mapper = Mapper::linear("observed", below.spec());
    let path = mapper.path().display().to_string();
    let device = Device::run(&["--backing", &path, "--observe", "full"]);
    mapper.delay(40);
    let before = device.stats();
    let done = job(&device, "randread")
        .arg("bs", "4k")
        .arg("size", "16m")
        .arg("number_ios", "200")
        .arg("iodepth", "4")
        .run();
    let stats = device.stats();
    assert_eq!(
        counted(&stats, "latencies", |one| one["op"] == "read")
            - counted(&before, "latencies", |one| one["op"] == "read"),
        done.reads
    );
    let reads = stats["histograms"]["latencies"].as_array().expect("latencies");
    let reads = reads.iter().find(|one| one["op"] == "read").expect("reads");
    let bucket = |ns: u64| ns.ilog2();
    for (name, of_fio) in [("p50", done.read_ns[0]), ("p99", done.read_ns[1])] {
        let ours = reads[name].as_u64().expect("a percentile");
        assert!(
            bucket(of_fio).abs_diff(bucket(ours)) <= 1,
            "{name}: {ours} ns, fio {of_fio} ns"
        );
    }
    // From 33.6 ms: the delay is in this bucket, if the emulator is not very slow.
    let median = reads["p50"].as_u64().expect("a percentile");
    assert!((40_000_000 / 2..200_000_000).contains(&median), "{median} ns");
    mapper.heal();
    device.stop();
}

#[test]
fn off_counts_nothing_and_the_default_has_no_histograms() {
    let backing = Backing::brd(64);
    let device = Device::on(&backing, &["--observe", "off"]);
    let done = job(&device, "randread").arg("bs", "4k").arg("size", "4m").run();
    let stats = device.stats();
    assert_eq!(stats["observe"], "off");
    for of in stats["decisions"].as_array().expect("decisions") {
        assert_eq!(of["requests"], 0, "{stats:#}");
    }
    assert!(stats["server"]["passthrough"].as_u64() >= Some(done.reads));
    assert!(stats["histograms"].is_null());
    device.stop();

    let device = Device::on(&backing, &[]);
    assert_eq!(device.stats()["observe"], "counters");
    for map in ["latencies", "sizes", "issues", "histogram_issue"] {
        assert!(!device.pins().join(map).exists(), "{map}");
    }
    device.stop();
}

#[test]
fn histograms_outlive_a_server() {
    let backing = Backing::file("observed", 64);
    let device = Device::on(&backing, &["--observe", "full", "--recovery", "reissue"]);
    let first = job(&device, "randread").arg("bs", "4k").arg("size", "4m").run();
    let before = device.stats();
    device.kill_server("waiting");
    run("ublk-bpf", &["run", "--recover", &device.id(), "--daemon"]);
    let second = job(&device, "randread").arg("bs", "4k").arg("size", "4m").run();
    let after = device.stats();
    assert_agrees_with_decisions(&after);
    let reads = |stats| counted(stats, "latencies", |one| one["op"] == "read");
    assert!(reads(&before) >= first.reads, "{before:#}");
    assert_eq!(reads(&after) - reads(&before), second.reads);
    device.stop();
}
