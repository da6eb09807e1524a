//! `run --metrics`: scraped as Prometheus does it, read strictly, and compared with fio.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use ublk_bpf_guest::openmetrics::Families;
use ublk_bpf_guest::{Backing, Device, Fio, run, try_run};

const ADDRESS: &str = "127.0.0.1:9464";
const PATIENCE: Duration = Duration::from_secs(20);

/// The answer to a request for this path.
fn get(path: &str) -> String {
    let mut stream = TcpStream::connect(ADDRESS).unwrap_or_else(|e| panic!("cannot connect: {e}"));
    let limit = stream.set_read_timeout(Some(PATIENCE));
    let sent = limit.and_then(|()| write!(stream, "GET {path} HTTP/1.1\r\nHost: {ADDRESS}\r\n\r\n"));
    let mut said = String::new();
    let read = sent.and_then(|()| stream.read_to_string(&mut said));
    read.unwrap_or_else(|e| panic!("no answer: {e}"));
    said
}

fn scrape() -> Families {
    let answer = get("/metrics");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let kind = "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(head.lines().any(|line| line == kind), "{head}");
    assert!(
        head.contains(&format!("Content-Length: {}", body.len())),
        "{head}"
    );
    Families::parse(body)
}

fn job(path: &Path, rw: &str) -> Fio {
    Fio::new(path)
        .arg("rw", rw)
        .arg("bs", "4k")
        .arg("size", "8m")
        .arg("cpus_allowed", "0")
}

#[test]
fn metrics_are_of_all_devices_and_agree_with_fio() {
    let cached = Backing::file("me\"tered", 64);
    let plain = Backing::file("plain", 64);
    let [one, two] = Device::run_all(&format!(
        "metrics = \"{ADDRESS}\"\nobserve = \"full\"\n\
         [[device]]\nname = \"data\"\nbacking = '{}'\ncache = \"mem:16M\"\npolicy = \"lru\"\n\
         [[device]]\nbacking = '{}'\nobserve = \"counters\"\n",
        cached.spec(),
        plain.spec()
    ))
    .try_into()
    .expect("two devices");
    let before = scrape();
    let read = job(one.path(), "randread").run();
    let written = job(two.path(), "randwrite").run();
    let after = scrape();
    before.assert_grows_to(&after);

    let [disk_one, disk_two] = [&one, &two].map(|device| format!("ublkb{}", device.id()));
    let grown = |family: &str, sample: &str, labels: &[(&str, &str)]| {
        after.sum(family, sample, labels) - before.sum(family, sample, labels)
    };
    let (of_one, of_two) = (("device", disk_one.as_str()), ("device", disk_two.as_str()));
    let reads = u32::try_from(read.reads).map_or(0.0, f64::from);
    let writes = u32::try_from(written.writes).map_or(0.0, f64::from);
    let requests = |labels: &[(&str, &str)]| grown("ublk_bpf_requests", "ublk_bpf_requests_total", labels);
    assert_eq!(requests(&[of_one, ("op", "read")]), reads);
    assert_eq!(requests(&[of_two, ("op", "write")]), writes);
    assert_eq!(
        requests(&[of_two, ("op", "write"), ("verdict", "passthrough")]),
        writes
    );
    let bytes = grown(
        "ublk_bpf_request_bytes",
        "ublk_bpf_request_bytes_total",
        &[of_one, ("op", "read")],
    );
    assert_eq!(bytes, reads * 4096.0);
    let latency = "ublk_bpf_request_latency_seconds";
    let counted = |labels: &[(&str, &str)]| grown(latency, &format!("{latency}_count"), labels);
    assert_eq!(counted(&[of_one, ("op", "read")]), reads);
    assert_eq!(counted(&[of_two]), 0.0, "it has no histograms");
    let size = "ublk_bpf_request_size_bytes";
    let below_8k = [of_one, ("op", "read"), ("le", "8191.0")];
    assert_eq!(grown(size, &format!("{size}_bucket"), &below_8k), reads);
    let arrived = grown(
        "ublk_bpf_server_arrived",
        "ublk_bpf_server_arrived_total",
        &[of_two],
    );
    assert!(arrived >= writes, "{arrived}");
    let about = &after.family("ublk_bpf_device").samples[0].labels;
    assert_eq!(
        (about["name"].as_str(), about["policy"].as_str()),
        ("data", "lru")
    );
    assert!(about["backing"].contains("me\"tered"), "{about:?}");
    let used = |of: (&str, &str)| after.sum("ublk_bpf_cache_used", "ublk_bpf_cache_used", &[of]);
    assert!(used(of_one) > 0.0);
    assert_eq!(used(of_two), 0.0);

    // A device that has ended is not served any longer, and the other one is.
    one.stop();
    let later = scrape();
    let devices = &later.family("ublk_bpf_device").samples;
    assert_eq!(devices.len(), 1);
    assert_eq!(devices[0].labels["device"], disk_two);
    two.stop();
    assert!(TcpStream::connect(ADDRESS).is_err(), "the server has ended");
}

#[test]
fn a_client_that_stalls_delays_no_request_and_no_stop() {
    let device = Device::run(&["--backing", "mem:64M", "--metrics", ADDRESS, "--observe", "full"]);
    let mut stalled = TcpStream::connect(ADDRESS).unwrap_or_else(|e| panic!("cannot connect: {e}"));
    stalled
        .write_all(b"GET /metr")
        .unwrap_or_else(|e| panic!("cannot send: {e}"));
    job(device.path(), "randrw").run();
    // The next client is answered when the server gives up on the first one.
    assert!(scrape().sum("ublk_bpf_requests", "ublk_bpf_requests_total", &[]) > 0.0);
    assert!(get("/").starts_with("HTTP/1.1 404 "));
    let _stalled_too = TcpStream::connect(ADDRESS);
    let start = Instant::now();
    device.stop();
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
}

#[test]
fn an_address_that_cannot_be_is_refused_and_nothing_is_made() {
    let device = Device::run(&["--backing", "mem:64M", "--metrics", "9464"]);
    scrape();
    let refused = |address: &str, words: &str| {
        let output = try_run(
            "ublk-bpf",
            &["run", "--daemon", "--backing", "mem:1M", "--metrics", address],
        );
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains(words),
            "{address}: {said}"
        );
    };
    refused(ADDRESS, "cannot serve metrics at 127.0.0.1:9464: ");
    refused("0.0.0.0:9465", "give 0.0.0.0:9465,public if that is meant");
    assert_eq!(
        run("ublk-bpf", &["list"]).lines().count(),
        2,
        "a header and one device"
    );
    device.stop();
    let public = Device::run(&["--backing", "mem:64M", "--metrics", "0.0.0.0:9464,public"]);
    scrape();
    public.stop();
}
