//! The classifier and the policies in a kernel, on null_blk disks: no ublk device is needed to see what they decide.

#![expect(clippy::unwrap_used, reason = "a test should panic at the first surprise")]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Instant;

use ublk_bpf::observe::{self, OpDecisions};
use ublk_bpf::policy::{
    self, Classifier, ClassifierSpec, DEFAULT_POLICY_MEMORY, Disk, Observe, Policy, PolicyError,
    PolicyObject, WrittenSpec,
};
use ublk_bpf_abi::{FaultRange, Op, Reason, ServerCounters, Verdict, hint};
use ublk_bpf_guest::aligned::Aligned;

const QUEUES: u16 = 2;
const DEPTH: u16 = 64;
const BLOCK: usize = 4096;

/// A null_blk disk for one test, with the classifier attached. One test at a time: the kernel counts a program's misses
/// over all disks.
struct Fixture {
    _alone: Option<MutexGuard<'static, ()>>,
    disk: Disk,
    spec: ClassifierSpec,
    file: File,
}

impl Fixture {
    fn new(number: u32, written: Option<WrittenSpec>) -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            _alone: Some(alone),
            ..Self::another(number, written)
        }
    }

    /// Another disk for the same test.
    fn another(number: u32, written: Option<WrittenSpec>) -> Self {
        static MODULE: Once = Once::new();
        MODULE.call_once(|| {
            // Completions by timer: a submitter sleeps, as with a real device.
            let options =
                "queue_mode=2 submit_queues=2 hw_queue_depth=64 nr_devices=10 gb=1 memory_backed=1 discard=1 irqmode=2";
            let loaded = Command::new("modprobe")
                .arg("null_blk")
                .args(options.split(' '))
                .arg("cache_size=1")
                .status();
            assert!(loaded.unwrap().success(), "null_blk is needed");
            policy::ensure_bpffs().unwrap();
        });
        let disk = Disk::named(&format!("nullb{number}"));
        let path = format!("/dev/{}", disk.name());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .unwrap();
        let spec = ClassifierSpec {
            disk: disk.clone(),
            queues: QUEUES,
            depth: DEPTH,
            written,
            cache: None,
            observe: Observe::Counters,
        };
        Self {
            _alone: None,
            disk,
            spec,
            file,
        }
    }

    fn load(&self) -> Classifier {
        Classifier::load(&self.spec).unwrap()
    }

    fn read(&self, sector: u64, len: usize) {
        let mut buffer = Aligned::new(len);
        self.file.read_exact_at(buffer.first(len), sector * 512).unwrap();
    }

    fn write(&self, sector: u64, len: usize) {
        self.file
            .write_all_at(Aligned::new(len).first(len), sector * 512)
            .unwrap();
    }

    fn discard(&self, sector: u64, len: u64) {
        const BLKDISCARD: u64 = 0x1277;
        let range = [sector * 512, len];
        // SAFETY: BLKDISCARD reads two u64, which `range` is.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    fn swap(&self, policy: &str) {
        let policy = Policy::parse(policy, DEFAULT_POLICY_MEMORY).unwrap();
        policy::swap(&self.disk, &policy).unwrap();
    }

    fn decisions(&self, op: Op) -> OpDecisions {
        observe::stats(&self.disk).unwrap().decisions[op as usize]
    }
}

/// A verdict as the server finds it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    sector: u64,
    nr_sectors: u32,
    op: u8,
    verdict: u8,
    reason: u8,
    hints: u8,
}

/// Takes every slot of the device.
fn take_all(classifier: &Classifier) -> Vec<Seen> {
    let mut all = Vec::new();
    for qid in 0..QUEUES {
        let queue = classifier.verdicts().queue(qid);
        for tag in 0..DEPTH {
            let taken = queue.take(tag);
            if taken.head == 0 {
                continue;
            }
            let [verdict, reason, hints, op, n @ ..] = taken.head.to_le_bytes();
            let nr_sectors = u32::from_le_bytes(n);
            all.push(Seen {
                sector: taken.place >> 16,
                nr_sectors,
                op,
                verdict,
                reason,
                hints,
            });
        }
    }
    all.sort();
    all
}

