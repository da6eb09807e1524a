//! Commands to a running server, by the socket of its process.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use ublk_bpf_guest::leftover::{nothing_is_left, refused};
use ublk_bpf_guest::{Backing, Device, Fio, read, run, try_run, wait_until};

fn socket(device: &Device) -> PathBuf {
    format!("/run/ublk-bpf/server-{}.sock", device.server()).into()
}

fn connect(device: &Device) -> UnixStream {
    let stream = UnixStream::connect(socket(device)).unwrap_or_else(|e| panic!("{e}"));
    let patience = Some(Duration::from_secs(20));
    stream
        .set_read_timeout(patience)
        .unwrap_or_else(|e| panic!("{e}"));
    stream
}

/// What a server replies to this, up to its end.
fn reply(mut stream: &UnixStream, request: &[u8]) -> String {
    // A server that does not read on resets the connection.
    let _ = stream.write_all(request);
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

fn cached(options: &[&str]) -> Device {
    Device::run(&[&["--backing", "mem:64M", "--cache", "mem:16M"], options].concat())
}

#[test]
fn a_promote_limit_changes_while_the_device_runs() {
    let device = cached(&["--policy", "lru", "--promote-limit", "64K"]);
    let id = device.id();
    let promoted = || device.stats()["cache"]["promoted"].as_u64().unwrap_or_default();
    let read_it = || {
        let job = Fio::new(device.path()).arg("rw", "read").arg("bs", "64k");
        job.arg("size", "8m").arg("io_size", "16m").start().finish();
    };
    read_it();
    assert!(promoted() < 64, "of 128 blocks: {}", promoted());
    assert_eq!(run("ublk-bpf", &["set", &id, "promote-limit=none"]), "");
    // Twice, because the mover may have slept a second.
    std::thread::sleep(Duration::from_millis(1200));
    read_it();
    wait_until("all is promoted", Duration::from_secs(30), || promoted() >= 128);
    assert_eq!(device.show()["cache"]["promote_limit"], serde_json::Value::Null);
    run("ublk-bpf", &["set", &id, "promote-limit=1M"]);
    assert_eq!(device.show()["cache"]["promote_limit"], 1 << 20);

    let said = refused(&["set", &id, "depth=8"]);
    assert!(said.contains("depth"), "{said}");
    let plain = Device::run(&["--backing", "mem:8M"]);
    let said = refused(&["set", &plain.id(), "promote-limit=1M"]);
    let wanted = format!(
        "promote-limit applies to a cache, and ublkb{} has none",
        plain.id()
    );
    assert!(said.contains(&wanted), "{said}");
    plain.stop();
    device.stop();
    nothing_is_left();
}

#[test]
fn what_is_set_survives_a_restart_and_show_says_what_the_device_was_made_with() {
    let (backing, cache) = (Backing::file("set", 64), Backing::file("set-cache", 16));
    let options = [
        "--cache",
        cache.spec(),
        "--recovery",
        "reissue",
        "--promote-limit",
        "4M",
    ];
    let device = Device::on(&backing, &options);
    let id = device.id();
    let changed = || device.show()["changed"].clone();
    assert_eq!(changed(), json!({}));
    let set = [
        "set",
        &id,
        "policy=lru",
        "promote-limit=none",
        "cache-eviction=clock",
        "scheduler=mq-deadline",
    ];
    let said = run("ublk-bpf", &set);
    assert!(said.starts_with(&format!("ublkb{id}: policy lru, ")), "{said}");
    let differs =
        json!({"cache-eviction": "adaptive", "policy": "auto", "promote-limit": "4M", "scheduler": "none"});
    assert_eq!(changed(), differs);
    assert!(read(device.sysfs("queue/scheduler")).contains("[mq-deadline]"));

    device.kill_server("waiting");
    run("ublk-bpf", &["run", "--recover", &id, "--daemon"]);
    assert_eq!(changed(), differs);
    let shown = device.show();
    assert_eq!(
        (shown["policy"].clone(), shown["cache"]["promote_limit"].clone()),
        (json!("lru"), json!(null))
    );
    assert_eq!(shown["cache"]["eviction"], "clock");
    assert!(read(device.sysfs("queue/scheduler")).contains("[mq-deadline]"));
    let text = run("ublk-bpf", &["show", &id]);
    let line = "cache-eviction (made with adaptive), policy (made with auto), promote-limit (made with 4M), scheduler (made with none)";
    assert!(text.contains(line), "{text}");

    // Back to what it was, one by the command of its own; what is refused changes nothing.
    run("ublk-bpf", &["policy", "swap", &id, "auto"]);
    run(
        "ublk-bpf",
        &["set", &id, "promote-limit=4M", "cache-eviction=adaptive"],
    );
    assert_eq!(changed(), json!({"scheduler": "none"}));
    let said = refused(&["set", &id, "scheduler=surely-not"]);
    assert!(
        said.contains("cannot select the I/O scheduler surely-not"),
        "{said}"
    );
    let said = refused(&["set", &id, "promote-limit=1M", "policy=surely-not"]);
    assert!(said.contains("surely-not"), "{said}");
    run("ublk-bpf", &["set", &id, "scheduler=none", "promote-limit=4M"]);
    assert_eq!(changed(), json!({}));
    device.stop();
    nothing_is_left();
}

#[test]
fn a_server_logs_more_when_it_is_told_to() {
    let backing = Backing::file("verbose", 16);
    let device = Device::on(&backing, &["--recovery", "reissue"]);
    let id = device.id();
    let log = format!("/run/ublk-bpf/ublkb{id}.log");
    // It has nothing to warn of, and says that a client has gone only with -vv.
    drop(connect(&device));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(read(&log), "");
    run("ublk-bpf", &["set", &id, "verbose=2"]);
    drop(connect(&device));
    wait_until("the log has a line", Duration::from_secs(10), || {
        read(&log).contains("a client of the control socket")
    });
    device.stop();
    nothing_is_left();
}

#[test]
fn clients_that_stall_or_lie_hold_up_neither_the_device_nor_other_clients() {
    let device = cached(&[]);
    let id = device.id();
    // They say nothing, or too little, and stay.
    let silent: Vec<_> = (0..4).map(|_| connect(&device)).collect();
    for mut stream in &silent {
        // On a busy machine the time of the first may be over already.
        let _ = stream.write_all(b"{\"version\":1,");
    }
    let begun = Instant::now();
    run("ublk-bpf", &["set", &id, "promote-limit=1M"]);
    // Had it waited for the four of them, it would have taken eight seconds.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    for (request, words) in [
        (&b"\n"[..], "does not understand the request"),
        (b"{\"version\":9}\n", "understands requests of version 1"),
        (b"{\"version\":1,\"request\":{\"device\":{\"id\":999,\"command\":{\"set\":{\"promote-limit\":null}}}}}\n",
         "ublkb999 is not ready"),
    ] {
        let said = reply(&connect(&device), request);
        assert!(said.starts_with("{\"error\":") && said.contains(words), "{said}");
    }
    let said = reply(&connect(&device), &vec![b'x'; 1 << 20]);
    assert!(said.is_empty() || said.contains("longer than 64 KiB"), "{said}");
    // Those that said too little are told so when their time is over.
    for stream in &silent {
        assert!(reply(stream, b"").contains("has received no request"));
    }
    // Too many are refused; none of them is in the way of a command once they are told so.
    let many: Vec<_> = (0..40).map(|_| connect(&device)).collect();
    for stream in &many {
        let said = reply(stream, b"");
        assert!(
            said.contains("8 other commands") || said.contains("has received no request"),
            "{said}"
        );
    }
    run("ublk-bpf", &["set", &id, "promote-limit=2M"]);
    assert_eq!(device.state(), "live");
    device.stop();
    nothing_is_left();
}

