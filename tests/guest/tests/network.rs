//! A disk of another machine as backing, and our device for another machine: NVMe over TCP on the loopback interface.

use std::time::Duration;

use ublk_bpf_guest::backing::drop_caches;
use ublk_bpf_guest::fabric::Fabric;
use ublk_bpf_guest::leftover::{SOON, nothing_is_left, refused};
use ublk_bpf_guest::{Backing, Device, Fio, Torture, wait_until};

/// Size of the disks, in MiB.
const MIB: u64 = 48;

#[test]
fn a_backing_behind_a_network_that_breaks_loses_nothing_and_fails_nothing() {
    let below = Backing::null_blk("remote", MIB);
    let fabric = Fabric::new("nqn.2026-11.test:backing", 4420, below.spec());
    let path = fabric.path();
    let options = ["--backing", path.to_str().expect("a name"), "--cache", "mem:8M"];
    let device = Device::run(&options);
    let mut job = Fio::verify_slowly(device.path()).start();
    std::thread::sleep(Duration::from_secs(1));
    fabric.unplug();
    wait_until("the host has lost its target", 4 * SOON, || {
        fabric.state() != "live"
    });
    std::thread::sleep(Duration::from_secs(2));
    assert!(job.is_running(), "requests wait");
    fabric.plug();
    wait_until("the host is connected again", 4 * SOON, || {
        fabric.state() == "live"
    });
    job.finish();
    let report = Torture::new(device.path()).operations(1_000).seed(52).run();
    device.stop();
    drop_caches();
    report.compare(below.spec());
    drop(fabric);
    nothing_is_left();
}

#[test]
fn a_device_that_another_machine_uses_survives_its_server() {
    let (backing, cache) = (
        Backing::null_blk("exported", MIB),
        Backing::null_blk("exported-cache", 16),
    );
    let device = Device::on(&backing, &["--cache", cache.spec(), "--recovery", "reissue"]);
    let fabric = Fabric::new("nqn.2026-11.test:export", 4421, device.path_str());
    let path = fabric.path();
    let before = device.counter("arrived");
    let mut job = Fio::verify_slowly(&path).start();
    std::thread::sleep(Duration::from_secs(1));
    device.kill_server("waiting");
    std::thread::sleep(Duration::from_secs(1));
    device.recover();
    assert!(job.is_running(), "requests wait");
    job.finish();
    assert!(device.counter("arrived") > before, "its requests are ours");
    let report = Torture::new(&path).operations(1_000).seed(53).run();
    report.compare(&path);
    // It is in use by the kernel, so it stays.
    let said = refused(&["stop", &device.id()]);
    assert!(said.contains("is in use by "), "{said}");
    drop(fabric);
    drop_caches();
    report.compare(device.path());
    device.stop();
    nothing_is_left();
}