fn seen(op: Op, sector: u64, nr_sectors: u32, verdict: Verdict, reason: Reason) -> Seen {
    Seen {
        sector,
        nr_sectors,
        op: op as u8,
        verdict: verdict as u8,
        reason: reason as u8,
        hints: 0,
    }
}

/// A built-in policy with some of its code replaced: from `old` to `new` wherever it occurs.
fn altered_passthrough(old: &[u8], new: &[u8]) -> PolicyObject {
    let builtin = policy::builtin()
        .iter()
        .find(|known| known.name == "passthrough")
        .unwrap();
    let mut bytes = builtin.object().to_vec();
    let at: Vec<usize> = (0..bytes.len() - old.len())
        .filter(|&at| bytes[at..].starts_with(old))
        .collect();
    assert!(!at.is_empty(), "passthrough's code has changed: adapt this test");
    for at in at {
        bytes[at..at + new.len()].copy_from_slice(new);
    }
    let path = format!(
        "/tmp/altered-{}.o",
        new.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    );
    std::fs::write(&path, bytes).unwrap();
    PolicyObject::open(path.as_ref(), DEFAULT_POLICY_MEMORY).unwrap()
}

/// `w0 = 1`, which is passthrough's answer.
const ANSWER: [u8; 8] = [0xb4, 0, 0, 0, 1, 0, 0, 0];

#[test]
fn every_request_gets_a_verdict_and_is_counted() {
    let fixture = Fixture::new(0, None);
    let classifier = fixture.load();
    fixture.read(800, BLOCK);
    fixture.read(8, 16 * BLOCK);
    fixture.write(1600, 2 * BLOCK);
    fixture.discard(4096, 1 << 20);
    fixture.file.sync_all().unwrap();
    let pass = |op, sector, n| seen(op, sector, n, Verdict::Passthrough, Reason::Default);
    let mut expected = vec![
        pass(Op::Read, 800, 8),
        pass(Op::Read, 8, 128),
        pass(Op::Write, 1600, 16),
        pass(Op::Discard, 4096, 2048),
        // A slot has 48 bits of a sector.
        pass(Op::Flush, u64::MAX >> 16, 0),
    ];
    expected.sort();
    assert_eq!(take_all(&classifier), expected);
    assert_eq!(take_all(&classifier), [], "a verdict is taken once");
    let reads = fixture.decisions(Op::Read);
    assert_eq!(
        (reads.requests, reads.sectors, reads.verdicts[0], reads.reasons[0]),
        (2, 136, 2, 2)
    );
    assert_eq!(fixture.decisions(Op::Write).requests, 1);
    assert_eq!(fixture.decisions(Op::Flush).requests, 1);
    assert_eq!(fixture.decisions(Op::Discard).sectors, 2048);
    assert_eq!(fixture.decisions(Op::Other).requests, 0);
}

#[test]
fn other_disks_are_ignored() {
    let mine = Fixture::new(1, None);
    let other = Fixture::another(2, None);
    let classifier = mine.load();
    other.read(0, BLOCK);
    assert_eq!(take_all(&classifier), []);
    assert_eq!(mine.decisions(Op::Read).requests, 0);
}

#[test]
fn sparse_drops_reads_of_unwritten_blocks_only() {
    let written = WrittenSpec::for_device(1 << 21, 16).unwrap();
    assert_eq!(written.words, 256);
    let fixture = Fixture::new(3, Some(written));
    let classifier = fixture.load();
    fixture.swap("sparse");
    // Blocks 20 and 64 hold data; a block has 128 sectors.
    let words = classifier.written().unwrap().words();
    words[0].store(1 << 20, Ordering::Relaxed);
    words[1].store(1, Ordering::Relaxed);
    let cases = [
        (0, BLOCK, true),
        (20 * 128 - 8, BLOCK, true),
        (20 * 128 - 8, 2 * BLOCK, false),
        (21 * 128 - 8, BLOCK, false),
        (21 * 128, BLOCK, true),
        (22 * 128, 42 * 128 * 512 / 2, true),
        (63 * 128, 128 * 512, true),
        (63 * 128, 129 * 512 + 7 * 512, false),
        (65 * 128, 128 * 512, true),
        ((1 << 21) - 8, BLOCK, true),
    ];
    for (sector, len, drops) in cases {
        fixture.read(sector, len);
        let all = take_all(&classifier);
        // A long read is split; what matters is that no part of a written block is dropped.
        let dropped = all.iter().all(|seen| seen.verdict == Verdict::Drop as u8);
        assert_eq!(dropped, drops, "{len} bytes at sector {sector}: {all:?}");
        assert!(drops || all.iter().any(|seen| seen.reason == Reason::Default as u8));
    }
    // Writes are never called unwritten.
    fixture.write(0, BLOCK);
    assert_eq!(
        take_all(&classifier),
        [seen(Op::Write, 0, 8, Verdict::Passthrough, Reason::Default)]
    );
}

