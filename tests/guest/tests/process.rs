//! Process attributes that a server sets as root.

use std::fs::read_to_string;
use std::thread;

use ublk_bpf::sys::memory::{lock_all_memory, may_lock_all_memory};
use ublk_bpf::sys::process::{is_io_flusher, leave_mount_namespace, set_io_flusher};

#[test]
fn threads_inherit_the_io_flusher_state() {
    thread::spawn(|| {
        assert!(!is_io_flusher().unwrap());
        set_io_flusher().unwrap();
        assert!(is_io_flusher().unwrap());
        thread::spawn(|| assert!(is_io_flusher().unwrap()))
            .join()
            .unwrap();
    })
    .join()
    .unwrap();
    assert!(!is_io_flusher().unwrap());
}

#[test]
fn only_the_calling_thread_leaves_its_mount_namespace() {
    let namespace = || std::fs::read_link("/proc/thread-self/ns/mnt").unwrap();
    let before = namespace();
    let left = thread::spawn(move || {
        leave_mount_namespace().unwrap();
        let mounts = read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(
            !mounts.contains(" shared:") && !mounts.contains(" master:"),
            "{mounts}"
        );
        thread::spawn(namespace).join().unwrap()
    })
    .join()
    .unwrap();
    assert_ne!(left, before);
    assert_eq!(namespace(), before);
}

#[test]
fn memory_is_locked() {
    assert!(may_lock_all_memory(), "root has every capability");
    lock_all_memory().unwrap();
    let status = read_to_string("/proc/self/status").unwrap();
    let locked = status
        .lines()
        .find_map(|line| line.strip_prefix("VmLck:"))
        .unwrap();
    let kib: u64 = locked.trim().trim_end_matches(" kB").trim().parse().unwrap();
    assert!(kib > 0, "{locked}");
}