#[test]
fn only_root_steers_a_server() {
    let device = cached(&[]);
    let id = device.id();
    let command = format!("ublk-bpf set {id} promote-limit=1M");
    let as_nobody = |command: &str| {
        let args = [
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "sh",
            "-c",
            command,
        ];
        let output = try_run("setpriv", &args);
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(
        as_nobody(&command).contains("obeys root alone"),
        "{}",
        as_nobody(&command)
    );
    // A mode that was changed opens nothing: the peer is asked for.
    run("chmod", &["0666", &socket(&device).display().to_string()]);
    let said = as_nobody(&command);
    assert!(said.contains("does not reply"), "{said}");
    assert_eq!(device.show()["cache"]["promote_limit"], serde_json::Value::Null);
    device.stop();
    nothing_is_left();
}

#[test]
fn a_server_that_is_killed_or_gone_is_named() {
    let backing = Backing::file("steered", 16);
    let device = Device::on(&backing, &["--recovery", "reissue"]);
    let id = device.id();
    let socket = socket(&device);
    device.kill_server("waiting");
    let said = refused(&["set", &id, "promote-limit=1M"]);
    assert!(said.contains("has no server"), "{said}");
    run("ublk-bpf", &["run", "--recover", &id, "--daemon"]);
    assert!(!socket.exists(), "the killed server's socket is left");
    device.kill_server("waiting");
    device.stop();
    nothing_is_left();
}