#[test]
fn fault_fails_requests_in_its_range() {
    let fixture = Fixture::new(4, None);
    let classifier = fixture.load();
    fixture.swap("fault");
    fixture.read(0, BLOCK);
    assert_eq!(
        take_all(&classifier)[0].verdict,
        Verdict::Passthrough as u8,
        "the range is empty at first"
    );
    let range = FaultRange {
        first_sector: 16,
        last_sector: 23,
        ops: 1 << Op::Read as u64,
    };
    policy::set_fault_range(&fixture.disk, range).unwrap();
    for (sector, fails) in [(8, false), (16, true), (24, false)] {
        fixture.read(sector, BLOCK);
        let hints = if fails { hint::FAIL } else { 0 };
        assert_eq!(take_all(&classifier)[0].hints, hints, "sector {sector}");
    }
    fixture.write(16, BLOCK);
    assert_eq!(take_all(&classifier)[0].hints, 0, "only reads were chosen");
    let reads = fixture.decisions(Op::Read);
    assert_eq!(
        (reads.verdicts, reads.reasons),
        ([3, 0, 1, 0], [3, 0, 0, 1, 0, 0, 0, 0])
    );
}

#[test]
fn invalid_decisions_become_slow_and_are_counted() {
    let fixture = Fixture::new(5, None);
    let classifier = fixture.load();
    let answers = [0, 5, 1 | 7 << 8, 1 | 8 << 8, 3 | 128 << 16, 1 | 1 << 24, u32::MAX];
    for answer in answers {
        let mut code = ANSWER;
        code[4..].copy_from_slice(&answer.to_le_bytes());
        let object = altered_passthrough(&ANSWER, &code);
        policy::swap(&fixture.disk, &Policy::Object(object)).unwrap();
        fixture.read(0, BLOCK);
        let expected = [seen(Op::Read, 0, 8, Verdict::Slow, Reason::BadAnswer)];
        assert_eq!(take_all(&classifier), expected, "answer {answer:#x}");
    }
    let reads = fixture.decisions(Op::Read);
    assert_eq!((reads.verdicts[3], reads.reasons[7]), (7, 7));
}

#[test]
fn a_policy_that_the_verifier_refuses_leaves_the_old_one() {
    let fixture = Fixture::new(6, None);
    let classifier = fixture.load();
    fixture.swap("drop-discard");
    // `w0 = 1` becomes `r0 = *(u32 *)(r1 + 1000)`, far outside of the request.
    let load = [0x61, 0x10, 0xe8, 0x03, 0, 0, 0, 0];
    let error = policy::swap(
        &fixture.disk,
        &Policy::Object(altered_passthrough(&ANSWER, &load)),
    )
    .unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, PolicyError::Refused(_)), "{text}");
    let head = text.lines().next().unwrap();
    assert!(
        head.starts_with("the kernel's verifier refused policy /tmp/altered-"),
        "{head}"
    );
    assert!(head.contains("mem"), "{head}");
    fixture.discard(0, 4096);
    assert_eq!(
        take_all(&classifier),
        [seen(Op::Discard, 0, 8, Verdict::Drop, Reason::Advisory)]
    );
    assert!(policy::reset(&fixture.disk).unwrap());
    assert!(!policy::reset(&fixture.disk).unwrap(), "no policy is attached");
    fixture.discard(0, 4096);
    assert_eq!(take_all(&classifier)[0].verdict, Verdict::Passthrough as u8);
}

