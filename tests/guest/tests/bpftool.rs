//! bpftool output: names, fields, enum names, and counts that match fio's exactly.

use serde_json::Value;
use ublk_bpf_guest::{Backing, Device, Fio, run, run_json};

#[test]
fn bpftool_prints_names_and_counts_agree_with_fio() {
    let backing = Backing::brd(64);
    let device = Device::on(&backing, &["--policy", "drop-discard"]);
    let pins = device.pins();
    let pin = |name: &str| pins.join(name).display().to_string();

    let classifier = run("bpftool", &["prog", "show", "pinned", &pin("classifier")]);
    assert!(classifier.contains("name classify"), "{classifier}");
    assert!(classifier.contains("btf_id"), "{classifier}");
    let policy = run("bpftool", &["prog", "show", "pinned", &pin("policy")]);
    assert!(
        policy.contains("name policy") && policy.starts_with(|c: char| c.is_ascii_digit()),
        "{policy}"
    );

    // The partition scan ends before the device is ready, and there is no udev: from here on all I/O is fio's.
    let before = decisions(&pin("decisions"));
    let done = Fio::new(device.path())
        .arg("rw", "randrw")
        .arg("bsrange", "4k-64k")
        .arg("size", "32m")
        .arg("iodepth", "16")
        .arg("cpus_allowed", "0")
        .run();
    let trimmed = Fio::new(device.path())
        .arg("rw", "trim")
        .arg("bs", "64k")
        .arg("size", "4m")
        .run();
    let after = decisions(&pin("decisions"));
    let grown = |op: &str, verdict: &str, reason: &str| {
        after.sum(op, verdict, reason) - before.sum(op, verdict, reason)
    };
    assert_eq!(grown("Read", "passthrough", "default"), done.reads);
    assert_eq!(grown("Write", "passthrough", "default"), done.writes);
    assert_eq!(grown("Discard", "drop", "advisory"), trimmed.trims);
    assert_eq!(grown("Read", "drop", "advisory"), 0);
    assert_eq!(trimmed.trims, 64);

    let text = run("bpftool", &["map", "dump", "pinned", &pin("verdicts")]);
    for name in [
        "\"verdict\": \"None\"",
        "\"op\": \"Read\"",
        "nr_sectors",
        "sector",
    ] {
        assert!(text.contains(name), "no {name} in the dump of verdicts:\n{text}");
    }
    let server = run_json("bpftool", &["-j", "map", "dump", "pinned", &pin("server")]);
    let dropped = server[0]["formatted"]["value"]["dropped"].as_u64();
    assert_eq!(dropped, Some(trimmed.trims), "{server:#}");
    device.stop();
}

/// `bpftool map dump` of `decisions`.
struct Dump(Value);

fn decisions(pin: &str) -> Dump {
    Dump(run_json("bpftool", &["-j", "map", "dump", "pinned", pin]))
}

impl Dump {
    /// Number of decisions with a verdict and a reason for an operation, summed over the CPUs.
    fn sum(&self, op: &str, verdict: &str, reason: &str) -> u64 {
        let mut sum = 0;
        for entry in self.0.as_array().expect("a dump is an array") {
            for cpu in entry["formatted"]["values"]
                .as_array()
                .expect("a value for each CPU")
            {
                let value = &cpu["value"];
                if value["op"] == op {
                    sum += value[verdict][reason]
                        .as_u64()
                        .unwrap_or_else(|| panic!("no {verdict}, {reason} in {value:#}"));
                }
            }
        }
        sum
    }
}
