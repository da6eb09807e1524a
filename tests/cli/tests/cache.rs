//! What `ublk-bpf cache` tells of a cache device.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use cli_tests::{Outcome, run_in};
use ublk_bpf::backend::fingerprint::Identity;
use ublk_bpf::backend::{Backend, Spec};
use ublk_bpf::cache::disk::{self, Layout, SavedEntry};
use ublk_bpf::cache::log::{LOG_BUFFER, LogEntry};

/// Makes a cache of 1 MiB for a backing of 4 MiB, stopped in good order with two blocks in it.
fn saved(folder: &Path) -> (File, Layout, Identity) {
    let backing = folder.join("backing");
    File::create(&backing)
        .expect("prepared")
        .set_len(4 << 20)
        .expect("prepared");
    let identity =
        Identity::of(&Backend::open(&Spec::Path(backing), false).expect("prepared")).expect("prepared");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(folder.join("cache"))
        .expect("prepared");
    file.set_len(1 << 20).expect("prepared");
    let layout = Layout::plan(1 << 20, 64 << 10).expect("prepared");
    disk::open(&file, &layout, &identity).expect("prepared");
    let entry = |slot| SavedEntry {
        slot,
        block: u64::from(slot) + 7,
        priority: 0,
        heat: 1,
        valid: if slot == 2 { 0x00ff } else { u16::MAX },
    };
    disk::save(&file, &layout, &identity, None, [2, 5].into_iter().map(entry)).expect("prepared");
    (file, layout, identity)
}

fn inspect(folder: &Path, args: &[&str]) -> Outcome {
    run_in(folder, &[&["cache", "inspect"], args].concat())
}

fn json(folder: &Path) -> serde_json::Value {
    serde_json::from_str(&inspect(folder, &["cache", "--json"]).stdout).expect("prepared")
}

/// Checks that the table is printed with this line in it, and this complaint.
fn damaged(folder: &Path, fact: &str, complaint: &str) {
    let outcome = inspect(folder, &["cache"]);
    assert!(
        outcome.stdout.lines().any(|line| line == fact),
        "{}",
        outcome.stdout
    );
    assert_eq!(
        (outcome.status, outcome.stderr),
        (1, format!("ublk-bpf: cache cache: {complaint}\n"))
    );
}

#[test]
fn a_clean_cache_is_told_and_left_alone() {
    let folder = tempfile::tempdir().expect("prepared");
    let at = folder.path();
    let (_, layout, identity) = saved(at);
    let before = fs::read(at.join("cache")).expect("prepared");
    let outcome = inspect(at, &["cache"]);
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
    let id = json(at)["cache_id"].as_str().expect("prepared").to_owned();
    assert_eq!(
        outcome.stdout,
        format!(
            "format       version 3\n\
             state        clean: the next start uses its content if the backing is unchanged\n\
             block size   64K\n\
             slots        15\n\
             in use       2, 1 of them with a part of their block\n\
             data offset  64K (65536 bytes)\n\
             cache id     {id}\n\
             backing      {identity}\n\
             generation   2\n\
             copy A       good\n\
             copy B       good\n"
        )
    );
    assert_eq!(layout.slots, 15);
    let json = json(at);
    for (name, value) in [
        ("version", 3.into()),
        ("clean", true.into()),
        ("block_bytes", 65536.into()),
        ("slots", 15.into()),
        ("in_use", 2.into()),
        ("in_part", 1.into()),
        ("data_offset", 65536.into()),
        ("backing_bytes", (4 << 20).into()),
        ("generation", 2.into()),
        ("copies", serde_json::json!(["good", "good"])),
        ("damage", serde_json::Value::Null),
    ] {
        assert_eq!(json[name], value, "{name}");
    }
    assert_eq!(fs::read(at.join("cache")).expect("prepared"), before);
}

#[test]
fn a_cache_in_use_is_told() {
    let folder = tempfile::tempdir().expect("prepared");
    let at = folder.path();
    let (file, layout, identity) = saved(at);
    disk::open(&file, &layout, &identity).expect("prepared");
    let outcome = inspect(at, &["cache"]);
    assert_eq!(outcome.status, 0);
    assert!(
        outcome
            .stdout
            .contains("\nstate        in use, or not shut down cleanly")
            && outcome.stdout.contains("\nin use       unknown\n"),
        "{}",
        outcome.stdout
    );
    assert_eq!(json(at)["in_use"], serde_json::Value::Null);
}