#[test]
fn policies_are_swapped_under_load_and_no_request_is_lost() {
    let fixture = Fixture::new(7, None);
    let classifier = fixture.load();
    let stop = AtomicBool::new(false);
    let issued = AtomicU64::new(0);
    std::thread::scope(|threads| {
        for job in 0..4 {
            let (fixture, stop, issued) = (&fixture, &stop, &issued);
            threads.spawn(move || {
                let mut buffer = Aligned::new(BLOCK);
                for block in (0..1 << 17).cycle() {
                    fixture
                        .file
                        .read_exact_at(buffer.first(BLOCK), (block * 8 + job) % (1 << 17) * BLOCK as u64)
                        .unwrap();
                    issued.fetch_add(1, Ordering::Relaxed);
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        for round in 0..6 {
            let name = ["passthrough", "sparse", "fault"][round % 3];
            let start = Instant::now();
            fixture.swap(name);
            println!("swapped to {name} in {:?}", start.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
    });
    let stats = observe::stats(&fixture.disk).unwrap();
    let reads = stats.decisions[Op::Read as usize];
    // The kernel skips the program where it already runs on the CPU, and counts that.
    let misses = stats.classifier.recursion_misses;
    println!("{} reads classified, {misses} not, over 6 swaps", reads.requests);
    assert_eq!(reads.requests + misses, issued.load(Ordering::Relaxed));
    assert_eq!(reads.verdicts[0], reads.requests);
    assert!(stats.policy.is_some());
    drop(classifier);
}

#[test]
fn pins_outlive_the_process_and_are_found_removed_and_refused() {
    let written = WrittenSpec::for_device(1 << 21, 16);
    let fixture = Fixture::new(8, written);
    let pins = policy::PinDir::of(&fixture.disk);
    let mut first = fixture.load();
    let counters = ServerCounters {
        arrived: 7,
        enters: 9,
        ..Default::default()
    };
    first.counters().queue(1).publish(&counters);
    first.leave_pinned();
    drop(first);
    assert!(policy::pinned_disks().unwrap().contains(&fixture.disk));

    fixture.read(0, BLOCK);
    let found = Classifier::reopen(&fixture.spec).unwrap();
    assert_eq!(found.counters().queue(1).published(), counters);
    assert_eq!(observe::stats(&fixture.disk).unwrap().server.0.enters, 9);
    assert_eq!(take_all(&found).len(), 1, "it stayed attached");
    fixture.read(0, BLOCK);
    found.verdicts().clear();
    assert_eq!(take_all(&found), []);
    drop(found);

    for other in [
        ClassifierSpec {
            depth: 32,
            ..fixture.spec.clone()
        },
        ClassifierSpec {
            queues: 1,
            ..fixture.spec.clone()
        },
        ClassifierSpec {
            written: None,
            ..fixture.spec.clone()
        },
    ] {
        let error = Classifier::reopen(&other).unwrap_err();
        assert!(matches!(error, PolicyError::Foreign { .. }), "{error}");
    }
    let stale = policy::remove_stale(|disk| *disk != fixture.disk).unwrap();
    assert_eq!(stale, std::slice::from_ref(&fixture.disk));
    assert!(!pins.path().exists());
    let error = Classifier::reopen(&fixture.spec).unwrap_err();
    assert!(matches!(error, PolicyError::NotClassified { .. }), "{error}");
    assert!(
        policy::swap(
            &fixture.disk,
            &Policy::parse("sparse", DEFAULT_POLICY_MEMORY).unwrap()
        )
        .is_err()
    );

    drop(fixture.load());
    assert!(!pins.path().exists(), "dropping it removes it");
}

#[test]
fn bpftool_prints_names() {
    let fixture = Fixture::new(9, None);
    let _classifier = fixture.load();
    fixture.swap("drop-discard");
    fixture.discard(8, 4096);
    let dump = |map: &str| {
        let pin = policy::PinDir::of(&fixture.disk).map(map);
        let output = Command::new("bpftool")
            .args(["map", "dump", "pinned"])
            .arg(pin)
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout)
            .unwrap()
            .split_whitespace()
            .collect::<String>()
    };
    let slot = r#""verdict":"Drop","reason":"Advisory","hints":0,"op":"Discard","nr_sectors":8,"tenant":0,"delay":0,"sector_low":8,"sector_high":0"#;
    assert!(dump("verdicts").contains(slot));
    let decisions = dump("decisions");
    assert!(
        decisions.contains(r#""drop":{"default":0,"advisory":1,"#)
            && decisions.contains(r#""op":"WriteZeroes""#)
    );
    assert!(dump("server").contains(r#""verdict_missing":0"#));
}
