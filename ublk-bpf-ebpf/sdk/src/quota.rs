//! Quotas of cgroups: requests a second, bytes a second, and blocks of the cache.
//!
//! [`quotas!`](crate::quotas!) declares them, `ublk-bpf quota set ID CGROUP iops=N bandwidth=SIZE cache=SHARE` sets them, and
//! a policy passes each decision through [`Quotas::apply`]. A request over its cgroup's rate is
//! [delayed](ublk_bpf_abi::Decision::delayed) until it is paid for. What a cgroup reads or writes over its share of the cache
//! is served without being brought in.
//!
//! The cgroup is that of the task that submits the request: of reads and direct I/O, but not of buffered writes, which the
//! kernel submits later. A quota is that of a cgroup itself, not of those below it.

use core::mem::offset_of;
use core::sync::atomic::AtomicU64;

use ublk_bpf_abi::{Decision, Delay, Op, Request, SECTOR_SIZE, TENANTS, Verdict, hint};

use crate::{Array, CgroupId, Table, current};

/// Declares the quotas of a policy, a [`Quotas`]: `static NAME;`. A policy without them does not pay for them.
///
/// ```
/// use ublk_bpf_policy::{Decision, Request, quotas};
///
/// quotas! {
///     static QUOTAS;
/// }
///
/// fn decide(request: &Request) -> Decision {
///     QUOTAS.apply(request, Decision::pass())
/// }
/// ```
#[macro_export]
macro_rules! quotas {
    ($(#[$about:meta])* $visibility:vis static $quotas:ident;) => {
        $crate::map! {
            /// Quotas by cgroup: `ublk-bpf quota set`.
            static UBLK_BPF_QUOTAS: $crate::quota::QuotaTable = "quotas";
            /// The slots that each tenant has. The loader has the device's map in its place.
            static UBLK_BPF_USAGE: $crate::quota::UsageMap = "ublk_usage";
        }

        $(#[$about])*
        $visibility static $quotas: $crate::Quotas = $crate::Quotas {
            table: &UBLK_BPF_QUOTAS,
            usage: &UBLK_BPF_USAGE,
        };
    };
}

/// Cgroups that may have a quota, on a device.
pub const MAX_QUOTAS: usize = 256;

/// What a cgroup may take of a device. A limit of 0 is none.
///
/// `ublk-bpf quota set` writes the first four; the others are the policy's, and begin with 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Requests a second.
    pub iops: u64,
    /// Bytes a second, of reads and writes together.
    pub bandwidth: u64,
    /// Blocks in the cache.
    pub cache_blocks: u64,
    /// The number by which the server accounts its blocks: 1 to 255; 0: they are not limited.
    pub tenant: u64,
    /// When its requests are paid for, in nanoseconds of the monotonic clock.
    pub ios_paid: u64,
    /// When their bytes are.
    pub bytes_paid: u64,
    /// Requests that were delayed.
    pub delayed: u64,
    /// Requests that were not to bring their block into the cache.
    pub refused: u64,
}

/// Quotas by cgroup.
pub type QuotaTable = Table<CgroupId, Quota, MAX_QUOTAS>;
/// The slots of each tenant.
pub type UsageMap = Array<u64, { TENANTS as usize }>;

/// The quotas of a policy, which [`quotas!`](crate::quotas!) declares.
pub struct Quotas {
    #[doc(hidden)]
    pub table: &'static QuotaTable,
    #[doc(hidden)]
    pub usage: &'static UsageMap,
}

/// What a cgroup may save up while it does nothing, in nanoseconds of its rate: 20 ms.
const BURST: u64 = 20_000_000;
const SECOND: u64 = 1_000_000_000;

impl Quotas {
    /// The decision as the quota of the submitter's cgroup allows it: delayed if the cgroup is over its rate, without
    /// bringing the block into the cache if it has its share. A flush is neither delayed nor counted.
    #[must_use]
    #[inline(always)]
    pub fn apply(&self, request: &Request, decision: Decision) -> Decision {
        if request.op == Op::Flush as u32 {
            return decision;
        }
        let applied = self.table.visit(&current::cgroup(), |quota| {
            // SAFETY: it is the value of a map, whose eight words are those of an `Account`, and the kernel keeps it as long as
            // the program runs.
            let account = unsafe { quota.cast::<Account>().as_ref() };
            account.within_rate(request, account.within_share(request, decision, self.usage))
        });
        applied.unwrap_or(decision)
    }
}

/// A [`Quota`] in its map, where other CPUs use it at the same time.
#[repr(C)]
struct Account {
    iops: AtomicU64,
    bandwidth: AtomicU64,
    cache_blocks: AtomicU64,
    tenant: AtomicU64,
    ios_paid: AtomicU64,
    bytes_paid: AtomicU64,
    delayed: AtomicU64,
    refused: AtomicU64,
}

const _: () = assert!(size_of::<Account>() == size_of::<Quota>());
const _: () = assert!(offset_of!(Account, ios_paid) == offset_of!(Quota, ios_paid));

impl Account {
    /// Charges the request, and delays it until it is paid for.
    #[inline(always)]
    fn within_rate(&self, request: &Request, decision: Decision) -> Decision {
        let now = clock::now();
        let mut wait = 0;
        if let Some(cost) = SECOND.checked_div(word::load(&self.iops)) {
            wait = charge(&self.ios_paid, cost, now);
        }
        let bytes = u64::from(request.nr_sectors) * SECTOR_SIZE;
        if moves_data(request)
            && let Some(cost) = bytes
                .wrapping_mul(SECOND)
                .checked_div(word::load(&self.bandwidth))
        {
            wait = wait.max(charge(&self.bytes_paid, cost, now));
        }
        let delay = Delay::from_micros(wait / 1000);
        if delay.is_none() {
            return decision;
        }
        word::add(&self.delayed, 1);
        decision.delayed(delay)
    }

    /// Accounts what the request brings into the cache, or has it not do so.
    #[inline(always)]
    fn within_share(&self, request: &Request, decision: Decision, usage: &UsageMap) -> Decision {
        let [tenant, ..] = word::load(&self.tenant).to_le_bytes();
        if tenant == 0 || !brings_in(request, decision) {
            return decision;
        }
        let used = usage.get(u32::from(tenant)).unwrap_or(0);
        if used < word::load(&self.cache_blocks) {
            return decision.owned_by(tenant);
        }
        word::add(&self.refused, 1);
        decision.uncached(request.op)
    }
}

/// Whether the request may bring a block into the cache that is not there.
#[inline(always)]
fn brings_in(request: &Request, decision: Decision) -> bool {
    let is_absent = !request.is_cached() && !request.is_partly_cached();
    // Where a write ends that says nothing is the mode's matter, which may be write-back.
    is_absent
        && (request.is_write() || hint::caches(decision.hints))
        && decision.verdict as u8 != Verdict::Drop as u8
}

#[inline(always)]
fn moves_data(request: &Request) -> bool {
    request.is_read() || request.is_write()
}

/// Adds a cost to what is to be paid, and returns how long that takes from now on. `paid` is when all earlier costs are.
#[inline(always)]
fn charge(paid: &AtomicU64, cost: u64, now: u64) -> u64 {
    let earliest = now.saturating_sub(BURST);
    if word::load(paid) < earliest {
        // Two CPUs that find the cgroup idle may charge one request for two: within what may be saved up.
        word::store(paid, earliest);
    }
    word::add(paid, cost).wrapping_add(cost).saturating_sub(now)
}

/// Relaxed atomic operations of a word.
#[cfg(not(target_arch = "bpf"))]
mod word {
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

    pub(super) fn load(word: &AtomicU64) -> u64 {
        word.load(Relaxed)
    }

    pub(super) fn store(word: &AtomicU64, value: u64) {
        word.store(value, Relaxed);
    }

    /// Returns what it was.
    pub(super) fn add(word: &AtomicU64, by: u64) -> u64 {
        word.fetch_add(by, Relaxed)
    }
}

/// Atomic operations of a word. The compiler has none for its BPF target, though BPF does: aligned loads and stores are
/// atomic, and so is `BPF_ADD | BPF_FETCH`. From a relaxed addition LLVM 21 makes one without `BPF_FETCH`, even if its result
/// is used.
#[cfg(target_arch = "bpf")]
mod word {
    use core::intrinsics::{AtomicOrdering, atomic_xadd};
    use core::sync::atomic::AtomicU64;

    #[inline(always)]
    pub(super) fn load(word: &AtomicU64) -> u64 {
        // SAFETY: a reference is to a valid word.
        unsafe { word.as_ptr().read_volatile() }
    }

    #[inline(always)]
    pub(super) fn store(word: &AtomicU64, value: u64) {
        // SAFETY: as above.
        unsafe { word.as_ptr().write_volatile(value) }
    }

    /// Returns what it was.
    #[inline(always)]
    pub(super) fn add(word: &AtomicU64, by: u64) -> u64 {
        // SAFETY: as above.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(word.as_ptr(), by) }
    }
}

/// The monotonic clock.
#[cfg(target_arch = "bpf")]
mod clock {
    #[inline(always)]
    pub(super) fn now() -> u64 {
        // SAFETY: the helper takes no arguments and returns a number.
        unsafe { aya_ebpf::helpers::bpf_ktime_get_ns() }
    }
}

/// The monotonic clock. On the host it stands still until this thread sets it.
#[cfg(not(target_arch = "bpf"))]
pub mod clock {
    use core::cell::Cell;

    thread_local! {
        static NOW: Cell<u64> = const { Cell::new(1 << 40) };
    }

    /// Sets it, in nanoseconds, for this thread of the host.
    pub fn set(now: u64) {
        NOW.set(now);
    }

    /// Its time in nanoseconds.
    #[must_use]
    pub fn now() -> u64 {
        NOW.get()
    }
}

#[cfg(test)]
mod tests {
    use ublk_bpf_abi::{Extent, Priority, WriteMode};

    use super::*;
    use crate::current::Task;

    quotas! {
        static QUOTAS;
    }

    const BACKUP: u64 = 77;

    fn set(quota: Quota) {
        current::set(Task::new(1, "tar", BACKUP));
        UBLK_BPF_QUOTAS.insert(&CgroupId(BACKUP), &quota);
    }

    fn delay_of(request: &Request) -> u64 {
        QUOTAS.apply(request, Decision::pass()).delay.micros()
    }

    /// Time that so many requests take which are served one after the other, each once its delay is over.
    fn time_of(requests: u32, request: &Request) -> u64 {
        let begin = clock::now();
        for _ in 0..requests {
            clock::set(clock::now() + delay_of(request) * 1000);
        }
        clock::now() - begin
    }

    #[test]
    fn a_rate_is_kept_although_delays_are_rounded() {
        for (quota, per_second) in [
            (
                Quota {
                    iops: 300,
                    ..Quota::default()
                },
                300,
            ),
            (
                Quota {
                    bandwidth: 512 * 1000,
                    ..Quota::default()
                },
                125,
            ),
            (
                Quota {
                    iops: 100,
                    bandwidth: 1 << 30,
                    ..Quota::default()
                },
                100,
            ),
        ] {
            set(quota);
            let seconds = time_of(10 * per_second, &Request::new(Op::Read, 0, 8)) as f64 / 1e9;
            assert!((9.8..10.1).contains(&seconds), "{quota:?}: {seconds}");
        }
    }

    #[test]
    fn requests_that_arrive_at_once_are_spread() {
        set(Quota {
            iops: 1000,
            ..Quota::default()
        });
        let request = Request::new(Op::Write, 0, 8);
        let delays: Vec<u64> = (0..120).map(|_| delay_of(&request)).collect();
        assert_eq!(delays[..20], [0; 20], "what was saved up");
        assert!(delays[119] > 87_000 && delays[119] <= 100_000, "{delays:?}");
        assert!(delays.is_sorted());
        assert_eq!(
            UBLK_BPF_QUOTAS.get(&CgroupId(BACKUP)).map(|quota| quota.delayed),
            Some(100)
        );
    }

    #[test]
    fn others_and_flushes_are_not_delayed() {
        set(Quota {
            iops: 1,
            ..Quota::default()
        });
        let (read, flush) = (Request::new(Op::Read, 0, 8), Request::new(Op::Flush, u64::MAX, 0));
        assert!(delay_of(&read) > 0 && delay_of(&flush) == 0);
        current::set(Task::new(2, "postgres", 5));
        assert_eq!(QUOTAS.apply(&read, Decision::hit()), Decision::hit());
    }

    #[test]
    fn a_share_of_the_cache_is_not_exceeded() {
        set(Quota {
            cache_blocks: 10,
            tenant: 3,
            ..Quota::default()
        });
        let fill = Decision::pass().fill(Extent::Block, Priority::High);
        let (read, write) = (Request::new(Op::Read, 0, 8), Request::new(Op::Write, 0, 8));
        UBLK_BPF_USAGE.set(3, &9);
        assert_eq!(QUOTAS.apply(&read, fill), fill.owned_by(3));
        assert_eq!(
            QUOTAS.apply(&write, Decision::pass()),
            Decision::pass().owned_by(3)
        );
        assert_eq!(
            QUOTAS.apply(&read, Decision::pass()),
            Decision::pass(),
            "it brings nothing in"
        );
        UBLK_BPF_USAGE.set(3, &10);
        assert_eq!(QUOTAS.apply(&read, fill).hints, Decision::pass().hints);
        let around = QUOTAS.apply(&write, Decision::pass().back());
        assert_eq!(hint::write_mode(around.hints), Some(WriteMode::Around));
        let cached = Request {
            flags: ublk_bpf_abi::request_flags::CACHED,
            ..write
        };
        assert_eq!(
            QUOTAS.apply(&cached, Decision::pass().back()),
            Decision::pass().back()
        );
        assert_eq!(
            UBLK_BPF_QUOTAS.get(&CgroupId(BACKUP)).map(|quota| quota.refused),
            Some(2)
        );
    }
}