#[test]
fn damage_is_told() {
    let folder = tempfile::tempdir().expect("prepared");
    let at = folder.path();
    let (file, ..) = saved(at);
    file.write_all_at(&[1], 4096 + 500).expect("prepared");
    damaged(
        at,
        "copy B       wrong checksum",
        "copy B of its superblock is damaged (wrong checksum); the other one serves, and the next start mends it",
    );
    file.write_all_at(&[1], 8192 + 3 * 16).expect("prepared");
    damaged(
        at,
        "in use       unknown",
        "its list of blocks is damaged at slot 3 (wrong checksum): empty it with --cache-reset",
    );
    assert!(json(at)["damage"].as_str().expect("prepared").contains("slot 3"));
    file.set_len(1 << 19).expect("prepared");
    damaged(
        at,
        "in use       unknown",
        "its device has 524288 bytes, and its slots end at 1048576",
    );
}

#[test]
fn what_is_no_cache_is_refused_in_one_line() {
    let folder = tempfile::tempdir().expect("prepared");
    let at = folder.path();
    let foreign = "holds something that is not a cache of ublk-bpf: give another device, or overwrite it with --cache-reset";
    fs::write(at.join("text"), "text").expect("prepared");
    fs::write(at.join("data"), [7; 20000]).expect("prepared");
    File::create(at.join("blank"))
        .expect("prepared")
        .set_len(1 << 20)
        .expect("prepared");
    let (file, ..) = saved(at);
    for copy in [0, 4096] {
        file.write_all_at(&[1], copy + 500).expect("prepared");
    }
    for (name, why) in [
        ("text", foreign),
        ("data", foreign),
        ("blank", "is blank: `ublk-bpf run --cache` formats it as a cache"),
        (
            "cache",
            "both copies of its superblock are damaged (A wrong checksum, B wrong checksum): empty it with --cache-reset",
        ),
        (".", "is neither a regular file nor a block device"),
        ("none", "cannot open it: No such file or directory (os error 2)"),
    ] {
        for args in [&[name][..], &[name, "--json"]] {
            let outcome = inspect(at, args);
            assert_eq!(outcome.stderr, format!("ublk-bpf: cache {name}: {why}\n"));
            assert_eq!((outcome.status, outcome.stdout.as_str()), (1, ""));
        }
    }
}

/// A cache that was stopped with dirty regions of two blocks.
fn dirty(folder: &Path) -> (File, Layout) {
    let (file, layout, identity) = saved(folder);
    let started = disk::open(&file, &layout, &identity).expect("prepared");
    assert!(started.dirty.is_empty());
    let mut log = disk::mark_dirty(&file, &layout).expect("prepared");
    let entry = |slot: u32, dirty| LogEntry {
        slot,
        block: slot + 7,
        dirty,
    };
    let mut buffer = vec![0; LOG_BUFFER];
    let placed = log.append(&[entry(2, 0x000f), entry(5, 0x8001)], &mut buffer);
    let placed = placed.expect("prepared");
    file.write_all_at(&buffer[..placed.length], placed.offset)
        .expect("prepared");
    (file, layout)
}

fn verify(folder: &Path) -> Outcome {
    run_in(folder, &["cache", "verify", "cache"])
}

#[test]
fn dirty_ranges_are_told() {
    let folder = tempfile::tempdir().expect("prepared");
    let at = folder.path();
    dirty(at);
    let outcome = inspect(at, &["cache"]);
    assert!(
        outcome.status == 0
            && outcome.stdout.contains(
                "dirty         2 blocks, 24K\n\
                 dirty ranges  576K+16K 768K+4K 828K+4K\n\
                 log           1 pages after checkpoint 1\n"
            ),
        "{}",
        outcome.stdout
    );
    assert_eq!(json(at)["dirty"]["bytes"], 24 << 10);
}

#[test]
fn what_is_wrong_is_told_by_place() {
    let folder = tempfile::tempdir().expect("prepared");
    let at = folder.path();
    let (file, layout) = dirty(at);
    let outcome = verify(at);
    assert_eq!(
        (outcome.status, outcome.stdout.as_str()),
        (
            0,
            "superblock A    good\n\
             superblock B    good\n\
             device          all there\n\
             list of blocks  does not count before a clean stop\n\
             log             good: 2 dirty blocks\n"
        )
    );
    file.write_all_at(&[1], 4096 + 500).expect("prepared");
    let heads = layout.log().heads_offset;
    file.write_all_at(&[0; 8192], heads).expect("prepared");
    let outcome = verify(at);
    assert_eq!(
        outcome.stderr,
        "ublk-bpf: cache cache: 2 of 5 parts are damaged\n"
    );
    assert!(
        outcome.status == 1
            && outcome.stdout.contains("superblock B    wrong checksum\n")
            && outcome
                .stdout
                .contains(&format!("the heads of the log at byte {heads}: neither")),
        "{}",
        outcome.stdout
    );
}
