//! A driver that simulates: one or two machines over a model of ublk's batch mode, with faults, from a seed.
//!
//! [`run`] makes a [`World`] of its seed, lets clients send requests, carries the machine's effects out in a
//! random order with random faults, and checks after every step what [`queue`](ublk_bpf::queue) promises:
//!
//! - a READ completes with success only if every byte of its pages was filled, with what the device may hold
//!   there (`history.rs` says what that is for requests that overlap); pages start as another process's;
//! - a WRITE completes with success only if the device holds it; after a FLUSH, or with FUA, for good;
//! - a request fails only if something failed under it, and always if it asked for what the device is not;
//! - on a device without leave to lose data, no verdict changes any of this;
//! - no tag is committed that the server does not own, or with an operation in flight, or with any result but
//!   the exact length and a negative errno;
//! - no two operations use one tag or one staging buffer; each stays within its request, and is aligned;
//! - a cache changes none of this: all of the above holds, whatever its device does, and the backing device alone is
//!   what clients left. A slot that is not being written holds what the backing device has, at every server's end; no
//!   slot is filled that is in use; the mover sleeps only when it has nothing to do;
//! - a fill's buffer is copied from only once it is loaded, and loaded again only when it was copied from; a read that waits for
//!   a fill is served, whatever becomes of that;
//! - whatever happens, every request completes and every ending ends, within a bounded number of steps.
//!
//! # Faults that are legal, and why
//!
//! References are to `drivers/block/ublk_drv.c` and `io_uring/` of Linux 7.3.
//!
//! | fault | why it is legal |
//! |---|---|
//! | FETCH ends with `-ENOBUFS` | its buffer is used up (`__ublk_batch_dispatch`: no buffer was selected) |
//! | its tags go back to the end of the FIFO | the completion could not be posted (`ublk_batch_dispatch_fail`): the FIFO's order is no promise |
//! | FETCH ends without MORE after tags, or with a result of 0 | this driver does neither; its interface reserves both |
//! | FETCH fails with another errno | `ublk_handle_batch_fetch_cmd`: `-ENOMEM`. It passes: the model has at most eight in a row |
//! | FETCH is handed `-ENODEV` | STOP_DEV after the last request (`ublk_stop_dev`), QUIESCE_DEV at any time (`ublk_ctrl_quiesce_dev`) |
//! | one FETCH gets no `-ENODEV` | it was handing out tags then (`ublk_batch_cancel_queue` moves it back to its list) |
//! | a tag arrives before the COMMIT that gave it back is seen to complete | a FETCH in the same submission dispatches at once (`ublk_batch_attach`), and COMMIT's completion waits for the submission's end |
//! | COMMIT stops at an element | it is not the server's (`ublk_batch_commit_io_check`: `-EBUSY`). No path of this driver takes a tag from a living server, so the model invents one: the client's request fails, and its tag may carry another at once |
//! | COMMIT handles nothing | the elements could not be read (`-EFAULT`), or io_uring had no memory. At most eight in a row |
//! | `UBLK_IO_F_NEED_REG_BUF` | the ring's table has no room at that index, or no memory (`ublk_auto_buf_register`) |
//! | backend operations are short, end inside a block, fail, or come back with `-EAGAIN` or `-EINTR` | any file may; a device's direct I/O continues only at block boundaries |
//! | a backend moves nothing, or claims more than was asked | a truncated file; the claim is no kernel's, and must not be trusted |
//! | user copy is short or fails | the server's memory cannot be read or written (`ublk_copy_user_bvec`) |
//! | completions come in any order | io_uring promises none |
//! | verdicts are missing or stale | the classifier is skipped where it is running already on the CPU |
//! | verdicts are garbage or hostile | they come from a map and from a user's policy |
//! | descriptors ask for what the device does not serve | its parameters could be wrong; a server does not rely on that |
//! | the server dies; its requests are issued again, or fail | `ublk_ch_release_work_fn`; operations in flight may have happened or not |
//! | a read or write crosses a cache block | a kernel that does not keep `chunk_sectors` |
//! | operations on the cache device fail, once or from then on | any device may; no request may fail with it |
//! | the mover's operations fail, come short, or come back with `-EAGAIN` or `-EINTR` | as any others |
//! | a server begins with the index of one that died, with what one saved, or with nothing | recovery, a clean stop, a power failure |
//! | a client changes the buffer that it writes from | any program may, and a page cache without stable writes does |
//! | the backing device is written to between two servers | any program with write access can |
//! | the power fails | of each sector any version remains that was there since it was last made durable |

mod backend;
mod bug;
mod cache;
mod client;
mod commit;
mod disk;
mod fault;
mod fills;
mod history;
mod kernel;
mod life;
mod mover;
mod op;
mod pattern;
mod plant;
mod rng;
mod sim;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicU64;

use ublk_bpf_abi::{CacheCounters, ServerCounters};

pub use bug::Bug;
pub use fault::{Fault, FaultCounts};
pub use world::{CacheWorld, World};

use cache::{Maps, Side};
use sim::Sim;

/// What to simulate.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Repeats a run.
    pub seed: u64,
    /// Requests that clients send.
    pub requests: u64,
    /// The world; that of the seed if there is none.
    pub world: Option<World>,
    /// A bug to put in.
    pub bug: Option<Bug>,
}

/// What a run without a violation did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Requests that were completed.
    pub requests: u64,
    /// Operations that the machine issued.
    pub operations: u64,
    /// Faults that were injected.
    pub faults: FaultCounts,
    /// What the machines counted.
    pub counters: ServerCounters,
    /// What the movers counted.
    pub cache: CacheCounters,
}

impl Report {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.operations += other.operations;
        self.faults.add(&other.faults);
        self.counters.add(&other.counters);
        self.cache.add(&other.cache);
    }
}

/// A promise that was broken.
#[derive(Clone, Debug, thiserror::Error)]
#[error("seed {seed}, step {step}: {what}\n{world:?}")]
pub struct Violation {
    /// Repeats it.
    pub seed: u64,
    /// When.
    pub step: u64,
    /// What happened.
    pub what: String,
    /// Where.
    pub world: World,
}

/// `Err`: what was found.
type Check = Result<(), String>;

/// Simulates.
///
/// # Errors
/// The first violation. A panic of the machine is one.
pub fn run(options: &RunOptions) -> Result<Report, Box<Violation>> {
    let world = options.world.unwrap_or_else(|| World::random(options.seed));
    let blocks = ((world.sectors() * 512) >> world.written_shift) + 1;
    let words: Vec<AtomicU64> = (0..=blocks / 64).map(|_| AtomicU64::new(0)).collect();
    let violation = |step, what| {
        Box::new(Violation {
            seed: options.seed,
            step,
            what,
            world,
        })
    };
    let maps = Maps::new(&world);
    let places = cache::places(&world);
    let side = Side::new(&world, &maps, &places);
    let mut sim = Sim::new(options, &world, &words, side).map_err(|error| violation(0, error.to_string()))?;
    let outcome = catch_unwind(AssertUnwindSafe(|| sim.run(options.requests)));
    match outcome {
        Ok(Ok(())) => Ok(sim.report()),
        Ok(Err(what)) => Err(violation(sim.now, what)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("a panic");
            Err(violation(sim.now, format!("the machine panicked: {text}")))
        }
    }
}

/// A 64-bit number as an index; everything here is small.
const fn index(n: u64) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "sizes of a simulated device fit any machine"
    )]
    {
        n as usize
    }
}

/// The number in an environment variable; none if it is not set. Panics if it is something else.
#[must_use]
pub fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name} is {value:?}; it must be a number")),
    )
}
