//! Entries carried out by this machine's own io_uring, on real files, with ordinary registered buffers in the
//! place of requests' pages.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64};

use io_uring::IoUring;
use io_uring::types::Timespec;
use ublk_bpf_abi::TakenVerdict;

use super::memory::Memory;
use super::ring::Ring;
use super::sqe::{Executor, Tagged};
use super::*;
use crate::backend::{Backend, Size, Spec};
use crate::queue::{Ends, Io, Staging, Tier, Written};

const TAG: u16 = 3;
const BLOCK: u32 = 4096;

/// A ring with a backend, and one buffer of two blocks as the pages of request [`TAG`].
struct Bench {
    backend: Backend,
    memory: Memory,
    pages: Box<Pages>,
}

#[repr(align(4096))]
struct Pages([u8; 2 * BLOCK as usize]);

impl Bench {
    fn over(spec: &Spec) -> Self {
        let pages = Box::new(Pages([0x55; 2 * BLOCK as usize]));
        Self {
            backend: Backend::open(spec, false).unwrap(),
            memory: Memory::map(1, (2, 2 * BLOCK), (1, BLOCK)).unwrap(),
            pages,
        }
    }

    /// Carries out one operation and returns its result.
    fn run(&mut self, io: Io) -> i32 {
        let mut uring: IoUring = ring::build(8).unwrap();
        let stop = Stop::new().unwrap();
        let mut ring = Ring::over(&mut uring);
        let zero = File::open("/dev/zero").unwrap();
        let Access::Ring { file, ops } = self.backend.access() else {
            panic!("a backend without a file")
        };
        let files = [-1, file.as_raw_fd(), zero.as_raw_fd(), stop.as_raw_fd()];
        ring.submitter().register_files(&files).unwrap();
        ring.submitter().register_buffers_sparse(8).unwrap();
        let pages = libc::iovec {
            iov_base: self.pages.0.as_mut_ptr().cast(),
            iov_len: self.pages.0.len(),
        };
        // SAFETY: the pages outlive the ring.
        unsafe {
            ring.submitter()
                .register_buffers_update(u32::from(TAG), &[pages], None)
                .unwrap();
        };
        // SAFETY: the memory outlives the ring.
        unsafe { self.memory.register(ring.submitter(), TAG + 1) };
        // A registered buffer of a request starts at zero; an ordinary one at its address.
        let base = self.pages.0.as_ptr() as u64;
        let staging = &self.memory.staging;
        let executor = sqe::executor(
            TAG,
            io,
            ops,
            |buffer, skip| staging.place(buffer, skip),
            std::ptr::null,
        );
        let Executor::Ring(mut entry) = executor else {
            panic!("{io:?} is not the ring's")
        };
        if matches!(io, Io::Read { .. } | Io::Write { .. } | Io::Zero { .. }) {
            sqe::move_address(&mut entry, base);
        }
        // SAFETY: the entry names the pages or a staging buffer, and both outlive the ring.
        unsafe { ring.push(&entry) };
        ring.enter(1).unwrap();
        let completion = ring.next_completion().unwrap();
        assert_eq!(Tagged::parse(completion.user_data()), Some(Tagged::Io(TAG)));
        assert!(ring.next_completion().is_none());
        completion.result()
    }

    fn content(&self, offset: u64) -> Vec<u8> {
        // The backend's own descriptor wants aligned memory.
        let mut page = Box::new(Pages([0; 2 * BLOCK as usize]));
        self.backend
            .file()
            .unwrap()
            .read_exact_at(&mut page.0, offset)
            .unwrap();
        page.0.to_vec()
    }
}

fn each_target(test: impl Fn(&mut Bench)) {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("backing");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    test(&mut Bench::over(&Spec::Path(path)));
    test(&mut Bench::over(&Spec::Memory(1 << 20)));
}

const BACKING: Tier = Tier::Backing;

#[test]
fn a_tick_completes_again_and_again() {
    static SOON: Timespec = Timespec::new().nsec(1_000_000);
    let mut io = ring::build(2).unwrap();
    let mut ring = Ring::over(&mut io);
    // SAFETY: the entry names static memory.
    unsafe { ring.push(&sqe::tick(&SOON)) };
    for _ in 0..3 {
        ring.enter(1).unwrap();
        let completion = ring.next_completion().unwrap();
        assert_eq!(Tagged::parse(completion.user_data()), Some(Tagged::Tick));
    }
}

