//! What a server sets on its disk's request queue, on a kernel that has mq-deadline loaded, as distributions do.

use ublk_bpf_guest::leftover::{nothing_is_left, refused};
use ublk_bpf_guest::{Device, read, write};

const BACKING: [&str; 2] = ["--backing", "null:1G"];

fn with(options: &[&str]) -> Device {
    Device::run(&[&BACKING, options].concat())
}

fn scheduler(device: &Device) -> String {
    let all = read(device.sysfs("queue/scheduler"));
    let chosen = all.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    chosen.map_or_else(
        || panic!("no scheduler is chosen in {all:?}"),
        |(name, _)| name.to_owned(),
    )
}

#[test]
fn a_disk_has_no_scheduler_unless_asked_for() {
    for (options, expected) in [
        (&[][..], "none"),
        (&["--queues", "2"], "none"),
        (&["--scheduler", "kernel"], "mq-deadline"),
        (&["--scheduler", "mq-deadline", "--queues", "2"], "mq-deadline"),
    ] {
        let device = with(options);
        assert_eq!(scheduler(&device), expected, "{options:?}");
        device.stop();
    }
}

#[test]
fn a_scheduler_that_the_kernel_does_not_have_fails_the_start() {
    let said = refused(&[&["run"], &BACKING[..], &["--scheduler", "bogus"]].concat());
    assert!(
        said.starts_with("cannot select the I/O scheduler bogus: ")
            && said.contains("the kernel offers ")
            && said.contains("mq-deadline"),
        "{said}"
    );
    nothing_is_left();
}

#[test]
fn a_recovered_disk_keeps_the_scheduler_that_it_was_given_since() {
    let device = with(&["--recovery", "reissue"]);
    write(device.sysfs("queue/scheduler"), "mq-deadline");
    device.kill_server("waiting");
    device.recover();
    assert_eq!(scheduler(&device), "mq-deadline");
    device.stop();
}