#[test]
fn data_is_written_and_read_back() {
    each_target(|bench| {
        for durable in [false, true] {
            let write = Io::Write {
                to: Tier::Backing,
                offset: 8192,
                at: 0,
                len: 2 * BLOCK,
                durable,
            };
            assert_eq!(bench.run(write), 8192);
        }
        assert_eq!(bench.content(8192), [0x55; 8192]);
        assert_eq!(
            bench.run(Io::Zero {
                at: 0,
                len: 2 * BLOCK
            }),
            8192
        );
        assert_eq!(bench.pages.0, [0; 8192]);
        let read = Io::Read {
            from: BACKING,
            offset: 8192,
            at: BLOCK,
            len: BLOCK,
        };
        assert_eq!(bench.run(read), 4096);
        assert_eq!((bench.pages.0[4095], bench.pages.0[4096]), (0, 0x55));
        assert_eq!(bench.run(Io::Flush { device: BACKING }), 0);
    });
}

#[test]
fn staging_buffers_reach_the_target() {
    each_target(|bench| {
        let write = Io::Write {
            to: Tier::Backing,
            offset: 0,
            at: 0,
            len: 2 * BLOCK,
            durable: false,
        };
        assert_eq!(bench.run(write), 8192);
        let load = Io::Load {
            from: BACKING,
            offset: 0,
            staging: Staging(1),
            skip: BLOCK,
            len: BLOCK,
        };
        assert_eq!(bench.run(load), 4096);
        let store = Io::Store {
            to: BACKING,
            offset: 65536,
            staging: Staging(1),
            skip: 0,
            len: 2 * BLOCK,
            durable: true,
        };
        assert_eq!(bench.run(store), 8192);
        let content = bench.content(65536);
        assert!(
            content[..4096].iter().all(|&byte| byte == 0) && content[4096..].iter().all(|&byte| byte == 0x55)
        );
    });
}

#[test]
fn discards_and_zeroes_clear_their_range_and_nothing_else() {
    each_target(|bench| {
        assert!(bench.backend.facts().discard.is_some() && bench.backend.facts().write_zeroes.is_some());
        let (offset, len) = (u64::from(BLOCK), u64::from(BLOCK));
        for io in [
            Io::Discard {
                device: BACKING,
                offset,
                len,
            },
            Io::WriteZeroes {
                device: BACKING,
                offset,
                len,
                keep_allocated: false,
            },
            Io::WriteZeroes {
                device: BACKING,
                offset,
                len,
                keep_allocated: true,
            },
        ] {
            let write = Io::Write {
                to: Tier::Backing,
                offset: 0,
                at: 0,
                len: 2 * BLOCK,
                durable: false,
            };
            assert_eq!(bench.run(write), 8192);
            assert_eq!(bench.run(io), 0, "{io:?}");
            let content = bench.content(0);
            assert!(content[..4096].iter().all(|&byte| byte == 0x55));
            assert!(content[4096..].iter().all(|&byte| byte == 0), "{io:?}");
        }
    });
}

#[test]
fn a_read_behind_the_end_is_short() {
    each_target(|bench| {
        let end = bench.backend.facts().sectors * 512 - u64::from(BLOCK);
        let read = Io::Read {
            from: BACKING,
            offset: end,
            at: 0,
            len: 2 * BLOCK,
        };
        assert_eq!(bench.run(read), 4096);
    });
}

/// Of a queue that gets no tag.
struct NoHost;

impl QueueHost for NoHost {
    fn take_verdict(&mut self, tag: u16) -> TakenVerdict {
        panic!("tag {tag} arrived")
    }

    fn publish(&mut self, _counters: &ServerCounters) {}

    fn ready(&mut self) {
        panic!("the queue is ready")
    }
}

#[test]
fn a_queue_of_something_that_is_no_ublk_device_fails_by_itself() {
    let device = tempfile::tempfile().unwrap();
    device.set_len(1 << 20).unwrap();
    let backend = Backend::open(&Spec::Memory(1 << 20), false).unwrap();
    let (sectors, stopping) = (AtomicU64::new(8), AtomicBool::new(false));
    let engine = Engine::new(DeviceSpec {
        queues: 1,
        depth: 16,
        descriptor_bytes: 24,
        device: std::os::fd::AsFd::as_fd(&device),
        backend: &backend,
        written: Written::untracked(),
        cache: None,
        sectors: &sectors,
        stopping: &stopping,
        ends: Ends::fixed(),
        lossy: false,
    })
    .unwrap();
    let error = engine.run_queue(0, &mut NoHost).unwrap_err().to_string();
    assert!(
        error.starts_with("queue 0: the kernel refused to prepare the queue"),
        "{error}"
    );
    assert_eq!(Size(1 << 20).to_string(), "1M");
}
